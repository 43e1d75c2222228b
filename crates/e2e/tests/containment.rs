//! What a task has started ends with the task, whatever it did to get out of sight: with control groups and without.

mod common;

use std::collections::BTreeSet;

use common::{Bench, SECOND, well};
use e2e::{Daemon, Server, available, daemon::Launch, wait_within};
use rustix::process::geteuid;
use znode_paths::paths;

/// A worker from which the control groups are hidden, so that it has to do with process groups.
fn without_cgroups(bench: &Bench, name: &str) -> Launch {
    let hide = "umount -R /sys/fs/cgroup 2>/dev/null; exec \"$@\"";
    bench.worker(name).under("unshare", ["--mount", "sh", "-c", hide, "sh"])
}

#[track_caller]
fn root() -> Option<()> {
    available(if geteuid().is_root() { Ok(()) } else { Err("to hide control groups needs root".to_owned()) })
}

/// A worker whose tasks have control groups.
#[track_caller]
fn with_cgroups(name: &str) -> Option<(Bench, Daemon)> {
    root()?;
    let bench = Bench::at(Server::shared().chroot(name));
    let worker = bench.worker("w").start();
    worker.wait_stderr("started worker=");
    available(match worker.stderr().contains("cgroup=none") {
        true => Err("there is no cgroup v2 that we may write to".to_owned()),
        false => Ok((bench, worker)),
    })
}

/// Those of a crowd that the command could not keep in its process group, and what keeps them there.
const CROWD: [(&str, &str); 4] = [
    ("child", "sh -c 'ALIVE' &"),
    ("orphan", "(sh -c 'ALIVE' &)"),
    ("session", "setsid sh -c 'ALIVE' &"),
    ("daemon", "(setsid sh -c 'ALIVE' &)"),
];

/// A command that starts all of these, each deaf to SIGTERM, waits until all are there, and does something.
fn crowd(bench: &Bench, name: &str, then: &str) -> String {
    let mut script = String::new();
    for (who, start) in CROWD {
        let alive = format!("trap \"\" TERM HUP; {}", bench.alive(name, "never", who));
        script += &format!("{}\n", start.replace("ALIVE", &alive.replace('\'', r"'\''")));
    }
    let signs = bench.path(name);
    for (who, _) in CROWD {
        script += &format!("until grep -q {who} {}; do sleep 0.01; done\n", signs.display());
    }
    script + then
}

/// No process of a crowd gives a sign of life after this.
#[track_caller]
fn check_dead(bench: &Bench, name: &str) {
    let pids: BTreeSet<_> = bench.signs(name).iter().map(|sign| sign.pid).collect();
    assert!(pids.len() >= CROWD.len(), "{pids:?}");
    for pid in pids {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default();
        assert!(state.is_empty() || state.starts_with(" Z"), "{pid} is alive:{state}");
    }
}

#[track_caller]
fn check(bench: &Bench, worker: &Daemon) {
    let (tree, master) = (&bench.tree, bench.master("m:1").start());
    tree.wait_worker("w");

    let ends = tree.submit_with(&crowd(bench, "ends", "exit 7"), |_| ());
    tree.expect(ends, "failed");
    check_dead(bench, "ends");

    let cancelled = tree.submit_with(&crowd(bench, "cancelled", "trap '' TERM; while :; do sleep 1; done"), |_| ());
    bench.wait_lines("cancelled", 1);
    wait_within(10 * SECOND, "the crowd", || {
        let signs = bench.signs("cancelled");
        let there = CROWD.iter().all(|(who, _)| signs.iter().any(|sign| sign.who == *who));
        if there { Ok(()) } else { Err(format!("{signs:?}")) }
    });
    tree.create(&paths::cancel(&cancelled), "");
    tree.expect(cancelled, "cancelled");
    check_dead(bench, "cancelled");

    // The others were not touched by that, and the worker goes on.
    let (gate, beside) = (bench.gate("gate"), bench.note("beside", "went on"));
    let beside = tree.submit_with(&format!("{gate}; {beside}"), |_| ());
    let again = tree.submit_with(&crowd(bench, "again", "true"), |_| ());
    tree.expect(again, "done");
    check_dead(bench, "again");
    bench.open("gate");
    tree.expect(beside, "done");
    well(&[&master, worker]);
}

#[test]
fn with_control_groups_nothing_outlives_its_task() {
    let Some((bench, worker)) = with_cgroups("cgroup") else { return };
    check(&bench, &worker);
}

#[test]
fn a_control_group_is_used_again_unless_what_was_in_it_was_killed() {
    let Some((bench, worker)) = with_cgroups("again") else { return };
    let (tree, master) = (&bench.tree, bench.master("m:1").start());
    // What it runs in.
    let group = |then: &str| {
        let look = "set -- $(sed -n 's/^0:://p' /proc/self/cgroup); echo $1";
        let status = tree.wait_status(tree.submit_with(&format!("{look}; {then}"), |_| ()));
        let tail = status.meta.expect("it says how it ended").stdout.expect("it has written");
        String::from_utf8(tail.bytes).expect("the path of a group")
    };
    // A kernel may say of one that has just ended that it is still there; then that is killed.
    let ten: BTreeSet<String> = (0..10).map(|code| group(&format!("exit {code}"))).collect();
    assert!(ten.len() < 10, "{ten:?}");
    let killed = group("sleep 600 & exit 0");
    let after = [group("exit 0"), group("kill -9 $$"), group("exit 0")];
    assert!(!after.contains(&killed), "{killed} {after:?}");
    let inside = "$(awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo)$1";
    let killed = group(&format!("echo 1 >{inside}/cgroup.kill"));
    let after = ["exit 0", "exit 0"].map(group);
    assert!(!after.contains(&killed), "{killed} {after:?}");
    // Somebody has made a group in it.
    assert_ne!(group(&format!("mkdir {inside}/x")), group("exit 0"));
    well(&[&master, &worker]);
}

#[test]
fn without_control_groups_nothing_outlives_its_task_that_can_be_known_to_be_of_it() {
    let Some(()) = root() else { return };
    let bench = Bench::at(Server::shared().chroot("groups"));
    let worker = without_cgroups(&bench, "w").start();
    worker.wait_stderr("cgroup=none");
    check(&bench, &worker);
}
