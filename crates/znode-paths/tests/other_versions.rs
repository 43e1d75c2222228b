//! Masters, workers and clients of different versions share a tree. `recorded/3a5e5cb` has what the previous release, built from
//! that commit, wrote into it.

use std::collections::BTreeMap;
use std::fmt::Debug;

use znode_paths::{
    Assignment, AssignmentMeta, Attempt, AttemptMeta, Format, Instance, Live, Outcome, Role, Status, StatusMeta, Tail,
    Task, TaskMeta, TaskName, Worker, WorkerMeta, WorkerName, decode_epoch,
};

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("recorded/3a5e5cb/", $name)).as_slice()
    };
}

fn worker() -> WorkerName {
    "w.old".parse().expect("it is a name")
}

fn instance(text: &str) -> Instance {
    text.parse().expect("it is an instance")
}

/// Today's reader takes it for this, also with what a later release may add; and today's writer writes it with the same
/// bytes, so that the previous release reads what it would have written itself.
#[track_caller]
fn means<T: PartialEq + Debug>(
    recorded: &[u8],
    means: &T,
    decode: impl Fn(&[u8]) -> T,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    assert_eq!(decode(recorded), *means);
    assert_eq!(String::from_utf8_lossy(&encode(means)), String::from_utf8_lossy(recorded));
    let later = String::from_utf8_lossy(recorded).replace("{\"zk\":1,", "{\"zk\":1,\"later\":{\"a\":[1,null]},");
    assert_eq!(decode(later.as_bytes()), *means, "{later}");
}

#[test]
fn tasks() {
    let decode = |data: &[u8]| Task::decode(data).unwrap();
    let meta = TaskMeta {
        name: Some("the first".to_owned()),
        priority: 5,
        max_attempts: 4,
        require: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        cwd: Some("/tmp".to_owned()),
        ..TaskMeta::new("e61ff278b86606858ebd088a13791a17".to_owned())
    };
    let command = "echo out; printf \"\\377\" ; echo err >&2; exit 3".to_owned();
    means(recorded!("task"), &Task { command, meta: Some(meta) }, decode, Task::encode);
    let meta = TaskMeta {
        no_requeue: true,
        on: Some(worker()),
        after: vec![TaskName::from_number(0)],
        ..TaskMeta::new("307603d8e8034ddce6d300d6641b8c02".to_owned())
    };
    let task = Task { command: "echo never".to_owned(), meta: Some(meta) };
    means(recorded!("task-after"), &task, decode, Task::encode);
    means(recorded!("task-plain"), &Task::plain("echo plain"), decode, Task::encode);
}

#[test]
fn what_the_previous_release_could_not_ask_for_it_did_not_ask_for() {
    let meta = Task::decode(recorded!("task-after")).unwrap().meta.unwrap();
    assert_eq!((meta.timeout_ms, meta.retries, meta.stdin, meta.key, meta.removed), (None, 0, None, None, false));
}

#[test]
fn statuses_and_attempts() {
    let meta = StatusMeta {
        exit_code: Some(3),
        worker: Some(worker()),
        attempt: Some(1),
        fence: Some(29),
        start_ms: Some(1_795_622_549_687),
        end_ms: Some(1_795_622_549_689),
        stdout: Some(Tail { length: 5, bytes: b"out\n\xff".to_vec() }),
        stderr: Some(Tail { length: 4, bytes: b"err\n".to_vec() }),
        ..StatusMeta::default()
    };
    let failed = Status { outcome: Outcome::Failed, meta: Some(meta) };
    means(recorded!("status"), &failed, Status::decode, Status::encode);
    let cancelled = Status::because(Outcome::Cancelled, "task-0000000000, which it waited for, is failed");
    means(recorded!("status-after"), &cancelled, Status::decode, Status::encode);
    means(recorded!("status-plain"), &Status::plain(Outcome::Done), Status::decode, Status::encode);
    let meta = AttemptMeta {
        worker: Some(worker()),
        instance: Some(instance("318959764fa4d1d7")),
        reason: "its worker was lost".to_owned(),
        ..AttemptMeta::default()
    };
    means(recorded!("attempt"), &Attempt::lost(meta), Attempt::decode, Attempt::encode);
}

#[test]
fn workers_assignments_and_sessions() {
    let meta = WorkerMeta {
        zk: Format,
        instance: instance("3c7dce0bf6c8d991"),
        slots: 2,
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        version: "0.1.0".to_owned(),
        stopping: false,
    };
    let registered = Worker { address: "w.old:2224".to_owned(), meta: Some(meta) };
    means(recorded!("worker"), &registered, |data| Worker::decode(data).unwrap(), Worker::encode);
    let assignment = Assignment { meta: Some(AssignmentMeta::new(Some(instance("3c7dce0bf6c8d991")), 9, 2, 47)) };
    means(recorded!("assignment"), &assignment, Assignment::decode, Assignment::encode);
    means(recorded!("live-master"), &Live::new("m-old:2223", Role::Master, None), Live::decode, Live::encode);
    means(recorded!("live-worker"), &Live::new("w.old:2224", Role::Worker, Some(worker())), Live::decode, Live::encode);
    assert_eq!(decode_epoch(recorded!("epoch")), Some(9));
}
