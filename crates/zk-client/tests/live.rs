//! The client against a real ZooKeeper, in which the test plays all other roles by hand.

mod common;

use std::sync::Arc;
use std::time::Duration;

use e2e::{Daemon, Ensemble, Server, Signal, stays, wait_for};
use zk_session::{Config, Kind, Session};

use common::{CLIENT, LIMIT, Tree, ended};

// --- submit

#[test]
fn submit_prints_the_name_and_nothing_else() {
    let tree = Tree::new("submit");
    assert_eq!(tree.prints(&["submit", "--", "echo a; echo b"], 0), "task-0000000000\n");
    assert_eq!(tree.prints(&["submit", "--json", "true"], 0), "{\"task\":\"task-0000000001\"}\n");
    assert_eq!(tree.prints(&["submit", "--plain", "--", "cmd"], 0), "task-0000000002\n");
    assert_eq!(tree.data("/tasks/task-0000000002"), b"cmd", "byte for byte what the transcript shows");
    let data = String::from_utf8(tree.data("/tasks/task-0000000000")).unwrap();
    assert!(data.starts_with("echo a; echo b\n{\"zk\":1,\"submit\":\""), "{data}");
    assert_eq!(tree.session.children("/", false).unwrap().unwrap().len(), 3, "nothing else was made");
}

#[test]
fn a_client_may_start_before_the_first_master() {
    let tree = Tree::empty("early");
    let client = tree.client(&["submit", "true"]).start();
    client.wait_stderr("no master has set up /tasks");
    tree.set_up();
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (0, "task-0000000000\n", 1), "{stderr}");
}

#[test]
fn without_a_master_submit_gives_up_in_time() {
    let tree = Tree::empty("masterless");
    let (code, stdout, stderr) = tree.run(&["--connect-timeout", "300ms", "submit", "true"]);
    assert_eq!((code, stdout.as_str()), (125, ""));
    assert!(stderr.ends_with(": start zk-master\n"), "{stderr}");
    assert_eq!(tree.session.children("/", false).unwrap().unwrap(), Vec::<String>::new());
}

#[test]
fn a_full_queue_refuses() {
    let tree = Tree::new("full");
    for _ in 0..3 {
        tree.task("x");
    }
    let (code, stdout, stderr) = tree.run(&["submit", "--max-queue", "2", "true"]);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (75, "", 1), "{stderr}");
    assert!(stderr.contains("the queue is full: 3 tasks"), "{stderr}");
    assert_eq!(tree.tasks().len(), 3);
    assert_eq!(tree.prints(&["submit", "--max-queue", "3", "true"], 0), "task-0000000003\n");
}

#[test]
fn a_name_that_cannot_be_printed_is_said_in_the_error() {
    let tree = Tree::new("unprinted");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut client = std::process::Command::new(CLIENT);
    let output = client.args(["--zk", &tree.zk, "submit", "true"]).stdout(full).stderr(std::process::Stdio::piped());
    let output = output.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("task-0000000000 was submitted"));
}

// --- wait

#[test]
fn wait_prints_in_the_order_of_completion() {
    let tree = Tree::new("wait");
    let tasks: Vec<String> = (0..4).map(|_| tree.task("x")).collect();
    tree.finish(&tasks[2], "done");
    tree.finish(&tasks[1], "done\n{\"zk\":1,\"exit_code\":0}");
    let args: Vec<&str> = ["wait"].into_iter().chain(tasks.iter().map(String::as_str)).collect();
    let client = tree.client(&args).start();
    client.wait_stdout("task-0000000001");
    tree.finish(&tasks[3], "done");
    client.wait_stdout("task-0000000003");
    stays("waiting", Duration::from_millis(100), || client.exited().map_or(Ok(()), |status| Err(status.to_string())));
    tree.finish(&tasks[0], "failed\n{\"zk\":1,\"signal\":15}");
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stderr.as_str()), (1, ""));
    let expected =
        "task-0000000002\tdone\t-\ntask-0000000001\tdone\t0\ntask-0000000003\tdone\t-\ntask-0000000000\tfailed\t143\n";
    assert_eq!(stdout, expected);
}

#[test]
fn wait_for_one_task_exits_as_it_did() {
    let tree = Tree::new("codes");
    for (status, code, column) in [
        ("done", 0, "-"),
        ("failed", 1, "-"),
        ("failed\n{\"zk\":1,\"exit_code\":3}", 3, "3"),
        ("failed\n{\"zk\":1,\"signal\":9}", 137, "137"),
        ("timeout", 124, "-"),
        ("cancelled\n{\"zk\":1,\"signal\":15}", 130, "143"),
        ("lost", 125, "-"),
        ("erledigt", 1, "-"),
        ("", 1, "-"),
    ] {
        let task = tree.task("x");
        tree.finish(&task, status);
        let word = status.lines().next().unwrap_or_default();
        assert_eq!(tree.prints(&["wait", &task], code), format!("{task}\t{word}\t{column}\n"));
        let json = tree.prints(&["wait", "--json", &task], code);
        assert!(json.starts_with(&format!("{{\"task\":\"{task}\",\"state\":\"{word}\",\"command\":\"x\"")), "{json}");
    }
}

#[test]
fn several_that_are_all_done_are_0() {
    let tree = Tree::new("all-done");
    let tasks = [tree.task("x"), tree.task("y")];
    for task in &tasks {
        tree.finish(task, "done");
    }
    tree.prints(&["wait", &tasks[0], &tasks[1], &tasks[0]], 0);
}

#[test]
fn what_is_not_there_is_said_at_once_and_the_others_are_waited_for() {
    let tree = Tree::new("gone");
    let (code, stdout, stderr) = tree.run(&["wait", "task-0000000007"]);
    assert_eq!((code, stdout.as_str()), (125, ""));
    assert_eq!(stderr, "zk-client: cannot wait: no such task: task-0000000007\n");

    let tasks = [tree.task("x"), tree.task("y")];
    let client = tree.client(&["wait", &tasks[0], "task-0000000007", &tasks[1]]).start();
    client.wait_stderr("no such task: task-0000000007");
    tree.session.delete(&format!("/tasks/{}", tasks[0]), None).unwrap();
    client.wait_stderr("no such task: task-0000000000");
    tree.finish(&tasks[1], "done");
    let (code, stdout, _) = ended(&client);
    assert_eq!((code, stdout.as_str()), (125, "task-0000000001\tdone\t-\n"));
}

#[test]
fn a_tree_that_is_not_there_is_not_made_by_looking_at_it() {
    let server = Server::shared();
    let zk = server.chroot("nowhere");
    let tree = Tree::at(&server.chroot("somewhere"));
    let run = |args: &[&str]| ended(&Daemon::program(CLIENT).args(["--zk", &zk]).args(args).start());
    assert_eq!(run(&["wait", "task-0000000000"]).0, 125);
    assert_eq!(run(&["show", "task-0000000000"]).0, 125);
    assert_eq!(run(&["list"]), (0, "TASK  STATE  WORKER  EXIT  AGE  COMMAND\n".to_owned(), String::new()));
    assert_eq!(run(&["list", "--json"]), (0, String::new(), String::new()));
    assert_eq!(run(&["status"]).0, 0);
    assert_eq!(run(&["workers"]).0, 0);
    let nowhere = Config::new(zk.parse().unwrap(), LIMIT);
    let session = Session::open(&nowhere, 1, &(Arc::new(|_| ()) as _)).unwrap();
    assert_eq!(session.stat("/", false).unwrap(), None);
    drop(tree);
}

#[test]
fn wait_survives_the_death_of_the_server() {
    let mut server = Server::start();
    let zk = server.chroot("outage");
    let tree = Tree::at(&zk);
    tree.set_up();
    let tasks = [tree.task("x"), tree.task("y")];
    let client =
        tree.client(&["--session-timeout", "1s", "--connect-timeout", "1s", "wait", &tasks[0], &tasks[1]]).start();
    tree.finish(&tasks[0], "done");
    client.wait_stdout("task-0000000000");
    server.kill();
    // Longer than all its time-outs.
    client.wait_stderr("is not reached, still waiting");
    server.restart();
    Tree::at(&zk).finish(&tasks[1], "done");
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stderr.lines().count()), (0, 1), "{stderr}");
    assert_eq!(stdout, "task-0000000000\tdone\t-\ntask-0000000001\tdone\t-\n");
}

#[test]
fn wait_into_a_closed_pipe_ends_quietly() {
    let tree = Tree::new("pipe");
    let task = tree.task("x");
    tree.finish(&task, "failed");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let client = std::process::Command::new(CLIENT).args(["--zk", &tree.zk, "wait", &task]).stdout(writer).output();
    let output = client.unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

// --- run

/// Waits until the task that a `run` has submitted is there.
#[track_caller]
fn wait_task(tree: &Tree) -> String {
    wait_for("the task", || tree.tasks().pop().ok_or_else(|| "none".to_owned()))
}

#[test]
fn run_hands_on_the_bytes_and_the_code() {
    let tree = Tree::new("run");
    let client = tree.client(&["run", "x"]).start();
    tree.finish(
        &wait_task(&tree),
        "failed\n{\"zk\":1,\"exit_code\":7,\"stdout\":{\"length\":5,\"text\":\"a\\nb\\u0007\\n\"},\
         \"stderr\":{\"length\":2,\"text\":\"no\"}}",
    );
    assert_eq!(ended(&client), (7, "a\nb\u{7}\n".to_owned(), "no".to_owned()));
}

#[test]
fn run_says_what_is_missing_and_why_it_ended() {
    let tree = Tree::new("run-missing");
    let client = tree.client(&["run", "x"]).start();
    let status = "lost\n{\"zk\":1,\"worker\":\"w\",\"reason\":\"its worker was lost\",\"stdout\":{\"length\":9,\"text\":\"ab\"}}";
    tree.finish(&wait_task(&tree), status);
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stdout.as_str()), (125, "ab"));
    let expected = "zk-client: the first 7 bytes of stdout are missing here, the whole is on worker w\n\
                    zk-client: task-0000000000 ended as lost: its worker was lost\n";
    assert_eq!(stderr, expected);
}

#[test]
fn run_in_json_prints_what_comes_and_then_the_task() {
    let tree = Tree::new("run-json");
    let client = tree.client(&["run", "--json", "x"]).start();
    tree.finish(&wait_task(&tree), "done\n{\"zk\":1,\"exit_code\":0,\"stdout\":{\"length\":2,\"text\":\"ab\"}}");
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stdout.lines().count(), stderr.as_str()), (0, 2, ""));
    let (chunk, end) = stdout.split_once('\n').unwrap();
    assert_eq!(chunk, r#"{"task":"task-0000000000","stream":"stdout","offset":0,"text":"ab"}"#);
    assert!(end.contains("\"state\":\"done\"") && end.contains("\"text\":\"ab\""), "{end}");
}

#[test]
fn the_first_signal_cancels_and_the_second_leaves() {
    let tree = Tree::new("signals");
    let client = tree.client(&["run", "x"]).start();
    let task = wait_task(&tree);
    client.signal(Signal::INT);
    let cancel = format!("/tasks/{task}/cancel");
    wait_for("the request", || match tree.session.stat(&cancel, false).unwrap() {
        Some(_) => Ok(()),
        None => Err("none".to_owned()),
    });
    stays("waiting", Duration::from_millis(100), || client.exited().map_or(Ok(()), |status| Err(status.to_string())));
    client.signal(Signal::TERM);
    let (code, stdout, stderr) = ended(&client);
    assert_eq!((code, stdout.as_str()), (130, ""));
    assert!(stderr.contains(&format!("zk-client wait {task}")), "{stderr}");

    let client = tree.client(&["run", "y"]).start();
    let task = wait_for("another task", || tree.tasks().into_iter().find(|t| *t != task).ok_or_else(String::new));
    client.signal(Signal::TERM);
    client.wait_stderr("cancelling");
    tree.finish(&task, "cancelled");
    assert_eq!(ended(&client).0, 130);
}

#[test]
fn a_server_that_is_gone_keeps_nobody_from_leaving() {
    let mut server = Server::start();
    let tree = Tree::at(&server.chroot("leave"));
    tree.set_up();
    let client = tree.client(&["run", "x"]).start();
    wait_task(&tree);
    server.pause();
    client.signal(Signal::INT);
    client.wait_stderr("cancelling");
    client.signal(Signal::INT);
    let status = client.wait_exit(Duration::from_secs(2));
    assert_eq!(status.code(), Some(130));
    server.resume();
}

// --- looking

#[test]
fn whatever_is_in_the_tree_can_be_looked_at() {
    let tree = Tree::new("anything");
    let control = "\u{1b}[2J\u{7}";
    for data in [&b"\xff\xfe"[..], b"", b"a\0b", b"x\n{\"zk\":2}", b"echo a\necho b", control.as_bytes()] {
        tree.task(data);
    }
    for path in ["/tasks/other", "/tasks/task-1", "/workers/not a name", "/assign/not a name", "/live", "/live/x"] {
        tree.create(path, b"\xff");
    }
    tree.create("/tasks/task-0000000000/status", b"\xff\x1b");
    tree.create("/tasks/task-0000000001/attempt-1", b"\xff");
    tree.create("/tasks/task-0000000001/attempt-02", b"");
    tree.create("/tasks/task-0000000001/cancel", control);
    tree.create("/workers/bad", b"\xff");
    tree.create("/workers/hand", control);
    tree.create("/assign/hand", b"\xff");
    tree.create("/assign/hand/task-0000000004", b"\xff");
    tree.create("/assign/hand/strange", b"");
    tree.create("/master", control);
    for args in [&["list"][..], &["status"], &["workers"], &["show", "task-0000000000"], &["show", "task-0000000001"]] {
        let text = tree.prints(args, 0);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{args:?}: {text:?}");
        tree.prints(&[args, &["--json"]].concat(), 0);
    }
    let list = tree.prints(&["list"], 0);
    assert_eq!(list.lines().count(), 7, "{list}");
    assert!(list.contains("task-0000000004  running") && list.contains("echo a\\necho b"), "{list}");
    assert_eq!(tree.prints(&["list", "--json", "--state", "running"], 0).lines().count(), 1);
    let workers = tree.prints(&["workers", "--json"], 0);
    assert!(workers.starts_with("{\"worker\":\"hand\"") && workers.contains("\"slots\":1,\"running\":1"), "{workers}");
    assert_eq!(workers.lines().count(), 1, "{workers}");
    let status = tree.prints(&["status", "--json"], 0);
    assert!(status.contains("\"workers\":1,\"tasks\":{\"pending\":4,\"assigned\":0,\"running\":1"), "{status}");
    assert!(tree.prints(&["show", "task-0000000001"], 0).contains("cancellation: asked for\nattempt 1: ended at "));
}

#[test]
fn masters_are_told_apart_by_their_sessions() {
    let tree = Tree::new("masters");
    tree.session.ensure("/live").unwrap();
    let standby = Tree::at(&tree.zk);
    let node = "same:2223\n{\"zk\":1,\"role\":\"master\"}";
    for (session, instance) in [(&tree.session, "000000000000000a"), (&standby.session, "000000000000000b")] {
        session.create(&format!("/live/{instance}-1"), node.as_bytes(), Kind::Ephemeral).unwrap();
    }
    tree.session.create("/live/000000000000000c-1", b"\n{\"zk\":1,\"role\":\"client\"}", Kind::Ephemeral).unwrap();
    let status = || tree.prints(&["status", "--json"], 0);
    assert!(status().starts_with("{\"master\":null,\"standby\":[\"same:2223\",\"same:2223\"],"), "{}", status());
    tree.session.create("/master", b"same:2223", Kind::Ephemeral).unwrap();
    assert!(status().starts_with("{\"master\":\"same:2223\",\"standby\":[\"same:2223\"],"), "{}", status());
    tree.session.delete("/master", None).unwrap();
    tree.create("/master", "by-hand:1");
    assert!(
        status().starts_with("{\"master\":\"by-hand:1\",\"standby\":[\"same:2223\",\"same:2223\"],"),
        "{}",
        status()
    );
}

#[test]
fn a_task_of_another_identity_is_not_allowed() {
    let tree = Tree::new("acl");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "digest:ann:secret").unwrap();
    let ann = ["--auth-file", file.path().to_str().unwrap()];
    assert_eq!(tree.prints(&[&ann[..], &["submit", "x"]].concat(), 0), "task-0000000000\n");
    for command in [&["show", "task-0000000000"][..], &["list"]] {
        let (code, stdout, stderr) = tree.run(command);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (125, "", 1));
        assert!(stderr.contains("not allowed at /tasks/task-0000000000") && stderr.contains("--auth-file"), "{stderr}");
        tree.prints(&[&ann[..], command].concat(), 0);
    }
}

/// Opening a session is a write: it is answered by a server that has done all that was done before.
#[test]
fn a_server_that_is_behind_does_not_hide_a_task() {
    let mut ensemble = Ensemble::start();
    let tree = Tree::at(&ensemble.chroot("behind"));
    tree.set_up();
    let chroot = tree.zk[tree.zk.find('/').unwrap()..].to_owned();
    let (leader, follower) = (ensemble.leader(), ensemble.follower());
    let at = |server: &Server| format!("{}{chroot}", server.connect_string());
    let (ahead, behind) = (at(&ensemble.servers[leader]), at(&ensemble.servers[follower]));
    for round in 0..10 {
        let task = format!("task-{round:010}");
        ensemble.servers[follower].pause();
        assert_eq!(tree.prints(&["--zk", &ahead, "submit", "x"], 0), format!("{task}\n"));
        let client = tree.client(&["--zk", &behind, "show", &task]).start();
        ensemble.servers[follower].resume();
        assert_eq!(ended(&client).0, 0, "{}", client.stderr());
    }
}
