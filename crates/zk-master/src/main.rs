//! `zk-master`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match zk_cli::parse::<zk_master::Args>("zk-master") {
        Ok(args) => zk_cli::exit("zk-master", args.run()),
        Err(code) => code,
    }
}
