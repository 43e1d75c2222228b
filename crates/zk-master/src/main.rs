//! `zk-master`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let ran = zk_master::Args::parse().config().and_then(zk_master::run);
    zk_cli::exit("zk-master", ran)
}
