//! The doctor and a running cluster: no false alarm, and no harm.

mod common;

use std::collections::BTreeSet;

use common::{Bench, SECOND, count, well};
use e2e::{Daemon, wait_for};
use znode_paths::TaskName;

/// Runs the doctor: its code, and what it says.
#[track_caller]
fn doctor(bench: &Bench, args: &[&str]) -> (i32, String) {
    let client = bench.client().arg("doctor").args(args).start();
    let code = client.wait_exit(60 * SECOND).code().expect("it is not killed");
    assert_eq!(client.stderr(), "");
    (code, client.stdout())
}

fn cluster(bench: &Bench) -> Vec<Daemon> {
    let masters = ["m1:2223", "m2:2223"].map(|address| bench.master(address).start());
    let workers = ["w1", "w2", "w3"].map(|name| bench.worker(name).start());
    ["w1", "w2", "w3"].iter().for_each(|name| bench.tree.wait_worker(name));
    masters.into_iter().chain(workers).collect()
}

#[test]
fn tasks_that_flow_are_no_alarm() {
    let bench = Bench::shared("doctor-busy");
    let daemons = cluster(&bench);
    let mut tasks = Vec::new();
    for round in 0..50 {
        tasks.extend((0..10).map(|_| bench.tree.submit(&bench.note("ran", "$ZK_TASK"))));
        tasks.push(bench.tree.submit_with("false", |meta| (meta.retries, meta.backoff_ms) = (1, 10)));
        assert_eq!(doctor(&bench, &[]), (0, "0 wrong, 0 repaired\n".to_owned()), "round {round}");
    }
    bench.tree.wait_all(&tasks);
    assert_eq!(doctor(&bench, &["--fix"]).0, 0);
    well(&daemons.iter().collect::<Vec<_>>());
}

/// The daemons mend most of it themselves. Whoever does it: all is well afterwards, what ran runs on, and each task has
/// run once.
#[test]
fn a_running_cluster_is_repaired_without_harm() {
    let bench = Bench::shared("doctor-fix");
    let daemons = cluster(&bench);
    let tree = &bench.tree;
    let running: Vec<TaskName> = (0..3)
        .map(|n| tree.submit(&format!("{}; {}", bench.gate("gate"), bench.note("ran", &format!("r{n}")))))
        .collect();
    wait_for("all to run", || match tree.assigned().len() {
        3 => Ok(()),
        some => Err(format!("{some}")),
    });
    tree.create("/workers/no name", "");
    tree.create("/workers/persistent", "x:1");
    tree.create("/live/00000000000000cc-1", "x:1\n{\"zk\":1,\"role\":\"worker\"}");
    tree.create("/assign/no name", "");
    tree.create("/assign/no name/below", "");
    tree.create("/assign/w1/x", "");
    tree.create("/tasks/task-1", "echo lost");
    tree.create("/assign/w2/task-0000000099", "");
    tree.create("/assign/gone", "");
    tree.create(
        "/assign/gone/task-0000000000",
        "\n{\"zk\":1,\"instance\":\"00000000000000dd\",\"fence\":1,\"attempt\":9,\"task\":1}",
    );
    let undecodable = tree.submit_data(b"\xff");
    tree.create(&format!("/tasks/{}/attempt-7", running[1]), "perhaps");
    tree.ask(|session| session.write("/assign/w3", b"{\"zk\":1,\"drain\":7}", None)).expect("it is there");
    tree.delete("/assign/gone/none");
    let (code, said) = doctor(&bench, &["--fix"]);
    assert_eq!(code, 0, "{said}");
    for mended in ["/workers/no name", "/workers/persistent", "/assign/no name", "/assign/w1/x", "/tasks/task-1"] {
        assert!(said.contains(&format!("repaired: {mended}: ")) && tree.stat(mended).is_none(), "{mended}: {said}");
    }
    assert_eq!(doctor(&bench, &[]), (0, "0 wrong, 0 repaired\n".to_owned()));
    tree.expect(undecodable, "failed");
    let more: Vec<TaskName> = (0..20).map(|n| tree.submit(&bench.note("ran", &format!("m{n}")))).collect();
    bench.open("gate");
    assert_eq!(tree.wait_all(&running) + tree.wait_all(&more), 23);
    let ran = bench.lines("ran");
    assert_eq!((ran.len(), ran.iter().collect::<BTreeSet<_>>().len()), (23, 23), "each has run once: {ran:?}");
    tree.wait_nothing_assigned();
    well(&daemons.iter().collect::<Vec<_>>());
    assert_eq!(daemons.iter().map(|daemon| count(daemon, "recorded a lost attempt")).sum::<usize>(), 0);
}
