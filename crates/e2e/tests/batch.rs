//! Many commands, a line each.

mod common;

use common::{Bench, SECOND, well};

use std::{collections::BTreeSet, fmt::Write as _, fs, time::Duration};

use e2e::{Daemon, Server, Signal, daemon::Launch, stays, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

/// A batch of these lines, as a file.
fn batch(bench: &Bench, lines: &str) -> Launch {
    let file = bench.path("commands");
    fs::write(&file, lines).expect("a file can be written");
    bench.client().arg("batch").arg(file)
}

/// Exit code and what it printed, sorted.
#[track_caller]
fn ended(client: &Daemon) -> (i32, Vec<String>) {
    let status = client.wait_exit(LIMIT);
    let mut lines: Vec<String> = client.stdout().lines().map(str::to_owned).collect();
    lines.sort();
    (status.code().expect("it is not killed"), lines)
}

/// A tree with a master and a worker `w`.
fn pair(name: &str) -> (Bench, Daemon, Daemon) {
    let bench = Bench::shared(name);
    let (master, worker) = (bench.master("m:2223").start(), bench.worker("w").args(["--slots", "4"]).start());
    bench.tree.wait_worker("w");
    (bench, master, worker)
}

#[track_caller]
fn wait_empty(bench: &Bench) {
    wait_for("the tree to be empty", || {
        let tasks = bench.tree.children("/tasks");
        if tasks.is_empty() { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
}

#[test]
fn each_line_is_a_task_that_is_printed_as_it_ends_and_then_goes() {
    let (bench, master, worker) = pair("lines");
    let go = bench.gate("go");
    let client = batch(&bench, &format!("{go}\n\n  exit 3\nprintf 'a\\tb'; true\t# \u{1b}\nkill -9 $$\n")).start();
    wait_for("three lines", || if client.stdout().lines().count() == 3 { Ok(()) } else { Err(client.stdout()) });
    assert!(!client.stdout().contains(&go), "it has not ended");
    bench.open("go");
    let (code, lines) = ended(&client);
    assert_eq!((code, client.stderr().as_str()), (1, ""));
    let names: Vec<String> = (0..4).map(|number| format!("task-{number:010}")).collect();
    assert_eq!(lines.iter().map(|line| &line[..15]).collect::<Vec<_>>(), names);
    let mut rest: Vec<&str> = lines.iter().map(|line| &line[15..]).collect();
    rest.sort_unstable();
    let expected = [
        "\tdone\t0\tprintf 'a\\tb'; true\\t# \\u{1b}",
        &format!("\tdone\t0\t{go}"),
        "\tfailed\t137\tkill -9 $$",
        "\tfailed\t3\t  exit 3",
    ];
    assert_eq!(rest, expected);
    wait_empty(&bench);
    let json = batch(&bench, "true\nexit 4\n").args(["--keep", "--json", "--priority", "1"]).start();
    let (code, lines) = ended(&json);
    assert_eq!(code, 1);
    assert!(
        lines[0].starts_with("{\"line\":1,\"task\":\"task-000000000")
            && lines[0].contains("\"state\":\"done\",\"command\":\"true\""),
        "{lines:?}"
    );
    assert!(lines[1].contains("\"line\":2") && lines[1].contains("\"exit_code\":4"), "{lines:?}");
    assert_eq!(bench.tree.children("/tasks").len(), 2, "--keep");
    well(&[&master, &worker]);
}

#[test]
fn all_done_is_0_and_no_more_are_in_flight_than_there_may_be() {
    let (bench, master, worker) = pair("flight");
    let mut lines = String::new();
    for number in 0..500 {
        writeln!(lines, "{}", bench.note("runs", &number.to_string())).unwrap();
    }
    let client = batch(&bench, &lines).args(["--max-in-flight", "20", "--max-queue", "60"]).start();
    let mut most = 0;
    wait_for("the end", || {
        most = most.max(bench.tree.children("/tasks").len());
        client.exited().ok_or_else(String::new)
    });
    let (code, printed) = ended(&client);
    assert_eq!((code, printed.len(), client.stderr().as_str()), (0, 500, ""));
    // Those that the primary is about to remove are there as well; the queue has room for one more than its limit.
    assert!(most <= 61, "{most}");
    let runs = bench.lines("runs");
    assert_eq!((runs.len(), runs.iter().collect::<BTreeSet<_>>().len()), (500, 500));
    wait_empty(&bench);
    well(&[&master, &worker]);
}

/// What there is to read is read when it is needed: a producer that never ends is no problem.
#[test]
fn input_is_read_no_faster_than_it_is_run() {
    let (bench, master, worker) = pair("lazy");
    let pipe = bench.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    let count = bench.path("count");
    // It says how many lines it got rid of.
    let script = format!(
        "exec 3> {}; i=0; while echo \"{}\" >&3; do i=$((i + 1)); echo $i > {}; done",
        pipe.display(),
        bench.gate("go"),
        count.display()
    );
    let producer = Daemon::program("/bin/sh").args(["-c", &script]).start();
    let client = bench.client().args(["batch", "--max-in-flight", "5"]).arg(&pipe).start();
    let written = || fs::read_to_string(&count).unwrap_or_default().trim().parse().unwrap_or(0);
    wait_for("the reader to be full", || {
        let tasks = bench.tree.children("/tasks").len();
        if tasks == 5 && written() > 100 { Ok(()) } else { Err(format!("{tasks} tasks, {} lines", written())) }
    });
    // A pipe holds 64 KiB, the reader some lines.
    stays("the pipe", SECOND / 2, || {
        let (tasks, lines) = (bench.tree.children("/tasks").len(), written());
        if tasks <= 5 && lines < 3000 { Ok(()) } else { Err(format!("{tasks} tasks, {lines} lines")) }
    });
    producer.kill();
    client.signal(Signal::INT);
    assert_eq!(ended(&client).0, 130);
    wait_empty(&bench);
    well(&[&master, &worker]);
}

#[test]
fn the_first_signal_cancels_what_has_not_ended_and_the_second_leaves() {
    let (bench, master, worker) = pair("signal");
    let lines = format!("{}; {}\n", bench.note("runs", "1"), bench.gate("never")).repeat(20);
    let client = batch(&bench, &lines).args(["--max-in-flight", "10"]).start();
    bench.wait_lines("runs", 4);
    client.signal(Signal::INT);
    let (code, printed) = ended(&client);
    assert_eq!((code, printed.len()), (130, 10), "{}", client.stderr());
    assert!(printed.iter().all(|line| line.contains("\tcancelled\t")), "{printed:?}");
    assert_eq!(bench.lines("runs").len(), 4, "nothing was started any more");
    wait_empty(&bench);
    drop(worker);
    let client = batch(&bench, &lines).start();
    wait_for("the tasks", || {
        let tasks = bench.tree.children("/tasks").len();
        if tasks == 20 { Ok(()) } else { Err(tasks.to_string()) }
    });
    drop(master);
    client.signal(Signal::INT);
    client.wait_stderr("cancelling");
    client.signal(Signal::INT);
    assert_eq!(ended(&client), (130, vec![]));
    assert!(client.stderr().contains("20 tasks go on"), "{}", client.stderr());
}

#[test]
fn a_line_that_cannot_be_run_is_said_and_the_others_are_run() {
    let (bench, master, worker) = pair("bad");
    let long = "x".repeat(1_000_001);
    fs::write(bench.path("commands"), [b"true\n\xff\na\0b\n", long.as_bytes(), b"\ntrue"].concat()).unwrap();
    let client = bench.client().arg("batch").arg(bench.path("commands")).start();
    let (code, printed) = ended(&client);
    assert_eq!((code, printed.len()), (1, 2));
    let stderr = client.stderr();
    for text in ["line 2: it is not UTF-8", "line 3: the command has a NUL", "line 4: the command and its options have"]
    {
        assert!(stderr.contains(text), "{stderr}");
    }
    let nowhere = bench.client().args(["batch", "/nowhere"]).start();
    assert_eq!(ended(&nowhere), (125, vec![]));
    assert!(nowhere.stderr().contains("cannot run the commands: cannot read /nowhere"), "{}", nowhere.stderr());
    well(&[&master, &worker]);
}

#[test]
fn a_task_that_somebody_else_removes_is_not_waited_for() {
    let (bench, master, worker) = pair("removed");
    let client = batch(&bench, &format!("{}\ntrue\n", bench.gate("never"))).start();
    client.wait_stdout("\tdone\t");
    let printed = client.stdout();
    let name = ["task-0000000000", "task-0000000001"].into_iter().find(|name| !printed.contains(name)).unwrap();
    bench.tree.delete_all(&format!("/tasks/{name}"));
    let (code, printed) = ended(&client);
    assert_eq!((code, printed.len()), (1, 1));
    assert!(client.stderr().contains(&format!("line 1: {name} was removed")), "{}", client.stderr());
    well(&[&master, &worker]);
}

/// No line is run twice and none is forgotten.
#[test]
fn a_batch_goes_on_through_failovers_and_a_restart_of_zookeeper() {
    let mut server = Server::start();
    let bench = Bench::at(server.chroot("faults"));
    let masters = ["m1:2223", "m2:2224"].map(|address| bench.master(address).start());
    let worker = bench.worker("w").args(["--slots", "4"]).start();
    bench.tree.wait_worker("w");
    let lines: String = (0..400).map(|number| format!("{}\n", bench.note("runs", &number.to_string()))).collect();
    let client = batch(&bench, &lines).args(["--max-in-flight", "30"]).start();
    bench.wait_lines("runs", 100);
    let primary = bench.tree.text("/master").expect("there is a primary");
    masters[usize::from(primary == "m2:2224")].kill();
    bench.wait_lines("runs", 200);
    server.kill();
    server.restart();
    let (code, printed) = ended(&client);
    assert_eq!((code, printed.len()), (0, 400), "{}", client.stderr());
    let runs = bench.lines("runs");
    assert_eq!((runs.len(), runs.iter().collect::<BTreeSet<_>>().len()), (400, 400));
    well(&[&worker]);
}

#[test]
fn on_a_terminal_there_is_a_bar() {
    let (bench, master, worker) = pair("bar");
    let file = bench.path("commands");
    fs::write(&file, format!("true\nfalse\n{}\n", bench.gate("go"))).unwrap();
    let program = std::env::current_exe().unwrap();
    let client = program.parent().and_then(|deps| deps.parent()).unwrap().join("zk-client");
    // script(1) gives it a terminal.
    let line =
        format!("{} --zk {} batch {} > {}", client.display(), bench.zk, file.display(), bench.path("out").display());
    let terminal = Daemon::program("script").args(["-qefc", &line, "/dev/null"]).start();
    terminal.wait_stdout("1 done, 1 failed, 1 running");
    assert!(terminal.stdout().contains("] ") && terminal.stdout().contains('%'), "{}", terminal.stdout());
    bench.open("go");
    assert_eq!(terminal.wait_exit(LIMIT).code(), Some(1));
    assert_eq!(bench.lines("out").len(), 3);
    well(&[&master, &worker]);
}
