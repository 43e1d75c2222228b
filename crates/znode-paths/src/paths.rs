//! What lies where. Every path of the tree is made here, relative to the chroot.

use crate::{LiveName, TaskName, WorkerName};

/// Held by the primary master: ephemeral, its `host:port`.
pub const MASTER: &str = "/master";
/// The parent of the registered workers.
pub const WORKERS: &str = "/workers";
/// The parent of the tasks. Nothing else goes below it: any other child would advance the sequence.
pub const TASKS: &str = "/tasks";
/// What a client creates, sequentially, to submit a task.
pub const NEW_TASK: &str = "/tasks/task-";
/// The parent of the assignments, by worker.
pub const ASSIGN: &str = "/assign";
/// The fence of the latest primary.
pub const EPOCH: &str = "/epoch";
/// The parent of the nodes by which a daemon's life is judged.
pub const LIVE: &str = "/live";

/// The parent of the idempotency keys.
pub const KEYS: &str = "/keys";

/// The parent of what submitters ask for, who may not write below tasks. It is there where they have an identity of their own.
pub const REQUESTS: &str = "/requests";
/// Below these submitters make znodes.
pub const OF_SUBMITTERS: [&str; 3] = [TASKS, KEYS, REQUESTS];

/// `/requests/<task>`: to cancel that task.
pub fn request(task: &TaskName) -> String {
    format!("{REQUESTS}/{task}")
}

/// `/keys/<key>`: any text, its bytes outside of `A-Z a-z 0-9 - _ . :` written as `%` and two hexadecimal digits.
///
/// ```
/// use znode_paths::paths::key;
/// assert_eq!(key("nightly:2026-11-25"), "/keys/nightly:2026-11-25");
/// assert_eq!(key("a/b c%"), "/keys/a%2Fb%20c%25");
/// assert_eq!(key(".."), "/keys/%2E%2E");
/// ```
pub fn key(key: &str) -> String {
    // ZooKeeper takes neither of these as a name.
    let dots = matches!(key, "." | "..");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte) || (byte == b'.' && !dots);
    key.bytes().fold(format!("{KEYS}/"), |mut path, byte| {
        match plain(byte) {
            true => path.push(byte.into()),
            false => path.push_str(&format!("%{byte:02X}")),
        }
        path
    })
}

/// `/workers/<worker>`.
pub fn worker(worker: &WorkerName) -> String {
    format!("{WORKERS}/{worker}")
}

/// `/assign/<worker>`.
pub fn assignments(worker: &WorkerName) -> String {
    format!("{ASSIGN}/{worker}")
}

/// `/assign/<worker>/<task>`.
pub fn assignment(worker: &WorkerName, task: &TaskName) -> String {
    format!("{ASSIGN}/{worker}/{task}")
}

/// `/tasks/<task>`.
pub fn task(task: &TaskName) -> String {
    format!("{TASKS}/{task}")
}

/// `/tasks/<task>/status`.
pub fn status(task: &TaskName) -> String {
    format!("{TASKS}/{task}/{STATUS}")
}

/// `/tasks/<task>/cancel`.
pub fn cancel(task: &TaskName) -> String {
    format!("{TASKS}/{task}/{CANCEL}")
}

/// `/tasks/<task>/attempt-<number>`.
pub fn attempt(task: &TaskName, number: u32) -> String {
    format!("{TASKS}/{task}/{ATTEMPT}{number}")
}

/// `/live/<instance>-<n>`.
pub fn live(name: &LiveName) -> String {
    format!("{LIVE}/{name}")
}

const STATUS: &str = "status";
const CANCEL: &str = "cancel";
const ATTEMPT: &str = "attempt-";

/// A child of `/tasks/<task>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskChild {
    /// The final word.
    Status,
    /// Somebody wants the task cancelled.
    Cancel,
    /// The record of an attempt that ended without a status.
    Attempt(u32),
}

/// What a child of `/tasks/<task>` is; `None` for one that is not of this protocol and to be ignored.
///
/// ```
/// use znode_paths::paths::{task_child, TaskChild};
/// assert_eq!(task_child("status"), Some(TaskChild::Status));
/// assert_eq!(task_child("attempt-2"), Some(TaskChild::Attempt(2)));
/// assert_eq!(task_child("attempt-02"), None);
/// ```
pub fn task_child(name: &str) -> Option<TaskChild> {
    match name {
        STATUS => Some(TaskChild::Status),
        CANCEL => Some(TaskChild::Cancel),
        _ => {
            let number: u32 = name.strip_prefix(ATTEMPT)?.parse().ok()?;
            (name == format!("{ATTEMPT}{number}")).then_some(TaskChild::Attempt(number))
        }
    }
}

/// The znode that a path of this tree is about, for whoever was notified of a change there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `/master`.
    Master,
    /// `/epoch`.
    Epoch,
    /// `/workers`.
    Workers,
    /// `/workers/<worker>`.
    Worker(WorkerName),
    /// `/tasks`.
    Tasks,
    /// `/tasks/<task>`.
    Task(TaskName),
    /// `/tasks/<task>/...`.
    TaskChild(TaskName, TaskChild),
    /// `/assign`.
    Assign,
    /// `/assign/<worker>`.
    Assignments(WorkerName),
    /// `/assign/<worker>/<task>`.
    Assignment(WorkerName, TaskName),
    /// `/requests`.
    Requests,
    /// `/live`.
    Live,
    /// `/live/<instance>-<n>`.
    LiveNode(LiveName),
}

impl Place {
    /// Where a path points to; `None` outside this protocol.
    ///
    /// ```
    /// use znode_paths::{paths::Place, TaskName};
    /// assert_eq!(Place::of("/tasks/task-0000000001"), Some(Place::Task(TaskName::from_number(1))));
    /// assert_eq!(Place::of("/zookeeper/quota"), None);
    /// ```
    pub fn of(path: &str) -> Option<Place> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let place = match (parts.next()?, parts.next(), parts.next()) {
            ("master", None, _) => Place::Master,
            ("epoch", None, _) => Place::Epoch,
            ("workers", None, _) => Place::Workers,
            ("workers", Some(worker), None) => Place::Worker(worker.parse().ok()?),
            ("tasks", None, _) => Place::Tasks,
            ("tasks", Some(task), None) => Place::Task(task.parse().ok()?),
            ("tasks", Some(task), Some(child)) => Place::TaskChild(task.parse().ok()?, task_child(child)?),
            ("assign", None, _) => Place::Assign,
            ("assign", Some(worker), None) => Place::Assignments(worker.parse().ok()?),
            ("assign", Some(worker), Some(task)) => Place::Assignment(worker.parse().ok()?, task.parse().ok()?),
            ("requests", None, _) => Place::Requests,
            ("live", None, _) => Place::Live,
            ("live", Some(name), None) => Place::LiveNode(name.parse().ok()?),
            _ => return None,
        };
        parts.next().is_none().then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_path_leads_back_to_its_place() {
        let (name, number) = ("w-1".parse::<WorkerName>().unwrap(), TaskName::from_number(7));
        let node: LiveName = "0123456789abcdef-1".parse().unwrap();
        for (path, place) in [
            (MASTER.to_owned(), Place::Master),
            (EPOCH.to_owned(), Place::Epoch),
            (WORKERS.to_owned(), Place::Workers),
            (worker(&name), Place::Worker(name.clone())),
            (TASKS.to_owned(), Place::Tasks),
            (task(&number), Place::Task(number)),
            (status(&number), Place::TaskChild(number, TaskChild::Status)),
            (cancel(&number), Place::TaskChild(number, TaskChild::Cancel)),
            (attempt(&number, 3), Place::TaskChild(number, TaskChild::Attempt(3))),
            (ASSIGN.to_owned(), Place::Assign),
            (assignments(&name), Place::Assignments(name.clone())),
            (assignment(&name, &number), Place::Assignment(name.clone(), number)),
            (REQUESTS.to_owned(), Place::Requests),
            (LIVE.to_owned(), Place::Live),
            (live(&node), Place::LiveNode(node)),
        ] {
            assert_eq!(Place::of(&path), Some(place), "{path}");
        }
        assert_eq!(Place::of("/tasks/task-0000000007/status/more"), None);
        assert_eq!(Place::of(""), None);
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".{0,60}") {
            Place::of(&path);
            task_child(&path);
        }
    }
}
