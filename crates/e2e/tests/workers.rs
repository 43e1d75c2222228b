//! Workers that are missing, full, killed, frozen, doubled, asked to stop, or cut off from ZooKeeper.

mod common;

use std::time::{Duration, Instant};

use common::{Bench, SECOND, check_no_overlap, count, inner, kill_inner, never_panicked, well};
use e2e::{Daemon, Server, Signal, stays, wait_for, wait_within};
use rustix::process::kill_process;
use znode_paths::{Attempt, AttemptKind, TaskName, Worker, paths};

/// The record of an attempt.
#[track_caller]
fn attempt(bench: &Bench, task: TaskName, number: u32) -> Attempt {
    let path = paths::attempt(&task, number);
    Attempt::decode(&bench.tree.data(&path).unwrap_or_else(|| panic!("no {path}: {}", bench.tree.picture())))
}

/// The instance that is registered under a name.
fn instance(bench: &Bench, worker: &str) -> Option<znode_paths::Instance> {
    let data = bench.tree.data(&format!("/workers/{worker}"))?;
    Worker::decode(&data).expect("our workers write what can be read").instance()
}

/// A primary that has taken over.
#[track_caller]
fn master(bench: &Bench) -> Daemon {
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    master
}

// --- how many, and when

#[test]
fn without_workers_tasks_wait_and_go_as_soon_as_one_comes() {
    let bench = Bench::shared("none");
    let master = master(&bench);
    let tasks: Vec<_> = (0..3).map(|i| bench.tree.submit(&bench.note("runs", &i.to_string()))).collect();
    stays("waiting", SECOND, || {
        let there = tasks.iter().filter(|task| bench.tree.status(**task).is_some()).count();
        if there == 0 && bench.tree.assigned().is_empty() { Ok(()) } else { Err(bench.tree.picture().to_string()) }
    });
    let came = Instant::now();
    let worker = bench.worker("w").start();
    assert_eq!(bench.tree.wait_all(&tasks), 3);
    println!("three waiting tasks were done {} ms after the start of a worker", came.elapsed().as_millis());
    assert_eq!(bench.lines("runs").len(), 3);
    bench.tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}

#[test]
fn never_more_tasks_run_at_once_than_there_are_slots() {
    let bench = Bench::shared("slots");
    let master = master(&bench);
    let worker = bench.worker("w").args(["--slots", "3"]).start();
    let hand = bench.worker("one").args(["--slots", "1"]).start();
    // Each says itself when it is there: "+" is after its start, "-" before its end.
    let log = bench.path("log");
    let log = log.display();
    let command = format!(
        r#"w=$(pwd | sed 's:.*/work/\([a-z]*\)/.*:\1:'); echo "$w +" >> {log}; sleep 0.1; echo "$w -" >> {log}"#
    );
    // All of them can be in use at once ...
    let gated = format!("{}; {}", bench.note("waiting", "."), bench.gate("go"));
    let tasks: Vec<_> = (0..4).map(|_| bench.tree.submit(&gated)).collect();
    bench.wait_lines("waiting", 4);
    bench.open("go");
    assert_eq!(bench.tree.wait_all(&tasks), 4);
    // ... but never more.
    let tasks: Vec<_> = (0..40).map(|_| bench.tree.submit(&command)).collect();
    assert_eq!(bench.tree.wait_all(&tasks), 40);
    for (name, slots) in [("w", 3), ("one", 1)] {
        let (mut now, mut most) = (0, 0);
        for line in bench.lines("log").iter().filter_map(|line| line.strip_prefix(&format!("{name} "))) {
            now += if line == "+" { 1 } else { -1 };
            most = most.max(now);
        }
        assert!(now == 0 && most <= slots, "{name}: {now}, {most}");
    }
    well(&[&master, &worker, &hand]);
}

// --- lost workers

#[test]
fn what_a_killed_worker_ran_is_recorded_as_lost_and_runs_elsewhere() {
    let bench = Bench::shared("killed");
    let master = master(&bench);
    let first = bench.worker("a").args(["--session-timeout", "2s"]).start();
    bench.tree.wait_worker("a");
    let tasks = [0, 1].map(|i| bench.tree.submit_with(&bench.tick(&format!("ticks{i}"), "go"), |_| ()));
    bench.wait_tick("ticks0", 1);
    bench.wait_tick("ticks1", 1);
    let second = bench.worker("b").start();
    bench.tree.wait_worker("b");
    let killed = Instant::now();
    first.kill();
    bench.wait_tick("ticks0", 2);
    println!("killed: the next attempt runs after {} ms", killed.elapsed().as_millis());
    bench.wait_tick("ticks1", 2);
    bench.open("go");
    for (i, task) in tasks.into_iter().enumerate() {
        let status = bench.tree.expect(task, "done").meta.expect("a task with metadata has a status with metadata");
        assert_eq!((status.attempt, status.worker.unwrap().as_str()), (Some(2), "b"));
        let lost = attempt(&bench, task, 1);
        assert_eq!((lost.kind, lost.meta.unwrap().worker.unwrap().as_str()), (Some(AttemptKind::Lost), "a"));
        check_no_overlap(&bench.lines(&format!("ticks{i}")));
    }
    bench.tree.wait_nothing_assigned();
    assert_eq!(bench.tree.stat("/workers/a"), None);
    well(&[&master, &second]);
}

#[test]
fn when_a_worker_dies_on_a_live_host_all_it_ran_is_dead_and_runs_elsewhere_at_once() {
    let bench = Bench::shared("dies");
    let master = master(&bench);
    let first = bench.worker("a").args(["--session-timeout", "30s"]).start();
    bench.tree.wait_worker("a");
    let before = instance(&bench, "a");
    // Neither the process group nor the session of its parent: only its guard finds this one.
    let task = bench.tree.submit_with(&format!("setsid sh -c '{}' & wait", bench.tick("ticks", "go")), |_| ());
    bench.wait_tick("ticks", 1);
    let second = bench.worker("b").start();
    bench.tree.wait_worker("b");
    let killed = Instant::now();
    kill_inner(&first);
    bench.wait_tick("ticks", 2);
    println!("dies: the next attempt runs after {} ms at a session timeout of 30 s", killed.elapsed().as_millis());
    assert!(killed.elapsed() < 3 * SECOND, "at once");
    wait_for("a to come back", || {
        let now = instance(&bench, "a");
        if now.is_some() && now != before { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
    });
    bench.open("go");
    bench.tree.expect(task, "done");
    assert_eq!(attempt(&bench, task, 1).kind, Some(AttemptKind::Lost));
    check_no_overlap(&bench.lines("ticks"));
    well(&[&master, &first, &second]);
}

#[test]
fn what_a_frozen_worker_ran_is_dead_before_it_runs_elsewhere_and_the_worker_comes_back_as_another_instance() {
    let bench = Bench::shared("frozen");
    let master = master(&bench);
    let first = bench.worker("a").args(["--session-timeout", "2s"]).start();
    bench.tree.wait_worker("a");
    let before = instance(&bench, "a");
    let task = bench.tree.submit_with(&bench.tick("ticks", "go"), |_| ());
    bench.wait_tick("ticks", 1);
    let second = bench.worker("b").start();
    bench.tree.wait_worker("b");
    let frozen = inner(&first);
    kill_process(frozen, Signal::STOP).unwrap();
    bench.wait_tick("ticks", 2);
    kill_process(frozen, Signal::CONT).ok(); // its guard may have killed it
    wait_for("a to come back", || {
        let now = instance(&bench, "a");
        if now.is_some() && now != before { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
    });
    bench.open("go");
    let status = bench.tree.expect(task, "done").meta.unwrap();
    assert_eq!((status.attempt, status.worker.unwrap().as_str()), (Some(2), "b"));
    assert_eq!(attempt(&bench, task, 1).kind, Some(AttemptKind::Lost));
    // It is as good as new.
    let next = bench.tree.submit_with("true", |meta| meta.on = Some("a".parse().unwrap()));
    bench.tree.expect(next, "done");
    bench.tree.wait_nothing_assigned();
    well(&[&master, &first, &second]);
    check_no_overlap(&bench.lines("ticks"));
}

#[test]
fn a_task_cancelled_while_its_worker_is_lost_ends_as_cancelled_and_does_not_start_again() {
    let bench = Bench::shared("cancelled");
    let master = master(&bench);
    let first = bench.worker("a").args(["--session-timeout", "5s"]).start();
    bench.tree.wait_worker("a");
    let task = bench.tree.submit_with(&bench.tick("ticks", "never"), |_| ());
    bench.wait_tick("ticks", 1);
    let second = bench.worker("b").start();
    bench.tree.wait_worker("b");
    first.kill();
    bench.tree.create(&paths::cancel(&task), "");
    assert!(bench.tree.stat("/workers/a").is_some(), "nobody knows yet that it is dead");
    let reason = bench.tree.expect(task, "cancelled").meta.and_then(|meta| meta.reason).unwrap_or_default();
    assert!(reason.contains("its worker a was lost"), "{reason}");
    assert!(bench.lines("ticks").iter().all(|line| line.starts_with("1 ")), "it did not start again");
    bench.tree.wait_nothing_assigned();
    well(&[&master, &second]);
}

#[test]
fn a_task_whose_workers_are_lost_again_and_again_ends_as_lost() {
    let bench = Bench::shared("attempts");
    let master = master(&bench);
    let start = |name| bench.worker(name).args(["--session-timeout", "1s"]).start();
    let mut workers = vec![start("a")];
    let murder = format!("{}; kill -9 $PPID; sleep 60", bench.note("runs", "$ZK_TASK_ATTEMPT"));
    let task = bench.tree.submit_with(&murder, |meta| meta.max_attempts = 2);
    bench.wait_lines("runs", 1);
    workers.push(start("b"));
    bench.wait_lines("runs", 2);
    workers.push(start("c"));
    let status = bench.tree.expect(task, "lost");
    let reason = status.meta.and_then(|meta| meta.reason).unwrap_or_default();
    assert!(reason.contains("attempt 2 of 2"), "{reason}");
    assert_eq!(bench.lines("runs"), ["1", "2"]);
    let next = bench.tree.submit("true");
    bench.tree.expect(next, "done");
    bench.tree.wait_nothing_assigned();
    well(&[&master, &workers[2]]);
}

// --- names

#[test]
fn a_second_worker_under_the_same_name_is_refused_and_the_first_goes_on() {
    let bench = Bench::shared("name");
    let master = master(&bench);
    let first = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let task = bench.tree.submit(&format!("{}; {}", bench.note("runs", "begin"), bench.gate("go")));
    bench.wait_lines("runs", 1);
    let registration = bench.tree.stat("/workers/w").unwrap().czxid;

    let work_dir = bench.path("work2");
    let second = bench.worker("w").args(["--address", "elsewhere:1"]).env("ZK_WORK_DIR", &work_dir).start();
    let status = second.wait_exit(20 * SECOND);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = second.stderr();
    let said: Vec<&str> = log.lines().filter(|line| line.starts_with("zk-worker: ")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("another zk-worker runs under the name w: address w:2224"), "{}", said[0]);
    assert!(said[0].contains("--name"), "it says what to do: {}", said[0]);
    assert_eq!(log.lines().last(), Some(said[0]), "that is the last word");
    // In the same place it is not even started.
    let third = bench.worker("w").start();
    assert_eq!(third.wait_exit(20 * SECOND).code(), Some(1));
    let log = third.stderr();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.starts_with("zk-worker: another zk-worker uses the work dir "), "{log}");

    assert_eq!(bench.tree.stat("/workers/w").unwrap().czxid, registration, "the first was not disturbed");
    bench.open("go");
    bench.tree.expect(task, "done");
    assert_eq!(bench.lines("runs").len(), 1);
    well(&[&master, &first]);
}

#[test]
fn a_worker_started_again_without_its_work_dir_waits_for_its_ghost_and_takes_its_place() {
    let bench = Bench::shared("ghost");
    let master = master(&bench);
    let ghost = bench.worker("w").args(["--session-timeout", "3s"]).start();
    bench.tree.wait_worker("w");
    let before = instance(&bench, "w");
    let task = bench.tree.submit(&bench.tick("ticks", "go"));
    bench.wait_tick("ticks", 1);
    ghost.kill();
    let killed = Instant::now();
    let again = bench.worker("w").env("ZK_WORK_DIR", bench.path("another")).start();
    again.wait_stderr("registered worker=w");
    println!("ghost: registered again after {} ms", killed.elapsed().as_millis());
    assert_ne!(instance(&bench, "w"), before);
    bench.wait_tick("ticks", 2);
    bench.open("go");
    bench.tree.expect(task, "done");
    check_no_overlap(&bench.lines("ticks"));
    assert_eq!(attempt(&bench, task, 1).kind, Some(AttemptKind::Lost));
    well(&[&master, &again]);
}

// --- stop signals

#[test]
fn a_worker_asked_to_stop_finishes_what_runs_and_hands_back_what_has_not_started() {
    let bench = Bench::shared("drain");
    let tree = &bench.tree;
    let master = master(&bench);
    let leaving = bench.worker("a").args(["--slots", "1"]).start();
    tree.wait_worker("a");
    let running = tree.submit(&format!("{}; {}", bench.note("runs", "first"), bench.gate("go")));
    // It has no room for this one, which waits at its desk, for a second at most.
    let waiting = tree.submit(&bench.note("runs", "second"));
    tree.wait_assigned("a", waiting);
    bench.wait_lines("runs", 1);
    leaving.signal(Signal::TERM);
    leaving.wait_stderr(&format!("returned unstarted task={waiting}"));

    let other = bench.worker("b").start();
    tree.wait_worker("b");
    let asked = Instant::now();
    tree.expect(waiting, "done");
    println!("drain: what had not started was done elsewhere after {} ms", asked.elapsed().as_millis());
    assert!(asked.elapsed() < 2 * SECOND, "at once");
    assert_eq!(leaving.exited(), None, "it finishes what runs");
    let late = tree.submit(&bench.note("runs", "third"));
    tree.expect(late, "done");
    assert!(tree.status(running).is_none());
    assert!(!leaving.stderr().contains(&format!("started task={late}")), "it takes nothing new");

    bench.open("go");
    tree.expect(running, "done");
    assert_eq!(leaving.wait_exit(10 * SECOND).code(), Some(0));
    assert_eq!(bench.lines("runs"), ["first", "second", "third"]);
    wait_for("its nodes to be gone", || {
        let left = (tree.stat("/workers/a"), tree.stat("/assign/a"));
        if left == (None, None) { Ok(()) } else { Err(format!("{left:?}")) }
    });
    never_panicked(&leaving);
    well(&[&master, &other]);
}

#[test]
fn an_idle_worker_asked_to_stop_ends_at_once() {
    let bench = Bench::shared("idle");
    let master = master(&bench);
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let asked = Instant::now();
    worker.signal(Signal::INT);
    assert_eq!(worker.wait_exit(5 * SECOND).code(), Some(0));
    println!("idle: stopped after {} ms", asked.elapsed().as_millis());
    assert!(asked.elapsed() < SECOND);
    well(&[&master]);
}

#[test]
fn a_worker_asked_to_stop_twice_stops_what_runs_and_others_get_it() {
    let bench = Bench::shared("twice");
    let tree = &bench.tree;
    let master = master(&bench);
    let leaving = bench.worker("a").args(["--slots", "3"]).start();
    tree.wait_worker("a");
    let obedient = tree.submit_with(&bench.tick("ticks", "go"), |_| ());
    let deaf = tree.submit_with(&format!("trap '' TERM; {}", bench.tick("deaf", "go")), |_| ());
    let once = tree.submit_with(&bench.tick("once", "go"), |meta| meta.no_requeue = true);
    let unstarted = tree.submit_with(&bench.tick("unstarted", "go"), |meta| meta.no_requeue = true);
    tree.wait_assigned("a", unstarted);
    for ticks in ["ticks", "deaf", "once"] {
        bench.wait_tick(ticks, 1);
    }
    let other = bench.worker("b").args(["--slots", "3"]).start();
    tree.wait_worker("b");
    leaving.signal(Signal::TERM);
    leaving.wait_stderr("finishing what runs");
    leaving.signal(Signal::TERM);
    let asked = Instant::now();
    assert_eq!(leaving.wait_exit(10 * SECOND).code(), Some(0));
    println!("twice: stopped after {} ms (a grace period of 2 s)", asked.elapsed().as_millis());
    for (ticks, attempt) in [("ticks", 2), ("deaf", 2), ("unstarted", 1)] {
        bench.wait_tick(ticks, attempt);
    }
    tree.expect(once, "lost");
    assert!(bench.lines("once").iter().all(|line| line.starts_with("1 ")), "it may start once only");
    bench.open("go");
    for (task, ticks, attempts) in [(obedient, "ticks", 2), (deaf, "deaf", 2), (unstarted, "unstarted", 1)] {
        let status = tree.expect(task, "done").meta.unwrap();
        assert_eq!((status.attempt, status.worker.unwrap().as_str()), (Some(attempts), "b"), "{ticks}");
        check_no_overlap(&bench.lines(ticks));
    }
    assert_eq!(attempt(&bench, obedient, 1).kind, Some(AttemptKind::Lost));
    never_panicked(&leaving);
    well(&[&master, &other]);
}

// --- ZooKeeper goes away

#[test]
fn a_restart_of_zookeeper_touches_no_running_task() {
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("restart"));
    let tree = &bench.tree;
    let masters = ["m1:1", "m2:1"].map(|address| bench.master(address).start());
    let worker = bench.worker("w").args(["--session-timeout", "10s"]).start();
    tree.wait_worker("w");
    let task = tree.submit(&format!("{}; {}", bench.note("runs", "begin"), bench.gate("go")));
    let short = tree.submit(&format!("{}; {}", bench.note("runs", "short"), bench.gate("now")));
    bench.wait_lines("runs", 2);
    let before = instance(&bench, "w");
    server.kill();
    // Ends while nobody can be told.
    bench.open("now");
    worker.wait_stderr(&format!("ended task={short}"));
    let away = Instant::now();
    server.restart();
    println!("restart: served again after {} ms", away.elapsed().as_millis());
    let back = Instant::now();
    tree.expect(short, "done");
    println!("restart: a result that was kept is there {} ms after that", back.elapsed().as_millis());
    let next = tree.submit(&bench.note("runs", "next"));
    tree.expect(next, "done");
    println!("restart: a new task is done {} ms after that", back.elapsed().as_millis());
    assert_eq!(instance(&bench, "w"), before, "the same life");
    assert_eq!(tree.status(task), None);
    bench.open("go");
    tree.expect(task, "done");
    assert_eq!(bench.lines("runs"), ["begin", "short", "next"], "nothing ran twice");
    assert_eq!(tree.children(&paths::task(&task)), ["status"], "no attempt was lost");
    tree.wait_nothing_assigned();
    well(&[&masters[0], &masters[1], &worker]);
}

#[test]
fn what_runs_when_zookeeper_is_away_for_too_long_is_killed_in_time_and_starts_again() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("away"));
    let tree = &bench.tree;
    let master = bench.master("m:1").args(["--session-timeout", "4s"]).start();
    let worker = bench.worker("w").args(["--session-timeout", "4s"]).start();
    tree.wait_worker("w");
    let before = instance(&bench, "w");
    let again = tree.submit_with(&bench.tick("again", "go"), |_| ());
    let once = tree.submit_with(&bench.tick("once", "go"), |meta| meta.no_requeue = true);
    bench.wait_tick("again", 1);
    bench.wait_tick("once", 1);
    server.kill();
    let away = Instant::now();
    worker.wait_stderr("could not prove for 3/4 of the session timeout");
    let killed = away.elapsed();
    println!("away: killed what ran after {} ms of 4000", killed.as_millis());
    assert!(killed > TIMEOUT / 2, "too soon: {killed:?}");
    assert!(killed < TIMEOUT, "too late: {killed:?}");
    let ticks = bench.lines("again").len() + bench.lines("once").len();
    stays("silence", TIMEOUT.saturating_sub(killed), || {
        let now = bench.lines("again").len() + bench.lines("once").len();
        if now == ticks { Ok(()) } else { Err(format!("{} ticks more", now - ticks)) }
    });
    server.restart();
    let back = Instant::now();
    tree.expect(once, "lost");
    bench.wait_tick("again", 2);
    println!("away: what may start again does, {} ms after ZooKeeper is back", back.elapsed().as_millis());
    bench.open("go");
    assert_eq!(tree.expect(again, "done").meta.unwrap().attempt, Some(2));
    assert_ne!(instance(&bench, "w"), before, "another life");
    assert!(bench.lines("once").iter().all(|line| line.starts_with("1 ")), "it started twice");
    check_no_overlap(&bench.lines("again"));
    tree.wait_nothing_assigned();
    assert!(count(&worker, "cannot reach ZooKeeper") <= 2, "it says so once for each search: {}", worker.stderr());
    well(&[&master, &worker]);
}

#[test]
fn what_was_assigned_by_hand_starts_again_too_when_zookeeper_was_away_for_too_long() {
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("away"));
    let tree = &bench.tree;
    let master = bench.master("m:1").args(["--session-timeout", "4s"]).start();
    let worker = bench.worker("w").args(["--session-timeout", "4s"]).start();
    tree.wait_worker("w");
    // Our master has no place for it.
    let task = tree.submit_with(&bench.tick("ticks", "go"), |meta| {
        meta.require.insert("gpu".to_owned(), "1".to_owned());
    });
    tree.create(&format!("/assign/w/{task}"), "");
    bench.wait_lines("ticks", 1);
    server.kill();
    worker.wait_stderr("could not prove for 3/4 of the session timeout");
    let ticks = bench.lines("ticks").len();
    server.restart();
    bench.wait_lines("ticks", ticks + 1);
    bench.open("go");
    tree.expect(task, "done");
    check_no_overlap(&bench.lines("ticks"));
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}

// --- somebody deletes what they use

#[test]
fn a_running_task_that_is_deleted_is_stopped_and_its_slot_is_free() {
    let bench = Bench::shared("gone");
    let tree = &bench.tree;
    let master = master(&bench);
    let worker = bench.worker("w").args(["--slots", "1"]).start();
    let task = tree.submit(&bench.tick("ticks", "never"));
    bench.wait_tick("ticks", 1);
    let after = tree.submit_with("true", |meta| meta.after = vec![task]);
    tree.delete_all(&paths::task(&task));
    tree.expect(after, "cancelled");
    tree.wait_nothing_assigned();
    let next = tree.submit("true");
    tree.expect(next, "done");
    let ticks = bench.lines("ticks").len();
    stays("silence", Duration::from_millis(300), || {
        let now = bench.lines("ticks").len();
        if now == ticks { Ok(()) } else { Err(format!("{} ticks more", now - ticks)) }
    });
    assert_eq!(tree.stat(&paths::task(&task)), None, "it does not come back");
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}

#[test]
fn a_running_task_whose_assignment_is_deleted_is_stopped_and_starts_again_where_it_was() {
    let bench = Bench::shared("revoked");
    let tree = &bench.tree;
    let master = master(&bench);
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let other = bench.worker("zz").args(["--slots", "1"]).start();
    tree.wait_worker("zz");
    let task = tree.submit_with(&bench.tick("ticks", "go"), |meta| meta.on = Some("w".parse().unwrap()));
    bench.wait_tick("ticks", 1);
    let once = tree.submit_with(&bench.tick("once", "go"), |meta| {
        meta.on = Some("w".parse().unwrap());
        meta.no_requeue = true;
    });
    bench.wait_tick("once", 1);
    tree.delete(&format!("/assign/w/{task}"));
    tree.delete(&format!("/assign/w/{once}"));
    bench.wait_tick("ticks", 2);
    tree.expect(once, "lost");
    assert!(bench.lines("once").iter().all(|line| line.starts_with("1 ")), "it may start once only");
    bench.open("go");
    assert_eq!(tree.expect(task, "done").meta.unwrap().worker.unwrap().as_str(), "w");
    assert_eq!(attempt(&bench, task, 1).kind, Some(AttemptKind::Lost));
    check_no_overlap(&bench.lines("ticks"));
    tree.wait_nothing_assigned();
    well(&[&master, &worker, &other]);
}

#[test]
fn a_registration_that_is_deleted_comes_back_and_nothing_that_runs_is_touched() {
    let bench = Bench::shared("unregistered");
    let tree = &bench.tree;
    let master = master(&bench);
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let task = tree.submit(&format!("{}; {}", bench.note("runs", "begin"), bench.gate("go")));
    bench.wait_lines("runs", 1);
    let comes_back = || {
        wait_within(5 * SECOND, "w to be registered again", || {
            tree.stat("/workers/w").ok_or_else(|| tree.picture()).map(drop)
        });
        let next = tree.submit("true");
        tree.expect(next, "done");
    };
    tree.delete("/workers/w");
    comes_back();
    tree.delete_all(paths::WORKERS);
    comes_back();
    // What their lives are judged by.
    tree.delete_all(paths::LIVE);
    comes_back();
    tree.delete(paths::EPOCH);
    comes_back();
    assert_eq!(tree.status(task), None);
    bench.open("go");
    tree.expect(task, "done");
    assert_eq!(bench.lines("runs").len(), 1);
    well(&[&master, &worker]);
}

#[test]
fn all_goes_on_when_the_assignments_are_deleted() {
    let bench = Bench::shared("unassigned");
    let tree = &bench.tree;
    let master = master(&bench);
    let workers = ["a", "b"].map(|name| bench.worker(name).start());
    tree.wait_worker("a");
    tree.wait_worker("b");
    // Each time that one is taken away counts, and the deletion goes on until nobody has made anything anew.
    let submit = |i| tree.submit_with(&bench.tick(&format!("ticks{i}"), "go"), |meta| meta.max_attempts = 1000);
    let tasks: Vec<_> = (0..6).map(submit).collect();
    wait_for("four to run", || {
        let run = (0..6).filter(|i| !bench.lines(&format!("ticks{i}")).is_empty()).count();
        if run == 4 { Ok(()) } else { Err(format!("{run} run: {}", tree.picture())) }
    });
    tree.delete_all(paths::ASSIGN);
    tree.wait_worker("a");
    tree.wait_worker("b");
    bench.open("go");
    assert_eq!(tree.wait_all(&tasks), 6);
    for i in 0..6 {
        check_no_overlap(&bench.lines(&format!("ticks{i}")));
    }
    tree.wait_nothing_assigned();
    well(&[&master, &workers[0], &workers[1]]);
}

#[test]
fn all_goes_on_when_everything_is_deleted() {
    let bench = Bench::shared("everything");
    let tree = &bench.tree;
    let masters = ["m1:1", "m2:1"].map(|address| bench.master(address).start());
    let worker = bench.worker("w").start();
    let task = tree.submit(&bench.tick("ticks", "never"));
    bench.wait_tick("ticks", 1);
    for child in ["assign", "workers", "tasks", "live", "epoch", "master"] {
        tree.delete_all(&format!("/{child}"));
    }
    let next = tree.submit(&bench.note("runs", "next"));
    tree.expect(next, "done");
    assert_eq!(bench.lines("runs").len(), 1);
    assert_eq!(tree.stat(&paths::task(&task)).map(|_| task), (task == next).then_some(task), "it does not come back");
    let ticks = bench.lines("ticks").len();
    stays("silence", Duration::from_millis(300), || {
        let now = bench.lines("ticks").len();
        if now == ticks { Ok(()) } else { Err(format!("{} ticks more", now - ticks)) }
    });
    well(&[&masters[0], &masters[1], &worker]);
}
