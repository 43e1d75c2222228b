//! `zk-worker`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match zk_cli::parse::<zk_worker::Args>("zk-worker") {
        Ok(args) => zk_cli::exit("zk-worker", args.config().and_then(zk_worker::run)),
        Err(code) => code,
    }
}
