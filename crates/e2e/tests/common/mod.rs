//! A tree of its own for each test, and our daemons on it.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use e2e::{Daemon, Host, Server, Tree, Txn, TxnKind, daemon::Launch, evidence::History, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use znode_paths::{StatusMeta, TaskMeta};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A chroot, a session that looks at it, a directory for evidence.
pub(crate) struct Bench {
    /// As for `--zk`.
    pub(crate) zk: String,
    pub(crate) tree: Tree,
    dir: TempDir,
}

impl Bench {
    /// On the server that all tests of the file share.
    #[track_caller]
    pub(crate) fn shared(name: &str) -> Bench {
        Bench::at(Server::shared().chroot(name))
    }

    #[track_caller]
    pub(crate) fn at(zk: String) -> Bench {
        Bench::seen_from(zk, None)
    }

    /// Where only hosts can reach the server: the tree is looked at from one of them.
    #[track_caller]
    pub(crate) fn seen_from(zk: String, host: Option<&Host>) -> Bench {
        let dir = tempfile::tempdir().expect("a directory can be made");
        Bench { tree: Tree::of(&zk, host), zk, dir }
    }

    /// A master with a session timeout that outlasts a busy machine.
    pub(crate) fn master(&self, address: &str) -> Launch {
        Daemon::named("zk-master").args(["--zk", &self.zk, "--address", address])
    }

    /// A worker with two slots, unless an argument says otherwise.
    pub(crate) fn worker(&self, name: &str) -> Launch {
        let work_dir = self.dir.path().join("work").join(name);
        let launch = Daemon::named("zk-worker").args(["--zk", &self.zk, "--name", name]);
        launch.env("ZK_SLOTS", "2").env("ZK_GRACE", "2s").env("ZK_WORK_DIR", work_dir)
    }

    /// A client, without its command.
    pub(crate) fn client(&self) -> Launch {
        Daemon::named("zk-client").args(["--zk", &self.zk])
    }

    /// A path for evidence.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lines that tasks have appended to a file.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        lines(&self.path(name))
    }

    /// A command that appends a line to a file.
    pub(crate) fn note(&self, name: &str, line: &str) -> String {
        format!("echo \"{line}\" >> {}", self.path(name).display())
    }

    /// A command that waits until [`Bench::open`] is called with this name.
    pub(crate) fn gate(&self, name: &str) -> String {
        // It ends with the test, too.
        format!(
            "until [ -e {} ] || ! [ -d {} ]; do sleep 0.02; done",
            self.path(name).display(),
            self.dir.path().display()
        )
    }

    /// Lets pass what waits.
    pub(crate) fn open(&self, name: &str) {
        fs::write(self.path(name), "").expect("a file can be written");
    }

    /// Waits until there are so many lines.
    #[track_caller]
    pub(crate) fn wait_lines(&self, name: &str, count: usize) -> Vec<String> {
        wait_for(&format!("{count} lines in {name}"), || {
            let lines = self.lines(name);
            if lines.len() >= count { Ok(lines) } else { Err(format!("{lines:?}")) }
        })
    }
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// That they run and never panicked.
#[track_caller]
pub(crate) fn well(daemons: &[&Daemon]) {
    for daemon in daemons {
        assert!(daemon.exited().is_none(), "it exited: {:?}", daemon.exited());
        never_panicked(daemon);
    }
}

#[track_caller]
pub(crate) fn never_panicked(daemon: &Daemon) {
    let log = daemon.stderr();
    assert!(!log.contains("panicked"), "{log}");
}

/// How often a text is in a daemon's log.
pub(crate) fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.stderr().matches(text).count()
}

impl Bench {
    /// A command that appends `<attempt> <fence>` to a file all the time, until a gate is opened.
    pub(crate) fn tick(&self, name: &str, gate: &str) -> String {
        let (file, gate) = (self.path(name), self.path(gate));
        let line = r#"echo "$ZK_TASK_ATTEMPT $ZK_TASK_FENCE""#;
        let dir = self.dir.path().display();
        format!("until [ -e {} ] || ! [ -d {dir} ]; do {line} >> {}; sleep 0.02; done", gate.display(), file.display())
    }

    /// Waits until this attempt ticks.
    #[track_caller]
    pub(crate) fn wait_tick(&self, name: &str, attempt: u32) {
        wait_for(&format!("attempt {attempt} to tick in {name}"), || {
            let lines = self.lines(name);
            let ticks = lines.iter().any(|line| line.starts_with(&format!("{attempt} ")));
            if ticks { Ok(()) } else { Err(format!("{:?}, {}", lines.last(), self.tree.picture())) }
        });
    }
}

/// A line of [`Bench::alive`].
#[derive(Debug)]
pub(crate) struct Sign {
    pub(crate) attempt: u32,
    pub(crate) fence: i64,
    /// By the clock of this machine, which is also that of its ZooKeeper servers.
    pub(crate) time_ms: i64,
    /// Which of the task's processes.
    pub(crate) who: String,
    pub(crate) pid: u32,
}

impl Bench {
    /// A command that appends signs of life to a file all the time, until a gate is opened.
    pub(crate) fn alive(&self, name: &str, gate: &str, who: &str) -> String {
        let (file, gate, dir) = (self.path(name), self.path(gate), self.dir.path().display());
        let line = format!(r#"echo "$ZK_TASK_ATTEMPT $ZK_TASK_FENCE $(date +%s%3N) {who} $$""#);
        format!("until [ -e {} ] || ! [ -d {dir} ]; do {line} >> {}; sleep 0.02; done", gate.display(), file.display())
    }

    /// All signs of life in a file.
    pub(crate) fn signs(&self, name: &str) -> Vec<Sign> {
        let sign = |line: &String| {
            let [attempt, fence, time_ms, who, pid] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let (attempt, fence) = (attempt.parse().ok()?, fence.parse().ok()?);
            Some(Sign { attempt, fence, time_ms: time_ms.parse().ok()?, who: who.to_owned(), pid: pid.parse().ok()? })
        };
        // The last line may be on its way.
        self.lines(name).iter().filter_map(sign).collect()
    }

    /// Waits until this attempt gives a sign of life, and returns the first.
    #[track_caller]
    pub(crate) fn wait_sign(&self, name: &str, attempt: u32) -> Sign {
        wait_for(&format!("a sign of life of attempt {attempt} in {name}"), || {
            let first = self.signs(name).into_iter().find(|sign| sign.attempt == attempt);
            first.ok_or_else(|| format!("{:?}, {}", self.lines(name).last(), self.tree.picture()))
        })
    }
}

/// That no attempt gave a sign of life any more once the next one had begun, and when the last sign of an attempt was.
#[track_caller]
pub(crate) fn last_sign(signs: &[Sign], attempt: u32) -> i64 {
    let fences: Vec<i64> = signs.iter().map(|sign| sign.fence).collect();
    assert!(fences.is_sorted(), "an earlier attempt ran beside a later one: {signs:?}");
    signs.iter().filter(|sign| sign.attempt == attempt).map(|sign| sign.time_ms).max().expect("it lived")
}

/// The end of a session in a server's log, if it has ended.
pub(crate) fn end_of(server: &Server, session: i64) -> Option<Txn> {
    server.transactions().into_iter().find(|txn| txn.session == session && txn.kind == TxnKind::CloseSession)
}

/// Waits for it.
#[track_caller]
pub(crate) fn wait_end_of(server: &Server, session: i64) -> Txn {
    wait_for(&format!("session {session:#x} to end"), || end_of(server, session).ok_or_else(|| "it lives".to_owned()))
}

impl Bench {
    /// That nobody but the owner of `/master` has assigned anything here, as far as a server committed it.
    #[track_caller]
    pub(crate) fn check_only_primaries_assigned(&self, server: &Server) {
        let chroot = &self.zk[self.zk.find('/').expect("a bench has a chroot")..];
        let wrong = History::of(&server.transactions(), chroot).wrong;
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

/// When a session last proved that it lives, by the servers' clock: its last write that was carried out.
#[track_caller]
pub(crate) fn last_proof_ms(log: &[Txn], session: i64) -> i64 {
    let is_write = |txn: &&Txn| matches!(txn.kind, TxnKind::Create { .. } | TxnKind::SetData { .. });
    log.iter().filter(|txn| txn.session == session).rfind(is_write).expect("it wrote").time_ms
}

/// That no attempt ticked any more once the next one had begun. The file was appended to, so the order of its lines is the
/// order of what happened, whatever the clocks said.
#[track_caller]
pub(crate) fn check_no_overlap(ticks: &[String]) {
    let mut latest = 0;
    for (at, line) in ticks.iter().enumerate() {
        let fence: i64 = line.split(' ').nth(1).and_then(|fence| fence.parse().ok()).expect("attempt and fence");
        let after = ticks[at..].iter().filter(|line| line.ends_with(&format!(" {fence}"))).count();
        assert!(fence >= latest, "an earlier attempt ran beside a later one, {after} ticks: {line}");
        latest = fence;
    }
}

/// The process that works: what a test starts is its guard.
#[track_caller]
pub(crate) fn inner(daemon: &Daemon) -> Pid {
    daemon.guarded().unwrap_or_else(|| panic!("no guarded process: {:?}", children(daemon.pid())))
}

/// The children that a process has started from its main thread or got as an orphan's new parent, dead ones included.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// SIGKILL for the process that works; its guard stays.
pub(crate) fn kill_inner(daemon: &Daemon) {
    kill_process(inner(daemon), Signal::KILL).expect("it runs");
}

/// A master and a worker `w` with two slots.
pub(crate) struct Pair {
    pub(crate) bench: Bench,
    pub(crate) master: Daemon,
    pub(crate) worker: Daemon,
}

impl std::ops::Deref for Pair {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Pair {
    #[track_caller]
    pub(crate) fn start(name: &str) -> Pair {
        Pair::with(name, &[])
    }

    #[track_caller]
    pub(crate) fn with(name: &str, args: &[&str]) -> Pair {
        let bench = Bench::shared(name);
        let master = bench.master("m:2223").start();
        let worker = bench.worker("w").args(args).start();
        bench.tree.wait_worker("w");
        Pair { bench, master, worker }
    }

    /// Runs a command to its end, with these options.
    #[track_caller]
    pub(crate) fn run_with(&self, command: &str, word: &str, change: impl FnOnce(&mut TaskMeta)) -> StatusMeta {
        let task = self.tree.submit_with(command, change);
        self.tree.expect(task, word).meta.expect("a task with metadata has a status with metadata")
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run(&self, command: &str, word: &str) -> StatusMeta {
        self.run_with(command, word, |_| ())
    }

    /// Runs a command to its good end, and returns what it printed.
    #[track_caller]
    pub(crate) fn output(&self, command: &str) -> String {
        let meta = self.run(command, "done");
        String::from_utf8(meta.stdout.expect("the tail of stdout").bytes).expect("the output is text")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.tree.wait_nothing_assigned();
            well(&[&self.master, &self.worker]);
        }
    }
}

/// Whether a process is there and not just waiting to be reaped.
pub(crate) fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
