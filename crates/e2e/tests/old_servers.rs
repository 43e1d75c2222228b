//! On servers before 3.6, which know no watches on all below a znode and no several reads in one request.

mod common;

use std::{fs, time::Duration};

use common::{Bench, count, well};
use e2e::{Server, Wire};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_cluster_on_old_servers_loses_one_session_to_find_out_and_then_runs_what_it_is_given() {
    let server = Server::shared();
    let wire = Wire::as_before_3_6(&server.connect_string());
    let chroot = server.chroot("old").replace(&server.connect_string(), "");
    let bench = Bench::seen_from(wire.connect_string() + &chroot, None);
    let master = bench.master("m:1").start();
    let worker = bench.worker("w").env("ZK_SLOTS", "8").start();
    bench.tree.wait_worker("w");
    fs::write(bench.path("lines"), "true\n".repeat(200)).unwrap();
    let client = bench.client().args(["batch", "--plain"]).arg(bench.path("lines")).start();
    assert!(client.wait_exit(LIMIT).success(), "{}", client.stderr());
    assert_eq!(client.stdout().lines().count(), 200);
    // What runs is stopped there, too.
    let task = bench.tree.submit("sleep 600");
    bench.tree.wait_assigned("w", task);
    let cancel = bench.client().args(["cancel", &task.to_string()]).start();
    assert!(cancel.wait_exit(LIMIT).success(), "{}", cancel.stderr());
    bench.tree.expect(task, "cancelled");
    bench.tree.wait_nothing_assigned();
    for daemon in [&master, &worker] {
        let losses = count(daemon, "session lost");
        assert!((1..=3).contains(&losses), "{losses}: {}", daemon.stderr());
    }
    well(&[&master, &worker]);
}
