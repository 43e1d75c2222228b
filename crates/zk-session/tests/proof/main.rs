//! What the crate promises, each rule as a test: against a real ZooKeeper, its transaction log and a link that can be cut;
//! against a fake server where a real one is too well-behaved.
//!
//! One program, so that the tests share a server. Those that count threads or log lines, or freeze a process, start
//! themselves again in a process of their own ([`alone`]).

mod bulk;
mod close;
mod fence;
mod identity;
mod loss;
mod opening;
mod requests;
mod tls;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use e2e::{Act, Daemon, Fake, Server, Txn, TxnKind, daemon::Launch, wait_for};
use zk_session::{Config, Event, Notify, Reason, Session};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(30);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A session and its mailbox.
type Client = (Session, Mailbox);

fn config(connect: &str, timeout: Duration) -> Config {
    Config::new(connect.parse().expect("a connect string"), timeout)
}

#[track_caller]
fn open(connect: &str, timeout: Duration) -> Client {
    open_with(&config(connect, timeout))
}

#[track_caller]
fn open_with(config: &Config) -> Client {
    let mailbox = Mailbox::new();
    let session = mailbox.open(config).unwrap_or_else(|error| panic!("no session at {}: {error}", config.connect));
    (session, mailbox)
}

/// What came into a mailbox, and when.
struct Mailbox {
    notify: Notify,
    events: Receiver<(Instant, Event)>,
}

impl Mailbox {
    fn new() -> Mailbox {
        let (sender, events) = mpsc::channel();
        let notify = move |event| {
            sender.send((Instant::now(), event)).ok(); // the test may be over
        };
        Mailbox { notify: Arc::new(notify), events }
    }

    fn open(&self, config: &Config) -> Result<Session, zk_session::OpenError> {
        Session::open(config, 1, &self.notify)
    }

    /// The next event.
    #[track_caller]
    fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).expect("an event within 30 s").1
    }

    /// When the session was declared lost, and why; watches that came before are passed over.
    #[track_caller]
    fn lost(&self) -> (Instant, Reason) {
        loop {
            match self.events.recv_timeout(LIMIT) {
                Ok((at, Event::Lost { reason, .. })) => return (at, reason),
                Ok(_) => {}
                Err(_) => panic!("the session was not lost within 30 s"),
            }
        }
    }

    /// Says what came within a while, for what must not come.
    fn within(&self, duration: Duration) -> Vec<Event> {
        let end = Instant::now() + duration;
        let next = || self.events.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).map(|(_, event)| event).collect()
    }
}

/// One test of this program, to be run in a process of its own.
fn this_program(test: &str) -> Launch {
    let own = std::env::current_exe().expect("a test has a program");
    Daemon::program(own).args([test, "--exact", "--nocapture", "--test-threads=1"])
}

/// Does the work of a test in a process of its own, and shows what that printed.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the figures of a test")]
fn alone(test: &str, work: impl FnOnce()) {
    const ALONE: &str = "ZKS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let process = this_program(test).env(ALONE, "yes").start();
    let status = process.wait_exit(LIMIT * 2);
    let output = process.stdout();
    assert!(status.success() && output.contains("1 passed"), "{test} in a process of its own: {status}\n{output}");
    println!("{output}");
}

/// What a process may leave behind.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Leftovers {
    threads: usize,
    descriptors: usize,
}

impl Leftovers {
    /// What there is when the crate has done its work once, and nothing of it is under way.
    #[track_caller]
    fn at_rest() -> Leftovers {
        const THREADS: [&str; 9] =
            ["event", "io", "zk-probe", "zk-first", "zk-heartbeat", "zk-monitor", "zk-relay", "zk-close", "zk-drop"];
        let fake = Fake::start(Act::Handshake);
        assert!(open(&fake.connect_string(), SECOND).0.close(SECOND));
        drop(fake);
        wait_for("rest", || {
            let names = thread_names();
            if names.iter().any(|name| THREADS.contains(&name.as_str())) { Err(format!("{names:?}")) } else { Ok(()) }
        });
        Leftovers::now()
    }

    fn now() -> Leftovers {
        let count = |dir| std::fs::read_dir(dir).expect("proc is mounted").count();
        Leftovers { threads: count("/proc/self/task"), descriptors: count("/proc/self/fd") }
    }

    /// Waits until there are no more than before.
    #[track_caller]
    fn wait_gone(self) {
        wait_for(&format!("no more than {self:?}"), || {
            let now = Leftovers::now();
            let gone = now.threads <= self.threads && now.descriptors <= self.descriptors;
            if gone { Ok(()) } else { Err(format!("{now:?}: {:?}", thread_names())) }
        });
    }
}

fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| Some(std::fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned())).collect()
}

/// What a server says of itself.
fn counter(server: &Server, name: &str) -> usize {
    let counters = server.four_letter("mntr").expect("it answers");
    let value = counters.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
    value.and_then(|number| number.trim().parse().ok()).expect("a number")
}

/// The paths of the creates that a server executed below a path, in order.
fn created(txns: &[Txn], below: &str) -> Vec<String> {
    let path = |txn: &Txn| match &txn.kind {
        TxnKind::Create { path, .. } if path.starts_with(below) => Some(path.clone()),
        _ => None,
    };
    txns.iter().filter_map(path).collect()
}

fn has_ended(txns: &[Txn], session: i64) -> bool {
    txns.iter().any(|txn| txn.session == session && txn.kind == TxnKind::CloseSession)
}

/// Waits until the server has ended a session.
#[track_caller]
fn wait_ended(server: &Server, limit: Duration, session: i64) {
    e2e::wait_within(limit, &format!("the end of session {session:#x}"), || {
        if has_ended(&server.transactions(), session) { Ok(()) } else { Err("it lives".to_owned()) }
    });
}
