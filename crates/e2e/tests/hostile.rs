//! A tree that somebody has filled with whatever could hurt: daemons go on, and what clients print is harmless.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, inner, well};
use e2e::{Daemon, wait_for};
use zk_session::{Config, Kind, Notify, Session, in_parallel};
use znode_paths::TaskName;

/// So many znodes that nobody knows are below each parent that daemons read.
const ODD: usize = 1000;

/// What a terminal would act upon: a colour, a title, a C1 sequence, a right-to-left override, a bell, a line.
const ACTS: &str = "\u{1b}[31m\u{1b}]0;title\u{7}\u{9b}2J\u{202e}\u{2066}\r\nline\u{7f}";

/// The same as a string of JSON, with raw characters where JSON has them.
fn acts() -> String {
    ACTS.replace('\u{1b}', "\\u001b").replace('\u{7}', "\\u0007").replace('\r', "\\r").replace('\n', "\\n")
}

/// A session that makes what no client of ours would.
struct Hostile(Session);

impl Hostile {
    fn new(bench: &Bench) -> Hostile {
        let config = Config::new(bench.zk.parse().unwrap(), Duration::from_secs(10));
        Hostile(Session::open(&config, 1, &(Arc::new(|_| {}) as Notify)).unwrap())
    }

    #[track_caller]
    fn make(&self, path: &str, data: impl AsRef<[u8]>) {
        // Somebody who works may have been there before.
        match self.0.create(path, data.as_ref(), Kind::Persistent) {
            Ok(_) | Err(zk_session::Error::NodeExists(_)) => {}
            Err(error) => panic!("{path}: {error}"),
        }
    }

    #[track_caller]
    fn task(&self, data: impl AsRef<[u8]>) -> TaskName {
        let path = self.0.create("/tasks/task-", data.as_ref(), Kind::Sequential).unwrap();
        path.rsplit('/').next().unwrap().parse().unwrap()
    }
}

/// A task's data with these fields.
fn with(fields: &str) -> String {
    format!("exit\n{ACTS}\n{{\"zk\":1,{fields}}}")
}

/// Tasks that nobody should have made.
fn tasks(hostile: &Hostile) -> Vec<TaskName> {
    let (acts, million) = (acts(), "x".repeat(999_000));
    // The shell does not read on.
    let (deep, long) = ("[".repeat(100_000), "a".repeat(900_000));
    let data = [
        million.clone(),
        ACTS.to_owned(),
        format!("exit\n{{\"zk\":{deep}"),
        format!("exit\n{{\"zk\":1,\"name\":{deep}}}"),
        format!("exit\n{{\"zk\":1,\"deep\":{}{}}}", &deep[..100], "]".repeat(100)),
        format!("exit\n{{\"zk\":1,\"name\":\"{long}\"}}"),
        format!("exit\n{{\"zk\":\"{acts}\"}}"),
        with(&format!("\"{acts}\":1,\"retries\":\"{acts}\"")),
        with(&format!("\"name\":\"{acts}\",\"submit\":\"{acts}\",\"key\":\"{acts}\",\"cwd\":\"{acts}\"")),
        with(&format!("\"require\":{{\"{acts}\":\"{acts}\"}},\"env\":{{\"{acts}\":\"{acts}\"}}")),
        with(&format!("\"on\":\"{acts}\"")),
        with("\"priority\":9223372036854775807,\"retries\":4294967295,\"backoff_ms\":18446744073709551615"),
        with("\"priority\":-9223372036854775808,\"max_attempts\":0,\"timeout_ms\":18446744073709551615"),
        with("\"timeout_ms\":0,\"no_requeue\":true,\"retries\":4294967295"),
        with("\"priority\":9223372036854775808"),
        with("\"retries\":-1"),
        with("\"priority\":1e400"),
        with(&format!("\"after\":[{}\"task-4294967295\"]", "\"task-0000000000\",".repeat(40_000))),
        with("\"signed_ms\":18446744073709551615,\"mac\":\"\\u001b\""),
    ];
    data.iter().map(|data| hostile.task(data)).collect()
}

/// Statuses, records and all else that is read.
fn fill(hostile: &Hostile, tasks: &[TaskName]) {
    let (acts, million) = (acts(), "x".repeat(999_000));
    let status = |fields: &str| format!("{ACTS}\n{{\"zk\":1,{fields}}}");
    for (number, status) in [
        ACTS.to_owned(),
        million.clone(),
        status(&format!("\"reason\":\"{acts}\",\"exit_code\":-2147483648,\"signal\":2147483647")),
        status("\"start_ms\":18446744073709551615,\"end_ms\":0,\"attempt\":4294967295,\"fence\":-9223372036854775808"),
        status(&format!("\"stdout\":{{\"length\":18446744073709551615,\"text\":\"{acts}\"}}")),
        status("\"stderr\":{\"length\":0,\"base64\":\"!\"}"),
    ]
    .iter()
    .enumerate()
    {
        let task = hostile.task(ACTS);
        hostile.make(&format!("/tasks/{task}/status"), status);
        let record = format!("lost\n{{\"zk\":1,\"reason\":\"{acts}\",\"start_ms\":18446744073709551615}}");
        for name in ["attempt-4294967295", "attempt-18446744073709551616", "attempt--1", "\u{202e}odd"] {
            hostile.make(&format!("/tasks/{task}/{name}"), if number == 1 { &million } else { &record });
        }
    }
    let worker = |fields: &str| format!("{ACTS}\n{{\"zk\":1,\"instance\":\"00000000000000aa\",{fields}}}");
    hostile.make("/workers/acts", ACTS);
    hostile.make("/workers/full", &million);
    hostile.make("/workers/huge", worker("\"slots\":4294967295"));
    hostile.make("/workers/none", worker("\"slots\":0"));
    hostile.make("/workers/less", worker("\"slots\":-1"));
    hostile.make("/workers/label", worker(&format!("\"slots\":0,\"labels\":{{\"{acts}\":\"{acts}\"}}")));
    hostile.make("/live/00000000000000aa-1", worker("\"role\":\"worker\""));
    hostile.make("/live/00000000000000ab-4294967295", ACTS);
    hostile.make("/keys", "");
    hostile.make("/keys/odd", ACTS);
    hostile.make("/assign/w", "");
    hostile.make("/assign/nobody", &million);
    let assignment = "\n{\"zk\":1,\"fence\":-9223372036854775808,\"attempt\":4294967295,\"task\":9223372036854775807}";
    for task in [TaskName::from_number(u32::MAX), TaskName::from_number(i32::MAX.cast_unsigned()), tasks[0]] {
        hostile.make(&format!("/assign/w/{task}"), assignment);
        hostile.make(&format!("/assign/nobody/{task}"), ACTS);
    }
    let names: Vec<String> = ["/tasks", "/workers", "/assign/w", "/live"]
        .iter()
        .flat_map(|parent| (0..ODD).map(move |number| format!("{parent}/\u{202e}odd{number}")))
        .collect();
    in_parallel(&names, |name| hostile.make(name, ACTS));
}

/// That nothing in it does anything to a terminal.
#[track_caller]
fn check_harmless(what: &str, said: &[u8]) {
    let text = std::str::from_utf8(said).unwrap_or_else(|_| panic!("{what}: no UTF-8"));
    let bad = |c: char| (c.is_control() && !"\n\t".contains(c)) || "\u{202e}\u{2066}".contains(c);
    if let Some(at) = text.find(bad) {
        let from = text[..at].rfind('\n').map_or(0, |line| line + 1);
        panic!("{what}: {:?}", &text[from..].chars().take(200).collect::<String>());
    }
}

/// What is in memory, in KiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", inner(daemon).as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn whatever_is_in_the_tree_good_tasks_run_and_clients_print_nothing_that_a_terminal_would_act_upon() {
    let bench = Bench::shared("hostile");
    let (master, worker) = (bench.master("m:2223").start(), bench.worker("w").start());
    bench.tree.wait_worker("w");
    let hostile = Hostile::new(&bench);
    let tasks = tasks(&hostile);
    fill(&hostile, &tasks);
    // Of those that daemons began with, and of those that find all this when they start.
    let (late_master, late_worker) = (bench.master("m2:2223").start(), bench.worker("w2").start());
    bench.tree.wait_worker("w2");
    let client = |args: &[&str]| {
        let client = bench.client().args(args).start();
        client.wait_exit(Duration::from_secs(120));
        client
    };
    for on in ["w", "w2"] {
        let good = client(&["run", "--on", on, "--priority", "9223372036854775807", "--", "echo fine"]);
        assert_eq!((good.exited().unwrap().code(), good.stdout().as_str()), (Some(0), "fine\n"), "{}", good.stderr());
    }
    // What can end has ended: the state of the others does not change any more.
    wait_for("the hostile tasks that end to end", || {
        let left: Vec<&TaskName> = tasks.iter().filter(|task| bench.tree.status(**task).is_none()).collect();
        if left.len() <= 4 { Ok(()) } else { Err(format!("{left:?}: {}", bench.tree.picture())) }
    });
    let mut commands: Vec<Vec<String>> = ["list", "workers", "status", "doctor", "names tasks", "names workers"]
        .map(|command| command.split(' ').map(str::to_owned).collect())
        .to_vec();
    let names = bench.tree.children("/tasks");
    for task in names.iter().filter(|name| name.parse::<TaskName>().is_ok()) {
        commands.extend(["show", "why"].map(|command| vec![command.to_owned(), task.clone()]));
    }
    for command in &commands {
        for json in [&[][..], &["--json"]] {
            let args: Vec<&str> = json.iter().copied().chain(command.iter().map(String::as_str)).collect();
            let client = client(&args);
            let code = client.exited().unwrap().code();
            assert!(matches!(code, Some(0 | 1)), "{args:?}: {code:?} {}", client.stderr());
            check_harmless(&format!("stdout of {args:?}"), &client.stdout_bytes());
            check_harmless(&format!("stderr of {args:?}"), &client.stderr_bytes());
        }
    }
    for (name, daemon) in [("master", &master), ("worker", &worker), ("m2", &late_master), ("w2", &late_worker)] {
        check_harmless(name, &daemon.stderr_bytes());
        let used = memory(daemon);
        assert!(used < 200 * 1024, "{name} has {used} KiB");
    }
    well(&[&master, &worker, &late_master, &late_worker]);
}
