//! Commands that fail and are tried again.

mod common;

use common::{Bench, Pair, SECOND, kill_inner, well};
use e2e::{stays, wait_for};
use znode_paths::{Attempt, AttemptKind, AttemptMeta, TaskName, paths};

#[track_caller]
fn record(bench: &Bench, task: TaskName, number: u32) -> (Option<AttemptKind>, AttemptMeta) {
    let data = bench.tree.data(&paths::attempt(&task, number)).unwrap_or_else(|| panic!("{}", bench.tree.picture()));
    let attempt = Attempt::decode(&data);
    (attempt.kind, attempt.meta.expect("our workers say more than a word"))
}

#[test]
fn a_command_that_fails_is_tried_again_and_every_failure_is_recorded_with_its_code_and_what_it_said() {
    let pair = Pair::start("retries");
    let command = format!(
        "{}; echo said $ZK_TASK_ATTEMPT >&2; [ $ZK_TASK_ATTEMPT = 2 ] && kill -9 $$; [ $ZK_TASK_ATTEMPT -ge 4 ] || exit 7",
        pair.note("runs", "$ZK_TASK_ATTEMPT $ZK_TASK_FENCE")
    );
    let task = pair.tree.submit_with(&command, |meta| meta.retries = 5);
    let status = pair.tree.expect(task, "done").meta.unwrap();
    assert_eq!((status.attempt, status.exit_code), (Some(4), Some(0)));
    let runs = pair.lines("runs");
    assert_eq!(runs.iter().map(|run| &run[..1]).collect::<String>(), "1234");
    for number in 1..=3 {
        let (kind, meta) = record(&pair, task, number);
        assert_eq!(kind, Some(AttemptKind::Failed));
        let (code, signal) = if number == 2 { (None, Some(9)) } else { (Some(7), None) };
        assert_eq!((meta.exit_code, meta.signal), (code, signal));
        assert_eq!(meta.worker.unwrap().as_str(), "w");
        assert_eq!(String::from_utf8(meta.stderr.unwrap().bytes).unwrap(), format!("said {number}\n"));
        assert!(meta.start_ms.unwrap() <= meta.end_ms.unwrap());
        assert_eq!(runs[number as usize - 1], format!("{number} {}", meta.fence.unwrap()));
    }
    assert_eq!(pair.tree.children(&paths::task(&task)), ["attempt-1", "attempt-2", "attempt-3", "status"]);
}

#[test]
fn the_result_of_the_last_attempt_is_the_status() {
    let pair = Pair::start("last");
    let command = format!("{}; exit $((ZK_TASK_ATTEMPT + 10))", pair.note("runs", "$ZK_TASK_ATTEMPT"));
    let meta = pair.run_with(&command, "failed", |meta| meta.retries = 2);
    assert_eq!((meta.attempt, meta.exit_code), (Some(3), Some(13)));
    assert_eq!(pair.lines("runs"), ["1", "2", "3"]);
    // What may start once does not start again, whatever else it asks for.
    let meta = pair.run_with("exit 4", "failed", |meta| (meta.retries, meta.no_requeue) = (2, true));
    assert_eq!((meta.attempt, meta.exit_code), (Some(1), Some(4)));
}

#[test]
fn much_output_does_not_fill_the_records() {
    let pair = Pair::start("much");
    let task = pair.tree.submit_with("seq 100000 >&2; [ $ZK_TASK_ATTEMPT = 2 ]", |meta| meta.retries = 1);
    pair.tree.expect(task, "done");
    let stderr = record(&pair, task, 1).1.stderr.unwrap();
    assert_eq!((stderr.length, stderr.bytes.len()), (588_895, 4096));
    assert!(stderr.bytes.ends_with(b"\n100000\n"));
}

#[test]
fn the_pause_before_the_next_attempt_doubles_and_can_be_cancelled() {
    let pair = Pair::start("backoff");
    let command = format!("{}; exit 1", pair.note("runs", "$ZK_TASK_ATTEMPT"));
    let task = pair.tree.submit_with(&command, |meta| (meta.retries, meta.backoff_ms) = (9, 400));
    pair.wait_lines("runs", 4);
    let ctime = |number| pair.tree.stat(&paths::attempt(&task, number)).unwrap().ctime_ms;
    wait_for("the fourth record", || pair.tree.stat(&paths::attempt(&task, 4)).ok_or_else(|| pair.tree.picture()));
    // By ZooKeeper's clock: between two records lie the pause and a start.
    let pauses = [ctime(2) - ctime(1), ctime(3) - ctime(2), ctime(4) - ctime(3)];
    println!("backoff of 400 ms: {pauses:?} ms between the records");
    for (pause, least) in pauses.into_iter().zip([400, 800, 1600]) {
        assert!(pause >= least, "{pauses:?}");
    }
    // Others are served meanwhile.
    assert_eq!(pair.output("echo next"), "next\n");
    pair.tree.create(&paths::cancel(&task), "");
    let reason = pair.tree.expect(task, "cancelled").meta.unwrap().reason.unwrap();
    assert!(reason.contains("before it started again"), "{reason}");
    assert_eq!(pair.lines("runs").len(), 4);
}

#[test]
fn what_could_not_be_started_is_a_failure_that_is_tried_again() {
    let pair = Pair::start("unstarted");
    let cwd = pair.path("later").display().to_string();
    let task = pair.tree.submit_with("true", |meta| {
        (meta.retries, meta.backoff_ms, meta.cwd) = (100, 200, Some(cwd.clone()));
    });
    wait_for("a record", || pair.tree.stat(&paths::attempt(&task, 1)).ok_or_else(|| pair.tree.picture()));
    let (kind, meta) = record(&pair, task, 1);
    assert_eq!((kind, meta.exit_code), (Some(AttemptKind::Failed), Some(126)));
    assert!(meta.reason.contains(&cwd), "{}", meta.reason);
    std::fs::create_dir(&cwd).unwrap();
    pair.tree.expect(task, "done");
}

#[test]
fn losses_do_not_count_as_failures_nor_failures_as_losses() {
    let pair = Pair::with("losses", &["--session-timeout", "20s"]);
    let command = format!(
        "{}; case $ZK_TASK_ATTEMPT in 1|3) exit 1;; 2) {}; sleep 1000;; esac",
        pair.note("runs", "$ZK_TASK_ATTEMPT"),
        pair.note("second", "runs"),
    );
    // One loss would be one too many if failures counted, and two failures if losses did.
    let task = pair.tree.submit_with(&command, |meta| (meta.retries, meta.max_attempts) = (2, 2));
    pair.wait_lines("second", 1);
    kill_inner(&pair.worker);
    let meta = pair.tree.expect(task, "done").meta.unwrap();
    assert_eq!(meta.attempt, Some(4));
    assert_eq!(pair.lines("runs"), ["1", "2", "3", "4"]);
    let kinds = [1, 2, 3].map(|number| record(&pair, task, number).0.unwrap());
    assert_eq!(kinds, [AttemptKind::Failed, AttemptKind::Lost, AttemptKind::Failed]);
}

#[test]
fn a_worker_that_dies_between_the_record_and_the_next_step_costs_no_attempt() {
    let bench = Bench::shared("between");
    let tree = &bench.tree;
    let worker = bench.worker("w").start();
    tree.make(&["/tasks", "/workers", "/assign"]);
    tree.wait_worker("w");
    let command = bench.note("runs", "$ZK_TASK_ATTEMPT");
    let task = tree.submit_with(&command, |meta| (meta.retries, meta.max_attempts) = (1, 1));
    // What a worker leaves behind that has recorded a failure and is gone.
    let czxid = tree.stat(&paths::task(&task)).unwrap().czxid;
    let gone = znode_paths::Instance::from_random(1);
    let meta = znode_paths::AssignmentMeta::new(Some(gone), 1, 1, czxid);
    tree.make(&["/assign/gone"]);
    tree.create(&format!("/assign/gone/{task}"), znode_paths::Assignment { meta: Some(meta) }.encode());
    tree.create(&paths::attempt(&task, 1), Attempt::failed(AttemptMeta::default()).encode());
    stays("nobody to go on", SECOND / 3, || tree.status(task).map_or(Ok(()), Err));
    let master = bench.master("m:2223").start();
    assert_eq!(tree.expect(task, "done").meta.unwrap().attempt, Some(2));
    assert_eq!(bench.lines("runs"), ["2"]);
    assert_eq!(
        tree.text(&paths::attempt(&task, 1)),
        Some("failed\n{\"zk\":1,\"reason\":\"\"}".to_owned()),
        "untouched"
    );
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}
