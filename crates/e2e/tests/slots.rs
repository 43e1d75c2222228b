//! How many run at once, what waits at a worker for a slot, and how it gets away from there.

mod common;

use std::time::Instant;

use common::{Bench, Pair, SECOND, never_panicked, well};
use e2e::{Daemon, Signal, stays, wait_for, wait_within};
use znode_paths::{Assignment, AssignmentMeta, TaskName, Worker, paths};

/// Waits until so many tasks are on a worker's desk.
#[track_caller]
fn wait_desk(bench: &Bench, worker: &str, count: usize) -> Vec<TaskName> {
    wait_for(&format!("{count} assignments to {worker}"), || {
        let there = bench.tree.children(&format!("/assign/{worker}"));
        let tasks = there.iter().map(|name| name.parse().expect("only tasks are assigned"));
        if there.len() == count { Ok(tasks.collect()) } else { Err(format!("{there:?}")) }
    })
}

#[track_caller]
fn state(bench: &Bench, task: TaskName) -> String {
    let show = bench.client().args(["list", "--json"]).start();
    assert_eq!(show.wait_exit(20 * SECOND).code(), Some(0), "{}", show.stderr());
    let name = format!("{{\"task\":\"{task}\",\"state\":\"");
    let stdout = show.stdout();
    let line = stdout.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{stdout}"));
    line.split('"').next().unwrap_or_default().to_owned()
}

#[test]
fn a_task_never_waits_behind_a_long_one_while_another_worker_is_idle() {
    let bench = Bench::shared("idle");
    let master = bench.master("m:2223").start();
    let first = bench.worker("a").args(["--slots", "1"]).start();
    bench.tree.wait_worker("a");
    let long = bench.tree.submit(&format!("{}; {}", bench.note("runs", "long"), bench.gate("go")));
    let short = bench.tree.submit_with(&bench.note("runs", "short"), |_| ());
    wait_desk(&bench, "a", 2);
    bench.wait_lines("runs", 1);
    assert_eq!((state(&bench, long), state(&bench, short)), ("running".to_owned(), "assigned".to_owned()));
    let came = Instant::now();
    let second = bench.worker("b").start();
    let meta = bench.tree.expect(short, "done").meta.unwrap();
    println!("idle: what waited was done {} ms after the start of another worker", came.elapsed().as_millis());
    assert_eq!((meta.worker.unwrap().as_str(), meta.attempt), ("b", Some(1)), "it did not count as an attempt");
    assert_eq!(bench.tree.children(&paths::task(&short)), ["status"]);
    bench.open("go");
    bench.tree.expect(long, "done");
    assert_eq!(bench.lines("runs"), ["long", "short"]);
    bench.tree.wait_nothing_assigned();
    well(&[&master, &first, &second]);
}

#[test]
fn what_waits_behind_long_tasks_goes_back_to_the_queue_after_a_second() {
    let pair = Pair::with("long", &["--slots", "2"]);
    let long: Vec<_> = (0..2)
        .map(|i| pair.tree.submit(&format!("{}; {}", pair.note("runs", &i.to_string()), pair.gate("go"))))
        .collect();
    let waits: Vec<_> = (0..4).map(|_| pair.tree.submit_with(&pair.note("runs", "x"), |_| ())).collect();
    // As many as it has slots wait there, the others in the queue.
    wait_desk(&pair, "w", 4);
    pair.wait_lines("runs", 2);
    let began = Instant::now();
    wait_for("what waits to be taken back", || {
        let desk = pair.tree.children("/assign/w");
        if desk == long.iter().map(ToString::to_string).collect::<Vec<_>>() { Ok(()) } else { Err(format!("{desk:?}")) }
    });
    println!("long: what waited was taken back after {} ms", began.elapsed().as_millis());
    // Nothing is assigned and taken back again and again.
    let zxids = || {
        long.iter()
            .map(|task| pair.tree.stat(&format!("/assign/w/{task}")).map(|stat| stat.version))
            .collect::<Vec<_>>()
    };
    let (before, at) = (zxids(), pair.tree.stat("/assign/w").unwrap());
    stays("the desk", 3 * SECOND, || {
        let now = pair.tree.stat("/assign/w").unwrap();
        if now == at && zxids() == before { Ok(()) } else { Err(format!("{at:?} {now:?}")) }
    });
    pair.open("go");
    assert_eq!(pair.tree.wait_all(&waits), 4);
    for task in waits {
        assert_eq!(pair.tree.children(&paths::task(&task)), ["status"], "no attempt was lost");
    }
}

#[test]
fn of_what_waits_at_a_worker_the_highest_priority_is_started_first() {
    const EPOCH: i64 = 7;
    let bench = Bench::shared("order");
    let tree = &bench.tree;
    tree.make(&["/workers", "/assign", "/tasks"]);
    tree.create(paths::EPOCH, EPOCH.to_string());
    let worker = bench.worker("w").args(["--slots", "1"]).start();
    tree.wait_worker("w");
    let instance = Worker::decode(&tree.data("/workers/w").unwrap()).unwrap().instance();
    // The test is the primary.
    let assign = |task: TaskName, priority| {
        let czxid = tree.stat(&paths::task(&task)).unwrap().czxid;
        let meta = AssignmentMeta { priority, ..AssignmentMeta::new(instance, EPOCH, 1, czxid) };
        let path = paths::assignment(&"w".parse().unwrap(), &task);
        tree.create(&path, Assignment { meta: Some(meta.clone()) }.encode());
        (path, meta)
    };
    let long = tree.submit_with(&format!("{}; {}", bench.note("runs", "long"), bench.gate("go")), |_| ());
    assign(long, 0);
    bench.wait_lines("runs", 1);
    let tasks = [("low", 0), ("high", 5), ("last", 9)].map(|(name, priority)| {
        let task = tree.submit_with(&bench.note("runs", name), |meta| meta.priority = priority);
        (task, assign(task, priority))
    });
    // When it has answered this, it has heard of the others.
    let (_, (path, meta)) = &tasks[2];
    let recalled = Assignment { meta: Some(AssignmentMeta { recalled: true, ..meta.clone() }) };
    tree.ask(|session| session.write(path, &recalled.encode(), None)).unwrap();
    wait_for("the answer", || match Assignment::decode(&tree.data(path).unwrap()).meta {
        Some(meta) if meta.returned => Ok(()),
        meta => Err(format!("{meta:?}")),
    });
    bench.open("go");
    for task in [long, tasks[0].0, tasks[1].0] {
        tree.expect(task, "done");
    }
    assert_eq!(bench.lines("runs"), ["long", "high", "low"]);
    well(&[&worker]);
}

#[test]
fn what_waits_behind_a_long_task_is_cancelled_at_once_and_what_runs_is_stopped() {
    let pair = Pair::with("cancel", &["--slots", "1"]);
    let long = pair.tree.submit_with(&pair.tick("ticks", "never"), |_| ());
    pair.wait_tick("ticks", 1);
    let waits = pair.tree.submit_with(&pair.note("runs", "x"), |_| ());
    wait_desk(&pair, "w", 2);
    for task in [waits, long] {
        pair.tree.create(&paths::cancel(&task), b"");
        pair.tree.expect(task, "cancelled");
    }
    assert!(pair.lines("runs").is_empty(), "it never started");
    pair.tree.wait_nothing_assigned();
}

#[test]
fn a_recall_of_what_runs_is_answered_and_changes_nothing() {
    let pair = Pair::start("late");
    let task = pair.tree.submit_with(&pair.tick("ticks", "go"), |_| ());
    pair.wait_tick("ticks", 1);
    let path = format!("/assign/w/{task}");
    let read = || Assignment::decode(&pair.tree.data(&path).unwrap()).meta.unwrap();
    let mut meta = read();
    meta.recalled = true;
    let data = Assignment { meta: Some(meta.clone()) }.encode();
    pair.tree.ask(|session| session.write(&path, &data, None)).unwrap();
    wait_for("the answer", || if read().started { Ok(()) } else { Err(format!("{:?}", read())) });
    assert!(!read().returned);
    pair.open("go");
    assert_eq!(pair.tree.expect(task, "done").meta.unwrap().attempt, Some(1));
    assert!(pair.lines("ticks").iter().all(|line| line.starts_with("1 ")));
}

#[test]
fn a_worker_that_is_drained_by_a_client_hands_back_what_waits_and_a_restart_changes_nothing() {
    let bench = Bench::shared("drain");
    let master = bench.master("m:2223").start();
    let mut worker = bench.worker("a").start();
    bench.tree.wait_worker("a");
    let gate = bench.gate("go");
    let running: Vec<_> =
        (0..2).map(|_| bench.tree.submit(&format!("{}; {gate}", bench.note("runs", "long")))).collect();
    let waits: Vec<_> = (0..2).map(|_| bench.tree.submit_with(&bench.note("runs", "short"), |_| ())).collect();
    wait_desk(&bench, "a", 4);
    bench.wait_lines("runs", 2);
    let client = |args: &[&str]| {
        let client = bench.client().args(args).start();
        assert_eq!(client.wait_exit(20 * SECOND).code(), Some(0), "{}", client.stderr());
    };
    client(&["drain", "a"]);
    wait_desk(&bench, "a", 2);
    let other = bench.worker("b").start();
    assert_eq!(bench.tree.wait_all(&waits), 2);
    // What runs is finished; the next life of the worker is out of service like this one.
    worker.signal(Signal::TERM);
    bench.open("go");
    assert_eq!(bench.tree.wait_all(&running), 2);
    assert_eq!(worker.wait_exit(10 * SECOND).code(), Some(0));
    worker = bench.worker("a").start();
    bench.tree.wait_worker("a");
    let only = bench.tree.submit_with(&bench.note("runs", "only"), |meta| meta.on = Some("a".parse().unwrap()));
    stays("out of service", SECOND, || bench.tree.status(only).map_or(Ok(()), Err));
    client(&["undrain", "a"]);
    bench.tree.expect(only, "done");
    assert_eq!(bench.lines("runs").len(), 5);
    bench.tree.wait_nothing_assigned();
    well(&[&master, &worker, &other]);
}

#[test]
fn what_waits_at_a_worker_that_is_stopped_is_done_elsewhere_at_once() {
    let bench = Bench::shared("stopped");
    let master = bench.master("m:2223").start();
    let leaving = bench.worker("a").args(["--slots", "4"]).start();
    bench.tree.wait_worker("a");
    let running = |i| bench.tree.submit(&format!("{}; {}", bench.note("runs", i), bench.gate("go")));
    let running = ["1", "2", "3", "4"].map(running);
    let waits: Vec<_> =
        (0..4).map(|_| bench.tree.submit_with(&bench.note("waited", "x"), |meta| meta.no_requeue = true)).collect();
    wait_desk(&bench, "a", 8);
    bench.wait_lines("runs", 4);
    let other = bench.worker("b").args(["--slots", "1"]).start();
    let asked = Instant::now();
    leaving.signal(Signal::TERM);
    wait_within(3 * SECOND, "what waited", || {
        let done = bench.lines("waited").len();
        if done == 4 { Ok(()) } else { Err(format!("{done} of 4")) }
    });
    println!("stopped: four that waited were done elsewhere after {} ms", asked.elapsed().as_millis());
    assert_eq!(bench.tree.wait_all(&waits), 4);
    bench.open("go");
    assert_eq!(bench.tree.wait_all(&running), 4);
    assert_eq!(leaving.wait_exit(10 * SECOND).code(), Some(0));
    never_panicked(&leaving);
    well(&[&master, &other]);
}

#[test]
fn of_many_short_tasks_each_runs_once_and_no_slot_has_two() {
    let pair = Pair::with("busy", &["--slots", "3"]);
    let log = pair.path("log");
    let command = format!("echo + >> {0}; sleep 0.01; echo - >> {0}", log.display());
    let began = Instant::now();
    let tasks: Vec<_> = (0..150).map(|_| pair.tree.submit(&command)).collect();
    assert_eq!(pair.tree.wait_all(&tasks), 150);
    println!("busy: 150 tasks of 10 ms in three slots took {} ms", began.elapsed().as_millis());
    let lines = pair.lines("log");
    assert_eq!(lines.len(), 300, "each begins once and ends once");
    let (mut now, mut most) = (0, 0);
    for line in lines {
        now += if line == "+" { 1 } else { -1 };
        most = most.max(now);
    }
    // Whether all three are ever in use at once is up to the machine.
    assert!(now == 0 && most <= 3, "{now}, {most}");
}

#[test]
fn a_new_primary_takes_over_what_waits_and_each_runs_once() {
    let bench = Bench::shared("takeover");
    let first = bench.master("m1:1").start();
    let worker = bench.worker("a").args(["--slots", "2"]).start();
    bench.tree.wait_worker("a");
    let long: Vec<_> = (0..2)
        .map(|_| bench.tree.submit_with(&format!("{}; {}", bench.note("runs", "long"), bench.gate("go")), |_| ()))
        .collect();
    let waits: Vec<_> =
        (0..2).map(|_| bench.tree.submit_with(&bench.note("runs", "short"), |meta| meta.no_requeue = true)).collect();
    wait_desk(&bench, "a", 4);
    bench.wait_lines("runs", 2);
    let second: Daemon = bench.master("m2:2").start();
    second.wait_stderr("standing by");
    first.signal(Signal::TERM);
    second.wait_stderr("took over");
    bench.open("go");
    assert_eq!(bench.tree.wait_all(&long) + bench.tree.wait_all(&waits), 4);
    assert_eq!(bench.lines("runs"), ["long", "long", "short", "short"]);
    bench.tree.wait_nothing_assigned();
    well(&[&second, &worker]);
}
