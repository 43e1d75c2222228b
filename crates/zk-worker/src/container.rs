//! All processes of one start of a task: whom a stop reaches, and what has to be dead before the task is over.
//!
//! Where there is cgroup v2 that is one control group, which nothing can leave. Elsewhere it is the command's process group;
//! what the command has started in groups of its own, as far as its parents lead there; and what has lost its parents
//! and still has the task's folder in its environment. What did all of that at once, `setsid`, a double fork, and clearing
//! its environment, is found when the worker dies or counts as lost: then everything below it is killed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};
use zk_guard::{Cgroup, descendants};

use crate::leftovers::FOLDER;

#[derive(Debug)]
pub(crate) struct Container {
    /// The command itself, which leads the process group.
    leader: Pid,
    /// The task's folder, as every process of it has it in its environment.
    folder: OsString,
    cgroup: Option<Cgroup>,
    /// All that was in it was killed at some time.
    killed: Cell<bool>,
}

impl Container {
    pub(crate) fn new(leader: Pid, folder: &OsStr, cgroup: Option<Cgroup>) -> Self {
        Container { leader, folder: folder.to_owned(), cgroup, killed: Cell::new(false) }
    }

    /// Sends a signal to each process of a command that has not been reaped.
    pub(crate) fn signal(&self, signal: Signal) {
        let (group, others) = match &self.cgroup {
            Some(_) if signal == Signal::KILL => return self.kill(),
            Some(cgroup) => (None, cgroup.processes()),
            None => (Some(self.leader), self.outside_of_the_group()),
        };
        if let Some(group) = group {
            kill_process_group(group, signal).ok(); // nobody is left of it
        }
        kill_each(others, signal);
    }

    /// Kills at once what can be killed at once, of a command that has not been reaped: for as long as it has not, no other
    /// group can get its number.
    pub(crate) fn kill(&self) {
        self.killed.set(true);
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            None => _ = kill_process_group(self.leader, Signal::KILL),
        }
    }

    /// Somebody else killed what was in it.
    pub(crate) fn note_killed(&self) {
        self.killed.set(true);
    }

    /// Whether it is known that nothing is alive in it any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| !cgroup.populated())
    }

    /// Whether nothing is alive of a command that has been reaped; kills what is. `known` are the commands of other tasks.
    pub(crate) fn gone(&self, known: impl Fn(i32) -> bool) -> bool {
        if let Some(cgroup) = &self.cgroup {
            return !cgroup.populated() || {
                self.kill();
                false
            };
        }
        // Whatever lost its parents is a child of this process now. To look at these is cheap; at all processes it is not.
        if children().is_some_and(|children| children.into_iter().all(known)) {
            return true;
        }
        let group = self.leader.as_raw_nonzero().get();
        let all = descendants::of(getpid()).into_iter();
        let left: Vec<i32> = all.filter(|p| p.group == group || self.marked(p.pid)).map(|p| p.pid).collect();
        let gone = left.is_empty();
        kill_each(left, Signal::KILL);
        gone
    }

    /// Hands over its group, once nothing of it is alive, for another task; gives it back to the system where that cannot be: a
    /// group that was killed as a whole, some kernels kill again with whatever is born there.
    pub(crate) fn clear(self) -> Option<Cgroup> {
        let Container { cgroup, killed, .. } = self;
        if killed.get() {
            cgroup.iter().for_each(Cgroup::remove);
        }
        cgroup.filter(|_| !killed.get())
    }

    fn outside_of_the_group(&self) -> Vec<i32> {
        let leader = self.leader.as_raw_nonzero().get();
        let below: BTreeSet<i32> = descendants::of(self.leader).iter().map(|process| process.pid).collect();
        let others = descendants::of(getpid()).into_iter().filter(|process| process.group != leader);
        others.map(|process| process.pid).filter(|pid| below.contains(pid) || self.marked(*pid)).collect()
    }

    fn marked(&self, pid: i32) -> bool {
        // What may not be read has changed its user: only root can follow it.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let marker = [FOLDER.as_bytes(), b"=", self.folder.as_bytes()].concat();
        environment.split(|byte| *byte == 0).any(|variable| variable == marker)
    }
}

fn kill_each(processes: Vec<i32>, signal: Signal) {
    for pid in processes.into_iter().filter_map(Pid::from_raw) {
        kill_process(pid, signal).ok(); // it has ended by itself
    }
}

/// The children of the main thread: what it started, and what others started who are dead. `None` where the kernel does
/// not say (it was built without `CONFIG_PROC_CHILDREN`).
fn children() -> Option<Vec<i32>> {
    let pid = getpid().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some(children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}
