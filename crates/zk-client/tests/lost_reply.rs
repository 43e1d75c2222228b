//! One submit is one task, also when the connection breaks between request and answer (PROTOCOL, G5).
//!
//! Between the client and a real ZooKeeper stands a [`Proxy`] that breaks the connection exactly there.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::{Daemon, Server, wait_for};
use zk_session::{Config, Session};
use znode_paths::Task;

/// What becomes of the first request that creates a task. The client's connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is carried out, the answer is lost.
    AnswerLost,
    /// It never arrives.
    RequestLost,
    /// It is on its way until just before the second one, and is carried out then.
    LateBeforeSecond,
    /// It is on its way until just after the second one.
    LateAfterSecond,
    /// The answer is lost, and there is no way to the server any more.
    CutOff,
    /// It never arrives; the second one is carried out and its answer is lost.
    RequestThenAnswerLost,
    /// It is on its way until the test lets it go; the connection is not cut.
    Held,
    /// Nothing; but see [`free_key`].
    KeyFreed,
}

/// Passes on what it gets, frame by frame.
struct Proxy {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    fate: Fate,
    server: String,
    /// To look at what was carried out.
    tree: Session,
    /// How many requests to create a task there were.
    creates: u32,
    listings: u32,
    /// The first of them, if it is on its way, and where to.
    held: Option<(TcpStream, Vec<u8>)>,
    cut_off: bool,
}

const CREATE: i32 = 1;
const CHILDREN: i32 = 8;

impl Proxy {
    fn start(tree: &Session, fate: Fate) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (server, tree) = (Server::shared().connect_string(), tree.clone());
        let shared = Shared { fate, server, tree, creates: 0, listings: 0, held: None, cut_off: false };
        let shared = Arc::new(Mutex::new(shared));
        let proxy = Proxy { address, shared: shared.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || pass_on(&client, &shared).ok());
            }
        });
        proxy
    }
}

fn frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    frame.resize(4 + usize::try_from(u32::from_be_bytes(length)).unwrap(), 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn number(frame: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?))
}

fn creates_a_task(frame: &[u8]) -> bool {
    number(frame, 8) == Some(CREATE) && frame.windows(12).any(|part| part == b"/tasks/task-")
}

/// One connection of the client.
fn pass_on(mut client: &TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    if shared.lock().unwrap().cut_off {
        return Ok(());
    }
    let mut server = TcpStream::connect(&shared.lock().unwrap().server)?;
    let answers = server.try_clone()?;
    // The xid of the request whose answer is not passed on.
    let swallowed = Arc::new(Mutex::new(None));
    let (to_client, swallow) = (client.try_clone()?, swallowed.clone());
    std::thread::spawn(move || pass_back(answers, &to_client, &swallow).ok());
    let mut greeted = false;
    loop {
        let request = match frame(&mut client) {
            Ok(request) => request,
            Err(_) => return server.shutdown(Shutdown::Both),
        };
        if number(&request, 8) == Some(CHILDREN) && request.ends_with(b"/tasks\x01") {
            free_key(&mut shared.lock().unwrap());
        }
        if !greeted || !creates_a_task(&request) {
            greeted = true;
            server.write_all(&request)?;
            continue;
        }
        let mut shared = shared.lock().unwrap();
        shared.creates += 1;
        match (shared.creates, shared.fate) {
            (1, Fate::AnswerLost | Fate::CutOff) | (2, Fate::RequestThenAnswerLost) => {
                shared.cut_off = shared.fate == Fate::CutOff;
                *swallowed.lock().unwrap() = number(&request, 4);
                server.write_all(&request)?;
            }
            (1, Fate::RequestLost | Fate::RequestThenAnswerLost) => {
                client.shutdown(Shutdown::Both)?;
                return server.shutdown(Shutdown::Both);
            }
            (1, Fate::LateBeforeSecond | Fate::LateAfterSecond) => {
                client.shutdown(Shutdown::Both)?;
                shared.held = Some((server, request));
                return Ok(());
            }
            (1, Fate::Held) => {
                shared.held = Some((server, request));
                return Ok(());
            }
            (2, Fate::LateBeforeSecond) => {
                release(&mut shared)?;
                server.write_all(&request)?;
            }
            (2, Fate::LateAfterSecond) => {
                carry_out(&shared.tree, &mut server, &request)?;
                release(&mut shared)?;
            }
            _ => server.write_all(&request)?,
        }
    }
}

/// Whoever made the key was waited for in vain. Now that the client looks for the last time, somebody else's task of that
/// key has come and gone, and the key with it.
fn free_key(shared: &mut Shared) {
    if shared.fate == Fate::KeyFreed {
        shared.listings += 1;
        if shared.listings == 2 {
            shared.tree.delete("/keys/k", None).unwrap();
        }
    }
}

/// The first request arrives at last.
fn release(shared: &mut Shared) -> io::Result<()> {
    let (mut server, request) = shared.held.take().expect("it is held");
    carry_out(&shared.tree, &mut server, &request)
}

/// Passes on a request to create a task; returns when it is done.
fn carry_out(tree: &Session, server: &mut TcpStream, request: &[u8]) -> io::Result<()> {
    let before = tasks(tree).len();
    server.write_all(request)?;
    wait_for("the task", || if tasks(tree).len() > before { Ok(()) } else { Err("it is not there".to_owned()) });
    Ok(())
}

fn tasks(tree: &Session) -> Vec<String> {
    let mut tasks = tree.children("/tasks", false).unwrap().unwrap();
    tasks.sort();
    tasks
}

fn pass_back(mut server: TcpStream, mut client: &TcpStream, swallowed: &Mutex<Option<i32>>) -> io::Result<()> {
    loop {
        let Ok(answer) = frame(&mut server) else {
            return client.shutdown(Shutdown::Both);
        };
        let xid = *swallowed.lock().unwrap();
        if xid.is_some() && number(&answer, 4) == xid {
            client.shutdown(Shutdown::Both)?;
            return server.shutdown(Shutdown::Both);
        }
        client.write_all(&answer)?;
    }
}

/// A tree that a master has set up, with three tasks of others.
fn tree(name: &str) -> (String, Session) {
    let zk = Server::shared().chroot(name);
    let config = Config::new(zk.parse().unwrap(), Duration::from_secs(10));
    let session = Session::open(&config, 1, &(Arc::new(|_| ()) as _)).unwrap();
    session.ensure("/tasks").unwrap();
    for data in [&b"x\n{\"zk\":1,\"submit\":\"another\"}"[..], b"\xff", b"plain"] {
        session.create("/tasks/task-", data, zk_session::Kind::Sequential).unwrap();
    }
    (zk, session)
}

/// Submits through a proxy, until these tasks are there: exit code, stdout, stderr.
#[track_caller]
fn submit(name: &str, fate: Fate, options: &[&str], there: &[&str]) -> (i32, String, String) {
    let (zk, session) = tree(name);
    let proxy = Proxy::start(&session, fate);
    let zk = zk.replace(&Server::shared().connect_string(), &proxy.address.to_string());
    let client = Daemon::program(env!("CARGO_BIN_EXE_zk-client"))
        .args(["--zk", &zk, "--connect-timeout", "3s", "submit"])
        .args(options)
        .args(["--", "mine"])
        .start();
    let status = client.wait_exit(Duration::from_secs(30));
    wait_for("the tasks", || match tasks(&session) {
        tasks if tasks[3..] == *there => Ok(()),
        tasks => Err(format!("{tasks:?}, {}", client.stderr())),
    });
    (status.code().unwrap(), client.stdout(), client.stderr())
}

/// It prints this task, and says nothing.
#[track_caller]
fn check(name: &str, fate: Fate, printed: &str, there: &[&str]) {
    assert_eq!(submit(name, fate, &[], there), (0, format!("{printed}\n"), String::new()));
}

#[test]
fn when_the_answer_is_lost_the_task_is_found() {
    check("answer", Fate::AnswerLost, "task-0000000003", &["task-0000000003"]);
}

#[test]
fn when_the_request_is_lost_it_is_sent_again() {
    check("request", Fate::RequestLost, "task-0000000003", &["task-0000000003"]);
}

#[test]
fn of_two_the_lowest_counts_whichever_request_made_it() {
    let two = ["task-0000000003", "task-0000000004"];
    check("before", Fate::LateBeforeSecond, two[0], &two);
    check("after", Fate::LateAfterSecond, two[0], &two);
}

#[test]
fn what_is_lost_twice_is_looked_for_twice() {
    check("twice", Fate::RequestThenAnswerLost, "task-0000000003", &["task-0000000003"]);
}

#[test]
fn all_requests_of_a_submit_have_the_same_id() {
    let (zk, session) = tree("ids");
    let proxy = Proxy::start(&session, Fate::LateAfterSecond);
    let zk = zk.replace(&Server::shared().connect_string(), &proxy.address.to_string());
    let client = Daemon::program(env!("CARGO_BIN_EXE_zk-client")).args(["--zk", &zk, "submit", "mine"]).start();
    assert!(client.wait_exit(Duration::from_secs(30)).success(), "{}", client.stderr());
    let id = |number| {
        let read = session.read(&format!("/tasks/task-000000000{number}"), false).unwrap();
        read.map(|(data, _)| Task::decode(&data).unwrap().meta.unwrap().submit.unwrap())
    };
    wait_for("the late request", || id(4).ok_or_else(|| "not there".to_owned()));
    assert_eq!(id(3), id(4));
}

#[test]
fn when_it_cannot_be_found_out_the_outcome_is_unknown() {
    let (code, stdout, stderr) = submit("cut-off", Fate::CutOff, &[], &["task-0000000003"]);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (74, "", 1), "{stderr}");
    assert!(stderr.contains("the task may exist or not"), "{stderr}");
}

#[test]
fn a_plain_task_is_not_submitted_twice() {
    for (name, fate, there) in
        [("plain", Fate::AnswerLost, &["task-0000000003"][..]), ("plain-lost", Fate::RequestLost, &[])]
    {
        let (code, stdout, stderr) = submit(name, fate, &["--plain"], there);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (74, "", 1), "{stderr}");
    }
}

/// Submits with a key, past the proxy: exit code, stdout, stderr.
#[track_caller]
fn keyed(zk: &str) -> (i32, String, String) {
    let client = Daemon::program(env!("CARGO_BIN_EXE_zk-client"));
    let client = client.args(["--zk", zk, "submit", "--key", "k", "mine"]).start();
    let status = client.wait_exit(Duration::from_secs(30));
    (status.code().unwrap(), client.stdout(), client.stderr())
}

#[test]
fn a_client_that_dies_between_key_and_task_blocks_nobody() {
    let (zk, session) = tree("key-killed");
    let proxy = Proxy::start(&session, Fate::Held);
    let behind = zk.replace(&Server::shared().connect_string(), &proxy.address.to_string());
    let victim = Daemon::program(env!("CARGO_BIN_EXE_zk-client"));
    let victim = victim.args(["--zk", &behind, "submit", "--key", "k", "mine"]).start();
    wait_for("the request", || {
        proxy.shared.lock().unwrap().held.as_ref().map(drop).ok_or_else(|| "not sent".to_owned())
    });
    victim.kill();
    assert_eq!(tasks(&session).len(), 3);
    assert_eq!(keyed(&zk), (0, "task-0000000003\n".to_owned(), String::new()));
    // What was on its way arrives, and does not count.
    release(&mut proxy.shared.lock().unwrap()).unwrap();
    assert_eq!(tasks(&session).len(), 5);
    assert_eq!(keyed(&zk), (0, "task-0000000003\n".to_owned(), String::new()));
    let id = |number: u32| {
        let (data, _) = session.read(&format!("/tasks/task-{number:010}"), false).unwrap().unwrap();
        Task::decode(&data).unwrap().meta.unwrap().submit
    };
    assert_eq!(id(3), id(4));
}

#[test]
fn with_a_key_a_lost_answer_is_looked_for_as_well() {
    for (name, fate, there) in [
        ("key-answer", Fate::AnswerLost, &["task-0000000003"][..]),
        ("key-request", Fate::RequestLost, &["task-0000000003"]),
        ("key-late", Fate::LateBeforeSecond, &["task-0000000003", "task-0000000004"]),
        ("key-later", Fate::LateAfterSecond, &["task-0000000003", "task-0000000004"]),
        ("key-twice", Fate::RequestThenAnswerLost, &["task-0000000003"]),
    ] {
        let submitted = submit(name, fate, &["--key", "k"], there);
        assert_eq!(submitted, (0, "task-0000000003\n".to_owned(), String::new()), "{fate:?}");
    }
    let (code, stdout, stderr) = submit("key-cut-off", Fate::CutOff, &["--key", "k"], &["task-0000000003"]);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (74, "", 1), "{stderr}");
}

#[test]
fn a_key_that_is_freed_under_a_client_is_made_anew() {
    let (zk, session) = tree("key-freed");
    session.ensure("/keys").unwrap();
    session.create("/keys/k", b"old", zk_session::Kind::Persistent).unwrap();
    let proxy = Proxy::start(&session, Fate::KeyFreed);
    let behind = zk.replace(&Server::shared().connect_string(), &proxy.address.to_string());
    assert_eq!(keyed(&behind), (0, "task-0000000003\n".to_owned(), String::new()));
    let (data, _) = session.read("/tasks/task-0000000003", false).unwrap().unwrap();
    let id = Task::decode(&data).unwrap().meta.unwrap().submit.unwrap();
    let (key, _) = session.read("/keys/k", false).unwrap().expect("who comes next must not find it free");
    assert_eq!(znode_paths::Key::decode(&key).submit, id);
}
