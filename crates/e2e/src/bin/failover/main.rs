//! What `scripts/failover.sh` runs: breaks a cluster in every way, and says what became of the promises.
//!
//! Nothing is taken from the daemons' own words: take-over times and verdicts are computed from the servers' transaction logs
//! and from what the tasks wrote themselves (`e2e::evidence`).

mod docker;
mod faults;
mod soak;
mod table;

use std::{
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use e2e::{Cluster, Containers, Workload, evidence::History};

/// Breaks a cluster of 3 ZooKeeper servers, 3 masters and 3 workers in every way while tasks keep coming, and says how long
/// each take-over took and whether any promise was broken
#[derive(Debug, Parser)]
#[command(name = "failover.sh", bin_name = "scripts/failover.sh", after_help = AFTER_HELP)]
struct Args {
    /// Only what matters most, each a few times (a minute)
    #[arg(long, conflicts_with_all = ["rounds", "times"])]
    quick: bool,

    /// How often each fault is done [default: 10 where nothing waits for a session timeout, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "rounds")]
    times: Option<u32>,

    /// Only the faults with this in their names
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "rounds")]
    only: String,

    /// The cluster of docker-compose.yml instead: its containers are stopped, killed, paused and taken off the network
    #[arg(long, conflicts_with_all = ["quick", "rounds"])]
    docker: bool,

    /// A random soak instead of the table: so many rounds, each with a cluster and a seed of its own
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// The seed of the first round; the others count up from it. A round that failed is done again with its seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// How long the faults of a round go on
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    lasts: Duration,

    /// How many tasks are submitted in a round
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
}

const AFTER_HELP: &str = "\
Everything runs in private processes, each server and daemon in a network namespace of its own where this user may make \
some (root); elsewhere on 127.0.0.1, and faults of links are left out, which is said. Ctrl-C ends and removes all of it.

The table's columns:
  median, max  of the take-over times:
    primary    from the fault to the first assignment that another primary made, by the servers' transaction logs
    worker     from the fault to the next start of each task that ran there, by what the tasks write
    ZooKeeper  from when there is a leader (again) to the last new session of a daemon, by the transaction logs
  goal         what the longest may take: at a session timeout of 30 s in the first part, of 2 s from `guard and daemon` on
  lost         accepted tasks without a status
  again        tasks that started more than once
  overlap      tasks of which an attempt still lived when the next one had begun

With --docker each time counts from when docker is told, and the images are built before. A container that is killed or \
paused takes its guard with it, so others wait for the session timeout. What a paused worker ran goes on for a moment when it is \
thawed: a stated limit (README), which that line counts and does not judge.

A host that is gone is noticed when its session expires. ZooKeeper rounds the timeout up to a tick (500 ms here), and a \
follower tells the leader twice in a tick which sessions it has heard: up to the timeout and 1.5 ticks after the last packet.

A round of the soak in which a promise was broken is UNSOUND when ZooKeeper itself took back what it had committed or its \
servers had different trees, as happens with release 3.8.0 when servers fail during a sync (ZOOKEEPER-4643, ZOOKEEPER-4646). \
It says nothing about our promises: another round is done for it.

Exit status: 0 when all promises were kept and all goals reached, 1 otherwise: the logs are kept, and where is said.";

fn main() -> ExitCode {
    let args = Args::parse();
    let well = match args.rounds {
        Some(rounds) => soak::rounds(args.seed, rounds, args.lasts, args.tasks),
        None if args.docker => docker::print_all(args.times, &args.only),
        None => table::print_all(args.quick, args.times, &args.only),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For whoever waits.
fn say(text: &str) {
    // Nobody reads it any more: that is no reason to stop.
    writeln!(std::io::stderr(), "failover.sh: {text}").ok();
}

/// The result.
fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// A cluster that is broken, of either kind.
trait Site {
    fn load(&self) -> &Workload;
    fn history(&self) -> History;
    fn keep(&self, dir: &Path) -> io::Result<()>;
}

impl Site for Cluster {
    fn load(&self) -> &Workload {
        &self.load
    }

    fn history(&self) -> History {
        self.history()
    }

    fn keep(&self, dir: &Path) -> io::Result<()> {
        self.keep(dir)
    }
}

impl Site for Containers {
    fn load(&self) -> &Workload {
        &self.load
    }

    fn history(&self) -> History {
        self.history()
    }

    fn keep(&self, dir: &Path) -> io::Result<()> {
        self.keep(dir)
    }
}

/// What came of something that was done with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// All promises were kept.
    Kept,
    /// One was not.
    Broken,
    /// One was not, and neither was what all of them assume: that ZooKeeper keeps what it commits. Nobody knows whose fault it is.
    Unsound,
}

/// Does something with a cluster that says whether the promises were kept. When they were not, or the harness gives up (it
/// panics with a sentence), the logs are kept.
fn attend<S: Site>(site: &mut S, what: &str, work: impl FnOnce(&mut S) -> bool) -> Came {
    let kept = catch_unwind(AssertUnwindSafe(|| work(site))).unwrap_or(false);
    if kept {
        return Came::Kept; // in spite of whatever ZooKeeper did
    }
    let unsound = site.history().unsound;
    for why in &unsound {
        say(&format!("UNSOUND: {what}: {why}"));
    }
    let came = if unsound.is_empty() { Came::Broken } else { Came::Unsound };
    let dir: PathBuf = std::env::temp_dir().join(format!("failover-{what}-{}", std::process::id()));
    match site.keep(&dir) {
        Ok(()) => say(&format!("the logs and the evidence of {what} are in {}", dir.display())),
        Err(error) => say(&format!("the logs of {what} could not be kept in {}: {error}", dir.display())),
    }
    came
}
