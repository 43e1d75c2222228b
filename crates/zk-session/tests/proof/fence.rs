//! No request is ever executed for a session but the one it was made on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use e2e::{Daemon, Server, Setup, Txn, TxnKind, stays, wait_for};
use zookeeper::{Acl, CreateMode, WatchedEvent, ZooKeeper};

use crate::{SECOND, has_ended, ms, open, this_program};
use zk_session::{Event, Kind};

const TIMEOUT: Duration = SECOND;

/// Which client the writer below uses, and where.
const CLIENT: &str = "FENCE_CLIENT";
const CONNECT: &str = "FENCE_CONNECT";

/// A process that holds a lock and writes with four threads as fast as it can, whatever the answers are. It never ends.
#[test]
fn inner_writes_whatever_the_answers_are() {
    let (Ok(client), Ok(connect)) = (std::env::var(CLIENT), std::env::var(CONNECT)) else { return };
    let tried = AtomicU64::new(0);
    let for_ever = |write: &(dyn Fn(u64) + Sync)| {
        loop {
            write(tried.fetch_add(1, Ordering::Relaxed));
        }
    };
    let report = || println!("tried {}", tried.load(Ordering::Relaxed));
    let name = std::process::id();
    let (lock, counter, item) = (format!("/lock-{name}"), format!("/counter-{name}"), format!("/item-{name}-"));
    if client == "session" {
        let (session, mailbox) = open(&connect, TIMEOUT);
        session.create(&counter, b"", Kind::Persistent).unwrap();
        println!("owner {}", session.own(&lock, b"").unwrap().0);
        let write = |number: u64| {
            let data = number.to_string();
            if number.is_multiple_of(2) {
                session.create(&item, data.as_bytes(), Kind::Sequential).ok();
            } else {
                session.write(&counter, data.as_bytes(), None).ok();
            }
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| for_ever(&write));
            }
            loop {
                if let Ok((_, Event::Lost { reason, .. })) = mailbox.events.recv_timeout(ms(20)) {
                    println!("lost: {reason}");
                }
                report();
            }
        });
    } else {
        let zookeeper = ZooKeeper::connect(&connect, TIMEOUT, |_: WatchedEvent| {}).unwrap();
        let acl = || Acl::open_unsafe().clone();
        zookeeper.create(&counter, Vec::new(), acl(), CreateMode::Persistent).unwrap();
        zookeeper.create(&lock, Vec::new(), acl(), CreateMode::Ephemeral).unwrap();
        println!("owner {}", zookeeper.exists(&lock, false).unwrap().unwrap().ephemeral_owner);
        let write = |number: u64| {
            let data = number.to_string().into_bytes();
            if number.is_multiple_of(2) {
                zookeeper.create(&item, data, acl(), CreateMode::PersistentSequential).ok();
            } else {
                zookeeper.set_data(&counter, data, None).ok();
            }
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| for_ever(&write));
            }
            let (_sender, never) = mpsc::channel::<()>();
            loop {
                never.recv_timeout(ms(20)).ok();
                report();
            }
        });
    }
}

struct Writer {
    process: Daemon,
    /// The session that owns its lock.
    owner: i64,
}

impl Writer {
    /// Starts several at once, and returns when each has written something.
    fn start(client: &str, server: &Server, count: usize) -> Vec<Writer> {
        let start = |_| {
            let process = this_program("fence::inner_writes_whatever_the_answers_are");
            process.env(CLIENT, client).env(CONNECT, server.connect_string()).start()
        };
        let processes: Vec<Daemon> = (0..count).map(start).collect();
        let introduce = |process: Daemon| {
            process.wait_stdout("tried ");
            let stdout = process.stdout();
            let owner = stdout.split_once("owner ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            Writer { process, owner: owner.expect("it says who it is") }
        };
        let writers: Vec<Writer> = processes.into_iter().map(introduce).collect();
        wait_for("writes of all", || {
            let txns = server.transactions();
            if writers.iter().all(|writer| writer.writes(&txns) > 20) { Ok(()) } else { Err("too few".to_owned()) }
        });
        writers
    }

    fn tried(&self) -> u64 {
        let stdout = self.process.stdout();
        stdout.lines().rev().find_map(|line| line.strip_prefix("tried ")?.parse().ok()).unwrap_or(0)
    }

    /// Its writes that were executed while it owned the lock.
    fn writes(&self, txns: &[Txn]) -> usize {
        let write = |txn: &&Txn| matches!(txn.kind, TxnKind::Create { .. } | TxnKind::SetData { .. });
        txns.iter().filter(|txn| txn.session == self.owner).filter(write).count()
    }
}

/// What was executed for a session after its end, or for one that nobody knows. A refused request is not.
fn trespasses(txns: &[Txn], known: &BTreeSet<i64>) -> Vec<Txn> {
    let mut ended = BTreeSet::new();
    let is_one = |txn: &&Txn| {
        let trespass = !known.contains(&txn.session) || ended.contains(&txn.session);
        if txn.kind == TxnKind::CloseSession {
            ended.insert(txn.session);
        }
        trespass && !matches!(txn.kind, TxnKind::Error(_))
    };
    txns.iter().filter(is_one).cloned().collect()
}

/// A server that is quick to notice that a session has expired.
fn strict_server() -> Server {
    Server::start_with(&Setup { tick: ms(100), ..Setup::default() }, None)
}

/// Freezes writers until their sessions have ended, and lets each go on as soon as that is so; the first one only after its
/// timeout + 0.5 s. Returns the sessions that there were when all stood still.
///
/// The bare crate opens a new session only within the second after the timeout, so nothing here takes longer than it must.
fn freeze_past_the_end(server: &Server, writers: &[Writer]) -> BTreeSet<i64> {
    let frozen = Instant::now();
    for writer in writers {
        writer.process.pause();
    }
    let known = server.transactions().iter().map(|txn| txn.session).collect();
    let mut waiting: Vec<(usize, &Writer)> = writers.iter().enumerate().collect();
    wait_for("the end of all sessions", || {
        let txns = server.transactions();
        waiting.retain(|(at, writer)| {
            let goes_on = has_ended(&txns, writer.owner) && (*at > 0 || frozen.elapsed() > TIMEOUT + ms(500));
            if goes_on {
                writer.process.resume();
            }
            !goes_on
        });
        if waiting.is_empty() { Ok(()) } else { Err(format!("{} live", waiting.len())) }
    });
    known
}

#[test]
fn no_write_of_an_expired_session_gets_through() {
    let server = strict_server();
    let writers = Writer::start("session", &server, 3);
    let tried: Vec<u64> = writers.iter().map(Writer::tried).collect();
    let known = freeze_past_the_end(&server, &writers);
    for (writer, before) in writers.iter().zip(&tried) {
        writer.process.wait_stdout("lost: ");
        wait_for("it to try again and again", || match writer.tried() {
            now if now > before + 1000 => Ok(()),
            now => Err(format!("{now} after {before}")),
        });
    }
    stays("nothing is executed for them", ms(500), || match trespasses(&server.transactions(), &known) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    });
    let txns = server.transactions();
    for (writer, before) in writers.iter().zip(tried) {
        let (writes, later) = (writer.writes(&txns), writer.tried() - before);
        println!("{writes} writes before the end of the session, 0 of {later} after it");
    }
}

/// The control: what the test above sees if nothing is done.
#[test]
fn the_bare_crate_writes_on_after_its_session_has_ended() {
    // On a machine that is too busy it comes too late to open a new session, and gives up.
    for round in 1..=5 {
        let server = strict_server();
        let writers = Writer::start("bare crate", &server, 3);
        let known = freeze_past_the_end(&server, &writers);
        let end = Instant::now() + SECOND;
        let count =
            wait_for("writes after the end of a session", || match trespasses(&server.transactions(), &known).len() {
                few if few < 10 && Instant::now() < end => Err(few.to_string()),
                count => Ok(count),
            });
        println!("round {round}: {count} transactions after the end of the session");
        if count >= 10 {
            return;
        }
    }
    panic!("nothing was executed after the end of any session");
}
