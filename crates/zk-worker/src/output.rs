//! Where a command's output goes: two files in the work dir, never a pipe, so that a command is never blocked by us and
//! no output fills our memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use znode_paths::{Tail, TaskName};

/// The folder of one start of a task: `<work dir>/<task>.<fence>`, with `stdout`, `stderr`, `command` if that is long, and
/// `files`, where it runs. Others cannot look into it.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) files: PathBuf,
    stdout: File,
    stderr: File,
}

impl Folder {
    /// Makes the folder. The fence makes its name unique: every start has one of its own.
    pub(crate) fn create(work_dir: &Path, task: TaskName, fence: i64) -> io::Result<Self> {
        let path = work_dir.join(format!("{task}.{fence}"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let files = path.join("files");
        fs::DirBuilder::new().recursive(true).create(&files)?;
        let open = |name| OpenOptions::new().read(true).append(true).create(true).open(path.join(name));
        let (stdout, stderr) = (open("stdout")?, open("stderr")?);
        Ok(Folder { path, files, stdout, stderr })
    }

    /// A file for a command that is too long for an argument.
    pub(crate) fn write_command(&self, command: &str) -> io::Result<PathBuf> {
        let path = self.path.join("command");
        fs::write(&path, command)?;
        Ok(path)
    }

    /// What the command writes to.
    pub(crate) fn streams(&self) -> io::Result<(File, File)> {
        Ok((self.stdout.try_clone()?, self.stderr.try_clone()?))
    }

    /// The ends of both streams. They are read through the descriptors: the command may have deleted the files.
    pub(crate) fn tails(&mut self, limit: u64) -> (Option<Tail>, Option<Tail>) {
        (tail(&mut self.stdout, limit), tail(&mut self.stderr, limit))
    }
}

fn tail(file: &mut File, limit: u64) -> Option<Tail> {
    let mut read = || -> io::Result<Tail> {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Tail { length, bytes })
    };
    read().inspect_err(|error| log::warn!("cannot read the output of a task: {error}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_tail_is_the_end_with_the_length_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::create(dir.path(), TaskName::from_number(1), 9).unwrap();
        folder.streams().unwrap().0.write_all(b"hello world").unwrap();
        fs::remove_dir_all(dir.path().join("task-0000000001.9")).unwrap();
        let (stdout, stderr) = folder.tails(5);
        assert_eq!(stdout, Some(Tail { length: 11, bytes: b"world".to_vec() }));
        assert_eq!(stderr, Some(Tail { length: 0, bytes: Vec::new() }));
    }
}
