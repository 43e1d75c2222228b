//! A whole cluster: three ZooKeeper servers, masters, workers, each on a host of its own where namespaces can be had, and on
//! the loopback address otherwise; tasks that leave [`evidence`]; and what there is to break.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use tempfile::TempDir;
use zk_session::{Config, Kind, Session};
use znode_paths::{Task, TaskMeta, TaskName, paths};

use crate::{
    Daemon, Ensemble, Host, Hosts, Server, Tree,
    daemon::{self, Launch},
    evidence::{self, History, Run, Verdict},
    janitor,
    joined::{self, Part},
    process::lock,
    tree, wait, wait_for, wait_within,
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
    /// A look from a host that nothing happens to.
    pub tree: Tree,
    zk: String,
    evidence: PathBuf,
    observer: Option<Host>,
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
        let evidence = dir.path().join("evidence");
        fs::write(&evidence, "").expect("a file can be written");
        // One for each server and daemon, and one to look from.
        let (hosts, lack) = match Hosts::new(4 + shape.masters + shape.workers) {
            Ok(hosts) => (Some(hosts), None),
            Err(lack) => (None, Some(lack)),
        };
        let mut each = hosts.iter().flat_map(Hosts::all).cloned();
        let servers: Vec<Host> = each.by_ref().take(3).collect();
        let ensemble = if servers.is_empty() { Ensemble::start() } else { Ensemble::start_in(&servers) };
        let zk = ensemble.connect_string();
        let observer = each.next();
        let tree = Tree::of(&zk, observer.as_ref());

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
        let cluster =
            Cluster { masters, workers, ensemble, tree, zk, evidence, observer, lack, _hosts: hosts, _dir: dir };
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
        &self.zk
    }

    /// The host that nothing happens to, where there are hosts.
    #[must_use]
    pub fn observer(&self) -> Option<&Host> {
        self.observer.as_ref()
    }

    /// The index of the master that `/master` names, once there is one.
    #[must_use]
    #[track_caller]
    pub fn primary(&self) -> usize {
        wait_for("a primary", || {
            let address_of = self.tree.text(paths::MASTER);
            let named = |member: &Member| Some(address(&member.name)) == address_of;
            self.masters.iter().position(named).ok_or_else(|| format!("{address_of:?}"))
        })
    }

    /// Waits until everything is as it should be: each daemon has one session and no more, each worker is registered, and
    /// one master is the primary.
    #[track_caller]
    pub fn settle(&self) {
        wait_within(4 * wait::LIMIT, "the cluster to settle", || {
            let live = self.tree.children(paths::LIVE).len();
            let workers = self.tree.children(paths::WORKERS).len();
            let master = self.tree.stat(paths::MASTER).is_some();
            let well = live == self.masters.len() + self.workers.len() && workers == self.workers.len() && master;
            if well { Ok(()) } else { Err(format!("{live} sessions, {workers} workers, /master: {master}")) }
        });
    }

    /// A command that runs for so long, leaves evidence, and exits with this code; with `children` a process of its own
    /// group lives beside it.
    #[must_use]
    pub fn command(&self, lasts: Duration, code: u8, children: bool) -> String {
        let (program, file, ms) = (daemon::binary("e2e-task"), self.evidence.display(), lasts.as_millis());
        let program = program.display();
        if children {
            format!("'{program}' '{file}' {ms} & '{program}' '{file}' {ms} {code}")
        } else {
            format!("exec '{program}' '{file}' {ms} {code}")
        }
    }

    /// What tasks have written so far.
    #[must_use]
    #[track_caller]
    pub fn runs(&self) -> Vec<Run> {
        evidence::runs(&fs::read_to_string(&self.evidence).expect("the file of the evidence is there"))
    }

    /// What the servers committed, sorted.
    #[must_use]
    #[track_caller]
    pub fn history(&self) -> History {
        let parts: Vec<Part> = self.ensemble.servers.iter().map(Server::part).collect();
        let (txns, unsound) = joined::join(&parts);
        History { unsound, ..History::of(&txns, "") }
    }

    /// Waits until all these tasks have a status and nothing is assigned any more. When none has got one for two minutes, none
    /// ever will, and what there is is judged as it is.
    pub fn wait_finished(&self, accepted: &[TaskName]) {
        let mut left = accepted.to_vec();
        let mut progress = Instant::now();
        loop {
            let before = left.len();
            left.retain(|task| self.tree.stat(&paths::status(task)).is_none());
            if left.len() < before {
                progress = Instant::now();
            }
            let finished = left.is_empty() && self.tree.assigned().is_empty();
            if finished || progress.elapsed() >= 4 * wait::LIMIT {
                return;
            }
            wait::pause();
        }
    }

    /// Waits until all these tasks have [finished](Cluster::wait_finished), then judges what became of them.
    #[must_use]
    #[track_caller]
    pub fn judge(&self, accepted: &[TaskName]) -> Verdict {
        self.wait_finished(accepted);
        let history = self.history();
        let mut verdict = evidence::judge(&history, &self.runs(), accepted);
        verdict.wrong.extend(history.wrong);
        verdict.wrong.extend(history.unsound);
        verdict
    }

    /// Starts to submit a task every so often, until the flow is stopped; those that could not be submitted in time follow
    /// when they can. None lasts longer than this; one in five may start once only, one in five has children, one in ten
    /// fails.
    #[must_use]
    pub fn flow(&self, pace: Duration, longest: Duration, seed: u64) -> Flow {
        let connect = self.zk.parse().expect("the harness makes good connect strings");
        let config = Config::new(connect, Duration::from_secs(10));
        let accepted: Arc<Mutex<Vec<TaskName>>> = Arc::default();
        let (stop, stopped) = mpsc::channel();
        let (host, accepted_here) = (self.observer.clone(), Arc::clone(&accepted));
        let mut random = fastrand::Rng::with_seed(seed);
        let mut next = {
            let command = |lasts, code, children| self.command(lasts, code, children);
            let commands: Vec<[String; 3]> = (1..=10)
                .map(|tenths| longest * tenths / 10)
                .map(|lasts| [command(lasts, 0, false), command(lasts, 0, true), command(lasts, 3, false)])
                .collect();
            move || {
                let kind = random.u8(..10);
                let of = &commands[random.usize(..commands.len())];
                let command = match kind {
                    0 => &of[2],
                    1 | 2 => &of[1],
                    _ => &of[0],
                };
                // Not of this seed: two flows with the same one are not the same tasks.
                let mut meta = TaskMeta::new(format!("{:016x}", fastrand::u64(..)));
                meta.no_requeue = kind >= 8;
                meta.max_attempts = 100; // so that being lost is no excuse
                Task { command: command.clone(), meta: Some(meta) }.encode()
            }
        };
        let submit = move || {
            let mut session: Option<Session> = None;
            let mut due = Instant::now();
            while let Err(mpsc::RecvTimeoutError::Timeout) =
                stopped.recv_timeout(due.saturating_duration_since(Instant::now()))
            {
                if session.as_ref().is_none_or(|session| session.over().is_some()) {
                    session = tree::open(&config, host.as_ref()).ok();
                }
                // What was not acknowledged was not accepted; it may be there all the same.
                let made = session.as_ref().map(|session| session.create(paths::NEW_TASK, &next(), Kind::Sequential));
                match made {
                    Some(Ok(path)) => {
                        lock(&accepted_here).push(name_of(&path));
                        due += pace;
                    }
                    Some(Err(_)) | None => wait::pause(),
                }
            }
        };
        Flow { accepted, stop, thread: thread::spawn(submit) }
    }

    /// Submits one task that may be started again, and returns when it is acknowledged.
    #[track_caller]
    pub fn submit(&self, lasts: Duration) -> TaskName {
        let command = self.command(lasts, 0, false);
        self.tree.submit_with(&command, |meta| meta.max_attempts = 100)
    }

    /// Copies all logs and the evidence, for whoever wants to know what happened.
    pub fn keep(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::copy(&self.evidence, dir.join("evidence"))?;
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

fn name_of(path: &str) -> TaskName {
    path.trim_start_matches("/tasks/").parse().expect("ZooKeeper makes names of tasks")
}

/// Tasks that keep coming. Dropping it stops it, too.
pub struct Flow {
    accepted: Arc<Mutex<Vec<TaskName>>>,
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Flow {
    /// What was acknowledged so far.
    #[must_use]
    pub fn accepted(&self) -> Vec<TaskName> {
        lock(&self.accepted).clone()
    }

    /// Stops it; returns all that was acknowledged.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Vec<TaskName> {
        drop(self.stop);
        self.thread.join().expect("submitting does not panic");
        let accepted = lock(&self.accepted);
        accepted.clone()
    }
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

/// The clock of the tasks' lines, in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned()
}
