//! The processes of the tasks, and the leash on which they run. The only module that starts and kills processes.
//!
//! A task runs in a process group of its own. The leash is the time until which this worker can prove that it is
//! registered: 3/4 of the granted session timeout after the last acknowledged write to its node below `/live` was *sent*.
//! When it has run out, all groups are killed by a thread of this module, whatever the deciding thread is doing, and
//! nothing can be started any more, until the worker has become a new instance (PROTOCOL section 3, Workers). Nobody can
//! have given the tasks to others before that: the ensemble expires the session a whole timeout after the write.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid};
use zk_session::Session;

/// How long killed processes may take to disappear before that is said; a process in the middle of a read from a dead
/// disk cannot be killed.
const STUBBORN: Duration = Duration::from_secs(5);

/// Between two looks at a group that was killed.
const LOOK: Duration = Duration::from_millis(2);

/// Enough for a thread that waits and sends.
const SMALL_STACK: usize = 64 * 1024;

/// A command ended, and all of its process group with it.
#[derive(Debug)]
pub(crate) struct Exited {
    pub(crate) pid: Pid,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// Why a command was not started.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// The leash has run out.
    Expired,
    /// The system said no.
    Failed(io::Error),
}

pub(crate) struct Processes {
    shared: Arc<Shared>,
    exited: Arc<dyn Fn(Exited) + Send + Sync>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    kill: bool,
}

#[derive(Default)]
struct State {
    groups: BTreeSet<i32>,
    leash: Option<Session>,
    expired: bool,
}

impl State {
    fn until(&self) -> Option<Instant> {
        let session = self.leash.as_ref()?;
        Some(session.proved()? + session.timeout() * 3 / 4)
    }

    /// Whether it has run out, also when the thread that watches it was not scheduled yet.
    fn ran_out(&self) -> bool {
        self.expired || self.until().is_some_and(|until| Instant::now() >= until)
    }

    fn kill_all(&self) {
        for group in self.groups.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            kill(group, Signal::KILL);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    /// No processes yet, and no leash. `exited` is called for each that ends, `expired` when the leash has run out, both
    /// on threads of this module. Without `kill` what runs goes on then.
    pub(crate) fn new(
        kill: bool,
        exited: impl Fn(Exited) + Send + Sync + 'static,
        expired: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), kill });
        let watching = shared.clone();
        thread::Builder::new()
            .name("leash".into())
            .stack_size(SMALL_STACK)
            .spawn(move || watch(&watching, &expired))?;
        Ok(Processes { shared, exited: Arc::new(exited) })
    }

    /// From now on the leash is that of this session, which has a node of its own.
    pub(crate) fn follow(&self, session: &Session) {
        let mut state = self.shared.lock();
        // Having run out is not undone by a new session: the process is another instance then.
        if !state.ran_out() {
            state.leash = Some(session.clone());
            self.shared.changed.notify_all();
        }
    }

    /// Whether the leash has run out since the last [`Processes::renew`].
    pub(crate) fn expired(&self) -> bool {
        self.shared.lock().ran_out()
    }

    /// Whether nothing runs.
    pub(crate) fn none(&self) -> bool {
        self.shared.lock().groups.is_empty()
    }

    /// Kills all that runs.
    pub(crate) fn kill_all(&self) {
        self.shared.lock().kill_all();
    }

    /// The worker is a new instance, which has no leash yet.
    pub(crate) fn renew(&self) {
        let mut state = self.shared.lock();
        state.leash = None;
        state.expired = false;
    }

    /// Starts a command as the leader of a process group of its own. Must be called by a thread that lives as long as the
    /// worker: the command is killed when the thread that started it ends.
    pub(crate) fn start(&self, mut command: Command) -> Result<Pid, NotStarted> {
        command.process_group(0);
        zk_cli::die_with_parent(&mut command);
        // The lock is held over the spawn, so that the leash cannot run out in between and miss this group.
        let mut state = self.shared.lock();
        if state.leash.is_none() || state.ran_out() {
            return Err(NotStarted::Expired);
        }
        let child = command.spawn().map_err(NotStarted::Failed)?;
        let pid = Pid::from_child(&child);
        state.groups.insert(pid.as_raw_nonzero().get());
        drop(state);
        let (shared, exited) = (self.shared.clone(), self.exited.clone());
        let waiting = move || {
            let status = wait(child, pid);
            shared.lock().groups.remove(&pid.as_raw_nonzero().get());
            exited(Exited { pid, code: status.code(), signal: status.signal() });
        };
        // A thread for each running command: there are no more of them than slots.
        let spawned = thread::Builder::new().name("wait".into()).stack_size(SMALL_STACK).spawn(waiting);
        spawned.map(|_| pid).map_err(|error| {
            kill(pid, Signal::KILL);
            NotStarted::Failed(error)
        })
    }
}

/// Sends a signal to all of a task's process group.
pub(crate) fn kill(group: Pid, signal: Signal) {
    kill_process_group(group, signal).ok(); // nobody is left of it
}

/// Waits for a command to end, and ends whatever is left of its group: the slot is free and the status is written when
/// nothing of it runs any more.
fn wait(mut child: Child, pid: Pid) -> ExitStatus {
    // Not yet reaped: as long as the command is a zombie, no other group can get its number.
    while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .is_err_and(|e| e == rustix::io::Errno::INTR)
    {}
    kill(pid, Signal::KILL);
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0xff00));
    let (_never, pause) = mpsc::channel::<()>();
    let killed = Instant::now();
    while runs(pid) {
        if killed.elapsed() >= STUBBORN {
            log::warn!("processes of a task do not die, going on without them group={pid:?}");
            break;
        }
        pause.recv_timeout(LOOK).ok();
    }
    status
}

/// Whether any process of a group is alive. A zombie is dead, though its group exists until somebody reaps it; in some
/// containers nobody ever does.
fn runs(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let mut stats = processes.flatten().filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    stats.any(|stat| {
        // pid (name) state ppid pgrp ...: the name may hold anything, parentheses too (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().take(3).collect();
        let [state, _, pgrp] = fields[..] else { return false };
        !matches!(state, "Z" | "X") && pgrp.parse() == Ok(group.as_raw_nonzero().get())
    })
}

/// Kills everything when the leash has run out.
fn watch(shared: &Shared, expired: &impl Fn()) {
    let mut state = shared.lock();
    loop {
        let left =
            state.until().filter(|_| !state.expired).map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left.is_zero() => {
                state.expired = true;
                if shared.kill {
                    state.kill_all();
                }
                expired();
            }
            Some(left) => state = wait_at_most(&shared.changed, state, left),
            None => state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

fn wait_at_most<'a>(changed: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
}
