//! What can go wrong, by what the user can do about it. The exit codes are in [`crate::exit`].

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use znode_paths::{DecodeError, MAX_DATA, TaskName, Unsigned, WorkerName, paths};

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option cannot be used.
    #[error(transparent)]
    Option(zk_cli::ArgsError),
    /// Stop signals cannot be heard.
    #[error(transparent)]
    Signals(zk_cli::ArgsError),
    /// No worker could run this, or it would be read as something else.
    #[error(transparent)]
    Command(DecodeError),
    /// The file of `--stdin` cannot be read.
    #[error("cannot read {0}: {1}")]
    Stdin(PathBuf, io::Error),
    /// It is too long to be a part of the task.
    #[error("the standard input has more than 512 KiB: put it into a file that the worker can read")]
    StdinTooLong,
    /// ZooKeeper would not take it.
    #[error(
        "the command and its options have {0} bytes, the limit is {MAX_DATA}: put the data into a file and submit its name"
    )]
    TooLong(usize),
    /// No session within the time.
    #[error("ZooKeeper at {zk} was not reached within {} (set where it is with --zk): {why}", text(.within))]
    NotReached {
        /// Where it was looked for.
        zk: String,
        /// For how long.
        within: Duration,
        /// What became of the last attempt.
        why: String,
    },
    /// Somebody has to start a master.
    #[error("no master has set up {} at {zk}, waited {}: start zk-master", paths::TASKS, text(.within))]
    NoMaster {
        /// Where it was looked for.
        zk: String,
        /// For how long.
        within: Duration,
    },
    /// Nothing was submitted.
    #[error(
        "the queue is full: {tasks} tasks are below {}, the limit is {limit} (--max-queue): try later",
        paths::TASKS
    )]
    Full {
        /// How many tasks there are.
        tasks: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The request went out and the answer did not come.
    #[error(
        "no answer could be had within {}, so the task may exist or not, look with `zk-client list`: {why}",
        text(.within)
    )]
    Unknown {
        /// How long it was tried to find out.
        within: Duration,
        /// What prevented it.
        why: String,
    },
    /// The same for a task without a submit id.
    #[error("the answer did not come, so the task may exist or not, and a --plain task cannot be looked for: {0}")]
    UnknownPlain(zk_session::Error),
    /// These were never there, or are there no more.
    #[error("no such task: {}", names(.0))]
    NoTask(Vec<TaskName>),
    /// The key is free again only when that is done.
    #[error("{task}, which has this key, is being removed, and no master has done that within {}: start zk-master", text(.within))]
    BeingRemoved {
        /// The task.
        task: TaskName,
        /// How long it was waited for.
        within: Duration,
    },
    /// What is asked for can only be done with one that has ended.
    #[error("{0} has not ended: wait for it, or stop it with `zk-client cancel {0}`")]
    NotEnded(TaskName),
    /// It would be signed with our key now, whoever wrote it.
    #[error("{0} is not submitted anew with a task key: {1}")]
    Unsigned(TaskName, Unsigned),
    /// It is neither registered nor known from earlier.
    #[error("no such worker: {0}, see `zk-client workers`")]
    NoWorker(WorkerName),
    /// Nobody could run it.
    #[error("no worker is registered that takes tasks, see `zk-client workers`")]
    NoWorkers,
    /// The sequence of `/tasks` is used up, or is not ZooKeeper's.
    #[error("it was submitted as {0:?}, which is not a task's name: no master will look at it")]
    NoTaskName(String),
    /// ZooKeeper answered, and said no.
    #[error(transparent)]
    Request(#[from] zk_session::Error),
    /// The screen needs one.
    #[error("standard input and output are no terminal: zk-client status shows the same once")]
    NoTerminal,
    /// The results cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
    /// The name of a task that was submitted cannot be printed.
    #[error("{0} was submitted, but cannot write to standard output: {1}")]
    Unprinted(TaskName, io::Error),
    /// The user left `run` before anything was submitted.
    #[error("interrupted, nothing was submitted")]
    NotSubmitted,
    /// The user left `run` while this task went on.
    #[error("left, but {0} goes on until it is cancelled; its end: zk-client wait {0}")]
    Left(TaskName),
    /// The user left `batch` or `each` while so many tasks went on.
    #[error("left, but {0} tasks go on until they are cancelled, see zk-client list")]
    LeftSeveral(usize),
    /// The commands of `batch` cannot be read.
    #[error("cannot read {0}: {1}")]
    Input(PathBuf, io::Error),
    /// Options that exclude each other.
    #[error("{0}")]
    Usage(&'static str),
    /// The user left `run` while the request was on its way.
    #[error("left before the answer came, so the task may exist or not: zk-client list")]
    LeftUnnamed,
}

fn text(duration: &Duration) -> humantime::FormattedDuration {
    humantime::format_duration(*duration)
}

fn names(tasks: &[TaskName]) -> String {
    tasks.iter().map(TaskName::to_string).collect::<Vec<_>>().join(", ")
}

/// An error, and what was tried when it came.
#[derive(Debug)]
pub struct Failure {
    tried: String,
    /// Why it failed.
    pub error: Error,
}

impl Error {
    /// The failure of an attempt to do this: a fragment that fits after "cannot".
    pub(crate) fn of(self, tried: impl Into<String>) -> Failure {
        Failure { tried: tried.into(), error: self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.tried, zk_cli::chain(&self.error))
    }
}
