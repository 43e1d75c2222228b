//! What needs no ZooKeeper: wrong usage, and servers that are not there or are something else.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{Act, Daemon, Fake, Port, daemon::Launch};

const CLIENT: &str = env!("CARGO_BIN_EXE_zk-client");

fn client(args: &[&str]) -> Launch {
    Daemon::program(CLIENT).args(args)
}

/// Runs it to its end: exit code, stdout, stderr.
#[track_caller]
fn run(launch: Launch) -> (i32, String, String) {
    let client = launch.start();
    let status = client.wait_exit(Duration::from_secs(30));
    (status.code().expect("it is not killed"), client.stdout(), client.stderr())
}

/// It ends with this code, prints nothing, and says one line that contains all of this.
#[track_caller]
fn fails(args: &[&str], code: i32, says: &[&str]) {
    let (exited, stdout, stderr) = run(client(args));
    assert_eq!((exited, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
    assert!(stderr.starts_with("zk-client: ") && stderr.lines().count() == 1, "{args:?}: {stderr:?}");
    for text in says {
        assert!(stderr.contains(text), "{args:?}: {text:?} is not in {stderr:?}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_2() {
    fails(&[], 2, &["subcommand"]);
    fails(&["frob"], 2, &["frob"]);
    fails(&["submit"], 2, &["COMMAND"]);
    fails(&["submit", "--"], 2, &["COMMAND"]);
    fails(&["submit", "--", ""], 2, &["empty"]);
    fails(&["run", "--", " \n "], 2, &["empty"]);
    fails(&["submit", "--nmae", "x", "true"], 2, &["--nmae"]);
    fails(&["submit", "--plain", "--name", "x", "true"], 2, &["--plain"]);
    fails(&["submit", "--plain", "--", "echo\n{\"zk\":1}"], 2, &["metadata"]);
    fails(&["submit", "--on", "a/b", "true"], 2, &["a/b"]);
    fails(&["submit", "--require", "disk", "true"], 2, &["KEY=VALUE"]);
    fails(&["submit", "--max-attempts", "0", "true"], 2, &["max-attempts"]);
    fails(&["each", "--key", "k", "x"], 2, &["--key"]);
    fails(&["each", "--on", "w", "x"], 2, &["--on"]);
    fails(&["each", "--plain", "x"], 2, &["--plain"]);
    fails(&["each", "--", " "], 2, &["empty"]);
    fails(&["batch", "--key", "k"], 2, &["--key"]);
    fails(&["batch", "--stdin", "-"], 2, &["standard input"]);
    fails(&["batch", "--max-in-flight", "0"], 2, &["max-in-flight"]);
    fails(&["wait"], 2, &["TASK"]);
    fails(&["wait", "task-1"], 2, &["task-1"]);
    fails(&["show", "../master"], 2, &["../master"]);
    fails(&["cancel"], 2, &["TASK"]);
    fails(&["rm", "task-0000000000", "x"], 2, &["x"]);
    fails(&["retry"], 2, &["TASK"]);
    fails(&["drain", "a/b"], 2, &["a/b"]);
    fails(&["undrain"], 2, &["WORKER"]);
    fails(&["list", "--state", "finished"], 2, &["finished", "pending"]);
    fails(&["list", "--connect-timeout", "5"], 2, &["connect-timeout"]);
    fails(&["list", "--zk", "a:1//b"], 2, &["chroot"]);
    fails(&["list", "--auth-file", "/nowhere"], 2, &["/nowhere"]);
}

#[test]
fn a_command_that_is_no_text_is_wrong_usage() {
    use std::os::unix::ffi::OsStrExt as _;
    let bad = std::ffi::OsStr::from_bytes(b"echo \xff");
    let (code, stdout, stderr) = run(client(&["submit", "--"]).arg(bad));
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{stderr}");
}

#[test]
fn a_command_that_no_znode_can_hold_is_refused_before_anything_is_asked() {
    // One argument has at most 128 KiB.
    let words: Vec<String> = (0..9).map(|_| "x".repeat(120_000)).collect();
    let args: Vec<&str> = ["submit", "--"].into_iter().chain(words.iter().map(String::as_str)).collect();
    fails(&args, 125, &["the limit is 1000000"]);
}

#[test]
fn help_is_what_it_was() {
    for (args, expected, file) in [
        (&["--help"][..], include_str!("help.txt"), "help.txt"),
        (&["submit", "--help"], include_str!("help-submit.txt"), "help-submit.txt"),
    ] {
        let (code, stdout, stderr) = run(client(args).env("COLUMNS", "100"));
        assert_eq!((code, stderr.as_str()), (0, ""));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR")), stdout).unwrap();
        } else {
            assert_eq!(stdout, expected, "UPDATE=1 writes what it is now to tests/{file}");
        }
    }
}

#[test]
fn the_version_is_said() {
    let (code, stdout, _) = run(client(&["--version"]));
    assert_eq!((code, stdout), (0, format!("zk-client {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Every command gives up within the time, with 125 and one line.
#[track_caller]
fn not_reached(zk: &str, says: &[&str]) {
    let task = "task-0000000000";
    for command in [
        &["submit", "true"][..],
        &["run", "true"],
        &["batch", "/dev/null"],
        &["each", "true"],
        &["wait", task],
        &["list"],
        &["show", task],
        &["why", task],
        &["doctor"],
        &["cancel", task],
        &["retry", task],
        &["rm", task],
        &["workers"],
        &["drain", "w"],
        &["undrain", "w"],
        &["status"],
        &["status", "--json"],
    ] {
        let begun = Instant::now();
        fails(&[&["--zk", zk, "--connect-timeout", "300ms"], command].concat(), 125, &[&[zk, "300ms"], says].concat());
        assert!(begun.elapsed() < Duration::from_secs(3), "{command:?} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_port_that_refuses_is_not_reached() {
    let port = Port::claim();
    not_reached(&port.address(), &["refused"]);
}

#[test]
fn a_host_without_an_address_is_not_reached() {
    not_reached("no-such-host.invalid:2181", &[]);
}

#[test]
fn a_server_that_says_nothing_is_not_reached() {
    not_reached(&Fake::start(Act::Silent).connect_string(), &[]);
}

#[test]
fn a_server_that_is_something_else_is_not_reached() {
    not_reached(&Fake::start(Act::Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).connect_string(), &[]);
    not_reached(&Fake::start(Act::Refuse).connect_string(), &[]);
}

#[test]
fn a_server_that_stops_answering_holds_nobody_up_for_long() {
    let fake = Fake::start(Act::Handshake);
    let args = ["--zk", &fake.connect_string(), "--connect-timeout", "2s", "--session-timeout", "1s", "submit", "true"];
    let client = client(&args).start();
    client.wait_stderr("no master");
    fake.stop_answering();
    fake.play(Act::Silent);
    let status = client.wait_exit(Duration::from_secs(15));
    assert_eq!(status.code(), Some(125), "{}", client.stderr());
    assert_eq!(client.stderr().lines().count(), 2, "a note and the error: {}", client.stderr());
}

#[test]
fn the_log_is_silent_unless_asked_for() {
    let port = Port::claim();
    let args = ["--zk", &port.address(), "--connect-timeout", "200ms", "-vv", "list"];
    let (code, _, stderr) = run(client(&args).env("RUST_LOG", "debug"));
    assert_eq!(code, 125);
    assert!(stderr.ends_with('\n') && stderr.lines().last().unwrap().starts_with("zk-client: "), "{stderr}");
}

#[test]
fn a_signal_before_anything_was_sent_leaves_at_once() {
    let port = Port::claim();
    let client = client(&["--zk", &port.address(), "run", "true"]).start();
    // The handler is there when there are threads beside the main one.
    e2e::wait_for("the handler", || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", client.pid())).map_or(0, Iterator::count);
        if threads >= 3 { Ok(()) } else { Err(format!("{threads} threads")) }
    });
    let begun = Instant::now();
    client.signal(e2e::Signal::INT);
    assert_eq!(client.wait_exit(Duration::from_secs(10)).code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(client.stderr().contains("nothing was submitted"), "{}", client.stderr());
}

#[test]
fn help_into_a_closed_pipe_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(CLIENT).arg("--help").stdout(writer).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
