//! A loss is known in time, no caller is blocked for longer, and nothing is left of the session.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::{Act, Fake, Host, Hosts, Server, available, stays, wait_for};
use zk_session::{Error, Event, Kind, Reason, Session};

use crate::{Client, LIMIT, Leftovers, SECOND, alone, created, has_ended, ms, open};

const TIMEOUT: Duration = SECOND.saturating_mul(2);

/// Threads that write until they are told that the session is over; each returns when that was.
fn callers(session: &Session, count: usize, path: &str) -> Vec<JoinHandle<(Instant, Error)>> {
    let write_on = |session: &Session, path: &str| {
        loop {
            if let Err(error) = session.write(path, b"again", None) {
                return (Instant::now(), error);
            }
        }
    };
    let spawn = |_| {
        let (session, path) = (session.clone(), path.to_owned());
        thread::spawn(move || write_on(&session, &path))
    };
    (0..count).map(spawn).collect()
}

/// Two sessions: one that does nothing, and one with a node of its own and four callers.
struct Pair {
    idle: Client,
    busy: Client,
    callers: Vec<JoinHandle<(Instant, Error)>>,
}

/// How long after the failure the losses were known, and the callers were back.
#[derive(Debug)]
struct Known {
    idle: (Duration, Reason),
    busy: (Duration, Reason),
    callers: Vec<Duration>,
}

impl Pair {
    fn open(connect: &str) -> Pair {
        let (idle, busy) = (open(connect, TIMEOUT), open(connect, TIMEOUT));
        assert_eq!(idle.0.timeout(), TIMEOUT);
        busy.0.own("/own", b"").expect("a node of its own");
        let callers = callers(&busy.0, 4, "/own");
        Pair { idle, busy, callers }
    }

    /// What becomes of them from `failure` on.
    fn known(self, failure: Instant) -> Known {
        let since = |at: Instant| at.saturating_duration_since(failure);
        let known = |(_, mailbox): &Client| {
            let (at, reason) = mailbox.lost();
            (since(at), reason)
        };
        let (idle, busy) = (known(&self.idle), known(&self.busy));
        let back = |caller: JoinHandle<(Instant, Error)>| {
            let (at, error) = caller.join().expect("a caller does not panic");
            assert_eq!(error, Error::Lost(busy.1));
            since(at)
        };
        let callers = self.callers.into_iter().map(back).collect();
        for session in [&self.idle.0, &self.busy.0] {
            assert!(session.over().is_some());
            let asked = Instant::now();
            assert!(matches!(session.stat("/", false), Err(Error::Lost(_))));
            assert!(asked.elapsed() < ms(100), "a lost session answers at once");
        }
        Known { idle, busy, callers }
    }
}

impl Known {
    /// Whoever waits for an answer that never comes knows of it before the server may expire the session.
    #[track_caller]
    fn check_silence(&self) {
        let silent = Reason::Silent(TIMEOUT * 2 / 3);
        for (known, reason) in [self.idle, self.busy] {
            assert_eq!(reason, silent);
            assert!((TIMEOUT.mul_f64(0.3)..=TIMEOUT.mul_f64(0.9)).contains(&known), "{self:?}");
        }
        assert!(self.callers.iter().all(|back| *back <= TIMEOUT), "no caller is blocked for longer: {self:?}");
    }
}

#[test]
fn a_frozen_server_is_noticed_before_it_may_expire_the_session() {
    let mut server = Server::start();
    let pair = Pair::open(&server.connect_string());
    let failure = Instant::now();
    server.pause();
    let known = pair.known(failure);
    println!("frozen server, timeout {TIMEOUT:?}: {known:?}");
    known.check_silence();
}

#[test]
fn a_killed_server_is_noticed_at_once() {
    let mut server = Server::start();
    let pair = Pair::open(&server.connect_string());
    let failure = Instant::now();
    server.kill();
    let known = pair.known(failure);
    println!("killed server: {known:?}");
    assert!(known.idle.0 < SECOND && known.busy.0 < SECOND, "{known:?}");
    assert_eq!((known.idle.1, known.busy.1), (Reason::Disconnected, Reason::Disconnected));
    assert!(known.callers.iter().all(|back| *back < SECOND), "{known:?}");
}

#[test]
fn a_silent_link_is_noticed_before_the_server_may_expire_the_session() {
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let server = Server::start_in(&hosts[0]);
    let pair = hosts[1].run(|| Pair::open(&server.connect_string()));
    let failure = Instant::now();
    hosts[1].link_down();
    let known = pair.known(failure);
    println!("silent link, timeout {TIMEOUT:?}: {known:?}");
    known.check_silence();
}

#[test]
fn a_server_that_ends_the_session_ends_it_here() {
    let fake = Fake::start(Act::Handshake);
    let (session, mailbox) = open(&fake.connect_string(), SECOND * 10);
    fake.drop_connections();
    assert_eq!(mailbox.lost().1, Reason::Disconnected);
    assert_eq!(session.over(), Some(Reason::Disconnected));
    assert_eq!(mailbox.within(ms(300)).len(), 0, "it is said once");
}

#[test]
fn thirty_losses_leave_no_thread_and_no_descriptor() {
    alone("loss::thirty_losses_leave_no_thread_and_no_descriptor", || {
        let fake = Fake::start(Act::Handshake);
        let before = Leftovers::at_rest();
        let mut most = before;
        let mut lose = |timeout, reason: Reason, failure: &dyn Fn(&[Client])| {
            let open = |number: usize| {
                let path = format!("/{reason:?}-{number}");
                let client = open(&fake.connect_string(), timeout);
                client.0.own(&path, b"").expect("a node of its own");
                let callers = callers(&client.0, 2, &path);
                (client, callers)
            };
            let (clients, callers): (Vec<Client>, Vec<_>) = (0..10).map(open).unzip();
            most = most.max(Leftovers::now());
            failure(&clients);
            for (_, mailbox) in &clients {
                assert_eq!(mailbox.lost().1, reason);
            }
            for caller in callers.into_iter().flatten() {
                caller.join().expect("a caller does not panic");
            }
            drop(clients);
            before.wait_gone();
        };
        lose(SECOND * 10, Reason::Disconnected, &|_| fake.drop_connections());
        lose(ms(900), Reason::Silent(ms(600)), &|_| fake.stop_answering());
        fake.answer_again();
        let closed: Vec<Client> = (0..10).map(|_| open(&fake.connect_string(), SECOND * 10)).collect();
        for (session, mailbox) in &closed {
            assert!(session.close(SECOND));
            mailbox.lost();
        }
        drop(closed);
        before.wait_gone();
        wait_for("no connection", || match fake.open_connections() {
            0 => Ok(()),
            open => Err(open.to_string()),
        });
        println!("30 losses: {before:?} before, up to {most:?}, {:?} after", Leftovers::now());
    });
}

#[test]
fn those_who_wait_for_their_turn_are_told_as_well() {
    let fake = Fake::start(Act::Handshake);
    let (session, mailbox) = open(&fake.connect_string(), ms(900));
    fake.stop_answering();
    let create = |_| {
        let session = session.clone();
        thread::spawn(move || session.create("/large", &[b'x'; 20_000], Kind::Persistent))
    };
    let creates: Vec<_> = (0..40).map(create).collect();
    let (at, reason) = mailbox.lost();
    for create in creates {
        assert_eq!(create.join().unwrap(), Err(Error::Lost(reason)));
    }
    let later = at.elapsed();
    println!("40 requests of 20 kB back {later:?} after the loss");
    assert!(later < ms(500), "{later:?}");
}

#[test]
fn a_lost_session_never_connects_again() {
    let fake = Fake::start(Act::Handshake);
    let sessions: Vec<_> = (0..3).map(|_| open(&fake.connect_string(), SECOND * 10)).collect();
    let before = fake.connections();
    fake.drop_connections();
    let tried = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (session, mailbox) in &sessions {
            mailbox.lost();
            scope.spawn(|| {
                let end = Instant::now() + SECOND;
                while Instant::now() < end {
                    assert!(matches!(session.create("/x", b"", Kind::Persistent), Err(Error::Lost(_))));
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        stays("nobody connects", SECOND, || match fake.connections() {
            now if now == before => Ok(()),
            now => Err(format!("{now} connections after {before}")),
        });
    });
    println!("0 connections in 1 s, {} requests refused", tried.into_inner());
}

/// What the kernel of a host has in its send buffers.
fn unsent_bytes(host: &Host) -> u64 {
    let table = host.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp")).expect("a table of connections");
    let unsent = |line: &str| u64::from_str_radix(line.split_whitespace().nth(4)?.split(':').next()?, 16).ok();
    table.lines().skip(1).filter_map(unsent).sum()
}

/// Waits until so much can't be sent.
#[track_caller]
pub(crate) fn wait_unsent(host: &Host, bytes: u64) {
    wait_for(&format!("{bytes} bytes that can't be sent"), || match unsent_bytes(host) {
        unsent if unsent >= bytes => Ok(()),
        unsent => Err(unsent.to_string()),
    });
}

#[test]
fn what_was_on_its_way_at_the_loss_is_never_executed_later() {
    const SESSIONS: usize = 8;
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let server = Server::start_in(&hosts[0]);
    let connect = server.connect_string();
    // On the server these live on for a third of the timeout after they are lost here, and the link is up again.
    let open_here = |timeout| hosts[1].run(|| open(&connect, timeout));
    let sessions: Vec<_> = (0..SESSIONS).map(|_| open_here(SECOND * 3)).collect();
    let own = |(at, (session, _)): (usize, &Client)| session.own(&format!("/own-{at}"), b"").unwrap().0;
    let ids: Vec<i64> = sessions.iter().enumerate().map(own).collect();

    hosts[1].link_down();
    let mut creates = Vec::new();
    for (at, (session, _)) in sessions.iter().enumerate() {
        for number in 0..3 {
            let (session, path) = (session.clone(), format!("/stale-{at}-{number}"));
            creates.push(thread::spawn(move || session.create(&path, b"", Kind::Persistent)));
        }
        // The kernel repeats what it can't deliver after ever longer pauses, so these come at different times.
        stays("the link is down", ms(120), || Ok(()));
    }
    wait_unsent(&hosts[1], 3 * 50);
    for (_, mailbox) in &sessions {
        assert!(matches!(mailbox.lost().1, Reason::Silent(_)));
    }
    for create in creates {
        assert!(matches!(create.join().unwrap(), Err(Error::Lost(_))));
    }
    let living = ids.iter().filter(|id| !has_ended(&server.transactions(), **id)).count();
    hosts[1].link_up();
    let (next, _mailbox) = open_here(SECOND * 10);
    println!("{living} of {SESSIONS} sessions lived on the server when the link was up again");
    wait_for("the end of the old sessions", || {
        let txns = server.transactions();
        if ids.iter().all(|id| has_ended(&txns, *id)) { Ok(()) } else { Err("some live".to_owned()) }
    });
    assert_eq!(created(&server.transactions(), "/stale"), Vec::<String>::new());
    let names = next.children("/", false).unwrap().unwrap();
    assert!(!names.iter().any(|name| name.contains("stale")), "{names:?}");
}

#[test]
fn a_watch_of_a_lost_session_is_not_set_again() {
    let fake = Server::shared();
    let connect = fake.chroot("watch-of-a-lost-session");
    let (other, _other_mailbox) = open(&connect, SECOND * 10);
    other.ensure("/").unwrap();
    let (session, mailbox) = open(&connect, SECOND * 10);
    let id = session.own("/own", b"").unwrap();
    session.children("/", true).unwrap();
    session.stat("/x", true).unwrap();
    assert!(other.end_earlier(id).unwrap());
    let seen = std::iter::from_fn(|| mailbox.events.recv_timeout(LIMIT).ok()).map(|(_, event)| event);
    let before: Vec<Event> = seen.take_while(|event| !matches!(event, Event::Lost { .. })).collect();
    assert!(before.len() <= 1, "at most that its own node is gone: {before:?}");

    let _again = mailbox.open(&crate::config(&connect, SECOND * 10)).unwrap();
    other.create("/x", b"", Kind::Persistent).unwrap();
    let events = mailbox.within(ms(300));
    assert!(events.is_empty(), "{events:?}");
}
