//! Masters that die in the middle of their work, are deposed, or wake up late: whatever is left half done is done by the next
//! one, and nothing is done twice.

mod common;

use std::collections::BTreeMap;

use common::{Bench, SECOND, children, count, inner, kill_inner, well};
use e2e::{Daemon, Request, Server, Signal, Txn, TxnKind, Wire, wait_for};
use rustix::process::kill_process;
use znode_paths::{TaskName, paths};

/// A write of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    /// A lost attempt, or the status of a task that may not start again.
    Record,
    Unassign,
    Assign,
}

impl Deed {
    fn of(request: &Request) -> Option<Deed> {
        match request {
            Request::Create(path) if path.contains("/attempt-") || path.ends_with("/status") => Some(Deed::Record),
            Request::Create(path) if path.contains("/assign/") && path.contains("/task-") => Some(Deed::Assign),
            Request::Delete(path) if path.contains("/assign/") && path.contains("/task-") => Some(Deed::Unassign),
            _ => None,
        }
    }

    /// In a server's log.
    fn in_log(txn: &Txn) -> Option<Deed> {
        match &txn.kind {
            TxnKind::Create { path, .. } => Deed::of(&Request::Create(path.clone())),
            TxnKind::Delete { path } => Deed::of(&Request::Delete(path.clone())),
            _ => None,
        }
    }
}

/// Three masters on one wire.
struct Masters {
    wire: Wire,
    all: BTreeMap<String, Daemon>,
}

impl Masters {
    #[track_caller]
    fn start(bench: &Bench) -> Masters {
        let wire = Wire::to(&Server::shared().connect_string());
        let zk = over(&wire, bench);
        let start = |address: &str| {
            let master = Daemon::named("zk-master").args(["--zk", &zk, "--address", address]).start();
            (address.to_owned(), master)
        };
        let all: BTreeMap<_, _> = ["m1:1", "m2:1", "m3:1"].map(start).into();
        let masters = Masters { wire, all };
        wait_for("one primary and two standbys", || {
            let standing = masters.all.values().filter(|master| count(master, "standing by") > 0).count();
            let reigning = masters.all.values().filter(|master| count(master, "took over") > 0).count();
            if (standing, reigning) == (2, 1) { Ok(()) } else { Err(format!("{standing} {reigning}")) }
        });
        masters
    }

    /// Has whoever is the primary then held when it is about to do this for the third time.
    fn hold_at_third(&self, deed: Deed) {
        let mut times = 0;
        self.wire.hold_at(move |request| {
            times += usize::from(Deed::of(request) == Some(deed));
            times == 3
        });
    }

    /// Kills the primary that is held, with what it was about to do; returns its session.
    #[track_caller]
    fn kill_held(&self, bench: &Bench, before: impl FnOnce()) -> i64 {
        self.wire.wait_held();
        let session = bench.tree.owner(paths::MASTER);
        let address = bench.tree.text(paths::MASTER).expect("it reigns");
        before();
        kill_inner(&self.all[&address]);
        self.wire.lose();
        session
    }
}

/// A bench's connect string, over a wire.
fn over(wire: &Wire, bench: &Bench) -> String {
    let chroot = bench.zk.find('/').expect("a bench has a chroot");
    wire.connect_string() + &bench.zk[chroot..]
}

/// A worker is lost with twelve tasks, half of which may start once only. The primary is killed before its third deed of
/// one kind, the next one before its third of another kind.
#[track_caller]
fn check_killed_twice(first: Deed, second: Deed) {
    let bench = Bench::shared("twice");
    let tree = &bench.tree;
    let masters = Masters::start(&bench);
    let worker = bench.worker("w").env("ZK_SLOTS", "12").start();
    tree.wait_worker("w");
    let command = |i: usize| {
        let begin = bench.note(&format!("runs{i}"), "$ZK_TASK_ATTEMPT");
        format!("{begin}; if [ $ZK_TASK_ATTEMPT = 1 ]; then exec sleep 600; fi")
    };
    let tasks: Vec<TaskName> =
        (0..12).map(|i| tree.submit_with(&command(i), |meta| meta.no_requeue = i % 2 == 0)).collect();
    for i in 0..12 {
        bench.wait_lines(&format!("runs{i}"), 1);
    }
    let lost = tree.owner("/workers/w");
    masters.hold_at_third(first);
    kill_inner(&worker);
    let one = masters.kill_held(&bench, || masters.hold_at_third(second));
    let two = masters.kill_held(&bench, || ());

    for (i, task) in tasks.iter().enumerate() {
        let (word, runs): (_, &[&str]) = if i % 2 == 0 { ("lost", &["1"]) } else { ("done", &["1", "2"]) };
        tree.expect(*task, word);
        assert_eq!(bench.lines(&format!("runs{i}")), runs, "{first:?} {second:?} {task}");
    }
    tree.wait_nothing_assigned();
    // That it was the middle. What the first had recorded the second finds there.
    let log = Server::shared().transactions();
    let began = log.iter().position(|txn| txn.session == lost && txn.kind == TxnKind::CloseSession);
    let log = &log[began.expect("its guard ended its session")..];
    let three = tree.owner(paths::MASTER);
    assert!(one != two && two != three && one != three);
    let did =
        |session, deed| log.iter().filter(|txn| txn.session == session && Deed::in_log(txn) == Some(deed)).count();
    let figures = (did(one, first), did(two, second), did(three, second));
    assert!(matches!(figures, (2, ..=2, 1..)), "{first:?} {second:?} {figures:?}");
    bench.check_only_primaries_assigned(Server::shared());
    let all: Vec<&Daemon> = masters.all.values().chain([&worker]).collect();
    well(&all);
}

#[test]
fn two_primaries_that_die_before_they_have_recorded_all_lose_nothing_and_start_nothing_twice() {
    check_killed_twice(Deed::Record, Deed::Record);
}

#[test]
fn two_primaries_that_die_before_they_have_unassigned_all_lose_nothing_and_start_nothing_twice() {
    check_killed_twice(Deed::Record, Deed::Unassign);
    check_killed_twice(Deed::Unassign, Deed::Unassign);
}

#[test]
fn two_primaries_that_die_before_they_have_assigned_all_again_lose_nothing_and_start_nothing_twice() {
    check_killed_twice(Deed::Unassign, Deed::Assign);
    check_killed_twice(Deed::Assign, Deed::Assign);
}

#[test]
fn an_assignment_of_a_deposed_master_that_arrives_late_is_not_run() {
    let server = Server::shared();
    let bench = Bench::shared("late");
    let tree = &bench.tree;
    let wires = [(); 2].map(|()| Wire::to(&server.connect_string()));
    let start = |i: usize| {
        let address = format!("m{i}:1");
        Daemon::named("zk-master").args(["--zk", &over(&wires[i], &bench), "--address", &address]).start()
    };
    let old = start(0);
    old.wait_stderr("took over");
    let new = start(1);
    new.wait_stderr("standing by");
    let worker = bench.worker("w").env("ZK_SLOTS", "5").start();
    tree.wait_worker("w");
    let deposed = tree.owner(paths::MASTER);
    // Both are held when they are about to assign.
    for wire in &wires {
        wire.hold_at(|request| Deed::of(request) == Some(Deed::Assign));
    }
    let note = bench.note("runs", "$ZK_TASK $ZK_TASK_FENCE");
    let tasks: Vec<TaskName> = (0..5).map(|_| tree.submit(&note)).collect();
    wires[0].wait_held();
    tree.delete(paths::MASTER);
    wires[1].wait_held();
    let reigning = tree.owner(paths::MASTER);
    assert_ne!(reigning, deposed);
    // Now the session of the deposed one lives, the next has raised /epoch, and nothing is assigned.
    assert!(tree.assigned().is_empty());
    wires[0].release();
    let by = |session: i64, deed: Deed| {
        let log = server.transactions();
        let did = log.into_iter().filter(|txn| txn.session == session && Deed::in_log(txn) == Some(deed));
        did.map(|txn| txn.zxid).collect::<Vec<i64>>()
    };
    let of_worker = tree.owner("/workers/w");
    wait_for("the worker to delete what it was given", || {
        let (made, deleted) = (by(deposed, Deed::Assign).len(), by(of_worker, Deed::Unassign).len());
        if made > 0 && made == deleted { Ok(()) } else { Err(format!("{made} made, {deleted} deleted")) }
    });
    assert!(bench.lines("runs").is_empty(), "nothing of it was run");
    wires[1].release();
    assert_eq!(tree.wait_all(&tasks), 5);
    let runs = bench.lines("runs");
    let fences = |session| by(session, Deed::Assign);
    let fence = |run: &String| run.split(' ').nth(1).and_then(|fence| fence.parse().ok()).expect("a fence");
    assert!(runs.iter().all(|run| fences(reigning).contains(&fence(run))), "{runs:?}");
    assert_eq!(runs.len(), 5, "each once");
    assert_eq!(tree.owner(paths::MASTER), reigning);
    old.wait_stderr("standing by");
    well(&[&old, &new, &worker]);
}

#[test]
fn a_deposed_master_that_is_slow_does_not_delete_what_the_next_one_assigned_at_the_same_path() {
    let server = Server::shared();
    let bench = Bench::shared("same-path");
    let tree = &bench.tree;
    let wire = Wire::to(&server.connect_string());
    let start = |zk: &str, address: &str| Daemon::named("zk-master").args(["--zk", zk, "--address", address]).start();
    let old = start(&over(&wire, &bench), "old:1");
    old.wait_stderr("took over");
    let new = start(&bench.zk, "new:1");
    new.wait_stderr("standing by");
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let deposed = tree.owner(paths::MASTER);
    let (begin, gate) = (bench.note("runs", "$ZK_TASK_ATTEMPT"), bench.gate("go"));
    let task = tree.submit(&format!("{begin}; if [ $ZK_TASK_ATTEMPT = 1 ]; then exec sleep 600; fi; {gate}"));
    bench.wait_lines("runs", 1);
    // The old one is to record that the worker was lost, and then to delete what it had.
    wire.hold_at(|request| Deed::of(request) == Some(Deed::Record));
    kill_inner(&worker);
    wire.wait_held();
    tree.delete(paths::MASTER);
    bench.wait_lines("runs", 2);
    wire.release();
    old.wait_stderr("standing by");
    bench.open("go");
    tree.expect(task, "done");
    assert_eq!(bench.lines("runs"), ["1", "2"]);
    let of_deposed = server.transactions().into_iter().filter(|txn| txn.session == deposed);
    assert_eq!(of_deposed.filter(|txn| Deed::in_log(txn) == Some(Deed::Unassign)).count(), 0);
    well(&[&old, &new, &worker]);
}

#[test]
fn a_primary_that_wakes_up_after_its_session_with_its_guard_changes_nothing() {
    let server = Server::start();
    let bench = Bench::at(server.chroot("wakes"));
    let tree = &bench.tree;
    let old = bench.master("old:1").args(["--session-timeout", "2s"]).start();
    old.wait_stderr("took over");
    let new = bench.master("new:1").args(["--session-timeout", "10s"]).start();
    new.wait_stderr("standing by");
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let session = tree.owner(paths::MASTER);
    // Its mailbox is full of work when it falls asleep.
    let submit = |i: usize| tree.submit(&bench.note("runs", &i.to_string()));
    let mut tasks: Vec<TaskName> = (0..20).map(submit).collect();
    let daemon = inner(&old);
    assert_eq!(children(old.pid()).len(), 1);
    old.pause();
    kill_process(daemon, Signal::STOP).expect("it runs");
    tasks.extend((20..40).map(submit));
    new.wait_stderr("took over");
    assert_eq!(tree.wait_all(&tasks), 40);
    kill_process(daemon, Signal::CONT).expect("it is frozen");
    old.wait_stderr("session lost");
    old.resume();
    old.wait_stderr("standing by primary=\"new:1\"");
    let more: Vec<TaskName> = (40..50).map(submit).collect();
    assert_eq!(tree.wait_all(&more), 10);
    let mut runs = bench.lines("runs");
    assert_eq!(runs.len(), 50, "no command ran twice");
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 50, "each command ran");
    let log = server.transactions();
    let end = log.iter().position(|txn| txn.session == session && txn.kind == TxnKind::CloseSession);
    let late = log[end.expect("it expired")..].iter().skip(1).filter(|txn| txn.session == session).count();
    assert_eq!(late, 0, "nothing of its session was carried out after its end");
    bench.check_only_primaries_assigned(&server);
    assert_eq!(tree.text(paths::MASTER).as_deref(), Some("new:1"));
    well(&[&old, &new, &worker]);
}

#[test]
fn a_client_that_waits_sees_nothing_of_primaries_that_die() {
    let bench = Bench::shared("waits");
    let masters = Masters::start(&bench);
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let run = bench.client().args(["run", "--", &format!("{}; echo out; exit 3", bench.gate("go"))]).start();
    let task = wait_for("the task", || bench.tree.children(paths::TASKS).pop().ok_or_else(String::new));
    let wait = bench.client().args(["wait", &task]).start();
    for _ in 0..2 {
        let address = bench.tree.text(paths::MASTER).expect("a primary");
        let (primary, session) = (&masters.all[&address], bench.tree.owner(paths::MASTER));
        kill_inner(primary);
        wait_for("another primary", || match bench.tree.stat(paths::MASTER).and_then(|stat| stat.owner) {
            Some(owner) if owner.0 != session => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    assert_eq!((run.exited(), run.stdout(), wait.exited(), wait.stdout()), (None, String::new(), None, String::new()));
    bench.open("go");
    assert_eq!((run.wait_exit(20 * SECOND).code(), run.stdout().as_str()), (Some(3), "out\n"));
    assert_eq!((wait.wait_exit(20 * SECOND).code(), wait.stdout()), (Some(3), format!("{task}\tfailed\t3\n")));
    well(&[&worker]);
}

#[test]
fn a_task_that_is_cancelled_before_its_end_is_written_ends_as_cancelled_though_the_connection_breaks() {
    let bench = Bench::shared("end");
    let tree = &bench.tree;
    let wire = Wire::to(&Server::shared().connect_string());
    let master = bench.master("m:1").start();
    let worker = Daemon::named("zk-worker").args(["--zk", &over(&wire, &bench), "--name", "w"]);
    let worker = worker.env("ZK_WORK_DIR", bench.path("work")).start();
    tree.wait_worker("w");
    wire.hold_at(|request| matches!(request, Request::Create(path) if path.ends_with("/status")));
    let task = tree.submit("true");
    wire.wait_held();
    tree.create(&paths::cancel(&task), "");
    wire.cut();
    tree.expect(task, "cancelled");
    worker.wait_stderr("session lost");
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}
