//! The ten steps of the transcript with our daemons: after each one the stock `zkCli.sh` sees what the transcript shows.

mod common;

use std::{fs, os::unix::fs::PermissionsExt as _};

use common::{Bench, SECOND, well};
use e2e::{Server, Signal, ZkCli, wait_for, wait_within};

/// What `get -s` says of a znode: its data and one field of its stat.
#[track_caller]
fn get(cli: &ZkCli, path: &str) -> (String, impl Fn(&str) -> String) {
    let text = cli.run(&format!("get -s {path}"));
    let (data, stat) = text.split_once("cZxid = ").unwrap_or_else(|| panic!("{path}: {text}"));
    let (data, stat) = (data.strip_suffix('\n').unwrap_or(data).to_owned(), format!("cZxid = {stat}"));
    let field = move |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
        line.unwrap_or_else(|| panic!("no {name} in {stat}")).to_owned()
    };
    (data, field)
}

#[track_caller]
fn ls(cli: &ZkCli, path: &str) -> String {
    cli.run(&format!("ls {path}"))
}

/// A znode that is there for good and has no data and no children.
#[track_caller]
fn check_empty(cli: &ZkCli, path: &str) {
    let (data, stat) = get(cli, path);
    assert_eq!((data.as_str(), stat("dataLength").as_str()), ("", "0"), "{path}");
    assert_eq!((stat("ephemeralOwner"), stat("numChildren")), ("0x0".to_owned(), "0".to_owned()), "{path}");
}

#[test]
fn the_ten_steps_leave_the_bytes_of_the_transcript() {
    // Without a chroot, as in the transcript.
    let server = Server::start();
    let bench = Bench::at(server.connect_string());
    let m3 = ZkCli::connect(&server.connect_string());

    // Step 1: m1 creates /master.
    assert_eq!(ls(&m3, "/"), "[zookeeper]");
    let m1 = bench.master("master1.example.com:2223").start();
    m1.wait_stderr("primary fence=");
    let (data, stat) = get(&m3, "/master");
    assert_eq!((data.as_str(), stat("dataLength").as_str()), ("master1.example.com:2223", "24"));
    assert_ne!(stat("ephemeralOwner"), "0x0");
    let (czxid, version) = (stat("cZxid"), stat("dataVersion"));
    assert_eq!(version, "0");

    // Step 2: m2 finds it there, and watches it.
    let watches = || server.four_letter("wchp").unwrap();
    let watching_before = watches().matches("/master\n").count();
    let m2 = bench.master("master2.example.com:2223").start();
    m2.wait_stderr(r#"standing by primary="master1.example.com:2223""#);
    assert_eq!(watching_before, 1, "only m1 watches its own: {}", watches());
    let watchers = watches().split("/master\n").nth(1).unwrap().lines().take_while(|l| l.starts_with('\t')).count();
    assert_eq!(watchers, 2, "{}", watches());
    let (data, stat) = get(&m3, "/master");
    assert_eq!((data.as_str(), stat("cZxid")), ("master1.example.com:2223", czxid));

    // Step 3: m1 goes. m3, as a witness, sees what m2's watch sees.
    m3.run("stat -w /master");
    m1.signal(Signal::TERM);
    assert!(m1.wait_exit(10 * SECOND).success());
    m3.wait_output("type:NodeDeleted path:/master");

    // Step 4: m2 takes over.
    wait_within(2 * SECOND, "m2 to take over", || {
        let master = bench.tree.text("/master");
        if master.as_deref() == Some("master2.example.com:2223") { Ok(()) } else { Err(format!("{master:?}")) }
    });
    m2.wait_stderr("primary fence=");
    assert_eq!(get(&m3, "/master").0, "master2.example.com:2223");

    // Step 5: /workers, /tasks and /assign are there. That m2 watches their children, steps 6 and 8 show.
    m2.wait_stderr("took over workers=0 tasks=0");
    assert_eq!(ls(&m3, "/"), "[assign, epoch, live, master, tasks, workers, zookeeper]");
    for path in ["/workers", "/tasks", "/assign"] {
        check_empty(&m3, path);
    }

    // Step 6: m1 comes back as a worker.
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("cmd"), format!("#!/bin/sh\n{}\n", bench.gate("go"))).unwrap();
    fs::set_permissions(bin.join("cmd"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let worker = bench.worker("worker1.example.com").env("PATH", path).start();
    bench.tree.wait_worker("worker1.example.com");
    assert_eq!(ls(&m3, "/workers"), "[worker1.example.com]");
    let (data, stat) = get(&m3, "/workers/worker1.example.com");
    assert_eq!(data.lines().next(), Some("worker1.example.com:2224"));
    assert_ne!(stat("ephemeralOwner"), "0x0");
    assert_eq!(ls(&m3, "/assign"), "[worker1.example.com]");
    check_empty(&m3, "/assign/worker1.example.com");

    // Step 7: m3 adds the task `cmd`.
    assert_eq!(m3.run(r#"create -s /tasks/task- "cmd""#), "Created /tasks/task-0000000000");
    assert_eq!(m3.run("ls -w /tasks/task-0000000000"), "[]");

    // Step 8: m2 assigns it.
    wait_for("the assignment", || {
        let assigned = ls(&m3, "/assign/worker1.example.com");
        if assigned == "[task-0000000000]" { Ok(()) } else { Err(assigned) }
    });
    let (data, stat) = get(&m3, "/assign/worker1.example.com/task-0000000000");
    assert_eq!((data.lines().next(), stat("ephemeralOwner").as_str()), (Some(""), "0x0"));
    assert_eq!(ls(&m3, "/tasks"), "[task-0000000000]");
    worker.wait_stderr("started task=task-0000000000");
    assert_eq!(ls(&m3, "/tasks/task-0000000000"), "[]", "no status while it runs");

    // Step 9: m1 does it, and says so.
    bench.open("go");
    m3.wait_output("type:NodeChildrenChanged path:/tasks/task-0000000000");
    assert_eq!(ls(&m3, "/tasks/task-0000000000"), "[status]");

    // Step 10: m3 reads the result.
    let (data, stat) = get(&m3, "/tasks/task-0000000000");
    assert_eq!((data.as_str(), stat("dataLength").as_str(), stat("numChildren").as_str()), ("cmd", "3", "1"));
    let (data, stat) = get(&m3, "/tasks/task-0000000000/status");
    assert_eq!((data.as_str(), stat("dataLength").as_str(), stat("dataVersion").as_str()), ("done", "4", "0"));
    assert_eq!((stat("ephemeralOwner"), stat("numChildren")), ("0x0".to_owned(), "0".to_owned()));
    // What the transcript leaves is cleared away: an assignment lives no longer than its task.
    bench.tree.wait_nothing_assigned();

    // And once more, with a command that fails.
    assert_eq!(m3.run(r#"create -s /tasks/task- "exit 3""#), "Created /tasks/task-0000000001");
    wait_for("the second status", || bench.tree.text("/tasks/task-0000000001/status").ok_or(bench.tree.picture()));
    let (data, stat) = get(&m3, "/tasks/task-0000000001/status");
    assert_eq!((data.as_str(), stat("dataLength").as_str()), ("failed", "6"));
    well(&[&m2, &worker]);
}

#[test]
fn our_client_plays_m3() {
    let bench = Bench::shared("m3");
    let master = bench.master("master2.example.com:2223").start();
    let worker = bench.worker("worker1.example.com").start();
    bench.tree.wait_worker("worker1.example.com");
    let client = |args: &[&str]| {
        let client = bench.client().args(args).start();
        let code = client.wait_exit(20 * SECOND).code();
        (code, client.stdout(), client.stderr())
    };
    // As in the transcript, nothing but the command, and the client sees the end of it.
    let (code, stdout, _) = client(&["submit", "--plain", "--", "true"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "task-0000000000\n"));
    assert_eq!(bench.tree.text("/tasks/task-0000000000").as_deref(), Some("true"));
    let (code, stdout, _) = client(&["wait", "task-0000000000"]);
    assert_eq!((code, stdout.split('\t').take(2).collect::<Vec<_>>()), (Some(0), vec!["task-0000000000", "done"]));
    assert_eq!(bench.tree.text("/tasks/task-0000000000/status").as_deref(), Some("done"));
    // With metadata, line 1 of both is as in the transcript, and the result comes back whole.
    let (code, stdout, stderr) = client(&["run", "--", "echo out; echo err >&2; exit 3"]);
    assert_eq!((code, stdout.as_str()), (Some(3), "out\n"), "{stderr}");
    assert!(stderr.contains("err\n"), "{stderr}");
    let line_1 = |path: &str| bench.tree.text(path).and_then(|text| text.lines().next().map(str::to_owned));
    assert_eq!(line_1("/tasks/task-0000000001").as_deref(), Some("echo out; echo err >&2; exit 3"));
    assert_eq!(line_1("/tasks/task-0000000001/status").as_deref(), Some("failed"));
    well(&[&master, &worker]);
}

#[test]
fn a_master_that_crashes_is_followed_when_its_session_expires() {
    let bench = Bench::shared("crash");
    let m1 = bench.master("master1.example.com:2223").args(["--session-timeout", "2s"]).start();
    m1.wait_stderr("primary fence=");
    let m2 = bench.master("master2.example.com:2223").args(["--session-timeout", "2s"]).start();
    m2.wait_stderr("standing by");
    let witness = ZkCli::connect(&bench.zk);
    witness.run("stat -w /master");
    m1.kill();
    witness.wait_output("type:NodeDeleted path:/master");
    m2.wait_stderr("took over");
    assert_eq!(get(&witness, "/master").0, "master2.example.com:2223");
    well(&[&m2]);
}
