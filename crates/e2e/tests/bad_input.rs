//! Whatever is in the tree, on the wire or on the command line: no daemon ends because of it, and the rest goes on.

mod common;

use std::{
    fs,
    io::{self, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{Bench, SECOND, count, inner, well};
use e2e::{Daemon, Port, Server, Signal, ZkCli, stays, wait_for, wait_within};
use znode_paths::{MAX_DATA, Task, TaskMeta, paths};

/// A master and a worker `w` with two slots.
#[track_caller]
fn pair(bench: &Bench) -> [Daemon; 2] {
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    [master, worker]
}

/// That another task runs, and all are well.
#[track_caller]
fn goes_on(bench: &Bench, daemons: &[Daemon; 2]) {
    let task = bench.tree.submit("true");
    bench.tree.expect(task, "done");
    well(&[&daemons[0], &daemons[1]]);
}

// --- in the tree

#[test]
fn a_task_that_cannot_be_decoded_fails_with_the_reason_and_others_run() {
    let bench = Bench::shared("tasks");
    // Half of them are there before anybody looks, and nobody has to be there to run them.
    let master = bench.master("m:2223").start();
    let bad: [(&[u8], &str); 9] = [
        (b"\xff\xfe true", "UTF-8"),
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"{\"zk\":1}", "empty"),
        (b"tr\0ue", "NUL"),
        (b"true\n{\"zk\":2}", "format 2"),
        (b"true\n{\"zk\":\"one\"}", "metadata"),
        (b"true\n{\"zk\":1,\"priority\":\"high\"}", "metadata"),
        (b"true\n{\"zk\":1,\"on\":\"../w\"}", "metadata"),
    ];
    let check = || {
        let tasks = bad.map(|(data, reason)| (bench.tree.submit_data(data), reason));
        for (task, reason) in tasks {
            let told = bench.tree.expect(task, "failed").meta.and_then(|meta| meta.reason).unwrap_or_default();
            assert!(told.contains(reason), "{reason}: {told}");
        }
    };
    check();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    check();
    // These are commands, however odd.
    for (data, word) in
        [("true\n[1]", "failed"), ("true #\n{\"a\":1}", "failed"), ("{ true; }", "done"), ("tru\u{e9}", "failed")]
    {
        let task = bench.tree.submit(data);
        bench.tree.expect(task, word);
    }
    goes_on(&bench, &[master, worker]);
}

#[test]
fn an_assignment_by_hand_of_a_task_that_cannot_be_decoded_fails_it() {
    let bench = Bench::shared("hand");
    // No master, so it is the worker that has to deal with it.
    bench.tree.make(&["/workers", "/assign", "/tasks"]);
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    for data in [b"\xff".as_slice(), b"true\n{\"zk\":1,\"env\":[]}"] {
        let task = bench.tree.submit_data(data);
        bench.tree.create(&format!("/assign/w/{task}"), "");
        let reason = bench.tree.expect(task, "failed").meta.and_then(|meta| meta.reason);
        assert!(reason.is_some(), "{data:?}");
    }
    let task = bench.tree.submit("true");
    bench.tree.create(&format!("/assign/w/{task}"), b"\xff rubbish {\"zk\":1}");
    bench.tree.expect(task, "done");
    well(&[&worker]);
}

#[test]
fn a_status_by_hand_is_final_in_whatever_words() {
    let bench = Bench::shared("statuses");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    for (i, words) in
        [b"Done!".as_slice(), b"", b"\xff\xfe", b"done\n{\"zk\":9}", b"{\"zk\":1}"].into_iter().enumerate()
    {
        let ticks = format!("ticks{i}");
        let task = tree.submit_with(&bench.tick(&ticks, "never"), |_| ());
        bench.wait_tick(&ticks, 1);
        tree.create(&paths::status(&task), words);
        wait_for("it to be stopped", || {
            let log = daemons[1].stderr();
            if log.contains(&format!("ended task={task}")) { Ok(()) } else { Err(log) }
        });
        tree.wait_nothing_assigned();
        assert_eq!(tree.data(&paths::status(&task)).as_deref(), Some(words));
        assert_eq!(tree.children(&paths::task(&task)), ["status"]);
    }
    goes_on(&bench, &daemons);
}

#[test]
fn a_worker_registered_with_rubbish_gets_nothing_and_holds_up_nobody() {
    let bench = Bench::shared("registrations");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    let rubbish = [
        ("aa", b"\xff\xfe".as_slice()),
        ("ab", b"\n{\"zk\":1}"),
        ("ac", b"a:1\n{\"zk\":1,\"instance\":\"x\",\"slots\":-1}"),
        ("ad", b"a:1\n{\"zk\":7,\"instance\":\"0123456789abcdef\",\"slots\":9}"),
        ("\u{e9}", b"a:1"),
        ("a b", b"a:1"),
    ];
    for (name, data) in rubbish {
        tree.create_ephemeral(&format!("/workers/{name}"), data);
        tree.create(&format!("/assign/{name}"), b"\xff\n{\"zk\":1,\"drain\":\"maybe\"}");
    }
    let tasks: Vec<_> = (0..5).map(|_| tree.submit("true")).collect();
    let worker = bench.worker("w").start();
    assert_eq!(tree.wait_all(&tasks), 5);
    let others: Vec<String> = tree.children(paths::ASSIGN).into_iter().filter(|name| name != "w").collect();
    assert_eq!(others.len(), rubbish.len());
    let assigned: Vec<String> =
        master.stderr().lines().filter(|line| line.contains(" assigned ")).map(str::to_owned).collect();
    assert!(assigned.iter().all(|line| line.contains(" worker=w ")), "{assigned:?}");
    assert!(count(&master, "ignored path=") <= 2 * rubbish.len(), "each is said once: {}", master.stderr());
    goes_on(&bench, &[master, worker]);
}

#[test]
fn znodes_of_somebody_else_are_left_alone_and_said_once() {
    let bench = Bench::shared("strangers");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    let task = tree.submit(&bench.tick("ticks", "go"));
    bench.wait_tick("ticks", 1);
    let strangers = [
        "/tasks/foo",
        "/tasks/foo/bar",
        "/tasks/task-1",
        "/tasks/task-9999999999",
        "/tasks/task-0000000001x",
        "/assign/foo",
        "/assign/foo/bar",
        "/assign/w/bar",
        "/assign/w/bar/baz",
        "/assign/w/task-9999999999",
        "/live/x",
        "/live/0123456789abcdef-01",
        "/strange",
        "/master2",
    ];
    for path in strangers {
        tree.create(path, b"\xff");
    }
    for child in ["strange", "attempt-", "attempt-01", "attempt-x", "statusx"] {
        tree.create(&format!("{}/{child}", paths::task(&task)), b"\xff");
    }
    tree.create(&format!("/assign/w/{task}/below"), b"\xff");
    goes_on(&bench, &daemons);
    bench.open("go");
    tree.expect(task, "done");
    goes_on(&bench, &daemons);
    for path in strangers {
        assert!(tree.stat(path).is_some(), "{path} is gone");
    }
    for path in strangers {
        assert!(count(&daemons[0], &format!("{path:?}")) <= 1, "{path}: {}", daemons[0].stderr());
    }
}

#[test]
fn a_task_that_can_have_no_status_holds_up_nobody() {
    let bench = Bench::shared("ephemeral-task");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    // Easily typed: `create -e -s /tasks/task- ...`. Nothing can be created below an ephemeral.
    for i in 0..4 {
        tree.create_ephemeral(&format!("/tasks/task-000000100{i}"), bench.note("runs", "$ZK_TASK"));
    }
    // By hand, also past the master.
    tree.create("/assign/w/task-0000001000", "");
    goes_on(&bench, &daemons);
    for i in 0..10 {
        let task = tree.submit(&bench.note("next", &i.to_string()));
        tree.expect(task, "done");
    }
    let mut runs = bench.lines("runs");
    runs.sort();
    let before = runs.len();
    runs.dedup();
    assert_eq!(runs.len(), before, "none runs twice");
    for daemon in &daemons {
        assert!(count(daemon, "session lost") + count(daemon, "cannot go on") == 0, "{}", daemon.stderr());
    }
    for i in 0..4 {
        tree.delete(&format!("/tasks/task-000000100{i}"));
    }
    tree.wait_nothing_assigned();
    goes_on(&bench, &daemons);
}

#[test]
fn a_worker_that_can_have_no_assignments_holds_up_nobody() {
    let bench = Bench::shared("ephemeral-desk");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    // Easily typed: `create -e /assign/hand ""`.
    tree.create_ephemeral("/workers/hand", "hand:1");
    tree.create_ephemeral("/assign/hand", "");
    let tasks: Vec<_> = (0..5).map(|_| tree.submit("true")).collect();
    let worker = bench.worker("w").start();
    assert_eq!(tree.wait_all(&tasks), 5);
    assert_eq!(count(&master, "session lost") + count(&master, "cannot go on"), 0, "{}", master.stderr());
    goes_on(&bench, &[master, worker]);
}

#[test]
fn what_may_not_be_read_or_written_holds_up_nobody() {
    let bench = Bench::shared("acl");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    let hand = ZkCli::connect(&bench.zk);
    // Nobody may do anything with the first; nobody may write a status below the second.
    for (name, acl) in [("task-0000001000", "world:anyone:a"), ("task-0000001001", "world:anyone:ra")] {
        let made = hand.run(&format!(r#"create /tasks/{name} "true" {acl}"#));
        assert_eq!(made, format!("Created /tasks/{name}"));
    }
    hand.run(r#"create -e /workers/hand "hand:1" world:anyone:a"#);
    hand.run(r#"create /assign/hand "" world:anyone:ra"#);
    hand.run(r#"create -e /workers/other "other:1""#);
    hand.run(r#"create /assign/other "" world:anyone:ra"#);
    goes_on(&bench, &daemons);
    let tasks: Vec<_> = (0..10).map(|_| tree.submit("true")).collect();
    assert_eq!(tree.wait_all(&tasks), 10);
    for daemon in &daemons {
        assert!(count(daemon, "session lost") + count(daemon, "cannot go on") == 0, "{}", daemon.stderr());
    }
    for task in ["task-0000001000", "task-0000001001"] {
        hand.run(&format!("setAcl /tasks/{task} world:anyone:cdrwa"));
    }
    goes_on(&bench, &daemons);
}

#[test]
fn a_registration_that_is_overwritten_by_hand_is_written_again() {
    let bench = Bench::shared("overwritten");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    let before = tree.data("/workers/w").unwrap();
    for data in
        [b"elsewhere:1".as_slice(), b"", b"\xff", b"w:2224\n{\"zk\":1,\"instance\":\"00000000000000ff\",\"slots\":2}"]
    {
        tree.ask(|session| session.write("/workers/w", data, None)).unwrap();
        goes_on(&bench, &daemons);
        wait_for("the registration", || {
            let now = tree.data("/workers/w").unwrap();
            if now == before { Ok(()) } else { Err(String::from_utf8_lossy(&now).into_owned()) }
        });
    }
}

#[test]
fn a_record_by_hand_counts_and_one_that_cannot_be_read_is_no_obstacle() {
    let bench = Bench::shared("records");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    let plain = tree.submit("true");
    tree.create(&paths::attempt(&plain, 7), b"\xff");
    let lost = tree.submit_with("true", |meta| meta.max_attempts = 1);
    tree.create(&paths::attempt(&lost, 1), "lost");
    let worker = bench.worker("w").start();
    tree.expect(plain, "done");
    tree.expect(lost, "lost");
    goes_on(&bench, &[master, worker]);
}

#[test]
fn an_epoch_with_rubbish_or_from_another_ensemble_stops_nobody() {
    let bench = Bench::shared("epochs");
    bench.tree.make(&[]);
    for (i, epoch) in ["rubbish", "", "-5", "9000000000000000000", "99999999999999999999999"].into_iter().enumerate() {
        bench.tree.delete(paths::EPOCH);
        bench.tree.create(paths::EPOCH, epoch);
        let master = bench.master("m:2223").start();
        let worker = bench.worker("w").env("ZK_WORK_DIR", bench.path(&i.to_string())).start();
        bench.tree.wait_worker("w");
        let task = bench.tree.submit(&bench.note("runs", epoch));
        bench.tree.expect(task, "done");
        assert_eq!(bench.lines("runs").len(), i + 1, "{epoch:?}");
        // A rubbish epoch written under a reign deposes it, and that is all.
        let version = bench.tree.stat(paths::EPOCH).unwrap().version;
        bench.tree.ask(|session| session.write(paths::EPOCH, b"0", Some(version))).ok();
        let daemons = [master, worker];
        goes_on(&bench, &daemons);
        for daemon in &daemons {
            daemon.signal(Signal::TERM);
            assert!(daemon.wait_exit(10 * SECOND).success());
        }
    }
}

#[test]
fn tasks_deleted_and_made_again_under_the_daemons_are_tasks_like_any_other() {
    let bench = Bench::shared("again");
    let tree = &bench.tree;
    let daemons = pair(&bench);
    let before: Vec<_> = (0..4).map(|i| tree.submit(&bench.tick(&format!("ticks{i}"), "never"))).collect();
    bench.wait_tick("ticks0", 1);
    bench.wait_tick("ticks1", 1);
    for round in 0..3 {
        tree.delete_all(paths::TASKS);
        // The same names again: the sequence begins anew.
        let tasks: Vec<_> = (0..4).map(|i| tree.submit(&bench.note("runs", &format!("{round} {i}")))).collect();
        assert_eq!(tasks, before, "this test is about the same names");
        assert_eq!(tree.wait_all(&tasks), 4);
    }
    let mut runs = bench.lines("runs");
    assert_eq!(runs.len(), 12, "each once: {runs:?}");
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 12, "each once: {runs:?}");
    let ticks = bench.lines("ticks0").len() + bench.lines("ticks1").len();
    stays("silence", SECOND / 3, || {
        let now = bench.lines("ticks0").len() + bench.lines("ticks1").len();
        if now == ticks { Ok(()) } else { Err(format!("{} ticks more", now - ticks)) }
    });
    tree.wait_nothing_assigned();
    goes_on(&bench, &daemons);
}

#[test]
fn a_command_just_below_the_limit_runs() {
    let bench = Bench::shared("large");
    let daemons = pair(&bench);
    let begin = format!("{} #", bench.note("runs", "by hand"));
    let by_hand = begin.clone() + &"x".repeat(MAX_DATA - begin.len());
    let task = bench.tree.submit(&by_hand);
    bench.tree.expect(task, "done");
    // The same with metadata, many lines, and the largest data that the client lets through.
    let meta = Some(TaskMeta::new("0123456789abcdef".to_owned()));
    let mut ours = Task { command: format!("{}\n", bench.note("runs", "ours")), meta };
    let line = format!(": {}\n", "y".repeat(97));
    while ours.encode().len() + line.len() <= MAX_DATA {
        ours.command.push_str(&line);
    }
    let task = bench.tree.submit_data(&ours.encode_checked().unwrap());
    bench.tree.expect(task, "done");
    assert_eq!(bench.lines("runs"), ["by hand", "ours"]);
    goes_on(&bench, &daemons);
}

// --- where ZooKeeper should be

/// What is at the port of a [`Switch`].
#[derive(Clone, Copy)]
enum Mode {
    /// Accepts and says nothing.
    Silent = 0,
    /// Speaks another protocol.
    Http = 1,
    /// Accepts and closes.
    Closing = 2,
    /// ZooKeeper.
    Real = 3,
}

/// A port at which something else is before ZooKeeper is.
struct Switch {
    address: String,
    mode: Arc<AtomicU8>,
    _port: Port,
}

impl Switch {
    fn start(mode: Mode, server: &Server) -> Switch {
        let port = Port::claim();
        let address = port.address();
        let listener = TcpListener::bind(&address).expect("a claimed port is free");
        let mode = Arc::new(AtomicU8::new(mode as u8));
        let (now, server) = (Arc::clone(&mode), server.connect_string());
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                match now.load(Ordering::SeqCst) {
                    0 => held.push(stream),
                    1 => {
                        let mut stream = stream;
                        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
                        held.push(stream);
                    }
                    2 => drop(stream),
                    _ => {
                        held.clear();
                        forward(stream, &server).ok();
                    }
                }
            }
        });
        Switch { address, mode, _port: port }
    }
}

fn forward(client: TcpStream, server: &str) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::spawn(move || {
            io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Both).ok();
        });
    }
    Ok(())
}

/// The processor time of guard and daemon so far.
fn cpu(daemon: &Daemon) -> Duration {
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
        // utime and stime, in the hundredths of a second in which Linux counts.
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    };
    of(daemon.pid()) + of(inner(daemon).as_raw_nonzero().get().unsigned_abs())
}

#[test]
fn daemons_without_zookeeper_wait_quietly_and_work_as_soon_as_it_is_there() {
    let mut server = Server::start();
    let refused = server.chroot("refused");
    let behind = Server::shared();
    let switches = [Mode::Silent, Mode::Http, Mode::Closing].map(|mode| Switch::start(mode, behind));
    server.kill();
    let mut places =
        vec![("refused", refused.clone()), ("unresolvable", format!("no-such-host.invalid:2181,{refused}2"))];
    for (switch, name) in switches.iter().zip(["silent", "http", "closing"]) {
        places.push((name, format!("{}/{name}", switch.address)));
    }
    let clusters: Vec<_> = places
        .into_iter()
        .map(|(name, zk)| {
            let bench = Bench::at(zk);
            let timeout = ["--session-timeout", "4s"];
            let daemons = [bench.master("m:2223").args(timeout).start(), bench.worker("w").args(timeout).start()];
            (name, bench, daemons)
        })
        .collect();
    for (name, _, daemons) in &clusters {
        for daemon in daemons {
            wait_within(15 * SECOND, &format!("a word ({name})"), || {
                let log = daemon.stderr();
                if log.contains("cannot reach ZooKeeper") { Ok(()) } else { Err(log) }
            });
        }
    }
    let used = || clusters.iter().flat_map(|(_, _, daemons)| daemons).map(cpu).collect::<Vec<_>>();
    let (before, began) = (used(), Instant::now());
    stays("waiting", 5 * SECOND, || {
        for (name, _, daemons) in &clusters {
            for daemon in daemons {
                let lines = daemon.stderr().lines().count();
                if daemon.exited().is_some() || lines > 5 {
                    return Err(format!("{name}: {:?} {}", daemon.exited(), daemon.stderr()));
                }
            }
        }
        Ok(())
    });
    for ((before, after), i) in before.into_iter().zip(used()).zip(0..) {
        let (name, _, daemons) = &clusters[i / 2];
        let share = (after - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!(
            "{name}: {:.1} % of a processor, said {} lines",
            share * 100.0,
            daemons[i % 2].stderr().lines().count()
        );
        assert!(share < 0.16, "{name}: {share}");
        assert_eq!(count(&daemons[i % 2], "cannot reach ZooKeeper"), 1, "{name}: {}", daemons[i % 2].stderr());
    }
    for switch in &switches {
        switch.mode.store(Mode::Real as u8, Ordering::SeqCst);
    }
    server.restart();
    let there = Instant::now();
    for (name, bench, daemons) in &clusters {
        bench.tree.wait_worker("w");
        println!("{name}: registered {} ms after ZooKeeper was there", there.elapsed().as_millis());
        goes_on(bench, daemons);
    }
}

// --- on the command line

/// That a program ends with 2 and one line on stderr.
#[track_caller]
fn check_refused(program: &str, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let daemon = Daemon::named(program).args(args).env("ZK_WORK_DIR", dir.path()).start();
    let status = daemon.wait_exit(10 * SECOND);
    let (stdout, stderr) = (daemon.stdout(), daemon.stderr());
    assert_eq!(status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with(&format!("{program}: ")), "{args:?}: {stderr}");
}

#[test]
fn options_that_cannot_be_used_are_refused_in_one_line() {
    let long = "x".repeat(256);
    for name in ["a/b", "/", "..", ".", "", "a b", "\u{e9}", "a\nb", "a\u{7}", &long] {
        check_refused("zk-worker", &["--name", name]);
    }
    for program in ["zk-master", "zk-worker", "zk-client"] {
        for zk in ["", ",", "a:1,", ":2181", "a:0", "a:65536", "a:x", "a b:1", "\u{e9}:1", "::1:2181"] {
            check_refused(program, &["--zk", zk]);
        }
        for chroot in ["/..", "/a/../b", "/.", "//", "/a//b", "/a/", "/\u{e9}", "/a b", "/zookeeper", "/zookeeper/x"] {
            check_refused(program, &["--zk", &format!("127.0.0.1:1{chroot}")]);
        }
        for args in [
            ["--session-timeout", "10"],
            ["--session-timeout", "0s"],
            ["--session-timeout", "-1s"],
            ["--bogus", "x"],
            ["surplus", "arguments"],
        ] {
            check_refused(program, &args);
        }
    }
    for program in ["zk-master", "zk-worker"] {
        for args in [["--address", "nowhere"], ["--address", ":1"], ["--address", "a:0"], ["--address", "a b:1"]] {
            check_refused(program, &args);
        }
    }
    for args in [["--slots", "0"], ["--slots", "many"], ["--label", "disk"], ["--grace", "soon"], ["--on-lost", "cry"]]
    {
        check_refused("zk-worker", &args);
    }
    check_refused("zk-master", &["--retain", "some"]);
    check_refused("zk-client", &["submit"]);
    check_refused("zk-client", &["wait", "task-1"]);
}
