//! Who may do what: everything is for the daemons' identity, submitters may submit, read and cancel.

mod common;

use common::{Bench, SECOND, count, kill_inner, well};

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use e2e::{Authority, Daemon, Secure, Server, Setup, Signal, wait_for};
use zk_session::{Config, DigestId, Error, Kind, Others, Session};
use znode_paths::{WorkerName, paths};

/// As ACLs name them (`DigestAuthenticationProvider daemons:secret`, `submitters:known`).
const DAEMONS: &str = "daemons:vZMZHultCQxIYkEQ2mjs3upPnmA=";
const SUBMITTERS: &str = "submitters:YGTAdlyk6PPi0I81Nwu5+1FRrJo=";

fn auth(bench: &Bench, name: &str, text: &str) -> PathBuf {
    let file = bench.path(name);
    fs::write(&file, text).expect("a file can be written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    file
}

/// A cluster with submitters.
struct Split {
    bench: Bench,
    master: Daemon,
    worker: Daemon,
    daemons: PathBuf,
    submitters: PathBuf,
}

impl Split {
    #[track_caller]
    fn start(name: &str) -> Split {
        let bench = Bench::shared(name);
        let daemons = auth(&bench, "daemons", &format!("digest:daemons:secret\nsubmitters digest:{SUBMITTERS}\n"));
        let submitters = auth(&bench, "submitters", &format!("digest:submitters:known\ndaemons digest:{DAEMONS}\n"));
        let master = bench.master("m:2223").arg("--auth-file").arg(&daemons).start();
        master.wait_stderr("] primary fence=");
        let worker = bench.worker("w").arg("--auth-file").arg(&daemons).start();
        worker.wait_stderr("registered");
        Split { bench, master, worker, daemons, submitters }
    }

    /// What a client of this identity prints.
    #[track_caller]
    fn client(&self, auth: &PathBuf, args: &[&str], code: i32) -> (String, String) {
        let client = self.bench.client().arg("--auth-file").arg(auth).args(args).start();
        let status = client.wait_exit(30 * SECOND);
        assert_eq!(status.code(), Some(code), "{args:?}: {}", client.stderr());
        (client.stdout(), client.stderr())
    }

    /// A session of this identity.
    fn session(&self, digest: Option<&str>, others: Option<Others>) -> Session {
        session(&self.bench, digest, others)
    }
}

#[track_caller]
fn session(bench: &Bench, digest: Option<&str>, others: Option<Others>) -> Session {
    let zk = bench.zk.parse().expect("the harness makes good connect strings");
    let config = Config { digest: digest.map(str::to_owned), others, ..Config::new(zk, 10 * SECOND) };
    Session::open(&config, 1, &(std::sync::Arc::new(|_| ()) as zk_session::Notify)).expect("a session")
}

#[test]
fn submitters_submit_and_read_and_cancel_and_may_do_nothing_else() {
    let split = Split::start("submitters");
    let submitter = |args: &[&str], code| split.client(&split.submitters, args, code).0;
    assert_eq!(submitter(&["run", "--", "echo", "hello"], 0), "hello\n");
    let first = "task-0000000000";
    assert_eq!(submitter(&["logs", first], 0), "hello\n");
    for command in [&["list"][..], &["show", first], &["why", first], &["wait", first], &["status"], &["workers"]] {
        submitter(command, 0);
    }
    assert_eq!(submitter(&["submit", "--key", "k", "true"], 0), submitter(&["submit", "--key", "k", "true"], 0));
    assert_eq!(submitter(&["batch", "/dev/null"], 0), "", "an empty batch");
    let again = submitter(&["retry", first], 0);
    assert!(again.contains("task-"), "{again}");

    // Cancelled while it runs, and while nothing runs it.
    let long = submitter(&["submit", &format!("{}; exec sleep 600", split.bench.note("started", "x"))], 0);
    split.bench.wait_lines("started", 1);
    let waits = submitter(&["submit", "--require", "no=where", "true"], 0);
    for task in [long.trim(), waits.trim()] {
        submitter(&["cancel", task], 0);
        submitter(&["wait", task], 130);
    }
    let session = split.session(Some("daemons:secret"), None);
    wait_for("requests to be gone", || match session.children(paths::REQUESTS, false) {
        Ok(Some(requests)) if requests.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // By the servers themselves, whatever program asks.
    let waits = submitter(&["submit", "--require", "no=where", "true"], 0);
    let task = format!("/tasks/{}", waits.trim());
    let others: Option<DigestId> = DAEMONS.parse().ok();
    let submitter = split.session(Some("submitters:known"), others.map(Others::Daemons));
    let nobody = split.session(None, None);
    let status = format!("{task}/status");
    for session in [&submitter, &nobody] {
        for path in [
            "/workers/x",
            "/assign/x",
            "/assign/w/task-0000000000",
            "/live/x",
            "/other",
            &status,
            &format!("{task}/cancel"),
        ] {
            let refused = session.create(path, b"x", Kind::Persistent);
            assert_eq!(refused.unwrap_err(), Error::NotAllowed(path.to_owned()));
        }
        for path in ["/master", "/epoch", "/tasks", "/workers/w", &task] {
            assert_eq!(session.write(path, b"x", None).unwrap_err(), Error::NotAllowed(path.to_owned()));
            assert_eq!(session.protect(path).unwrap_err(), Error::NotAllowed(path.to_owned()));
        }
        for path in ["/master", "/epoch", "/workers/w", &task] {
            assert_eq!(session.delete(path, None).unwrap_err(), Error::NotAllowed(path.to_owned()));
        }
    }
    for path in ["/tasks/task-", "/keys/x", "/requests/x"] {
        assert_eq!(nobody.create(path, b"x", Kind::Sequential).unwrap_err(), Error::NotAllowed(path.to_owned()));
    }
    for path in [&task[..], "/tasks", "/master"] {
        assert_eq!(nobody.read(path, false).unwrap_err(), Error::NotAllowed(path.to_owned()));
    }

    let (_, why) = split.client(&split.submitters, &["rm", first], 125);
    assert!(why.contains("not allowed at /tasks/task-0000000000"), "{why}");
    let (_, why) = split.client(&split.submitters, &["drain", "w"], 125);
    assert!(why.contains("not allowed at /assign/w"), "{why}");
    split.client(&split.daemons, &["rm", first], 0);
    assert_eq!(split.client(&split.daemons, &["doctor"], 0).0, "0 wrong, 0 repaired\n");
    well(&[&split.master, &split.worker]);
}

#[test]
fn a_tree_without_submitters_gets_them_from_the_next_primary_and_the_doctor() {
    let bench = Bench::shared("later");
    let daemons = auth(&bench, "daemons", "digest:daemons:secret");
    let submitters = auth(&bench, "submitters", &format!("digest:submitters:known\ndaemons digest:{DAEMONS}\n"));
    let master = bench.master("m:2223").env("ZK_AUTH", &daemons).start();
    master.wait_stderr("] primary fence=");
    let client = |auth: &PathBuf, args: &[&str]| {
        let client = bench.client().env("ZK_AUTH", auth).args(args).start();
        client.wait_exit(30 * SECOND);
        (client.stdout(), client.stderr())
    };
    assert_eq!(client(&daemons, &["submit", "true"]).0, "task-0000000000\n");
    assert!(client(&submitters, &["submit", "true"]).1.contains("not allowed at /tasks"));
    master.signal(Signal::TERM);
    assert_eq!(master.wait_exit(30 * SECOND).code(), Some(0));
    fs::write(&daemons, format!("digest:daemons:secret\nsubmitters digest:{SUBMITTERS}")).unwrap();
    let master = bench.master("m:2223").env("ZK_AUTH", &daemons).start();
    master.wait_stderr("] primary fence=");
    assert_eq!(client(&submitters, &["submit", "true"]).0, "task-0000000001\n");
    assert!(client(&submitters, &["list"]).1.contains("not allowed at /tasks/task-0000000000"));
    let doctor = client(&daemons, &["doctor", "--fix"]);
    assert!(doctor.0.contains("/tasks/task-0000000000: its ACL is not what"), "{doctor:?}");
    assert_eq!(client(&submitters, &["list"]).0.lines().count(), 3);
    well(&[&master]);
}

/// A certificate is an identity as well, and may be the same in all.
#[test]
fn what_is_made_is_for_the_identity_alone_also_where_clients_have_certificates() {
    let authority = Authority::new();
    let secure = Secure { own: authority.issue(&["127.0.0.1"]), authority: authority.file(), client_auth: "need" };
    let server = Server::start_with(&Setup { secure: Some(secure), ..Setup::default() }, None);
    let own = authority.issue(&["everybody"]);
    let mut bench = Bench::at(format!("{}/x", server.connect_string()));
    bench.zk = format!("{}/x", server.secure_connect_string());
    let tls = |launch: e2e::daemon::Launch| {
        let launch = launch.env("ZK_TLS_CA", authority.file());
        launch.env("ZK_TLS_CERT", &own.certificate).env("ZK_TLS_KEY", &own.key)
    };
    let master = tls(bench.master("m:2223")).env("ZK_AUTH", "digest:daemons:secret").start();
    master.wait_stderr("] primary fence=");
    let doctor = tls(bench.client()).env("ZK_AUTH", "digest:daemons:secret").arg("doctor").start();
    assert_eq!(doctor.wait_exit(30 * SECOND).code(), Some(0), "{}", doctor.stdout());
    let stranger = tls(bench.client()).args(["submit", "true"]).start();
    stranger.wait_exit(30 * SECOND);
    assert!(stranger.stderr().contains("not allowed at /tasks"), "{}", stranger.stderr());
}

#[test]
fn daemons_warn_once_that_nobody_is_kept_out() {
    let bench = Bench::shared("open");
    let warning = "no identity (--auth-file)";
    for daemon in [bench.master("m:2223"), bench.worker("w")] {
        let daemon = daemon.start();
        daemon.wait_stderr("] connected ");
        assert_eq!(common::count(&daemon, warning), 1, "{}", daemon.stderr());
    }
    for daemon in [bench.master("m:2223"), bench.worker("other")] {
        let daemon = daemon.env("ZK_AUTH", "digest:a:b").start();
        daemon.wait_stderr("] connected ");
        assert_eq!(common::count(&daemon, warning), 0, "{}", daemon.stderr());
    }
}

#[test]
fn a_secret_is_in_no_argument_no_log_and_no_task_and_a_task_cannot_read_its_worker() {
    let bench = Bench::shared("secret");
    fs::set_permissions(bench.path("."), fs::Permissions::from_mode(0o777)).unwrap();
    let identity = "digest:ann:passphrase";
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let launch = |launch: e2e::daemon::Launch| {
        let launch = launch.env("ZK_AUTH", identity).env("RUST_LOG", "trace");
        launch.under("setpriv", as_nobody)
    };
    let master = launch(bench.master("m:2223")).start();
    let worker = launch(bench.worker("w")).start();
    let look = "env; cat /proc/$PPID/environ /proc/$PPID/cmdline; tr '\\0' '\\n' < /proc/$PPID/mem | head -c 1; \
                for guard in /proc/[0-9]*; do cat $guard/environ; done 2>/dev/null; true";
    let client = launch(bench.client()).args(["run", look]).start();
    assert_eq!(client.wait_exit(30 * SECOND).code(), Some(0), "{}", client.stderr());
    kill_inner(&master);
    master.wait_stderr("ended a session");
    assert!(client.stderr().contains("Permission denied"), "{}", client.stderr());
    for text in [client.stdout(), client.stderr(), master.stderr(), worker.stderr()] {
        assert!(!text.contains("passphrase"), "{text}");
    }
    assert!(master.stderr().contains("DEBUG"), "it says all that it can");
    assert!(!master.stderr().contains("not identified"), "it can see its own sockets: {}", master.stderr());
}

#[test]
fn what_a_worker_may_not_read_holds_up_nothing_else() {
    let bench = Bench::shared("barred");
    let (tree, master) = (&bench.tree, bench.master("m:1").start());
    master.wait_stderr("] primary fence=");
    let stranger = session(&bench, Some("stranger:secret"), None);
    let name: WorkerName = "w".parse().expect("it is a name");
    // ZooKeeper tells nobody of what they may not read; a worker finds it when it lists what it has.
    tree.create("/assign/w", "");
    let foreign = ["task-0000000098", "task-0000000099"];
    for task in foreign {
        stranger.create(&format!("/assign/w/{task}"), b"", Kind::Persistent).expect("anybody may");
    }
    // As many as it has slots.
    let worker = bench.worker("w").args(["--slots", "2"]).start();
    for task in foreign {
        worker.wait_stderr(&format!("cannot run task={task}, will look again: "));
    }
    let others_run = || _ = tree.expect(tree.submit("true"), "done");
    others_run();

    let long = tree.submit(&format!("{}; {}", bench.note("started", "x"), bench.gate("gate")));
    bench.wait_lines("started", 1);
    for path in [paths::assignment(&name, &long), paths::task(&long)] {
        stranger.protect(&path).expect("anybody may");
    }
    // It looks again at all that it runs.
    tree.delete("/workers/w");
    tree.wait_worker("w");
    others_run();
    bench.open("gate");
    worker.wait_stderr(&format!("dropped the result of task={long}, which has no status now: "));
    others_run();
    assert_eq!([count(&worker, "session lost"), count(&worker, "cannot go on")], [0, 0], "{}", worker.stderr());
    well(&[&master, &worker]);
}
