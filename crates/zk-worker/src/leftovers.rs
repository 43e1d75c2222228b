//! What an earlier process left behind on this host, when its guard died with it.
//!
//! The work dir belongs to one worker process at a time; a lock says so. Every task carries the path of its folder in its
//! environment. So what runs with a folder of a work dir that nobody holds is a leftover, and is killed before anything
//! else: it may be an attempt that the primary has given to somebody else.
//!
//! The locked file says who holds the work dir: the instances of the process, and the control group of its tasks. Whoever
//! finds these there and gets the lock knows that they are dead, and so need not wait for their sessions to expire.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use zk_guard::Cgroup;
use znode_paths::Instance;

/// In the environment of every task: the folder of this start of it.
pub(crate) const FOLDER: &str = "ZK_TASK_DIR";

/// Between two looks at what is left, and how long to look: a process in the middle of a read from a dead disk cannot be
/// killed, and must not keep this host out of service for ever.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a process may take to die that was killed before this one was started, on a busy machine.
const DYING: Duration = Duration::from_secs(3);

/// Of how many earlier instances is known. A session whose end could not be brought about expires long before so many more
/// processes have come and gone.
const REMEMBERED: usize = 16;

const INSTANCE: &str = "instance ";
const CGROUP: &str = "cgroup ";

/// The work dir, held as long as this lives.
pub(crate) struct Held {
    work_dir: PathBuf,
    file: File,
    /// What its file says.
    lines: Vec<String>,
}

/// Takes the work dir. `None` when somebody else has it, and keeps it for longer than one who is just dying does.
pub(crate) fn take(work_dir: &Path) -> io::Result<Option<Held>> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(work_dir.join(".lock"))?;
    let (_never, pause) = mpsc::channel::<()>();
    let began = Instant::now();
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        match error {
            rustix::io::Errno::WOULDBLOCK if began.elapsed() >= DYING => return Ok(None),
            rustix::io::Errno::WOULDBLOCK => _ = pause.recv_timeout(LOOK),
            error => return Err(error.into()),
        }
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let lines = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    Ok(Some(Held { work_dir: work_dir.to_owned(), file, lines }))
}

impl Held {
    /// The instances of those who held it before, which are dead.
    pub(crate) fn earlier(&self) -> Vec<Instance> {
        self.lines.iter().filter_map(|line| line.strip_prefix(INSTANCE)?.parse().ok()).collect()
    }

    /// Kills what they left. The control group `own` is of the same guard as before, which has killed what was in it.
    pub(crate) fn kill_leftovers(&mut self, own: Option<&Cgroup>) {
        let cgroups = self.lines.iter().filter_map(|line| Cgroup::at(line.strip_prefix(CGROUP)?.as_ref()));
        let cgroups: Vec<Cgroup> = cgroups.filter(|cgroup| Some(cgroup) != own).collect();
        cgroups.iter().for_each(Cgroup::kill);
        kill(&self.work_dir);
        cgroups.iter().for_each(Cgroup::remove);
        self.lines.retain(|line| !line.starts_with(CGROUP));
    }

    /// Writes down who holds it now.
    pub(crate) fn note(&mut self, instance: Instance, cgroup: Option<&Cgroup>) -> io::Result<()> {
        self.lines.drain(..self.lines.len().saturating_sub(REMEMBERED));
        self.lines.push(format!("{INSTANCE}{instance}"));
        self.lines.extend(cgroup.map(|cgroup| format!("{CGROUP}{}", cgroup.path().display())));
        // A process that dies in the middle of this is not known to the next one, which then waits for its session's end.
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all((self.lines.join("\n") + "\n").as_bytes())
    }
}

/// Kills what runs with a folder of this work dir, and waits until it is gone.
fn kill(work_dir: &Path) {
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
    fn whoever_is_just_dying_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let dies = std::thread::spawn(move || {
            let (_never, pause) = mpsc::channel::<()>();
            pause.recv_timeout(20 * LOOK).ok();
            drop(first);
        });
        assert!(take(dir.path()).unwrap().is_some());
        dies.join().unwrap();
    }

    #[test]
    fn who_held_it_is_known_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let instances: Vec<Instance> = (0..100).map(Instance::from_random).collect();
        for (index, instance) in instances.iter().enumerate() {
            let mut held = take(dir.path()).unwrap().unwrap();
            let known = held.earlier();
            assert_eq!(known, &instances[index - known.len()..index], "the latest, in their order");
            assert!(known.len() >= index.min(REMEMBERED));
            held.note(*instance, None).unwrap();
        }
        fs::write(dir.path().join(".lock"), b"instance \xff\ninstance 00\n\ncgroup\n").unwrap();
        assert!(take(dir.path()).unwrap().unwrap().earlier().is_empty(), "what cannot be read is not known");
    }

    #[test]
    fn only_what_runs_in_this_work_dir_is_killed() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |dir: &Path| Command::new("sleep").arg("100").env(FOLDER, dir.join("task-1.2")).spawn().unwrap();
        let (mut leftover, mut other) = (start(ours.path()), start(others.path()));
        // Whoever starts a program goes on a moment before its environment can be read.
        while [&ours, &others].iter().any(|dir| running(dir.path()).is_empty()) {
            std::thread::yield_now();
        }
        kill(ours.path());
        assert!(!leftover.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
