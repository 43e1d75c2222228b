//! A session ends when it is closed or dropped: on the server if that answers, here in any case.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use e2e::{Act, Fake, Server, stays, wait_for, wait_within};
use zk_session::{Error, Event, Kind, Reason};

use crate::{Leftovers, SECOND, alone, ms, open, wait_ended};

#[test]
fn a_close_is_confirmed_and_its_ephemerals_are_gone() {
    let server = Server::shared();
    let connect = server.chroot("close");
    let (witness, _mailbox) = open(&connect, SECOND * 10);
    witness.ensure("/").unwrap();
    let (session, mailbox) = open(&connect, SECOND * 10);
    session.own("/own", b"").unwrap();
    session.create("/ephemeral", b"", Kind::Ephemeral).unwrap();

    let start = Instant::now();
    assert!(session.close(SECOND));
    println!("closed in {:?}", start.elapsed());
    assert!(start.elapsed() < SECOND);
    assert_eq!(witness.children("/", false).unwrap().unwrap(), Vec::<String>::new());

    let reason = session.over().expect("it is over");
    assert_eq!(session.stat("/", false), Err(Error::Lost(reason)));
    assert!(!session.close(SECOND), "there is nothing to close any more");
    let events = mailbox.within(ms(200));
    assert!(matches!(events[..], [Event::Lost { session: 1, .. }]), "{events:?}");
}

#[test]
fn a_close_takes_no_longer_than_it_may() {
    alone("close::a_close_takes_no_longer_than_it_may", || {
        let mut server = Server::start();
        let before = Leftovers::at_rest();
        let (session, mailbox) = open(&server.connect_string(), SECOND * 10);
        server.pause();
        let start = Instant::now();
        assert!(!session.close(ms(500)));
        let took = start.elapsed();
        println!("closed in {took:?} while the server was frozen");
        assert!((ms(500)..SECOND).contains(&took), "{took:?}");
        assert_eq!(mailbox.lost().1, Reason::Closed);
        drop(session);
        before.wait_gone();
    });
}

#[test]
fn a_dropped_session_is_closed() {
    let server = Server::shared();
    let connect = server.chroot("drop");
    let (witness, _mailbox) = open(&connect, SECOND * 10);
    witness.ensure("/").unwrap();
    let (session, mailbox) = open(&connect, SECOND * 10);
    session.own("/own", b"").unwrap();
    let copy = session.clone();
    drop(session);
    assert!(copy.stat("/own", false).unwrap().is_some(), "a clone is the same session");
    let start = Instant::now();
    drop(copy);
    assert!(start.elapsed() < ms(100), "nobody waits for it");
    wait_within(SECOND * 2, "the ephemeral to go", || match witness.stat("/own", false).unwrap() {
        None => Ok(()),
        Some(stat) => Err(format!("{stat:?}")),
    });
    println!("gone {:?} after the drop", start.elapsed());
    mailbox.lost();
}

#[test]
fn a_session_dropped_while_its_server_is_down_does_not_live_on() {
    let timeout = ms(1500);
    let mut server = Server::start();
    let (session, _mailbox) = open(&server.connect_string(), timeout);
    let (another, _another_mailbox) = open(&server.connect_string(), timeout);
    let ids = [session.own("/own", b"").unwrap().0, another.own("/another", b"").unwrap().0];
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            barrier.wait();
            drop(another);
        });
        barrier.wait();
        server.kill();
    });
    drop(session);
    server.restart();
    for id in ids {
        // The server gives each session its whole timeout again when it starts.
        wait_ended(&server, timeout + SECOND * 2, id);
    }
    let (witness, _witness_mailbox) = open(&server.connect_string(), timeout);
    assert_eq!(witness.children("/", false).unwrap().unwrap(), ["zookeeper"]);
}

#[test]
fn a_session_dropped_while_its_connection_breaks_does_not_connect_again() {
    let fake = Fake::start(Act::Handshake);
    let barrier = Barrier::new(2);
    for round in 0..20 {
        let (session, _mailbox) = open(&fake.connect_string(), SECOND * 10);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                if round % 2 == 0 {
                    fake.stop_answering(); // also what is said to close the session
                }
                fake.drop_connections();
            });
            barrier.wait();
            drop(session);
        });
        fake.answer_again();
    }
    let before = fake.connections();
    assert_eq!(before, 40, "each session asked once and connected once");
    wait_for("no connection", || match fake.open_connections() {
        0 => Ok(()),
        open => Err(open.to_string()),
    });
    stays("nobody connects", SECOND, || match fake.connections() {
        now if now == before => Ok(()),
        now => Err(format!("{now} connections after {before}")),
    });
}
