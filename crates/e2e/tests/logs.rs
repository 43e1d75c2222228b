//! The output of tasks, as the worker serves it.

mod common;

use common::{Bench, SECOND, kill_inner, well};

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use e2e::{Daemon, Port, daemon::Launch, wait_for};
use rustix::process::Signal;
use znode_paths::{OutputPath, Stream, TaskName};

/// A master and a worker `w` that serves at a port.
struct Served {
    bench: Bench,
    master: Daemon,
    worker: Daemon,
    port: Port,
}

impl std::ops::Deref for Served {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Served {
    #[track_caller]
    fn start(name: &str) -> Served {
        let bench = Bench::shared(name);
        let port = Port::claim();
        let master = bench.master("m:2223").start();
        let worker = bench.worker("w").args(["--address", &port.address(), "--listen", &port.address()]).start();
        bench.tree.wait_worker("w");
        Served { bench, master, worker, port }
    }

    /// Sends anything, and returns all that comes back.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(self.port.address()).expect("the worker listens");
        socket.set_read_timeout(Some(30 * SECOND)).expect("30 s are no zero");
        socket.write_all(bytes).ok(); // it may have heard enough
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok(); // what came counts
        answer
    }

    fn get(&self, target: &str) -> String {
        let answer = self.say(format!("GET {target} HTTP/1.1\r\nHost: w\r\n\r\n").as_bytes());
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The czxid of the assignment of a task that runs.
    #[track_caller]
    fn fence(&self, task: TaskName) -> i64 {
        let path = format!("/assign/w/{task}");
        wait_for("the assignment", || self.tree.stat(&path).map(|stat| stat.czxid).ok_or_else(|| self.tree.picture()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            well(&[&self.master, &self.worker]);
        }
    }
}

/// The chunks of a complete answer.
#[track_caller]
fn body(answer: &str) -> String {
    let (head, mut rest) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("chunked"), "{head}");
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk has a size");
        let size = usize::from_str_radix(size, 16).expect("sizes are hexadecimal");
        if size == 0 {
            assert_eq!(after, "\r\n", "the end is the end");
            return body;
        }
        body += &after[..size];
        rest = after[size..].strip_prefix("\r\n").expect("a chunk ends its line");
    }
}

#[test]
fn a_worker_serves_what_runs_and_what_ran() {
    let served = Served::start("serves");
    let command = format!("echo one; echo two >&2; rm -r \"$ZK_TASK_DIR\"; {}; echo three", served.gate("go"));
    let task = served.tree.submit_with(&command, |_| ());
    let fence = served.fence(task);
    let path = |stream| OutputPath { task, fence, stream }.to_string();
    let stdout = path(Stream::Stdout);
    // Whoever follows may be there before the start.
    let (head, follower) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| served.get(&format!("{stdout}?follow&offset=1")));
        let head = wait_for("the first line", || match served.get(&stdout) {
            answer if answer.contains("one") => Ok(answer),
            answer => Err(answer),
        });
        served.open("go");
        (head, follower.join().expect("it does not panic"))
    });
    assert_eq!(body(&head), "one\n");
    assert_eq!(body(&follower), "ne\nthree\n", "the folder is gone, the bytes are there");
    served.tree.expect(task, "done");

    let task = served.tree.submit_with("printf abcdef; printf err >&2", |_| ());
    let fence = served.tree.expect(task, "done").meta.expect("it has metadata").fence.expect("it was started");
    let path = |stream| OutputPath { task, fence, stream }.to_string();
    assert_eq!(body(&served.get(&path(Stream::Stdout))), "abcdef");
    assert_eq!(body(&served.get(&format!("{}?follow&offset=4", path(Stream::Stdout)))), "ef");
    assert_eq!(body(&served.get(&format!("{}?offset=7", path(Stream::Stdout)))), "");
    assert_eq!(body(&served.get(&path(Stream::Stderr))), "err");
    for bad in ["?offset=-1", "?offset=x", "?offset=", "?offset=99999999999999999999"] {
        assert!(served.get(&format!("{}{bad}", path(Stream::Stdout))).starts_with("HTTP/1.1 400 "), "{bad}");
    }
}

#[test]
fn nothing_but_output_is_served() {
    let served = Served::start("nothing-else");
    let task = served.tree.submit_with("echo hidden > secret; ln -s /etc/passwd $ZK_TASK_DIR/stdin", |_| ());
    let fence = served.tree.expect(task, "done").meta.expect("it has metadata").fence.expect("it was started");
    let folder = format!("/tasks/{task}/{fence}");
    for target in [
        "/",
        "/tasks",
        "/../../../../etc/passwd",
        "/tasks/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        &folder,
        &format!("{folder}/"),
        &format!("{folder}/files/secret"),
        &format!("{folder}/stdin"),
        &format!("{folder}/../{fence}/stdout"),
        &format!("{folder}/..%2f..%2f.lock"),
        &format!("{folder}/stdout/"),
        &format!("{folder}/stdout%00"),
        &format!("/tasks/{task}/{}/stdout", fence + 1),
        &format!("/tasks/task-0000000009/{fence}/stdout"),
    ] {
        let answer = served.get(target);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
    }
}

#[test]
fn rubbish_is_refused_and_the_worker_works_on() {
    let served = Served::start("rubbish");
    for rubbish in [
        &b"\0\xff\0\xff"[..],
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"SSH-2.0-x\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: w\r\n folded: x\r\n\r\n",
    ] {
        let answer = served.say(rubbish);
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{rubbish:?}: {}", String::from_utf8_lossy(&answer));
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: w\r\n\r\n", "x".repeat(1 << 20));
    assert!(served.say(long.as_bytes()).starts_with(b"HTTP/1.1 431 "));
    assert!(served.say(b"POST /healthz HTTP/1.1\r\nHost: w\r\n\r\n").starts_with(b"HTTP/1.1 405 "));
    assert!(served.get("/healthz").ends_with("\r\n\r\nok\n"));
    let task = served.tree.submit("true");
    served.tree.expect(task, "done");
}

#[test]
fn hundreds_of_slow_connections_hold_up_neither_tasks_nor_the_next_one_who_asks() {
    let served = Served::start("slow");
    let slow: Vec<TcpStream> = (0..400)
        .map(|number| {
            let mut socket = TcpStream::connect(served.port.address()).expect("it is accepted, or will be");
            if number % 2 == 0 {
                socket.write_all(b"GET / HT").ok(); // it may be closed at once
            }
            socket
        })
        .collect();
    let tasks: Vec<TaskName> = (0..20).map(|_| served.tree.submit("true")).collect();
    assert_eq!(served.tree.wait_all(&tasks), 20);
    // They are cut off after 10 s, with all of them still there.
    wait_for("an answer", || match served.get("/healthz") {
        answer if answer.starts_with("HTTP/1.1 200 ") => Ok(()),
        answer => Err(answer),
    });
    drop(slow);
}

#[test]
fn a_taken_port_is_one_line_and_1() {
    let served = Served::start("taken");
    let address = served.port.address();
    let number = served.port.number();
    for (program, args) in
        [("zk-worker", vec!["--name", "x", "--listen", &address]), ("zk-master", vec!["--listen", &address])]
    {
        let work_dir = served.path("other");
        let daemon = Daemon::named(program).args(["--zk", &served.zk]).args(args).env("ZK_WORK_DIR", work_dir).start();
        assert_eq!(daemon.wait_exit(30 * SECOND).code(), Some(1));
        let said = daemon.stderr();
        assert!(said.starts_with(&format!("{program}: cannot listen at {address}, choose another")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // By default it is the port of the address.
    let worker = served.bench.worker("y").env_remove("ZK_LISTEN").args(["--address", &format!("y:{number}")]).start();
    assert_eq!(worker.wait_exit(30 * SECOND).code(), Some(1));
    assert!(worker.stderr().contains(&format!("cannot listen at *:{number}")), "{}", worker.stderr());
    // A master that was not told to listen there does without.
    let master = Daemon::named("zk-master").args(["--zk", &served.zk, "--address", &format!("n:{number}")]);
    let master = master.env_remove("ZK_LISTEN").start();
    master.wait_stderr("serving nothing over HTTP");
    master.wait_stderr("standing by");
}

#[test]
fn a_master_says_whether_it_goes_round() {
    let bench = Bench::shared("healthz");
    let port = Port::claim();
    let address = port.address();
    let master = bench.master(&address).args(["--listen", &address]).start();
    master.wait_stderr("primary fence=");
    let ask = |target: &str| {
        let mut socket = TcpStream::connect(&address).expect("it listens");
        write!(socket, "GET {target} HTTP/1.1\r\nHost: m\r\n\r\n").expect("it listens");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        answer
    };
    assert!(ask("/healthz").starts_with("HTTP/1.1 200 "));
    assert!(ask("/tasks/task-0000000000/1/stdout").starts_with("HTTP/1.1 404 "));
    well(&[&master]);
}

#[test]
fn a_daemon_is_asked_with_its_own_options_whether_it_is_well() {
    let bench = Bench::shared("health");
    let ports = [Port::claim(), Port::claim()];
    let [master, worker] = [ports[0].address(), ports[1].address()];
    let daemons = || [bench.master(&master).args(["--listen", &master]), bench.worker("w").args(["--listen", &worker])];
    let ask = |launch: Launch| {
        let asked = launch.arg("--health").start();
        (asked.wait_exit(30 * SECOND).code(), asked.stdout(), asked.stderr())
    };
    let running = daemons().map(Launch::start);
    running[0].wait_stderr("primary fence=");
    bench.tree.wait_worker("w");
    assert_eq!(daemons().map(ask), [const { (Some(0), String::new(), String::new()) }; 2]);
    for (daemon, launch) in running.into_iter().zip(daemons()) {
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit(30 * SECOND).code(), Some(0));
        let (code, _, says) = ask(launch);
        assert!(code == Some(1) && says.contains(": not well at 127.0.0.1:") && says.lines().count() == 1, "{says}");
    }
}

// --- run and logs

/// Bytes of all kinds, others for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

impl Served {
    /// A client that runs a command.
    fn run(&self, command: &str) -> Launch {
        self.client().args(["run", "--", command])
    }

    fn logs(&self, args: &[&str]) -> Daemon {
        self.client().arg("logs").args(args).start()
    }
}

/// Its exit code, and that it had nothing to say.
#[track_caller]
fn code(client: &Daemon) -> i32 {
    client.wait_exit(60 * SECOND).code().expect("it is not killed")
}

#[test]
fn run_shows_both_streams_byte_by_byte_whatever_their_length() {
    let served = Served::start("exact");
    for (number, (out, err)) in
        [(0, 0), (1, 0), (0, 1), (65_536, 65_537), (32_768, 1 << 20), (5_000_000, 3_000_000)].into_iter().enumerate()
    {
        let (stdout, stderr) = (noise(1, out), noise(2, err));
        let (from_out, from_err) = (served.path("out"), served.path("err"));
        std::fs::write(&from_out, &stdout).expect("a file can be written");
        std::fs::write(&from_err, &stderr).expect("a file can be written");
        let (from_out, from_err) = (from_out.display(), from_err.display());
        let client = served.run(&format!("cat {from_out} & cat {from_err} >&2; wait; exit {number}")).start();
        assert_eq!(code(&client), i32::try_from(number).expect("it is small"));
        assert!(client.stdout_bytes() == stdout, "stdout of {out} bytes: {} came", client.stdout_bytes().len());
        assert!(client.stderr_bytes() == stderr, "stderr of {err} bytes: {}", client.stderr());
    }
    let last = TaskName::from_number(5).to_string();
    let client = served.logs(&["--stderr", &last]);
    assert_eq!(code(&client), 0);
    assert!(client.stdout().is_empty() && client.stderr_bytes() == noise(2, 3_000_000));
    let client = served.logs(&["--stdout", "-f", &last]);
    assert_eq!((code(&client), client.stderr().as_str()), (0, ""));
    assert!(client.stdout_bytes() == noise(1, 5_000_000));
}

#[test]
fn output_comes_while_the_command_runs() {
    let served = Served::start("live");
    let command = format!("printf one; printf two >&2; {}; printf three", served.gate("go"));
    let client = served.run(&command).start();
    client.wait_stdout("one");
    client.wait_stderr("two");
    let task = TaskName::from_number(0).to_string();
    let now = served.logs(&[&task]);
    assert_eq!((code(&now), now.stdout().as_str(), now.stderr().as_str()), (0, "one", "two"));
    let follower = served.logs(&["-f", &task]);
    follower.wait_stdout("one");
    served.open("go");
    for client in [client, follower] {
        assert_eq!((code(&client), client.stdout().as_str(), client.stderr().as_str()), (0, "onethree", "two"));
    }
}

#[test]
fn whoever_follows_a_task_that_waits_sees_it_from_its_first_byte() {
    let served = Served::start("waits");
    let first = served.tree.submit_with(&served.gate("go"), |_| ());
    let task = served.tree.submit_with("echo out; echo err >&2", |meta| meta.after = vec![first]);
    let now = served.logs(&[&task.to_string()]);
    assert_eq!((code(&now), now.stdout().as_str(), now.stderr().as_str()), (0, "", ""), "there is nothing yet");
    let follower = served.logs(&["-f", "--stdout", &task.to_string()]);
    served.open("go");
    assert_eq!((code(&follower), follower.stdout().as_str(), follower.stderr().as_str()), (0, "out\n", ""));
    let none = served.logs(&["-f", "task-0000000099"]);
    assert_eq!(code(&none), 125);
    assert_eq!(none.stderr(), "zk-client: cannot show its output: no such task: task-0000000099\n");
}

#[test]
fn logs_in_json_are_an_object_for_each_piece() {
    let served = Served::start("json");
    let task = served.tree.submit_with("printf 'a\\n'; printf '\\377' >&2", |_| ());
    served.tree.expect(task, "done");
    let client = served.logs(&["--json", &task.to_string()]);
    assert_eq!((code(&client), client.stderr().as_str()), (0, ""));
    let head = format!("{{\"task\":\"{task}\",\"attempt\":1,\"worker\":\"w\",\"stream\":");
    let expected = format!(
        "{head}\"stdout\",\"offset\":0,\"text\":\"a\\n\"}}\n{head}\"stderr\",\"offset\":0,\"base64\":\"/w==\"}}\n"
    );
    assert_eq!(client.stdout(), expected);
}

#[test]
fn a_reader_that_leaves_ends_run_quietly_and_the_task_with_it() {
    let served = Served::start("head");
    let client = Daemon::program("/bin/sh")
        .args(["-c", "{ \"$0\" \"$@\"; echo code $? >&2; } | head -n 1"])
        .arg(e2e::daemon::binary("zk-client"))
        .args(["--zk", &served.zk, "run", "--", "yes"])
        .start();
    assert_eq!(code(&client), 0);
    assert_eq!((client.stdout().as_str(), client.stderr().as_str()), ("y\n", "code 0\n"));
    served.tree.expect(TaskName::from_number(0), "cancelled");
}

#[test]
fn the_output_of_every_attempt_is_shown_in_order() {
    let served = Served::start("attempts");
    let wait = served.gate("never");
    let command = format!("echo out $ZK_TASK_ATTEMPT; [ $ZK_TASK_ATTEMPT -gt 1 ] || {{ {wait}; }}; echo end");
    let client = served.run(&command).start();
    client.wait_stdout("out 1\n");
    kill_inner(&served.worker);
    assert_eq!(code(&client), 0);
    assert_eq!(client.stdout(), "out 1\nout 2\nend\n");
    assert!(client.stderr().contains("zk-client: attempt 2 begins on worker w\n"), "{}", client.stderr());
}

#[test]
fn a_worker_that_leaves_lets_whoever_reads_read_to_the_end() {
    let bench = Bench::shared("leaves");
    let port = Port::claim();
    let _master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--address", &port.address(), "--listen", &port.address()]).start();
    bench.tree.wait_worker("w");
    let command = format!("{}; head -c 30000000 /dev/zero", bench.gate("go"));
    let task = bench.tree.submit_with(&command, |_| ());
    let fence = wait_for("the assignment", || {
        bench.tree.stat(&format!("/assign/w/{task}")).map(|stat| stat.czxid).ok_or_else(|| bench.tree.picture())
    });
    let path = OutputPath { task, fence, stream: Stream::Stdout };
    let mut socket = TcpStream::connect(port.address()).expect("the worker listens");
    write!(socket, "GET {path}?follow HTTP/1.1\r\nHost: w\r\n\r\n").expect("the worker listens");
    worker.signal(e2e::Signal::TERM);
    worker.wait_stderr("asked to stop");
    bench.open("go");
    // More than the kernel keeps for us is not read yet.
    bench.tree.expect(task, "done");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("nothing breaks it off");
    assert!(answer.len() > 30_000_000 && answer.ends_with(b"\r\n0\r\n\r\n"), "{} bytes came", answer.len());
    assert_eq!(worker.wait_exit(30 * SECOND).code(), Some(0));
}

// --- what goes wrong on the way

/// Stands between the client and the worker: cuts every connection after so many bytes of the answer.
struct Relay {
    port: Port,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    fn start(worker: &str, cut_after: usize) -> Relay {
        let port = Port::claim();
        let listener = TcpListener::bind(port.address()).expect("a claimed port is free");
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, worker) = (connections.clone(), worker.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(&worker) else { continue };
                std::thread::spawn(move || relay(client, server, cut_after));
            }
        });
        Relay { port, connections }
    }
}

fn relay(mut client: TcpStream, mut server: TcpStream, cut_after: usize) -> std::io::Result<()> {
    let (mut request, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut request, &mut to_server));
    let mut left = cut_after;
    let mut bytes = [0; 4096];
    while left > 0 {
        let most = left.min(bytes.len());
        let count = server.read(&mut bytes[..most])?;
        if count == 0 {
            break;
        }
        client.write_all(&bytes[..count])?;
        left -= count;
    }
    client.shutdown(Shutdown::Both)?;
    server.shutdown(Shutdown::Both)
}

#[test]
fn a_connection_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let bench = Bench::shared("relay");
    let port = Port::claim();
    let relay = Relay::start(&port.address(), 50_000);
    let _master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--address", &relay.port.address(), "--listen", &port.address()]);
    let worker = worker.args(["--output-limit", "1000"]).start();
    bench.tree.wait_worker("w");
    let stdout = noise(3, 700_000);
    std::fs::write(bench.path("out"), &stdout).expect("a file can be written");
    let command = format!(
        "head -c 300000 {0}; {1}; tail -c +300001 {0}; printf err >&2",
        bench.path("out").display(),
        bench.gate("go")
    );
    let client = bench.client().args(["run", "--", &command]).start();
    wait_for("the first part", || match client.stdout_bytes().len() {
        300_000 => Ok(()),
        length => Err(length.to_string()),
    });
    bench.open("go");
    assert_eq!((code(&client), client.stderr().as_str()), (0, "err"));
    assert!(client.stdout_bytes() == stdout, "{} bytes came", client.stdout_bytes().len());
    assert!(relay.connections.load(Ordering::SeqCst) >= 14, "each carries less than 50,000 bytes");
    well(&[&worker]);
}

#[test]
fn without_its_worker_run_shows_what_the_status_holds_and_says_what_is_missing() {
    let bench = Bench::shared("unreachable");
    let nobody = Port::claim();
    let _master = bench.master("m:2223").start();
    let args = ["--address", &nobody.address(), "--output-limit", "10"];
    let _worker = bench.worker("w").args(args).start(); // which does not listen
    bench.tree.wait_worker("w");
    let client = bench.client().args(["run", "--", "printf short; printf err >&2; exit 3"]).start();
    assert_eq!((code(&client), client.stdout().as_str(), client.stderr().as_str()), (3, "short", "err"));

    let command = format!("printf 0123456789abcdef; {}", bench.gate("go"));
    let client = bench.client().args(["run", "--", &command]).start();
    client.wait_stderr(&format!("zk-client: worker w is not reached at {}: ", nobody.address()));
    bench.open("go");
    assert_eq!((code(&client), client.stdout().as_str()), (0, "6789abcdef"));
    let missing = format!(
        "zk-client: the first 6 bytes of stdout are missing here, the whole is on worker w (not reached at {}",
        nobody.address()
    );
    assert!(client.stderr().contains(&missing), "{}", client.stderr());
    assert_eq!(client.stderr().lines().count(), 2, "{}", client.stderr());
    let logs = bench.client().args(["logs", "task-0000000001"]).start();
    assert_eq!((code(&logs), logs.stdout().as_str()), (1, "6789abcdef"), "some is missing: 1");
}

#[test]
fn neither_a_failover_nor_a_restart_of_zookeeper_is_seen_in_the_output() {
    let mut server = e2e::Server::start();
    let bench = Bench::at(server.chroot("failover"));
    let port = Port::claim();
    let masters = ["m1:2223", "m2:2223"].map(|address| bench.master(address).args(["--session-timeout", "2s"]).start());
    let worker = bench.worker("w").args(["--address", &port.address(), "--listen", &port.address()]).start();
    bench.tree.wait_worker("w");
    // 10 digits a line, for as long as it takes.
    let command = format!(
        "i=1000000000; until [ -e {0} ] || ! [ -d {1} ]; do echo $i; i=$((i+1)); sleep 0.002; done; echo end; exit 5",
        bench.path("go").display(),
        bench.path("").display()
    );
    let client = bench.client().args(["run", "--session-timeout", "2s", "--", &command]).start();
    client.wait_stdout("1000000010\n");
    let primary = bench.tree.text("/master").expect("there is a primary");
    masters[if primary == "m1:2223" { 0 } else { 1 }].kill();
    server.kill();
    let seen = client.stdout_bytes().len();
    wait_for("output without ZooKeeper", || match client.stdout_bytes().len() {
        now if now > seen + 500 => Ok(()),
        now => Err(now.to_string()),
    });
    server.restart();
    wait_for("another primary", || match bench.tree.text("/master") {
        Some(other) if other != primary => Ok(()),
        other => Err(format!("{other:?}")),
    });
    bench.open("go");
    assert_eq!(code(&client), 5);
    // On a slow machine the server is away for so long that this is said, and nothing else.
    assert!(client.stderr().lines().all(|line| line.contains("still waiting")), "{}", client.stderr());
    let stdout = client.stdout();
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = (0..lines.len() - 1).map(|number| (1_000_000_000 + number).to_string()).chain(["end".to_owned()]);
    assert!(lines.iter().copied().eq(expected), "{stdout}");
    well(&[&worker]);
}

#[test]
fn when_the_host_of_its_worker_is_cut_off_run_goes_on_with_the_next_attempt() {
    let Some(hosts) = e2e::available(e2e::Hosts::new(4)) else { return };
    let server = e2e::Server::start_in(&hosts[0]);
    let zk = server.chroot("cut");
    let tree = e2e::Tree::of(&zk, Some(&hosts[3]));
    let dir = tempfile::tempdir().expect("a directory can be made");
    let daemon = |name: &str| Daemon::named(name).args(["--zk", &zk, "--session-timeout", "2s"]);
    let _master = daemon("zk-master").start_in(&hosts[0]);
    let start = |number: usize| {
        let (name, address) = (format!("w{number}"), format!("{}:2224", hosts[number].address()));
        let work_dir = dir.path().join(&name);
        let worker = daemon("zk-worker").args(["--name", &name, "--address", &address, "--work-dir"]).arg(work_dir);
        let worker = worker.args(["--listen", "0.0.0.0:2224"]).start_in(&hosts[number]);
        tree.wait_worker(&name);
        worker
    };
    let first = start(1);
    let command = "echo out $ZK_TASK_ATTEMPT; [ $ZK_TASK_ATTEMPT -gt 1 ] || sleep 1000; head -c 200000 /dev/zero";
    let client = daemon("zk-client").args(["run", "--", command]).start_in(&hosts[3]);
    client.wait_stdout("out 1\n");
    let second = start(2);
    hosts[1].link_down();
    assert_eq!(code(&client), 0, "{}", client.stderr());
    let expected = [b"out 1\nout 2\n".as_slice(), &[0; 200_000]].concat();
    assert!(client.stdout_bytes() == expected, "{} bytes came", client.stdout_bytes().len());
    assert!(client.stderr().contains("zk-client: attempt 2 begins on worker w2\n"), "{}", client.stderr());
    well(&[&first, &second]);
}
