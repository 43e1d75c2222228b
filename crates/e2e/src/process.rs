//! A child process that cannot outlive the test process.
//!
//! The kernel kills a child (`PR_SET_PDEATHSIG`) when the *thread* that started it ends, and test threads come and go. So one
//! thread, which lives as long as the test process, starts them all.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Host, wait_for, wait_within};

/// Locks, also after a panic of another holder: a `Drop` that runs in a panic must not panic again.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command for `program` whose process dies with this one. It keeps its pid: each program replaces the one before it.
pub(crate) fn command(program: impl AsRef<OsStr>, host: Option<&Host>) -> Command {
    let mut command = match host {
        Some(host) => host.command("setpriv"),
        None => Command::new("setpriv"),
    };
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
    command
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                reply.send(command.spawn()).ok(); // whoever asked waits for it, or is gone
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawner never ends");
    child.recv().expect("the spawner always answers")
}

/// A running or ended child. Dropping it kills and reaps it.
pub(crate) struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
}

impl Process {
    /// Starts a command made by [`command`]. The caller takes the pipes out of the child.
    #[track_caller]
    pub(crate) fn start<P>(name: &str, command: Command, pipes: impl FnOnce(&mut Child) -> P) -> (Process, P) {
        let mut child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let pipes = pipes(&mut child);
        let process = Process { name: name.to_owned(), pid: Pid::from_child(&child), child: Mutex::new(child) };
        (process, pipes)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal; nothing happens when the process has ended.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        let mut child = lock(&self.child);
        // Not reaped under the lock: the pid is still that of our child.
        if matches!(child.try_wait(), Ok(None)) {
            kill_process(self.pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Freezes the process, and returns once all its threads stand still.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        wait_for(&format!("{} to stand still", self.name), || {
            let stats = thread_states(self.pid());
            if stats.chars().all(|state| "TZX".contains(state)) { Ok(()) } else { Err(stats) }
        });
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&self) {
        let mut child = lock(&self.child);
        child.kill().ok(); // fails when it has ended
        child.wait().ok();
    }

    /// [`Process::kill`] for a process that has children of its own, which don't leave its group.
    pub(crate) fn kill_group(&self) {
        if self.exited().is_none() {
            kill_process_group(self.pid, Signal::KILL).ok(); // fails when it has ended
        }
        self.kill();
    }

    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    #[track_caller]
    pub(crate) fn wait_exit(&self, limit: Duration) -> ExitStatus {
        wait_within(limit, &format!("{} to exit", self.name), || {
            self.exited().ok_or_else(|| "it is running".to_owned())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One letter for each thread of a process, as in `ps`.
fn thread_states(pid: u32) -> String {
    let state = |task: &Path| {
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next() // the name before it may contain anything
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| state(&task.path())).collect()
}
