//! The processes of the tasks, and the leash on which they run. The only module that starts, reaps and kills processes.
//!
//! A task runs in a [`Container`] of its own. The leash is the time until which this worker can prove that it is
//! registered: 3/4 of the granted session timeout after the last acknowledged write to its node below `/live` was *sent*.
//! When it has run out, everything is killed by a thread of this module, whatever the deciding thread is doing, and
//! nothing can be started any more, until the worker has become a new instance (PROTOCOL section 3, Workers). Nobody can
//! have given the tasks to others before that: the ensemble expires the session a whole timeout after the write.
//!
//! The worker is a subreaper: what loses its parents becomes its child, so that nothing a task has started can get out of
//! sight, and one thread reaps all of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, set_child_subreaper, waitid, waitpid};
use zk_guard::{Cgroup, descendants};
use zk_session::Session;

use crate::container::Container;
use crate::identity::Identity;
use crate::leftovers::FOLDER;
use crate::spawn::{self, Spawn};

/// How long killed processes may take to disappear before that is said; a process in the middle of a read from a dead
/// disk cannot be killed.
const STUBBORN: Duration = Duration::from_secs(5);

/// Between two looks at what was killed.
const LOOK: Duration = Duration::from_millis(2);

/// Enough for a thread that waits and sends.
const SMALL_STACK: usize = 64 * 1024;

/// A command ended, and all that it had started with it.
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
}

struct Shared {
    state: Mutex<State>,
    /// There is another leash.
    changed: Condvar,
    /// There is a child.
    born: Condvar,
    /// Whether everything is killed when the leash has run out.
    kill: bool,
    cgroup: Option<Cgroup>,
    /// Whether [`spawn::works`].
    cloned: bool,
}

#[derive(Default)]
struct State {
    /// By the number of the command, which is not reaped yet.
    running: BTreeMap<i32, Container>,
    /// The command has ended and is reaped, what it had started is dying.
    ending: Vec<Ending>,
    /// Control groups in which a task has ended by itself.
    spare: Vec<Cgroup>,
    /// How many control groups were made.
    groups: u64,
    leash: Option<Session>,
    expired: bool,
    /// All that there was when the leash ran out is dead.
    killed: bool,
}

struct Ending {
    pid: Pid,
    status: ExitStatus,
    container: Container,
    /// Nothing of it was alive before the command was reaped, so nothing is since.
    gone: bool,
    since: Instant,
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
        for container in self.running.values() {
            container.kill();
        }
    }

    /// A control group in which nothing is: making and removing one costs a tenth of what a short task does.
    fn group(&mut self, all: &Cgroup) -> io::Result<Cgroup> {
        match self.spare.pop() {
            Some(spare) if spare.is_bare() => Ok(spare),
            spare => {
                // A task has made groups in it, or somebody has removed it.
                spare.iter().for_each(Cgroup::remove);
                loop {
                    self.groups += 1;
                    match all.child(&self.groups.to_string()) {
                        // A daemon before this one could not remove it.
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        made => return made,
                    }
                }
            }
        }
    }

    /// Reaps a process that has ended. If it is the command of a task, the task is over, and whatever it had started is
    /// killed, before the command is reaped.
    fn reap(&mut self, pid: Pid) {
        let number = pid.as_raw_nonzero().get();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_))) {
            return; // it was reaped since, by whoever could not start it
        }
        let gone = self.running.get(&number).is_some_and(Container::is_empty);
        if let Some(container) = self.running.get(&number).filter(|_| !gone) {
            container.kill();
        }
        let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) else { return };
        if let Some(container) = self.running.remove(&number) {
            let status = ExitStatus::from_raw(status.as_raw());
            if status.signal() == Some(Signal::KILL.as_raw()) {
                // Whoever did that may have killed its group as a whole, or all of them.
                container.note_killed();
                self.spare.drain(..).for_each(|group| group.remove());
            }
            self.ending.push(Ending { pid, status, container, gone, since: Instant::now() });
        }
    }

    /// Takes out the tasks of which nothing is alive any more; kills again what is.
    fn ended(&mut self) -> Vec<Ending> {
        let State { running, ending, .. } = self;
        let over = |ending: &mut Ending| {
            let gone = ending.gone || ending.container.gone(|pid| running.contains_key(&pid));
            let stubborn = !gone && ending.since.elapsed() >= STUBBORN;
            if stubborn {
                log::warn!("processes of a task do not die, going on without them pid={}", ending.pid.as_raw_nonzero());
            }
            gone || stubborn
        };
        ending.extract_if(.., over).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    /// No processes yet, and no leash. `exited` is called for each command that ends, `expired` when the leash has run out
    /// and when all is dead then, both on threads of this module. Without `kill` what runs goes on then. Tasks get control
    /// groups below `cgroup`.
    pub(crate) fn new(
        kill: bool,
        cgroup: Option<Cgroup>,
        exited: impl Fn(Exited) + Send + 'static,
        expired: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        let cloned = spawn::works(cgroup.as_ref());
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            born: Condvar::new(),
            kill,
            cgroup,
            cloned,
        });
        let (watching, reaping) = (shared.clone(), shared.clone());
        let small = |name: &str| thread::Builder::new().name(name.into()).stack_size(SMALL_STACK);
        small("leash").spawn(move || watch(&watching, &expired))?;
        small("reap").spawn(move || reap(&reaping, &exited))?;
        Ok(Processes { shared })
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

    /// Whether all is dead that there was when the leash ran out.
    pub(crate) fn all_dead(&self) -> bool {
        let state = self.shared.lock();
        state.killed && state.running.is_empty() && state.ending.is_empty()
    }

    /// Kills all that runs.
    pub(crate) fn kill_all(&self) {
        self.shared.lock().kill_all();
    }

    /// Sends a signal to all that a command which has not ended consists of.
    pub(crate) fn signal(&self, command: Pid, signal: Signal) {
        if let Some(container) = self.shared.lock().running.get(&command.as_raw_nonzero().get()) {
            container.signal(signal);
        }
    }

    /// The worker is a new instance, which has no leash yet.
    pub(crate) fn renew(&self) {
        let mut state = self.shared.lock();
        state.leash = None;
        state.expired = false;
        state.killed = false;
    }

    /// Starts a command in a container of its own, as this user; the folder of the task is in its environment. Must be called
    /// by the main thread: the kernel kills the command when the thread that started it ends.
    pub(crate) fn start(&self, mut spawn: Spawn, run_as: Option<&Identity>) -> Result<Pid, NotStarted> {
        let folder = spawn.command.get_envs().find(|(key, _)| *key == FOLDER).and_then(|(_, folder)| folder);
        let folder = folder.map_or_else(OsString::new, OsString::from);
        let cgroup = self.shared.cgroup.as_ref().and_then(|all| {
            let name = Path::new(&folder).file_name().unwrap_or_default().to_string_lossy();
            let group = self.shared.lock().group(all);
            group.inspect_err(|error| log::warn!("no control group for {name}, it runs without one: {error}")).ok()
        });
        // In this order: whoever becomes another user is not to die with its parent any more.
        if let Some(identity) = run_as {
            spawn.then(identity.assume());
            spawn.apart();
        }
        spawn.then(zk_cli::dying_with_parent());
        // The lock is held over the spawn, so that the leash cannot run out in between and miss this command; and so that
        // nobody reaps one that could not be executed but `spawn` itself.
        let mut state = self.shared.lock();
        let spawned = match state.leash.is_none() || state.ran_out() {
            true => Err(NotStarted::Expired),
            false => spawn.spawn(cgroup.as_ref(), self.shared.cloned).map_err(NotStarted::Failed),
        };
        match spawned {
            Ok(pid) => {
                state.running.insert(pid.as_raw_nonzero().get(), Container::new(pid, &folder, cgroup));
                self.shared.born.notify_one();
                Ok(pid)
            }
            Err(error) => {
                cgroup.iter().for_each(Cgroup::remove);
                Err(error)
            }
        }
    }
}

/// Reaps whatever ends, and reports the commands.
fn reap(shared: &Shared, exited: &impl Fn(Exited)) {
    let (_never, pause) = mpsc::channel::<()>();
    loop {
        let dying = !shared.lock().ending.is_empty();
        match ended_child(!dying) {
            Ok(Some(pid)) => shared.lock().reap(pid),
            Ok(None) => _ = pause.recv_timeout(LOOK),
            // There is no child at all.
            Err(_) => {
                let state = shared.lock();
                if state.running.is_empty() && state.ending.is_empty() {
                    drop(shared.born.wait(state));
                }
            }
        }
        let ended = shared.lock().ended();
        for Ending { pid, status, container, .. } in ended {
            let group = container.clear();
            shared.lock().spare.extend(group);
            exited(Exited { pid, code: status.code(), signal: status.signal() });
        }
    }
}

/// A child that has ended and is not reaped; `None` if there is none and it was not to be waited for.
fn ended_child(wait: bool) -> io::Result<Option<Pid>> {
    let options = libc::WEXITED | libc::WNOWAIT | if wait { 0 } else { libc::WNOHANG };
    #[expect(unsafe_code, reason = "rustix does not say which process waitid(2) has found")]
    // SAFETY: a siginfo_t of zeros is a valid one, which lives for as long as the call takes.
    let (result, pid) = unsafe {
        let mut found: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(libc::P_ALL, 0, &raw mut found, options), found.si_pid())
    };
    match result {
        0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
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
                    drop(state);
                    expired();
                    kill_descendants();
                    state = shared.lock();
                    state.killed = true;
                }
                expired();
            }
            Some(left) => state = wait_at_most(&shared.changed, state, left),
            None => state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Kills all that is below this process, whichever task it is of; none has been started for a while.
fn kill_descendants() {
    let (_never, pause) = mpsc::channel::<()>();
    let began = Instant::now();
    while descendants::kill_once() > 0 {
        if began.elapsed() >= STUBBORN {
            log::error!("processes of tasks do not die, going on without them");
            return;
        }
        pause.recv_timeout(LOOK).ok();
    }
}

fn wait_at_most<'a>(changed: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
}
