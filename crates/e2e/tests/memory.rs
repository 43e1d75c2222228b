//! What many tasks leave in a worker: nothing.

mod common;

use std::{fs, time::Instant};

use common::{Bench, inner, well};
use e2e::wait_for;
use zk_session::in_parallel;
use znode_paths::{Worker, paths};

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
    /// Processes below it, zombies too.
    children: usize,
}

fn used(pid: i32) -> Use {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    Use {
        rss_kib: rss.and_then(|rss| rss.parse().ok()).unwrap_or(u64::MAX),
        descriptors: count("fd"),
        threads: count("task"),
        children: children.split_whitespace().count(),
    }
}

/// So many tasks in each batch. After the first of them the worker knows as many kept folders by name as it ever does.
const BATCH: usize = 250;
const FIRST: usize = 6;

/// So many batches more, unless the environment says otherwise. What is kept of a task makes every batch grow, the allocator
/// now and then: so the median tells the one from the other, with far fewer than 10,000 tasks.
const BATCHES: usize = 5;

/// 16 bytes of each task.
const NOISE_KIB: u64 = 4;

/// The `zookeeper` crate keeps what it receives in a buffer of 2 MiB, which it uses anew when it is full: page by page that becomes
/// memory. So it is filled first, by somebody who writes to the worker's registration: the worker reads that.
fn fill_receive_buffer(bench: &Bench) {
    let path = paths::worker(&"w".parse().expect("a name"));
    let own = bench.tree.data(&path).expect("it is registered");
    let mut registration = Worker::decode(&own).expect("it is one of ours");
    let meta = registration.meta.as_mut().expect("it is not made by hand");
    meta.labels.insert("large".to_owned(), "x".repeat(900_000));
    for _ in 0..5 {
        bench.tree.ask(|session| session.write(&path, &registration.encode(), None)).expect("it is there");
        wait_for("the worker to write what it was", || match bench.tree.data(&path) {
            Some(data) if data == own => Ok(()),
            other => Err(format!("{} bytes", other.map_or(0, |data| data.len()))),
        });
    }
}

#[test]
fn thousands_of_tasks_leave_no_memory_descriptor_thread_or_zombie() {
    let bench = Bench::shared("many");
    let batches = std::env::var("E2E_BATCHES").map_or(BATCHES, |number| number.parse().unwrap());
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--slots", "8", "-q"]).start();
    bench.tree.wait_worker("w");
    fill_receive_buffer(&bench);
    let pid = inner(&worker).as_raw_nonzero().get();
    let began = Instant::now();
    let mut took = Vec::new();
    let mut batch = || {
        let began = Instant::now();
        let items = vec![(); BATCH];
        let tasks = in_parallel(&items, |()| bench.tree.submit_with(":", |_| ()));
        let done = in_parallel(&tasks, |task| bench.tree.wait_status(*task).outcome.word() == "done");
        assert_eq!(done.into_iter().filter(|done| *done).count(), BATCH);
        bench.tree.wait_nothing_assigned();
        took.push(began.elapsed().as_millis());
        used(pid)
    };
    let first: Vec<Use> = (0..FIRST).map(|_| batch()).collect();
    let before = batch();
    let after: Vec<Use> = (0..batches).map(|_| batch()).collect();
    let sizes = [before].iter().chain(&after).map(|used| used.rss_kib).collect::<Vec<_>>();
    let (count, warm) = (BATCH * (FIRST + 1 + batches), first.iter().map(|used| used.rss_kib).collect::<Vec<_>>());
    println!("{count} tasks in {} ms, {took:?}: {warm:?} {sizes:?} KiB, {before:?}", began.elapsed().as_millis());
    let mut growth: Vec<u64> = sizes.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    growth.sort_unstable();
    assert!(growth[growth.len() / 2] <= NOISE_KIB, "it grows with every batch: {sizes:?} KiB");
    wait_for("the worker to be as it was", || {
        let now = used(pid);
        let same = now.descriptors <= before.descriptors && now.threads <= before.threads && now.children == 0;
        if same { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
    });
    assert!(after.iter().all(|used| used.threads <= before.threads + 8), "no thread for each task: {after:?}");
    well(&[&master, &worker]);
}
