//! What the commands print, as values: with `--json` these are the objects, else text is made of them.
//! Pure.
//!
//! The names of the fields are stable. A field that is not known is left out, except where its type says `null`. Times
//! are milliseconds since 1970: `submitted_ms` by ZooKeeper's clock, `start_ms` and `end_ms` by the worker's.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use zk_master::state::{Crew, State, state};
use znode_paths::{AttemptKind, Bytes, Instance, Outcome, Status, Stream, Tail, TaskMeta, TaskName, WorkerName};

use crate::look::{Masters, TaskDetails, TaskSeen};
use crate::why::Cause;

/// `submit --json`.
#[derive(Debug, Serialize)]
pub struct Submitted {
    /// The task's name.
    pub task: TaskName,
}

/// `cancel --json`, one object a line.
#[derive(Debug, Serialize)]
pub struct CancelLine {
    /// The task's name.
    pub task: TaskName,
    /// How it has ended already; left out where it was asked to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// `retry --json`, one object a line.
#[derive(Debug, Serialize)]
pub struct RetryLine {
    /// The new task's name.
    pub task: TaskName,
    /// The finished task whose command and options it has.
    pub retries: TaskName,
}

/// `rm --json`, one object a line.
#[derive(Debug, Serialize)]
pub struct RemoveLine {
    /// The task's name.
    pub task: TaskName,
}

/// `drain --json` and `undrain --json`.
#[derive(Debug, Serialize)]
pub struct DrainLine {
    /// The worker's name.
    pub worker: WorkerName,
    /// Whether it is out of service.
    pub drain: bool,
}

/// A piece of what a task writes: `logs --json` and `run --json`, an object a line, as it comes.
#[derive(Debug, Serialize)]
pub struct Chunk<'a> {
    /// The task's name.
    pub task: TaskName,
    /// Which attempt wrote it, from 1; nothing where the assignment was made by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Who ran it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<&'a WorkerName>,
    /// `stdout` or `stderr`.
    #[serde(serialize_with = "stream")]
    pub stream: Stream,
    /// Where in that stream the bytes begin.
    pub offset: u64,
    /// The bytes: `text`, or `base64` where they are none. A character may be cut in two by the end of a piece.
    #[serde(flatten)]
    pub bytes: Bytes,
}

impl TaskCounts {
    /// Each state with its number, in the order of a task's life; what was written by hand is there only if it occurs.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, usize)> + use<> {
        let all = [
            ("pending", self.pending),
            ("assigned", self.assigned),
            ("running", self.running),
            ("done", self.done),
            ("failed", self.failed),
            ("timeout", self.timeout),
            ("cancelled", self.cancelled),
            ("lost", self.lost),
            ("other", self.other),
        ];
        all.into_iter().filter(|(word, count)| *word != "other" || *count > 0)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn stream<S: serde::Serializer>(stream: &Stream, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(stream.as_str())
}

/// A task that has ended: `batch --json` and `each --json`, one object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndedLine {
    /// The line of the input that the command was on, from 1; not of `each`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The task's name.
    pub task: TaskName,
    /// As in `list --json`.
    pub state: String,
    /// The shell command.
    pub command: String,
    /// Who ran it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Which attempt that was, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The code with which the command exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it ended so, where the code does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the command started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// The end of its standard output, as in `show --json`; not of `batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Tail>,
    /// The end of its standard error, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
}

impl EndedLine {
    pub(crate) fn new(task: TaskName, command: &str, status: &Status) -> Self {
        let meta = status.meta.clone().unwrap_or_default();
        EndedLine {
            line: None,
            task,
            state: status.outcome.word().to_owned(),
            command: command.to_owned(),
            worker: meta.worker,
            attempt: meta.attempt,
            exit_code: meta.exit_code,
            signal: meta.signal,
            reason: meta.reason,
            start_ms: meta.start_ms,
            end_ms: meta.end_ms,
            stdout: meta.stdout,
            stderr: meta.stderr,
        }
    }

    pub(crate) fn of_line(self, number: u64) -> Self {
        EndedLine { line: Some(number), ..self }
    }
}

/// A task: `list --json` and `wait --json`, one object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskLine {
    /// The task's name.
    pub task: TaskName,
    /// `pending`, `assigned`, `running`, `done`, `failed`, `timeout`, `cancelled`, `lost`, or the word that somebody wrote
    /// by hand.
    pub state: String,
    /// The shell command; what is not UTF-8 in it is replaced.
    pub command: String,
    /// What the user calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who has it or ran it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Which attempt that is, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The code with which the command exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it ended so, where the code does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was submitted.
    pub submitted_ms: i64,
    /// When the command started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
}

/// Everything known of a task: `show --json`, and the last line of `run --json`. Its options are those that it was submitted with; one made
/// by hand has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskDetail {
    /// As in `list --json`.
    #[serde(flatten)]
    pub line: TaskLine,
    /// `--key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `--timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// `--retries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// `--backoff`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// `--priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// `--max-attempts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// `--no-requeue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_requeue: Option<bool>,
    /// `--on`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<WorkerName>,
    /// `--require`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, String>,
    /// `--after`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<TaskName>,
    /// `--env`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `--cwd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whether somebody asked for its cancellation.
    pub cancel: bool,
    /// The attempts that ended without a status.
    pub attempts: Vec<AttemptLine>,
    /// The end of its standard output: `length` is that of the whole, the last bytes are `text` or `base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Tail>,
    /// The end of its standard error, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
}

/// An attempt that ended without a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptLine {
    /// Its number, from 1.
    pub attempt: u32,
    /// `lost` or `failed`; `null` when the record cannot be read.
    pub state: Option<&'static str>,
    /// Who had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Which life of that worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The code with which the command exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it counts as ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When that was recorded, by ZooKeeper's clock.
    pub recorded_ms: i64,
}

/// Why a task is in its state: `why --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The task's name.
    pub task: TaskName,
    /// As in `list --json`.
    pub state: String,
    /// The cause in a word.
    pub cause: &'static str,
    /// The cause in a sentence, for people.
    pub why: String,
}

/// Something that is wrong with the tree: `doctor --json`, one object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingLine {
    /// What, in a word.
    pub class: &'static str,
    /// Where.
    pub path: String,
    /// It breaks the protocol; what does not is only said.
    pub violation: bool,
    /// What it means, for people.
    pub meaning: &'static str,
    /// What `--fix` does about it, or why it cannot.
    pub repair: String,
    /// It is not there any more.
    pub repaired: bool,
}

/// A worker: `workers --json`, one object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerLine {
    /// Its name.
    pub worker: WorkerName,
    /// Its `host:port`, as it was written.
    pub address: String,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// How many it has.
    pub running: usize,
    /// What `--require` looks at.
    pub labels: BTreeMap<String, String>,
    /// Which life of its process this is; nothing for one registered by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// It was taken out of service.
    pub drain: bool,
    /// It was asked to stop.
    pub stopping: bool,
}

/// The cluster: `status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// What `/master` holds; `null` without one.
    pub master: Option<String>,
    /// The addresses of the masters that stand by.
    pub standby: Vec<String>,
    /// How many workers are registered.
    pub workers: usize,
    /// How many tasks there are in each state.
    pub tasks: TaskCounts,
}

/// How many tasks there are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TaskCounts {
    /// Nobody has them.
    pub pending: usize,
    /// They are meant for a worker that is not there.
    pub assigned: usize,
    /// A worker has them.
    pub running: usize,
    /// They exited with 0.
    pub done: usize,
    /// They did not.
    pub failed: usize,
    /// Their time limit passed.
    pub timeout: usize,
    /// Somebody asked them to stop.
    pub cancelled: usize,
    /// No attempt was left after their workers were lost.
    pub lost: usize,
    /// They ended with a word that somebody wrote by hand; left out when there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub other: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl TaskLine {
    pub(crate) fn new(seen: &TaskSeen, crew: &Crew) -> Self {
        let holder = crew.holder(seen.name, seen.czxid);
        let state = state(seen.status.as_ref().map(|status| &status.outcome), holder);
        let holder = holder.filter(|_| seen.status.is_none());
        let meta = seen.status.as_ref().and_then(|status| status.meta.clone()).unwrap_or_default();
        TaskLine {
            task: seen.name,
            state: state.word().to_owned(),
            command: seen.task.command.clone(),
            name: seen.task.meta.as_ref().and_then(|meta| meta.name.clone()),
            worker: meta.worker.or_else(|| holder.map(|holder| holder.worker.clone())),
            attempt: meta.attempt.or_else(|| holder.and_then(|holder| holder.attempt)),
            exit_code: meta.exit_code,
            signal: meta.signal,
            reason: meta.reason,
            submitted_ms: seen.submitted_ms,
            start_ms: meta.start_ms,
            end_ms: meta.end_ms,
        }
    }
}

impl TaskDetail {
    pub(crate) fn new(details: &TaskDetails, crew: &Crew) -> Self {
        let options = details.task.task.meta.as_ref();
        let status = details.task.status.as_ref().and_then(|status| status.meta.as_ref());
        let attempts = details.attempts.iter().map(|(number, (attempt, recorded_ms))| {
            let meta = attempt.meta.clone().unwrap_or_default();
            AttemptLine {
                attempt: *number,
                state: attempt.kind.map(|kind| match kind {
                    AttemptKind::Lost => "lost",
                    AttemptKind::Failed => "failed",
                }),
                worker: meta.worker,
                instance: meta.instance,
                exit_code: meta.exit_code,
                signal: meta.signal,
                reason: meta.reason,
                recorded_ms: *recorded_ms,
            }
        });
        let TaskMeta { require, after, env, on, cwd, .. } =
            options.cloned().unwrap_or_else(|| TaskMeta::new(String::new()));
        TaskDetail {
            line: TaskLine::new(&details.task, crew),
            key: options.and_then(|meta| meta.key.clone()),
            timeout_ms: options.and_then(|meta| meta.timeout_ms),
            retries: options.map(|meta| meta.retries),
            backoff_ms: options.map(|meta| meta.backoff_ms),
            priority: options.map(|meta| meta.priority),
            max_attempts: options.map(|meta| meta.max_attempts),
            no_requeue: options.map(|meta| meta.no_requeue),
            on,
            require,
            after,
            env,
            cwd,
            cancel: details.cancel,
            attempts: attempts.collect(),
            stdout: status.and_then(|meta| meta.stdout.clone()),
            stderr: status.and_then(|meta| meta.stderr.clone()),
        }
    }
}

impl Explanation {
    pub(crate) fn new(task: TaskName, cause: &Cause) -> Self {
        Explanation { task, state: cause.state().to_owned(), cause: cause.word(), why: cause.to_string() }
    }
}

/// The workers that are there, by name.
pub(crate) fn workers(crew: &Crew) -> Vec<WorkerLine> {
    let running = crew.running();
    let line = |(name, worker): (&WorkerName, &znode_paths::Worker)| WorkerLine {
        worker: name.clone(),
        address: worker.address.clone(),
        slots: worker.slots(),
        running: running.get(name).copied().unwrap_or_default(),
        labels: worker.meta.as_ref().map(|meta| meta.labels.clone()).unwrap_or_default(),
        instance: worker.instance(),
        drain: crew.drained.contains(name),
        stopping: worker.meta.as_ref().is_some_and(|meta| meta.stopping),
    };
    crew.workers.iter().map(line).collect()
}

/// The cluster, from its masters, its workers, and how each task ended, if it did.
pub(crate) fn cluster(masters: Masters, crew: &Crew, outcomes: &[(TaskName, i64, Option<Outcome>)]) -> ClusterStatus {
    let mut tasks = TaskCounts::default();
    for (name, czxid, outcome) in outcomes {
        let count = match state(outcome.as_ref(), crew.holder(*name, *czxid)) {
            State::Pending => &mut tasks.pending,
            State::Assigned => &mut tasks.assigned,
            State::Running => &mut tasks.running,
            State::Ended(Outcome::Done) => &mut tasks.done,
            State::Ended(Outcome::Failed) => &mut tasks.failed,
            State::Ended(Outcome::Timeout) => &mut tasks.timeout,
            State::Ended(Outcome::Cancelled) => &mut tasks.cancelled,
            State::Ended(Outcome::Lost) => &mut tasks.lost,
            State::Ended(Outcome::Other(_)) => &mut tasks.other,
        };
        *count += 1;
    }
    ClusterStatus { master: masters.primary, standby: masters.standby, workers: crew.workers.len(), tasks }
}

/// Those in one of these states; all when none is named.
pub(crate) fn in_states(lines: Vec<TaskLine>, states: &[String]) -> Vec<TaskLine> {
    let wanted: BTreeSet<&str> = states.iter().map(String::as_str).collect();
    lines.into_iter().filter(|line| wanted.is_empty() || wanted.contains(&line.state[..])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::{Assignment, Attempt, AttemptMeta, Status, Task, Worker, WorkerMeta};

    fn seen(task: Task, status: Option<&str>) -> TaskSeen {
        let status = status.map(|data| Status::decode(data.as_bytes()));
        TaskSeen { name: TaskName::from_number(0), czxid: 9, submitted_ms: 1000, task, status }
    }

    fn details(task: TaskSeen) -> TaskDetails {
        TaskDetails { task, cancel: false, attempts: BTreeMap::new() }
    }

    #[track_caller]
    fn check_json(object: &impl Serialize, expected: &str) {
        assert_eq!(serde_json::to_string(object).unwrap(), expected);
    }

    #[test]
    fn a_task_made_by_hand_has_few_fields() {
        let line = TaskLine::new(&seen(Task::plain("cmd"), None), &Crew::default());
        check_json(&line, r#"{"task":"task-0000000000","state":"pending","command":"cmd","submitted_ms":1000}"#);
        let line = TaskLine::new(&seen(Task::plain("cmd"), Some("done")), &Crew::default());
        check_json(&line, r#"{"task":"task-0000000000","state":"done","command":"cmd","submitted_ms":1000}"#);
    }

    #[test]
    fn a_task_that_ended_says_how_whoever_else_has_it() {
        let meta = TaskMeta { name: Some("n".into()), ..TaskMeta::new("id".into()) };
        let status = "failed\n{\"zk\":1,\"exit_code\":3,\"worker\":\"w\",\"attempt\":2,\"start_ms\":5,\"end_ms\":6,\
                      \"stdout\":{\"length\":9,\"text\":\"x\\n\"}}";
        let task = Task { command: "false".into(), meta: Some(meta) };
        let other: WorkerName = "other".parse().unwrap();
        let crew = Crew {
            assigned: BTreeMap::from([(TaskName::from_number(0), vec![(other, Assignment::default())])]),
            ..Crew::default()
        };
        let detail = TaskDetail::new(&details(seen(task, Some(status))), &crew);
        check_json(
            &detail,
            r#"{"task":"task-0000000000","state":"failed","command":"false","name":"n","worker":"w","attempt":2,"exit_code":3,"submitted_ms":1000,"start_ms":5,"end_ms":6,"retries":0,"backoff_ms":0,"priority":0,"max_attempts":3,"no_requeue":false,"cancel":false,"attempts":[],"stdout":{"length":9,"text":"x\n"}}"#,
        );
    }

    #[test]
    fn an_assignment_that_is_still_there_says_nothing_of_a_task_that_ended() {
        let assigned = vec![("w".parse().unwrap(), Assignment::default())];
        let crew = Crew { assigned: BTreeMap::from([(TaskName::from_number(0), assigned)]), ..Crew::default() };
        assert_eq!(TaskLine::new(&seen(Task::plain("x"), None), &crew).worker, "w".parse().ok());
        assert_eq!(TaskLine::new(&seen(Task::plain("x"), Some("done")), &crew).worker, None);
    }

    #[test]
    fn attempts_say_who_and_why() {
        let mut all = details(seen(Task::plain("cmd"), None));
        let meta = AttemptMeta { worker: Some("w".parse().unwrap()), reason: "gone".into(), ..AttemptMeta::default() };
        all.attempts = BTreeMap::from([(1, (Attempt::lost(meta), 7)), (2, (Attempt::decode(b"?"), 8))]);
        all.cancel = true;
        check_json(
            &TaskDetail::new(&all, &Crew::default()),
            r#"{"task":"task-0000000000","state":"pending","command":"cmd","submitted_ms":1000,"cancel":true,"attempts":[{"attempt":1,"state":"lost","worker":"w","reason":"gone","recorded_ms":7},{"attempt":2,"state":null,"recorded_ms":8}]}"#,
        );
    }

    #[test]
    fn the_cluster_is_one_line() {
        let masters = Masters { primary: Some("m1:2223".into()), ours: true, standby: vec!["m2:2223".into()] };
        let outcomes = ["done", "done", "erledigt"].map(|word| Some(Outcome::of(word)));
        let outcomes: Vec<_> = outcomes.into_iter().chain([None]).map(|o| (TaskName::from_number(0), 1, o)).collect();
        check_json(
            &cluster(masters, &Crew::default(), &outcomes),
            r#"{"master":"m1:2223","standby":["m2:2223"],"workers":0,"tasks":{"pending":1,"assigned":0,"running":0,"done":2,"failed":0,"timeout":0,"cancelled":0,"lost":0,"other":1}}"#,
        );
        let none = cluster(Masters { primary: None, ours: false, standby: Vec::new() }, &Crew::default(), &[]);
        check_json(
            &none,
            r#"{"master":null,"standby":[],"workers":0,"tasks":{"pending":0,"assigned":0,"running":0,"done":0,"failed":0,"timeout":0,"cancelled":0,"lost":0}}"#,
        );
    }

    #[test]
    fn workers_by_hand_have_one_slot() {
        let meta = WorkerMeta { stopping: true, ..WorkerMeta::new(Instance::from_random(255), 4) };
        let daemon = Worker { address: "w:2224".into(), meta: Some(meta) };
        let by_hand = Worker::decode(b"h:2224").unwrap();
        let (w, h): (WorkerName, WorkerName) = ("w".parse().unwrap(), "h".parse().unwrap());
        let crew = Crew {
            workers: BTreeMap::from([(w, daemon), (h.clone(), by_hand)]),
            drained: BTreeSet::from([h]),
            ..Crew::default()
        };
        let lines = workers(&crew);
        check_json(
            &lines[0],
            r#"{"worker":"h","address":"h:2224","slots":1,"running":0,"labels":{},"drain":true,"stopping":false}"#,
        );
        check_json(
            &lines[1],
            r#"{"worker":"w","address":"w:2224","slots":4,"running":0,"labels":{},"instance":"00000000000000ff","drain":false,"stopping":true}"#,
        );
    }

    #[test]
    fn without_a_state_all_are_listed() {
        let line = |status| TaskLine::new(&seen(Task::plain("x"), status), &Crew::default());
        let lines = vec![line(None), line(Some("done")), line(Some("failed"))];
        assert_eq!(in_states(lines.clone(), &[]), lines);
        assert_eq!(in_states(lines.clone(), &["failed".into(), "pending".into()]), [line(None), line(Some("failed"))]);
    }
}
