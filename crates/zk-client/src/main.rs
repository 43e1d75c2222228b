//! `zk-client`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match zk_cli::parse::<zk_client::Args>("zk-client") {
        Ok(args) => zk_client::run(args),
        Err(code) => code,
    }
}
