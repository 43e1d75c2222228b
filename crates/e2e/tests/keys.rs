//! The same key is the same task (PROTOCOL section 3, Clients).

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod common;

use common::{Bench, SECOND, well};

use std::time::{Duration, Instant};

use e2e::{Daemon, daemon::Launch, stays, wait_for};
use znode_paths::{Key, Task, TaskMeta, TaskName, paths};

fn submit(bench: &Bench, key: &str, command: &str) -> Launch {
    bench.client().args(["submit", "--key", key, "--", command])
}

/// What it printed; it succeeds.
#[track_caller]
fn printed(client: &Daemon) -> String {
    let status = client.wait_exit(Duration::from_secs(120));
    assert!(status.success(), "{}", client.stderr());
    client.stdout()
}

fn meta(bench: &Bench, task: TaskName) -> TaskMeta {
    Task::decode(&bench.tree.data(&paths::task(&task)).unwrap()).unwrap().meta.unwrap()
}

#[track_caller]
fn wait_gone(bench: &Bench, path: &str) {
    wait_for(&format!("{path} to go"), || bench.tree.text(path).map_or(Ok(()), Err));
}

#[test]
fn a_hundred_clients_with_one_key_at_the_same_time_are_one_task() {
    let bench = Bench::shared("hundred");
    let (master, worker) = (bench.master("m:2223").start(), bench.worker("w").start());
    bench.tree.wait_worker("w");
    let clients: Vec<Daemon> = (0..100).map(|_| submit(&bench, "nightly", &bench.note("runs", "1")).start()).collect();
    let answers: Vec<String> = clients.iter().map(printed).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let task: TaskName = answers[0].trim().parse().unwrap();
    bench.tree.expect(task, "done");
    wait_for("the others to go", || match bench.tree.children("/tasks") {
        left if left == [task.to_string()] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    bench.tree.wait_nothing_assigned();
    assert_eq!(bench.lines("runs"), ["1"]);
    assert_eq!(printed(&submit(&bench, "nightly", &bench.note("runs", "1")).start()), answers[0], "also later");
    well(&[&master, &worker]);
}

#[test]
fn who_uses_a_key_for_another_command_is_told() {
    let bench = Bench::shared("another");
    bench.tree.make(&["/tasks"]);
    let first = submit(&bench, "a/b c", "one").start();
    assert_eq!((printed(&first).as_str(), first.stderr().as_str()), ("task-0000000000\n", ""));
    let same = submit(&bench, "a/b c", "one").start();
    assert_eq!((printed(&same).as_str(), same.stderr().as_str()), ("task-0000000000\n", ""));
    for args in [&["two"][..], &["--priority", "1", "one"]] {
        let other = bench.client().args(["submit", "--key", "a/b c"]).args(args).start();
        assert_eq!(printed(&other), "task-0000000000\n");
        assert!(
            other.stderr().contains("task-0000000000 was submitted under this key with another command"),
            "{}",
            other.stderr()
        );
    }
    assert_eq!(printed(&submit(&bench, "a/b", "one").start()), "task-0000000001\n", "another key is another task");
    assert_eq!(bench.tree.children("/tasks").len(), 2);
    assert_eq!(bench.tree.children("/keys"), ["a%2Fb", "a%2Fb%20c"]);
}

#[test]
fn a_key_without_a_task_is_used_by_the_next() {
    let bench = Bench::shared("orphan");
    bench.tree.make(&["/tasks", "/keys"]);
    bench.tree.submit("not it");
    // By hand, or by a client that died before it had created the task.
    for (key, data, id) in [("typed", "my id", "my id"), ("empty", "", "key empty"), ("strange", "x\n{\"zk\":1}", "x")]
    {
        bench.tree.create(&paths::key(key), data);
        let begun = Instant::now();
        let task: TaskName = printed(&submit(&bench, key, "x").start()).trim().parse().unwrap();
        assert_eq!(meta(&bench, task).submit.as_deref(), Some(id));
        assert!(begun.elapsed() < 10 * SECOND, "it took {:?}", begun.elapsed());
        assert_eq!(printed(&submit(&bench, key, "x").start()), format!("{task}\n"));
    }
}

#[test]
fn the_key_goes_with_its_task_and_is_free_then() {
    let bench = Bench::shared("freed");
    let (master, worker) = (bench.master("m:2223").start(), bench.worker("w").start());
    bench.tree.wait_worker("w");
    let run =
        || -> TaskName { printed(&submit(&bench, "k", &bench.note("runs", "x")).start()).trim().parse().unwrap() };
    let first = run();
    bench.tree.expect(first, "done");
    let id = Key::decode(&bench.tree.data("/keys/k").unwrap()).submit;
    // A late copy of the first submit goes, and the key stays.
    let copy = bench.tree.submit_with("x", |meta| (meta.submit, meta.key) = (Some(id.clone()), Some("k".to_owned())));
    wait_gone(&bench, &paths::task(&copy));
    assert_eq!(run(), first);
    assert_eq!(printed(&bench.client().args(["rm", &first.to_string()]).start()), "");
    // Submitted while it is being removed, or after that.
    let second = run();
    assert_ne!(second, first);
    bench.tree.expect(second, "done");
    assert_ne!(meta(&bench, second).submit, Some(id));
    assert_eq!(bench.lines("runs"), ["x", "x"]);
    assert!(bench.tree.stat(&paths::task(&first)).is_none());
    assert_eq!(Key::decode(&bench.tree.data("/keys/k").unwrap()).submit, meta(&bench, second).submit.unwrap());
    well(&[&master, &worker]);
}

#[test]
fn a_key_whose_task_is_being_removed_is_not_free_yet() {
    let bench = Bench::shared("removing");
    bench.tree.make(&["/tasks"]);
    printed(&submit(&bench, "k", "true").start());
    let task = TaskName::from_number(0);
    bench.tree.create(&paths::status(&task), "done");
    printed(&bench.client().args(["rm", &task.to_string()]).start());
    // No master is there to remove it.
    let early = bench.client().args(["--connect-timeout", "2s", "submit", "--key", "k", "true"]).start();
    assert_eq!(early.wait_exit(30 * SECOND).code(), Some(125));
    assert!(early.stderr().contains("is being removed") && early.stderr().lines().count() == 1, "{}", early.stderr());
    let next = submit(&bench, "k", "true").start();
    stays("waiting", SECOND / 4, || next.exited().map_or(Ok(()), |status| Err(status.to_string())));
    let master = bench.master("m:2223").start();
    assert_eq!(printed(&next), "task-0000000001\n");
    well(&[&master]);
}
