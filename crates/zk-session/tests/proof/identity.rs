//! A session knows itself by a node of its own, proves itself by writing to it, and can end an earlier one.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::{Ensemble, Hosts, Port, Server, Txn, TxnKind, available, stays, wait_for, wait_within};
use zk_session::{Config, Error, Kind, Reason, SessionId, Witness, end_session};

use crate::loss::wait_unsent;
use crate::{SECOND, config, created, has_ended, ms, open};

#[test]
fn the_id_of_a_session_is_the_owner_of_its_ephemerals() {
    let connect = Server::shared().chroot("id");
    let (session, _mailbox) = open(&connect, SECOND * 10);
    let (witness, _witness_mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    assert_eq!((session.id(), session.proved(), session.server_time_ms()), (None, None, None));
    let id = session.own("/own", b"data").unwrap();
    assert_eq!(session.id(), Some(id));
    session.create("/lock", b"", Kind::Ephemeral).unwrap();
    for path in ["/own", "/lock"] {
        assert_eq!(witness.stat(path, false).unwrap().unwrap().owner, Some(id));
    }
    session.create("/persistent", b"", Kind::Persistent).unwrap();
    assert_eq!(witness.stat("/persistent", false).unwrap().unwrap().owner, None);
    assert_eq!(session.own("/own", b"data"), Err(Error::NodeExists("/own".to_owned())));
}

#[test]
fn an_earlier_session_can_be_ended_by_its_id() {
    let server = Server::shared();
    let connect = server.chroot("end-earlier");
    let (later, _later_mailbox) = open(&connect, SECOND * 10);
    later.ensure("/").unwrap();
    let (earlier, mailbox) = open(&connect, SECOND * 10);
    let id = earlier.own("/own", b"").unwrap();
    earlier.create("/lock", b"", Kind::Ephemeral).unwrap();
    let chroot = connect.strip_prefix(&server.connect_string()).unwrap();

    assert!(!later.end_earlier(SessionId(0x1234_5678)).unwrap(), "there is no such session");
    assert_eq!(earlier.over(), None);
    let writers: Vec<_> = (0..4)
        .map(|thread| {
            let session = earlier.clone();
            thread::spawn(move || {
                let mut refused = 0;
                let mut number = 0;
                // Goes on writing after the end, as one would who was not told.
                while refused < 200 {
                    number += 1;
                    let made = session.create(&format!("/n-{thread}-{number}"), b"", Kind::Persistent);
                    refused += usize::from(made.is_err());
                }
            })
        })
        .collect();
    wait_for("some creates", || match created(&server.transactions(), &format!("{chroot}/n-")).len() {
        some if some > 20 => Ok(()),
        few => Err(few.to_string()),
    });
    let start = Instant::now();
    assert!(later.end_earlier(id).unwrap());
    let took = start.elapsed();
    assert_eq!(later.stat("/own", false).unwrap(), None);
    assert_eq!(later.stat("/lock", false).unwrap(), None);
    let (at, reason) = mailbox.lost();
    println!("ended in {took:?}, lost {:?} later: {reason}", at.saturating_duration_since(start + took));
    assert!(at < start + SECOND && matches!(reason, Reason::Disconnected | Reason::Expired), "{reason:?}");
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(!later.end_earlier(id).unwrap(), "it is ended already");
    assert_eq!(later.over(), None);
    assert_eq!(executed_after_the_end(&server.transactions(), id), []);
}

#[test]
fn a_session_can_be_ended_by_one_who_has_none() {
    let connect = Server::shared().chroot("end-session");
    let (witness, _witness_mailbox) = open(&connect, SECOND * 10);
    witness.ensure("/").unwrap();
    let (session, mailbox) = open(&connect, SECOND * 10);
    let id = session.own("/own", b"").unwrap();
    // One that is dead is passed over.
    let dead = Port::claim();
    let config = config(&format!("{},{}", dead.address(), Server::shared().connect_string()), SECOND);
    assert_eq!(end_session(&config, SessionId(0x1234_5678)), Ok(false));
    assert_eq!(session.over(), None);
    assert_eq!(end_session(&config, id), Ok(true));
    assert_eq!(witness.stat("/own", false).unwrap(), None);
    mailbox.lost();
    assert_eq!(end_session(&config, id), Ok(false));
    let nobody = crate::config(&dead.address(), SECOND);
    assert!(end_session(&nobody, id).unwrap_err().to_string().contains(&dead.address()));
}

/// What a witness was told.
#[derive(Debug, Default)]
struct Told {
    owns: Mutex<Vec<(SessionId, Duration)>>,
    proved: Mutex<Vec<Instant>>,
}

impl Witness for Told {
    fn owns(&self, session: SessionId, timeout: Duration) {
        self.owns.lock().expect("no panic").push((session, timeout));
    }

    fn proved(&self, sent: Instant) {
        self.proved.lock().expect("no panic").push(sent);
    }
}

#[test]
fn a_witness_is_told_of_the_session_and_of_each_proof() {
    let told = Arc::new(Told::default());
    let timeout = ms(1500);
    let connect = Server::shared().chroot("witness");
    let config = Config { witness: Some(told.clone()), ..config(&connect, timeout) };
    let (session, _mailbox) = crate::open_with(&config);
    session.ensure("/").unwrap();
    let before = Instant::now();
    let id = session.own("/own", b"").unwrap();
    assert_eq!(*told.owns.lock().unwrap(), [(id, timeout)], "before anybody else knows");
    let proofs = wait_within(timeout * 2, "three proofs", || {
        let proofs = told.proved.lock().unwrap().clone();
        if proofs.len() >= 3 { Ok(proofs) } else { Err(format!("{proofs:?}")) }
    });
    assert!(proofs.is_sorted() && proofs[0] >= before && proofs[2] > proofs[0], "{proofs:?}");
    assert!(session.close(SECOND));
    let closed = Instant::now();
    stays("no proof of a session that is over", ms(400), || match told.proved.lock().unwrap().last() {
        Some(sent) if *sent > closed => Err("one".to_owned()),
        _ => Ok(()),
    });
}

/// What was executed for a session after its end.
fn executed_after_the_end(txns: &[Txn], id: SessionId) -> Vec<Txn> {
    let own = txns.iter().filter(|txn| txn.session == id.0);
    let after = own.skip_while(|txn| txn.kind != TxnKind::CloseSession).skip(1);
    after.filter(|txn| !matches!(txn.kind, TxnKind::Error(_))).cloned().collect()
}

#[test]
fn what_is_on_its_way_for_an_ended_session_is_not_executed() {
    const CREATES: usize = 100;
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let server = Server::start_in(&hosts[0]);
    let connect = server.connect_string();
    let (later, _mailbox) = hosts[0].run(|| open(&connect, SECOND * 10));
    let timeout = SECOND * 15;
    let [(ended, ended_mailbox), (left, _left_mailbox)] = [(); 2].map(|()| hosts[1].run(|| open(&connect, timeout)));
    let ended_id = ended.own("/ended", b"").unwrap();
    let left_id = left.own("/left", b"").unwrap();

    hosts[1].link_down();
    let late = |name: &'static str, number: usize| {
        let session = if name == "ended" { ended.clone() } else { left.clone() };
        thread::spawn(move || session.create(&format!("/late-{name}-{number:03}"), b"", Kind::Persistent))
    };
    let of_ended: Vec<_> = (0..CREATES).map(|number| late("ended", number)).collect();
    let of_left: Vec<_> = (0..CREATES).map(|number| late("left", number)).collect();
    wait_unsent(&hosts[1], 2 * 50 * CREATES as u64);
    assert!(hosts[0].run(|| later.end_earlier(ended_id)).unwrap());
    hosts[1].link_up();

    // The control: those of the session that was not ended arrive.
    assert!(of_left.into_iter().all(|create| create.join().unwrap().is_ok()));
    ended_mailbox.lost();
    assert!(of_ended.into_iter().all(|create| matches!(create.join().unwrap(), Err(Error::Lost(_)))));
    let txns = server.transactions();
    assert_eq!(created(&txns, "/late-left").len(), CREATES);
    assert_eq!(created(&txns, "/late-ended"), Vec::<String>::new());
    assert!(has_ended(&txns, ended_id.0) && !has_ended(&txns, left_id.0));
}

#[test]
fn an_earlier_session_can_be_ended_through_another_server() {
    let ensemble = Ensemble::start();
    let on = |server: usize| open(&ensemble.servers[server].connect_string(), SECOND * 10);
    for (of_earlier, of_later) in [(0, 1), (1, 2), (2, 0)] {
        let ((earlier, mailbox), (later, _later_mailbox)) = (on(of_earlier), on(of_later));
        let id = earlier.own("/own", b"").unwrap();
        let start = Instant::now();
        assert!(later.end_earlier(id).unwrap());
        later.own("/later", b"").unwrap(); // a write: what is read next is not older
        assert_eq!(later.stat("/own", false).unwrap(), None);
        let (at, reason) = mailbox.lost();
        println!("from {of_later}: session of {of_earlier} lost after {:?}: {reason}", at - start);
        assert!(at < start + SECOND, "{:?}", at - start);
        assert!(!later.end_earlier(id).unwrap());
        assert!(later.close(SECOND));
    }
}

#[test]
fn heartbeats_are_writes_to_the_own_node() {
    let connect = Server::shared().chroot("heartbeats");
    let timeout = ms(1500);
    let (session, _mailbox) = open(&connect, timeout);
    let (witness, _witness_mailbox) = open(&connect, SECOND * 10);
    session.ensure("/").unwrap();
    let id = session.own("/own", b"data").unwrap();
    let first = session.proved().unwrap();
    let stat = || witness.stat("/own", false).unwrap().unwrap();
    let version = wait_within(timeout * 2, "three heartbeats", || match stat().version {
        version if version >= 3 => Ok(version),
        version => Err(version.to_string()),
    });
    println!("{version} heartbeats in {:?}", first.elapsed());
    assert_eq!(witness.read("/own", false).unwrap().unwrap().0, b"data");
    let proved = session.proved().unwrap();
    assert!(proved > first && proved.elapsed() < timeout * 2 / 3, "{:?}", proved.elapsed());
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let server_time = session.server_time_ms().unwrap();
    assert!((now - 500..now + 500).contains(&server_time), "{server_time} at {now}");

    session.sync().unwrap();
    let synced = session.proved().unwrap();
    assert!(synced > proved);

    // Somebody deletes it.
    witness.delete("/own", None).unwrap();
    wait_within(timeout * 2, "it to be made again", || match witness.stat("/own", false).unwrap() {
        Some(stat) if stat.owner == Some(id) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    wait_within(timeout * 2, "heartbeats on it", || match stat().version {
        version if version >= 2 => Ok(()),
        version => Err(version.to_string()),
    });
    assert!(session.proved().unwrap() > synced);
    assert_eq!((session.over(), session.id()), (None, Some(id)));
    let later = session.server_time_ms().unwrap();
    assert!(later > server_time, "{later} after {server_time}");
}

#[test]
fn a_session_with_an_own_node_is_lost_when_its_server_is_cut_off_from_the_quorum() {
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let ensemble = Ensemble::start_in(hosts.all());
    let follower = ensemble.follower();
    let timeout = ms(1500);
    // On the follower's host, so that the link between these sessions and their server stays.
    let connect = ensemble.servers[follower].connect_string();
    let open_there = |timeout| hosts[follower].run(|| open(&connect, timeout));
    let ((owner, mailbox), (reader, _reader_mailbox)) = (open_there(timeout), open_there(SECOND * 10));
    let id = owner.own("/own", b"").unwrap();

    let cut = Instant::now();
    hosts[follower].link_down();
    let (at, reason) = mailbox.lost();
    let seen = reader.stat("/own", false);
    let known: Duration = at - cut;
    println!("cut off, timeout {timeout:?}: lost after {known:?}: {reason}; a reader there still sees {seen:?}");
    assert!(known <= timeout.mul_f64(0.9), "{known:?}");
    assert_eq!(seen.unwrap().unwrap().owner, Some(id), "reads there prove nothing");
    assert_eq!(reader.over(), None);
}
