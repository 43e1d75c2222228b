//! A session is opened wherever a server serves, soon, and whatever the others do; without one it is said in one line.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{Act, Fake, Hosts, Port, Server, available, stays, wait_for};
use zk_session::{Event, Kind, open_in_background};

use crate::{Leftovers, Mailbox, SECOND, alone, config, ms};

/// Reserved by RFC 6761 to have no address.
const UNRESOLVABLE: &str = "no-such-host.invalid:2181";

/// The longest of several openings: the servers are asked in random order.
#[track_caller]
fn slowest_opening(connect: &str, rounds: usize) -> Duration {
    let open = |_| {
        let start = Instant::now();
        crate::open(connect, SECOND * 10).0.stat("/", false).expect("it serves");
        start.elapsed()
    };
    (0..rounds).map(open).max().expect("some rounds")
}

#[test]
fn servers_that_do_not_serve_hold_up_nobody() {
    let server = Server::shared();
    let dead = Port::claim();
    let (silent, refusing) = (Fake::start(Act::Silent), Fake::start(Act::Refuse));
    let garbage = Fake::start(Act::Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    let hosts = [
        dead.address(),
        UNRESOLVABLE.to_owned(),
        silent.connect_string(),
        refusing.connect_string(),
        garbage.connect_string(),
        server.connect_string(),
    ];
    let slowest = slowest_opening(&hosts.join(","), 10);
    println!("slowest of 10 openings: {slowest:?}");
    assert!(slowest < SECOND * 2, "{slowest:?}");
}

#[test]
fn a_host_that_is_cut_off_holds_up_nobody() {
    let Some(hosts) = available(Hosts::new(3)) else { return };
    let server = Server::start_in(&hosts[0]);
    hosts[2].link_down();
    let (dead, black_hole) = (hosts[0].address(), hosts[2].address());
    let connect = format!("{dead}:1,{UNRESOLVABLE},{black_hole}:2181,{}", server.connect_string());
    let slowest = hosts[1].run(|| slowest_opening(&connect, 8));
    println!("slowest of 8 openings: {slowest:?}");
    assert!(slowest < SECOND * 2, "{slowest:?}");

    let start = Instant::now();
    let alone = format!("{black_hole}:2181");
    let error = hosts[1].run(|| Mailbox::new().open(&config(&alone, SECOND)).expect_err("it is cut off"));
    assert!(start.elapsed() < SECOND * 6 && error.to_string().contains(&alone), "{error}");
    // Where no network is, the `zookeeper` crate panics.
    let error = hosts[1].run(|| Mailbox::new().open(&config("192.0.2.1:2181", SECOND)).expect_err("there is no route"));
    println!("black hole, no route: {error}");
}

#[test]
fn without_a_server_it_is_said_soon_and_in_one_line() {
    let dead = Port::claim();
    let garbage = |bytes: &[u8]| Fake::start(Act::Garbage(bytes.to_vec()));
    let answer = |length: i32, body: &[u8]| garbage(&[&length.to_be_bytes(), body].concat());
    let fakes = [
        Fake::start(Act::Silent),
        Fake::start(Act::Refuse),
        garbage(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html; charset=utf-8\r\nConnection: close\r\n\r\n"),
        garbage(b"SSH-2.0-OpenSSH_9.6\r\n"),
        answer(-1, b""),
        answer(i32::MAX, &[0; 100]),
        answer(0, &[0; 100]),
        answer(8, &[1; 8]),
        answer(37, &[0; 20]),    // cut off
        answer(37, &[0; 37]),    // a session that is refused
        answer(37, &[0xFF; 37]), // a negative timeout
    ];
    let mut hosts = vec![dead.address(), UNRESOLVABLE.to_owned()];
    hosts.extend(fakes.iter().map(Fake::connect_string));
    thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(move || {
                let (start, mailbox) = (Instant::now(), Mailbox::new());
                let error = mailbox.open(&config(host, SECOND * 10)).expect_err("no session").to_string();
                println!("{error} ({} ms)", start.elapsed().as_millis());
                assert!(start.elapsed() < SECOND * 6, "{error}");
                assert!(error.contains(host.as_str()) && error.lines().count() == 1 && error.len() < 200, "{error}");
                assert_eq!(mailbox.within(ms(100)).len(), 0, "no news of a session that never was");
            });
        }
    });
    let all = Mailbox::new().open(&config(&hosts.join(","), SECOND)).expect_err("no session").to_string();
    assert!(hosts.iter().all(|host| all.contains(host)) && all.lines().count() == 1, "{all}");
}

/// Opens a session for its first client, and is silent to all others.
fn serve_one(listener: &TcpListener, clients: &AtomicUsize) {
    let welcome = |stream: &mut TcpStream| {
        let mut request = [0; 4 + 45];
        stream.read_exact(&mut request)?;
        let timeout = &request[16..20];
        stream.write_all(&[&[0, 0, 0, 37, 0, 0, 0, 0], timeout, &[1; 8], &[0, 0, 0, 16], &[7; 16], &[0]].concat())
    };
    thread::scope(|scope| {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let first = clients.fetch_add(1, Ordering::SeqCst) == 0;
            scope.spawn(move || {
                let welcomed = if first { welcome(&mut stream) } else { Ok(()) };
                // Whatever the end of the connection looks like.
                welcomed.and_then(|()| std::io::copy(&mut stream, &mut std::io::sink())).ok();
            });
        }
    });
}

#[test]
fn an_opening_that_fails_half_way_tells_nobody_and_leaves_nothing() {
    alone("opening::an_opening_that_fails_half_way_tells_nobody_and_leaves_nothing", || {
        let port = Port::claim();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).unwrap();
        thread::spawn(move || serve_one(&listener, &AtomicUsize::new(0)));
        let before = Leftovers::at_rest();
        let mailbox = Mailbox::new();
        let start = Instant::now();
        let error = mailbox.open(&config(&port.address(), SECOND * 4)).expect_err("no session").to_string();
        println!("{error} ({} ms)", start.elapsed().as_millis());
        assert!(start.elapsed() < SECOND * 6 && error.contains("first request"), "{error}");
        before.wait_gone();
        println!("nothing left after {} ms", start.elapsed().as_millis());
        let events = mailbox.within(ms(100));
        assert!(events.is_empty(), "news of a session that never was: {events:?}");
    });
}

/// What is logged by us at a level that is shown.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info && metadata.target().starts_with("zk_session")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOG.lock().expect("no panic while logging").push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

fn logged() -> Vec<String> {
    LOG.lock().expect("no panic while logging").clone()
}

#[test]
fn while_nobody_serves_there_is_no_storm_and_one_line() {
    alone("opening::while_nobody_serves_there_is_no_storm_and_one_line", || {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        let fake = Fake::start(Act::Refuse);
        let mailbox = Mailbox::new();
        let opening = open_in_background(&Arc::new(config(&fake.connect_string(), SECOND * 10)), 7, &mailbox.notify);
        // Pauses of at least 25 ms at first, and from 200 ms on of at least an eighth of the time that it is away.
        stays("few attempts", SECOND * 3, || match fake.connections() {
            few if few <= 35 => Ok(()),
            many => Err(format!("{many} attempts")),
        });
        let attempts = fake.connections();
        println!("{attempts} attempts in 3 s; {:?}", logged());
        assert!(attempts >= 4, "but it goes on trying: {attempts}");
        assert_eq!(logged().len(), 1, "{:?}", logged());

        fake.play(Act::Handshake);
        let Event::Opened(session) = mailbox.event() else { panic!("not opened") };
        assert_eq!(session.number(), 7);
        assert_eq!(logged().len(), 2, "{:?}", logged());
        assert!(logged()[1].contains(&format!("server={}", fake.connect_string())), "{:?}", logged());
        assert_eq!(session.over(), None);
        drop(opening);
        assert_eq!(session.over(), None, "the search is over, not what it found");
    });
}

#[test]
fn a_server_that_comes_later_is_found() {
    let mut server = Server::start();
    server.kill();
    let mailbox = Mailbox::new();
    let dead = Port::claim();
    let connect = format!("{},{UNRESOLVABLE},{}", dead.address(), server.connect_string());
    let _opening = open_in_background(&Arc::new(config(&connect, SECOND * 10)), 1, &mailbox.notify);
    let early = mailbox.within(ms(500));
    assert!(early.is_empty(), "{early:?}");
    server.restart();
    let start = Instant::now();
    let Event::Opened(session) = mailbox.event() else { panic!("not opened") };
    println!("opened {:?} after the server served", start.elapsed());
    assert!(start.elapsed() < SECOND * 3);
    session.create("/works", b"", Kind::Ephemeral).unwrap();
}

#[test]
fn a_host_that_is_gone_does_not_hold_up_the_search_while_the_others_elect_a_leader() {
    let (gone, electing) = (Fake::start(Act::Silent), Fake::start(Act::Refuse));
    let connect = format!("{},{}", gone.connect_string(), electing.connect_string());
    let mailbox = Mailbox::new();
    let _opening = open_in_background(&Arc::new(config(&connect, SECOND * 10)), 1, &mailbox.notify);
    let early = mailbox.within(ms(400));
    assert!(early.is_empty(), "{early:?}");
    let elected = Instant::now();
    electing.play(Act::Handshake);
    let Event::Opened(session) = mailbox.event() else { panic!("not opened") };
    println!("opened {:?} after the election", elected.elapsed());
    assert!(elected.elapsed() < ms(1500), "{:?}", elected.elapsed());
    assert_eq!(session.over(), None);
}

#[test]
fn a_search_that_is_dropped_finds_nothing() {
    let fake = Fake::start(Act::Refuse);
    let mailbox = Mailbox::new();
    let opening = open_in_background(&Arc::new(config(&fake.connect_string(), SECOND * 10)), 1, &mailbox.notify);
    wait_for("an attempt", || if fake.connections() > 0 { Ok(()) } else { Err("none".to_owned()) });
    drop(opening);
    fake.play(Act::Handshake);
    // An attempt that was under way may have found the server; nobody gets that session, and it ends.
    let events = mailbox.within(ms(1500));
    assert!(!events.iter().any(|event| matches!(event, Event::Opened(_))), "{events:?}");
    let (connections, open) = (fake.connections(), fake.open_connections());
    assert!(connections <= 4 && open == 0, "{connections} connections, {open} open");
}
