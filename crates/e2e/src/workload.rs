//! Tasks that leave [`evidence`], submitted to a cluster of any kind.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use zk_session::{Config, Kind, Session};
use znode_paths::{Task, TaskMeta, TaskName, paths};

use crate::{
    Host, Tree, daemon,
    evidence::{self, Run},
    process::lock,
    tree, wait, wait_within,
};

/// Where tasks are submitted, and where they leave their evidence.
pub struct Workload {
    /// A look of its own.
    pub tree: Tree,
    /// As for `--zk`.
    pub(crate) zk: String,
    /// Where all of this is done.
    pub(crate) observer: Option<Host>,
    /// What the tasks append to.
    pub(crate) evidence: PathBuf,
    /// The program `e2e-task`, where the tasks find it.
    program: PathBuf,
}

impl Workload {
    /// For a cluster at a connect string, whose tasks find `e2e-task` where it was built.
    #[must_use]
    #[track_caller]
    pub fn new(zk: String, observer: Option<Host>, evidence: PathBuf) -> Workload {
        fs::write(&evidence, "").expect("a file can be written");
        let tree = Tree::of(&zk, observer.as_ref());
        Workload { tree, zk, observer, evidence, program: daemon::binary("e2e-task") }
    }

    /// With the program in another place.
    #[must_use]
    pub fn with_program(self, program: PathBuf) -> Workload {
        Workload { program, ..self }
    }

    /// Waits until everything is as it should be: each of so many daemons has one session and no more, the workers
    /// among them are registered, and one master is the primary.
    #[track_caller]
    pub fn settle(&self, daemons: usize, workers: usize) {
        wait_within(4 * wait::LIMIT, "the cluster to settle", || {
            let live = self.tree.children(paths::LIVE).len();
            let registered = self.tree.children(paths::WORKERS).len();
            let master = self.tree.stat(paths::MASTER).is_some();
            let well = live == daemons && registered == workers && master;
            if well { Ok(()) } else { Err(format!("{live} sessions, {registered} workers, /master: {master}")) }
        });
    }

    /// A command that runs for so long, leaves evidence, and exits with this code; with `children` a process of its own
    /// group lives beside it.
    #[must_use]
    pub fn command(&self, lasts: Duration, code: u8, children: bool) -> String {
        let (program, file, ms) = (self.program.display(), self.evidence.display(), lasts.as_millis());
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

/// The clock of the tasks' lines, in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned()
}
