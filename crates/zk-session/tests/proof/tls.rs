//! Over TLS a session is what it is over plain TCP, and who is at the other end is sure.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use e2e::{Authority, Hosts, Issued, Secure, Server, Setup, available};
use zk_session::{Change, Config, Error, Event, Kind, Reason, Tls, TlsError, end_session, in_parallel};

use crate::{Client, Leftovers, Mailbox, SECOND, alone, config, has_ended, ms, open_with, wait_ended};

/// The server asks for certificates of the same authority as its own.
struct Secured {
    authority: Authority,
    server: Server,
}

impl Secured {
    #[track_caller]
    fn start(client_auth: &'static str) -> Secured {
        let authority = Authority::new();
        let own = authority.issue(&["127.0.0.1"]);
        let server = Server::start_with(&setup(&authority, own, client_auth), None);
        Secured { authority, server }
    }

    fn shared() -> &'static Secured {
        static SHARED: OnceLock<Secured> = OnceLock::new();
        SHARED.get_or_init(|| Secured::start("want"))
    }

    fn config(&self, timeout: std::time::Duration) -> Config {
        self.chroot("", timeout)
    }

    fn chroot(&self, chroot: &str, timeout: std::time::Duration) -> Config {
        let connect = format!("{}{chroot}", self.server.secure_connect_string());
        Config { tls: Some(believing(&self.authority)), ..config(&connect, timeout) }
    }
}

fn setup(authority: &Authority, own: Issued, client_auth: &'static str) -> Setup {
    Setup { secure: Some(Secure { own, authority: authority.file(), client_auth }), ..Setup::default() }
}

fn believing(authority: &Authority) -> Tls {
    Tls::new(&read(&authority.file()), None, None).expect("it is an authority")
}

fn showing(authority: &Authority, own: &Issued) -> Tls {
    let [certificate, key] = [&own.certificate, &own.key].map(|file| read(file));
    Tls::new(&read(&authority.file()), Some((&certificate, &key)), None).expect("they can be used")
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).expect("it was written")
}

/// Why there is no session.
#[track_caller]
fn refused(connect: &str, tls: Option<Tls>) -> String {
    let config = Config { tls, ..config(connect, SECOND * 10) };
    let error = Mailbox::new().open(&config).expect_err("there must be no session").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn a_session_over_tls_does_what_any_does() {
    let secured = Secured::shared();
    let config = secured.chroot("/does", SECOND * 30);
    let (session, mailbox) = open_with(&Config { digest: Some("ann:secret".to_owned()), ..config.clone() });
    session.ensure("/").unwrap();
    let id = session.own("/own", b"").unwrap();
    session.watch_below("/").unwrap();
    // More than any buffer on the way holds, in both directions, and many at once.
    let large: Vec<u8> = (0..1_000_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    session.create("/large", &large, Kind::Persistent).unwrap();
    assert_eq!(session.read("/large", false).unwrap().unwrap().0, large);
    let paths: Vec<String> = (0..500).map(|number| format!("/n{number}")).collect();
    in_parallel(&paths, |path| session.create(path, &large[..2000], Kind::Persistent).unwrap());
    let read = session.read_each(&paths, |read| read.map(|(data, _)| data));
    assert!(read.into_iter().all(|read| read.unwrap().as_deref() == Some(&large[..2000])));
    let mut expected: BTreeSet<&str> = paths.iter().map(String::as_str).chain(["/large"]).collect();
    while !expected.is_empty() {
        let Event::Watch { path, change } = mailbox.event() else { panic!("it is lost") };
        // Heartbeats write.
        assert!(change == Change::Created && expected.remove(&path[..]) || path == "/own", "{path}: {change:?}");
    }
    let (other, _mailbox) = open_with(&config);
    assert_eq!(other.read("/large", false).unwrap_err(), Error::NotAllowed("/large".to_owned()));
    // It may be silent for longer than any step of a handshake.
    assert!(mailbox.within(ms(2500)).iter().all(|event| matches!(event, Event::Watch { .. })));
    assert!(end_session(&config, id).unwrap());
    assert_eq!(mailbox.lost().1, Reason::Disconnected);
    assert!(other.close(SECOND * 5));
}

#[test]
fn a_server_that_cannot_be_believed_is_not_spoken_to() {
    let secured = Secured::shared();
    let (connect, authority) = (secured.server.secure_connect_string(), &secured.authority);
    let why = refused(&connect, Some(believing(&Authority::new())));
    assert_eq!(why, format!("{connect}: its certificate is not of an authority in --tls-ca"));
    let localhost = connect.replace("127.0.0.1", "localhost");
    let why = refused(&localhost, Some(believing(authority)));
    assert_eq!(why, format!("{localhost}: its certificate is not for localhost but for 127.0.0.1 (--tls-name)"));

    let expired = setup(authority, authority.issue_expired(&["127.0.0.1"]), "none");
    let server = Server::start_with(&expired, None);
    let expired = server.secure_connect_string();
    assert_eq!(refused(&expired, Some(believing(authority))), format!("{expired}: its certificate has expired"));
}

#[test]
fn the_expected_name_can_be_given() {
    let authority = Authority::new();
    let server = Server::start_with(&setup(&authority, authority.issue(&["zk.example.com"]), "none"), None);
    let connect = server.secure_connect_string();
    let why = refused(&connect, Some(believing(&authority)));
    assert!(why.contains("is not for 127.0.0.1 but for"), "{why}");
    let named = Tls::new(&read(&authority.file()), None, Some("zk.example.com")).unwrap();
    open_with(&Config { tls: Some(named), ..config(&connect, SECOND * 10) });
}

#[test]
fn a_plain_port_and_one_with_tls_are_told_apart() {
    let secured = Secured::shared();
    let plain = secured.server.connect_string();
    let why = refused(&plain, Some(believing(&secured.authority)));
    assert!(why.contains("is this its secureClientPort?"), "{why}");
    let old = Server::shared().connect_string();
    let why = refused(&old, Some(believing(&secured.authority)));
    assert!(why.contains("is this its secureClientPort?"), "{why}");
    let why = refused(&secured.server.secure_connect_string(), None);
    assert!(why.contains("wants TLS (--tls-ca)"), "{why}");
}

#[test]
fn a_server_can_demand_a_certificate() {
    let secured = Secured::start("need");
    let (connect, authority) = (secured.server.secure_connect_string(), &secured.authority);
    let why = refused(&connect, Some(believing(authority)));
    assert!(why.contains("it wants a client certificate that it trusts (--tls-cert, --tls-key)"), "{why}");
    let stranger = Authority::new();
    let why = refused(&connect, Some(showing(authority, &stranger.issue(&["client"]))));
    assert!(why.contains("it wants a client certificate that it trusts (--tls-cert, --tls-key)"), "{why}");
    let own = showing(authority, &authority.issue(&["client"]));
    open_with(&Config { tls: Some(own), ..config(&connect, SECOND * 10) });
}

#[test]
fn what_is_no_certificate_is_said() {
    let authority = Authority::new();
    let ca = read(&authority.file());
    let [one, other] = [authority.issue(&["a"]), authority.issue(&["b"])];
    let [certificate, key, other] = [one.certificate, one.key, other.key].map(|file| read(&file));
    let wrong = |ca: &[u8], own: Option<(&[u8], &[u8])>, name| Tls::new(ca, own, name).unwrap_err();
    assert!(matches!(wrong(b"", None, None), TlsError::Authorities(_)));
    assert!(matches!(wrong(&key, None, None), TlsError::Authorities(_)));
    let garbage = b"-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";
    assert!(matches!(wrong(garbage, None, None), TlsError::Authorities(_)));
    assert!(matches!(wrong(&ca, Some((&key, &key)), None), TlsError::Certificate(_)));
    assert!(matches!(wrong(&ca, Some((&certificate, &certificate)), None), TlsError::Key(_)));
    assert_eq!(wrong(&ca, Some((&certificate, &other)), None), TlsError::Mismatch);
    assert_eq!(wrong(&ca, None, Some("a b")), TlsError::Name("a b".to_owned()));
}

/// Callers that write until the session is over; returns how long after the failure each was back.
#[track_caller]
fn back_after(client: &Client, failure: impl FnOnce()) -> (Reason, Vec<std::time::Duration>) {
    let (session, mailbox) = client;
    session.own("/own", b"").expect("a node of its own");
    thread::scope(|scope| {
        let write_on = || {
            while session.write("/own", b"again", None).is_ok() {}
            Instant::now()
        };
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(write_on)).collect();
        let failed = Instant::now();
        failure();
        let (at, reason) = mailbox.lost();
        let back = callers.into_iter().map(|caller| caller.join().expect("a caller does not panic"));
        (reason, [at].into_iter().chain(back).map(|at| at.saturating_duration_since(failed)).collect())
    })
}

#[test]
fn a_killed_server_is_noticed_at_once_over_tls() {
    let mut secured = Secured::start("none");
    let client = open_with(&secured.config(SECOND * 10));
    let (reason, back) = back_after(&client, || secured.server.kill());
    println!("killed server over TLS: {back:?}");
    assert_eq!(reason, Reason::Disconnected);
    assert!(back.iter().all(|back| *back < SECOND), "{back:?}");
}

#[test]
fn a_frozen_server_is_noticed_over_tls_before_it_may_expire_the_session() {
    let mut secured = Secured::start("none");
    let timeout = SECOND * 2;
    let client = open_with(&secured.config(timeout));
    let (reason, back) = back_after(&client, || secured.server.pause());
    println!("frozen server over TLS: {back:?}");
    assert_eq!(reason, Reason::Silent(timeout * 2 / 3));
    assert!(back.iter().all(|back| *back <= timeout), "{back:?}");
}

/// What a relay has taken from a session that counts as lost does not arrive when the link is mended.
#[test]
fn nothing_arrives_late_over_tls() {
    let Some(hosts) = available(Hosts::new(2)) else { return };
    let authority = Authority::new();
    let own = authority.issue(&[&hosts[0].address().to_string()]);
    let server = Server::start_with(&setup(&authority, own, "none"), Some(&hosts[0]));
    let tls = Some(believing(&authority));
    let timeout = SECOND * 2;
    let config = Config { tls, ..config(&server.secure_connect_string(), timeout) };
    hosts[1].run(|| {
        let (session, mailbox) = open_with(&config);
        let id = session.own("/own", b"").unwrap();
        thread::scope(|scope| {
            hosts[1].link_down();
            for number in 0..8 {
                let session = &session;
                scope.spawn(move || {
                    session.create(&format!("/late{number}"), &[7; 3000], Kind::Persistent).unwrap_err()
                });
            }
            assert_eq!(mailbox.lost().1, Reason::Silent(timeout * 2 / 3));
        });
        hosts[1].link_up();
        wait_ended(&server, SECOND * 30, id.0);
        let (after, _mailbox) = open_with(&config);
        let names = after.children("/", false).unwrap().unwrap();
        assert!(!names.iter().any(|name| name.starts_with("late")), "{names:?}");
    });
}

#[test]
fn nothing_is_left_of_a_session_over_tls() {
    alone("tls::nothing_is_left_of_a_session_over_tls", || {
        let mut secured = Secured::start("none");
        let before = Leftovers::at_rest();
        let config = secured.config(SECOND * 10);
        for _ in 0..3 {
            let (session, mailbox) = open_with(&config);
            assert!(!listens(), "only the one connection may be made to a relay");
            assert!(session.close(SECOND * 5));
            assert_eq!(mailbox.lost().1, Reason::Closed);
        }
        drop(open_with(&config));
        let (ended, mailbox) = open_with(&config);
        let id = ended.own("/own", b"").unwrap();
        assert!(end_session(&config, id).unwrap());
        mailbox.lost();
        assert!(has_ended(&secured.server.transactions(), id.0));
        let (killed, mailbox) = open_with(&config);
        secured.server.kill();
        mailbox.lost();
        drop((ended, killed));
        refused(&secured.server.secure_connect_string(), config.tls.clone());
        before.wait_gone();
    });
}

/// Whether this process listens on a TCP port: state 0A in /proc/net/tcp (proc(5)).
fn listens() -> bool {
    let links = fs::read_dir("/proc/self/fd").expect("proc is mounted").flatten();
    let own: Vec<String> =
        links.filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_string_lossy().into_owned())).collect();
    let table = fs::read_to_string("/proc/net/tcp").expect("proc is mounted");
    let listening =
        table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|line| line[3] == "0A");
    listening.into_iter().any(|line| own.contains(&format!("socket:[{}]", line[9])))
}
