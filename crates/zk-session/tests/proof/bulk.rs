//! The second connection of a session that has much to read or to write: what goes over it, and that it ends with the session.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use e2e::{Ensemble, Port, Server, Txn, TxnKind, Wire, wait_for};
use zk_session::{Config, Error, Kind, Session, Write, end_session};

use crate::{SECOND, config, counter, created, ms, open, open_with};

/// More is asked for than any connection is worth: from here on there is one.
#[track_caller]
fn make_busy(session: &Session) {
    let paths: Vec<String> = (0..100).map(|number| format!("/nothing-{number}")).collect();
    assert!(session.read_each(&paths, |read| read.is_none()).into_iter().all(|read| read == Ok(true)));
    assert!(session.has_bulk());
}

fn create(path: &str) -> Write {
    Write::Create { path: path.to_owned(), data: b"data".to_vec(), sequential: false }
}

fn delete(path: &str, version: Option<i32>) -> Write {
    Write::Delete { path: path.to_owned(), version }
}

#[test]
fn a_transaction_is_carried_out_as_a_whole_or_not_at_all_and_no_other_is_held_up_by_it() {
    let connect = Server::shared().chroot("transactions");
    let (session, mailbox) = open(&connect, SECOND * 40);
    session.ensure("/there").unwrap();
    session.own("/own", b"").unwrap();
    make_busy(&session);
    let sequential = Write::Create { path: "/n-".to_owned(), data: Vec::new(), sequential: true };
    let written = Write::Data { path: "/there".to_owned(), data: b"new".to_vec(), version: Some(0) };
    let outdated = Write::Data { path: "/there".to_owned(), data: b"newer".to_vec(), version: Some(7) };
    let made = session.commit_each(&[
        vec![create("/a"), create("/a/b")],
        vec![create("/c"), create("/there")],
        vec![sequential.clone(), sequential],
        vec![written],
        vec![create("/d"), delete("/missing", None)],
        vec![create("/e"), delete("/e", Some(0))],
        vec![outdated],
        Vec::new(),
    ]);
    let there = |path: &str| session.read(path, false).unwrap().map(|(data, _)| data);
    let numbers: Vec<String> = session.children("/", false).unwrap().unwrap();
    let numbers = numbers.iter().filter(|name| name.starts_with("n-")).count();
    let made = made.unwrap();
    assert_eq!(made[0], Some(vec!["/a".to_owned(), "/a/b".to_owned()]));
    assert_eq!(made[1], None);
    let two = made[2].as_deref().expect("both are made");
    assert!(two[0] < two[1] && two.iter().all(|path| there(path) == Some(Vec::new())) && numbers == 2, "{two:?}");
    assert_eq!(made[3..], [Some(vec![]), None, Some(vec!["/e".to_owned()]), None, Some(vec![])]);
    assert_eq!(there("/a/b").as_deref(), Some(&b"data"[..]));
    assert_eq!(there("/there").as_deref(), Some(&b"new"[..]));
    assert_eq!(["/c", "/d", "/e"].map(there), [const { None }; 3]);
    assert_eq!(session.over(), None);
    assert!(mailbox.within(ms(100)).is_empty());
}

#[test]
fn what_is_done_while_transactions_are_on_their_way_is_done_once_and_before_they_are_answered() {
    let mut server = Server::start();
    let (session, _mailbox) = open(&server.chroot("meanwhile"), SECOND * 40);
    session.ensure("/there").unwrap();
    session.own("/own", b"").unwrap();
    let transactions = [vec![create("/a")], vec![create("/there")]];
    let mut calls = 0;
    // There is no second connection yet.
    assert_eq!(session.commit_each_while(&transactions, || calls += 1), (Ok(vec![None, None]), ()));
    make_busy(&session);
    // Nothing is answered until this is done. One that stands in the way of the other is tried alone: that is a second round.
    server.pause();
    let (made, ()) = session.commit_each_while(&transactions, || {
        server.resume();
        calls += 1;
    });
    assert_eq!(made, Ok(vec![Some(vec!["/a".to_owned()]), None]));
    // What is asked meanwhile goes over the session itself.
    let paths = vec!["/a".to_owned(); 100];
    let (made, read) = session.commit_each_while(&[vec![create("/b")]], || {
        calls += 1;
        session.read_each(&paths, |read| read.is_some())
    });
    assert_eq!((made, read), (Ok(vec![Some(vec!["/b".to_owned()])]), vec![Ok(true); 100]));
    assert_eq!(calls, 3);
}

#[test]
fn what_takes_long_while_transactions_are_on_their_way_costs_no_session() {
    let (session, mailbox) = open(&Server::shared().chroot("slow"), SECOND * 12);
    session.ensure("/").unwrap();
    session.own("/own", b"").unwrap();
    make_busy(&session);
    // Longer than any answer may take, which is 2/3 of the timeout.
    let (made, news) = session.commit_each_while(&[vec![create("/a")]], || mailbox.within(ms(8200)));
    assert_eq!((made, news.len(), session.over()), (Ok(vec![Some(vec!["/a".to_owned()])]), 0, None));
}

#[test]
fn what_few_requests_can_do_needs_no_second_connection_and_one_that_is_not_used_is_closed() {
    let server = Server::start();
    // The question is one as well.
    let connections = || counter(&server, "zk_num_alive_connections") - 1;
    let (session, _mailbox) = open(&server.chroot("idle"), SECOND * 6);
    session.ensure("/").unwrap();
    session.own("/own", b"").unwrap();
    assert_eq!(session.commit_each(&[vec![create("/a")], vec![create("/b")]]), Ok(vec![None, None]));
    assert_eq!(session.stat("/a", false), Ok(None));
    assert_eq!((session.has_bulk(), connections()), (false, 1));
    make_busy(&session);
    assert_eq!(connections(), 2);
    wait_for("the second connection to be closed", || match connections() {
        1 => Ok(()),
        more => Err(more.to_string()),
    });
    assert_eq!((session.has_bulk(), session.over()), (false, None));
    // And it comes again.
    make_busy(&session);
    assert_eq!(session.commit_each(&[vec![create("/a")]]), Ok(vec![Some(vec!["/a".to_owned()])]));
    session.close(SECOND * 5);
    wait_for("no connection to be left", || match connections() {
        0 => Ok(()),
        more => Err(more.to_string()),
    });
}

#[test]
fn what_a_transaction_makes_has_the_same_acl_as_anything() {
    let connect = Server::shared().chroot("transaction-acl");
    let digest = Some("ann:secret".to_owned());
    let (ann, _mailbox) = open_with(&Config { digest, ..config(&connect, SECOND * 40) });
    ann.ensure("/").unwrap();
    ann.own("/own", b"").unwrap();
    make_busy(&ann);
    assert_eq!(ann.commit_each(&[vec![create("/hers")]]), Ok(vec![Some(vec!["/hers".to_owned()])]));
    assert_eq!(ann.is_protected("/hers"), Ok(Some(true)));
    let (anyone, _mailbox) = open(&connect, SECOND * 40);
    anyone.own("/hers/not", b"").unwrap_err();
    assert_eq!(anyone.read("/hers", false), Err(Error::NotAllowed("/hers".to_owned())));
}

/// What is to be proved of the fence: without the own node nothing is carried out.
#[test]
fn without_its_own_node_a_session_writes_nothing_over_the_second_connection() {
    let connect = Server::shared().chroot("lease");
    // The next heartbeat would make the node again.
    let (session, _mailbox) = open(&connect, SECOND * 40);
    session.ensure("/").unwrap();
    session.own("/own", b"").unwrap();
    make_busy(&session);
    assert_eq!(session.commit_each(&[vec![create("/a")]]), Ok(vec![Some(vec!["/a".to_owned()])]));
    let (hand, _mailbox) = open(&connect, SECOND * 40);
    hand.delete("/own", None).unwrap();
    let several = [vec![create("/b")], vec![create("/c")], vec![delete("/a", None)]];
    assert_eq!(session.commit_each(&several), Ok(vec![None, None, None]));
    assert_eq!(["/a", "/b", "/c"].map(|path| hand.stat(path, false).unwrap().is_some()), [true, false, false]);
}

/// The fence, as `fence` proves it for the session itself, by the server's own log.
#[test]
fn no_transaction_is_carried_out_after_the_end_of_its_session() {
    let server = Server::shared();
    let connect = server.chroot("transactions-end");
    let chroot = connect.strip_prefix(&server.connect_string()).unwrap();
    let (hand, _hand_mailbox) = open(&connect, SECOND * 40);
    hand.ensure("/").unwrap();
    for round in 0..10 {
        let (session, mailbox) = open(&connect, SECOND * 40);
        let id = session.own("/own", b"").unwrap();
        make_busy(&session);
        let writer = thread::spawn({
            let session = session.clone();
            move || {
                let transaction =
                    |number| vec![create(&format!("/n-{round}-{number}")), create(&format!("/m-{round}-{number}"))];
                let mut number = 0;
                loop {
                    let transactions: Vec<Vec<Write>> = (number..number + 200).map(transaction).collect();
                    number += 200;
                    match session.commit_each(&transactions) {
                        Ok(_) => {}
                        Err(error) => return error,
                    }
                }
            }
        });
        let below = format!("{chroot}/n-{round}-");
        wait_for("some transactions", || match created(&server.transactions(), &below).len() {
            some if some > 20 => Ok(()),
            few => Err(few.to_string()),
        });
        assert!(end_session(&config(&connect, SECOND * 40), id).unwrap());
        mailbox.lost();
        assert!(matches!(writer.join().unwrap(), Error::Lost(_)));
        let log = server.transactions();
        let end =
            log.iter().position(|txn| txn.session == id.0 && txn.kind == TxnKind::CloseSession).expect("it ended");
        let (before, after) = log.split_at(end);
        assert!(created(before, &below).len() > 20, "round {round}");
        assert_eq!(created(after, &below), Vec::<String>::new(), "round {round}");
        // They are told as what the session itself did.
        let ours = |txn: &&Txn| matches!(&txn.kind, TxnKind::Create { path, .. } if path.starts_with(&below));
        assert!(before.iter().filter(ours).all(|txn| txn.session == id.0));
    }
}

#[test]
fn a_server_that_dies_under_a_transaction_ends_the_session() {
    let mut server = Server::start();
    let (session, mailbox) = open(&server.chroot("dies"), SECOND * 30);
    session.ensure("/").unwrap();
    session.own("/own", b"").unwrap();
    make_busy(&session);
    let transactions: Vec<Vec<Write>> = (0..50_000).map(|number| vec![create(&format!("/n-{number}"))]).collect();
    let committed = thread::scope(|scope| {
        let committing = scope.spawn(|| session.commit_each(&transactions));
        server.kill();
        committing.join().unwrap()
    });
    assert!(matches!(committed, Err(Error::Lost(_))), "{committed:?}");
    mailbox.lost();
    assert!(session.over().is_some());
    let again = session.create("/n", b"", Kind::Persistent);
    assert!(matches!(again, Err(Error::Lost(_))), "{again:?}");
}

/// Servers before 3.6 end a connection over several reads in one request, so such a connection must not be used for anything else.
#[test]
fn a_server_that_knows_no_several_reads_is_asked_one_by_one() {
    let wire = Wire::to(&Server::shared().connect_string());
    let (session, mailbox) = open(&(wire.connect_string() + "/no-reads"), SECOND * 40);
    session.ensure("/there").unwrap();
    session.own("/own", b"").unwrap();
    let paths = ["/there", "/nothing"].map(str::to_owned);
    for _ in 0..50 {
        let read = session.read_each(&paths, |read| read.is_some());
        assert_eq!(read, [Ok(true), Ok(false)]);
        assert_eq!(session.commit_each(&[vec![create("/there/a")]]), Ok(vec![None]));
    }
    assert_eq!(session.read_in_order(&[paths[..1].to_vec()]).map(|read| read.len()), [1]);
    assert_eq!((session.over(), mailbox.within(ms(100)).len()), (None, 0));
}

/// An address that leads to one server after the other: the first connection asks whether it serves, the second is the session.
fn balancer(servers: Vec<String>) -> Port {
    let port = Port::claim();
    let listener = TcpListener::bind(port.address()).expect("a claimed port is free");
    thread::spawn(move || {
        for (client, server) in listener.incoming().flatten().zip(servers.into_iter().cycle()) {
            let server = TcpStream::connect(server).expect("it runs");
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                thread::spawn(move || {
                    io::copy(&mut from, &mut to).ok(); // the test may be over
                    to.shutdown(Shutdown::Both)
                });
            }
        }
    });
    port
}

#[test]
fn behind_an_address_of_several_servers_the_second_connection_is_to_that_of_the_session_or_there_is_none() {
    let ensemble = Ensemble::start();
    let [first, second] = [0, 1].map(|at| ensemble.servers[at].connect_string());
    for (servers, same) in
        [(vec![first.clone(), first.clone(), second.clone()], false), (vec![first, second.clone(), second], true)]
    {
        let port = balancer(servers);
        let (session, _mailbox) = open(&(port.address() + "/balanced"), SECOND * 40);
        session.ensure("/").unwrap();
        session.own(&format!("/own-{same}"), b"").unwrap();
        let paths: Vec<String> = (0..100).map(|number| format!("/nothing-{number}")).collect();
        assert!(session.read_each(&paths, |read| read.is_none()).into_iter().all(|read| read == Ok(true)));
        assert_eq!((session.has_bulk(), session.over()), (same, None));
    }
}
