//! Links that lose packets without a trace: who is cut off stops in time, others take over, and whoever comes back fits in.

mod common;

use std::collections::BTreeSet;

use common::{Bench, SECOND, count, inner, last_proof_ms, last_sign, wait_end_of, well};
use e2e::{Daemon, Ensemble, Host, Hosts, Server, TxnKind, available, wait_for};
use znode_paths::{TaskName, Worker, paths};

/// A server on the first of some hosts, and the tree as seen from there.
#[track_caller]
fn served(hosts: &Hosts, name: &str) -> (Server, Bench) {
    let server = Server::start_in(&hosts[0]);
    let bench = Bench::seen_from(server.chroot(name), Some(&hosts[0]));
    (server, bench)
}

/// The instance that is registered under a name.
#[track_caller]
fn instance(bench: &Bench, worker: &str) -> Option<String> {
    let data = bench.tree.data(&format!("/workers/{worker}"))?;
    Worker::decode(&data).ok()?.instance().map(|instance| instance.to_string())
}

#[test]
fn what_a_worker_runs_that_is_cut_off_is_killed_before_it_runs_elsewhere_and_once_healed_it_is_as_good_as_new() {
    const TIMEOUT_MS: i64 = 8000;
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let (server, bench) = served(&hosts, "worker");
    let tree = &bench.tree;
    let master = bench.master("m:1").start_in(&hosts[0]);
    let cut_off = bench.worker("a").args(["--session-timeout", "8s"]).start_in(&hosts[1]);
    tree.wait_worker("a");
    let (before, daemon, session) = (instance(&bench, "a"), inner(&cut_off), tree.owner("/workers/a"));
    let task = tree.submit_with(&format!("trap '' TERM; {}", bench.alive("signs", "go", "shell")), |_| ());
    bench.wait_sign("signs", 1);
    let other = bench.worker("b").start_in(&hosts[2]);
    tree.wait_worker("b");

    hosts[1].link_down();
    cut_off.wait_stderr("could not prove for 3/4 of the session timeout");
    let end = wait_end_of(&server, session);
    let first = bench.wait_sign("signs", 2);
    let last = last_sign(&bench.signs("signs"), 1);
    let proof = last_proof_ms(&server.transactions(), session);
    println!(
        "cut off, timeout {TIMEOUT_MS} ms after the last proof: last sign of life {} ms, session over {} ms, runs again {} ms",
        last - proof,
        end.time_ms - proof,
        first.time_ms - proof
    );
    // 3/4, and what a busy machine may add; its guard would do it at 5/6, and by killing the daemon.
    assert!(last - proof < TIMEOUT_MS * 5 / 6, "{last} {proof}");
    assert_eq!(inner(&cut_off), daemon, "its guard had nothing to do");
    assert!(last <= end.time_ms && end.time_ms <= first.time_ms, "{last}, {end:?}, {first:?}");

    hosts[1].link_up();
    wait_for("a to come back", || match instance(&bench, "a") {
        now if now.is_some() && now != before => Ok(()),
        now => Err(format!("{before:?} {now:?}")),
    });
    let next = tree.submit_with("true", |meta| meta.on = Some("a".parse().unwrap()));
    tree.expect(next, "done");
    bench.open("go");
    tree.expect(task, "done");
    assert_eq!(tree.children(&paths::task(&task)), ["attempt-1", "status"]);
    last_sign(&bench.signs("signs"), 1);
    assert_eq!(inner(&cut_off), daemon, "it is the same process");
    well(&[&master, &cut_off, &other]);
}

#[test]
fn a_primary_that_is_cut_off_is_followed_when_its_session_is_over_and_stands_by_once_healed() {
    const TIMEOUT_MS: i64 = 3000;
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let (server, bench) = served(&hosts, "primary");
    let tree = &bench.tree;
    let start = |address, host: &Host| bench.master(address).args(["--session-timeout", "3s"]).start_in(host);
    let old = start("old:1", &hosts[1]);
    old.wait_stderr("took over");
    let new = start("new:1", &hosts[2]);
    new.wait_stderr("standing by");
    let worker = bench.worker("w").start_in(&hosts[0]);
    tree.wait_worker("w");
    let session = tree.owner(paths::MASTER);
    let submit = |i: usize| tree.submit(&bench.note("runs", &i.to_string()));
    // It is in the middle of giving them out.
    let mut tasks: Vec<TaskName> = (0..30).map(submit).collect();
    hosts[1].link_down();
    tasks.extend((30..60).map(submit));
    let end = wait_end_of(&server, session);
    new.wait_stderr("took over");
    let log = server.transactions();
    let proof = last_proof_ms(&log, session);
    let is_reign = |kind: &TxnKind| matches!(kind, TxnKind::Create { path, .. } if path.ends_with(paths::MASTER));
    let reign = log.iter().rfind(|txn| is_reign(&txn.kind)).expect("it reigns").time_ms;
    let (over, next) = (end.time_ms - proof, reign - end.time_ms);
    println!(
        "cut off, timeout {TIMEOUT_MS} ms: session over {over} ms after the last write, the next reigns {next} ms later"
    );
    // The server rounds up to its ticks of 200 ms; the rest is for a busy machine.
    assert!((TIMEOUT_MS..TIMEOUT_MS + 2000).contains(&over), "{over}");
    assert!((0..2000).contains(&next), "{next}");
    assert_eq!(tree.wait_all(&tasks), 60);

    hosts[1].link_up();
    old.wait_stderr("standing by primary=\"new:1\"");
    let more: Vec<TaskName> = (60..70).map(submit).collect();
    assert_eq!(tree.wait_all(&more), 10);
    let mut runs = bench.lines("runs");
    assert_eq!(runs.len(), 70, "no command ran twice");
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 70, "each command ran");
    let log = server.transactions();
    let late = log.iter().filter(|txn| txn.session == session && txn.zxid > end.zxid).count();
    assert_eq!(late, 0, "nothing of its session was carried out after its end");
    bench.check_only_primaries_assigned(&server);
    assert_eq!(tree.text(paths::MASTER).as_deref(), Some("new:1"));
    well(&[&old, &new, &worker]);
}

#[test]
fn when_the_server_of_all_daemons_is_cut_off_from_the_others_they_go_on_there_and_nothing_runs_twice() {
    const TIMEOUT_MS: i64 = 9000;
    let Some(hosts) = available(Hosts::new(4)) else { return };
    let ensemble = Ensemble::start_in(&hosts.all()[..3]);
    let follower = ensemble.follower();
    let bench = Bench::seen_from(ensemble.chroot("follower"), Some(&hosts[3]));
    let tree = &bench.tree;
    let others = [0, 1, 2].into_iter().filter(|server| *server != follower).map(|server| &hosts[server]);
    let others: Vec<&Host> = others.collect();
    // So all of them come to the follower.
    for other in &others {
        hosts[3].cut_from(other);
    }
    let start = |launch: e2e::daemon::Launch| launch.args(["--session-timeout", "9s"]).start_in(&hosts[3]);
    let masters = ["m1:1", "m2:1"].map(|address| start(bench.master(address)));
    let worker = start(bench.worker("w"));
    tree.wait_worker("w");
    let long = tree.submit_with(&bench.alive("signs", "go", "shell"), |_| ());
    bench.wait_sign("signs", 1);
    let at = format!("connected server={}", ensemble.servers[follower].connect_string());
    for daemon in masters.iter().chain([&worker]) {
        daemon.wait_stderr(&at);
    }
    for other in &others {
        hosts[3].join_to(other);
    }
    let (before, session) = (instance(&bench, "w"), tree.owner("/workers/w"));
    let cut_ms = last_proof_ms(&ensemble.servers[follower].transactions(), session);
    for other in &others {
        hosts[follower].cut_from(other);
    }

    let tasks: Vec<TaskName> = (0..20).map(|i| tree.submit(&bench.note("runs", &i.to_string()))).collect();
    assert_eq!(tree.wait_all(&tasks), 20);
    let leader = (0..3).find(|server| *server != follower).expect("there are three");
    let log = ensemble.servers[leader].transactions();
    let back = tree.owner("/workers/w");
    let back_ms = log.iter().find(|txn| txn.session == back).expect("it began").time_ms;
    println!(
        "the worker is back on another server {} ms after its last proof on the one that was cut off",
        back_ms - cut_ms
    );
    assert_ne!(back, session);
    assert!(back_ms - cut_ms < TIMEOUT_MS, "before anybody could take it for lost");
    assert_eq!(bench.lines("runs").len(), 20, "each once");
    bench.open("go");
    tree.expect(long, "done");
    assert_eq!(tree.children(&paths::task(&long)), ["status"], "no attempt was lost");
    let signs = bench.signs("signs");
    assert!(signs.iter().all(|sign| sign.pid == signs[0].pid), "it was not touched");
    assert_eq!(instance(&bench, "w"), before, "the same life");
    tree.wait_nothing_assigned();
    well(&[&masters[0], &masters[1], &worker]);
    drop(ensemble);
}

#[test]
fn a_client_that_is_cut_off_while_it_waits_says_nothing_and_then_the_result() {
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let (server, bench) = served(&hosts, "client");
    let master = bench.master("m:1").start_in(&hosts[0]);
    let worker = bench.worker("w").start_in(&hosts[0]);
    bench.tree.wait_worker("w");
    let client =
        |args: &[&str]| -> Daemon { bench.client().env("ZK_SESSION_TIMEOUT", "2s").args(args).start_in(&hosts[1]) };
    let run = client(&["run", "--", &format!("{}; echo out; exit 3", bench.gate("go"))]);
    let task = wait_for("the task", || bench.tree.children(paths::TASKS).pop().ok_or_else(String::new));
    let wait = client(&["wait", &task]);
    let task: TaskName = task.parse().expect("ZooKeeper makes names of tasks");
    let daemons = [paths::MASTER, "/workers/w"].map(|path| bench.tree.owner(path));
    let waiting = wait_for("both clients to watch", || {
        let watches = server.four_letter("wchp").map_err(|error| error.to_string())?;
        let session = |line: &str| i64::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok();
        let mut sessions: BTreeSet<i64> = watches.lines().filter_map(session).collect();
        sessions.retain(|session| !daemons.contains(session));
        if sessions.len() == 2 { Ok(sessions) } else { Err(watches) }
    });
    hosts[1].link_down();
    bench.open("go");
    bench.tree.expect(task, "failed");
    for session in waiting {
        wait_end_of(&server, session);
    }
    for client in [&run, &wait] {
        assert_eq!((client.exited(), client.stdout()), (None, String::new()));
    }
    hosts[1].link_up();
    assert_eq!((run.wait_exit(20 * SECOND).code(), run.stdout().as_str()), (Some(3), "out\n"));
    assert_eq!((wait.wait_exit(20 * SECOND).code(), wait.stdout()), (Some(3), format!("{task}\tfailed\t3\n")));
    assert!(count(&run, "\n") + count(&wait, "\n") <= 4, "hardly a word: {} {}", run.stderr(), wait.stderr());
    well(&[&master, &worker]);
}
