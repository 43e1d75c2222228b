//! A command on every worker.

mod common;

use common::{Bench, well};

use std::time::Duration;

use e2e::{Daemon, Signal, wait_for};

/// Exit code, sorted lines of stdout, stderr.
#[track_caller]
fn ended(client: &Daemon) -> (i32, Vec<String>, String) {
    let status = client.wait_exit(Duration::from_secs(60));
    let mut lines: Vec<String> = client.stdout().lines().map(str::to_owned).collect();
    lines.sort();
    (status.code().expect("it is not killed"), lines, client.stderr())
}

#[test]
fn each_worker_runs_it_once_and_says_so() {
    let bench = Bench::shared("each");
    let master = bench.master("m:2223").start();
    let nobody = bench.client().args(["each", "true"]).start();
    let (code, _, stderr) = ended(&nobody);
    assert_eq!(code, 125);
    assert!(stderr.contains("no worker is registered that takes tasks"), "{stderr}");

    let workers = ["a", "b", "c"].map(|name| bench.worker(name).start());
    for name in ["a", "b", "c"] {
        bench.tree.wait_worker(name);
    }
    ended(&bench.client().args(["drain", "c"]).start());
    let command = r#"n=$(basename "$(dirname "$ZK_TASK_DIR")"); echo "$n"; printf last; echo oops >&2; test "$n" = a"#;
    let (code, lines, stderr) = ended(&bench.client().args(["each", "--name", "n", "--", command]).start());
    assert_eq!((code, lines), (1, ["a: a", "a: last", "b: b", "b: last"].map(str::to_owned).to_vec()));
    assert!(stderr.starts_with("zk-client: left out, for they are drained or stopping: c\n"), "{stderr}");
    for text in ["\na: oops\n", "\nb: oops\n", "zk-client: b: task-0000000001 is failed, exit code 1\n"] {
        assert!(stderr.contains(text), "{text:?} is not in {stderr:?}");
    }
    assert_eq!(stderr.lines().count(), 4, "{stderr}");
    ended(&bench.client().args(["undrain", "c"]).start());
    let (code, lines, stderr) = ended(&bench.client().args(["each", "--json", "--", "echo", "x"]).start());
    assert_eq!((code, lines.len(), stderr.as_str()), (0, 3, ""));
    for (worker, line) in ["a", "b", "c"].iter().zip(&lines) {
        assert!(line.contains(&format!("\"state\":\"done\",\"command\":\"echo x\",\"worker\":\"{worker}\"")), "{line}");
        assert!(line.contains("\"stdout\":{\"length\":2,\"text\":\"x\\n\"}"), "{line}");
    }
    well(&[&master, &workers[0], &workers[1], &workers[2]]);
}

#[test]
fn a_signal_cancels_it_on_all_of_them() {
    let bench = Bench::shared("each-signal");
    let master = bench.master("m:2223").start();
    let workers = ["a", "b"].map(|name| bench.worker(name).start());
    for name in ["a", "b"] {
        bench.tree.wait_worker(name);
    }
    let command = format!("{}; {}", bench.note("runs", "x"), bench.gate("never"));
    let client = bench.client().args(["each", &command]).start();
    bench.wait_lines("runs", 2);
    client.signal(Signal::INT);
    let (code, _, stderr) = ended(&client);
    assert_eq!(code, 130, "{stderr}");
    assert_eq!(stderr.matches("is cancelled").count(), 2, "{stderr}");
    wait_for("nothing to be assigned", || {
        let assigned = bench.tree.assigned();
        if assigned.is_empty() { Ok(()) } else { Err(format!("{assigned:?}")) }
    });
    well(&[&master, &workers[0], &workers[1]]);
}
