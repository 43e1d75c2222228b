//! Each role played with the stock `zkCli.sh`, and by hand whatever else can be done to the tree, beside our daemons.

mod common;

use common::{Bench, SECOND, count, well};
use e2e::{Daemon, ZkCli, stays, wait_for, wait_within};
use znode_paths::{Attempt, AttemptKind, paths};

#[track_caller]
fn says(cli: &ZkCli, command: &str, answer: &str) {
    assert_eq!(cli.run(command), answer, "{command}");
}

#[test]
fn a_master_and_client_played_by_hand_get_their_task_done_by_our_worker() {
    let bench = Bench::shared("m2m3");
    bench.tree.make(&[]);
    let worker = bench.worker("w").start();
    worker.wait_stderr("waiting for a master to set up /workers");
    let hand = ZkCli::connect(&bench.zk);
    says(&hand, r#"create -e /master "master2.example.com:2223""#, "Created /master");
    let ours = bench.master("m:2223").start();
    ours.wait_stderr(r#"standing by primary="master2.example.com:2223""#);

    // Step by step, so that there is a moment with /workers and without /assign.
    says(&hand, r#"create /workers """#, "Created /workers");
    worker.wait_stderr("waiting for a master to set up /assign");
    says(&hand, "ls -w /workers", "[w]");
    says(&hand, r#"create /tasks """#, "Created /tasks");
    says(&hand, r#"create /assign """#, "Created /assign");
    bench.tree.wait_worker("w");

    let command = bench.note("runs", "$ZK_TASK $ZK_TASK_ATTEMPT");
    let task = bench.tree.submit(&command);
    says(&hand, &format!("ls -w /tasks/{task}"), "[]");
    says(&hand, &format!(r#"create /assign/w/{task} """#), &format!("Created /assign/w/{task}"));
    hand.wait_output(&format!("type:NodeChildrenChanged path:/tasks/{task}"));
    says(&hand, &format!("get /tasks/{task}/status"), "done");

    // Ours stood by all the time. When the hand lets go, it takes over, puts the desk in order and goes on.
    assert_eq!(count(&ours, "primary fence="), 0);
    says(&hand, "get /master", "master2.example.com:2223");
    let waiting = bench.tree.submit(&bench.note("runs", "next"));
    hand.close();
    wait_within(2 * SECOND, "ours to take over", || {
        let master = bench.tree.text(paths::MASTER);
        if master.as_deref() == Some("m:2223") { Ok(()) } else { Err(format!("{master:?}")) }
    });
    bench.tree.expect(waiting, "done");
    bench.tree.wait_nothing_assigned();
    assert_eq!(bench.lines("runs"), [format!("{task} 1"), "next".to_owned()]);
    well(&[&ours, &worker]);
}

#[test]
fn a_worker_and_client_played_by_hand_are_served_by_our_master() {
    let bench = Bench::shared("m1m3");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    let hand = ZkCli::connect(&bench.zk);
    says(&hand, r#"create -s /tasks/task- "cmd""#, "Created /tasks/task-0000000000");
    says(&hand, r#"create -e /workers/hand "hand:2224""#, "Created /workers/hand");
    // Without its node below /assign nothing can be assigned to it, and that is no harm.
    stays("waiting", SECOND / 2, || if tree.assigned().is_empty() { Ok(()) } else { Err(tree.picture().to_string()) });
    says(&hand, r#"create /assign/hand """#, "Created /assign/hand");
    hand.run("ls -w /assign/hand");
    wait_for("the first assignment", || {
        let assigned = hand.run("ls -w /assign/hand");
        if assigned == "[task-0000000000]" { Ok(()) } else { Err(assigned) }
    });
    // One slot: the second waits for the first.
    says(&hand, r#"create -s /tasks/task- "cmd""#, "Created /tasks/task-0000000001");
    stays("one at a time", SECOND / 2, || {
        let assigned = tree.assigned();
        if assigned == ["hand/task-0000000000"] { Ok(()) } else { Err(format!("{assigned:?}")) }
    });
    says(&hand, r#"create /tasks/task-0000000000/status "done""#, "Created /tasks/task-0000000000/status");
    hand.wait_output("type:NodeChildrenChanged path:/assign/hand");
    wait_for("the second instead of the first", || {
        let assigned = tree.assigned();
        if assigned == ["hand/task-0000000001"] { Ok(()) } else { Err(format!("{assigned:?}")) }
    });
    says(&hand, r#"create /tasks/task-0000000001/status "failed""#, "Created /tasks/task-0000000001/status");
    tree.wait_nothing_assigned();
    for (task, word) in [(0, "done"), (1, "failed")] {
        says(&hand, &format!("get /tasks/task-000000000{task}/status"), word);
        says(&hand, &format!("ls /tasks/task-000000000{task}"), "[status]");
    }

    // It leaves with a task in hand, which then goes to one of ours.
    let left = tree.submit(&bench.note("runs", "$ZK_TASK_ATTEMPT"));
    wait_for("the third assignment", || {
        let assigned = tree.assigned();
        if assigned.is_empty() { Err(tree.picture()) } else { Ok(()) }
    });
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    hand.close();
    tree.expect(left, "done");
    let lost = Attempt::decode(&tree.data(&paths::attempt(&left, 1)).expect("a record of the attempt"));
    assert_eq!((lost.kind, lost.meta.unwrap().worker.unwrap().as_str()), (Some(AttemptKind::Lost), "hand"));
    assert_eq!(bench.lines("runs"), ["2"]);
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}

#[test]
fn a_master_and_worker_played_by_hand_serve_our_client() {
    let bench = Bench::shared("m1m2");
    let tree = &bench.tree;
    tree.make(&[]);
    let hand = ZkCli::connect(&bench.zk);
    // The client is there before anybody else.
    let client = bench.client().args(["--connect-timeout", "30s", "run", "--", "do as I say"]).start();
    says(&hand, r#"create -e /master "master2.example.com:2223""#, "Created /master");
    for znode in ["/workers", "/tasks", "/assign"] {
        says(&hand, &format!(r#"create {znode} """#), &format!("Created {znode}"));
    }
    says(&hand, r#"create -e /workers/hand "hand:2224""#, "Created /workers/hand");
    says(&hand, r#"create /assign/hand """#, "Created /assign/hand");
    for (number, word, code) in [(0, "done", 0), (1, "failed", 1), (2, "finito", 1)] {
        let later;
        let client = if number == 0 {
            &client
        } else {
            later = bench.client().args(["run", "--", "do as I say"]).start();
            &later
        };
        let task = format!("task-000000000{number}");
        wait_for("the task", || tree.text(&format!("/tasks/{task}")).ok_or_else(|| client.stderr()));
        says(&hand, &format!(r#"create /assign/hand/{task} """#), &format!("Created /assign/hand/{task}"));
        says(&hand, &format!(r#"create /tasks/{task}/status "{word}""#), &format!("Created /tasks/{task}/status"));
        assert_eq!(client.wait_exit(20 * SECOND).code(), Some(code), "{word}: {}", client.stderr());
        assert_eq!(client.stdout(), "");
    }
}

#[test]
fn a_worker_by_hand_that_is_away_for_a_moment_keeps_its_task() {
    let bench = Bench::shared("moment");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    master.wait_stderr("took over");
    let hand = |there: bool| {
        if there { tree.create_ephemeral("/workers/hand", "hand:1") } else { tree.delete("/workers/hand") }
    };
    hand(true);
    tree.create("/assign/hand", "");
    let task = tree.submit("true");
    let assigned = || tree.assigned() == [format!("hand/{task}")];
    wait_for("the assignment", || if assigned() { Ok(()) } else { Err(tree.picture()) });
    let fence = tree.stat(&format!("/assign/hand/{task}")).unwrap().czxid;
    let other = bench.worker("w").start();
    tree.wait_worker("w");
    for _ in 0..3 {
        hand(false);
        hand(true);
        stays("assigned", SECOND / 2, || if assigned() { Ok(()) } else { Err(tree.picture().to_string()) });
    }
    assert_eq!(tree.stat(&format!("/assign/hand/{task}")).unwrap().czxid, fence, "the same assignment");
    tree.create(&paths::status(&task), "done");
    tree.wait_nothing_assigned();
    assert_eq!(tree.children(&paths::task(&task)), ["status"]);
    well(&[&master, &other]);
}

#[test]
fn whatever_a_client_creates_by_hand_is_run_or_refused_with_the_reason() {
    let bench = Bench::shared("m3");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let hand = ZkCli::connect(&bench.zk);
    let file = bench.path("runs");
    let command = format!("echo sequential >> {}", file.display());
    says(&hand, &format!(r#"create -s /tasks/task- "{command}""#), "Created /tasks/task-0000000000");
    // A number of somebody's own.
    let command = format!("echo numbered >> {}", file.display());
    says(&hand, &format!(r#"create /tasks/task-0000000077 "{command}""#), "Created /tasks/task-0000000077");
    // Nothing at all.
    says(&hand, "create -s /tasks/task-", "Created /tasks/task-0000000002");
    for (task, word) in [("task-0000000000", "done"), ("task-0000000077", "done"), ("task-0000000002", "failed")] {
        let status = tree.wait_status(task.parse().unwrap());
        assert_eq!(status.outcome.word(), word, "{task}");
    }
    let why = hand.run("get /tasks/task-0000000002/status");
    assert!(why.contains("the command is empty"), "{why}");
    let mut runs = bench.lines("runs");
    runs.sort();
    assert_eq!(runs, ["numbered", "sequential"]);
    // One that waits is cancelled and one that is done is removed.
    says(&hand, "create /tasks/task-0000000000/cancel", "Created /tasks/task-0000000000/cancel");
    says(&hand, "deleteall /tasks/task-0000000000", "");
    says(&hand, "ls /tasks", "[task-0000000002, task-0000000077]");
    well(&[&master, &worker]);
}

#[test]
fn a_task_numbered_by_hand_does_not_stand_in_the_way_of_those_that_come_after_it() {
    let bench = Bench::shared("number");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    // ZooKeeper counts the children ever created, and refuses a name that is taken, again and again.
    for number in [2, 3] {
        tree.create(&format!("/tasks/task-000000000{number}"), bench.note("runs", "by hand"));
    }
    for _ in 0..4 {
        let client = bench.client().args(["run", "--", &bench.note("runs", "ours")]).start();
        assert_eq!(client.wait_exit(20 * SECOND).code(), Some(0), "{}", client.stderr());
    }
    assert_eq!(bench.lines("runs").iter().filter(|line| *line == "ours").count(), 4);
    well(&[&master, &worker]);
}

#[test]
fn the_order_of_start_does_not_matter() {
    let orders = ["mwt", "mtw", "wmt", "wtm", "twm", "tmw", "at once"];
    for order in orders {
        let bench = Bench::shared(&order.replace(' ', "-"));
        let tree = &bench.tree;
        let mut daemons: Vec<Daemon> = Vec::new();
        let submit =
            || bench.client().args(["--connect-timeout", "30s", "run", "--", &bench.note("runs", order)]).start();
        let mut task = None;
        if order == "at once" {
            daemons.push(bench.worker("w").start());
            daemons.push(bench.master("m:2223").start());
            daemons.push(bench.master("m2:2223").start());
            task = Some(submit());
        }
        for (i, role) in order.chars().enumerate().filter(|_| order != "at once") {
            match role {
                'm' => {
                    daemons.push(bench.master("m:2223").start());
                    daemons[daemons.len() - 1].wait_stderr("took over");
                }
                'w' => {
                    daemons.push(bench.worker("w").start());
                    let daemon = &daemons[daemons.len() - 1];
                    let master = order[..i].contains('m');
                    daemon.wait_stderr(if master { "registered" } else { "waiting for a master to set up /workers" });
                }
                _ => task = Some(submit()),
            }
        }
        let client = task.expect("each order has a client");
        assert_eq!(client.wait_exit(30 * SECOND).code(), Some(0), "{order}: {}", client.stderr());
        assert_eq!(bench.lines("runs"), [order]);
        tree.wait_nothing_assigned();
        well(&daemons.iter().collect::<Vec<_>>());
    }
}

#[test]
fn an_assignment_by_hand_is_run_beside_those_of_our_master() {
    let bench = Bench::shared("assignment");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    let worker = bench.worker("w").args(["--slots", "1"]).start();
    tree.wait_worker("w");
    // Our master has no place for it.
    let task = tree.submit_with(&bench.note("runs", "$ZK_TASK_ATTEMPT"), |meta| {
        meta.require.insert("gpu".to_owned(), "1".to_owned());
    });
    let running = tree.submit(&format!("{}; {}", bench.note("runs", "first"), bench.gate("go")));
    bench.wait_lines("runs", 1);
    tree.create(&format!("/assign/w/{task}"), "");
    stays("waiting for a slot", SECOND / 2, || {
        if bench.lines("runs").len() == 1 { Ok(()) } else { Err(format!("{:?}", bench.lines("runs"))) }
    });
    bench.open("go");
    tree.expect(running, "done");
    let status = tree.expect(task, "done").meta.unwrap();
    assert_eq!((status.attempt, status.worker.unwrap().as_str()), (Some(1), "w"));
    assert_eq!(bench.lines("runs"), ["first", "1"]);
    tree.wait_nothing_assigned();
    well(&[&master, &worker]);
}

#[test]
fn a_status_by_hand_is_final_before_the_task_starts_and_while_it_runs() {
    let bench = Bench::shared("status");
    let tree = &bench.tree;
    let master = bench.master("m:2223").start();
    let early = tree.submit(&bench.note("runs", "early"));
    tree.create(&paths::status(&early), "done");
    let worker = bench.worker("w").start();
    let late = tree.submit(&bench.tick("ticks", "never"));
    bench.wait_tick("ticks", 1);
    tree.create(&paths::status(&late), "failed");
    worker.wait_stderr("somebody else wrote its status");
    tree.wait_nothing_assigned();
    // A follower in the same chain of tasks goes by what is there.
    let next = tree.submit_with(&bench.note("runs", "next"), |meta| meta.after = vec![early]);
    tree.expect(next, "done");
    let never = tree.submit_with(&bench.note("runs", "never"), |meta| meta.after = vec![late]);
    tree.expect(never, "cancelled");
    assert_eq!((tree.status(early).as_deref(), tree.status(late).as_deref()), (Some("done"), Some("failed")));
    assert_eq!(bench.lines("runs"), ["next"]);
    assert_eq!(count(&worker, "reported task=task-0000000001"), 0);
    well(&[&master, &worker]);
}

#[test]
fn a_new_primary_puts_a_half_finished_tree_in_order_without_running_anything_twice() {
    let bench = Bench::shared("half");
    let tree = &bench.tree;
    tree.make(&["/workers", "/tasks", "/assign", "/assign/ghost"]);
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let task = |name: &str, gate: &str| {
        let note = bench.note("runs", name);
        tree.submit(&if gate.is_empty() { note } else { format!("{note}; {}", bench.gate(gate)) })
    };
    let running = task("running", "go");
    let finished = task("finished", "");
    let status_there = task("never", "");
    let of_ghost = task("of a ghost", "");
    let done_by_ghost = task("never", "");
    let pending = task("pending", "");
    tree.create(&paths::status(&status_there), "done");
    tree.create(&paths::status(&done_by_ghost), "failed");
    for (worker, task) in
        [("w", running), ("w", finished), ("w", status_there), ("ghost", of_ghost), ("ghost", done_by_ghost)]
    {
        tree.create(&format!("/assign/{worker}/{task}"), "");
    }
    for path in ["/assign/w/task-0000000099", "/assign/ghost/task-0000000098"] {
        tree.create(path, "");
    }
    tree.expect(finished, "done");
    bench.wait_lines("runs", 2);
    assert_eq!(tree.assigned().len(), 7, "nobody clears away");

    let masters = ["m1:1", "m2:1"].map(|address| bench.master(address).start());
    tree.expect(of_ghost, "done");
    tree.expect(pending, "done");
    wait_for("what is left to run", || {
        let assigned = tree.assigned();
        if assigned == [format!("w/{running}")] { Ok(()) } else { Err(format!("{assigned:?}")) }
    });
    assert_eq!(tree.status(running), None);
    bench.open("go");
    tree.expect(running, "done");
    tree.wait_nothing_assigned();
    assert_eq!(tree.status(status_there).as_deref(), Some("done"));
    assert_eq!(tree.status(done_by_ghost).as_deref(), Some("failed"));
    let mut runs = bench.lines("runs");
    runs.sort();
    assert_eq!(runs, ["finished", "of a ghost", "pending", "running"], "each once");
    assert_eq!(tree.children(&paths::task(&of_ghost)), ["attempt-1", "status"]);
    assert_eq!(tree.children(&paths::task(&running)), ["status"]);
    well(&[&masters[0], &masters[1], &worker]);
}
