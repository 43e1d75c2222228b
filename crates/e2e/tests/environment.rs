//! What surrounds a command: its standard input, its environment, its user; and what must not get into it.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use common::{Bench, Pair, SECOND, check_no_overlap, kill_inner, never_panicked, well};
use e2e::wait_for;
use znode_paths::{Bytes, StatusMeta};

/// A worker that tasks of another user run on: they have to get through the folders above its work dir.
#[track_caller]
fn pair_as(name: &str, user: &str) -> Pair {
    let bench = Bench::shared(name);
    fs::set_permissions(bench.path("."), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--run-as", user]).start();
    bench.tree.wait_worker("w");
    Pair { bench, master, worker }
}

fn text(meta: &StatusMeta) -> String {
    String::from_utf8_lossy(&meta.stdout.as_ref().expect("the tail of stdout").bytes).into_owned()
}

// --- standard input

#[test]
fn a_command_reads_its_standard_input_from_the_beginning_whether_it_wants_all_of_it_or_nothing() {
    let pair = Pair::start("stdin");
    let bytes: Vec<u8> = (0..512 * 1024_u32).map(|i| (i * 7 % 251) as u8).collect();
    let reads = |command: &str, word| pair.run_with(command, word, |meta| meta.stdin = Some(Bytes(bytes.clone())));
    let meta = reads("cat", "done");
    let stdout = meta.stdout.unwrap();
    assert_eq!((stdout.length, &stdout.bytes[..]), (512 * 1024, &bytes[bytes.len() - 65_536..]));
    // Each attempt from the beginning.
    let command = "head -c 7 | od -An -tu1 >&2; cat | wc -c; [ $ZK_TASK_ATTEMPT = 2 ]";
    let meta = pair.run_with(command, "done", |meta| (meta.stdin, meta.retries) = (Some(Bytes(bytes.clone())), 1));
    assert_eq!(text(&meta), format!("{}\n", bytes.len() - 7));
    assert_eq!(meta.stderr.unwrap().bytes, b"   0   7  14  21  28  35  42\n");
    assert_eq!(text(&reads("echo nothing", "done")), "nothing\n");
    assert_eq!(text(&reads("(echo x >&0) 2>/dev/null || echo read-only", "done")), "read-only\n");
    let empty = pair.run_with("wc -c", "done", |meta| meta.stdin = Some(Bytes::default()));
    assert_eq!(text(&empty), "0\n");
}

#[test]
fn a_client_gives_a_file_or_its_own_standard_input() {
    let pair = Pair::start("client");
    let file = pair.path("input");
    fs::write(&file, "a\nb\n").unwrap();
    for (from, input) in [(file.to_str().unwrap(), ""), ("-", "a\nb\n")] {
        let client = pair.client().args(["run", "--stdin", from, "--", "wc", "-l"]).stdin(input).start();
        assert_eq!(client.wait_exit(20 * SECOND).code(), Some(0), "{}", client.stderr());
        assert_eq!(client.stdout(), "2\n");
    }
    let too_much = pair.client().args(["run", "--stdin", "-", "cat"]).stdin(vec![b'x'; 512 * 1024 + 1]).start();
    assert_eq!(too_much.wait_exit(20 * SECOND).code(), Some(2));
    assert_eq!(too_much.stderr().lines().count(), 1, "{}", too_much.stderr());
    assert!(too_much.stderr().contains("512 KiB"), "{}", too_much.stderr());
}

// --- what a command begins with

#[test]
fn a_command_begins_afresh_however_the_worker_was_started() {
    let bench = Bench::shared("afresh");
    let master = bench.master("m:2223").start();
    let secret = bench.path("secret");
    fs::write(&secret, "secret").unwrap();
    let script = format!("trap '' HUP QUIT USR1 PIPE; umask 077; exec 7<{}; exec \"$@\"", secret.display());
    let service = ["NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"];
    let launch = service.into_iter().fold(bench.worker("w"), |launch, key| launch.env(key, "worker's"));
    let worker = launch.env("ZK_SECRET", "worker's").env("KEPT", "kept").through(&script).start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    assert_eq!(pair.output("ls /proc/$$/fd; true"), "0\n1\n2\n");
    for mask in pair.output("grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f 2").lines() {
        // Two are the C library's own, which nobody but the kernel can set.
        let mask = u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31);
        assert_eq!(mask, 0, "{mask:x}");
    }
    assert_eq!(pair.output("umask"), "0022\n");
    // Ended by SIGPIPE, as in a shell.
    assert_eq!(pair.output("{ { yes; echo $? >&3; } | head -n 1 > /dev/null; } 3>&1"), "141\n");
    assert_eq!(
        pair.output("env | grep -c \"worker's\"; env | grep -E '^(ZK_(SECRET|CONNECT|NAME)|KEPT)='"),
        "0\nKEPT=kept\n"
    );
}

// --- its user

#[test]
fn tasks_run_as_another_user_with_all_that_belongs_to_it() {
    let pair = pair_as("user", "nobody");
    let meta = pair.run("id; echo $HOME $USER $LOGNAME $SHELL; cat /etc/shadow || touch file && ls -l file", "done");
    let id =
        "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n/nonexistent nobody nobody /usr/sbin/nologin\n";
    let stdout = text(&meta);
    assert!(stdout.starts_with(id), "{stdout}");
    assert!(stdout[id.len()..].contains("nobody nogroup"), "{stdout}");
    let stderr = String::from_utf8(meta.stderr.unwrap().bytes).unwrap();
    assert!(stderr.contains("shadow: Permission denied"), "{stderr}");
    // There is no way back.
    let capabilities = pair.output("grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | cut -f 2 | sort -u");
    assert_eq!(capabilities, "0000000000000000\n");
    // What others did not get it does.
    assert_eq!(pair.output("echo out > /dev/stdout; wc -c < $ZK_TASK_DIR/stdout"), "out\n4\n");
    let home = pair.run_with("echo $HOME", "done", |meta| _ = meta.env.insert("HOME".into(), "/x".into()));
    assert_eq!(text(&home), "/x\n");
    let long = pair.run(&format!("echo long # {}", "x".repeat(200_000)), "done");
    assert_eq!(text(&long), "long\n");
    let input = pair.run_with("cat /dev/stdin", "done", |meta| meta.stdin = Some(Bytes(b"input".to_vec())));
    assert_eq!(text(&input), "input");
}

#[test]
fn a_task_of_another_user_cannot_touch_what_the_worker_looks_at() {
    let pair = pair_as("apart", "nobody");
    let meta = pair.run(
        "rm -f $ZK_TASK_DIR/stdout || mv $ZK_TASK_DIR/stdout x || ln -s /etc/shadow $ZK_TASK_DIR/x || \
         ls $ZK_TASK_DIR || kill -9 $PPID || cat /proc/$PPID/environ || ls $ZK_TASK_DIR/../.lock/.. || echo apart",
        "done",
    );
    assert_eq!(text(&meta), "apart\n");
    let folder = pair.path("work/w").join(format!("{}.{}", "task-0000000000", meta.fence.unwrap()));
    let owner = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.mode() & 0o777)).unwrap();
    assert_eq!(owner(&folder), (0, 0o710));
    assert_eq!(owner(&folder.join("files")), (65534, 0o700));
}

#[test]
fn what_another_user_may_not_enter_fails_with_the_reason() {
    let pair = pair_as("enter", "nobody");
    let closed = pair.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let cwd = closed.display().to_string();
    let meta = pair.run_with("pwd", "failed", |meta| meta.cwd = Some(cwd.clone()));
    let reason = meta.reason.unwrap();
    assert_eq!(meta.exit_code, Some(126));
    assert!(reason.contains(&cwd) && reason.contains("Permission denied"), "{reason}");
}

#[test]
fn a_task_of_another_user_dies_with_its_worker_too() {
    let pair = pair_as("dies", "nobody");
    fs::write(pair.path("ticks"), "").unwrap();
    fs::set_permissions(pair.path("ticks"), fs::Permissions::from_mode(0o666)).unwrap();
    let task = pair.tree.submit_with(&pair.tick("ticks", "go"), |_| ());
    pair.wait_tick("ticks", 1);
    kill_inner(&pair.worker);
    pair.wait_tick("ticks", 2);
    pair.open("go");
    pair.tree.expect(task, "done");
    check_no_overlap(&pair.lines("ticks"));
}

#[test]
fn a_user_that_cannot_be_had_is_refused_in_one_line() {
    let bench = Bench::shared("unknown");
    for user in ["no-such-user", "4294967294", ""] {
        let worker = bench.worker("w").args(["--run-as", user]).start();
        assert_eq!(worker.wait_exit(20 * SECOND).code(), Some(1), "{user}");
        let said = format!("zk-worker: cannot run tasks as {user:?}: there is no such user\n");
        assert_eq!(worker.stderr(), said);
        never_panicked(&worker);
    }
}

#[test]
fn root_is_warned_that_tasks_run_as_root() {
    let bench = Bench::shared("root");
    let [with, without] = ["nobody", ""].map(|user| {
        let args = if user.is_empty() { vec![] } else { vec!["--run-as", user] };
        let worker = bench.worker(&format!("w{user}")).args(args).start();
        worker.wait_stderr("connected");
        worker
    });
    assert!(without.stderr().contains("WARN  zk_worker] tasks run as root"), "{}", without.stderr());
    assert!(!with.stderr().contains("as root"), "{}", with.stderr());
    well(&[&with, &without]);
}

#[test]
fn a_task_that_forks_up_to_its_limit_is_stopped_with_all_of_it_and_the_worker_goes_on() {
    // A number of its own: the limit counts all processes of a user. It doubles eight times, should there be no limit.
    let pair = pair_as("forks", "games");
    let bomb = "prlimit --pid $$ --nproc=100 && [ $(ulimit -p) = 100 ] || exit 99
        grow() { if [ $1 = 0 ]; then exec sleep 1000; fi; grow $(($1 - 1)) & grow $(($1 - 1)) & wait; }
        grow 8; exec sleep 1000";
    let meta = pair.run_with(bomb, "timeout", |meta| meta.timeout_ms = Some(2000));
    let stderr = String::from_utf8(meta.stderr.unwrap().bytes).unwrap();
    assert!(stderr.contains("Cannot fork"), "{stderr}");
    let games = || {
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            status.contains("\nUid:\t5\t") && !status.contains("State:\tZ")
        });
        processes.count()
    };
    wait_for("all of it to be gone", || if games() == 0 { Ok(()) } else { Err(format!("{} live", games())) });
    assert_eq!(pair.output("echo next"), "next\n");
}
