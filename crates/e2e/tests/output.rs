//! The work dir: what is kept there, what is removed, and what happens when the disk is full.

mod common;

use common::{Bench, well};

use std::fs;

use e2e::{Daemon, daemon::Launch, wait::LIMIT, wait_for};
use znode_paths::{StatusMeta, TaskName};

struct Pair {
    bench: Bench,
    master: Daemon,
    worker: Daemon,
}

impl std::ops::Deref for Pair {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Pair {
    #[track_caller]
    fn start(name: &str, args: &[&str]) -> Pair {
        Pair::with(name, args, |launch| launch)
    }

    #[track_caller]
    fn with(name: &str, args: &[&str], how: impl FnOnce(Launch) -> Launch) -> Pair {
        let bench = Bench::shared(name);
        let master = bench.master("m:2223").start();
        let worker = how(bench.worker("w").args(args)).start();
        bench.tree.wait_worker("w");
        Pair { bench, master, worker }
    }

    #[track_caller]
    fn run(&self, command: &str, word: &str) -> (TaskName, StatusMeta) {
        let task = self.tree.submit_with(command, |_| ());
        (task, self.tree.expect(task, word).meta.expect("a task with metadata has a status with metadata"))
    }

    /// The tasks whose folders are there.
    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("work").join("w")).expect("the work dir is there");
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut kept: Vec<String> =
            names.filter_map(|name| name.split_once('.').map(|(task, _)| task.to_owned())).collect();
        kept.retain(|name| name.starts_with("task-"));
        kept.sort();
        kept
    }

    #[track_caller]
    fn wait_kept(&self, tasks: &[TaskName]) {
        let expected: Vec<String> = tasks.iter().map(ToString::to_string).collect();
        wait_for("only these folders", || {
            let kept = self.kept();
            if kept == expected { Ok(()) } else { Err(format!("{kept:?} instead of {expected:?}")) }
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            well(&[&self.master, &self.worker]);
        }
    }
}

#[test]
fn the_oldest_folders_go_when_all_take_too_much_but_never_one_that_is_in_use() {
    let pair = Pair::start("size", &["--work-dir-max", "2500000"]);
    let large = format!("head -c 3000000 /dev/zero; {}", pair.gate("go"));
    let running = pair.tree.submit_with(&large, |_| ());
    let write = "head -c 1000000 /dev/zero > file; ln -s / root; mkdir -p a/b/c; chmod 0 a";
    let tasks: Vec<TaskName> = (0..4).map(|_| pair.run(write, "done").0).collect();
    pair.wait_kept(&[running, tasks[2], tasks[3]]);
    pair.open("go");
    let meta = pair.tree.expect(running, "done").meta.expect("it has metadata");
    assert_eq!(meta.stdout.expect("the tail of stdout").length, 3_000_000);
    // Alone it is too large, and the others were before it.
    pair.wait_kept(&[]);
}

#[test]
fn old_folders_go_also_those_that_an_earlier_worker_left() {
    let mut pair = Pair::start("age", &["--work-dir-retain", "1h"]);
    let tasks: Vec<TaskName> = (0..3).map(|_| pair.run("echo x", "done").0).collect();
    pair.wait_kept(&tasks);
    for kept in ["mine", "task-1", "task-0000000001.x"] {
        fs::create_dir(pair.path("work").join("w").join(kept)).expect("a folder can be made");
    }
    pair.worker.signal(e2e::Signal::TERM);
    pair.worker.wait_exit(LIMIT);
    pair.worker = pair.bench.worker("w").args(["--work-dir-retain", "500ms"]).start();
    wait_for("the folders of tasks to go", || match pair.kept() {
        kept if kept == ["task-0000000001"] => Ok(()), // which is the one with `x`, and so nobody's
        kept => Err(format!("{kept:?}")),
    });
    pair.tree.wait_worker("w");
    pair.run("echo x", "done");
    wait_for("the next one to go", || if pair.kept().len() == 1 { Ok(()) } else { Err(format!("{:?}", pair.kept())) });
    assert!(pair.path("work").join("w/mine").is_dir());
    let logs = pair.client().args(["logs", &tasks[0].to_string()]).start();
    assert_eq!(logs.wait_exit(LIMIT).code(), Some(0));
    assert_eq!((logs.stdout().as_str(), logs.stderr().as_str()), ("x\n", ""), "the status has it");
}

/// Has the worker begin with a small disk of its own for its work dir, which nobody else sees and which goes with it.
fn on_a_small_disk(launch: Launch) -> Launch {
    let disk = "mkdir -p $ZK_WORK_DIR && mount -t tmpfs -o size=1m,nr_inodes=60 tmpfs $ZK_WORK_DIR && exec \"$@\"";
    launch.under("unshare", ["--mount", "sh", "-c", disk, "sh"])
}

fn may_mount() -> Option<()> {
    let root = rustix::process::geteuid().is_root();
    e2e::available(root.then_some(()).ok_or_else(|| "mounts need root".to_owned()))
}

#[test]
fn a_full_disk_stops_the_command_and_not_the_worker_and_is_said() {
    let Some(()) = may_mount() else { return };
    let pair = Pair::with("full", &["--work-dir-max", "0"], on_a_small_disk);
    // The command gets the error, and decides.
    let (_, meta) = pair.run("head -c 5000000 /dev/zero; echo code $? > /dev/null; exit 7", "failed");
    let length = meta.stdout.as_ref().expect("the tail of stdout").length;
    assert!((500_000..=1_048_576).contains(&length), "{length}");
    assert_eq!(meta.exit_code, Some(7));
    let reason = "the disk of the work dir is full, some of its output may be missing";
    assert_eq!(meta.reason.as_deref(), Some(reason));
    let client = pair.client().args(["run", "--", "head -c 5000000 /dev/zero; exit 0"]).start();
    assert_eq!(client.wait_exit(LIMIT).code(), Some(0));
    assert!(client.stderr().contains(&format!("is done: {reason}")), "{}", client.stderr());
    // With room for two files nothing can be started, and that room is left.
    let hog = format!(
        "i=0; while touch f$i; do i=$((i+1)); done 2>/dev/null; rm f0 f1; touch {0}; {1}; touch f0 f1",
        pair.path("full").display(),
        pair.gate("go")
    );
    let hog = pair.tree.submit_with(&hog, |_| ());
    wait_for("the disk to be full", || if pair.path("full").exists() { Ok(()) } else { Err(pair.tree.picture()) });
    let (_, meta) = pair.run("true", "failed");
    let reason = meta.reason.expect("a task that was not started has a reason");
    assert!(
        reason.starts_with("cannot start it: cannot make the folder ") && reason.contains("No space left"),
        "{reason}"
    );
    pair.open("go");
    pair.tree.expect(hog, "done");
    // What is finished is removed, and there is room again.
    wait_for("a task to run", || {
        let task = pair.tree.submit_with("true", |_| ());
        let word = pair.tree.wait_status(task).outcome.word().to_owned();
        if word == "done" { Ok(()) } else { Err(word) }
    });
}
