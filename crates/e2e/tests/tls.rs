//! All three programs over TLS, and what they say when they cannot.

mod common;

use common::{Bench, SECOND, inner, well};

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use e2e::{Authority, Daemon, Issued, Port, Secure, Server, Setup, daemon::Launch};
use rustix::process::{Signal, kill_process};

/// A server that demands certificates, and a tree on it that the test itself looks at in plain.
struct Secured {
    authority: Authority,
    own: Issued,
    server: Server,
    bench: Bench,
}

impl Secured {
    #[track_caller]
    fn start() -> Secured {
        let authority = Authority::new();
        let secure = Secure { own: authority.issue(&["127.0.0.1"]), authority: authority.file(), client_auth: "need" };
        let server = Server::start_with(&Setup { secure: Some(secure), ..Setup::default() }, None);
        let mut bench = Bench::at(format!("{}/tls", server.connect_string()));
        bench.zk = format!("{}/tls", server.secure_connect_string());
        Secured { own: authority.issue(&["us"]), authority, server, bench }
    }

    /// One of our programs that is to speak TLS.
    fn tls(&self, launch: Launch) -> Launch {
        let launch = launch.env("ZK_TLS_CA", self.authority.file());
        launch.env("ZK_TLS_CERT", &self.own.certificate).env("ZK_TLS_KEY", &self.own.key)
    }
}

/// A way to a server that remembers all that passes, in both directions.
struct Tap {
    port: Port,
    /// Of each direction of each connection.
    passed: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    fn to(server: String) -> Tap {
        let port = Port::claim();
        let listener = TcpListener::bind(port.address()).expect("a claimed port is free");
        let passed = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let sharing = Arc::clone(&passed);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let copy = |socket: &TcpStream| socket.try_clone().expect("a descriptor can be had");
                for (from, to) in [(copy(&client), copy(&server)), (server, client)] {
                    let passed = Arc::clone(&sharing);
                    thread::spawn(move || pass(from, to, &passed));
                }
            }
        });
        Tap { port, passed }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, passed: &Mutex<Vec<Vec<u8>>>) {
    let lock = || passed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = [0; 4096];
    let index = {
        let mut passed = lock();
        passed.push(Vec::new());
        passed.len() - 1
    };
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        lock()[index].extend(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok(); // it may be at its end already
}

#[test]
fn a_task_runs_over_tls_and_nothing_of_it_can_be_read_on_the_way() {
    let mut secured = Secured::start();
    let tap = Tap::to(secured.server.secure_connect_string());
    secured.bench.zk = format!("{}/tls", tap.port.address());
    let auth = secured.bench.path("auth");
    fs::write(&auth, "digest:ann:passphrase").unwrap();
    fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
    let launch = |launch: Launch| secured.tls(launch).env("ZK_AUTH_FILE", &auth);
    let bench = &secured.bench;
    let master = launch(bench.master("m:2223")).start();
    let worker = launch(bench.worker("w")).start();
    let client = launch(bench.client()).args(["run", "echo confidential"]).start();
    assert_eq!(client.wait_exit(30 * SECOND).code(), Some(0), "{}", client.stderr());
    assert_eq!(client.stdout(), "confidential\n");
    well(&[&master, &worker]);
    drop((master, worker));
    let passed = tap.passed.lock().unwrap();
    assert!(passed.len() >= 6, "all went over the tap");
    for bytes in passed.iter().filter(|bytes| !bytes.is_empty()) {
        assert_eq!(bytes[..2], [0x16, 3], "a handshake of TLS (RFC 8446, section 5.1)");
        let text = String::from_utf8_lossy(bytes);
        for secret in ["confidential", "passphrase", "digest", "/tls", "task-", "m:2223"] {
            assert!(!text.contains(secret), "{secret}");
        }
    }
}

#[test]
fn a_dead_primary_and_a_dead_worker_are_replaced_at_once_over_tls() {
    let secured = Secured::start();
    let bench = &secured.bench;
    let start = |launch: Launch| secured.tls(launch.env("ZK_SESSION_TIMEOUT", "30s")).start();
    let first = start(bench.master("first:2223"));
    first.wait_stderr("] primary fence=");
    let second = start(bench.master("second:2223"));
    second.wait_stderr("standing by");
    let worker = start(bench.worker("w"));
    bench.tree.wait_worker("w");
    let started = bench.note("started", "$ZK_TASK_ATTEMPT");
    let task = bench.tree.submit_with(&format!("{started}; [ $ZK_TASK_ATTEMPT = 2 ] || exec sleep 600"), |_| ());
    bench.wait_lines("started", 1);
    // Long before any session expires.
    for daemon in [&worker, &first] {
        kill_process(inner(daemon), Signal::KILL).unwrap();
        daemon.wait_stderr("ended a session of the dead daemon");
    }
    second.wait_stderr("] primary fence=");
    bench.tree.expect(task, "done");
    well(&[&first, &second, &worker]);
}

#[test]
fn what_cannot_be_used_is_said_at_the_start() {
    let authority = Authority::new();
    let (own, other) = (authority.issue(&["us"]), authority.issue(&["them"]));
    let dir = tempfile::tempdir().unwrap();
    let open_key = dir.path().join("open");
    fs::copy(&own.key, &open_key).unwrap();
    fs::set_permissions(&open_key, fs::Permissions::from_mode(0o640)).unwrap();
    let ca = authority.file();
    let [ca, cert, key, other, open] =
        [&ca, &own.certificate, &own.key, &other.key, &open_key].map(|file| file.to_str().unwrap());
    let cases: [(&[&str], &str); 9] = [
        (&["--tls-ca", "/nowhere"], "cannot read /nowhere: No such file"),
        (&["--tls-ca", key], "--tls-ca holds no certificate in PEM form"),
        (&["--tls-ca", ca, "--tls-cert", cert], "--tls-cert is of no use without --tls-key"),
        (&["--tls-ca", ca, "--tls-key", key], "--tls-key is of no use without --tls-cert"),
        (&["--tls-cert", cert, "--tls-key", key], "--tls-cert is of no use without --tls-ca"),
        (&["--tls-name", "zk"], "--tls-name is of no use without --tls-ca"),
        (&["--tls-ca", ca, "--tls-cert", cert, "--tls-key", other], "is not for the key of --tls-key"),
        (&["--tls-ca", ca, "--tls-cert", cert, "--tls-key", open], "can be read by others: chmod 600"),
        (&["--tls-ca", ca, "--tls-name", "a b"], "--tls-name is not a host name or an IP address: \"a b\""),
    ];
    for (options, why) in cases {
        for (program, code) in [("zk-master", 1), ("zk-worker", 1), ("zk-client", 2)] {
            let launch = Daemon::named(program).args(options).env("ZK_WORK_DIR", dir.path());
            let started = if program == "zk-client" { launch.arg("list") } else { launch }.start();
            let status = started.wait_exit(20 * SECOND);
            assert_eq!(status.code(), Some(code), "{program} {options:?}: {}", started.stderr());
            let stderr = started.stderr();
            assert!(stderr.lines().count() == 1 && stderr.contains(why), "{program} {options:?}: {stderr}");
        }
    }
}
