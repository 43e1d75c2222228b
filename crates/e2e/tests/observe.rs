//! What the daemons say of themselves over HTTP: `/readyz`, `/metrics`, and the page of a master.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
};

use common::{Bench, SECOND, kill_inner, well};
use e2e::{Daemon, Port, Server, wait_for};

/// A daemon that listens.
struct Watched {
    daemon: Daemon,
    port: Port,
}

impl Watched {
    fn master(bench: &Bench) -> Watched {
        let port = Port::claim();
        let daemon = bench.master(&port.address()).args(["--listen", &port.address()]).start();
        Watched { daemon, port }
    }

    fn worker(bench: &Bench, args: &[&str]) -> Watched {
        let port = Port::claim();
        let daemon = bench.worker("w").args(["--listen", &port.address()]).args(args).start();
        Watched { daemon, port }
    }

    /// What is answered to this: the number, the head and the body. Nothing while it does not listen yet.
    fn ask(&self, method: &str, target: &str) -> Result<(u16, String, String), String> {
        let mut answer = String::new();
        let mut socket = TcpStream::connect(self.port.address()).map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(30 * SECOND)).expect("30 s are no zero");
        write!(socket, "{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n").map_err(|error| error.to_string())?;
        socket.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
        let number = head.split(' ').nth(1).and_then(|number| number.parse().ok()).ok_or("no number")?;
        Ok((number, head.to_owned(), body.to_owned()))
    }

    #[track_caller]
    fn get(&self, target: &str) -> (u16, String) {
        let (number, _, body) = self.ask("GET", target).expect("it listens");
        (number, body)
    }

    #[track_caller]
    fn wait_ready(&self, number: u16, text: &str) {
        wait_for(&format!("/readyz to be {number} {text:?}"), || match self.ask("GET", "/readyz") {
            Ok((is, _, body)) if is == number && body.trim_end() == text => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The value of a metric, with its labels as they stand in the text.
    fn metric(&self, name: &str) -> Option<f64> {
        let (_, _, text) = self.ask("GET", "/metrics").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    #[track_caller]
    fn wait_metric(&self, name: &str, value: f64) {
        wait_for(&format!("{name} to be {value}"), || match self.metric(name) {
            Some(is) if is.to_bits() == value.to_bits() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The names of all metrics.
    fn names(&self) -> BTreeSet<String> {
        let (_, text) = self.get("/metrics");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        types.map(str::to_owned).collect()
    }
}

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const NO_SESSION: &str = "there is no session with ZooKeeper";

#[test]
fn every_metric_is_documented_and_what_is_documented_is_served() {
    let bench = Bench::shared("documented");
    let (master, worker) = (Watched::master(&bench), Watched::worker(&bench, &[]));
    bench.tree.wait_worker("w");
    master.wait_metric("zk_master_workers{state=\"in_service\"}", 1.0);
    let served = &master.names() | &worker.names();

    let document = repository("docs/operations.md");
    let section = document.split("\n## Metrics\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.expect("it is there").lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(served, documented);

    for file in ["packaging/prometheus/zk-tasks.rules.yml", "packaging/grafana/zk-tasks.json"] {
        let text = repository(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let used: BTreeSet<&str> = words.filter(|word| word.starts_with("zk_") && *word != "zk_avg_latency").collect();
        assert!(used.len() > 8, "{file}: {used:?}");
        for name in used {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(served.contains(family), "{file} uses {name}, which nobody serves");
        }
    }
    serde_json::from_str::<serde_json::Value>(&repository("packaging/grafana/zk-tasks.json")).expect("it is JSON");
}

#[test]
fn promtool_accepts_the_rules_and_they_fire_when_they_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/prometheus");
    for args in [&["check", "config", "prometheus.yml"][..], &["test", "rules", "zk-tasks.test.yml"]] {
        let Ok(checked) = Command::new("promtool").args(args).current_dir(&folder).output() else {
            eprintln!("skipped: there is no promtool (apt-get install prometheus)");
            return;
        };
        let said = [checked.stdout, checked.stderr].concat();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn what_a_worker_does_is_counted() {
    let bench = Bench::shared("counted");
    let (master, worker) = (Watched::master(&bench), Watched::worker(&bench, &[]));
    bench.tree.wait_worker("w");
    worker.wait_metric("zk_worker_registered", 1.0);
    assert_eq!(worker.metric("zk_worker_slots"), Some(2.0));
    let gate = bench.gate("gate");
    let held = bench.tree.submit(&format!("printf 12345; printf 123 >&2; {gate}"));
    worker.wait_metric("zk_worker_running", 1.0);
    master.wait_metric("zk_master_tasks{state=\"running\"}", 1.0);
    bench.open("gate");
    bench.tree.expect(held, "done");
    let failed = bench.tree.submit("exit 3");
    bench.tree.expect(failed, "failed");
    let folder = bench.tree.submit_with("true", |meta| meta.cwd = Some("/no/such/folder".into()));
    bench.tree.expect(folder, "failed");

    for (name, value) in [
        ("zk_worker_running", 0.0),
        ("zk_worker_attempts_ended_total{outcome=\"done\"}", 1.0),
        ("zk_worker_attempts_ended_total{outcome=\"failed\"}", 1.0),
        ("zk_worker_attempts_ended_total{outcome=\"lost\"}", 0.0),
        ("zk_worker_exec_duration_seconds_count", 2.0),
        ("zk_worker_start_failures_total", 1.0),
        ("zk_worker_output_bytes_total{stream=\"stdout\"}", 5.0),
        ("zk_worker_output_bytes_total{stream=\"stderr\"}", 3.0),
        ("zk_worker_session_losses_total", 0.0),
    ] {
        worker.wait_metric(name, value);
    }
    master.wait_metric("zk_master_tasks{state=\"done\"}", 1.0);
    master.wait_metric("zk_master_tasks{state=\"failed\"}", 2.0);
    master.wait_metric("zk_master_assignment_latency_seconds_count", 3.0);
    well(&[&master.daemon, &worker.daemon]);
}

#[test]
fn a_task_that_nobody_takes_makes_the_queue_old() {
    let bench = Bench::shared("queue");
    let master = Watched::master(&bench);
    master.wait_metric("zk_master_queue_age_seconds", 0.0);
    let task = bench.tree.submit("true");
    wait_for("the queue to be a second old", || match master.metric("zk_master_queue_age_seconds") {
        Some(age) if (1.0..30.0).contains(&age) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let _worker = bench.worker("w").start();
    bench.tree.expect(task, "done");
    master.wait_metric("zk_master_queue_age_seconds", 0.0);
    let latency = master.metric("zk_master_assignment_latency_seconds_sum").expect("it is served");
    assert!((1.0..30.0).contains(&latency), "{latency}");
}

#[test]
fn a_standby_is_ready_and_becomes_the_primary() {
    let bench = Bench::shared("roles");
    let first = Watched::master(&bench);
    first.wait_ready(200, "primary");
    let second = Watched::master(&bench);
    second.wait_ready(200, "standby");
    assert_eq!(second.metric("zk_master_role{role=\"standby\"}"), Some(1.0));
    assert_eq!(second.metric("zk_master_tasks{state=\"done\"}"), None, "a standby knows no tasks");
    let (_, page) = second.get("/");
    assert!(page.contains(&format!("<a href=\"http://{0}/\">{0}</a>", first.port.address())), "{page}");
    wait_for("the primary to show the standby", || {
        let (_, page) = first.get("/");
        if page.contains(&second.port.address()) { Ok(()) } else { Err(page) }
    });

    kill_inner(&first.daemon);
    second.wait_ready(200, "primary");
    second.wait_metric("zk_master_role{role=\"primary\"}", 1.0);
    second.wait_metric("zk_master_tasks{state=\"done\"}", 0.0);
    first.wait_ready(200, "standby");
    first.wait_metric("zk_master_role{role=\"primary\"}", 0.0);
    well(&[&first.daemon, &second.daemon]);
}

#[test]
fn without_zookeeper_nobody_is_ready_and_everybody_is_well() {
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("away"));
    let (master, worker) = (Watched::master(&bench), Watched::worker(&bench, &[]));
    let both = [(&master, "zk_master", "primary"), (&worker, "zk_worker", "registered")];
    for (daemon, _, word) in both {
        daemon.wait_ready(200, word);
    }
    server.kill();
    for (daemon, prefix, _) in both {
        daemon.wait_ready(503, NO_SESSION);
        assert_eq!(daemon.get("/healthz"), (200, "ok\n".to_owned()));
        daemon.wait_metric(&format!("{prefix}_session_up"), 0.0);
        daemon.wait_metric(&format!("{prefix}_session_losses_total"), 1.0);
    }
    assert_eq!(worker.metric("zk_worker_registered"), Some(0.0));
    assert_eq!(master.metric("zk_master_role{role=\"seeking\"}"), Some(1.0));
    assert!(master.get("/").1.contains("It has no session with ZooKeeper"));
    server.relaunch();
    for (daemon, prefix, word) in both {
        daemon.wait_ready(200, word);
        daemon.wait_metric(&format!("{prefix}_session_up"), 1.0);
    }
    well(&[&master.daemon, &worker.daemon]);
}

#[test]
fn a_worker_is_ready_when_tasks_can_be_assigned_to_it() {
    let bench = Bench::shared("ready");
    let worker = Watched::worker(&bench, &[]);
    worker.wait_ready(503, "it waits for a master to set up the tree");
    let master = bench.master("m:1").start();
    worker.wait_ready(200, "registered");
    assert_eq!(worker.metric("zk_worker_registered"), Some(1.0));
    assert_eq!(worker.ask("HEAD", "/readyz").map(|(number, ..)| number), Ok(200));
    well(&[&master, &worker.daemon]);
}

#[test]
fn the_page_shows_the_cluster_and_runs_nothing() {
    let bench = Bench::shared("page");
    let script = "<script>document.title='taken'</script>\u{1b}[31m";
    let master = Watched::master(&bench);
    let worker = Watched::worker(&bench, &["--label", &format!("l={script}")]);
    bench.tree.wait_worker("w");
    let failed = bench.tree.submit(&format!("echo \"{script}\"; exit 1"));
    bench.tree.expect(failed, "failed");
    bench.tree.create("/workers/hand", format!("{script}:1"));
    let page = wait_for("the page to show all of it", || {
        let (_, page) = master.get("/");
        let all = [&failed.to_string()[..], "<td>hand</td>", "l=&lt;script&gt;", "<td>by hand</td>"];
        if all.iter().all(|text| page.contains(text)) { Ok(page) } else { Err(page) }
    });
    assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{page}");

    let (number, head, body) = master.ask("HEAD", "/").expect("it listens");
    assert_eq!((number, &body[..]), (200, ""));
    assert!(head.contains("Content-Type: text/html; charset=utf-8"), "{head}");
    for daemon in [&master, &worker] {
        assert_eq!(daemon.get("/no/such/thing").0, 404);
        assert_eq!(daemon.ask("POST", "/metrics").map(|(number, ..)| number), Ok(405));
    }
    assert_eq!(worker.get("/").0, 404);
    well(&[&master.daemon, &worker.daemon]);
}
