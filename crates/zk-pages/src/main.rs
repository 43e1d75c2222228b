//! Writes what a package carries beside the programs: `man/*.1`, and `completions/` for bash, zsh and fish, into the folder
//! that is named. Made from the very command lines that the programs parse, when a package is built:
//!
//! ```sh
//! cargo run --release -p zk-pages -- target/pages
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, ValueEnum as _};
use zk_client::completions::{Shell, script};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: zk-pages FOLDER")?;
    write(&PathBuf::from(folder))
}

/// Under the names that the shells look for.
fn file(shell: &str) -> String {
    match shell {
        "zsh" => "_zk-client".to_owned(),
        "fish" => "zk-client.fish".to_owned(),
        _ => "zk-client".to_owned(),
    }
}

fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    for command in [zk_master::Args::command(), zk_worker::Args::command(), zk_client::Args::command()] {
        // Each subcommand has a page of its own: zk-client-submit(1).
        clap_mangen::generate_to(command, &man)?;
    }
    for shell in Shell::value_variants() {
        let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let folder = folder.join("completions").join(&name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(file(&name)), script(*shell))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let page = |name: &str| fs::read_to_string(folder.path().join("man").join(format!("{name}.1"))).unwrap();
        for command in zk_client::Args::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            if name != "help" {
                let page = page(&format!("zk-client-{name}"));
                assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
            }
        }
        assert!(page("zk-client").contains("Exit codes:"));
        assert!(page("zk-worker").contains("slots") && page("zk-master").contains("retain"));
        assert!(!folder.path().join("man/zk-client-names.1").exists(), "what is hidden has none");
        for script in ["bash/zk-client", "zsh/_zk-client", "fish/zk-client.fish"] {
            let script = fs::read_to_string(folder.path().join("completions").join(script)).unwrap();
            assert!(script.contains("zk-client"));
        }
    }
}
