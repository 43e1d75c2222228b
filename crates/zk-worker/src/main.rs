//! `zk-worker`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match zk_cli::parse::<zk_worker::Args>("zk-worker") {
        Ok(args) => zk_cli::exit("zk-worker", args.run()),
        Err(code) => code,
    }
}
