//! All that a process has started, and what that has started, and so on: exact for a subreaper, whose child becomes
//! whatever loses its parent, so that nothing can leave the tree.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(2);

/// How long killed processes may take to disappear before that is said.
const STUBBORN: Duration = Duration::from_secs(5);

/// Kills all descendants of this process, a subreaper, and returns when none of them is left.
pub(crate) fn kill_all() {
    let (_never, pause) = mpsc::channel::<()>();
    let began = Instant::now();
    let mut said = false;
    loop {
        kill_once();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return, // no child is left, dead or alive
            }
        }
        if began.elapsed() >= STUBBORN && !said {
            log::warn!("processes of the dead daemon do not die, waiting for them");
            said = true;
        }
        pause.recv_timeout(LOOK).ok();
    }
}

/// Kills those descendants of this process that there are now; returns how many were alive.
pub fn kill_once() -> usize {
    let alive = of(getpid());
    for pid in alive.iter().filter_map(|process| Pid::from_raw(process.pid)) {
        kill_process(pid, Signal::KILL).ok(); // it has ended by itself
    }
    alive.len()
}

/// A process that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// That of its process group.
    pub group: i32,
}

/// The descendants of a process that are alive. Zombies are dead, but what they started counts.
pub fn of(ancestor: Pid) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<(Process, bool)>> = BTreeMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // pid (name) state ppid pgrp ...: the name may hold anything, parentheses too (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().take(3).collect();
        let [state, parent, group] = fields[..] else { continue };
        let (Ok(parent), Ok(group)) = (parent.parse(), group.parse()) else { continue };
        children.entry(parent).or_default().push((Process { pid, group }, !matches!(state, "Z" | "X")));
    }
    let mut found = Vec::new();
    let mut next = vec![ancestor.as_raw_nonzero().get()];
    while let Some(parent) = next.pop() {
        for (child, alive) in children.remove(&parent).into_iter().flatten() {
            next.push(child.pid);
            found.extend(alive.then_some(child));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn grandchildren_are_found() {
        let mut child = Command::new("sh").args(["-c", "sleep 100; true"]).stdin(Stdio::null()).spawn().unwrap();
        let own = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let sleeping = loop {
            let found = of(getpid());
            let others: Vec<i32> = of(Pid::from_child(&child)).iter().map(|process| process.pid).collect();
            if let (true, [sleeping]) = (found.iter().any(|process| process.pid == own), &others[..]) {
                break *sleeping;
            }
            assert!(Instant::now() < deadline, "{found:?}");
        };
        kill_process(Pid::from_raw(sleeping).unwrap(), Signal::KILL).unwrap();
        child.wait().unwrap();
    }
}
