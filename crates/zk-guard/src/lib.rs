//! `zk-master` and `zk-worker` start as a small process, the guard, that runs the daemon as its child.
//!
//! ```text
//!  guard ──starts──▶ daemon ──starts──▶ tasks
//!    ▲                 │ over a socket: its sessions, its proofs that they live, its answers to pings
//!    └─────────────────┘
//! ```
//!
//! When the daemon dies in any way, or freezes, or its deciding loop is stuck, the guard does in this order what makes it
//! safe that others take over at once, without waiting for a session timeout:
//!
//! 1. kills the daemon and all that it ran, and waits until all of it is gone: it is the subreaper, so whatever a task
//!    has started is its descendant, also what left its process group or its session; and where there is cgroup v2, all of
//!    it is in one group, which is killed at once, also what forks without end;
//! 2. ends the daemon's sessions (PROTOCOL section 3, Sessions): `/master` or `/workers/<worker>` go at once;
//! 3. starts the daemon again, after a pause that grows.
//!
//! A daemon that exits by itself is not started again: its exit code is the guard's. When the guard dies, the kernel kills
//! the daemon, and with the daemon the processes that it started itself. Stop signals are passed on. As process 1 of a
//! container the guard reaps whatever is left to it.

mod cgroup;
pub mod descendants;
mod line;
mod vigil;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, wait,
};

pub use cgroup::Cgroup;
pub use line::Line;

use line::Word;
use vigil::{Verdict, Vigil};

/// The pause before the daemon is started again, at first and at most; each is doubled.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A daemon that ran for so long did not die of its start: the next pause is the first one again.
const STEADY: Duration = Duration::from_secs(60);

/// Enough for a thread that waits and sends.
const SMALL_STACK: usize = 64 * 1024;

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system does not allow it.
    #[error("cannot start the guard: {0}")]
    System(#[from] io::Error),
    /// Stop signals cannot be heard.
    #[error(transparent)]
    Signals(#[from] zk_cli::ArgsError),
}

/// What a guard is to do beside starting the daemon again.
#[derive(Debug, Clone, Copy)]
pub struct Duties {
    /// Kill a daemon that cannot prove for 5/6 of the session timeout that it is registered, and has not said that it runs
    /// nothing any more.
    pub deadline: bool,
    /// The daemon runs tasks: have a control group for it and them, where the system lets us.
    pub tasks: bool,
}

/// Which of the two processes this is.
pub enum Side {
    /// The daemon, its line to the guard, and the control group that it is in.
    Daemon(Line, Option<Cgroup>),
    /// The guard has done its work: the program ends with this code.
    Guarded(ExitCode),
}

/// Marks the environment of the daemon; holds the path of its control group, if there is one.
const GUARDED: &str = "ZK_GUARDED";

/// Splits the program into guard and daemon: the guard starts the program again, with the same arguments, and returns when
/// that has ended for good.
///
/// # Errors
/// The system does not allow it.
pub fn split(config: &zk_session::Config, duties: Duties) -> Result<Side, Error> {
    if let Some(cgroup) = std::env::var_os(GUARDED) {
        return Ok(Side::Daemon(Line::of_daemon()?, Cgroup::at(cgroup.as_ref())));
    }
    let (tx, rx) = mpsc::channel();
    let signal = tx.clone();
    // A mailbox that nobody reads any more belongs to a guard that has ended.
    zk_cli::on_stop_signal(move || _ = signal.send(Message::Signal))?;
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let cgroup = duties.tasks.then(Cgroup::create).transpose();
    let cgroup = cgroup.inspect_err(|error| log::debug!("no control group for the tasks: {error}")).unwrap_or(None);
    let guard = Guard { config: config.clone(), deadline: duties.deadline, cgroup, tx, rx };
    Ok(Side::Guarded(guard.run()?))
}

enum Message {
    /// The daemon's process has ended.
    Ended(u64, ExitStatus),
    /// The daemon says something.
    Said(u64, Word),
    /// A stop signal.
    Signal,
}

struct Guard {
    config: zk_session::Config,
    deadline: bool,
    cgroup: Option<Cgroup>,
    tx: Sender<Message>,
    rx: Receiver<Message>,
}

/// How a life of the daemon ended.
struct End {
    status: ExitStatus,
    vigil: Vigil,
    stopping: bool,
}

impl Guard {
    fn run(&self) -> Result<ExitCode, Error> {
        let mut pause = FIRST_PAUSE;
        for life in 0.. {
            let started = Instant::now();
            match self.live(life) {
                Ok(End { status, vigil, stopping }) => {
                    self.kill_all();
                    self.end_sessions(&vigil);
                    if let Some(code) = given_up(status) {
                        return Ok(ExitCode::from(code));
                    }
                    if stopping && status.signal() == Some(Signal::TERM.as_raw()) {
                        // It was asked before it could listen, so there was nothing that it had to give up.
                        return Ok(ExitCode::SUCCESS);
                    }
                    if stopping {
                        log::warn!("the daemon died while it was to stop: {status}");
                        return Ok(ExitCode::FAILURE);
                    }
                    log::error!("the daemon died, starting it again: {status}");
                }
                // Out of processes or memory, perhaps of those that were just killed.
                Err(error) if life > 0 => log::error!("cannot start the daemon, trying again: {error}"),
                Err(error) => return Err(error),
            }
            if started.elapsed() >= STEADY {
                pause = FIRST_PAUSE;
            }
            let until = Instant::now() + pause;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                if let Ok(Message::Signal) = self.rx.recv_timeout(left) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("lives are counted with 64 bits")
    }

    /// Kills what the dead daemon ran, and returns when nothing of it is left.
    fn kill_all(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        descendants::kill_all();
        if let Some(cgroup) = &self.cgroup {
            cgroup.clear();
        }
    }

    /// One life of the daemon.
    fn live(&self, life: u64) -> Result<End, Error> {
        let (daemon, line) = start(life, self.cgroup.as_ref(), &self.tx)?;
        let send = |signal| pidfd_send_signal(&daemon, signal).ok(); // or it has ended by itself
        let mut vigil = Vigil::new(self.deadline, Instant::now());
        let mut stopping = false;
        loop {
            let message = match vigil.verdict(Instant::now()) {
                Verdict::Kill(why) => {
                    log::error!("killing the daemon: {why}");
                    send(Signal::KILL);
                    vigil.killed();
                    continue;
                }
                Verdict::Ping => {
                    line.ping();
                    vigil.pinged(Instant::now());
                    continue;
                }
                Verdict::Wait(None) => self.rx.recv().ok(),
                Verdict::Wait(Some(until)) => {
                    self.rx.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
                }
            };
            match message {
                Some(Message::Said(of, word)) if of == life => vigil.hear(word, Instant::now()),
                Some(Message::Signal) => {
                    stopping = true;
                    send(Signal::TERM);
                }
                Some(Message::Ended(of, status)) if of == life => {
                    // What it said last is heard before it is judged, and a stop signal that came meanwhile counts.
                    for message in self.rx.try_iter() {
                        match message {
                            Message::Said(_, word) => vigil.hear(word, Instant::now()),
                            Message::Signal => stopping = true,
                            Message::Ended(..) => {}
                        }
                    }
                    return Ok(End { status, vigil, stopping });
                }
                Some(Message::Said(..) | Message::Ended(..)) | None => {}
            }
        }
    }

    /// Ends what the dead daemon has left in the ensemble, so that others take over at once.
    fn end_sessions(&self, vigil: &Vigil) {
        let config = &self.config;
        let end = |session: &_| match zk_session::end_session(config, *session) {
            Ok(true) => log::info!("ended a session of the dead daemon session={session}"),
            Ok(false) => {}
            Err(error) => {
                log::warn!("cannot end a session of the dead daemon, it will expire session={session}: {error}")
            }
        };
        zk_session::in_parallel(vigil.sessions(), end);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }
}

/// The exit code of a daemon that ended by itself; `None` if it is to be started again. A panic exits with 101.
fn given_up(status: ExitStatus) -> Option<u8> {
    let code = status.code().and_then(|code| u8::try_from(code).ok())?;
    (code != 101).then_some(code)
}

/// Starts the daemon; returns a descriptor of its process and the line to it.
fn start(life: u64, cgroup: Option<&Cgroup>, tx: &Sender<Message>) -> Result<(OwnedFd, Line), Error> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).stdin(Stdio::from(OwnedFd::from(theirs)));
    command.env(GUARDED, cgroup.map_or(Path::new(""), Cgroup::path));
    // In a group of its own a Ctrl-C on the terminal reaches the guard only, which passes it on: once.
    command.process_group(0);
    if let Some(program) = std::env::args_os().next() {
        command.arg0(program);
    }
    zk_cli::die_with_parent(&mut command);
    let pid = Pid::from_child(&command.spawn()?);
    // It starts nothing before it has found ZooKeeper.
    if let Some(Err(error)) = cgroup.map(|cgroup| cgroup.add(pid.as_raw_nonzero().get())) {
        log::warn!("the daemon runs outside of its control group: {error}");
    }
    // Its number stays taken at least until the thread below is there to reap it.
    let daemon = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
    let line = Line::of_guard(ours);
    let (said, listening) = (tx.clone(), line.clone());
    spawn("line", move || listening.listen(|word| said.send(Message::Said(life, word)).is_ok()))?;
    let ended = tx.clone();
    spawn("wait", move || {
        let status = loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((of, status))) if of == pid => break ExitStatus::from_raw(status.as_raw()),
                // Something that a task left behind.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break ExitStatus::from_raw(SIGKILLED),
            }
        };
        ended.send(Message::Ended(life, status)).ok(); // the guard has ended
    })?;
    Ok((daemon, line))
}

/// What wait(2) says of a process that SIGKILL ended: assumed of a daemon that somebody else has reaped.
const SIGKILLED: i32 = 9;

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(SMALL_STACK).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_exits_by_itself_is_not_started_again() {
        let exited = |code: i32| given_up(ExitStatus::from_raw(code << 8));
        assert_eq!((exited(0), exited(1), exited(2)), (Some(0), Some(1), Some(2)));
        assert_eq!(exited(101), None, "a panic");
        assert_eq!(given_up(ExitStatus::from_raw(9)), None, "kill -9");
        assert_eq!(given_up(ExitStatus::from_raw(6)), None, "an abort");
    }
}
