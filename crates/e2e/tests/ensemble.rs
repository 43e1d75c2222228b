//! ZooKeeper servers that die and come back, one by one and all at once.

mod common;

use std::time::{Duration, Instant};

use common::{Bench, SECOND, check_no_overlap, count, inner, well};
use e2e::{Cluster, Daemon, Ensemble, Server, cluster::Shape, stays};
use znode_paths::paths;

#[test]
fn servers_that_die_or_are_restarted_one_by_one_touch_no_task_and_none_runs_twice() {
    let shape = Shape { masters: 2, workers: 2, slots: 4, session_timeout: 20 * SECOND };
    let mut cluster = Cluster::start(&shape);
    let gate = tempfile::tempdir().expect("a directory can be made");
    let command = format!("while [ -d '{}' ]; do sleep 0.05; done; echo $$", gate.path().display());
    let long = [(); 2].map(|()| cluster.load.tree.submit_with(&command, |_| ()));
    let flow = cluster.load.flow(Duration::from_millis(100), SECOND, 7);
    let daemons = |cluster: &Cluster| -> Vec<_> {
        cluster.masters.iter().chain(&cluster.workers).map(|member| inner(&member.daemon)).collect()
    };
    let before = daemons(&cluster);

    let (leader, follower) = (cluster.ensemble.leader(), cluster.ensemble.follower());
    let kill: fn(&mut Server) = Server::kill;
    let stop: fn(&mut Server) = Server::terminate;
    let faults = [("a follower killed", follower, kill), ("the leader killed", leader, kill)];
    let restarts = (0..3).map(|server| ("a server stopped", server, stop));
    for (what, server, fault) in faults.into_iter().chain(restarts) {
        let began = Instant::now();
        fault(&mut cluster.ensemble.servers[server]);
        cluster.settle();
        println!("{what}: all daemons have one session each after {} ms", began.elapsed().as_millis());
        cluster.ensemble.servers[server].restart();
    }
    let accepted = flow.stop();
    assert!(accepted.len() > 10, "they kept coming: {}", accepted.len());
    assert!(long.iter().all(|task| cluster.load.tree.status(*task).is_none()));
    drop(gate);
    for task in long {
        let status =
            cluster.load.tree.expect(task, "done").meta.expect("a task with metadata has a status with metadata");
        assert_eq!(status.attempt, Some(1));
        assert_eq!(cluster.load.tree.children(&paths::task(&task)), ["status"], "it was not touched");
    }
    let verdict = cluster.judge(&accepted);
    assert_eq!((verdict.lost, verdict.again, verdict.wrong.len()), (0, 0, 0), "{verdict:?}");
    assert_eq!(daemons(&cluster), before, "no daemon has been started again");
    for member in cluster.masters.iter().chain(&cluster.workers) {
        well(&[&member.daemon]);
    }
}

#[test]
fn when_the_whole_ensemble_is_away_for_too_long_no_daemon_exits_and_all_goes_on_by_itself() {
    let mut ensemble = Ensemble::start();
    let bench = Bench::at(ensemble.chroot("away"));
    let tree = &bench.tree;
    let start = |launch: e2e::daemon::Launch| launch.args(["--session-timeout", "4s"]).start();
    let masters = ["m1:1", "m2:1"].map(|address| start(bench.master(address)));
    let worker = start(bench.worker("w"));
    tree.wait_worker("w");
    let again = tree.submit_with(&bench.tick("again", "go"), |_| ());
    let once = tree.submit_with(&bench.tick("once", "go"), |meta| meta.no_requeue = true);
    bench.wait_tick("again", 1);
    bench.wait_tick("once", 1);
    let all: Vec<&Daemon> = masters.iter().chain([&worker]).collect();
    let (before, lines): (Vec<_>, Vec<_>) = all.iter().map(|daemon| (inner(daemon), count(daemon, "\n"))).unzip();

    for server in &mut ensemble.servers {
        server.kill();
    }
    let killed = "could not prove for 3/4 of the session timeout";
    worker.wait_stderr(killed);
    let ticks = || bench.lines("again").len() + bench.lines("once").len();
    let then = ticks();
    // Long enough for several more deadlines.
    stays("silence", 6 * SECOND, || match ticks() - then {
        0 => Ok(()),
        more => Err(format!("{more} ticks more")),
    });
    assert_eq!(count(&worker, killed), 1, "what runs nothing needs to prove nothing");
    for server in &mut ensemble.servers {
        server.relaunch();
    }
    for server in &ensemble.servers {
        server.wait_ready();
    }
    tree.expect(once, "lost");
    bench.wait_tick("again", 2);
    bench.open("go");
    assert_eq!(tree.expect(again, "done").meta.expect("as the task").attempt, Some(2));
    check_no_overlap(&bench.lines("again"));
    assert!(bench.lines("once").iter().all(|line| line.starts_with("1 ")), "it may start once only");
    tree.wait_nothing_assigned();
    for ((daemon, before), lines) in all.iter().zip(before).zip(lines) {
        assert_eq!(inner(daemon), before, "it is the same process");
        let said = count(daemon, "\n") - lines;
        assert!(said <= 20, "{said} lines for one outage: {}", daemon.stderr());
    }
    well(&all);
}
