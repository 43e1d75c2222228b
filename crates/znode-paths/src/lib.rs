//! The tree of znodes that `zk-master`, `zk-worker` and `zk-client` share: who is called what, what lies where, and
//! what the data of each znode says. Pure: no I/O, no clock, no randomness.
//!
//! | znode | kind | line 1 of its data | made by |
//! |---|---|---|---|
//! | `/master` | ephemeral | `host:port` of the primary | the master that wins |
//! | `/workers`, `/tasks`, `/assign` | persistent | empty | the primary, on taking over |
//! | `/workers/<worker>` | ephemeral | `host:port` | the worker |
//! | `/assign/<worker>` | persistent | empty | the worker |
//! | `/assign/<worker>/<task>` | persistent | empty | the primary |
//! | `/tasks/<task>` | sequential | the shell command | the client |
//! | `/tasks/<task>/status` | persistent | `done`, `failed`, `timeout`, `cancelled` or `lost` | the worker, or the primary |
//! | `/tasks/<task>/cancel` | persistent | anything | whoever wants the task cancelled |
//! | `/tasks/<task>/attempt-<n>` | persistent | `lost` or `failed` | the primary or the worker |
//! | `/epoch` | persistent | the fence of the latest primary | the primary |
//! | `/keys/<key>` | persistent | the submit id of all who use the key | the client |
//! | `/live/<instance>-<n>` | ephemeral | `host:port` | every daemon, one for each session |
//!
//! ```
//! use znode_paths::{paths, TaskName, WorkerName};
//!
//! let worker: WorkerName = "worker1.example.com".parse().unwrap();
//! let task = TaskName::from_number(0);
//! assert_eq!(paths::worker(&worker), "/workers/worker1.example.com");
//! assert_eq!(paths::assignment(&worker, &task), "/assign/worker1.example.com/task-0000000000");
//! assert_eq!(paths::status(&task), "/tasks/task-0000000000/status");
//! ```
//!
//! A znode's data is its *head*, which is what somebody with `zkCli.sh` would write there, and optionally one last line
//! of metadata: a JSON object with the key `"zk"`. Readers ignore fields that they do not know and accept data without
//! metadata.
//!
//! ```
//! use znode_paths::{Outcome, Status, Task};
//!
//! assert_eq!(Task::decode(b"uname -a").unwrap(), Task::plain("uname -a"));
//! assert_eq!(Status::plain(Outcome::Done).encode(), b"done");
//! let status = Status::decode(b"failed\n{\"zk\":1,\"exit_code\":3,\"later\":true}");
//! assert_eq!(status.meta.unwrap().exit_code, Some(3));
//! ```

mod documents;
mod names;
mod output;
pub mod paths;
mod signature;

pub use documents::{
    Assignment, AssignmentMeta, Attempt, AttemptKind, AttemptMeta, Bytes, DecodeError, Drain, Format, Key, Live,
    LiveMeta, MAX_DATA, Outcome, Role, Since, Status, StatusMeta, Tail, Task, TaskMeta, Worker, WorkerMeta,
    decode_epoch,
};
pub use names::{Address, Instance, LiveName, NameError, TaskName, WorkerName};
pub use output::{OutputPath, Stream};
pub use signature::{KeyError, RequestId, TaskKeys, Unsigned};
