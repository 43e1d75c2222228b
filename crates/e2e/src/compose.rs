//! The cluster of `docker-compose.yml`, in a project of its own: nothing of it is left when the test process has ended.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::{janitor, wait_within};

/// A project of docker-compose.
#[derive(Debug)]
pub struct Compose {
    project: String,
    /// Further files.
    files: Vec<String>,
}

impl Compose {
    /// A project without containers.
    ///
    /// # Errors
    /// Why there can be none: images take minutes to build, so only `scripts/test.sh` and `scripts/failover.sh` see to it
    /// that they are there and up to date, and say so in the environment.
    pub fn new() -> Result<Compose, String> {
        if std::env::var_os("E2E_DOCKER").is_none() {
            return Err("E2E_DOCKER is not set: scripts/test.sh --docker builds the images and sets it".to_owned());
        }
        Ok(Compose { project: janitor::project(), files: Vec::new() })
    }

    /// Adds a file to `docker-compose.yml`.
    #[must_use]
    pub fn with(mut self, file: &Path) -> Compose {
        self.files.extend(["--file".to_owned(), file.display().to_string()]);
        self
    }

    /// The network on which all services are.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    /// docker-compose with these arguments.
    #[must_use]
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = command();
        command.args(["--project-name", &self.project, "--file", "docker-compose.yml"]).args(&self.files).args(args);
        command.current_dir(workspace).output().expect("docker-compose can be started")
    }

    /// What docker-compose prints when it succeeds.
    #[track_caller]
    pub fn ask(&self, args: &[&str]) -> String {
        stdout(args, &self.run(args))
    }

    /// What `zk-client` prints when it succeeds.
    #[track_caller]
    pub fn client(&self, args: &[&str]) -> String {
        self.ask(&[&["run", "--rm", "-T", "client"], args].concat())
    }

    /// The containers of all services, or of one.
    #[must_use]
    #[track_caller]
    pub fn containers(&self, service: Option<&str>) -> Vec<String> {
        let args: Vec<&str> = ["ps", "--quiet"].into_iter().chain(service).collect();
        self.ask(&args).split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until Docker finds all containers healthy.
    #[track_caller]
    pub fn wait_healthy(&self) {
        wait_within(4 * crate::wait::LIMIT, "all containers to be healthy", || {
            let containers = self.containers(None);
            let names: Vec<&str> = containers.iter().map(String::as_str).collect();
            let format = "{{.Name}} {{.State.Status}} {{.State.Health.Status}}";
            let states = docker(&[&["inspect", "--format", format], &names[..]].concat());
            if states.lines().all(|state| state.ends_with(" running healthy")) { Ok(()) } else { Err(states) }
        });
    }
}

/// What docker prints when it succeeds.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    stdout(args, &Command::new("docker").args(args).output().expect("docker can be started"))
}

#[track_caller]
fn stdout(args: &[&str], output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}: {stderr}", args.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// docker-compose as a plugin of docker (2), or as a program of its own (1).
fn command() -> Command {
    let mut plugin = Command::new("docker");
    plugin.arg("compose");
    let there = Command::new("docker").args(["compose", "version"]).output();
    if there.is_ok_and(|there| there.status.success()) { plugin } else { Command::new("docker-compose") }
}
