//! What becomes of a daemon, and of all that it ran, when its own process dies, freezes or gets stuck, or its guard dies.

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{
    Bench, SECOND, Sign, children, count, end_of, inner, last_proof_ms, last_sign, never_panicked, wait_end_of, well,
};
use e2e::{Daemon, Port, Server, Signal, TxnKind, available, stays, trace, wait_for, wait_within};
use rustix::process::{Pid, geteuid, getpgid, kill_process, kill_process_group, test_kill_process};

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a process has a number")
}

fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Waits until there is no such process, not even a zombie.
#[track_caller]
fn wait_gone(process: Pid, what: &str) {
    wait_for(&format!("{what} to be gone"), || match test_kill_process(process) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Waits until a guard has started its daemon anew.
#[track_caller]
fn wait_other_inner(daemon: &Daemon, before: Pid) -> Pid {
    wait_for("the daemon to be started again", || match daemon.guarded() {
        Some(now) if now != before => Ok(now),
        other => Err(format!("{other:?}")),
    })
}

// --- the daemon's process ends

/// A task that has become many processes, some of them in groups and sessions of their own, all deaf to SIGTERM.
fn crowd(bench: &Bench, name: &str) -> String {
    let alive = |who: &str| format!("trap '' TERM HUP; {}", bench.alive(name, "go", who));
    [
        format!("(sh -c '{}') &", alive("child").replace('\'', r"'\''")),
        format!("(sh -c '{}' &)", alive("orphan").replace('\'', r"'\''")),
        format!("setsid sh -c '{}' &", alive("session").replace('\'', r"'\''")),
        format!("(setsid sh -c '{}' &)", alive("daemon").replace('\'', r"'\''")),
        alive("shell"),
    ]
    .join("\n")
}

/// Waits until all of a crowd have given a sign of life.
#[track_caller]
fn wait_crowd(bench: &Bench, name: &str) {
    for who in ["child", "orphan", "session", "daemon", "shell"] {
        wait_for(who, || {
            let there = bench.signs(name).iter().any(|sign| sign.who == who);
            if there { Ok(()) } else { Err(bench.tree.picture()) }
        });
    }
}

#[test]
fn all_that_a_dead_worker_ran_is_dead_before_its_session_ends_and_others_have_it_at_once() {
    let server = Server::shared();
    let bench = Bench::shared("crowd");
    let tree = &bench.tree;
    let master = bench.master("m:1").start();
    let a = bench.worker("a").args(["--session-timeout", "30s"]).start();
    for (round, signal) in [Signal::KILL, Signal::ABORT].into_iter().enumerate() {
        let (file, only) = (format!("signs{round}"), format!("only{round}"));
        tree.wait_worker("a");
        let (daemon, session) = (inner(&a), tree.owner("/workers/a"));
        let task = tree.submit_with(&crowd(&bench, &file), |_| ());
        let command = format!("{}; exec sleep 600", bench.note(&only, "started"));
        let once = tree.submit_with(&command, |meta| meta.no_requeue = true);
        wait_crowd(&bench, &file);
        bench.wait_lines(&only, 1);
        let b = bench.worker("b").start();
        tree.wait_worker("b");

        // One of them takes its time to die.
        let slow = bench.signs(&file).iter().find(|sign| sign.who == "daemon").expect("it lives").pid;
        let slow = trace::hold_at_exit(slow);
        kill_process(daemon, signal).expect("it runs");
        slow.wait_stopped();
        stays("the session", Duration::from_millis(500), || match end_of(server, session) {
            None => Ok(()),
            Some(txn) => Err(format!("it ended while a process of the task was there: {txn:?}")),
        });
        let released = Instant::now();
        slow.release();
        let end = wait_end_of(server, session);
        let first = bench.wait_sign(&file, 2);
        println!("{signal:?}: the next attempt runs {} ms after the last process died", released.elapsed().as_millis());
        // At once, compared with the 30 s after which the session would have expired.
        assert!(released.elapsed() < 10 * SECOND, "{:?}", released.elapsed());
        tree.expect(once, "lost");
        assert_eq!(bench.lines(&only).len(), 1, "it started once");

        bench.open("go");
        tree.expect(task, "done");
        let last = last_sign(&bench.signs(&file), 1);
        assert!(last <= end.time_ms && end.time_ms <= first.time_ms, "{last}, {end:?}, {first:?}");
        fs::remove_file(bench.path("go")).expect("it is there");
        b.signal(Signal::TERM);
        b.wait_exit(10 * SECOND);
    }
    well(&[&master, &a]);
}

#[test]
fn a_daemon_that_dies_again_and_again_is_started_again_after_pauses_that_grow() {
    let nobody = Port::claim();
    let master = Daemon::named("zk-master").args(["--zk", &nobody.address(), "--address", "m:1"]).start();
    master.wait_stderr("cannot reach ZooKeeper");
    let mut daemon = inner(&master);
    for pause_ms in [100, 200, 400, 800] {
        let died = Instant::now();
        kill_process(daemon, Signal::KILL).expect("it runs");
        daemon = wait_other_inner(&master, daemon);
        let away = died.elapsed();
        println!("started again after {} ms", away.as_millis());
        assert!(away >= Duration::from_millis(pause_ms), "{away:?}");
    }
    // And once it is to stop, it is not started again.
    master.signal(Signal::TERM);
    assert_eq!(master.wait_exit(10 * SECOND).code(), Some(0));
    wait_gone(daemon, "the daemon");
}

// --- the daemon's process stands still

#[test]
fn a_daemon_that_stands_still_is_killed_by_its_guard_with_all_it_ran_before_its_session_expires() {
    const TIMEOUT_MS: i64 = 6000;
    let server = Server::shared();
    let bench = Bench::shared("still");
    let tree = &bench.tree;
    let master = bench.master("m:1").start();
    let a = bench.worker("a").args(["--session-timeout", "6s"]).start();
    tree.wait_worker("a");
    let task = tree.submit_with(&crowd(&bench, "signs"), |_| ());
    bench.wait_sign("signs", 1);
    let b = bench.worker("b").start();
    tree.wait_worker("b");
    let (daemon, session) = (inner(&a), tree.owner("/workers/a"));
    kill_process(daemon, Signal::STOP).expect("it runs");
    let end = wait_end_of(server, session);
    let proof = last_proof_ms(&server.transactions(), session);
    println!("still: the session ended {} ms after the last proof", end.time_ms - proof);
    assert!(end.time_ms - proof < TIMEOUT_MS, "not by its guard, but because it expired");
    assert!(end.time_ms - proof > TIMEOUT_MS / 2, "too soon");
    let first = bench.wait_sign("signs", 2);
    bench.open("go");
    tree.expect(task, "done");
    let last = last_sign(&bench.signs("signs"), 1);
    assert!(last <= end.time_ms && end.time_ms <= first.time_ms, "{last}, {end:?}, {first:?}");
    wait_other_inner(&a, daemon);
    tree.wait_worker("a");
    well(&[&master, &a, &b]);
}

#[test]
fn a_daemon_whose_deciding_thread_is_stuck_is_killed_though_its_session_lives() {
    let server = Server::start();
    let bench = Bench::at(server.chroot("stuck"));
    let tree = &bench.tree;
    let m1 = bench.master("m1:1").start();
    m1.wait_stderr("took over");
    let m2 = bench.master("m2:1").start();
    m2.wait_stderr("standing by");
    let a = bench.worker("a").args(["--session-timeout", "6s"]).start();
    tree.wait_worker("a");
    let task = tree.submit_with(&bench.alive("signs", "go", "shell"), |_| ());
    bench.wait_sign("signs", 1);
    let b = bench.worker("b").start();
    tree.wait_worker("b");
    let daemons = [&m1, &a].map(|daemon| raw(inner(daemon)));
    let sessions = ["/master", "/workers/a"].map(|path| tree.owner(path));
    let stuck_ms = server.transactions().last().expect("there is something").time_ms;
    for daemon in daemons {
        trace::halt_main_thread(daemon);
    }
    for session in sessions {
        // It is asked every 5 s and given 20 s for its answer.
        let end = wait_within(90 * SECOND, "a stuck daemon to be killed", || {
            end_of(&server, session).ok_or_else(|| "its session lives".to_owned())
        });
        let beats = server.transactions().into_iter().filter(|txn| {
            txn.session == session && txn.time_ms > stuck_ms && matches!(txn.kind, TxnKind::SetData { .. })
        });
        let beats = beats.count();
        println!("stuck: ended after {} ms and {beats} heartbeats", end.time_ms - stuck_ms);
        assert!(beats > 6, "its session lived longer than without heartbeats: {beats}");
    }
    m2.wait_stderr("took over");
    let first = bench.wait_sign("signs", 2);
    let end = wait_end_of(&server, sessions[1]);
    bench.open("go");
    tree.expect(task, "done");
    let last = last_sign(&bench.signs("signs"), 1);
    assert!(last <= end.time_ms && end.time_ms <= first.time_ms, "{last}, {end:?}, {first:?}");
    assert_eq!(tree.text("/master").as_deref(), Some("m2:1"));
    m1.wait_stderr("standing by primary=\"m2:1\"");
    well(&[&m1, &m2, &a, &b]);
}

// --- the guard

#[test]
fn when_a_guard_is_killed_the_daemon_and_the_shells_of_its_tasks_die() {
    let bench = Bench::shared("guard");
    let master = bench.master("m:1").start();
    let worker = bench.worker("w").start();
    bench.tree.submit(&format!("trap '' TERM; {}", bench.alive("signs", "never", "shell")));
    let shell = bench.wait_sign("signs", 1).pid;
    let daemon = inner(&worker);
    worker.kill();
    wait_gone(daemon, "the daemon");
    wait_gone(pid(shell), "the shell");
    well(&[&master]);
}

#[test]
fn a_worker_started_again_where_it_was_killed_ends_what_it_left_and_waits_for_nothing() {
    let server = Server::shared();
    let bench = Bench::shared("again");
    let tree = &bench.tree;
    let master = bench.master("m:1").start();
    let killed = bench.worker("w").args(["--session-timeout", "60s"]).start();
    tree.wait_worker("w");
    let task = tree.submit_with(&crowd(&bench, "signs"), |_| ());
    // Only the shell dies with the daemon.
    let left = |signs: &[Sign]| signs.iter().filter(|sign| sign.who != "shell").count();
    wait_crowd(&bench, "signs");
    let (daemon, session) = (inner(&killed), tree.owner("/workers/w"));
    killed.kill();
    wait_gone(daemon, "the daemon");
    let then = left(&bench.signs("signs"));
    wait_for("more signs of life", || match left(&bench.signs("signs")) {
        now if now > then => Ok(()),
        now => Err(format!("{now}")),
    });

    // One of them takes its time to die.
    let slow = bench.signs("signs").iter().find(|sign| sign.who == "daemon").expect("it lives").pid;
    let slow = trace::hold_at_exit(slow);
    let started = Instant::now();
    let again = bench.worker("w").args(["--session-timeout", "60s"]).start();
    slow.wait_stopped();
    stays("the session", Duration::from_millis(300), || match end_of(server, session) {
        None => Ok(()),
        Some(txn) => Err(format!("it ended while a process of the task was there: {txn:?}")),
    });
    slow.release();
    let end = wait_end_of(server, session);
    let first = bench.wait_sign("signs", 2);
    println!("again: the next attempt runs {} ms after the start of the worker", started.elapsed().as_millis());
    bench.open("go");
    tree.expect(task, "done");
    let last = last_sign(&bench.signs("signs"), 1);
    assert!(last <= end.time_ms && end.time_ms <= first.time_ms, "{last}, {end:?}, {first:?}");
    // Not because it expired.
    let proof = last_proof_ms(&server.transactions(), session);
    assert!(end.time_ms - proof < 60_000, "{proof}, {end:?}");
    well(&[&master, &again]);
}

#[test]
fn a_stop_signal_for_the_group_of_a_guard_reaches_the_daemon_once() {
    let bench = Bench::shared("group");
    let master = bench.master("m:1").start();
    let worker = bench.worker("w").start();
    let task = bench.tree.submit(&format!("{}; {}", bench.note("runs", "begin"), bench.gate("go")));
    bench.wait_lines("runs", 1);
    // What a terminal does at Ctrl-C.
    let guard = pid(worker.pid());
    assert_eq!(getpgid(Some(guard)), Ok(guard));
    kill_process_group(guard, Signal::INT).expect("it runs");
    worker.wait_stderr("asked to stop");
    stays("draining", Duration::from_millis(300), || match count(&worker, "asked to stop") {
        1 => Ok(()),
        more => Err(format!("asked {more} times")),
    });
    bench.open("go");
    bench.tree.expect(task, "done");
    assert_eq!(worker.wait_exit(10 * SECOND).code(), Some(0));
    never_panicked(&worker);
    well(&[&master]);
}

#[test]
fn a_stop_signal_that_comes_before_the_daemon_can_listen_is_no_failure() {
    let nobody = Port::claim();
    for _ in 0..10 {
        let master = Daemon::named("zk-master").args(["--zk", &nobody.address(), "--address", "m:1"]).start();
        let limit = Instant::now() + 10 * SECOND;
        while master.guarded().is_none() {
            assert!(Instant::now() < limit, "it does not start its daemon");
        }
        master.signal(Signal::TERM);
        assert_eq!(master.wait_exit(10 * SECOND).code(), Some(0));
    }
}

#[test]
fn a_stop_signal_that_comes_while_the_daemon_dies_is_not_lost() {
    let nobody = Port::claim();
    for _ in 0..10 {
        let master = Daemon::named("zk-master").args(["--zk", &nobody.address(), "--address", "m:1"]).start();
        master.wait_stderr("cannot reach ZooKeeper");
        // Its guard learns of both at once.
        let daemon = inner(&master);
        master.pause();
        kill_process(daemon, Signal::KILL).expect("it runs");
        master.signal(Signal::TERM);
        master.resume();
        master.wait_exit(10 * SECOND);
    }
}

#[test]
fn as_process_1_of_a_container_the_guard_reaps_orphans_and_hears_stop_signals() {
    let root = if geteuid().is_root() { Ok(()) } else { Err("a process namespace needs root".to_owned()) };
    let Some(()) = available(root) else { return };
    let bench = Bench::shared("container");
    let master = bench.master("m:1").start();
    let worker = bench.worker("w").under("unshare", ["--pid", "--fork", "--mount-proc", "--kill-child"]).start();
    bench.tree.wait_worker("w");
    let guard = wait_within(SECOND, "the guard", || match children(worker.pid())[..] {
        [guard] => Ok(guard),
        ref other => Err(format!("{other:?}")),
    });
    let status = fs::read_to_string(format!("/proc/{guard}/status")).expect("it runs");
    let names = status.lines().find(|line| line.starts_with("NSpid:")).expect("a recent Linux");
    assert!(names.ends_with("\t1"), "{names}");
    // Of the container, but not of a task: as somebody leaves it behind who was in there (docker exec).
    let orphan = format!("(setsid sh -c 'sleep 0.2; {}' &)", bench.note("orphans", "ended"));
    let visit = ["--target", &guard.to_string(), "--pid", "--mount", "sh", "-c"].map(str::to_owned);
    let visitor = Daemon::program("nsenter").args(visit).arg(format!("for i in $(seq 50); do {orphan}; done")).start();
    assert!(visitor.wait_exit(10 * SECOND).success());
    bench.wait_lines("orphans", 50);
    wait_for("all orphans to be reaped", || match children(guard).len() {
        1 => Ok(()),
        more => Err(format!("{more} children")),
    });
    kill_process(pid(guard), Signal::TERM).expect("it runs");
    assert_eq!(worker.wait_exit(10 * SECOND).code(), Some(0));
    well(&[&master]);
}
