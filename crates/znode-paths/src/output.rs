//! Where a worker serves what an attempt writes, below its address: the contract between it and the client.

use std::fmt;
use std::str::FromStr;

use crate::TaskName;

/// One of the two streams of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// `stdout` or `stderr`.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stream of an attempt, as the path of an HTTP request: `GET /tasks/<task>/<fence>/<stream>?offset=<bytes>[&follow]`.
///
/// The answer is what the stream has from the offset on, any bytes, in chunks. It is complete when the last chunk says so:
/// with `follow` when the attempt has ended, without it at the end of what there is now.
///
/// ```
/// use znode_paths::{OutputPath, Stream, TaskName};
/// let path = OutputPath { task: TaskName::from_number(7), fence: 42, stream: Stream::Stderr };
/// assert_eq!(path.to_string(), "/tasks/task-0000000007/42/stderr");
/// assert_eq!("/tasks/task-0000000007/42/stderr".parse(), Ok(path));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputPath {
    /// Whose.
    pub task: TaskName,
    /// The czxid of the assignment: tells one attempt from every other.
    pub fence: i64,
    /// Which of the two.
    pub stream: Stream,
}

impl fmt::Display for OutputPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/tasks/{}/{}/{}", self.task, self.fence, self.stream)
    }
}

impl FromStr for OutputPath {
    type Err = ();

    /// Only what [`OutputPath`] writes is one: there is nothing in it that could lead anywhere else.
    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split('/').collect();
        let ["", "tasks", task, fence, stream] = parts[..] else { return Err(()) };
        let stream = Stream::BOTH.into_iter().find(|known| known.as_str() == stream).ok_or(())?;
        let path = OutputPath { task: task.parse().map_err(drop)?, fence: fence.parse().map_err(drop)?, stream };
        if path.to_string() == text { Ok(path) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_itself_is_understood() {
        for bad in [
            "",
            "/",
            "/tasks",
            "/tasks/task-0000000001/5",
            "/tasks/task-0000000001/5/",
            "/tasks/task-0000000001/5/stdout/",
            "/tasks/task-0000000001/5/command",
            "/tasks/task-0000000001/5/../5/stdout",
            "/tasks/task-0000000001/5/..",
            "/tasks/task-0000000001/+5/stdout",
            "/tasks/task-0000000001/05/stdout",
            "/tasks/task-0000000001/5%2f..%2f/stdout",
            "/tasks/../5/stdout",
            "/tasks/task-1/5/stdout",
            "/tasks//task-0000000001/5/stdout",
            "//tasks/task-0000000001/5/stdout",
            "/tasks/task-0000000001/99999999999999999999/stdout",
        ] {
            assert_eq!(bad.parse::<OutputPath>(), Err(()), "{bad}");
        }
        assert!("/tasks/task-0000000001/-5/stdout".parse::<OutputPath>().is_ok());
    }
}
