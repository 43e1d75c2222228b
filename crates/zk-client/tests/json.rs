//! `docs/json.md` says what `--json` prints. Every type is built here field by field, with all that it can hold and with as
//! little as possible, so that a field that is added, renamed, left out or of another type fails one of these tests.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};
use zk_client::report::{
    AttemptLine, CancelLine, Chunk, ClusterStatus, DrainLine, EndedLine, Explanation, FindingLine, RemoveLine,
    RetryLine, Submitted, TaskCounts, TaskDetail, TaskLine, WorkerLine,
};
use znode_paths::{Bytes, Instance, Stream, Tail, TaskName, WorkerName};

const DOCUMENT: &str = include_str!("../../../docs/json.md");

/// The rows of the table below a heading: field, type, and whether it is always there.
fn documented(heading: &str) -> Vec<(String, String, bool)> {
    let begin = format!("\n## {heading}\n");
    let section = DOCUMENT.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?}")).1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        let [field, kind, always, meaning, ..] = cells[..] else { panic!("{line}") };
        assert!(!meaning.is_empty(), "{line}");
        Some((field.trim_end_matches('`').to_owned(), kind.to_owned(), always == "yes"))
    });
    rows.collect()
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value).unwrap() {
        Value::Object(fields) => fields,
        other => panic!("{other} is no object"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `full` are objects that together have all fields, `least` is one that has no field that may be left out.
#[track_caller]
fn check(headings: &[&str], full: &[Map<String, Value>], least: &Map<String, Value>) {
    let rows: Vec<_> = headings.iter().flat_map(|heading| documented(heading)).collect();
    let documented: BTreeSet<&str> = rows.iter().map(|(field, ..)| field.as_str()).collect();
    let printed: BTreeSet<&str> = full.iter().chain([least]).flat_map(Map::keys).map(String::as_str).collect();
    assert_eq!(printed, documented, "{headings:?}: printed, and documented");
    let always: BTreeSet<&str> = rows.iter().filter(|(.., always)| *always).map(|(field, ..)| field.as_str()).collect();
    assert_eq!(least.keys().map(String::as_str).collect::<BTreeSet<_>>(), always, "{headings:?}: always there");
    for (field, value) in full.iter().chain([least]).flatten() {
        let documented = rows.iter().find(|(name, ..)| name == field).map(|(_, kind, _)| kind).unwrap();
        assert!(
            documented.split(" or ").any(|one| one == kind(value)),
            "{headings:?}: {field} is {documented}: {value}"
        );
    }
}

fn task() -> TaskName {
    TaskName::from_number(7)
}

fn worker() -> WorkerName {
    "w".parse().unwrap()
}

fn instance() -> Option<Instance> {
    Some(Instance::from_random(1))
}

fn task_line() -> TaskLine {
    TaskLine {
        task: task(),
        state: "failed".into(),
        command: "x".into(),
        name: Some("n".into()),
        worker: Some(worker()),
        attempt: Some(1),
        exit_code: Some(1),
        signal: Some(9),
        reason: Some("r".into()),
        submitted_ms: 1,
        start_ms: Some(2),
        end_ms: Some(3),
    }
}

fn least_line() -> TaskLine {
    TaskLine {
        name: None,
        worker: None,
        attempt: None,
        exit_code: None,
        signal: None,
        reason: None,
        start_ms: None,
        end_ms: None,
        ..task_line()
    }
}

fn tail(bytes: &[u8]) -> Tail {
    Tail { length: 9, bytes: bytes.to_vec() }
}

#[test]
fn a_task() {
    check(&["Task"], &[object(&task_line())], &object(&least_line()));
}

#[test]
fn a_task_in_detail() {
    let strings = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let full = TaskDetail {
        line: task_line(),
        key: Some("k".into()),
        timeout_ms: Some(1),
        retries: Some(1),
        backoff_ms: Some(1),
        priority: Some(1),
        max_attempts: Some(1),
        no_requeue: Some(true),
        on: Some(worker()),
        require: strings.clone(),
        after: vec![task()],
        env: strings,
        cwd: Some("/".into()),
        cancel: true,
        attempts: Vec::new(),
        stdout: Some(tail(b"x")),
        stderr: Some(tail(b"x")),
    };
    let least = TaskDetail {
        line: least_line(),
        key: None,
        timeout_ms: None,
        retries: None,
        backoff_ms: None,
        priority: None,
        max_attempts: None,
        no_requeue: None,
        on: None,
        require: BTreeMap::new(),
        after: Vec::new(),
        env: BTreeMap::new(),
        cwd: None,
        cancel: false,
        attempts: Vec::new(),
        stdout: None,
        stderr: None,
    };
    check(&["Task", "Detail"], &[object(&full)], &object(&least));
}

#[test]
fn an_attempt() {
    let full = AttemptLine {
        attempt: 1,
        state: Some("lost"),
        worker: Some(worker()),
        instance: instance(),
        exit_code: Some(1),
        signal: Some(9),
        reason: "r".into(),
        recorded_ms: 1,
    };
    let least = AttemptLine {
        attempt: 1,
        state: None,
        worker: None,
        instance: None,
        exit_code: None,
        signal: None,
        reason: String::new(),
        recorded_ms: 1,
    };
    check(&["Attempt"], &[object(&full)], &object(&least));
}

/// The least there is: neither `text` nor `base64`, of which one is always there.
fn without_bytes(mut fields: Map<String, Value>) -> Map<String, Value> {
    assert!(fields.remove("text").or_else(|| fields.remove("base64")).is_some());
    fields
}

#[test]
fn output() {
    let tails = [object(&tail(b"x")), object(&tail(b"\xff"))];
    check(&["Tail"], &tails, &without_bytes(tails[0].clone()));
    let worker = worker();
    let chunk = |bytes: &[u8], attempt, worker| {
        object(&Chunk {
            task: task(),
            attempt,
            worker,
            stream: Stream::Stdout,
            offset: 1,
            bytes: Bytes(bytes.to_vec()),
        })
    };
    let chunks = [chunk(b"x", Some(1), Some(&worker)), chunk(b"\xff", Some(1), Some(&worker))];
    check(&["Chunk"], &chunks, &without_bytes(chunk(b"x", None, None)));
}

#[test]
fn what_has_ended() {
    let tail = || Some(Tail { length: 1, bytes: b"x".to_vec() });
    let full = EndedLine {
        line: Some(1),
        task: task(),
        state: "failed".to_owned(),
        command: "x".to_owned(),
        worker: Some(worker()),
        attempt: Some(1),
        exit_code: Some(1),
        signal: Some(9),
        reason: Some("no".to_owned()),
        start_ms: Some(1),
        end_ms: Some(2),
        stdout: tail(),
        stderr: tail(),
    };
    let least = EndedLine {
        line: None,
        worker: None,
        attempt: None,
        exit_code: None,
        signal: None,
        reason: None,
        start_ms: None,
        end_ms: None,
        stdout: None,
        stderr: None,
        ..full.clone()
    };
    check(&["Ended"], &[object(&full)], &object(&least));
}

#[test]
fn answers_of_commands_that_change_something() {
    let submitted = object(&Submitted { task: task() });
    check(&["Submitted"], &[], &submitted);
    let cancelled = |state: Option<&str>| object(&CancelLine { task: task(), state: state.map(str::to_owned) });
    check(&["Cancelled"], &[cancelled(Some("done"))], &cancelled(None));
    check(&["Retried"], &[], &object(&RetryLine { task: task(), retries: task() }));
    check(&["Removed"], &[], &object(&RemoveLine { task: task() }));
    check(&["Drained"], &[], &object(&DrainLine { worker: worker(), drain: true }));
}

#[test]
fn a_worker() {
    let line = |instance| WorkerLine {
        worker: worker(),
        address: "w:1".into(),
        slots: 1,
        running: 0,
        labels: BTreeMap::new(),
        instance,
        drain: false,
        stopping: false,
    };
    check(&["Worker"], &[object(&line(instance()))], &object(&line(None)));
}

#[test]
fn the_cluster() {
    let tasks = TaskCounts {
        pending: 0,
        assigned: 0,
        running: 0,
        done: 0,
        failed: 0,
        timeout: 0,
        cancelled: 0,
        lost: 0,
        other: 0,
    };
    check(&["Counts"], &[object(&TaskCounts { other: 1, ..tasks })], &object(&tasks));
    let status = |master| ClusterStatus { master, standby: Vec::new(), workers: 0, tasks };
    check(&["Status"], &[object(&status(Some("m:1".into())))], &object(&status(None)));
}

#[test]
fn what_explains_and_what_is_found() {
    let explanation = Explanation { task: task(), state: "pending".into(), cause: "busy", why: "w".into() };
    check(&["Explanation"], &[], &object(&explanation));
    let finding = FindingLine {
        class: "acl_open",
        path: "/tasks".into(),
        violation: true,
        meaning: "m",
        repair: "r".into(),
        repaired: false,
    };
    check(&["Finding"], &[], &object(&finding));
}

/// The words in a list of the document, such as `Causes: ...`.
fn list(label: &str) -> BTreeSet<&'static str> {
    let list = DOCUMENT.split_once(&format!("\n{label}: ")).expect("there is such a list").1;
    let list = list.split('.').next().unwrap_or_default();
    list.split(',').map(|word| word.trim().trim_matches('`')).collect()
}

#[test]
fn the_words_are_those_that_are_documented() {
    assert_eq!(list("Classes"), zk_client::doctor::Class::ALL.iter().map(|class| class.word()).collect());
    assert_eq!(list("Causes"), zk_client::why::WORDS.into_iter().collect());
}

/// Whatever prints JSON is in the table of commands.
#[test]
fn every_command_is_documented() {
    use clap::CommandFactory as _;
    for command in zk_client::Args::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        if !["help", "top", "completions"].contains(&name) {
            assert!(DOCUMENT.contains(&format!("`{name}`")), "{name}");
        }
    }
}
