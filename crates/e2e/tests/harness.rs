//! Proves the harness: what it says of servers, daemons and links is so.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use e2e::{
    Act, Cluster, Daemon, Ensemble, Fake, Hosts, Port, Server, Setup, Signal, Txn, TxnKind, ZkCli, available,
    cluster::Shape, stays, txnlog, wait_for, wait_within,
};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(30);

/// The text of the panic of `work`.
#[track_caller]
fn panic_of<T>(work: impl FnOnce() -> T + std::panic::UnwindSafe) -> String {
    match catch_unwind(work) {
        Ok(_) => panic!("no panic"),
        Err(panic) => panic.downcast_ref::<String>().expect("a text").clone(),
    }
}

fn sh(script: &str) -> e2e::daemon::Launch {
    Daemon::program("/bin/sh").args(["-c", script])
}

/// Runs one test of this file in a process of its own, with `E2E_INNER` set: without it that test does nothing.
fn inner(test: &str) -> e2e::daemon::Launch {
    let own = std::env::current_exe().expect("a test has a program");
    Daemon::program(own).args([test, "--exact", "--nocapture", "--test-threads=1"]).env("E2E_INNER", "yes")
}

fn is_inner() -> bool {
    std::env::var_os("E2E_INNER").is_some()
}

// --- wait

#[test]
fn a_wait_ends_with_what_was_waited_for() {
    let mut count = 0;
    let found = wait_for("the third time", || {
        count += 1;
        if count == 3 { Ok(count) } else { Err(format!("{count}")) }
    });
    assert_eq!(found, 3);
}

#[test]
fn a_wait_that_fails_says_what_it_saw_last() {
    let panic = panic_of(|| wait_within(Duration::from_millis(100), "rain", || Err::<(), _>("sunshine".to_owned())));
    assert!(panic.contains("for rain") && panic.contains("sunshine"), "{panic}");
}

#[test]
fn what_must_stay_is_asked_until_the_end() {
    let start = Instant::now();
    stays("calm", Duration::from_millis(100), || Ok(()));
    assert!(start.elapsed() >= Duration::from_millis(100));
    let panic = panic_of(|| stays("calm", SECOND, || Err("storm".to_owned())));
    assert!(panic.contains("calm") && panic.contains("storm"), "{panic}");
}

#[test]
fn a_claimed_port_is_given_to_nobody_else() {
    let ports: Vec<Port> = (0..100).map(|_| Port::claim()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 100);
    TcpListener::bind(ports[0].address()).expect("it is free for whoever claimed it");
}

// --- server

#[test]
fn a_server_serves_as_soon_as_it_is_there() {
    let server = Server::start();
    assert_eq!(server.four_letter("ruok").unwrap(), "imok");
    assert!(server.four_letter("mntr").unwrap().contains("zk_server_state\tstandalone"));
    assert_eq!(server.connect_string(), format!("127.0.0.1:{}", server.port()));
    assert!(server.log().contains("binding to port"), "{}", server.log());
}

#[test]
fn short_session_timeouts_are_granted() {
    let server = Server::start_with(&Setup { tick: Duration::from_millis(100), ..Setup::default() }, None);
    let config = server.four_letter("conf").unwrap();
    assert!(config.contains("minSessionTimeout=200") && config.contains("maxSessionTimeout=60000"), "{config}");
    let _cli = ZkCli::connect_with(&server.connect_string(), SECOND, None);
    let connections = server.four_letter("cons").unwrap();
    assert!(connections.contains("to=1000"), "{connections}");
}

#[test]
fn a_killed_server_comes_back_on_its_port_with_its_data() {
    let mut server = Server::start();
    let (port, first_pid) = (server.port(), server.pid());
    let cli = ZkCli::connect(&server.connect_string());
    assert_eq!(cli.run("create /kept value"), "Created /kept");
    cli.close();

    server.kill();
    assert!(server.four_letter("ruok").is_err());
    server.restart();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), first_pid);
    assert_eq!(ZkCli::connect(&server.connect_string()).run("get /kept"), "value");

    server.terminate();
    assert!(server.four_letter("ruok").is_err());
}

#[test]
fn a_paused_server_accepts_but_does_not_answer() {
    let mut server = Server::start();
    server.pause();
    let error = server.four_letter("ruok").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    server.resume();
    assert_eq!(server.four_letter("ruok").unwrap(), "imok");
    server.pause();
    server.kill();
    TcpStream::connect(server.connect_string()).unwrap_err();
}

#[test]
fn the_shared_server_is_one_with_many_chroots() {
    let (one, two) = (Server::shared(), Server::shared());
    assert_eq!(one.pid(), two.pid());
    let (a, b) = (one.chroot("harness"), two.chroot("harness"));
    assert_ne!(a, b);

    let root = ZkCli::connect(&one.connect_string());
    let path = a.strip_prefix(&one.connect_string()).unwrap();
    root.run(&format!("create {path}"));
    let inside = ZkCli::connect(&a);
    assert_eq!(inside.run("create /x y"), "Created /x");
    assert_eq!(root.run(&format!("get {path}/x")), "y");
}

#[test]
fn inner_holds_a_server_and_hosts() {
    if !is_inner() {
        return;
    }
    let server = Server::shared();
    let hosts = Hosts::new(1);
    let host = hosts.as_ref().map_or("none".to_owned(), |hosts| netns_of(&hosts[0]).display().to_string());
    println!("ready {} {} {host}", server.pid(), server.data_dir().display());
    wait_for("the end", || Err::<(), _>(String::new()));
}

/// The file that stands for a host's namespace.
fn netns_of(host: &e2e::Host) -> PathBuf {
    let command = host.command("true");
    let name = command.get_args().nth(2).expect("ip netns exec NAME");
    Path::new("/run/netns").join(name)
}

#[test]
fn nothing_outlives_a_test_process_that_is_killed() {
    let inner = inner("inner_holds_a_server_and_hosts").start();
    inner.wait_stdout("ready ");
    let line = inner.stdout();
    let words: Vec<&str> = line.split("ready ").nth(1).unwrap().split_whitespace().take(3).collect();
    let (process, data, netns) = (Path::new("/proc").join(words[0]), Path::new(words[1]), Path::new(words[2]));
    assert!(process.exists() && data.exists());
    inner.kill();
    wait_for("all to be gone", || {
        let left: Vec<_> = [&process, data, netns].into_iter().filter(|path| path.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

// --- ensemble

#[test]
fn an_ensemble_goes_on_without_its_leader() {
    let mut ensemble = Ensemble::start();
    let (leader, follower) = (ensemble.leader(), ensemble.follower());
    assert_ne!(leader, follower);
    let cli = ZkCli::connect(&ensemble.servers[follower].connect_string());
    assert_eq!(cli.run("create /kept value"), "Created /kept");

    ensemble.servers[leader].kill();
    let next = ensemble.leader();
    assert_ne!(next, leader);
    ensemble.servers[leader].restart();
    let cli = ZkCli::connect(&ensemble.servers[leader].connect_string());
    assert_eq!(cli.run("sync /"), "Sync is OK");
    assert_eq!(cli.run("get /kept"), "value");
    assert_eq!(ensemble.connect_string().split(',').count(), 3);
}

// --- daemon

#[test]
fn the_output_of_a_daemon_is_readable_while_it_runs() {
    let daemon = sh("echo out; echo err >&2; read line; echo $line").stdin("in\n").start();
    daemon.wait_stdout("out\n");
    daemon.wait_stderr("err");
    daemon.wait_stdout("in\n");
    assert!(daemon.wait_exit(LIMIT).success());
    let silent = sh("read line; echo end").start();
    assert!(silent.wait_exit(LIMIT).success(), "nothing comes from its stdin");
}

#[test]
fn the_output_of_an_ended_daemon_is_complete() {
    for _ in 0..20 {
        let daemon = sh("seq 10000").start();
        daemon.wait_exit(LIMIT);
        assert!(daemon.stdout().ends_with("\n10000\n"));
    }
    // What it leaves behind holds its pipes, and isn't waited for.
    let daemon = sh("sleep 60 & echo $!").start();
    assert!(daemon.wait_exit(SECOND * 5).success());
    let pid = daemon.stdout().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn inner_prints_the_environment_of_a_daemon() {
    if is_inner() {
        let daemon = sh("env").env("ZK_NAME", "set here").start();
        daemon.wait_exit(LIMIT);
        println!("{}", daemon.stdout());
    }
}

#[test]
fn a_daemon_sees_no_setting_that_the_test_did_not_make() {
    let inner = inner("inner_prints_the_environment_of_a_daemon");
    let inner = inner.env("ZK_CONNECT", "elsewhere:1").env("RUST_LOG", "trace").env("OTHER", "stays").start();
    assert!(inner.wait_exit(LIMIT).success());
    let env = inner.stdout();
    assert!(env.contains("ZK_NAME=set here") && env.contains("OTHER=stays"), "{env}");
    assert!(!env.contains("ZK_CONNECT") && !env.contains("RUST_LOG"), "{env}");
}

#[test]
fn a_daemon_gets_signals_and_shows_how_it_ended() {
    let daemon = sh("trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done").start();
    daemon.wait_stdout("ready");
    assert_eq!(daemon.exited(), None);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit(LIMIT).code(), Some(3));
    assert_eq!(daemon.stdout(), "ready\nterm\n");
    daemon.signal(Signal::TERM); // no matter any more

    let daemon = sh("while :; do echo again; sleep 0.01; done").dir("/").start();
    daemon.wait_stdout("again");
    daemon.pause();
    let length = daemon.stdout().len();
    stays("silence", Duration::from_millis(200), || {
        let now = daemon.stdout().len();
        if now < length + 64 { Ok(()) } else { Err(format!("{} bytes more", now - length)) }
    });
    daemon.resume();
    wait_for("more output", || if daemon.stdout().len() > length + 64 { Ok(()) } else { Err("none".to_owned()) });
    daemon.kill();
    assert_eq!(daemon.wait_exit(LIMIT).signal(), Some(9));
}

#[test]
fn a_dropped_daemon_is_gone() {
    let daemon = sh("exec sleep 60").start();
    let process = PathBuf::from(format!("/proc/{}", daemon.pid()));
    assert!(process.exists());
    drop(daemon);
    assert!(!process.exists());
}

#[test]
fn a_daemon_that_is_not_built_is_named() {
    let panic = panic_of(|| Daemon::named("zk-nothing"));
    assert!(panic.contains("zk-nothing is missing: build it first: cargo build --workspace"), "{panic}");
}

#[test]
fn inner_fails_with_a_daemon() {
    if is_inner() {
        let daemon = sh("echo its last words >&2; exec sleep 60").start();
        daemon.wait_stderr("words");
        panic!("as intended");
    }
}

#[test]
fn a_failing_test_shows_what_its_daemons_logged() {
    let inner = inner("inner_fails_with_a_daemon").start();
    assert!(!inner.wait_exit(LIMIT).success());
    let report = inner.stdout() + &inner.stderr();
    assert!(report.contains("--- stderr of sh") && report.contains("its last words"), "{report}");
}

// --- zkCli.sh

#[test]
fn the_transcript_can_be_played_by_hand() {
    let server = Server::start();
    let zk = server.connect_string();

    // step 1
    let m1 = ZkCli::connect_with(&zk, SECOND * 2, None);
    assert_eq!(m1.run("ls /"), "[zookeeper]");
    assert_eq!(m1.run(r#"create -e /master "master1.example.com:2223""#), "Created /master");
    assert_eq!(m1.run("get /master"), "master1.example.com:2223");
    // step 2
    let m2 = ZkCli::connect(&zk);
    assert_eq!(m2.run(r#"create -e /master "master2.example.com:2223""#), "Node already exists: /master");
    assert!(m2.run("stat /master true").contains("dataLength = 24"));
    // step 3
    m1.kill();
    // step 4
    m2.wait_output("state:SyncConnected type:NodeDeleted path:/master");
    assert_eq!(m2.run("ls /"), "[zookeeper]");
    assert_eq!(m2.run(r#"create -e /master "master2.example.com:2223""#), "Created /master");
    // step 5
    for path in ["/workers", "/tasks", "/assign"] {
        assert_eq!(m2.run(&format!(r#"create {path} """#)), format!("Created {path}"));
    }
    assert!(m2.run("ls /workers true").ends_with("[]"));
    assert!(m2.run("ls /tasks true").ends_with("[]"));
    // step 6
    let m1 = ZkCli::connect(&zk);
    let worker = "/workers/worker1.example.com";
    let assign = "/assign/worker1.example.com";
    assert_eq!(m1.run(&format!(r#"create -e {worker} "worker1.example.com:2224""#)), format!("Created {worker}"));
    assert_eq!(m1.run(&format!(r#"create {assign} """#)), format!("Created {assign}"));
    assert!(m1.run(&format!("ls {assign} true")).ends_with("[]"));
    // step 7
    let m3 = ZkCli::connect(&zk);
    assert_eq!(m3.run(r#"create -s /tasks/task- "cmd""#), "Created /tasks/task-0000000000");
    assert!(m3.run("ls /tasks/task-0000000000 true").ends_with("[]"));
    // step 8, its messages asked for in the other order
    m2.wait_output("type:NodeChildrenChanged path:/tasks");
    m2.wait_output("type:NodeChildrenChanged path:/workers");
    assert_eq!(m2.run("ls /tasks"), "[task-0000000000]");
    assert_eq!(m2.run("ls /workers"), "[worker1.example.com]");
    let assignment = format!("{assign}/task-0000000000");
    assert_eq!(m2.run(&format!(r#"create {assignment} """#)), format!("Created {assignment}"));
    // step 9
    m1.wait_output(&format!("type:NodeChildrenChanged path:{assign}"));
    assert_eq!(m1.run(&format!("ls {assign}")), "[task-0000000000]");
    let status = "/tasks/task-0000000000/status";
    assert_eq!(m1.run(&format!(r#"create {status} "done""#)), format!("Created {status}"));
    // step 10
    m3.wait_output("type:NodeChildrenChanged path:/tasks/task-0000000000");
    assert_eq!(m3.run("get /tasks/task-0000000000"), "cmd");
    assert_eq!(m3.run(&format!("get {status}")), "done");
}

#[test]
fn a_closed_session_takes_its_ephemerals_with_it_and_a_killed_one_leaves_them() {
    let server = Server::start();
    let watcher = ZkCli::connect(&server.connect_string());
    let closed = ZkCli::connect(&server.connect_string());
    closed.run("create -e /closed");
    closed.close();
    assert_eq!(watcher.run("ls /"), "[zookeeper]");

    let killed = ZkCli::connect_with(&server.connect_string(), SECOND * 2, None);
    killed.run("create -e /killed");
    killed.kill();
    assert_eq!(watcher.run("ls /"), "[killed, zookeeper]");
    wait_for("the session to expire", || match watcher.run("ls /").as_str() {
        "[zookeeper]" => Ok(()),
        other => Err(other.to_owned()),
    });
}

#[test]
fn the_output_of_a_command_is_free_of_messages() {
    let server = Server::start();
    let (one, two) = (ZkCli::connect(&server.connect_string()), ZkCli::connect(&server.connect_string()));
    two.run("create /counter 0");
    two.run(r#"create /empty """#);
    for round in 1..=20 {
        assert_eq!(one.run("get -w /counter"), (round - 1).to_string());
        assert_eq!(two.run(&format!("set /counter {round}")), "");
        assert_eq!(one.run("get /empty"), "");
        assert_eq!(one.run("get /nowhere"), "Node does not exist: /nowhere");
        assert_eq!(one.run("create /counter"), "Node already exists: /counter");
    }
    for _ in 1..=20 {
        one.wait_output("type:NodeDataChanged path:/counter");
    }
    assert!(one.run("no such command").contains("Command not found"));
    assert!(panic_of(|| one.run("delete -v text /counter")).contains("NumberFormatException"), "that ends zkCli.sh");
}

// --- txnlog

fn kinds(txns: &[Txn], session: i64) -> Vec<TxnKind> {
    txns.iter().filter(|txn| txn.session == session).map(|txn| txn.kind.clone()).collect()
}

#[test]
fn the_log_tells_which_session_did_what() {
    let mut server = Server::start();
    let cli = ZkCli::connect(&server.connect_string());
    cli.run("create /a one");
    cli.run("create -e -s /b- two");
    cli.run("set /a three");
    cli.run("create /a again");
    cli.run("delete /a");
    cli.run("create -c /container");
    cli.run("setAcl /container world:anyone:r");
    cli.close();
    server.restart(); // which begins another file
    let second = ZkCli::connect(&server.connect_string());
    second.run("create /c");
    second.close();

    let txns = server.transactions();
    let order: Vec<i64> = txns.iter().map(|txn| txn.zxid).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert!(txns.iter().all(|txn| txn.time_ms > 1_600_000_000_000), "{txns:?}");

    let path = |path: &str| path.to_owned();
    let first = txns[0].session;
    let expected = [
        TxnKind::CreateSession,
        TxnKind::Create { path: path("/a"), data: b"one".to_vec() },
        TxnKind::Create { path: path("/b-0000000001"), data: b"two".to_vec() },
        TxnKind::SetData { path: path("/a"), data: b"three".to_vec() },
        TxnKind::Error(-110),
        TxnKind::Delete { path: path("/a") },
        TxnKind::Create { path: path("/container"), data: Vec::new() },
        TxnKind::Other(7),
        TxnKind::CloseSession,
    ];
    assert_eq!(kinds(&txns, first), expected);
    let second = txns.last().unwrap().session;
    let expected =
        [TxnKind::CreateSession, TxnKind::Create { path: path("/c"), data: Vec::new() }, TxnKind::CloseSession];
    assert_eq!(kinds(&txns, second), expected);
}

#[test]
fn a_log_that_is_cut_off_is_read_up_to_the_cut() {
    let server = Server::start();
    let cli = ZkCli::connect(&server.connect_string());
    cli.run("create /a one");
    cli.run("create /b two");
    let mut logs = fs::read_dir(server.data_dir().join("version-2")).unwrap().map(|entry| entry.unwrap().path());
    let log = logs.find(|path| path.to_string_lossy().contains("/log.")).unwrap();
    let file = fs::read(log).unwrap();
    let whole = txnlog::parse(&file);
    assert_eq!(whole.len(), 3);

    let mut counts = Vec::new();
    let used = file.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in 0..=used {
        let part = txnlog::parse(&file[..cut]);
        assert!(whole.starts_with(&part));
        counts.push(part.len());
    }
    assert!(counts.is_sorted() && counts.last() == Some(&3), "{counts:?}");
    for place in 0..used {
        let mut broken = file[..used].to_vec();
        broken[place] ^= 0x55;
        assert!(txnlog::parse(&broken).len() <= 3);
    }
}

#[test]
fn a_transaction_is_in_the_log_once_it_is_acknowledged() {
    let server = Server::start();
    let cli = ZkCli::connect(&server.connect_string());
    for number in 0..50 {
        cli.run(&format!("create /n{number}"));
        let last = server.transactions().pop().unwrap().kind;
        assert_eq!(last, TxnKind::Create { path: format!("/n{number}"), data: Vec::new() });
    }
}

// --- netns

/// What a connection from one host to another comes to.
fn connect(from: &e2e::Host, to: SocketAddr) -> Result<TcpStream, ErrorKind> {
    from.connect(to, Duration::from_millis(500)).map_err(|error| error.kind())
}

#[test]
fn a_cut_link_loses_packets_without_a_trace() {
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let (a, b) = (&hosts[0], &hosts[1]);
    let address = SocketAddr::from((b.address(), 5000));
    let listener = b.run(|| TcpListener::bind(address)).unwrap();
    let mut client = connect(a, address).unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), a.address());

    for _ in 0..3 {
        b.link_down();
        assert_eq!(connect(a, address).unwrap_err(), ErrorKind::TimedOut);
        let outside = SocketAddr::from((a.address(), 5000));
        assert_eq!(connect(b, outside).unwrap_err(), ErrorKind::TimedOut, "not even `connection refused` comes back");
        assert_eq!(connect(&hosts[2], outside).unwrap_err(), ErrorKind::ConnectionRefused, "others are not cut off");
        connect(b, address).expect("the host still reaches itself");

        // An open connection doesn't break, and what was sent arrives in the end.
        client.write_all(b"x").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        b.link_up();
        connect(a, address).expect("a mended link works at once");
        server.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 1);
    }
}

#[test]
fn dropped_hosts_are_gone() {
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let netns: Vec<PathBuf> = hosts.all().iter().map(netns_of).collect();
    assert!(netns.iter().all(|path| path.exists()));
    drop(hosts);
    assert!(!netns.iter().any(|path| path.exists()));
}

#[test]
fn programs_run_in_hosts() {
    let Some(hosts) = available(Hosts::new(1)) else { return };
    let daemon = Daemon::program("ip").args(["-4", "addr", "show", "dev", "eth0"]).start_in(&hosts[0]);
    assert!(daemon.wait_exit(LIMIT).success());
    assert!(daemon.stdout().contains(&format!("inet {}/24", hosts[0].address())), "{}", daemon.stdout());

    let daemon = sh("echo $$; exec sleep 60");
    let daemon = daemon.start_in(&hosts[0]);
    daemon.wait_stdout("\n");
    assert_eq!(daemon.stdout().trim(), daemon.pid().to_string(), "signals go to the program itself");
    let output = hosts[0].command("echo").arg("here").output().unwrap();
    assert_eq!(output.stdout, b"here\n");
}

#[test]
fn a_server_in_a_host_is_reached_from_another_until_the_link_is_cut() {
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let server = Server::start_in(&hosts[0]);
    assert_eq!(server.connect_string(), format!("{}:2181", hosts[0].address()));
    let cli = ZkCli::connect_with(&server.connect_string(), SECOND, Some(&hosts[1]));
    assert_eq!(cli.run("create -e /there"), "Created /there");
    hosts[1].link_down();
    wait_for("the session to expire", || {
        let closed = server.transactions().iter().any(|txn| txn.kind == TxnKind::CloseSession);
        if closed { Ok(()) } else { Err("it lives".to_owned()) }
    });
    hosts[1].link_up();
    cli.wait_output("state:Expired");
}

#[test]
fn an_ensemble_in_hosts_elects_another_leader_when_its_leader_is_cut_off() {
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let ensemble = Ensemble::start_in(hosts.all());
    let old = ensemble.leader();
    hosts[old].link_down();
    let new = wait_for("another leader", || match ensemble.leader() {
        same if same == old => Err("the old one".to_owned()),
        new => Ok(new),
    });
    let cli = ZkCli::connect_with(&ensemble.servers[new].connect_string(), SECOND * 4, Some(&hosts[new]));
    assert_eq!(cli.run("create /after cut"), "Created /after");
    hosts[old].link_up();
    ensemble.servers[old].wait_ready();
    let cli = ZkCli::connect_with(&ensemble.servers[old].connect_string(), SECOND * 4, Some(&hosts[old]));
    assert_eq!(cli.run("sync /"), "Sync is OK");
    assert_eq!(cli.run("get /after"), "cut");
}

// --- fake

/// A `ConnectRequest` of the Java client.
fn greet(fake: &Fake) -> TcpStream {
    let mut stream = TcpStream::connect(fake.connect_string()).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let mut request = vec![0, 0, 0, 45];
    request.extend([0; 12]); // protocol, last zxid
    request.extend(3000_i32.to_be_bytes());
    request.extend([0; 8]); // session
    request.extend([0, 0, 0, 16]);
    request.extend([0; 17]); // password, read only
    stream.write_all(&request).expect("it reads");
    stream
}

const PING: [u8; 12] = [0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFE, 0, 0, 0, 11];

#[test]
fn a_fake_that_refuses_counts_who_came() {
    let fake = Fake::start(Act::Refuse);
    for _ in 0..3 {
        let mut stream = TcpStream::connect(fake.connect_string()).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!((fake.connections(), fake.open_connections()), (3, 0));
    let address = fake.connect_string();
    drop(fake);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_silent_fake_says_nothing() {
    let fake = Fake::start(Act::Silent);
    let mut stream = greet(&fake);
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(fake.connections(), 1);
    drop(fake);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_fake_sends_the_garbage_it_was_given() {
    let fake = Fake::start(Act::Garbage(b"HTTP/1.1 400\r\n".to_vec()));
    let mut stream = greet(&fake);
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400\r\n");
}

#[test]
fn a_fake_that_stops_answering_keeps_the_connection() {
    let fake = Fake::start(Act::Handshake);
    let mut stream = greet(&fake);
    let mut welcome = [0; 41];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[8..12], 3000_i32.to_be_bytes(), "the timeout that was asked for");
    assert_ne!(welcome[12..20], [0; 8], "a session");

    let mut pong = [0; 20];
    stream.write_all(&PING).unwrap();
    stream.read_exact(&mut pong).unwrap();
    assert_eq!(pong[..8], [0, 0, 0, 16, 0xFF, 0xFF, 0xFF, 0xFE]);

    fake.stop_answering();
    stream.write_all(&PING).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(stream.read(&mut pong).unwrap_err().kind(), ErrorKind::WouldBlock);
    fake.answer_again();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(&PING).unwrap();
    stream.read_exact(&mut pong).unwrap();

    assert_eq!(fake.open_connections(), 1);
    fake.drop_connections();
    assert_eq!(stream.read(&mut pong).unwrap(), 0);
    assert_eq!((fake.connections(), fake.open_connections()), (1, 0));
}

#[test]
fn a_fake_is_good_enough_for_the_java_client() {
    let fake = Fake::start(Act::Handshake);
    let cli = ZkCli::connect(&fake.connect_string());
    assert_eq!(cli.run("create /a one"), "Created /a");
    assert_eq!(cli.run("create /a one"), "Node already exists: /a");
    assert_eq!(cli.run("get /a"), "one");
    assert_eq!(cli.run("set /a two"), "");
    assert_eq!(cli.run("set -v 0 /a three"), "version No is not valid : /a");
    assert!(cli.run("stat /a").contains("dataVersion = 1"));
    assert_eq!(cli.run("create -s -e /t- x"), "Created /t-0000000000");
    assert!(!cli.run("stat /t-0000000000").contains("ephemeralOwner = 0x0\n"));
    assert_eq!(cli.run("delete /a"), "");
    assert_eq!(cli.run("get /a"), "Node does not exist: /a");

    let before = fake.connections();
    fake.drop_connections();
    cli.wait_output("state:Disconnected");
    wait_for("the client to come back", || match fake.connections() {
        count if count > before => Ok(()),
        count => Err(format!("{count} connections")),
    });
    // The session is the same: its ephemeral goes with it.
    wait_for("an answer", || match cli.run("stat /t-0000000000") {
        stat if stat.contains("czxid") || stat.contains("cZxid") => Ok(()),
        other => Err(other),
    });
    cli.close();
    let cli = ZkCli::connect(&fake.connect_string());
    assert_eq!(cli.run("stat /t-0000000000"), "Node does not exist: /t-0000000000");
}

#[test]
fn a_fake_can_change_its_act() {
    let fake = Fake::start(Act::Refuse);
    fake.play(Act::Handshake);
    let mut welcome = [0; 41];
    greet(&fake).read_exact(&mut welcome).unwrap();
}

#[test]
fn what_a_machine_lacks_skips_the_test_unless_it_is_required() {
    if std::env::var_os("E2E").is_none() {
        assert_eq!(available(Err::<(), _>("nothing is there".to_owned())), None);
    }
    assert_eq!(available(Ok(1)), Some(1));
}

#[test]
fn the_commands_that_the_harness_runs_are_there() {
    for program in ["setpriv", "java", "ip"] {
        assert!(Command::new(program).arg("--version").output().is_ok(), "{program} is missing");
    }
}

// --- clusters

#[test]
fn a_cluster_is_judged_by_what_its_tasks_wrote_and_its_servers_committed() {
    let cluster = Cluster::start(&Shape { masters: 2, workers: 2, ..Shape::default() });
    let flow = cluster.load.flow(Duration::from_millis(30), SECOND, 1);
    wait_for("ten tasks", || {
        let accepted = flow.accepted().len();
        if accepted >= 10 { Ok(()) } else { Err(accepted.to_string()) }
    });
    let accepted = flow.stop();
    let verdict = cluster.judge(&accepted);
    assert_eq!(verdict.wrong, [""; 0]);
    assert_eq!((verdict.tasks, verdict.lost, verdict.again, verdict.overlapped), (accepted.len(), 0, 0, 0));
    let history = cluster.history();
    assert!(history.reigns.len() == 1 && history.assigned.len() == accepted.len());
    // A worker that is killed leaves a run without an end, and the next is found.
    let task = cluster.load.submit(SECOND);
    let run =
        wait_for("it to run", || cluster.load.runs().into_iter().find(|run| run.task == task).ok_or(String::new()));
    let killed_ns = e2e::workload::monotonic_ns();
    cluster.workers.iter().find(|worker| worker.name == run.host).expect("it has a name").kill_daemon();
    let verdict = cluster.judge(&[task]);
    assert_eq!((verdict.again, &verdict.wrong[..]), (1, &[][..]));
    assert_eq!(e2e::evidence::restarts_ns(&cluster.load.runs(), &run.host, killed_ns).len(), 1);
}
