//! `zk-worker`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let ran = zk_worker::Args::parse().config().and_then(zk_worker::run);
    zk_cli::exit("zk-worker", ran)
}
