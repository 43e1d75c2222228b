//! A whole cluster: three ZooKeeper servers, masters, workers, each on a host of its own where namespaces can be had, and on
//! the loopback address otherwise; tasks that leave [`evidence`]; and what there is to break.

use std::{fs, io, path::Path, time::Duration};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use znode_paths::{TaskName, paths};

use crate::{
    Daemon, Ensemble, Host, Hosts, Server, Workload,
    daemon::Launch,
    evidence::{self, History, Verdict},
    janitor,
    joined::{self, Part},
    wait_for,
};

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `m1`, `m2`, ...
    pub masters: u8,
    /// `w1`, `w2`, ...
    pub workers: u8,
    /// How many tasks each runs at once.
    pub slots: u32,
    /// Of masters and workers.
    pub session_timeout: Duration,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { masters: 3, workers: 3, slots: 4, session_timeout: Duration::from_secs(30) }
    }
}

/// A running cluster. Dropping it ends everything, and removes what it wrote.
pub struct Cluster {
    /// The masters.
    pub masters: Vec<Member>,
    /// The workers.
    pub workers: Vec<Member>,
    /// The servers.
    pub ensemble: Ensemble,
    /// Its tasks, submitted from a host that nothing happens to.
    pub load: Workload,
    /// Why there are no links to cut, if so.
    lack: Option<String>,
    // Dropped last: what runs in them is gone by then.
    _hosts: Option<Hosts>,
    _dir: TempDir,
}

/// A daemon with its guard, that can be started again.
pub struct Member {
    /// `m1` or `w1`.
    pub name: String,
    /// Takes effect at the next start.
    pub session_timeout: Duration,
    /// It now, or how it ended.
    pub daemon: Daemon,
    launch: Launch,
    host: Option<Host>,
    /// What was logged before the last start.
    earlier: String,
}

impl Cluster {
    /// Starts all of it, and returns when it is [settled](Cluster::settle).
    #[must_use]
    #[track_caller]
    pub fn start(shape: &Shape) -> Cluster {
        let dir = TempDir::new_in(janitor::workshop()).expect("a temporary directory can be made");
        // One for each server and daemon, and one to look from.
        let (hosts, lack) = match Hosts::new(4 + shape.masters + shape.workers) {
            Ok(hosts) => (Some(hosts), None),
            Err(lack) => (None, Some(lack)),
        };
        let mut each = hosts.iter().flat_map(Hosts::all).cloned();
        let servers: Vec<Host> = each.by_ref().take(3).collect();
        let ensemble = if servers.is_empty() { Ensemble::start() } else { Ensemble::start_in(&servers) };
        let zk = ensemble.connect_string();
        let load = Workload::new(zk.clone(), each.next(), dir.path().join("evidence"));

        let mut member = |name: String, launch: Launch| {
            Member::start(name, launch.args(["--zk", &zk]), shape.session_timeout, each.next())
        };
        let master = |number| {
            let name = format!("m{number}");
            member(name.clone(), Daemon::named("zk-master").args(["--address", &address(&name)]))
        };
        let masters: Vec<Member> = (1..=shape.masters).map(master).collect();
        let worker = |number| {
            let name = format!("w{number}");
            let work_dir = dir.path().join("work").join(&name);
            let launch = Daemon::named("zk-worker").args(["--name", &name, "--slots", &shape.slots.to_string()]);
            // Tasks inherit what says where they run.
            member(name.clone(), launch.arg("--work-dir").arg(work_dir).env("E2E_HOST", name))
        };
        let workers = (1..=shape.workers).map(worker).collect();
        let cluster = Cluster { masters, workers, ensemble, load, lack, _hosts: hosts, _dir: dir };
        cluster.settle();
        cluster
    }

    /// Why its links cannot be cut, if so.
    #[must_use]
    pub fn no_links(&self) -> Option<&str> {
        self.lack.as_deref()
    }

    /// As for `--zk`; reached from the observer's host.
    #[must_use]
    pub fn connect_string(&self) -> &str {
        &self.load.zk
    }

    /// The host that nothing happens to, where there are hosts.
    #[must_use]
    pub fn observer(&self) -> Option<&Host> {
        self.load.observer.as_ref()
    }

    /// The index of the master that `/master` names, once there is one.
    #[must_use]
    #[track_caller]
    pub fn primary(&self) -> usize {
        wait_for("a primary", || {
            let address_of = self.load.tree.text(paths::MASTER);
            let named = |member: &Member| Some(address(&member.name)) == address_of;
            self.masters.iter().position(named).ok_or_else(|| format!("{address_of:?}"))
        })
    }

    /// Waits until everything is as it should be ([`Workload::settle`]).
    #[track_caller]
    pub fn settle(&self) {
        self.load.settle(self.masters.len() + self.workers.len(), self.workers.len());
    }

    /// What the servers committed, sorted.
    #[must_use]
    #[track_caller]
    pub fn history(&self) -> History {
        let parts: Vec<Part> = self.ensemble.servers.iter().map(Server::part).collect();
        let (txns, unsound) = joined::join(&parts);
        History { unsound, ..History::of(&txns, "") }
    }

    /// Waits until all these tasks have [finished](Workload::wait_finished), then judges what became of them.
    #[must_use]
    #[track_caller]
    pub fn judge(&self, accepted: &[TaskName]) -> Verdict {
        self.load.wait_finished(accepted);
        let history = self.history();
        let mut verdict = evidence::judge(&history, &self.load.runs(), accepted);
        verdict.wrong.append(&mut verdict.beside);
        verdict.wrong.extend(history.wrong);
        // Where nothing broke, it was kept whatever ZooKeeper did.
        if !verdict.wrong.is_empty() {
            verdict.wrong.extend(history.unsound);
        }
        verdict
    }

    /// Copies all logs and the evidence, for whoever wants to know what happened.
    pub fn keep(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::copy(&self.load.evidence, dir.join("evidence"))?;
        for member in self.masters.iter().chain(&self.workers) {
            fs::write(dir.join(format!("{}.log", member.name)), member.log())?;
        }
        for (number, server) in (1..).zip(&self.ensemble.servers) {
            let mut transactions = String::new();
            for txn in server.transactions() {
                transactions += &format!("{} {:#x} {:#x} {:?}\n", txn.time_ms, txn.session, txn.zxid, txn.kind);
            }
            fs::write(dir.join(format!("transactions{number}")), transactions)?;
            fs::write(dir.join(format!("zookeeper{number}.log")), server.log())?;
        }
        Ok(())
    }
}

fn address(name: &str) -> String {
    format!("{name}:2223")
}

impl Member {
    #[track_caller]
    fn start(name: String, launch: Launch, session_timeout: Duration, host: Option<Host>) -> Member {
        let daemon = start(&launch, session_timeout, host.as_ref());
        Member { name, session_timeout, daemon, launch, host, earlier: String::new() }
    }

    /// Starts it again, after a SIGKILL to whatever of it still runs.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill_all();
        self.earlier = self.log();
        self.daemon = start(&self.launch, self.session_timeout, self.host.as_ref());
    }

    /// All that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}{}", self.earlier, self.daemon.stderr())
    }

    /// SIGTERM.
    #[track_caller]
    pub fn stop(&self) {
        self.daemon.signal(Signal::TERM);
    }

    /// SIGKILL to the process that works; its guard stays.
    pub fn kill_daemon(&self) {
        self.signal_daemon(Signal::KILL);
    }

    /// SIGKILL to the guard and the process that works.
    pub fn kill_all(&self) {
        let below = self.daemon.guarded();
        self.daemon.kill(); // the kernel kills the other then; this doesn't wait for that
        if let Some(pid) = below {
            kill_process(pid, Signal::KILL).ok();
        }
    }

    /// SIGSTOP to the process that works; its guard goes on.
    pub fn freeze_daemon(&self) {
        self.signal_daemon(Signal::STOP);
    }

    /// SIGSTOP to the guard and the process that works.
    #[track_caller]
    pub fn freeze_all(&self) {
        self.freeze_daemon();
        self.daemon.signal(Signal::STOP);
    }

    /// SIGCONT to whatever of it was frozen.
    #[track_caller]
    pub fn thaw(&self) {
        self.daemon.signal(Signal::CONT);
        self.signal_daemon(Signal::CONT);
    }

    fn signal_daemon(&self, signal: Signal) {
        if let Some(pid) = self.daemon.guarded() {
            kill_process(pid, signal).ok(); // or it has just ended
        }
    }

    /// Its host, where it has one.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }
}

#[track_caller]
fn start(launch: &Launch, session_timeout: Duration, host: Option<&Host>) -> Daemon {
    let launch = launch.clone().env("ZK_SESSION_TIMEOUT", format!("{}ms", session_timeout.as_millis()));
    match host {
        Some(host) => launch.start_in(host),
        None => launch.start(),
    }
}
