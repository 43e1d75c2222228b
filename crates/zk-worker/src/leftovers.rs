//! What an earlier process left behind on this host, when its guard died with it.
//!
//! The work dir belongs to one worker process at a time; a lock says so. Every task carries the path of its folder in its
//! environment. So what runs with a folder of a work dir that nobody holds is a leftover, and is killed before anything
//! else: it may be an attempt that the primary has given to somebody else.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// In the environment of every task: the folder of this start of it.
pub(crate) const FOLDER: &str = "ZK_TASK_DIR";

/// Between two looks at what is left, and how long to look: a process in the middle of a read from a dead disk cannot be
/// killed, and must not keep this host out of service for ever.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the work dir; it is held as long as the file is open. `None` when somebody else has it.
pub(crate) fn take(work_dir: &Path) -> io::Result<Option<File>> {
    let lock = File::create(work_dir.join(".lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Kills what runs with a folder of this work dir, and waits until it is gone.
pub(crate) fn kill(work_dir: &Path) {
    let (_never, pause) = mpsc::channel::<()>();
    let began = Instant::now();
    let mut killed = 0;
    loop {
        let left = running(work_dir);
        if left.is_empty() {
            break;
        }
        if began.elapsed() >= PATIENCE {
            log::error!("processes that an earlier worker left behind do not die: {left:?}");
            break;
        }
        killed += left.iter().filter(|pid| kill_process(**pid, Signal::KILL).is_ok()).count();
        pause.recv_timeout(LOOK).ok();
    }
    if killed > 0 {
        log::warn!("killed what an earlier worker left running processes={killed}");
    }
}

fn running(work_dir: &Path) -> Vec<Pid> {
    let marker = format!("{FOLDER}={}/", work_dir.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        // A zombie has no environment any more; what may not be read is not ours.
        let environment = fs::read(process.path().join("environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(marker.as_bytes())).then_some(pid)
    });
    ours.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_work_dir_belongs_to_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        assert!(first.is_some());
        assert!(take(dir.path()).unwrap().is_none());
        drop(first);
        assert!(take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn only_what_runs_in_this_work_dir_is_killed() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |dir: &Path| Command::new("sleep").arg("100").env(FOLDER, dir.join("task-1.2")).spawn().unwrap();
        let (mut leftover, mut other) = (start(ours.path()), start(others.path()));
        kill(ours.path());
        assert!(!leftover.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
