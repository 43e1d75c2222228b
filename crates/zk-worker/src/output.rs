//! Where a command's output goes: two files in the work dir, never a pipe, so that a command is never blocked by us and
//! no output fills our memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, fstatvfs, openat};
use znode_paths::{MAX_DATA, OutputPath, Stream, Tail, TaskName};

/// The output of all that this worker has run: of what is in hand through the descriptors, of the rest from the work dir.
#[derive(Debug)]
pub(crate) struct Outputs {
    work_dir: PathBuf,
    in_hand: Mutex<BTreeMap<Start, Written>>,
    ended: Sender<Start>,
}

/// A start of a task: its name and the czxid of its assignment.
pub(crate) type Start = (TaskName, i64);

/// Both streams of a start.
#[derive(Debug, Clone)]
struct Written {
    stdout: Arc<Log>,
    stderr: Arc<Log>,
}

impl Written {
    fn get(&self, stream: Stream) -> &Arc<Log> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn close(&self) {
        self.stdout.close();
        self.stderr.close();
    }
}

/// What a command writes to one of its streams. It is read through the descriptor, at any offset: the command may have
/// deleted the file.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    /// How long it is for good; [`OPEN`] as long as the command runs.
    end: AtomicU64,
}

const OPEN: u64 = u64::MAX;

impl Log {
    /// How long it is for good, if the command has ended.
    pub(crate) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Acquire)).filter(|end| *end != OPEN)
    }

    /// How long it is now.
    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads from the offset on, but nothing behind `end`; returns how much that was.
    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64, end: Option<u64>) -> io::Result<usize> {
        let left = end.map_or(u64::MAX, |end| end.saturating_sub(offset));
        let most = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_at(&mut bytes[..most], offset)
    }

    /// The command has ended. What left its process group may write on, but the length is what it is now.
    fn close(&self) {
        if self.end().is_none() {
            let length = self.length().unwrap_or(0);
            self.end.compare_exchange(OPEN, length, Ordering::AcqRel, Ordering::Acquire).ok(); // closed before
        }
    }

    fn tail(&self, limit: u64) -> io::Result<Tail> {
        let length = self.end().map_or_else(|| self.length(), Ok)?;
        // A status holds no more, whatever the limit.
        let limit = limit.min(MAX_DATA as u64).min(length);
        let mut bytes = vec![0; usize::try_from(limit).unwrap_or(MAX_DATA)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], length - limit + filled as u64)? {
                0 => break, // the command cut its own file
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(Tail { length, bytes })
    }
}

impl Outputs {
    /// Whatever is not in hand any more is sent to `ended`.
    pub(crate) fn new(work_dir: &Path, ended: Sender<Start>) -> Self {
        Outputs { work_dir: work_dir.to_owned(), in_hand: Mutex::default(), ended }
    }

    pub(crate) fn work_dir(&self) -> &Path {
        &self.work_dir
    }

    pub(crate) fn is_in_hand(&self, start: Start) -> bool {
        self.in_hand().contains_key(&start)
    }

    fn in_hand(&self) -> MutexGuard<'_, BTreeMap<Start, Written>> {
        // Nothing here panics while it holds the lock.
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of what is in hand, or was once; `None` when there is no such thing, or no more.
    pub(crate) fn find(&self, path: &OutputPath) -> Option<Arc<Log>> {
        // Held until the file is open: what is being made is not taken for what has ended, empty as it still is.
        let in_hand = self.in_hand();
        if let Some(written) = in_hand.get(&(path.task, path.fence)) {
            return Some(written.get(path.stream).clone());
        }
        let file = self.open(path).ok().flatten()?;
        let end = AtomicU64::new(file.metadata().ok()?.len());
        Some(Arc::new(Log { file, end }))
    }

    /// Opens a file of a command that has ended. Whoever can write to the folder could have put something else there:
    /// nothing but a file that has no other name is opened.
    fn open(&self, path: &OutputPath) -> io::Result<Option<File>> {
        let folder = self.work_dir.join(name((path.task, path.fence)));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = openat(CWD, folder, flags | OFlags::DIRECTORY, Mode::empty())?;
        let file = openat(folder, path.stream.as_str(), flags | OFlags::NONBLOCK, Mode::empty())?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        Ok((metadata.is_file() && metadata.nlink() == 1).then_some(file))
    }
}

/// The name of the folder of a start. The fence makes it unique.
pub(crate) fn name((task, fence): Start) -> String {
    format!("{task}.{fence}")
}

/// The folder of one start of a task: `<work dir>/<task>.<fence>`, with `stdout`, `stderr`, `command` if that is long, and
/// `files`, where it runs. Others cannot look into it. Dropped when nothing is in hand of that start any more.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) files: PathBuf,
    start: Start,
    written: Written,
    outputs: Arc<Outputs>,
}

impl Folder {
    pub(crate) fn create(outputs: &Arc<Outputs>, task: TaskName, fence: i64) -> io::Result<Self> {
        let path = outputs.work_dir.join(name((task, fence)));
        Folder::make(outputs, (task, fence), &path).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot make the folder {}: {error}", path.display()))
        })
    }

    /// Makes all of it, or nothing: on a full disk what is half made would take the room that is needed for the next.
    fn make(outputs: &Arc<Outputs>, start: Start, path: &Path) -> io::Result<Self> {
        let mut in_hand = outputs.in_hand();
        let new_folder = || fs::DirBuilder::new().mode(0o700).create(path);
        match new_folder() {
            // Somebody deleted the work dir.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&outputs.work_dir)?;
                new_folder()?;
            }
            // Of another ensemble that counted likewise, or of an assignment made by hand that is started once more.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                set_aside(path)?;
                new_folder()?;
            }
            made => made?,
        }
        let files = path.join("files");
        let log = |stream: Stream| -> io::Result<Arc<Log>> {
            let file = OpenOptions::new().read(true).append(true).create_new(true).open(path.join(stream.as_str()))?;
            Ok(Arc::new(Log { file, end: AtomicU64::new(OPEN) }))
        };
        let fill = || -> io::Result<Written> {
            fs::DirBuilder::new().create(&files)?;
            Ok(Written { stdout: log(Stream::Stdout)?, stderr: log(Stream::Stderr)? })
        };
        let written = fill().inspect_err(|_| _ = fs::remove_dir_all(path))?;
        in_hand.insert(start, written.clone());
        drop(in_hand);
        Ok(Folder { path: path.to_owned(), files, start, written, outputs: outputs.clone() })
    }

    /// How much the command has written to a stream, if it has ended.
    pub(crate) fn length(&self, stream: Stream) -> Option<u64> {
        self.written.get(stream).end()
    }

    /// A file for a command that is too long for an argument.
    pub(crate) fn write_command(&self, command: &str) -> io::Result<PathBuf> {
        let path = self.path.join("command");
        fs::write(&path, command)?;
        Ok(path)
    }

    /// A file for what the command can read, from its beginning.
    pub(crate) fn write_stdin(&self, bytes: &[u8]) -> io::Result<File> {
        let path = self.path.join("stdin");
        fs::write(&path, bytes)?;
        File::open(path)
    }

    /// Gives the files to the user that the command runs as; it can go through the folder, but not put anything else there,
    /// where the worker looks for the output.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        chown(&self.path, None, Some(gid))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))?;
        fs::set_permissions(&self.files, fs::Permissions::from_mode(0o700))?;
        for file in fs::read_dir(&self.path)? {
            chown(file?.path(), Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// What the command writes to.
    pub(crate) fn streams(&self) -> io::Result<(File, File)> {
        Ok((self.written.stdout.file.try_clone()?, self.written.stderr.file.try_clone()?))
    }

    /// The command has ended: the ends of both streams.
    pub(crate) fn tails(&self, limit: u64) -> (Option<Tail>, Option<Tail>) {
        self.written.close();
        let tail = |log: &Log| {
            log.tail(limit).inspect_err(|error| log::warn!("cannot read the output of a task: {error}")).ok()
        };
        (tail(&self.written.stdout), tail(&self.written.stderr))
    }

    /// The command has ended: whoever follows the streams gets what is there now and no more. Returns what is to be said
    /// about that: where the disk is full, the command may have tried to write more. Whether it did, only the command knows.
    pub(crate) fn close(&self) -> Option<String> {
        self.written.close();
        let full = fstatvfs(&self.written.stdout.file).is_ok_and(|disk| disk.f_bavail == 0);
        full.then(|| "the disk of the work dir is full, some of its output may be missing".to_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.written.close();
        self.outputs.in_hand().remove(&self.start);
        self.outputs.ended.send(self.start).ok(); // without a keeper all is kept
    }
}

/// Gives a folder another name, the first that is free.
fn set_aside(path: &Path) -> io::Result<()> {
    for number in 1..1000 {
        let aside = PathBuf::from(format!("{}.{number}", path.display()));
        match fs::symlink_metadata(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(path, aside),
            _ => {}
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const TASK: TaskName = TaskName::from_number(1);

    fn outputs(dir: &tempfile::TempDir) -> Arc<Outputs> {
        Arc::new(Outputs::new(dir.path(), std::sync::mpsc::channel().0))
    }

    fn path(fence: i64, stream: Stream) -> OutputPath {
        OutputPath { task: TASK, fence, stream }
    }

    fn text(log: &Log) -> String {
        let mut bytes = [0; 100];
        let count = log.read(&mut bytes, 0, log.end()).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_tail_is_the_end_with_the_length_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&outputs(&dir), TASK, 9).unwrap();
        folder.streams().unwrap().0.write_all(b"hello world").unwrap();
        fs::remove_dir_all(dir.path().join("task-0000000001.9")).unwrap();
        let (stdout, stderr) = folder.tails(5);
        assert_eq!(stdout, Some(Tail { length: 11, bytes: b"world".to_vec() }));
        assert_eq!(stderr, Some(Tail { length: 0, bytes: Vec::new() }));
    }

    #[test]
    fn a_tail_is_no_longer_than_a_status_whatever_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&outputs(&dir), TASK, 9).unwrap();
        folder.streams().unwrap().0.set_len(10_000_000_000).unwrap();
        let tail = folder.tails(u64::MAX).0.unwrap();
        assert_eq!((tail.length, tail.bytes.len()), (10_000_000_000, MAX_DATA));
    }

    #[test]
    fn what_is_being_made_is_never_taken_for_what_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(&dir);
        for fence in 0..300 {
            std::thread::scope(|scope| {
                let found = scope.spawn(|| {
                    loop {
                        if let Some(log) = outputs.find(&path(fence, Stream::Stdout)) {
                            return log;
                        }
                    }
                });
                let folder = Folder::create(&outputs, TASK, fence).unwrap();
                let found = found.join().unwrap();
                assert_eq!(found.end(), None, "the command of start {fence} has not ended");
                drop(folder);
            });
        }
    }

    #[test]
    fn what_is_written_after_the_end_belongs_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(&dir);
        let folder = Folder::create(&outputs, TASK, 9).unwrap();
        let log = outputs.find(&path(9, Stream::Stdout)).unwrap();
        let mut stdout = folder.streams().unwrap().0;
        stdout.write_all(b"abc").unwrap();
        assert_eq!((log.end(), text(&log).as_str()), (None, "abc"));
        folder.close();
        stdout.write_all(b"def").unwrap();
        assert_eq!((log.end(), text(&log).as_str()), (Some(3), "abc"));
        assert_eq!(folder.tails(10).0.unwrap().bytes, b"abc");
        drop(folder);
        assert_eq!(
            outputs.find(&path(9, Stream::Stdout)).unwrap().end(),
            Some(6),
            "from the work dir: all that is there"
        );
        assert!(outputs.find(&path(8, Stream::Stdout)).is_none());
    }

    #[test]
    fn only_files_without_another_name_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(&dir);
        drop(Folder::create(&outputs, TASK, 9).unwrap());
        let folder = dir.path().join("task-0000000001.9");
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
        fs::remove_file(&stdout).unwrap();
        std::os::unix::fs::symlink(&secret, &stdout).unwrap();
        assert!(outputs.find(&path(9, Stream::Stdout)).is_none());
        fs::remove_file(&stderr).unwrap();
        fs::hard_link(&secret, &stderr).unwrap();
        assert!(outputs.find(&path(9, Stream::Stderr)).is_none());
        fs::remove_file(&stdout).unwrap();
        rustix::fs::mkfifoat(CWD, &stdout, Mode::from(0o600)).unwrap();
        assert!(outputs.find(&path(9, Stream::Stdout)).is_none(), "and nobody waits for a writer");
        let other = dir.path().join("other");
        fs::rename(&folder, &other).unwrap();
        fs::write(other.join("stdin"), "").unwrap();
        std::os::unix::fs::symlink(&other, &folder).unwrap();
        assert!(outputs.find(&path(9, Stream::Stdout)).is_none());
    }

    #[test]
    fn a_folder_that_is_there_already_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(&dir);
        for text in ["one", "two", "three"] {
            let folder = Folder::create(&outputs, TASK, 9).unwrap();
            folder.streams().unwrap().0.write_all(text.as_bytes()).unwrap();
        }
        let stdout = |name: &str| fs::read_to_string(dir.path().join(name).join("stdout")).unwrap();
        assert_eq!(stdout("task-0000000001.9"), "three");
        assert_eq!((stdout("task-0000000001.9.1"), stdout("task-0000000001.9.2")), ("one".into(), "two".into()));
    }
}
