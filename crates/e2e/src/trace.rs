//! What no signal can bring about, but a debugger can (ptrace(2)): a thread that stands still while the others of its process
//! go on, and a process that was killed and does not disappear.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use nix::{
    libc,
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::wait;

/// A process in our hand. Whoever traces it is a thread of this process: it is let go at the latest when that ends.
pub struct Traced {
    stopped: Receiver<()>,
    release: Sender<()>,
}

/// Stops the main thread of a process; all others go on. It stays so until the process is killed.
#[track_caller]
pub fn halt_main_thread(pid: u32) {
    let traced = trace(pid, Options::empty());
    traced.wait_stopped();
}

/// Has a process stop in the middle of its end: its signal has been delivered, and it is not gone.
#[must_use]
#[track_caller]
pub fn hold_at_exit(pid: u32) -> Traced {
    trace(pid, Options::PTRACE_O_TRACEEXIT)
}

impl Traced {
    /// Waits until it stands still.
    #[track_caller]
    pub fn wait_stopped(&self) {
        self.stopped.recv_timeout(wait::LIMIT).expect("a traced process stops");
    }

    /// Lets it go on with its end; so does a drop.
    pub fn release(self) {
        drop(self.release);
    }
}

#[track_caller]
fn trace(pid: u32, options: Options) -> Traced {
    let pid = Pid::from_raw(pid.cast_signed());
    let (seized, was_seized) = mpsc::channel();
    let (stopping, stopped) = mpsc::channel();
    let (release, released) = mpsc::channel();
    // All of it must come from one thread.
    thread::spawn(move || {
        let seizing = ptrace::seize(pid, options);
        let halt = options.is_empty();
        let stopping_now = if halt { seizing.and_then(|()| ptrace::interrupt(pid)) } else { seizing };
        seized.send(stopping_now).ok(); // whoever asked waits for it
        loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP)) if halt => {
                    stopping.send(()).ok(); // nobody waits for it any more
                }
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                    stopping.send(()).ok();
                    released.recv().ok(); // nothing is ever sent: this ends with the sender
                    ptrace::detach(pid, None).ok(); // it is gone all the same
                    return;
                }
                Ok(WaitStatus::Stopped(_, signal)) => drop(ptrace::cont(pid, signal)),
                // Its parent learns of its end only when we have.
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    });
    let seized = was_seized.recv().expect("the tracer says what came of it");
    seized.unwrap_or_else(|error| panic!("cannot trace process {pid}: {error}"));
    Traced { stopped, release }
}
