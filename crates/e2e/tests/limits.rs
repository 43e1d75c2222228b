//! Time limits, and what wins when a task is stopped for several reasons.

mod common;

use std::time::Instant;

use common::{Bench, Pair, SECOND, lives, well};
use e2e::{Server, Signal, stays};
use znode_paths::paths;

/// A time limit that has passed before anybody looks.
const SHORT: Option<u64> = Some(300);

#[test]
fn a_task_that_runs_for_too_long_is_stopped_with_all_its_processes_and_ends_as_timeout() {
    let pair = Pair::with("limit", &["--grace", "500ms", "--slots", "4"]);
    let began = Instant::now();
    // However it takes the signal, and whatever it says after that.
    for command in [
        "echo out; echo err >&2; sleep 1000".to_owned(),
        format!("trap '{}; exit 0' TERM; echo out; echo err >&2; sleep 1000 & wait", pair.note("goodbye", "bye")),
        "trap '' TERM; echo out; echo err >&2; while :; do sleep 0.1; done".to_owned(),
        "echo out; echo err >&2; sleep 1000 & sleep 1001 & echo $! > child; wait".to_owned(),
    ] {
        let meta = pair.run_with(&command, "timeout", |meta| meta.timeout_ms = SHORT);
        assert!(meta.reason.as_ref().is_some_and(|reason| reason.contains("time limit")), "{meta:?}");
        assert!(meta.end_ms.unwrap() - meta.start_ms.unwrap() >= SHORT.unwrap(), "{meta:?}");
        assert_eq!((meta.stdout.unwrap().bytes, meta.stderr.unwrap().bytes), (b"out\n".into(), b"err\n".into()));
        assert!(meta.exit_code.is_some() || meta.signal.is_some(), "how it ended is told as well");
    }
    println!("four time limits of 300 ms took {} ms", began.elapsed().as_millis());
    assert_eq!(pair.lines("goodbye"), ["bye"]);
}

#[test]
fn what_ends_in_time_is_not_touched_and_a_time_limit_counts_from_the_start() {
    let pair = Pair::with("intime", &["--slots", "1"]);
    let blocker = pair.tree.submit(&format!("{}; {}", pair.note("runs", "blocker"), pair.gate("go")));
    pair.wait_lines("runs", 1);
    // It waits for longer than its limit.
    let waits = pair.tree.submit_with("exit 3", |meta| meta.timeout_ms = Some(1000));
    stays("waiting", SECOND * 3 / 2, || pair.tree.status(waits).map_or(Ok(()), Err));
    pair.open("go");
    pair.tree.expect(blocker, "done");
    assert_eq!(pair.tree.expect(waits, "failed").meta.unwrap().exit_code, Some(3));
    pair.run_with("true", "done", |meta| meta.timeout_ms = Some(u64::MAX));
}

#[test]
fn a_time_limit_is_final_and_no_failure_that_is_tried_again() {
    let pair = Pair::start("final");
    let command = format!("{}; sleep 1000", pair.note("runs", "$ZK_TASK_ATTEMPT"));
    pair.run_with(&command, "timeout", |meta| (meta.timeout_ms, meta.retries) = (SHORT, 5));
    assert_eq!(pair.lines("runs"), ["1"]);
}

#[test]
fn cancelled_wins_over_the_time_limit_also_when_it_comes_later() {
    let pair = Pair::with("both", &["--grace", "20s"]);
    let leave = pair.path("leave").display().to_string();
    let command = format!("trap '{}' TERM; until [ -e {leave} ]; do sleep 0.02; done", pair.note("terms", "term"));
    let task = pair.tree.submit_with(&command, |meta| meta.timeout_ms = SHORT);
    // It takes its time.
    pair.wait_lines("terms", 1);
    pair.tree.create(&paths::cancel(&task), "");
    let seen = pair.tree.submit("true");
    pair.tree.expect(seen, "done");
    pair.open("leave");
    pair.tree.expect(task, "cancelled");
    assert_eq!(pair.lines("terms").len(), 1, "it is asked once");
}

#[test]
fn a_task_that_ends_in_the_same_instant_as_it_is_cancelled_has_one_status_and_the_worker_goes_on() {
    let pair = Pair::with("instant", &["--slots", "8"]);
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let task = pair.tree.submit_with(&format!("sleep 0.0{}", i % 10), |meta| meta.retries = i % 2);
            pair.tree.create(&paths::cancel(&task), "");
            task
        })
        .collect();
    for task in tasks {
        let status = pair.tree.wait_status(task);
        assert!(["done", "cancelled"].contains(&status.outcome.word()), "{status:?}");
        assert!(pair.tree.children(&paths::task(&task)).iter().all(|child| !child.starts_with("attempt")));
    }
}

#[test]
fn a_worker_that_is_asked_to_stop_keeps_the_time_limit_of_what_it_finishes() {
    let bench = Bench::shared("leaving");
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let command = format!("{}; sleep 1000 & echo $! > {}; wait", bench.note("runs", "x"), bench.path("pid").display());
    let task = bench.tree.submit_with(&command, |meta| meta.timeout_ms = Some(1500));
    bench.wait_lines("runs", 1);
    worker.signal(Signal::TERM);
    bench.tree.expect(task, "timeout");
    assert_eq!(worker.wait_exit(10 * SECOND).code(), Some(0));
    assert!(!lives(&bench.lines("pid")[0]));
    well(&[&master]);
}

#[test]
fn a_time_limit_is_kept_while_zookeeper_is_away_and_reported_when_it_is_back() {
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("away"));
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let command = format!("{}; sleep 1000", bench.note("runs", "x"));
    let task = bench.tree.submit_with(&command, |meta| meta.timeout_ms = Some(1500));
    bench.wait_lines("runs", 1);
    server.kill();
    worker.wait_stderr(&format!("ended task={task}"));
    server.restart();
    bench.tree.expect(task, "timeout");
    assert_eq!(bench.lines("runs").len(), 1);
    well(&[&master, &worker]);
}
