//! Control groups, version 2 (cgroups(7)): where the system lets us have one, whatever a task starts is in it, and stays in
//! it whatever it does, and all of it is killed by one write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A group of processes, as a folder of the cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a group below the one that this process is in. Removes those that others have left there.
    ///
    /// # Errors
    /// There is no cgroup v2 here, we may not write to it (without `Delegate=` of systemd, or in most containers), or the
    /// kernel is older than 5.14 and cannot kill a whole group.
    pub fn create() -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = own_folder(&own, &mounts).ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))?;
        let own = Cgroup(own);
        own.below().filter(Cgroup::is_forgotten).for_each(|group| group.remove());
        let group = own.child(&format!("{PREFIX}{:016x}", zk_cli::random()))?;
        if group.0.join(KILL).exists() {
            return Ok(group);
        }
        group.remove();
        Err(io::Error::other("this kernel cannot kill a cgroup"))
    }

    /// Whether it is of a guard that did not remove it: nothing lives there, and it was not made a moment ago.
    fn is_forgotten(&self) -> bool {
        let ours = self.0.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let changed = fs::metadata(&self.0).and_then(|folder| folder.modified());
        let age = changed.ok().and_then(|changed| changed.elapsed().ok()).unwrap_or_default();
        ours && !self.populated() && age >= FORGOTTEN
    }

    /// The group at a path that an earlier process wrote down, if it is still there.
    pub fn at(path: &Path) -> Option<Self> {
        path.join(KILL).exists().then(|| Cgroup(path.to_owned()))
    }

    /// Makes a group in this one.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(Cgroup(path))
    }

    /// Whether it is there and no group is in it.
    pub fn is_bare(&self) -> bool {
        // A folder of this file system has two links, and one from each folder in it.
        fs::metadata(&self.0).is_ok_and(|folder| folder.nlink() == 2)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process into the group; what it starts from then on will be in it.
    ///
    /// # Errors
    /// The group or the process is gone.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.0.join(PROCESSES), pid.to_string())
    }

    /// Has a command enter the group before anything of it runs; all that it starts will be in it.
    ///
    /// # Errors
    /// The group is gone.
    pub fn enter(&self, command: &mut Command) -> io::Result<()> {
        let mut entrance = OpenOptions::new().write(true).open(self.0.join(PROCESSES))?;
        #[expect(unsafe_code, reason = "only the child itself can enter before it runs")]
        // SAFETY: between fork and exec only a system call is made; nothing is allocated and no lock is taken.
        unsafe {
            command.pre_exec(move || entrance.write_all(b"0"));
        }
        Ok(())
    }

    /// The processes in it and below.
    pub fn processes(&self) -> Vec<i32> {
        let processes = fs::read_to_string(self.0.join(PROCESSES)).unwrap_or_default();
        let own = processes.lines().filter_map(|pid| pid.parse().ok());
        own.chain(self.below().flat_map(|below| below.processes())).collect()
    }

    fn below(&self) -> impl Iterator<Item = Cgroup> + use<> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|folder| Cgroup(folder.path()))
    }

    /// Whether there is a living process in it or below.
    pub fn populated(&self) -> bool {
        // It says so in its first lines, and all of them are read at once (cgroup-v2.rst, Core Interface Files).
        let mut events = [0; 256];
        match File::open(self.0.join("cgroup.events")).and_then(|mut file| file.read(&mut events)) {
            Ok(length) => events[..length].split(|byte| *byte == b'\n').any(|event| event == b"populated 1"),
            // Where it cannot be known, something may live there.
            Err(_) => self.0.exists(),
        }
    }

    /// Kills all that is in it and below, also what is being started at this moment.
    pub fn kill(&self) {
        if let Err(error) = fs::write(self.0.join(KILL), "1")
            && self.0.exists()
        {
            log::error!("cannot kill the processes in {}: {error}", self.0.display());
        }
    }

    /// Removes it and what is below it, once nothing lives there.
    pub fn remove(&self) {
        // Files do not count: rmdir(2) takes it as soon as it has neither processes nor groups below it.
        if fs::remove_dir(&self.0).is_err() {
            self.clear();
            fs::remove_dir(&self.0).ok(); // nothing depends on it: an empty group costs nothing
        }
    }

    /// Removes what is below it, once nothing lives there.
    pub fn clear(&self) {
        self.below().for_each(|below| below.remove());
    }
}

/// What the names of all groups made by [`Cgroup::create`] begin with.
const PREFIX: &str = "zk-worker-";

/// A guard puts its daemon into its group at once.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Whatever is in the group, one number a line; write one there to move that process.
const PROCESSES: &str = "cgroup.procs";

/// Write `1` there to kill all of a group.
const KILL: &str = "cgroup.kill";

/// Where the group of this process is, from its `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn own_folder(own: &str, mounts: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        // Where only a part of the hierarchy is mounted, paths are relative to that part (proc(5)).
        let [root, point] = mount.split(' ').skip(3).take(2).collect::<Vec<_>>().try_into().ok()?;
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn the_own_group_is_found_in_unified_hybrid_and_partial_mounts() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      4 2 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let partial = "1 2 0:3 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let folder = |own: &str, mounts| own_folder(own, mounts).map(|path| path.display().to_string());
        let path = |path: &str| Some(path.to_owned());
        assert_eq!(folder("0::/system.slice/a.service\n", unified), path("/sys/fs/cgroup/system.slice/a.service"));
        assert_eq!(folder("3:cpu:/x\n0::/\n", hybrid), path("/sys/fs/cgroup/unified/"));
        assert_eq!(folder("0::/docker/abc/d\n", partial), path("/sys/fs/cgroup/d"));
        assert_eq!(folder("0::/elsewhere\n", partial), None);
        assert_eq!(folder("3:cpu:/x\n", unified), None);
    }

    #[test]
    fn what_left_its_session_is_killed_with_its_group() {
        let Ok(group) = Cgroup::create() else {
            return; // none to be had here, which a worker says at its start
        };
        let inner = group.child("inner").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 100 & echo; wait"]).stdout(Stdio::piped());
        inner.enter(&mut command).unwrap();
        let mut shell = command.spawn().unwrap();
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert!(group.populated());
        assert!(inner.processes().contains(&i32::try_from(shell.id()).unwrap()));
        group.kill();
        shell.wait().unwrap();
        while group.populated() {
            std::thread::yield_now();
        }
        group.remove();
        assert!(!group.path().exists());
    }
}
