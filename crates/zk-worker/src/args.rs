//! The command line, as it is typed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use zk_cli::{CommonArgs, TaskKeyArgs};
use zk_http::Listen;
use znode_paths::{Address, WorkerName};

use crate::judge::Rules;
use crate::keeper::Keep;
use crate::{Config, Error, Identity};

/// Runs the tasks that a master assigns to it. Start one on each host.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,

    /// The session timeout to ask for: what runs is killed when ZooKeeper was not reached for 3/4 of it
    #[arg(long, env = "ZK_SESSION_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = zk_cli::session_timeout)]
    session_timeout: Duration,

    /// The name to register under [default: `<hostname>`]
    #[arg(long, env = "ZK_NAME", value_name = "NAME")]
    name: Option<WorkerName>,

    /// What `/workers/<name>` holds [default: `<name>:2224`]
    #[arg(long, env = "ZK_ADDRESS", value_name = "HOST:PORT")]
    address: Option<Address>,

    /// Where to serve the output of tasks, `/metrics`, `/healthz` and `/readyz`, over HTTP [default: the port of the address, on all interfaces]
    #[arg(long, env = "ZK_LISTEN", value_name = "ADDR:PORT|off")]
    listen: Option<Listen>,

    /// Asks the zk-worker that runs with the same options on this host whether it is well, and exits 0 or 1
    #[arg(long)]
    health: bool,

    /// How many tasks run at once [default: processors]
    #[arg(long, env = "ZK_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    slots: Option<u32>,

    /// A label that tasks can require; may be given several times
    #[arg(long = "label", env = "ZK_LABEL", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,

    /// Where tasks run and their output is kept [default: `/var/lib/zk-worker/<name>`, or below `~/.local/state` if not root]
    #[arg(long, env = "ZK_WORK_DIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// How long the folder of a task is kept in the work dir after its end
    #[arg(long, env = "ZK_WORK_DIR_RETAIN", value_name = "DURATION", default_value = "24h",
          value_parser = zk_cli::duration)]
    work_dir_retain: Duration,

    /// How much disk those folders may take; the oldest go first
    #[arg(long, env = "ZK_WORK_DIR_MAX", value_name = "BYTES", default_value_t = 10 << 30)]
    work_dir_max: u64,

    /// Between SIGTERM and SIGKILL for a task's process group
    #[arg(long, env = "ZK_GRACE", value_name = "DURATION", default_value = "10s", value_parser = zk_cli::duration)]
    grace: Duration,

    /// How much of the end of each stream is kept in the status; the whole output is in the work dir
    #[arg(long, env = "ZK_OUTPUT_LIMIT", value_name = "BYTES", default_value_t = 65_536)]
    output_limit: u64,

    /// The user that tasks run as, by name or number; only root can do that [default: the worker's own]
    #[arg(long, env = "ZK_RUN_AS", value_name = "USER")]
    run_as: Option<String>,

    #[command(flatten)]
    task_key: TaskKeyArgs,

    /// With a task key: how long after it was signed a task may be started
    #[arg(long, env = "ZK_TASK_MAX_AGE", value_name = "DURATION", default_value = "24h", value_parser = zk_cli::duration)]
    task_max_age: Duration,

    /// What becomes of running tasks when ZooKeeper is not reached for so long that they may be given to others
    #[arg(long, env = "ZK_ON_LOST", value_name = "kill|keep", default_value = "kill")]
    on_lost: OnLost,
}

/// What becomes of running tasks when their worker counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnLost {
    /// They are killed before anybody else can get them.
    Kill,
    /// They run on, and may run twice at the same time.
    Keep,
}

const AFTER_HELP: &str = "\
SIGINT or SIGTERM, first: takes nothing new, hands back what has not started, finishes what runs, exits 0.
Second: stops what runs as well.

Example: zk-worker --zk zk1:2181,zk2:2181,zk3:2181/jobs --slots 4 --label disk=ssd";

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

impl Args {
    /// Does what the command line says.
    ///
    /// # Errors
    /// An option cannot be used, the worker cannot start or go on, or the one that was asked is not well.
    pub fn run(self) -> Result<ExitCode, Error> {
        let health = self.health;
        let config = self.config()?;
        if health {
            config.listen.health()?;
            return Ok(ExitCode::SUCCESS);
        }
        crate::run(config)
    }

    /// Starts the log and says what the options mean.
    fn config(self) -> Result<Config, Error> {
        self.common.start_log();
        let name = match self.name {
            Some(name) => name,
            None => zk_cli::host().parse().map_err(Error::Name)?,
        };
        let address = match self.address {
            Some(address) => address,
            None => format!("{name}:2224").parse().map_err(Error::Address)?,
        };
        let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let slots = self.slots.unwrap_or_else(|| u32::try_from(processors()).unwrap_or(u32::MAX));
        let work_dir = self.work_dir.unwrap_or_else(|| default_work_dir(&name));
        std::fs::create_dir_all(&work_dir).map_err(|error| Error::WorkDir(work_dir.clone(), error))?;
        let work_dir = work_dir.canonicalize().map_err(|error| Error::WorkDir(work_dir.clone(), error))?;
        Ok(Config {
            session: self.common.config(self.session_timeout)?,
            name,
            listen: self.listen.unwrap_or(Listen::Everywhere(address.port())),
            address,
            slots,
            labels: self.labels.into_iter().collect::<BTreeMap<_, _>>(),
            work_dir,
            grace: self.grace,
            output_limit: self.output_limit,
            run_as: self.run_as.map(identity).transpose()?,
            signed: self.task_key.read()?.map(|keys| Rules { keys, max_age: self.task_max_age }),
            keep: Keep { age: self.work_dir_retain, bytes: self.work_dir_max },
            on_lost: self.on_lost,
        })
    }
}

fn identity(user: String) -> Result<Identity, Error> {
    Identity::of(&user).map_err(|error| Error::RunAs(user, error))
}

fn default_work_dir(name: &WorkerName) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let state = match home {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/state"),
        _ => PathBuf::from("/var/lib"),
    };
    state.join("zk-worker").join(name.as_str())
}
