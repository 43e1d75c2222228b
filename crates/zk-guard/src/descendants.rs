//! All that the daemon has started, and what that has started, and so on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(2);

/// How long killed processes may take to disappear before that is said.
const STUBBORN: Duration = Duration::from_secs(5);

/// Kills all descendants of this process, and returns when none of them is left. This process is the subreaper: whatever
/// loses its parent becomes its child, so none can leave the tree.
pub(crate) fn kill_all() {
    let (_never, pause) = mpsc::channel::<()>();
    let began = Instant::now();
    let mut said = false;
    loop {
        for pid in descendants().into_iter().filter_map(Pid::from_raw) {
            kill_process(pid, Signal::KILL).ok(); // it has ended by itself
        }
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

fn descendants() -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // pid (name) state ppid ...: the name may hold anything, parentheses too (proc(5)).
        let parent = stat.rsplit(')').next().and_then(|fields| fields.split_ascii_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = BTreeSet::new();
    let mut next = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).into_iter().flatten() {
            found.insert(child);
            next.push(child);
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
            let found = descendants();
            let others: Vec<i32> = found.iter().copied().filter(|pid| parent(*pid) == Some(own)).collect();
            if let (true, [sleeping]) = (found.contains(&own), &others[..]) {
                break *sleeping;
            }
            assert!(Instant::now() < deadline, "{found:?}");
        };
        kill_process(Pid::from_raw(sleeping).unwrap(), Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    fn parent(pid: i32) -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}
