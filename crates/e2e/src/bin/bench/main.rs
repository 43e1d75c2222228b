//! The figures of `scripts/bench.sh`: each beside what the machine itself does in the same run.
//!
//! Usage: `bench [--quick] [--ensemble] [--json] [FIGURE...]`. Nothing here asserts; the goals stand beside what was measured.

mod capacity;
mod figures;
mod load;
mod report;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use e2e::{Ensemble, Server, Setup};

use report::{Format, Report};

const USAGE: &str = "usage: bench [--quick] [--ensemble] [--json] [FIGURE...]";

/// How much is done.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    quick: bool,
}

impl Scale {
    /// A number of things to do: all of them, or a tenth.
    pub(crate) fn of(self, all: usize) -> usize {
        if self.quick { all / 10 } else { all }
    }
}

/// Where ZooKeeper is, and where workers can work.
pub(crate) struct Zk<'a> {
    servers: Servers,
    /// In memory, where that can be had: what a file system does is not measured here. (Ext4 without a journal, as some machines have
    /// it, is slow to make files for minutes after many were removed, which whoever measures twice would see.)
    folder: &'a Path,
}

/// Every transaction is forced to the disk before it is acknowledged, as in service.
enum Servers {
    One(Box<Server>),
    Three(Ensemble),
}

impl Zk<'_> {
    fn start(ensemble: bool, folder: &Path) -> Zk<'_> {
        let servers = match ensemble {
            false => {
                let setup = Setup { force_sync: true, ..Setup::default() };
                Servers::One(Box::new(Server::start_with(&setup, None)))
            }
            true => Servers::Three(Ensemble::start_durable()),
        };
        Zk { servers, folder }
    }

    /// A connect string with a chroot of its own.
    pub(crate) fn chroot(&self, name: &str) -> String {
        match &self.servers {
            Servers::One(server) => server.chroot(name),
            Servers::Three(ensemble) => ensemble.chroot(name),
        }
    }

    /// The servers.
    pub(crate) fn servers(&self) -> Vec<&Server> {
        match &self.servers {
            Servers::One(server) => vec![server],
            Servers::Three(ensemble) => ensemble.servers.iter().collect(),
        }
    }

    /// A new folder.
    pub(crate) fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(self.folder).expect("a folder can be made").keep()
    }
}

fn main() -> ExitCode {
    let (mut scale, mut ensemble, mut format, mut only) = (Scale { quick: false }, false, Format::Table, Vec::new());
    for arg in env::args().skip(1) {
        match &arg[..] {
            "--quick" => scale.quick = true,
            "--ensemble" => ensemble = true,
            "--json" => format = Format::Json,
            name if figures::ALL.iter().any(|(figure, _)| *figure == name) => only.push(arg),
            _ => {
                let names: Vec<&str> = figures::ALL.iter().map(|(figure, _)| *figure).collect();
                report::say(&format!("{USAGE}\nfigures: {}", names.join(" ")));
                return ExitCode::from(2);
            }
        }
    }
    let mut report = Report::new(format, ensemble);
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder can be made");
    for (name, measure) in figures::ALL {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            report::say(&format!("measuring {name} ..."));
            // Each on a fresh ensemble: what one leaves behind is not to be paid for by the next.
            measure(&Zk::start(ensemble, folder.path()), scale, &mut report);
        }
    }
    report.print();
    ExitCode::SUCCESS
}
