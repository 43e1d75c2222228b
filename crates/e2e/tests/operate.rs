//! What an operator does to tasks and workers that are there, with our daemons and without them.

mod common;

use common::{Bench, SECOND, well};

use std::time::Duration;

use e2e::{Daemon, Server, TxnKind, stays, wait_for};
use znode_paths::{DecodeError, Task, TaskMeta, TaskName, paths};

/// Exit code, stdout, stderr.
#[track_caller]
fn client(bench: &Bench, args: &[&str]) -> (i32, String, String) {
    let client = bench.client().args(args).start();
    let status = client.wait_exit(Duration::from_secs(60));
    (status.code().expect("it is not killed"), client.stdout(), client.stderr())
}

/// It succeeds and says nothing.
#[track_caller]
fn quiet(bench: &Bench, args: &[&str]) {
    assert_eq!(client(bench, args), (0, String::new(), String::new()), "{args:?}");
}

/// It fails with 125 and one line that contains this.
#[track_caller]
fn fails(bench: &Bench, args: &[&str], says: &str) {
    let (code, stdout, stderr) = client(bench, args);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (125, "", 1), "{args:?}: {stderr}");
    assert!(stderr.contains(says), "{args:?}: {says:?} is not in {stderr:?}");
}

/// A tree with a master and a worker `w`.
fn pair(name: &str) -> (Bench, Daemon, Daemon) {
    let bench = Bench::shared(name);
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    (bench, master, worker)
}

#[track_caller]
fn wait_tasks(bench: &Bench, names: &[TaskName]) {
    let names: Vec<String> = names.iter().map(TaskName::to_string).collect();
    wait_for("the tasks", || {
        let tasks = bench.tree.children("/tasks");
        if tasks == names { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
}

#[test]
fn cancel_asks_for_the_end_and_waits_for_nothing() {
    let bench = Bench::shared("cancel");
    bench.tree.make(&["/tasks"]);
    let (open, done) = (bench.tree.submit("x"), bench.tree.submit("x"));
    bench.tree.create(&paths::status(&done), "done");
    let (one, two) = (open.to_string(), done.to_string());
    quiet(&bench, &["cancel", &one]);
    quiet(&bench, &["cancel", &one, &one]);
    assert!(bench.tree.stat(&paths::cancel(&open)).is_some());
    // It will not run on, which is what was wanted.
    let (code, stdout, stderr) = client(&bench, &["cancel", "--json", &two, &one]);
    assert_eq!((code, stderr), (0, format!("zk-client: {two} has ended already: done\n")));
    assert_eq!(stdout, format!("{{\"task\":\"{two}\",\"state\":\"done\"}}\n{{\"task\":\"{one}\"}}\n"));
    assert!(bench.tree.stat(&paths::cancel(&done)).is_none());
    fails(&bench, &["cancel", "task-0000000077"], "cannot cancel: no such task: task-0000000077");
    let third = bench.tree.submit("x");
    fails(&bench, &["cancel", "task-0000000077", &third.to_string()], "no such task: task-0000000077");
    assert!(bench.tree.stat(&paths::cancel(&third)).is_some(), "the others are cancelled all the same");
}

#[test]
fn a_finished_task_is_removed_and_an_unfinished_one_is_not() {
    let (bench, master, worker) = pair("rm");
    let waiting = bench.tree.submit_with("x", |meta| meta.on = Some("nobody".parse().unwrap()));
    let done = [bench.tree.submit("true"), bench.tree.submit_with("true", |_| ())];
    assert_eq!(bench.tree.wait_all(&done), 2);
    fails(&bench, &["rm", &waiting.to_string()], &format!("{waiting} has not ended: wait for it, or stop it"));
    quiet(&bench, &["rm", &done[0].to_string(), &done[1].to_string()]);
    wait_tasks(&bench, &[waiting]);
    fails(&bench, &["rm", &done[0].to_string()], "no such task");
    well(&[&master, &worker]);
}

#[test]
fn what_is_removed_is_gone_for_readers_and_stays_for_those_that_wait_for_it() {
    let bench = Bench::shared("rm-after");
    bench.tree.make(&["/tasks"]);
    let first = bench.tree.submit("true");
    bench.tree.create(&paths::status(&first), "done");
    let after = bench.note("runs", "after");
    let second = bench.tree.submit_with(&after, |meta| meta.after = vec![first]);
    // No master is there: the mark waits for one.
    quiet(&bench, &["rm", &first.to_string()]);
    quiet(&bench, &["rm", &first.to_string()]);
    fails(&bench, &["show", &first.to_string()], "no such task");
    fails(&bench, &["retry", &first.to_string()], "no such task");
    let (code, stdout, _) = client(&bench, &["list", "--json"]);
    assert!(code == 0 && stdout.lines().count() == 1 && stdout.contains(&second.to_string()), "{stdout}");
    let master = bench.master("m:2223").start();
    // Nobody may run the second one yet, so the first one is needed.
    stays("the first one", SECOND / 2, || {
        bench.tree.stat(&paths::status(&first)).map(drop).ok_or_else(|| bench.tree.picture().to_string())
    });
    let worker = bench.worker("w").start();
    bench.tree.expect(second, "done");
    wait_tasks(&bench, &[second]);
    assert_eq!(bench.lines("runs"), ["after"]);
    well(&[&master, &worker]);
}

/// A task whose status was deleted, and whose remover died then, looks like one that never ran.
#[test]
fn a_half_removed_task_is_removed_and_never_run_again() {
    let bench = Bench::shared("half");
    bench.tree.make(&["/tasks"]);
    let command = bench.note("runs", "again");
    let task = Task { command: command.clone(), meta: Some(TaskMeta::new("s".to_owned())) };
    let ours = bench.tree.submit_data(&Task::removed(&task.encode()).encode());
    let by_hand = bench.tree.submit_data(&Task::removed(command.as_bytes()).encode());
    bench.tree.create(&paths::attempt(&by_hand, 1), "lost");
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    wait_tasks(&bench, &[]);
    // Also when the primary knows it as one that runs.
    let running = bench.tree.submit(&format!("{}; {}", bench.note("runs", "once"), bench.gate("never")));
    bench.wait_lines("runs", 1);
    let data = Task::removed(&bench.tree.data(&paths::task(&running)).unwrap()).encode();
    bench.tree.ask(|session| session.write(&paths::task(&running), &data, None)).unwrap();
    wait_tasks(&bench, &[]);
    bench.tree.wait_nothing_assigned();
    assert_eq!(bench.lines("runs"), ["once"]);
    assert!(bench.tree.stat(&paths::task(&ours)).is_none());
    well(&[&master, &worker]);
}

/// Whoever removes a task may die at any moment of it.
#[test]
fn a_task_is_marked_before_anything_of_it_is_deleted() {
    let server = Server::start();
    let bench = Bench::at(server.chroot("mark"));
    bench.tree.make(&["/tasks"]);
    let same = |meta: &mut TaskMeta| meta.submit = Some("same".to_owned());
    let first = bench.tree.submit_with("true", same);
    // What the primary removes by itself.
    let second = bench.tree.submit_with("true", same);
    bench.tree.create(&paths::status(&second), "done");
    let _master = bench.master("m:2223").start();
    wait_tasks(&bench, &[first]);
    // Marks and deletes, in the order in which they were committed.
    let path = paths::task(&second);
    let steps = server.transactions().into_iter().filter_map(|txn| match txn.kind {
        TxnKind::SetData { path: at, data } if at.ends_with(&path) => {
            Some(format!("mark {}", Task::decode(&data) == Err(DecodeError::Removed)))
        }
        TxnKind::Delete { path: at } => at.split_once(&path).map(|(_, child)| format!("delete {child}")),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), ["mark true", "delete /status", "delete "]);
}

#[test]
fn a_task_is_tried_again_with_the_same_command_and_options() {
    let (bench, master, worker) = pair("retry");
    let failing = |meta: &mut TaskMeta| {
        (meta.name, meta.priority, meta.key) = (Some("n".to_owned()), 3, Some("k".to_owned()));
    };
    let ours = bench.tree.submit_with(&format!("{}; exit 3", bench.note("runs", "x")), failing);
    let by_hand = bench.tree.submit(&format!("{}; exit 4", bench.note("runs", "y")));
    bench.tree.wait_all(&[ours, by_hand]);
    let (code, stdout, stderr) = client(&bench, &["retry", &ours.to_string(), &by_hand.to_string()]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "task-0000000002\ntask-0000000003\n", ""));
    let again = [2, 3].map(TaskName::from_number);
    bench.tree.wait_all(&again);
    bench.wait_lines("runs", 4);
    let meta = |task| Task::decode(&bench.tree.data(&paths::task(&task)).unwrap()).unwrap().meta;
    let (before, after) = (meta(ours).unwrap(), meta(again[0]).unwrap());
    assert_ne!(before.submit, after.submit);
    assert_eq!(TaskMeta { submit: None, key: None, ..before }, TaskMeta { submit: None, ..after });
    assert_eq!(meta(again[1]), None);
    let waiting = bench.tree.submit_with("x", |meta| meta.on = Some("nobody".parse().unwrap()));
    fails(&bench, &["retry", &waiting.to_string()], "has not ended");
    let (_, stdout, _) = client(&bench, &["retry", "--json", &ours.to_string()]);
    assert_eq!(stdout, format!("{{\"task\":\"task-0000000005\",\"retries\":\"{ours}\"}}\n"));
    well(&[&master, &worker]);
}

#[test]
fn a_drained_worker_finishes_what_runs_and_gets_nothing_new_also_after_a_restart() {
    let (bench, master, worker) = pair("drain");
    let running = bench.tree.submit(&format!("{}; {}", bench.gate("go"), bench.note("runs", "running")));
    wait_for("the task to be assigned", || {
        bench.tree.stat(&format!("/assign/w/{running}")).map(drop).ok_or_else(|| bench.tree.picture())
    });
    bench.tree.ask(|session| session.write("/assign/w", b"note\n{\"zk\":1,\"rack\":\"r7\"}", None)).unwrap();
    quiet(&bench, &["drain", "w"]);
    quiet(&bench, &["drain", "w"]);
    assert_eq!(bench.tree.text("/assign/w").unwrap(), "note\n{\"drain\":true,\"rack\":\"r7\",\"zk\":1}");
    let waiting = bench.tree.submit(&bench.note("runs", "waiting"));
    bench.open("go");
    bench.tree.expect(running, "done");
    worker.signal(e2e::Signal::TERM);
    worker.wait_exit(Duration::from_secs(30));
    drop(worker);
    let (code, stdout, stderr) = client(&bench, &["drain", "--json", "w"]);
    assert_eq!((code, stdout.as_str()), (0, "{\"worker\":\"w\",\"drain\":true}\n"));
    assert!(stderr.contains("w is not registered now"), "{stderr}");
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    stays("waiting", SECOND / 2, || bench.tree.status(waiting).map_or(Ok(()), Err));
    quiet(&bench, &["undrain", "w"]);
    bench.tree.expect(waiting, "done");
    assert_eq!(bench.lines("runs"), ["running", "waiting"]);
    assert_eq!(bench.tree.text("/assign/w").unwrap(), "note\n{\"rack\":\"r7\",\"zk\":1}");
    fails(&bench, &["drain", "nobody"], "cannot drain: no such worker: nobody");
    fails(&bench, &["undrain", "nobody"], "cannot undrain: no such worker: nobody");
    assert_eq!(bench.tree.children("/assign"), ["w"], "no node is made for a worker that nobody knows");
    well(&[&master, &worker]);
}

#[test]
fn a_worker_registered_by_hand_can_be_drained_before_it_has_a_node() {
    let bench = Bench::shared("drain-hand");
    bench.tree.make(&["/workers", "/tasks", "/assign"]);
    bench.tree.create_ephemeral("/workers/hand", "hand:1");
    quiet(&bench, &["undrain", "hand"]);
    assert_eq!(bench.tree.children("/assign"), Vec::<String>::new());
    quiet(&bench, &["drain", "hand"]);
    assert_eq!(bench.tree.text("/assign/hand").unwrap(), "\n{\"drain\":true,\"zk\":1}");
    quiet(&bench, &["undrain", "hand"]);
    assert_eq!(bench.tree.text("/assign/hand").unwrap(), "");
}
