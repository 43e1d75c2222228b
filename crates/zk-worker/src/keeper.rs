//! The folders of what has ended are kept for some time and up to some size; then the oldest go first.
//!
//! A thread of its own does that, with the lowest priority, however many files a task has left. A folder that is to go is
//! moved into `<work dir>/.trash`, and what is there is removed piece by piece, also what a process before this one left
//! there. No path is followed into what a task has made: a folder in a folder is moved up beside it, so there is nothing
//! nested at any time, and where a symbolic link or a mount leads to is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, Timestamps, UTIME_NOW, chmod, fstat, mkdirat, openat, renameat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use rustix::time::Timespec;
use zk_cli::now_ms;
use znode_paths::TaskName;

use crate::output::{Outputs, Start, name};

/// What to keep of what has ended.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// For how long.
    pub age: Duration,
    /// How many bytes of disk in all.
    pub bytes: u64,
}

const TRASH: &CStr = c".trash";

/// The clock may be set while nothing is to be done.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The pause after nothing could be done at all.
const AGAIN: Duration = Duration::from_secs(60);

/// Starts the thread. What has ended comes in through `ended`; when nobody can send any more, it ends.
///
/// # Errors
/// No thread could be started.
pub(crate) fn start(outputs: &Arc<Outputs>, ended: Receiver<Start>, keep: Keep) -> io::Result<()> {
    let outputs = Arc::downgrade(outputs);
    let Some(work_dir) = outputs.upgrade().map(|outputs| outputs.work_dir().to_owned()) else { return Ok(()) };
    let in_hand = move |start: Start| outputs.upgrade().is_some_and(|outputs| outputs.is_in_hand(start));
    let work = move || {
        rustix::process::setpriority_process(None, 19).ok(); // on Linux that of this thread alone
        while let Err(error) = keep_house(&work_dir, &ended, keep, &in_hand) {
            log::error!("cannot clean up the work dir, will try again in {} s: {error}", AGAIN.as_secs());
            if ended.recv_timeout(AGAIN) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
    };
    thread::Builder::new().name("keeper".into()).spawn(work).map(drop)
}

fn keep_house(
    work_dir: &Path,
    ended: &Receiver<Start>,
    keep: Keep,
    in_hand: &impl Fn(Start) -> bool,
) -> io::Result<()> {
    let mut trash = Trash::open(work_dir)?;
    let mut shelf = look_over(work_dir, in_hand)?;
    // What an earlier process began to remove.
    let mut dirty = true;
    loop {
        while let Some(folder) = shelf.take_surplus(now_ms(), keep) {
            log::debug!("removing folder={folder}");
            trash.take(&folder.to_string());
            dirty = true;
        }
        if std::mem::take(&mut dirty) {
            trash.empty();
        }
        if shelf.is_used_up() {
            shelf = look_over(work_dir, in_hand)?;
            continue;
        }
        let wait = shelf.next_ms(keep).map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
        let first = match ended.recv_timeout(wait.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)) {
            Ok(start) => Some(start),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for start in first.into_iter().chain(ended.try_iter()) {
            let path = work_dir.join(name(start));
            // A process after this one is to know when it ended.
            touch(&path);
            if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                shelf.add(FolderName { start, aside: None }, now_ms(), size(&path));
            }
        }
    }
}

/// Looks at all that is in the work dir.
fn look_over(work_dir: &Path, in_hand: &impl Fn(Start) -> bool) -> io::Result<Shelf> {
    let mut shelf = Shelf::default();
    for entry in std::fs::read_dir(work_dir)?.flatten() {
        let folder = entry.file_name().to_str().and_then(|name| name.parse::<FolderName>().ok());
        if let Some(folder) = folder.filter(|folder| folder.aside.is_some() || !in_hand(folder.start)) {
            shelf.add(folder, last_change(&entry.path()), size(&entry.path()));
        }
    }
    Ok(shelf)
}

fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let now = Timestamps { last_access: now, last_modification: now };
    utimensat(CWD, path, &now, AtFlags::SYMLINK_NOFOLLOW).ok(); // it was deleted by the task
}

/// When something was last written to the folder's streams or the folder was touched: a task cannot set that (ctime).
fn last_change(folder: &Path) -> u64 {
    let changed = |path: PathBuf| path.symlink_metadata().map_or(0, |metadata| metadata.ctime());
    let all = [folder.to_owned(), folder.join("stdout"), folder.join("stderr")].map(changed);
    u64::try_from(all.into_iter().max().unwrap_or(0)).unwrap_or(0).saturating_mul(1000)
}

/// What a file takes beside its blocks (mkfs.ext4(8), -I): millions of empty ones take room, too.
const INODE: u64 = 256;

/// The bytes of disk that a folder takes, without what is mounted there. What cannot be looked at counts for nothing.
fn size(folder: &Path) -> u64 {
    let Ok(top) = folder.symlink_metadata() else { return 0 };
    let mut bytes = top.blocks() * 512 + INODE;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() == top.dev() {
                bytes += metadata.blocks() * 512 + INODE;
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
    }
    bytes
}

/// `<task>.<fence>`, or `<task>.<fence>.<n>` for one that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FolderName {
    start: Start,
    aside: Option<u32>,
}

impl FromStr for FolderName {
    type Err = ();

    /// Nothing else in the work dir is ours to remove.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let task: TaskName = parts.next().unwrap_or_default().parse().map_err(drop)?;
        let fence = parts.next().unwrap_or_default().parse().map_err(drop)?;
        let aside = parts.next().map(str::parse).transpose().map_err(drop)?;
        let folder = FolderName { start: (task, fence), aside };
        if folder.to_string() == text { Ok(folder) } else { Err(()) }
    }
}

impl std::fmt::Display for FolderName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&name(self.start))?;
        self.aside.map_or(Ok(()), |number| write!(f, ".{number}"))
    }
}

/// So many folders are known by name; of the others, which are younger, the work dir itself knows.
const KNOWN: usize = 1024;

/// What is kept: how much it is, and what goes first. Pure.
#[derive(Debug, Default)]
struct Shelf {
    /// The oldest, each with its size.
    oldest: BTreeMap<(u64, FolderName), u64>,
    /// How many others there are.
    others: usize,
    /// The size of all.
    bytes: u64,
}

impl Shelf {
    fn add(&mut self, folder: FolderName, ended_ms: u64, bytes: u64) {
        self.bytes += bytes;
        let key = (ended_ms, folder);
        if self.others > 0 && self.oldest.last_key_value().is_none_or(|(youngest, _)| key > *youngest) {
            self.others += 1;
            return;
        }
        self.bytes -= self.oldest.insert(key, bytes).unwrap_or(0);
        if self.oldest.len() > KNOWN {
            self.oldest.pop_last();
            self.others += 1;
        }
    }

    /// Whether it has to be looked which ones are the oldest.
    fn is_used_up(&self) -> bool {
        self.oldest.is_empty() && self.others > 0
    }

    /// Takes out the oldest if it is too old, or if all take too much.
    fn take_surplus(&mut self, now_ms: u64, keep: Keep) -> Option<FolderName> {
        let oldest = self.oldest.first_entry()?;
        let age = now_ms.saturating_sub(oldest.key().0);
        if u128::from(age) < keep.age.as_millis() && self.bytes <= keep.bytes {
            return None;
        }
        let ((_, folder), bytes) = oldest.remove_entry();
        self.bytes -= bytes;
        Some(folder)
    }

    /// When the next one will be too old.
    fn next_ms(&self, keep: Keep) -> Option<u64> {
        let ((oldest, _), _) = self.oldest.first_key_value()?;
        Some(oldest.saturating_add(u64::try_from(keep.age.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What is to be removed.
struct Trash {
    work_dir: OwnedFd,
    dir: OwnedFd,
    /// Makes the names in it differ, also from those of an earlier process.
    random: u64,
    count: u64,
    /// What cannot be removed: a file that is immutable, something mounted. It is left until the worker starts again.
    stuck: BTreeSet<CString>,
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Trash {
    fn open(work_dir: &Path) -> io::Result<Trash> {
        let work_dir = openat(CWD, work_dir, FOLDER, Mode::empty())?;
        match mkdirat(&work_dir, TRASH, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let dir = openat(&work_dir, TRASH, FOLDER, Mode::empty())?;
        Ok(Trash { work_dir, dir, random: zk_cli::random(), count: 0, stuck: BTreeSet::new() })
    }

    fn new_name(&mut self) -> String {
        self.count += 1;
        format!("{:016x}-{}", self.random, self.count)
    }

    /// Moves a folder of the work dir here.
    fn take(&mut self, folder: &str) {
        let name = self.new_name();
        match renameat(&self.work_dir, folder, &self.dir, name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => log::warn!("cannot remove folder={folder}: {error}"),
        }
    }

    /// Removes all that can be removed.
    fn empty(&mut self) {
        let begun = Instant::now();
        let mut names = self.names();
        while !names.is_empty() {
            for name in names {
                if let Err(error) = self.remove(&name) {
                    log::warn!(
                        "cannot remove a part of a task's folder, it stays in .trash/{}: {error}",
                        name.to_string_lossy()
                    );
                    self.stuck.insert(name);
                }
            }
            names = self.names(); // what was moved up meanwhile
        }
        if begun.elapsed() > Duration::from_secs(60) {
            log::info!("removed what tasks left in {} s", begun.elapsed().as_secs());
        }
    }

    fn names(&self) -> Vec<CString> {
        let entries = Dir::read_from(&self.dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_owned());
        names.filter(|name| !is_dots(name) && !self.stuck.contains(name)).collect()
    }

    /// Removes something here: a file, or a folder whose folders are moved up.
    fn remove(&mut self, name: &CStr) -> Result<(), Errno> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            removed => return removed,
        }
        let dir = open_folder(&self.dir, name)?;
        let mut failed = Ok(());
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_dots(name)
                && let Err(error) = self.remove_below(&dir, name)
            {
                failed = Err(error);
            }
        }
        unlinkat(&self.dir, name, AtFlags::REMOVEDIR).map_err(|error| failed.err().unwrap_or(error))
    }

    fn remove_below(&mut self, dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            removed => return removed,
        }
        let up = self.new_name();
        match renameat(dir, name, &self.dir, &up) {
            // Who moves a folder writes to it, for its parent is another one then.
            Err(Errno::ACCESS) => {
                open_folder(dir, name)?;
                renameat(dir, name, &self.dir, &up)
            }
            moved => moved,
        }
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Opens a folder, whatever its permissions say; they are changed where they stand in the way.
fn open_folder(parent: &impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let folder = openat(parent, name, FOLDER | OFlags::PATH, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&folder)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // That of this very folder, whatever is at its path by now (proc(5), /proc/pid/fd).
        chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU)?;
    }
    openat(&folder, c".", FOLDER, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn folder(number: u32) -> FolderName {
        FolderName { start: (TaskName::from_number(number), 7), aside: None }
    }

    #[test]
    fn only_the_names_that_a_worker_makes_are_taken_for_folders() {
        for good in ["task-0000000001.7", "task-0000000001.-7", "task-0000000001.7.1"] {
            assert_eq!(good.parse::<FolderName>().map(|folder| folder.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            ".",
            "..",
            ".lock",
            ".trash",
            "task-0000000001",
            "task-0000000001.",
            "task-0000000001.07",
            "task-0000000001.+7",
            "task-0000000001.7.",
            "task-0000000001.7.01",
            "task-0000000001.7.1.1",
            "task-1.7",
            "task-0000000001.7 ",
            "files",
        ] {
            assert!(bad.parse::<FolderName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_oldest_go_first_when_they_are_too_old_or_all_are_too_much() {
        let mut shelf = Shelf::default();
        for (number, ended_ms, bytes) in [(3, 3000, 10), (1, 1000, 10), (2, 2000, 10)] {
            shelf.add(folder(number), ended_ms, bytes);
        }
        let keep = |age_ms, bytes| Keep { age: Duration::from_millis(age_ms), bytes };
        assert_eq!(shelf.take_surplus(3000, keep(2001, 30)), None);
        assert_eq!(shelf.next_ms(keep(2001, 30)), Some(3001));
        assert_eq!(shelf.take_surplus(3001, keep(2001, 30)), Some(folder(1)));
        assert_eq!(shelf.take_surplus(3001, keep(2001, 20)), None);
        assert_eq!(shelf.take_surplus(3001, keep(2001, 19)), Some(folder(2)));
        assert_eq!(shelf.take_surplus(0, keep(2001, 19)), None, "the clock was set back");
        assert_eq!(shelf.take_surplus(u64::MAX, keep(2001, 19)), Some(folder(3)));
        assert_eq!((shelf.take_surplus(u64::MAX, keep(0, 0)), shelf.next_ms(keep(0, 0))), (None, None));
    }

    #[test]
    fn of_however_many_the_oldest_are_known_and_the_size_of_all() {
        let mut shelf = Shelf::default();
        let number = |number: usize| u32::try_from(number).unwrap();
        // In an order that has nothing to do with their age.
        for at in 0..3 * KNOWN {
            let age = at * 7 % (3 * KNOWN);
            shelf.add(folder(number(age)), age as u64, 10);
        }
        let (nothing, all) = (Keep { age: Duration::ZERO, bytes: 0 }, Keep { age: Duration::MAX, bytes: u64::MAX });
        assert_eq!((shelf.oldest.len(), shelf.bytes), (KNOWN, 30 * KNOWN as u64));
        assert_eq!(shelf.take_surplus(u64::MAX, all), None);
        for age in 0..KNOWN {
            assert!(!shelf.is_used_up());
            assert_eq!(shelf.take_surplus(u64::MAX, nothing), Some(folder(number(age))));
        }
        assert!(shelf.is_used_up());
        assert_eq!((shelf.take_surplus(u64::MAX, nothing), shelf.bytes), (None, 20 * KNOWN as u64));
    }

    #[test]
    fn folders_that_are_not_known_by_name_go_when_they_are_too_old_too() {
        let work_dir = tempfile::tempdir().unwrap();
        for number in 0..KNOWN + 10 {
            let folder = folder(u32::try_from(number).unwrap());
            fs::create_dir(work_dir.path().join(folder.to_string())).unwrap();
        }
        // Nothing will end any more: it does what is to be done now.
        let (_, ended) = std::sync::mpsc::channel();
        keep_house(work_dir.path(), &ended, Keep { age: Duration::ZERO, bytes: 0 }, &|_| false).unwrap();
        let left = fs::read_dir(work_dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), [".trash"]);
    }

    #[test]
    fn whatever_a_task_made_is_removed_and_nothing_that_it_points_to() {
        let work_dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("precious"), "x").unwrap();
        let top = work_dir.path().join("task-0000000001.7");
        let deep = top.join("files");
        fs::create_dir_all(&deep).unwrap();
        symlink(elsewhere.path(), deep.join("link")).unwrap();
        symlink(elsewhere.path(), top.join("stdout")).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        fs::create_dir(deep.join("locked")).unwrap();
        fs::write(deep.join("locked/file"), "x").unwrap();
        fs::set_permissions(deep.join("locked"), fs::Permissions::from_mode(0o0)).unwrap();
        // Deeper than any path can say.
        let mut parent = openat(CWD, &deep, FOLDER, Mode::empty()).unwrap();
        for _ in 0..100 {
            let name = "d".repeat(200);
            mkdirat(&parent, &name, Mode::RWXU).unwrap();
            parent = openat(&parent, &name, FOLDER, Mode::empty()).unwrap();
        }
        openat(&parent, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        let mut trash = Trash::open(work_dir.path()).unwrap();
        trash.take("task-0000000001.7");
        trash.take("task-0000000002.7");
        assert!(!top.exists());
        trash.empty();
        assert_eq!(trash.names(), Vec::<CString>::new());
        assert_eq!(fs::read_dir(work_dir.path().join(".trash")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(elsewhere.path().join("precious")).unwrap(), "x");
    }

    #[test]
    fn what_an_earlier_process_began_to_remove_is_removed() {
        let work_dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(work_dir.path().join(".trash/begun/files")).unwrap();
        Trash::open(work_dir.path()).unwrap().empty();
        assert_eq!(fs::read_dir(work_dir.path().join(".trash")).unwrap().count(), 0);
    }

    #[test]
    fn a_trash_that_leads_elsewhere_is_not_opened() {
        let (work_dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), work_dir.path().join(".trash")).unwrap();
        assert!(Trash::open(work_dir.path()).is_err());
    }

    #[test]
    fn a_size_is_that_on_the_disk_and_of_nothing_else() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("a")).unwrap();
        let empty = size(dir.path());
        fs::write(dir.path().join("a/file"), vec![1; 1_000_000]).unwrap();
        fs::write(elsewhere.path().join("large"), vec![1; 1_000_000]).unwrap();
        symlink(elsewhere.path(), dir.path().join("a/link")).unwrap();
        symlink(elsewhere.path().join("large"), dir.path().join("large")).unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let more = size(dir.path()) - empty;
        assert!((1_000_000..1_100_000).contains(&more), "{more}");
    }
}
