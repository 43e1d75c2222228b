//! `docker-compose.yml` and the images of `Dockerfile`, for real.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use e2e::{Compose, compose::docker, wait_for};

/// The cluster, for one test at a time, or `None` after it was said why there is none.
fn cluster() -> Option<MutexGuard<'static, Option<Compose>>> {
    static CLUSTER: Mutex<Option<Compose>> = Mutex::new(None);
    let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if cluster.is_none() {
        *cluster = Some(start()?);
    }
    Some(cluster)
}

/// Brings it up, and runs a first command.
#[expect(clippy::print_stderr, reason = "a skipped test says so, and how long this takes is a promise")]
fn start() -> Option<Compose> {
    let compose = match Compose::new() {
        Ok(compose) => compose,
        Err(lack) => {
            eprintln!("skipped: {lack}");
            return None;
        }
    };
    let began = Instant::now();
    compose.ask(&["up", "--detach"]);
    let up = began.elapsed();
    let says = compose.client(&["run", "--", "uname", "-n"]);
    eprintln!("`up` took {up:.1?}, the first finished task was there after {:.1?}", began.elapsed());
    assert!(says.starts_with("worker") && says.ends_with(".example.com\n"), "{says}");
    Some(compose)
}

macro_rules! cluster {
    ($name:ident) => {
        let Some(guard) = cluster() else { return };
        let $name = guard.as_ref().expect("it was started");
    };
}

/// The names of the workers.
fn workers(compose: &Compose) -> Vec<String> {
    let table = compose.client(&["workers", "--json"]);
    let mut names: Vec<String> = table
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"))
        .map(|worker| worker["worker"].as_str().expect("it has a name").to_owned())
        .collect();
    names.sort();
    names
}

const WORKERS: [&str; 3] = ["worker1.example.com", "worker2.example.com", "worker3.example.com"];

#[test]
fn output_and_exit_code_of_a_command_come_back() {
    cluster!(compose);
    let output = compose.run(&["run", "--rm", "-T", "client", "run", "--", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"), "{output:?}");
}

#[test]
fn daemons_register_under_the_names_of_their_hosts() {
    cluster!(compose);
    wait_for("three workers", || {
        let workers = workers(compose);
        if workers == WORKERS { Ok(()) } else { Err(format!("{workers:?}")) }
    });
    let status: serde_json::Value = serde_json::from_str(&compose.client(&["status", "--json"])).expect("JSON");
    let mut masters: Vec<_> = status["standby"].as_array().expect("a list").iter().collect();
    masters.push(&status["master"]);
    let mut masters: Vec<_> = masters.into_iter().map(|master| master.as_str().expect("an address")).collect();
    masters.sort_unstable();
    assert_eq!(masters, ["master1.example.com:2223", "master2.example.com:2223", "master3.example.com:2223"]);
}

#[test]
fn docker_finds_servers_and_daemons_healthy() {
    cluster!(compose);
    compose.wait_healthy();
}

#[test]
fn process_1_is_the_guard_and_nobody_is_root() {
    cluster!(compose);
    for (service, program) in [("master1", "zk-master"), ("worker1", "zk-worker")] {
        let container = &compose.containers(Some(service))[0];
        let processes = docker(&["top", container, "-eo", "pid,args"]);
        let ours = processes.lines().filter(|process| process.ends_with(&format!(" {program}"))).count();
        assert_eq!(ours, 2, "a guard and a daemon: {processes}");
        let first = compose.ask(&["exec", "-T", service, "cat", "/proc/1/comm", "/proc/1/status"]);
        assert!(first.starts_with(&format!("{program}\n")), "{first}");
        assert!(first.contains("Uid:\t10001\t10001\t10001\t10001\n"), "{first}");
        assert!(first.contains("CapBnd:\t0000000000000000\n"), "{first}");
        assert!(first.contains("NoNewPrivs:\t1\n"), "{first}");
    }
}

#[test]
fn what_tasks_leave_behind_is_reaped() {
    cluster!(compose);
    let orphan = "setsid sh -c 'sleep 0.2' >/dev/null 2>&1 & exit 0";
    compose.client(&["run", "--on", "worker2.example.com", "--", orphan]);
    wait_for("no zombie", || {
        let states = compose.ask(&["exec", "-T", "worker2", "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"]);
        let dead: Vec<&str> = states.lines().filter(|line| line.contains(") Z ")).collect();
        if dead.is_empty() && !states.contains("(sleep)") { Ok(()) } else { Err(states) }
    });
}

#[test]
fn only_zookeeper_is_published_and_only_to_this_host() {
    cluster!(compose);
    for container in compose.containers(None) {
        let format = "{{range $port, $at := .NetworkSettings.Ports}}{{range $at}}{{$port}}@{{.HostIp}} {{end}}{{end}}";
        let published = docker(&["inspect", "--format", format, &container]);
        let published: Vec<&str> = published.split_whitespace().collect();
        assert!(published.iter().all(|port| *port == "2181/tcp@127.0.0.1"), "{published:?}");
    }
}

#[test]
fn workers_can_be_added_and_taken_away_without_an_edit() {
    cluster!(compose);
    compose.ask(&["up", "--detach", "--no-recreate", "--scale", "worker=2"]);
    let names = wait_for("five workers", || {
        let names = workers(compose);
        if names.len() == 5 { Ok(names) } else { Err(format!("{names:?}")) }
    });
    for name in names.iter().filter(|name| !WORKERS.contains(&name.as_str())) {
        assert_eq!(compose.client(&["run", "--on", name, "--", "uname", "-n"]), format!("{name}\n"));
    }
    compose.ask(&["up", "--detach", "--no-recreate", "--scale", "worker=0"]);
    wait_for("three workers", || {
        let names = workers(compose);
        if names == WORKERS { Ok(()) } else { Err(format!("{names:?}")) }
    });
}

#[test]
fn a_worker_that_is_stopped_finishes_what_runs() {
    cluster!(compose);
    let task = compose.client(&["submit", "--on", "worker3.example.com", "--", "sleep 3; echo $ZK_TASK_ATTEMPT"]);
    let task = task.trim_end();
    wait_for("it to run", || {
        let seen = compose.client(&["show", "--json", task]);
        if seen.contains("\"running\"") { Ok(()) } else { Err(seen) }
    });
    compose.ask(&["stop", "worker3"]);
    let seen = compose.client(&["show", "--json", task]);
    assert!(seen.contains("\"done\"") && seen.contains("\"1\\n\""), "{seen}");
    compose.ask(&["start", "worker3"]);
}
