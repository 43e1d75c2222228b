//! What a command gets, and what is told of its end.

mod common;

use common::{Bench, Pair, SECOND, inner, lives, well};

use std::{fs, path::Path};

use e2e::{stays, wait_for};
use znode_paths::{Drain, MAX_DATA, Outcome, TaskName, paths};

// --- ends

#[test]
fn exit_codes_and_signals_are_reported() {
    let pair = Pair::start("codes");
    for (command, word, exit_code, signal) in [
        ("true", "done", Some(0), None),
        ("exit 7", "failed", Some(7), None),
        ("no-such-command-anywhere", "failed", Some(127), None),
        ("/etc/passwd", "failed", Some(126), None),
        ("kill -9 $$", "failed", None, Some(9)),
        ("kill -15 $$", "failed", None, Some(15)),
        ("if", "failed", Some(2), None),
    ] {
        let meta = pair.run(command, word);
        assert_eq!((meta.exit_code, meta.signal), (exit_code, signal), "{command}");
        assert_eq!((meta.worker.unwrap().as_str(), meta.attempt), ("w", Some(1)), "{command}");
        assert!(meta.start_ms.unwrap() <= meta.end_ms.unwrap(), "{command}");
    }
}

#[test]
fn the_status_of_a_task_made_by_hand_is_one_word() {
    let pair = Pair::start("word");
    for (command, word) in [("true", "done"), ("echo out; exit 1", "failed"), ("kill $$", "failed")] {
        let task = pair.tree.submit(command);
        pair.tree.wait_status(task);
        assert_eq!(pair.tree.status(task).as_deref(), Some(word), "{command}");
    }
}

#[test]
fn a_command_may_have_several_lines() {
    let pair = Pair::start("lines");
    let script = "for i in 1 2\ndo\n  echo \"line $i\"\ndone\ncat <<END\n{ \"not\": \"metadata\" }\nEND\n";
    assert_eq!(pair.output(script), "line 1\nline 2\n{ \"not\": \"metadata\" }\n");
    let by_hand = pair.tree.submit(&format!("{}\n{}", pair.note("runs", "one"), pair.note("runs", "two")));
    pair.tree.expect(by_hand, "done");
    assert_eq!(pair.lines("runs"), ["one", "two"]);
}

// --- output

#[test]
fn both_streams_are_told_apart() {
    let pair = Pair::start("streams");
    let meta = pair.run("printf out; printf 'err or' >&2; printf ' put'", "done");
    let (stdout, stderr) = (meta.stdout.unwrap(), meta.stderr.unwrap());
    assert_eq!((stdout.length, stdout.bytes.as_slice()), (7, b"out put".as_slice()));
    assert_eq!((stderr.length, stderr.bytes.as_slice()), (6, b"err or".as_slice()));
}

#[test]
fn output_is_any_bytes() {
    let pair = Pair::start("bytes");
    let meta = pair.run(r"printf '\377\000\001\n\r\176'", "done");
    assert_eq!(meta.stdout.unwrap().bytes, b"\xff\0\x01\n\r~");
    let meta = pair.run("head -c 100000 /dev/urandom", "done");
    assert_eq!(meta.stdout.unwrap().length, 100_000);
}

#[test]
fn of_long_output_the_status_has_the_end_and_the_work_dir_all() {
    let pair = Pair::start("long");
    let meta = pair.run("head -c 10485760 /dev/zero | tr '\\0' x; printf end", "done");
    let stdout = meta.stdout.unwrap();
    assert_eq!((stdout.length, stdout.bytes.len()), (10_485_763, 65_536));
    assert!(stdout.bytes.ends_with(b"xxxend"));
    let all = pair.path("work").join(format!("w/{}.{}", TaskName::from_number(0), meta.fence.unwrap())).join("stdout");
    assert_eq!(fs::metadata(&all).unwrap().len(), 10_485_763, "{}", all.display());
}

#[test]
fn a_status_fits_into_a_znode_whatever_the_output_limit_and_the_bytes() {
    let pair = Pair::with("limit", &["--output-limit", "3000000"]);
    for bytes in ["/dev/urandom", "/dev/zero"] {
        let task = pair.tree.submit_with(&format!("head -c 4000000 {bytes}; head -c 4000000 {bytes} >&2"), |_| ());
        let meta = pair.tree.expect(task, "done").meta.unwrap();
        assert_eq!((meta.stdout.unwrap().length, meta.stderr.unwrap().length), (4_000_000, 4_000_000));
        assert!(pair.tree.data(&paths::status(&task)).unwrap().len() <= MAX_DATA);
    }
}

#[test]
fn a_command_that_deletes_its_directory_is_none_the_worse_for_it() {
    let pair = Pair::start("deletes");
    let meta = pair.run(r#"echo before; cd ..; rm -rf "$PWD"; echo after"#, "done");
    assert_eq!(meta.stdout.unwrap().bytes, b"before\nafter\n");
    assert_eq!(pair.output("echo next"), "next\n");
}

// --- surroundings

#[test]
fn there_is_nothing_to_read_on_stdin() {
    let pair = Pair::start("stdin");
    assert_eq!(pair.output("cat; read line; echo $?"), "1\n");
}

#[test]
fn a_command_knows_its_attempt_and_nothing_of_the_workers_settings() {
    let bench = Bench::shared("env");
    let master = bench.master("m:2223").start();
    let launch = bench.worker("w").env("ZK_LABEL", "secret=1").env("ZK_OTHER", "x").env("RUST_LOG", "info");
    let worker = launch.env("KEPT", "kept").start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    let task = pair.tree.submit_with("env | grep -E '^(ZK_|RUST_LOG|KEPT|MINE)' | sort", |meta| {
        meta.env.insert("MINE".to_owned(), "a b\nc=d".to_owned());
    });
    let meta = pair.tree.expect(task, "done").meta.unwrap();
    let fence = meta.fence.unwrap();
    let seen = String::from_utf8(meta.stdout.unwrap().bytes).unwrap();
    let dir = pair.path("work").canonicalize().unwrap().join(format!("w/{task}.{fence}"));
    let dir = dir.display();
    let expected =
        format!("KEPT=kept\nMINE=a b\nZK_TASK={task}\nZK_TASK_ATTEMPT=1\nZK_TASK_DIR={dir}\nZK_TASK_FENCE={fence}\n");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&seen), sorted(&expected));
}

#[test]
fn a_variable_that_cannot_be_set_fails_the_task_with_the_reason() {
    let pair = Pair::start("variable");
    for (key, value) in [("A=B", "x"), ("", "x"), ("A", "x\0y")] {
        let task = pair.tree.submit_with("true", |meta| {
            meta.env.insert(key.to_owned(), value.to_owned());
        });
        let meta = pair.tree.expect(task, "failed").meta.unwrap();
        assert!(meta.reason.as_ref().is_some_and(|reason| reason.contains("environment variable")), "{meta:?}");
        assert_eq!(meta.exit_code, Some(126));
    }
}

#[test]
fn a_command_runs_where_it_was_to_run_or_fails_with_the_reason() {
    let pair = Pair::start("cwd");
    let at = |cwd: &Path| {
        let cwd = cwd.display().to_string();
        let task = pair.tree.submit_with("pwd", |meta| meta.cwd = Some(cwd));
        pair.tree.wait_status(task)
    };
    let dir = pair.path("somewhere");
    fs::create_dir(&dir).unwrap();
    let dir = dir.canonicalize().unwrap();
    let stdout = at(&dir).meta.unwrap().stdout.unwrap().bytes;
    assert_eq!(String::from_utf8(stdout).unwrap(), format!("{}\n", dir.display()));
    for missing in [dir.join("nowhere"), "/etc/passwd".into()] {
        let status = at(&missing);
        assert_eq!(status.outcome, Outcome::Failed);
        let reason = status.meta.unwrap().reason.unwrap_or_default();
        assert!(reason.contains(&missing.display().to_string()), "{reason}");
    }
    let own = pair.output("pwd; ls -A");
    assert!(own.starts_with(&pair.path("work").canonicalize().unwrap().display().to_string()), "{own}");
    assert_eq!(own.lines().count(), 1, "a directory of its own, and empty: {own}");
}

#[test]
fn what_a_command_leaves_behind_is_dead_when_its_status_is_there() {
    let pair = Pair::start("group");
    let output = pair.output(r#"test $(ps -o pgid= -p $$) = $$ && echo leader; sleep 1000 & echo $!; (trap '' TERM HUP; sleep 1001) & echo $!"#);
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("leader"));
    for pid in lines {
        assert!(!lives(pid), "{pid} lives");
    }
    // One that holds the output open does not hold up the status.
    let output = pair.output("sleep 1002 & echo $!; exec 1>&-");
    assert!(!lives(output.trim()));
}

// --- cancel

#[test]
fn a_task_cancelled_before_it_starts_never_runs() {
    let bench = Bench::shared("early");
    let master = bench.master("m:2223").start();
    let by_hand = bench.tree.submit(&bench.note("runs", "1"));
    let ours = bench.tree.submit_with(&bench.note("runs", "2"), |_| ());
    for task in [by_hand, ours] {
        bench.tree.create(&paths::cancel(&task), "");
    }
    bench.tree.expect(by_hand, "cancelled");
    assert_eq!(bench.tree.status(by_hand).as_deref(), Some("cancelled"));
    let reason = bench.tree.expect(ours, "cancelled").meta.unwrap().reason.unwrap();
    assert!(reason.contains("before it started"), "{reason}");
    let worker = bench.worker("w").args(["--slots", "1"]).start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };

    // Assigned, but there is no room yet.
    let running = pair.tree.submit(&format!("{}; {}", pair.note("runs", "3"), pair.gate("go")));
    let waiting = pair.tree.submit_with(&pair.note("runs", "4"), |_| ());
    pair.tree.wait_assigned("w", waiting);
    pair.wait_lines("runs", 1);
    stays("waiting for room", SECOND / 2, || {
        let status = pair.tree.status(waiting);
        if status.is_none() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    pair.tree.create(&paths::cancel(&waiting), "");
    pair.tree.expect(waiting, "cancelled");
    pair.open("go");
    pair.tree.expect(running, "done");
    assert_eq!(pair.lines("runs"), ["3"]);
}

#[test]
fn a_running_task_that_is_cancelled_is_stopped_and_never_done() {
    let pair = Pair::with("late", &["--slots", "4", "--grace", "1s"]);
    let tree = &pair.tree;
    let commands = [
        pair.tick("plain", "never"),
        // Says goodbye, and calls it a success.
        format!("trap '{}; exit 0' TERM; {}", pair.note("goodbye", "goodbye"), pair.tick("polite", "never")),
        format!("trap '' TERM; {}", pair.tick("deaf", "never")),
        format!("({}) & wait", pair.tick("child", "never")),
    ];
    let tasks: Vec<_> = commands.iter().map(|command| tree.submit_with(command, |_| ())).collect();
    for name in ["plain", "polite", "deaf", "child"] {
        pair.wait_tick(name, 1);
    }
    for task in &tasks {
        tree.create(&paths::cancel(task), "please");
    }
    for task in &tasks {
        let meta = tree.expect(*task, "cancelled").meta.unwrap();
        assert!(meta.reason.unwrap().contains("cancelled"));
    }
    assert_eq!(pair.lines("goodbye"), ["goodbye"]);
    let ticks = || ["plain", "polite", "deaf", "child"].map(|name| pair.lines(name).len());
    let before = ticks();
    stays("silence", SECOND / 3, || if ticks() == before { Ok(()) } else { Err("ticks".to_owned()) });
    assert_eq!(tree.children(&paths::task(&tasks[0])), ["cancel", "status"], "no attempt was lost");
}

#[test]
fn cancelling_a_finished_task_changes_nothing() {
    let pair = Pair::start("finished");
    let task = pair.tree.submit("true");
    pair.tree.expect(task, "done");
    pair.tree.create(&paths::cancel(&task), "");
    assert_eq!(pair.output("echo next"), "next\n");
    assert_eq!(pair.tree.status(task).as_deref(), Some("done"));
}

// --- order and place

#[test]
fn a_task_starts_after_those_that_it_waits_for_are_done() {
    let pair = Pair::start("after");
    let tree = &pair.tree;
    let first = tree.submit(&format!("{}; {}", pair.gate("go"), pair.note("runs", "first")));
    let second = tree.submit_with(&pair.note("runs", "second"), |meta| meta.after = vec![first]);
    let third = tree.submit_with(&pair.note("runs", "third"), |meta| meta.after = vec![first, second]);
    let other = tree.submit(&pair.note("runs", "other"));
    tree.expect(other, "done");
    assert_eq!((tree.status(second), tree.status(third)), (None, None));
    pair.open("go");
    tree.expect(third, "done");
    assert_eq!(pair.lines("runs"), ["other", "first", "second", "third"]);

    let fails = tree.submit("false");
    for (before, why) in [(fails, "is failed"), (TaskName::from_number(4000), "does not exist")] {
        let task = tree.submit_with(&pair.note("runs", "never"), |meta| meta.after = vec![first, before]);
        let reason = tree.expect(task, "cancelled").meta.unwrap().reason.unwrap();
        assert!(reason.contains(&format!("{before}, which it waited for, {why}")), "{reason}");
    }
    assert_eq!(pair.lines("runs").len(), 4);
}

#[test]
fn the_highest_priority_is_served_first_and_among_equals_the_oldest() {
    let bench = Bench::shared("priority");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    let submit = |name: &str, priority| tree.submit_with(&bench.note("runs", name), |meta| meta.priority = priority);
    let tasks =
        [submit("b1", 0), submit("c", -5), submit("a", 7), submit("b2", 0), tree.submit(&bench.note("runs", "b3"))];
    let worker = bench.worker("w").args(["--slots", "1"]).start();
    assert_eq!(tree.wait_all(&tasks), tasks.len());
    assert_eq!(bench.lines("runs"), ["a", "b1", "b2", "b3", "c"]);
    well(&[&master, &worker]);
}

#[test]
fn a_task_goes_only_where_it_may_run() {
    let pair = Pair::with("place", &["--label", "disk=ssd", "--label", "zone=a"]);
    let tree = &pair.tree;
    let other = pair.worker("other").args(["--label", "disk=hdd", "--slots", "9"]).start();
    tree.wait_worker("other");
    let require = |pairs: &[(&str, &str)]| {
        let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let require = labels.collect();
        tree.submit_with("true", |meta| meta.require = require)
    };
    let on = |name: &str| tree.submit_with("true", |meta| meta.on = Some(name.parse().unwrap()));
    let ssd = [require(&[("disk", "ssd")]), require(&[("disk", "ssd"), ("zone", "a")]), on("w")];
    let hdd = [require(&[("disk", "hdd")]), on("other")];
    let nowhere = [require(&[("disk", "hdd"), ("zone", "a")]), require(&[("gpu", "1")]), on("later")];
    for (tasks, worker) in [(&ssd[..], "w"), (&hdd[..], "other")] {
        for task in tasks {
            assert_eq!(tree.expect(*task, "done").meta.unwrap().worker.unwrap().as_str(), worker);
        }
    }
    // They don't hold up others, and go when somebody comes who may have them.
    assert_eq!(pair.output("echo next"), "next\n");
    assert!(nowhere.iter().all(|task| tree.status(*task).is_none()));
    let later = pair.worker("later").args(["--label", "gpu=1,zone=a,disk=hdd"]).start();
    for task in nowhere {
        assert_eq!(tree.expect(task, "done").meta.unwrap().worker.unwrap().as_str(), "later");
    }
    well(&[&other, &later]);
}

#[test]
fn a_drained_worker_gets_nothing_new_until_it_is_back_in_service() {
    let pair = Pair::start("drain");
    let tree = &pair.tree;
    let running = tree.submit(&format!("{}; {}", pair.note("runs", "running"), pair.gate("go")));
    pair.wait_lines("runs", 1);
    let drain = |drain: bool| {
        let drain = Drain { drain, ..Drain::default() };
        let data = format!("\n{}", serde_json::to_string(&drain).unwrap());
        tree.ask(|session| session.write("/assign/w", data.as_bytes(), None)).unwrap();
    };
    drain(true);
    let waiting = tree.submit(&pair.note("runs", "waiting"));
    let elsewhere = pair.worker("other").start();
    tree.expect(waiting, "done");
    pair.open("go");
    tree.expect(running, "done");
    let here = tree.submit_with(&pair.note("runs", "here"), |meta| meta.on = Some("w".parse().unwrap()));
    stays("waiting", SECOND / 2, || {
        let status = tree.status(here);
        if status.is_none() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    drain(false);
    tree.expect(here, "done");
    assert_eq!(pair.lines("runs"), ["running", "waiting", "here"]);
    well(&[&elsewhere]);
}

#[test]
fn of_several_tasks_of_one_submit_only_the_first_is_run_and_the_others_go() {
    let bench = Bench::shared("submit");
    bench.tree.make(&["/tasks"]);
    // One of them has ended before anybody looks.
    let same = |id: &str, name: &str| {
        bench.tree.submit_with(&bench.note("runs", name), |meta| meta.submit = Some(id.to_owned()))
    };
    let (first, second, third) = (same("one", "first"), same("one", "second"), same("one", "third"));
    let ended = same("two", "ended");
    bench.tree.create(&paths::status(&ended), "done");
    let after = same("two", "after");
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    bench.tree.wait_worker("w");
    let pair = Pair { bench, master, worker };
    pair.tree.expect(first, "done");
    wait_for("the others to go", || {
        let left = pair.tree.children("/tasks");
        if left == [first.to_string(), ended.to_string()] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!([second, third, after].map(|task| pair.tree.status(task)), [None, None, None]);
    assert_eq!(pair.lines("runs"), ["first"]);
}

#[test]
fn hundreds_of_short_commands_leave_no_process_thread_or_descriptor() {
    let pair = Pair::with("leaks", &["--slots", "8"]);
    let proc = format!("/proc/{}", inner(&pair.worker).as_raw_nonzero());
    let count = |what: &str| fs::read_dir(format!("{proc}/{what}")).map_or(0, Iterator::count);
    let children = || fs::read_to_string(format!("{proc}/task/{}/children", &proc[6..])).unwrap_or_default();
    let batch = || {
        let tasks: Vec<_> = (0..100).map(|_| pair.tree.submit("true")).collect();
        assert_eq!(pair.tree.wait_all(&tasks), 100);
        pair.tree.wait_nothing_assigned();
    };
    batch();
    let before = (count("fd"), count("task"));
    for _ in 0..4 {
        batch();
    }
    wait_for("the worker to be as it was", || {
        let now = (count("fd"), count("task"));
        if now <= before && children().trim().is_empty() {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?} {}", children()))
        }
    });
}
