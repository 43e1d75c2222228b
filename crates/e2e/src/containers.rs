//! The cluster of `docker-compose.yml` with tasks that leave [`evidence`](crate::evidence), and what there is to break.
//!
//! Containers are asked for by their ids, which are looked up once: docker-compose takes longer than a take-over.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Compose, Workload,
    compose::docker,
    daemon,
    evidence::History,
    janitor,
    joined::{self, Part},
    server, txnlog, wait_for,
};

/// The services of each kind.
const SERVERS: [&str; 3] = ["zookeeper1", "zookeeper2", "zookeeper3"];
const MASTERS: [&str; 3] = ["master1", "master2", "master3"];
const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];

/// A running project. Dropping it takes it down, with its volumes.
pub struct Containers {
    /// Its tasks, submitted from this machine.
    pub load: Workload,
    compose: Compose,
    /// By service.
    ids: BTreeMap<&'static str, String>,
    dir: TempDir,
}

impl Containers {
    /// Starts it, and returns when it is settled. The images are there ([`Compose::new`]).
    ///
    /// # Errors
    /// Why there can be none here.
    #[track_caller]
    pub fn start(session_timeout: Duration) -> Result<Containers, String> {
        let dir = TempDir::new_in(janitor::workshop()).expect("a temporary directory can be made");
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).expect("a directory can be made");
        let program = shared.join("e2e-task");
        fs::copy(daemon::binary("e2e-task"), &program).expect("the program was built");
        let file = dir.path().join("failover.yml");
        fs::write(&file, changes(session_timeout, &shared)).expect("a file can be written");
        let compose = Compose::new()?.with(&file);
        compose.ask(&["up", "--detach"]);
        let id = |service| {
            let ids = compose.containers(Some(service));
            (service, ids.into_iter().next().expect("`up` has started it"))
        };
        let ids: BTreeMap<_, _> = SERVERS.into_iter().chain(MASTERS).chain(WORKERS).map(id).collect();
        let servers = SERVERS.map(|service| address(&ids[service]).expect("it is on the network").to_string());
        let load = Workload::new(format!("{}/jobs", servers.join(",")), None, shared.join("evidence"));
        // The workers are another user.
        let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        permit(&shared, 0o755).expect("it is our folder");
        permit(&load.evidence, 0o666).expect("it is our file");
        let containers = Containers { load: load.with_program(program), compose, ids, dir };
        containers.settle();
        Ok(containers)
    }

    /// Waits until everything is as it should be: all servers serve, and [`Workload::settle`].
    #[track_caller]
    pub fn settle(&self) {
        wait_for("all three servers to serve", || {
            let modes = self.modes();
            if modes.iter().all(|(_, mode)| mode.is_ok()) { Ok(()) } else { Err(format!("{modes:?}")) }
        });
        self.load.settle(MASTERS.len() + WORKERS.len(), WORKERS.len());
    }

    fn modes(&self) -> Vec<(&'static str, Result<String, String>)> {
        let mode = |service| server::mode(address(&self.ids[service])?, None);
        SERVERS.into_iter().map(|service| (service, mode(service))).collect()
    }

    /// The server that is `leader` or a `follower`, once there is one.
    #[must_use]
    #[track_caller]
    pub fn server(&self, mode: &str) -> &'static str {
        wait_for(&format!("a {mode}"), || {
            let modes = self.modes();
            let found = modes.iter().find(|(_, found)| found.as_deref() == Ok(mode));
            found.map(|(service, _)| *service).ok_or_else(|| format!("{modes:?}"))
        })
    }

    /// Has docker do something with the container of a service, such as `kill`.
    #[track_caller]
    pub fn docker(&self, what: &str, service: &str) {
        docker(&[what, &self.ids[service]]);
    }

    /// Takes a container off the network.
    #[track_caller]
    pub fn disconnect(&self, service: &str) {
        docker(&["network", "disconnect", &self.compose.network(), &self.ids[service]]);
    }

    /// Puts it back, under the names that it had.
    #[track_caller]
    pub fn connect(&self, service: &str) {
        let (network, host) = (self.compose.network(), format!("{service}.example.com"));
        docker(&["network", "connect", "--alias", service, "--alias", &host, &network, &self.ids[service]]);
    }

    /// What the servers committed, sorted: their logs are copied out of the containers.
    #[must_use]
    #[track_caller]
    pub fn history(&self) -> History {
        let (txns, unsound) = joined::join(&SERVERS.map(|service| self.part(service)));
        History { unsound, ..History::of(&txns, "/jobs") }
    }

    #[track_caller]
    fn part(&self, service: &str) -> Part {
        let copy = TempDir::new_in(self.dir.path()).expect("a temporary directory can be made");
        let from = format!("{}:/datalog/version-2", self.ids[service]);
        docker(&["cp", "--quiet", &from, &copy.path().display().to_string()]);
        let txns = txnlog::read(copy.path()).expect("the transaction log is readable");
        Part { txns, ..Part::default() }.with_log(&self.log(service))
    }

    /// All that a container said.
    fn log(&self, service: &str) -> String {
        let output = Command::new("docker").args(["logs", &self.ids[service]]).output().expect("docker can be started");
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    }

    /// Copies all logs and the evidence, for whoever wants to know what happened.
    pub fn keep(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::copy(&self.load.evidence, dir.join("evidence"))?;
        for service in self.ids.keys() {
            fs::write(dir.join(format!("{service}.log")), self.log(service))?;
        }
        Ok(())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // What does not go now goes with the process (`janitor`).
        let _output = self.compose.run(&["down", "--volumes", "--timeout", "1"]);
    }
}

/// Where a server answers now: an address may change when a container starts again.
fn address(id: &str) -> Result<SocketAddr, String> {
    let address = docker(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id]);
    let address: IpAddr = address.trim().parse().map_err(|_| "it is not on the network".to_owned())?;
    Ok((address, 2181).into())
}

/// What is different from `docker-compose.yml`: the ticks and limits of `Ensemble`, the session timeout, and a folder that
/// tasks share with this machine.
fn changes(session_timeout: Duration, shared: &Path) -> String {
    let (timeout, shared) = (session_timeout.as_millis(), shared.display());
    let mut services = "services:\n".to_owned();
    for service in SERVERS {
        services += &format!(
            "  {service}:\n    environment:\n      ZOO_TICK_TIME: 500\n      ZOO_INIT_LIMIT: 10\n      ZOO_SYNC_LIMIT: 4\n      \
             JVMFLAGS: >-\n        -Dzookeeper.preAllocSize=1024 -Dzookeeper.cnxTimeout=1000 \
             -Dzookeeper.fastleader.maxNotificationInterval=1000\n"
        );
    }
    for service in MASTERS {
        services += &format!("  {service}:\n    environment: {{ ZK_SESSION_TIMEOUT: {timeout}ms }}\n");
    }
    for service in WORKERS {
        services += &format!(
            "  {service}:\n    environment: {{ ZK_SESSION_TIMEOUT: {timeout}ms, ZK_SLOTS: 4, E2E_HOST: {service} }}\n    \
             volumes: [\"{shared}:{shared}\"]\n"
        );
    }
    services
}
