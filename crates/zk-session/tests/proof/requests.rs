//! Requests: their size, their answers, what they may, and many of them at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use e2e::{Server, Txn, TxnKind};
use zk_session::{Change, Config, Error, Event, Kind, MAX_REQUEST, in_parallel};

use crate::{Mailbox, SECOND, config, counter, ms, open, open_with};

#[test]
fn a_request_that_is_too_large_is_not_sent() {
    let connect = Server::shared().chroot("too-large");
    let (session, mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    let fits = |path: &str| -> usize {
        // What is left of the limit beside the path: found by asking, with requests that are not sent.
        let too_large =
            |bytes: usize| matches!(session.write(path, &vec![0; bytes], None), Err(Error::TooLarge { .. }));
        (MAX_REQUEST - 1000..MAX_REQUEST).rfind(|bytes| !too_large(*bytes)).expect("something fits")
    };
    let largest = fits("/n");
    println!("{largest} bytes fit of {MAX_REQUEST}");
    assert!(largest > MAX_REQUEST - 500);
    for bytes in [largest + 1, MAX_REQUEST * 3] {
        let error = session.create("/n", &vec![b'x'; bytes], Kind::Persistent).unwrap_err();
        assert!(
            matches!(&error, Error::TooLarge { path, bytes: size } if path == "/n" && *size > MAX_REQUEST),
            "{error}"
        );
    }
    assert_eq!(session.stat("/n", false).unwrap(), None);
    session.create("/n", &vec![b'x'; largest], Kind::Persistent).unwrap();
    assert_eq!(session.read("/n", false).unwrap().unwrap().0.len(), largest);
    session.write("/n", &vec![b'y'; largest], Some(0)).unwrap();
    assert_eq!(session.over(), None);
    assert!(mailbox.within(ms(100)).is_empty());
}

#[test]
fn answers_say_what_the_caller_can_do() {
    let connect = Server::shared().chroot("answers");
    let (session, _mailbox) = open(&connect, SECOND * 10);
    let path = |path: &str| path.to_owned();
    // The chroot is not there yet.
    assert_eq!(session.create("/a", b"", Kind::Persistent), Err(Error::NoNode(path("/a"))));
    assert_eq!(session.children("/", false), Ok(None));
    session.ensure("/a/b/c").unwrap();
    session.ensure("/a/b/c").unwrap();
    assert_eq!(session.children("/", false), Ok(Some(vec![path("a")])));

    assert_eq!(session.create("/a", b"", Kind::Persistent), Err(Error::NodeExists(path("/a"))));
    assert_eq!(session.delete("/a", None), Err(Error::NotEmpty(path("/a"))));
    assert_eq!(session.delete("/x", None), Err(Error::NoNode(path("/x"))));
    assert_eq!(session.write("/a", b"", Some(7)), Err(Error::BadVersion(path("/a"))));
    assert_eq!(session.delete("/a/b/c", Some(7)), Err(Error::BadVersion(path("/a/b/c"))));
    assert_eq!(session.read("/x", false), Ok(None));
    assert_eq!(session.stat("/x", false), Ok(None));
    session.create("/e", b"", Kind::Ephemeral).unwrap();
    let refused = session.create("/e/child", b"", Kind::Persistent).unwrap_err();
    assert!(matches!(&refused, Error::Refused { path, .. } if path == "/e/child"), "{refused}");

    assert_eq!(session.create("/a/s-", b"1", Kind::Sequential).as_deref(), Ok("/a/s-0000000001"));
    assert_eq!(session.write("/a", b"new", Some(0)).unwrap().version, 1);
    let (data, stat) = session.read("/a", false).unwrap().unwrap();
    assert_eq!((data.as_slice(), stat.version, stat.children, stat.owner), (&b"new"[..], 1, 2, None));
    session.delete("/a/b/c", Some(0)).unwrap();
    assert_eq!(session.over(), None);
}

#[test]
fn a_chroot_of_several_levels_is_made() {
    let connect = format!("{}/deep/er", Server::shared().chroot("ensure"));
    let (session, _mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    assert_eq!(session.children("/", false), Ok(Some(Vec::new())));
}

#[test]
fn watches_tell_paths_below_the_chroot() {
    let connect = Server::shared().chroot("watches");
    let (session, mailbox) = open(&connect, SECOND * 10);
    let (other, _other_mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    #[track_caller]
    fn check(mailbox: &Mailbox, path: &str, change: Change) {
        match mailbox.event() {
            Event::Watch { path: seen, change: kind } => assert_eq!((seen.as_str(), kind), (path, change)),
            other => panic!("{other:?} instead of {change:?} at {path}"),
        }
    }
    assert_eq!(session.children("/", true), Ok(Some(Vec::new())));
    other.create("/a", b"", Kind::Persistent).unwrap();
    check(&mailbox, "/", Change::Children);

    assert_eq!(session.stat("/a/b", true), Ok(None));
    other.create("/a/b", b"", Kind::Persistent).unwrap();
    check(&mailbox, "/a/b", Change::Created);

    session.read("/a/b", true).unwrap().unwrap();
    other.write("/a/b", b"new", None).unwrap();
    check(&mailbox, "/a/b", Change::Data);

    session.stat("/a/b", true).unwrap().unwrap();
    other.delete("/a/b", None).unwrap();
    check(&mailbox, "/a/b", Change::Deleted);

    // Each fires once, and none is set where nothing is there to read.
    assert_eq!(session.read("/a/b", true), Ok(None));
    assert_eq!(session.children("/a/b", true), Ok(None));
    other.create("/a/b", b"", Kind::Persistent).unwrap();
    other.write("/a/b", b"newer", None).unwrap();
    let events = mailbox.within(ms(200));
    assert!(events.is_empty(), "{events:?}");
}

/// How often the log has each datum that was created below a path.
fn executions(txns: &[Txn], below: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for txn in txns {
        if let TxnKind::Create { path, data } = &txn.kind
            && path.starts_with(below)
        {
            let name = String::from_utf8_lossy(data).trim_end_matches('.').to_owned();
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

#[test]
fn many_requests_at_once_are_each_executed_once() {
    const SMALL: usize = 40;
    let server = Server::start();
    let (session, mailbox) = open(&server.connect_string(), SECOND * 10);
    session.own("/own", b"own").unwrap();
    session.ensure("/many").unwrap();
    let acknowledged = AtomicUsize::new(0);
    let create = |name: String, bytes: usize| {
        let data = name + &".".repeat(bytes);
        session.create("/many/n-", data.as_bytes(), Kind::Sequential).expect("no loss");
        acknowledged.fetch_add(1, Ordering::Relaxed);
    };
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..64 {
            let create = &create;
            scope.spawn(move || (0..SMALL).for_each(|number| create(format!("small {thread} {number}"), 100)));
        }
        for thread in 0..4 {
            let create = &create;
            scope.spawn(move || (0..3).for_each(|number| create(format!("large {thread} {number}"), 900_000)));
        }
    });
    let count = 64 * SMALL + 4 * 3;
    assert_eq!(acknowledged.into_inner(), count);
    println!("{count} creates in {:?}", start.elapsed());
    let executions = executions(&server.transactions(), "/many/");
    assert_eq!(executions.len(), count);
    assert!(executions.values().all(|times| *times == 1), "{executions:?}");
    assert_eq!(session.children("/many", false).unwrap().unwrap().len(), count);
    assert_eq!(session.over(), None);
    assert!(mailbox.within(ms(1)).is_empty());
}

#[test]
fn what_an_identity_makes_is_for_it_alone() {
    let connect = Server::shared().chroot("auth");
    let as_user = |digest: Option<&str>| {
        let config = Config { digest: digest.map(str::to_owned), ..config(&connect, SECOND * 10) };
        open_with(&config)
    };
    let ((session, _m1), (nobody, _m2), (wrong, _m3)) =
        (as_user(Some("me:secret")), as_user(None), as_user(Some("me:guess")));
    session.ensure("/").unwrap();
    session.create("/mine", b"data", Kind::Persistent).unwrap();
    let id = session.own("/own", b"").unwrap();
    let refused = |path: &str| Error::NotAllowed(path.to_owned());
    for other in [&nobody, &wrong] {
        assert_eq!(other.write("/mine", b"", None).unwrap_err(), refused("/mine"));
        assert_eq!(other.read("/mine", false).unwrap_err(), refused("/mine"));
        assert_eq!(other.children("/mine", false).unwrap_err(), refused("/mine"));
        assert_eq!(other.delete("/mine", None).unwrap_err(), refused("/mine"));
        assert_eq!(other.create("/theirs", b"", Kind::Persistent).unwrap_err(), refused("/theirs"));
        assert_eq!(other.over(), None);
    }
    let (again, _m4) = as_user(Some("me:secret"));
    assert_eq!(again.read("/mine", false).unwrap().unwrap().0, b"data");
    again.write("/mine", b"new", None).unwrap();
    // Made again by a heartbeat, it is still for this identity alone.
    again.delete("/own", None).unwrap();
    session.sync().unwrap();
    assert_eq!(again.stat("/own", false).unwrap().unwrap().owner, Some(id));
    assert_eq!(nobody.read("/own", false).unwrap_err(), refused("/own"));
}

#[test]
fn many_reads_at_once_say_what_reads_one_by_one_say() {
    const COUNT: usize = 3000;
    // Of its own: what it is asked is counted.
    let server = Server::start();
    let asked = || counter(&server, "zk_packets_received");
    let connect = server.chroot("many");
    let (session, _mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    session.own("/own", b"").unwrap();
    // Every third is missing, some are large, some have children.
    let paths: Vec<String> = (0..COUNT).map(|number| format!("/n{number}")).collect();
    let numbers: Vec<usize> = (0..COUNT).filter(|number| number % 3 > 0).collect();
    in_parallel(&numbers, |number| {
        let data = vec![b'x'; if number % 100 == 1 { 20_000 } else { number % 7 }];
        session.create(&paths[*number], &data, Kind::Persistent).unwrap();
        if number % 50 == 1 {
            session.create(&format!("{}/c", paths[*number]), b"", Kind::Persistent).unwrap();
        }
    });
    let began = Instant::now();
    let one_by_one = in_parallel(&paths, |path| session.read(path, false).unwrap());
    let (between, before) = (Instant::now(), asked());
    let at_once: Vec<_> = session.read_each(&paths, |read| read).into_iter().map(Result::unwrap).collect();
    println!("{COUNT} reads: {:?} one by one, {:?} at once", between - began, between.elapsed());
    let requests = asked() - before;
    assert!(requests < COUNT / 10, "not by as many requests: {requests}");
    assert_eq!(at_once, one_by_one);
    assert_eq!(session.over(), None);
}

#[test]
fn what_is_missing_where_a_session_does_not_know_its_server_is_asked_of_the_session_itself() {
    const COUNT: usize = 1000;
    // Of its own: what it is asked is counted.
    let server = Server::start();
    let (session, _mailbox) = open(&server.chroot("missing"), SECOND * 10);
    session.ensure("/").unwrap();
    let paths: Vec<String> = (0..COUNT).map(|number| format!("/n{number}")).collect();
    let requests = |work: &dyn Fn()| {
        let before = counter(&server, "zk_packets_received");
        work();
        counter(&server, "zk_packets_received") - before
    };
    let nothing = |read: Vec<Result<bool, Error>>| assert!(read.into_iter().all(|read| read == Ok(false)));
    let read = || nothing(session.read_each(&paths, |read| read.is_some()));
    assert!(requests(&read) > COUNT);
    assert!(requests(&|| nothing(session.glance_at_each(&paths, |read| read.is_some()))) < COUNT / 10);
    session.own("/own", b"").unwrap();
    assert!(requests(&read) < COUNT / 10);
}

#[test]
fn many_reads_need_the_same_identity_as_one() {
    let connect = Server::shared().chroot("many-acl");
    let digest = Some("ann:secret".to_owned());
    let (ann, _mailbox) = open_with(&Config { digest, ..config(&connect, SECOND * 10) });
    ann.ensure("/").unwrap();
    let paths: Vec<String> = (0..500).map(|number| format!("/n{number}")).collect();
    in_parallel(&paths, |path| ann.create(path, b"hers", Kind::Persistent).unwrap());
    let read = ann.read_each(&paths, |read| read.map(|(data, _)| data));
    assert!(read.into_iter().all(|read| read.unwrap().as_deref() == Some(b"hers")));
    let (anyone, _mailbox) = open(&connect, SECOND * 10);
    let refused = anyone.read_each(&paths, |read| read.is_some());
    assert!(refused.iter().all(|read| matches!(read, Err(Error::NotAllowed(_)))), "{refused:?}");
}

#[test]
fn many_reads_on_a_server_that_goes_away_end_with_the_session() {
    let mut server = Server::start();
    let (session, _mailbox) = open(&server.chroot("many-gone"), SECOND * 10);
    session.ensure("/").unwrap();
    let paths: Vec<String> = (0..200_000).map(|number| format!("/n{number}")).collect();
    let read = thread::scope(|scope| {
        let reading = scope.spawn(|| session.read_each(&paths, |read| read.is_some()));
        server.kill();
        reading.join().unwrap()
    });
    assert!(matches!(read.last(), Some(Err(Error::Lost(_)))), "{:?}", read.last());
}

#[test]
fn a_watch_below_a_znode_sees_all_that_happens_there_as_long_as_the_session() {
    let connect = Server::shared().chroot("below");
    let (session, mailbox) = open(&connect, SECOND * 10);
    session.ensure("/a").unwrap();
    session.ensure("/b").unwrap();
    session.watch_below("/a").unwrap();
    let (hand, _mailbox) = open(&connect, SECOND * 10);
    for round in 0..3 {
        hand.create("/a/n", b"", Kind::Persistent).unwrap();
        hand.create("/a/n/deep", b"", Kind::Persistent).unwrap();
        hand.create("/b/n", b"", Kind::Persistent).unwrap();
        hand.write("/a/n/deep", b"x", None).unwrap();
        hand.delete_all("/a/n").unwrap();
        hand.delete_all("/b/n").unwrap();
        let expected = [
            ("/a/n", Change::Created),
            ("/a/n/deep", Change::Created),
            ("/a/n/deep", Change::Data),
            ("/a/n/deep", Change::Deleted),
            ("/a/n", Change::Deleted),
        ];
        for (at, change) in expected {
            let Event::Watch { path, change: seen } = mailbox.event() else { panic!("{round}: not a watch") };
            assert_eq!((&path[..], seen), (at, change), "round {round}");
        }
    }
    assert!(mailbox.within(ms(100)).is_empty());
}
