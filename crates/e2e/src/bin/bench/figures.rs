//! The figures, each with its floor or its goal.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{Daemon, TxnKind, wait_within};
use rustix::process::{Signal, kill_process};
use zk_session::{Event, Kind};
use znode_paths::paths;

use crate::capacity::Installation;
use crate::load::{self, Players, per_second};
use crate::report::{Goal, Report};
use crate::{Scale, Zk};

/// A figure by its name.
type Measure = fn(&Zk, Scale, &mut Report);

/// All of them, in the order in which they are measured.
pub(crate) const ALL: [(&str, Measure); 8] = [
    ("throughput", throughput),
    ("latency", latency),
    ("growth", growth),
    ("takeover", takeover),
    ("workers", workers),
    ("idle", idle),
    ("size", size),
    ("capacity", capacity),
];

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(600);

fn master(zk: &Zk, chroot: &str, address: &str) -> Daemon {
    let args = ["--zk", chroot, "--address", address, "--listen", "off"];
    let master = Daemon::named("zk-master").args(args).log(zk.folder().join("log")).start();
    master.wait_stderr("started");
    master
}

fn primary(zk: &Zk, chroot: &str) -> Daemon {
    let master = master(zk, chroot, "m:1");
    master.wait_stderr("took over");
    master
}

fn worker(zk: &Zk, chroot: &str, name: &str, slots: &str) -> Daemon {
    let folder = zk.folder();
    let args = ["--zk", chroot, "--name", name, "--slots", slots, "--listen", "off", "--work-dir"];
    let worker = Daemon::named("zk-worker").args(args).arg(folder.join("work")).log(folder.join("log")).start();
    worker.wait_stderr("registered worker=");
    worker
}

/// Forks and executions of `true`, each waited for, by two threads at once: what two workers on this machine could do.
fn forks(count: usize) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..count / 2 {
                    let ran = Command::new("/bin/true").stdin(Stdio::null()).status();
                    assert!(ran.is_ok_and(|status| status.success()), "true is false here");
                }
            });
        }
    });
    per_second(count, began)
}

/// Creates of 100 bytes: the best of one session and of four, 16 threads on each.
fn creates(zk: &Zk, count: usize) -> f64 {
    let path = |number| format!("/raw-{number}");
    let rate = |sessions| {
        load::rate(&zk.chroot("raw"), sessions, count, |session, number| {
            session.create(&path(number), &[7; 100], Kind::Persistent).expect("the server serves");
        })
    };
    rate(1).max(rate(4))
}

fn throughput(zk: &Zk, scale: Scale, report: &mut Report) {
    let mut last = None;
    for count in [scale.of(2000), scale.of(20_000)] {
        // The floor is measured before and after, for machines change their mind.
        let floor = || (forks(count.min(3000)), creates(zk, count.min(10_000)));
        let before = floor();
        let chroot = zk.chroot("throughput");
        let _master = primary(zk, &chroot);
        // Enough slots that short tasks keep two processors busy.
        let _workers = ["w1", "w2"].map(|name| worker(zk, &chroot, name, "8"));
        let file = zk.folder().join("commands");
        fs::write(&file, "true\n".repeat(count)).expect("a file can be written");
        let (asked, began) = (Asked::of(zk), Instant::now());
        let batch = Daemon::named("zk-client").args(["--zk", &chroot, "batch"]).arg(&file).start();
        let status = batch.wait_exit(LIMIT);
        let rate = per_second(count, began);
        assert!(status.success(), "{}", batch.stderr());
        assert_eq!(batch.stdout().lines().count(), count, "a line for each task");
        asked.report(zk, count, report);
        let after = floor();
        let (forks, creates) = ((before.0 + after.0) / 2.0, (before.1 + after.1) / 2.0);
        let floor = 1.0 / (1.0 / forks + 6.0 / creates);
        report.add(format!("forks of true, two at a time ({count})"), forks, "1/s");
        report.add(format!("raw creates, 16 or 64 at a time ({count})"), creates, "1/s");
        report.add(format!("floor: 1 / (1/forks + 6/creates) ({count})"), floor, "1/s");
        report.add(format!("batch of {count} true, 2 workers with 8 slots"), rate, "1/s");
        report.add_with_goal(format!("batch of {count}: part of the floor"), rate / floor, "", Goal::AtLeast(0.7));
        if let Some(last) = last {
            report.add_with_goal("batch: the larger against the smaller", rate / last, "", Goal::AtLeast(0.9));
        }
        last = Some(rate);
    }
}

/// The value below which a part of them is.
fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = ((times.len() - 1) as f64 * part).round() as usize;
    times[index].as_secs_f64() * 1000.0
}

/// How many of one kind are measured before those of the other.
const BLOCK: usize = 50;

fn latency(zk: &Zk, scale: Scale, report: &mut Report) {
    let chroot = zk.chroot("latency");
    let _master = primary(zk, &chroot);
    let _worker = worker(zk, &chroot, "w1", "2");
    let (session, events) = load::session(&chroot, 1);
    // Of which nobody is told.
    session.ensure("/floor").expect("the server serves");
    let write = |number: usize| {
        for part in ["a", "b", "c"] {
            let path = format!("/floor/{number}-{part}");
            session.create(&path, &[7; 100], Kind::Persistent).expect("the server serves");
        }
        Command::new("/bin/true").stdin(Stdio::null()).status().expect("there is a true");
    };
    let submit = |_: usize| {
        let path = session.create(paths::NEW_TASK, &load::task(), Kind::Sequential).expect("the server serves");
        let status = format!("{path}/status");
        while session.stat(&status, true).expect("the server serves").is_none() {
            let end = Instant::now() + LIMIT;
            while let Event::Watch { path, .. } =
                events.recv_timeout(end.saturating_duration_since(Instant::now())).expect("the task ends")
                && path != status
            {}
        }
    };
    let (mut floor, mut times) = (Vec::new(), Vec::new());
    // So many of one kind in a row that what follows from one of the other is not in their way.
    for block in 0..=scale.of(2000) / BLOCK {
        for (measured, times) in [(&write as &dyn Fn(usize), &mut floor), (&submit, &mut times)] {
            for number in 0..BLOCK {
                let began = Instant::now();
                measured(block * BLOCK + number);
                times.push(began.elapsed());
            }
            // At first Java compiles what is used.
            times.truncate(block * BLOCK);
        }
    }
    let floor_p50 = percentile(&mut floor, 0.5);
    report.add("three writes and a fork, one after the other, p50", floor_p50, "ms");
    report.add("three writes and a fork, p99", percentile(&mut floor, 0.99), "ms");
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    report.add("submit to status seen, p50", p50, "ms");
    report.add("submit to status seen, p99", p99, "ms");
    report.add_with_goal("submit to status, p50 against that of the writes", p50 / floor_p50, "", Goal::AtMost(1.5));
    report.add_with_goal("submit to status, p99 against p50 of the writes", p99 / floor_p50, "", Goal::AtMost(4.0));
}

/// How many tasks are ended a second by played workers: `count` of the `total` that are there, when all workers are. Some have ended
/// before that, the more the longer that takes.
fn assignments(zk: &str, players: usize, slots: u32, count: usize, total: usize) -> f64 {
    let players = Players::start(zk, "p", players, slots, true);
    let so_many = |count: usize| {
        wait_within(LIMIT, "tasks to be ended", || match players.done() {
            done if done >= count => Ok(done),
            done => Err(format!("{done} of {count}")),
        })
    };
    let first = so_many(count / 5);
    let began = Instant::now();
    let last = so_many((first + count).min(total));
    let rate = per_second(last - first, began);
    players.stop();
    rate
}

fn growth(zk: &Zk, scale: Scale, report: &mut Report) {
    let count = scale.of(5000);
    let rate = |queue: usize| {
        let chroot = zk.chroot("growth");
        let _master = primary(zk, &chroot);
        let total = queue + count * 2;
        load::submit(&chroot, total);
        assignments(&chroot, 5, 20, count, total)
    };
    // Each twice, for machines change their mind.
    let [first, second, third, last] = [500, 50_000, 50_000, 500].map(|queue| rate(scale.of(queue)));
    let (short, long) = ((first + last) / 2.0, (second + third) / 2.0);
    report.add(format!("assignments with {} queued", scale.of(500)), short, "1/s");
    report.add(format!("assignments with {} queued", scale.of(50_000)), long, "1/s");
    report.add_with_goal("assignments, long queue against short", long / short, "", Goal::AtLeast(0.85));
}

fn takeover(zk: &Zk, scale: Scale, report: &mut Report) {
    let chroot = zk.chroot("takeover");
    let first = primary(zk, &chroot);
    load::finish(&chroot, scale.of(10_000));
    load::submit(&chroot, scale.of(50_000));
    let players = Players::start(&chroot, "p", scale.of(100), 2, false);
    let second = master(zk, &chroot, "m:2");
    second.wait_stderr("standing by");
    let busy = |daemon: &Daemon| {
        wait_within(LIMIT, "all slots to be in use", || {
            let assigned = daemon.stderr().matches("assigned task=").count();
            if assigned >= scale.of(100) * 2 { Ok(()) } else { Err(assigned.to_string()) }
        })
    };
    busy(&first);
    kill_process(first.guarded().expect("it runs"), Signal::KILL).expect("it runs");
    // Somebody new, so that the next primary has something to assign at once.
    let idle = Players::start(&chroot, "q", 1, 2, false);
    wait_within(LIMIT, "the next primary to assign", || match second.stderr().contains("assigned task=") {
        true => Ok(()),
        false => Err(second.stderr()),
    });
    // By the servers' own clock: from the second /master to the first assignment after it.
    let log = zk.servers()[0].transactions();
    let root = chroot.find('/').map_or("", |at| &chroot[at..]);
    let place = |txn: &e2e::Txn| match &txn.kind {
        TxnKind::Create { path, .. } => path.strip_prefix(root).map(str::to_owned),
        _ => None,
    };
    let won = log.iter().rfind(|txn| place(txn).as_deref() == Some(paths::MASTER)).expect("a second /master");
    let assigned = |txn: &&e2e::Txn| place(txn).is_some_and(|path| path.starts_with("/assign/q0000/"));
    let next = log.iter().find(assigned).expect("an assignment to the new worker");
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a measurement")]
    let ms = (next.time_ms - won.time_ms) as f64;
    let what = format!(
        "takeover, {} queued, {} finished, {} workers: /master to assignment",
        scale.of(50_000),
        scale.of(10_000),
        scale.of(100)
    );
    report.add_with_goal(what, ms, "ms", Goal::AtMost(1000.0));
    players.stop();
    idle.stop();
}

fn workers(zk: &Zk, scale: Scale, report: &mut Report) {
    let count = scale.of(10_000);
    let rate = |players: usize| {
        let chroot = zk.chroot("workers");
        let _master = primary(zk, &chroot);
        let total = count * 5;
        load::submit(&chroot, total);
        assignments(&chroot, players, 20, count, total)
    };
    let (few, many) = (rate(5), rate(scale.of(500)));
    report.add("assignments, 5 workers", few, "1/s");
    report.add(format!("assignments, {} workers", scale.of(500)), many, "1/s");
    report.add_with_goal("assignments, many workers against few", many / few, "", Goal::AtLeast(0.75));
}

/// A number that the servers count, of all of them together.
fn counted(zk: &Zk, what: &str) -> f64 {
    let of = |server: &&e2e::Server| {
        let answer = server.four_letter("mntr").expect("the server serves");
        let line = answer.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix('\t'));
        line.and_then(|number| number.trim().parse::<f64>().ok()).expect("mntr counts packets")
    };
    zk.servers().iter().map(of).sum()
}

/// Packets that the servers have received from clients, without those by which they are asked that.
fn packets(zk: &Zk) -> f64 {
    counted(zk, "zk_packets_received")
}

/// What the servers had been asked and told at some time.
struct Asked {
    received: f64,
    sent: f64,
    zxid: i64,
}

impl Asked {
    fn of(zk: &Zk) -> Self {
        let answer = zk.servers()[0].four_letter("srvr").expect("the server serves");
        let zxid = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"));
        let zxid = zxid.and_then(|zxid| i64::from_str_radix(zxid.trim(), 16).ok()).expect("srvr says the last zxid");
        Asked { received: packets(zk), sent: counted(zk, "zk_packets_sent"), zxid }
    }

    /// What it was since then, for each of so many tasks.
    fn report(&self, zk: &Zk, tasks: usize, report: &mut Report) {
        let now = Asked::of(zk);
        #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
        let (tasks, writes) = (tasks as f64, (now.zxid - self.zxid) as f64);
        let received = now.received - self.received;
        report.add("writes a task", writes / tasks, "");
        report.add("reads and heartbeats a task", (received - writes) / tasks, "");
        report.add("notifications a task", (now.sent - self.sent - received) / tasks, "");
    }
}

fn idle(zk: &Zk, scale: Scale, report: &mut Report) {
    /// As the contract has it.
    const MASTER_TIMEOUT: f64 = 10.0;
    const WORKER_TIMEOUT: f64 = 30.0;
    let chroot = zk.chroot("idle");
    let _master = primary(zk, &chroot);
    let number = scale.of(100);
    let workers: Vec<Daemon> = (0..number).map(|number| worker(zk, &chroot, &format!("w{number}"), "2")).collect();
    let quiet_for = |seconds| {
        let (before, began) = (packets(zk), Instant::now());
        e2e::stays("idleness", Duration::from_secs(seconds), || {
            if workers.iter().all(|worker| worker.exited().is_none()) {
                Ok(())
            } else {
                Err("one has ended".to_owned())
            }
        });
        (packets(zk) - before) / began.elapsed().as_secs_f64()
    };
    // The last registrations are looked at, then there are only heartbeats.
    quiet_for(2);
    let rate = quiet_for(if scale.of(10) < 10 { 10 } else { 30 });
    // A heartbeat every sixth of the session timeout.
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let heartbeats = 6.0 / MASTER_TIMEOUT + number as f64 * 6.0 / WORKER_TIMEOUT;
    report.add(format!("heartbeats of an idle cluster of {number} workers"), heartbeats, "1/s");
    report.add(format!("requests of an idle cluster of {number} workers"), rate, "1/s");
    report.add_with_goal("idle cluster: requests against heartbeats", rate / heartbeats, "", Goal::AtMost(1.1));
}

/// Resident memory of a process, in megabytes.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("proc(5)");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("proc(5)");
    kilobytes / 1024.0
}

fn inner(daemon: &Daemon) -> u32 {
    daemon.guarded().expect("it runs").as_raw_nonzero().get().unsigned_abs()
}

/// What the arithmetic of docs/performance.md says of this ensemble, and what a simulation of it makes of that.
fn capacity(zk: &Zk, scale: Scale, report: &mut Report) {
    let count = scale.of(20_000);
    let writes = creates(zk, count);
    let reads = load::rate(&zk.chroot("raw"), 4, count, |session, _| {
        session.stat("/", false).expect("the server serves");
    });
    report.add("raw writes", writes, "1/s");
    report.add("raw reads", reads, "1/s");
    let install = Installation { writes, reads, slots: 10_000, runs: 1.0 };
    report.add("tasks that this ensemble sustains, computed", install.most(), "1/s");
    for part in [0.5, 0.9, 1.2] {
        let sustained = install.simulate(install.most() * part, 100_000, 1);
        let percent = part * 100.0;
        report.add(format!("simulated at {percent} % of that: ended"), sustained.rate, "1/s");
        report.add(
            format!("simulated at {percent} %: delay beside the run, p50"),
            (sustained.p50 - 1.0) * 1000.0,
            "ms",
        );
        report.add(
            format!("simulated at {percent} %: delay beside the run, p99"),
            (sustained.p99 - 1.0) * 1000.0,
            "ms",
        );
    }
}

/// Waits until the primary has read all tasks: it reads them by number, so the last of them is the last that it can end.
fn wait_for_all_read(zk: &str) {
    let (session, _events) = load::session(zk, 1);
    let tasks = session.children(paths::TASKS, false).expect("the server serves").unwrap_or_default();
    let last = tasks.iter().filter_map(|name| name.parse().ok()).max().expect("there are tasks");
    session.create(&paths::cancel(&last), b"", Kind::Persistent).expect("the server serves");
    wait_within(LIMIT, "the last task to be cancelled", || {
        let status = session.stat(&paths::status(&last), false).expect("the server serves");
        status.ok_or_else(|| format!("{last} has no status"))
    });
}

fn size(zk: &Zk, scale: Scale, report: &mut Report) {
    let chroot = zk.chroot("size");
    let master = primary(zk, &chroot);
    let idle = worker(zk, &chroot, "w1", "2");
    report.add_with_goal("memory of an idle worker", resident(inner(&idle)), "MB", Goal::AtMost(8.0));
    report.add_with_goal("memory of its guard", resident(idle.pid()), "MB", Goal::AtMost(4.0));
    drop(idle);
    drop(master);
    let mut there = 0;
    for (count, goal) in [(scale.of(10_000), 30.0), (scale.of(50_000), 120.0)] {
        load::submit(&chroot, count - there);
        there = count;
        let master = primary(zk, &chroot);
        wait_for_all_read(&chroot);
        let figure = format!("memory of a master with {count} tasks");
        report.add_with_goal(figure, resident(inner(&master)), "MB", Goal::AtMost(goal));
    }
    for name in ["zk-master", "zk-worker", "zk-client"] {
        let path = std::env::current_exe().expect("a process knows its program").with_file_name(name);
        #[expect(clippy::cast_precision_loss, reason = "a size")]
        let megabytes = fs::metadata(path).expect("it was built").len() as f64 / 1e6;
        report.add_with_goal(format!("size of {name}"), megabytes, "MB", Goal::AtMost(5.0));
    }
}
