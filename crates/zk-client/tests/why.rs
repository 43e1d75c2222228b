//! `why` on a real tree: each cause is produced by hand, with no daemon there that could act upon it.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

mod common;

use zk_session::Kind;

use common::{Tree, W};

/// A task with these fields in its metadata.
#[track_caller]
fn task(tree: &Tree, fields: &str) -> String {
    tree.task(format!("x\n{{\"zk\":1{fields}}}"))
}

/// Assigns with the true czxid and more fields; those that come last count.
#[track_caller]
fn assign(tree: &Tree, worker: &str, task: &str, fence: i64, fields: &str) {
    let czxid = tree.session.stat(&format!("/tasks/{task}"), false).unwrap().unwrap().czxid;
    let meta = format!("\n{{\"zk\":1,\"fence\":{fence},\"attempt\":1,\"task\":{czxid}{fields}}}");
    tree.session.ensure(&format!("/assign/{worker}")).unwrap();
    tree.create(&format!("/assign/{worker}/{task}"), meta);
}

fn of(instance: &str) -> String {
    format!(",\"instance\":\"{instance}\"")
}

/// The state, the cause, and what the sentence says.
#[track_caller]
fn check(tree: &Tree, task: &str, state: &str, cause: &str, says: &str) {
    let json = tree.prints(&["why", "--json", task], 0);
    let begin = format!("{{\"task\":\"{task}\",\"state\":\"{state}\",\"cause\":\"{cause}\",\"why\":\"");
    assert!(json.starts_with(&begin), "{begin} is not {json}");
    let text = tree.prints(&["why", task], 0);
    assert!(text.starts_with(&format!("{task} is {state}: ")) && text.lines().count() == 1, "{text}");
    assert!(text.contains(says), "{says:?} is not in {text}");
}

#[test]
fn a_task_that_is_not_there_is_an_error() {
    let tree = Tree::new("none");
    let (code, stdout, stderr) = tree.run(&["why", "task-0000000007"]);
    assert_eq!((code, stdout.as_str()), (125, ""));
    assert_eq!(stderr, "zk-client: cannot explain the task: no such task: task-0000000007\n");
}

#[test]
fn with_every_master_dead_the_tree_still_tells() {
    let tree = Tree::new("dead");
    let first = tree.task("x");
    check(&tree, &first, "pending", "no_master", "start zk-master); apart from that: no worker is registered");
    tree.worker("w");
    check(&tree, &first, "pending", "no_master", "apart from that: it is its turn");
    let second = task(&tree, &format!(",\"after\":[\"{first}\"]"));
    check(&tree, &second, "pending", "no_master", &format!("apart from that: it waits for {first} to be done"));
    assign(&tree, "w", &first, 50, &of(W));
    tree.create("/epoch", "50");
    check(&tree, &first, "running", "running", "w has it since ");
    tree.ephemeral("/master", "by-hand:1");
    check(&tree, &second, "pending", "master_by_hand", "\"by-hand:1\", played by hand");
}

#[test]
fn whatever_a_status_says_is_the_end() {
    let tree = Tree::reign("finished");
    let task = tree.task("x");
    tree.finish(&task, "failed\n{\"zk\":1,\"exit_code\":3,\"worker\":\"w\",\"attempt\":2}");
    check(&tree, &task, "failed", "finished", "the command exited with 3, on w (attempt 2), ");
    let task = tree.task("x");
    tree.finish(&task, "ended\u{1b}[2J");
    let text = tree.prints(&["why", &task], 0);
    assert!(text.contains("ended\\u{1b}[2J"), "{text:?}");
}

#[test]
fn what_nobody_can_run_waits_for_whom() {
    let tree = Tree::reign("nobody");
    let plain = tree.task("x");
    check(&tree, &plain, "pending", "no_worker", "no worker is registered");
    tree.worker("w");
    let on = task(&tree, ",\"on\":\"v\",\"require\":{\"disk\":\"hdd\"}");
    check(&tree, &on, "pending", "none_matches", "--on v --require disk=hdd");
    check(&tree, &plain, "pending", "next", "assign it to w now");
    tree.session.write("/assign/w", b"{\"zk\":1,\"drain\":true}", None).unwrap();
    check(&tree, &plain, "pending", "out_of_service", "w is drained");
    tree.session.delete("/assign/w", None).unwrap();
    check(&tree, &plain, "pending", "out_of_service", "w has no node below /assign yet");
}

#[test]
fn full_workers_are_told_from_the_queue() {
    let tree = Tree::reign("queue");
    tree.worker("w");
    let (first, second) = (tree.task("x"), tree.task("x"));
    // One has the slot, one waits ahead of it.
    check(&tree, &second, "pending", "next", "");
    let third = tree.task("x");
    check(&tree, &third, "pending", "queued", "before it in the queue: 2");
    let urgent = task(&tree, ",\"priority\":5");
    check(&tree, &urgent, "pending", "next", "");
    check(&tree, &second, "pending", "queued", "before it in the queue: 2");
    assign(&tree, "w", &first, 50, &of(W));
    check(&tree, &second, "pending", "busy", "workers that match (1) are busy; before it in the queue: 1");
    let later = task(&tree, ",\"priority\":-1");
    assign(&tree, "w", &later, 50, &of(W));
    check(&tree, &later, "assigned", "not_taken_up", "earlier tasks have the slots there (1)");
    check(&tree, &first, "running", "running", "w has it since ");
    tree.finish(&first, "done");
    check(&tree, &later, "running", "running", "w has it since ");
}

#[test]
fn what_is_about_to_end_says_as_what() {
    let tree = Tree::reign("ending");
    tree.worker("w");
    let task_of = |data: &[u8]| tree.task(data);
    check(&tree, &task_of(b"\xff"), "pending", "undecodable", "the data is not UTF-8");
    check(&tree, &task_of(b"x\n{\"zk\":2}"), "pending", "undecodable", "format 2 is not known here");
    let cancelled = tree.task("x");
    tree.create(&format!("/tasks/{cancelled}/cancel"), "");
    check(&tree, &cancelled, "pending", "cancelled_unstarted", "before it started");
    let used_up = task(&tree, ",\"max_attempts\":2");
    for attempt in ["attempt-1", "attempt-2"] {
        tree.create(&format!("/tasks/{used_up}/{attempt}"), "lost");
    }
    check(&tree, &used_up, "pending", "attempts_used_up", "attempt 2 of 2");
    let failed = tree.task("x");
    tree.finish(&failed, "failed");
    let after = task(&tree, &format!(",\"after\":[\"{failed}\"]"));
    check(&tree, &after, "pending", "predecessor_failed", &format!("{failed}, which it waited for, is failed"));
    let waiting = task(&tree, &format!(",\"after\":[\"{after}\"]"));
    check(&tree, &waiting, "pending", "waiting", &format!("it waits for {after} to be done"));
    let copies = [task(&tree, ",\"submit\":\"s\""), task(&tree, ",\"submit\":\"s\"")];
    check(&tree, &copies[1], "pending", "duplicate", &format!("a second copy of {}", copies[0]));
    check(&tree, &copies[0], "pending", "next", "");
}

#[test]
fn what_somebody_has_says_whether_it_will_run() {
    let tree = Tree::reign("held");
    let held = |worker: &str, fence, fields: &str| {
        let task = tree.task("x");
        assign(&tree, worker, &task, fence, fields);
        task
    };
    let reconnecting = held("w", 50, &of(W));
    check(&tree, &reconnecting, "assigned", "worker_lost", "its worker w was lost");
    tree.live(W, "worker");
    check(&tree, &reconnecting, "assigned", "reconnecting", "it is between two sessions");
    tree.worker("w");
    check(&tree, &reconnecting, "running", "running", "w has it since ");
    check(&tree, &held("w", 49, &of(W)), "assigned", "fenced", "a master that is deposed assigned it to w");
    check(&tree, &held("w", 50, &format!("{},\"returned\":true", of(W))), "pending", "returned", "w gave it back");
    check(
        &tree,
        &held("w", 50, ",\"instance\":\"00000000000000cc\""),
        "assigned",
        "worker_lost",
        "its worker w was lost",
    );
    let earlier = tree.task("x");
    tree.create(
        &format!("/assign/w/{earlier}"),
        format!("\n{{\"zk\":1,\"fence\":50,\"attempt\":1,\"task\":1{}}}", of(W)),
    );
    check(&tree, &earlier, "pending", "earlier_task", "an earlier task of this name at w");
    tree.create(&format!("/tasks/{reconnecting}/cancel"), "");
    check(&tree, &reconnecting, "running", "cancelling", "w is to stop it");

    let by_hand = held("h", 50, "");
    check(&tree, &by_hand, "assigned", "hand_worker_missing", "h, registered by hand, has it and is missing");
    tree.ephemeral("/workers/h", "h:1");
    check(&tree, &by_hand, "running", "assigned_by_hand", "h, registered by hand, has it since ");
    tree.create("/assign/h/task-0000000000", "");
    let once = task(&tree, ",\"no_requeue\":true");
    assign(&tree, "gone", &once, 50, &of("00000000000000cc"));
    check(
        &tree,
        &once,
        "assigned",
        "worker_lost",
        "may not start again: its worker gone was lost, and it may start once only",
    );
}

/// Nothing is written by looking, and nothing that cannot be understood stands in the way.
#[test]
fn looking_writes_nothing_and_minds_nothing() {
    let tree = Tree::reign("strange");
    let task = tree.task("x");
    tree.create("/assign/not a name", b"\xff");
    tree.session.ensure("/assign/w").unwrap();
    tree.create("/assign/w/strange", b"");
    tree.create("/workers/bad", b"\xff");
    tree.create("/live/x", b"");
    tree.session.create("/tasks/task-0000000099", b"x", Kind::Ephemeral).unwrap();
    let before = tree.session.stat("/tasks", false).unwrap();
    let live = tree.session.children("/live", false).unwrap();
    check(&tree, &task, "pending", "no_worker", "");
    assert_eq!(tree.session.stat("/tasks", false).unwrap(), before);
    assert_eq!(tree.session.children("/live", false).unwrap(), live);
}
