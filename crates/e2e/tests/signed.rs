//! Workers with a task key run what is signed with it, and nothing else (SECURITY.md).

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Bench, Pair, SECOND, kill_inner, well};
use e2e::{Daemon, Port, daemon::Launch, wait_for};
use zk_session::{Config, Notify, Session};
use znode_paths::{OutputPath, RequestId, Stream, Task, TaskKeys, TaskMeta, TaskName, paths};

const KEY: &str = "the key of clients and workers";

/// A file for `--task-key`.
fn key_file(bench: &Bench, name: &str, text: &str) -> String {
    let file = bench.path(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A master, and a worker that demands signatures.
fn pair(name: &str) -> Pair {
    let bench = Bench::shared(name);
    let key = key_file(&bench, "key", KEY);
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--task-key", &key, "--task-max-age", "1h"]).start();
    bench.tree.wait_worker("w");
    Pair { bench, master, worker }
}

/// A client that has ended: with the worker's key, or another.
#[track_caller]
fn client(pair: &Pair, key: &str, args: &[&str]) -> Daemon {
    let client = pair.client().env("ZK_TASK_KEY_FILE", key_file(pair, "client's", key)).args(args).start();
    client.wait_exit(60 * SECOND);
    client
}

/// That a task was not run, and the reason in its status.
#[track_caller]
fn check_refused(pair: &Pair, task: TaskName, why: &str) {
    let status = pair.tree.expect(task, "failed");
    let meta = status.meta.unwrap_or_else(|| panic!("no reason: {why}"));
    let reason = meta.reason.unwrap_or_default();
    assert!(reason.contains(why), "{reason}");
    assert_eq!(meta.exit_code, None, "it ran");
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// The data of a task signed so long ago.
fn signed(command: &str, ago_ms: u64, change: impl FnOnce(&mut TaskMeta)) -> Vec<u8> {
    let mut meta = TaskMeta::new(format!("{:016x}", fastrand::u64(..)));
    change(&mut meta);
    let task = Task { command: command.to_owned(), meta: Some(meta) };
    TaskKeys::parse(KEY).unwrap().sign(&task, now_ms() - ago_ms).encode()
}

#[test]
fn every_command_that_makes_tasks_signs_them() {
    let pair = pair("commands");
    let run = client(&pair, KEY, &["run", "--env", "A=b", "--stdin", "/dev/null", "--", "echo $A"]);
    assert_eq!((run.exited().unwrap().code(), run.stdout().as_str()), (Some(0), "b\n"), "{}", run.stderr());
    let each = client(&pair, KEY, &["each", "--", "echo x"]);
    assert_eq!(each.stdout(), "w: x\n", "{}", each.stderr());
    let keyed = client(&pair, KEY, &["submit", "--key", "k", "--", "true"]);
    pair.tree.expect(keyed.stdout().trim().parse().unwrap(), "done");
    let commands = pair.path("commands");
    fs::write(&commands, "true\ntrue\n").unwrap();
    let batch = client(&pair, KEY, &["batch", commands.to_str().unwrap()]);
    assert_eq!(batch.stdout().matches("\tdone\t0\ttrue\n").count(), 2, "{}", batch.stderr());
    let first = client(&pair, KEY, &["submit", "--", "exit 3"]).stdout();
    pair.tree.expect(first.trim().parse().unwrap(), "failed");
    let again = client(&pair, KEY, &["retry", first.trim()]).stdout();
    let status = pair.tree.expect(again.trim().parse().unwrap(), "failed");
    assert_eq!(status.meta.unwrap().exit_code, Some(3), "it ran");
}

#[test]
fn what_is_not_signed_ends_as_failed_and_says_why() {
    let pair = pair("unsigned");
    let evidence = pair.note("evidence", "ran");
    check_refused(&pair, pair.tree.submit(&evidence), "not signed");
    check_refused(&pair, pair.tree.submit_with(&evidence, |_| ()), "not signed");
    let other = client(&pair, "another key, another key", &["run", "--", &evidence]);
    assert_eq!(other.exited().unwrap().code(), Some(1));
    assert!(other.stderr().contains("failed: its signature is wrong"), "{}", other.stderr());
    assert_eq!(other.stderr().lines().count(), 1, "nothing is missing: {}", other.stderr());
    let changed = String::from_utf8(signed(&evidence, 0, |_| ())).unwrap().replace("ran", "run");
    let changed = pair.tree.submit_data(changed.as_bytes());
    check_refused(&pair, changed, "its signature is wrong");
    for command in ["why", "show"] {
        let told = client(&pair, KEY, &[command, &changed.to_string()]);
        assert!(told.stdout().contains("its signature is wrong"), "{}", told.stdout());
    }
    assert!(pair.lines("evidence").is_empty());
}

#[test]
fn what_was_signed_too_long_ago_or_is_a_copy_is_not_run() {
    let pair = pair("old");
    let evidence = pair.note("evidence", "ran");
    let old = pair.tree.submit_data(&signed(&evidence, 2 * 3_600_000, |_| ()));
    check_refused(&pair, old, "the worker's --task-max-age is 3600 s");
    // Of one that was signed in time but that the servers did not see then, only a copy can be there.
    check_refused(&pair, pair.tree.submit_data(&signed(&evidence, 600_000, |_| ())), "it is a copy");
    let elsewhere = |meta: &mut TaskMeta| _ = meta.require.insert("disk".into(), "ssd".into());
    let elsewhere = pair.tree.submit_data(&signed(&evidence, 0, elsewhere));
    let by_hand = paths::assignment(&"w".parse().unwrap(), &elsewhere);
    pair.tree.create(&by_hand, "");
    check_refused(&pair, elsewhere, "labels that w does not have");
    assert!(pair.lines("evidence").is_empty());
    // The same submit id is the same task, as ever.
    let data = signed(&evidence, 0, |_| ());
    let first = pair.tree.submit_data(&data);
    pair.tree.expect(first, "done");
    let copy = pair.tree.submit_data(&data);
    wait_for("the copy to go", || pair.tree.text(&paths::task(&copy)).map_or(Ok(()), Err));
    assert_eq!(pair.lines("evidence"), ["ran"]);
}

#[test]
fn a_client_signs_only_what_its_user_wrote() {
    let pair = pair("retry");
    let task = pair.tree.submit("echo by somebody else");
    check_refused(&pair, task, "not signed");
    let retry = client(&pair, KEY, &["retry", &task.to_string()]);
    assert_eq!((retry.exited().unwrap().code(), retry.stdout().as_str()), (Some(125), ""));
    assert!(retry.stderr().contains("not signed"), "{}", retry.stderr());
    let plain = client(&pair, KEY, &["submit", "--plain", "--", "true"]);
    assert_eq!(plain.exited().unwrap().code(), Some(2), "{}", plain.stderr());
}

/// What the worker at this port says to a request, with this header.
fn ask(port: &Port, target: &str, authorization: Option<&str>) -> String {
    let mut socket = TcpStream::connect(port.address()).unwrap();
    socket.set_read_timeout(Some(30 * SECOND)).unwrap();
    let header = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    socket.write_all(format!("GET {target} HTTP/1.1\r\nHost: w\r\n{header}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn output_is_served_to_whoever_has_the_key() {
    let (bench, port) = (Bench::shared("output"), Port::claim());
    let key = key_file(&bench, "key", KEY);
    let master = bench.master("m:2223").start();
    let launch =
        bench.worker("w").args(["--task-key", &key, "--address", &port.address(), "--listen", &port.address()]);
    let worker = launch.start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    // More than the status holds.
    let run = client(&pair, KEY, &["run", "--", "seq 100000"]);
    assert_eq!((run.stdout().lines().count(), run.stderr().as_str()), (100_000, ""));
    let task = pair.tree.children("/tasks")[0].clone();
    let unsigned = pair.client().args(["logs", &task]).start();
    assert_eq!(unsigned.wait_exit(30 * SECOND).code(), Some(1));
    assert!(unsigned.stderr().contains("401: it is not signed with a task key"), "{}", unsigned.stderr());
    let other = client(&pair, "another key, another key", &["logs", &task]);
    assert!(other.stderr().contains("401: its signature is wrong"), "{}", other.stderr());

    let task: TaskName = task.parse().unwrap();
    let fence = pair.tree.wait_status(task).meta.unwrap().fence.unwrap();
    let target = OutputPath { task, fence, stream: Stream::Stdout }.to_string();
    let keys = TaskKeys::parse(KEY).unwrap();
    let sign = |target: &str, time_ms| keys.sign_request(target, RequestId { time_ms, nonce: fastrand::u64(..) });
    let header = sign(&target, now_ms());
    assert!(ask(&port, &target, Some(&header)).starts_with("HTTP/1.1 200 "));
    assert!(ask(&port, &target, Some(&header)).contains("it was made before"));
    let whole = format!("{target}?offset=0");
    for (header, why) in [
        (None, "not signed"),
        (Some(sign(&target, now_ms())), "signature is wrong"),
        (Some(sign(&whole, now_ms() - 120_000)), "set the clocks"),
    ] {
        let answer = ask(&port, &whole, header.as_deref());
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains(why), "{why}: {answer}");
    }
    assert!(ask(&port, "/healthz", None).starts_with("HTTP/1.1 200 "), "that is nobody's secret");
}

/// A secret is in none of the places where one is found by accident.
#[test]
fn a_secret_is_neither_in_a_tasks_environment_nor_in_a_log() {
    const SECRET: &str = "operator:no-one-else-knows";
    let bench = Bench::shared("leaks");
    let key = key_file(&bench, "key", KEY);
    let identity = format!("digest:{SECRET}");
    let daemon = |launch: Launch| {
        let launch = launch.env("ZK_AUTH", &identity).env("ZK_TASK_KEY_FILE", &key).arg("-vv");
        let launch = launch.env("RUST_LOG", "trace,zookeeper::io=trace");
        launch.start()
    };
    let (master, worker) = (daemon(bench.master("m:2223")), daemon(bench.worker("w")));
    let config = Config::new(bench.zk.parse().unwrap(), 10 * SECOND);
    let config = Config { digest: Some(SECRET.to_owned()), ..config };
    let session = Session::open(&config, 1, &(Arc::new(|_| {}) as Notify)).unwrap();
    wait_for("w to register", || session.stat("/assign/w", false).unwrap().map(drop).ok_or_else(|| worker.stderr()));
    let client = bench.client().env("ZK_AUTH", &identity).env("ZK_TASK_KEY_FILE", &key).arg("-vv");
    let run = client.args(["run", "--", "env"]).start();
    assert_eq!(run.wait_exit(60 * SECOND).code(), Some(0), "{}", run.stderr());
    for (who, said) in
        [("task", run.stdout()), ("client", run.stderr()), ("master", master.stderr()), ("worker", worker.stderr())]
    {
        for secret in ["no-one-else-knows", "the key of", &key] {
            assert!(!said.contains(secret), "{who}: {said}");
        }
        assert!(!said.contains("zookeeper::"), "{who}: it would log all that is read and written");
    }
    well(&[&master, &worker]);
}

/// A process that keeps its memory to itself does not own its files below `/proc` any more, unless it is root's.
#[test]
fn a_worker_with_a_secret_that_is_not_root_runs_tasks_and_is_started_again() {
    const NOBODY: u32 = 65_534;
    let bench = Bench::shared("nobody");
    let key = key_file(&bench, "key", KEY);
    fs::create_dir_all(bench.path("work/w")).unwrap();
    for path in [".", "work", "work/w", "key"] {
        chown(bench.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--task-key", &key]);
    let worker = worker.under("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    let run = |command: &str| client(&pair, KEY, &["run", "--", command]);
    let first = run("id -u; sleep 1000 & (cat /proc/$PPID/environ /proc/$PPID/mem) 2>&1 | grep -c denied");
    assert_eq!(first.stdout(), "65534\n2\n", "{}", first.stderr());
    kill_inner(&pair.worker);
    pair.worker.wait_stderr("starting it again");
    assert_eq!(run("echo x").stdout(), "x\n", "{}", pair.worker.stderr());
}

/// A new key is put first in the workers' files, then in the clients'; then the old one goes.
#[test]
fn keys_are_changed_while_everybody_works() {
    let bench = Bench::shared("change");
    let (new, both) = ("the new key, the new key", format!("the new key, the new key\n{KEY}\n"));
    let key = key_file(&bench, "key", &both);
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--task-key", &key]).start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    for key in [KEY, &both, new] {
        let run = client(&pair, key, &["run", "--", "echo x"]);
        assert_eq!(run.stdout(), "x\n", "{}", run.stderr());
    }
}
