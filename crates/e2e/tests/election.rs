//! Who is the primary, and how fast the next one follows.

mod common;

use std::time::{Duration, Instant};

use common::{Bench, SECOND, count, inner, kill_inner, well};
use e2e::{Daemon, Server, Signal, TxnKind, stays, wait_for, wait_within};
use rustix::process::kill_process;
use znode_paths::paths;

/// What a master takes itself for, by its log.
fn reigns(master: &Daemon) -> bool {
    let ended = count(master, "not the primary any more") + count(master, "session lost, was primary");
    count(master, "primary fence=") > ended
}

/// The masters of a bench, by address.
struct Candidates<'a> {
    bench: &'a Bench,
    running: Vec<(String, Daemon)>,
}

impl Candidates<'_> {
    fn start<'a>(bench: &'a Bench, number: usize, timeout: &str) -> Candidates<'a> {
        let start = |i| {
            let address = format!("m{i}:2223");
            let daemon = bench.master(&address).args(["--session-timeout", timeout]).start();
            (address, daemon)
        };
        Candidates { bench, running: (0..number).map(start).collect() }
    }

    /// Waits until one of those that run has taken over, and takes it out of them.
    #[track_caller]
    fn take_primary(&mut self, limit: Duration) -> (String, Daemon) {
        let at = wait_within(limit, "a primary", || {
            let master = self.bench.tree.text(paths::MASTER);
            let found = self.running.iter().position(|(address, _)| Some(address) == master.as_ref());
            found.ok_or_else(|| format!("{master:?}"))
        });
        self.running[at].1.wait_stderr("took over");
        self.running.remove(at)
    }

    #[track_caller]
    fn check_standing_by(&self) {
        stays("standing by", Duration::from_millis(300), || {
            let reigning: Vec<_> = self.running.iter().filter(|(_, daemon)| reigns(daemon)).map(|(a, _)| a).collect();
            if reigning.is_empty() { Ok(()) } else { Err(format!("{reigning:?} reign as well")) }
        });
    }
}

/// A reign in the server's log: from the creation of `/master` to its end.
struct Reign {
    from_ms: i64,
    to_ms: Option<i64>,
}

/// All reigns of a chroot; panics where two overlap.
#[track_caller]
fn reigns_in(server: &Server, zk: &str) -> Vec<Reign> {
    let path = format!("{}/master", zk.strip_prefix(&server.connect_string()).expect("a chroot of this server"));
    let mut reigns: Vec<Reign> = Vec::new();
    let mut owner = None;
    for txn in server.transactions() {
        let ends = match &txn.kind {
            TxnKind::Create { path: created, .. } if *created == path => {
                assert_eq!(owner, None, "two reigns at once");
                owner = Some(txn.session);
                reigns.push(Reign { from_ms: txn.time_ms, to_ms: None });
                false
            }
            TxnKind::CloseSession => owner == Some(txn.session),
            TxnKind::Delete { path: deleted } => *deleted == path,
            _ => false,
        };
        if ends {
            owner = None;
            reigns.last_mut().expect("it has an owner").to_ms = Some(txn.time_ms);
        }
    }
    reigns
}

/// From the end of each reign to the beginning of the next, in milliseconds by the server's clock.
fn gaps_ms(reigns: &[Reign]) -> Vec<i64> {
    reigns.windows(2).map(|pair| pair[1].from_ms - pair[0].to_ms.expect("it ended before the next began")).collect()
}

#[test]
fn of_five_masters_one_is_the_primary_and_another_follows_at_once_when_it_is_stopped() {
    let bench = Bench::shared("stopped");
    let mut masters = Candidates::start(&bench, 5, "10s");
    for _ in 0..4 {
        let (_, primary) = masters.take_primary(10 * SECOND);
        masters.check_standing_by();
        let asked = Instant::now();
        primary.signal(Signal::TERM);
        let (address, next) = masters.take_primary(2 * SECOND);
        println!("stopped: {address} has taken over after {} ms", asked.elapsed().as_millis());
        assert!(primary.wait_exit(5 * SECOND).success());
        masters.running.push((address, next));
    }
    let reigns = reigns_in(Server::shared(), &bench.zk);
    assert_eq!(reigns.len(), 5, "nobody else was primary in between");
    println!("stopped: /master was missing for {:?} ms", gaps_ms(&reigns));
    well(&masters.running.iter().map(|(_, daemon)| daemon).collect::<Vec<_>>());
}

#[test]
fn of_five_masters_another_follows_within_the_session_timeout_when_the_primary_is_killed() {
    let bench = Bench::shared("killed");
    let mut masters = Candidates::start(&bench, 5, "2s");
    for _ in 0..3 {
        let (_, primary) = masters.take_primary(10 * SECOND);
        masters.check_standing_by();
        let killed = Instant::now();
        primary.kill();
        // The timeout, the ticks of the server by which it rounds, and a busy machine.
        let (address, next) = masters.take_primary(4 * SECOND);
        println!("killed: {address} has taken over after {} ms", killed.elapsed().as_millis());
        masters.running.push((address, next));
    }
    let reigns = reigns_in(Server::shared(), &bench.zk);
    assert_eq!(reigns.len(), 4, "nobody else was primary in between");
    println!("killed: /master was missing for {:?} ms", gaps_ms(&reigns));
    well(&masters.running.iter().map(|(_, daemon)| daemon).collect::<Vec<_>>());
}

#[test]
fn when_a_primary_dies_on_a_live_host_another_follows_at_once_and_it_comes_back_as_a_standby() {
    let bench = Bench::shared("dies");
    let mut masters = Candidates::start(&bench, 2, "30s");
    for _ in 0..3 {
        let (dead, primary) = masters.take_primary(20 * SECOND);
        let killed = Instant::now();
        kill_inner(&primary);
        let (address, next) = masters.take_primary(2 * SECOND);
        println!("dies: {address} has taken over after {} ms", killed.elapsed().as_millis());
        masters.running.push((address, next));
        primary.wait_stderr("standing by");
        masters.running.push((dead, primary));
    }
    well(&masters.running.iter().map(|(_, daemon)| daemon).collect::<Vec<_>>());
}

#[test]
fn a_primary_that_was_frozen_finds_itself_deposed_and_has_changed_nothing() {
    let server = Server::start();
    let bench = Bench::at(server.chroot("frozen"));
    let tree = &bench.tree;
    let mut masters = Candidates::start(&bench, 2, "2s");
    let (_, old) = masters.take_primary(10 * SECOND);
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let before = tree.submit(&bench.note("runs", "before"));
    tree.expect(before, "done");
    let owner = tree.stat(paths::MASTER).unwrap().owner.unwrap().0;
    let frozen = inner(&old);
    kill_process(frozen, Signal::STOP).unwrap();
    // What it would do as soon as it goes on: it does not know yet that it is not the primary any more.
    let tasks: Vec<_> = (0..20).map(|i| tree.submit(&bench.note("runs", &i.to_string()))).collect();
    let (address, new) = masters.take_primary(10 * SECOND);
    kill_process(frozen, Signal::CONT).ok(); // unless its guard has lost patience
    old.wait_stderr(&format!("standing by primary={address:?}"));
    assert_eq!(tree.wait_all(&tasks), 20);
    assert_eq!(bench.lines("runs").len(), 21, "each once");
    let log = server.transactions();
    let end = log.iter().position(|txn| txn.session == owner && txn.kind == TxnKind::CloseSession);
    let late = log[end.expect("its session expired")..].iter().skip(1).filter(|txn| txn.session == owner).count();
    assert_eq!(late, 0, "nothing of its session was carried out after its end");
    well(&[&old, &new, &worker]);
}

#[test]
fn of_two_masters_with_the_same_address_one_is_the_primary() {
    let bench = Bench::shared("twins");
    let [a, b] = [(); 2].map(|()| bench.master("same:2223").start());
    wait_for("a primary", || if reigns(&a) || reigns(&b) { Ok(()) } else { Err(String::new()) });
    wait_for("the other to stand by", || {
        if [&a, &b].iter().any(|m| count(m, "standing by") > 0) { Ok(()) } else { Err(String::new()) }
    });
    stays("one primary", SECOND, || if reigns(&a) != reigns(&b) { Ok(()) } else { Err("both or none".to_owned()) });
    let (primary, standby) = if reigns(&a) { (a, b) } else { (b, a) };
    primary.signal(Signal::TERM);
    standby.wait_stderr("primary fence=");
    assert!(primary.wait_exit(5 * SECOND).success());
    assert_eq!(bench.tree.text(paths::MASTER).as_deref(), Some("same:2223"));
    well(&[&standby]);
}

#[test]
fn a_standby_watches_and_does_not_try() {
    let server = Server::start();
    let bench = Bench::at(server.chroot("quiet"));
    let mut masters = Candidates::start(&bench, 3, "10s");
    let (_, _primary) = masters.take_primary(10 * SECOND);
    for (_, standby) in &masters.running {
        standby.wait_stderr("standing by");
    }
    let refused = || server.transactions().iter().filter(|txn| matches!(txn.kind, TxnKind::Error(_))).count();
    let before = refused();
    stays("calm", 2 * SECOND, || {
        let now = refused();
        if now == before { Ok(()) } else { Err(format!("{} refused requests", now - before)) }
    });
}

#[test]
fn when_master_is_deleted_by_hand_there_is_one_primary_again_and_each_task_runs_once() {
    let bench = Bench::shared("deleted");
    let tree = &bench.tree;
    let mut masters = Candidates::start(&bench, 3, "10s");
    let primary = masters.take_primary(10 * SECOND);
    masters.running.push(primary);
    let worker = bench.worker("w").start();
    tree.wait_worker("w");
    let mut tasks = Vec::new();
    for round in 0..3 {
        let submit = |i| tree.submit(&bench.note("runs", &format!("{round} {i}")));
        tasks.extend((0..10).map(submit));
        let deleted = Instant::now();
        tree.delete(paths::MASTER);
        tasks.extend((10..20).map(submit));
        wait_within(2 * SECOND, "exactly one primary", || {
            let master = tree.text(paths::MASTER);
            let reigning: Vec<_> =
                masters.running.iter().filter(|(_, m)| reigns(m)).map(|(address, _)| address).collect();
            match (reigning[..].as_ref(), master) {
                ([one], Some(master)) if **one == master => Ok(()),
                (_, master) => Err(format!("{reigning:?} {master:?}")),
            }
        });
        println!("deleted: one primary after {} ms", deleted.elapsed().as_millis());
        assert_eq!(tree.wait_all(&tasks), tasks.len());
    }
    let mut runs = bench.lines("runs");
    runs.sort();
    runs.dedup();
    assert_eq!((runs.len(), bench.lines("runs").len()), (60, 60), "each once");
    let all: Vec<&Daemon> = masters.running.iter().map(|(_, daemon)| daemon).chain([&worker]).collect();
    well(&all);
}

#[test]
fn two_masters_that_die_in_the_middle_of_assigning_leave_every_task_to_the_third_and_each_runs_once() {
    let bench = Bench::shared("twice");
    let tree = &bench.tree;
    let mut masters = Candidates::start(&bench, 3, "1s");
    let (_, first) = masters.take_primary(10 * SECOND);
    let workers = ["a", "b"].map(|name| bench.worker(name).start());
    tree.wait_worker("a");
    tree.wait_worker("b");
    let tasks: Vec<_> = (0..200).map(|i| tree.submit(&bench.note("runs", &i.to_string()))).collect();
    bench.wait_lines("runs", 20);
    first.kill();
    let (_, second) = masters.take_primary(10 * SECOND);
    let before = bench.lines("runs").len();
    assert!(before < 180, "the first did too much for a test: {before}");
    bench.wait_lines("runs", before + 20);
    second.kill();
    assert_eq!(tree.wait_all(&tasks), 200);
    let mut runs = bench.lines("runs");
    assert_eq!(runs.len(), 200, "no command ran twice");
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 200, "each command ran");
    tree.wait_nothing_assigned();
    well(&[&workers[0], &workers[1], &masters.running[0].1]);
}
