//! The command line, as it is typed.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zk_cli::CommonArgs;
use zk_http::Listen;
use znode_paths::Address;

use crate::Config;
use crate::plan::Retention;

/// Assigns tasks to workers through ZooKeeper. Start as many as you like, on different hosts: one is the primary, the
/// others watch it and take over when it goes.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,

    /// The session timeout to ask for: how long a host may be gone before another takes over
    #[arg(long, env = "ZK_SESSION_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = zk_cli::session_timeout)]
    session_timeout: Duration,

    /// What `/master` holds while this is the primary [default: `<hostname>:2223`]
    #[arg(long, env = "ZK_ADDRESS", value_name = "HOST:PORT")]
    address: Option<Address>,

    /// Where to serve a page for browsers, `/metrics`, `/healthz` and `/readyz`, over HTTP [default: the port of the address, on all interfaces]
    #[arg(long, env = "ZK_LISTEN", value_name = "ADDR:PORT|off")]
    listen: Option<Listen>,

    /// Asks the zk-master that runs with the same options on this host whether it is well, and exits 0 or 1
    #[arg(long)]
    health: bool,

    /// How long finished tasks are kept
    #[arg(long, env = "ZK_RETAIN", value_name = "DURATION", default_value = "1h", value_parser = zk_cli::duration)]
    retain: Duration,

    /// How many finished tasks are kept
    #[arg(long, env = "ZK_RETAIN_MAX", value_name = "N", default_value_t = 10_000)]
    retain_max: usize,
}

const AFTER_HELP: &str = "\
SIGINT or SIGTERM: gives up /master at once, so that another takes over, and exits 0.

Example: zk-master --zk zk1:2181,zk2:2181,zk3:2181/jobs --address master1.example.com:2223";

impl Args {
    /// Does what the command line says.
    ///
    /// # Errors
    /// An option cannot be used, the master cannot start or go on, or the one that was asked is not well.
    pub fn run(self) -> Result<ExitCode, crate::Error> {
        let health = self.health;
        let config = self.config()?;
        if health {
            config.listen.health()?;
            return Ok(ExitCode::SUCCESS);
        }
        crate::run(config)
    }

    /// Starts the log and says what the options mean.
    fn config(self) -> Result<Config, crate::Error> {
        self.common.start_log();
        let address = match self.address {
            Some(address) => address,
            None => format!("{}:2223", zk_cli::host()).parse().map_err(crate::Error::Address)?,
        };
        let age_ms = i64::try_from(self.retain.as_millis()).unwrap_or(i64::MAX);
        Ok(Config {
            session: self.common.config(self.session_timeout)?,
            listen: self.listen.unwrap_or(Listen::Everywhere(address.port())),
            address,
            retention: Retention { age_ms, count: self.retain_max },
        })
    }
}
