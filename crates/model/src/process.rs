//! What all processes have in common: how a daemon's plain sequence of requests is cut into steps.
//!
//! The code of a process is written as the daemon's is: one request after the other, each with its answer. It is run from
//! the beginning of a unit with the answers that are there, until it asks for one more; so between any two requests
//! everybody else may do anything, and the state of a process is its memory and the answers of the unit it is in.

use std::fmt;

use znode_paths::TaskName;

use crate::Setting;
use crate::client::Client;
use crate::master::Master;
use crate::tree::{Data, Node, Parent, Path, Refusal, SessionId};
use crate::worker::Worker;

/// What a process wants next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// Another session.
    Open,
    /// The news that something changed, or anything else that is in the mailbox.
    Look,
    /// The system is to start the command of a task, for an assignment with this czxid and this fence of a primary.
    Start {
        task: TaskName,
        czxid: i64,
        fence: Option<i64>,
    },
    Get(Path),
    List(Parent),
    Create(Path, Data),
    /// An ephemeral of the session.
    Own(Path, Data),
    Submit(u8),
    Set(Path, Data, Option<i32>),
    Delete(Path, Option<i32>),
    /// A write to the session's own node.
    Sync,
    /// Another session is to be opened again and closed.
    End(SessionId),
}

impl Request {
    /// Whether the leader of the ensemble has to take part.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self, Request::Open | Request::Look | Request::Start { .. } | Request::Get(_) | Request::List(_))
    }

    /// Whether it goes through the session.
    pub(crate) fn uses_session(&self) -> bool {
        !matches!(self, Request::Open | Request::Look | Request::Start { .. })
    }
}

/// An answer; with a read, the latest transaction that changed what was read: a watch fires at the next one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reply {
    pub(crate) seen: i64,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Done,
    Refused(Refusal),
    Submitted(TaskName),
    Node(Option<Node>),
    Children(Option<Vec<(Path, Node)>>),
    Started(bool),
}

/// A unit stops here until there is an answer.
pub(crate) struct Ask(pub(crate) Request);

/// The children of a znode, if that is there; and when that was.
pub(crate) type Listed<'a> = (Option<&'a [(Path, Node)]>, i64);

/// The answers that a unit has got so far.
pub(crate) struct Io<'a> {
    replies: std::slice::Iter<'a, Reply>,
    /// The servers' clock.
    pub(crate) now_ms: i64,
    /// The session in use, and how many there have been.
    pub(crate) session: Option<SessionId>,
    pub(crate) number: u32,
    pub(crate) setting: &'a Setting,
}

impl<'a> Io<'a> {
    fn ask(&mut self, request: impl FnOnce() -> Request) -> Result<&'a Reply, Ask> {
        self.replies.next().ok_or_else(|| Ask(request()))
    }

    pub(crate) fn get(&mut self, path: Path) -> Result<Option<&'a Node>, Ask> {
        self.get_seen(path).map(|(node, _)| node)
    }

    pub(crate) fn get_seen(&mut self, path: Path) -> Result<(Option<&'a Node>, i64), Ask> {
        match self.ask(|| Request::Get(path))? {
            Reply { what: What::Node(node), seen } => Ok((node.as_ref(), *seen)),
            other => unreachable!("{other:?} answers get"),
        }
    }

    pub(crate) fn list(&mut self, parent: Parent) -> Result<Listed<'a>, Ask> {
        match self.ask(|| Request::List(parent))? {
            Reply { what: What::Children(children), seen } => Ok((children.as_deref(), *seen)),
            other => unreachable!("{other:?} answers list"),
        }
    }

    /// A write, or something like it.
    pub(crate) fn write(&mut self, request: impl FnOnce() -> Request) -> Result<Result<(), Refusal>, Ask> {
        match &self.ask(request)?.what {
            What::Done => Ok(Ok(())),
            What::Refused(refusal) => Ok(Err(*refusal)),
            other => unreachable!("{other:?} answers a write"),
        }
    }

    pub(crate) fn submit(&mut self, submit: u8) -> Result<TaskName, Ask> {
        match &self.ask(|| Request::Submit(submit))?.what {
            What::Submitted(name) => Ok(*name),
            other => unreachable!("{other:?} answers submit"),
        }
    }

    pub(crate) fn start(&mut self, request: impl FnOnce() -> Request) -> Result<bool, Ask> {
        match &self.ask(request)?.what {
            What::Started(started) => Ok(*started),
            other => unreachable!("{other:?} answers start"),
        }
    }
}

/// Whether a process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Running,
    /// Stopped by a signal: what it has started goes on.
    Frozen,
    Dead,
}

/// A line of execution: a process has one, a primary that writes has one for each chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Thread {
    pub(crate) replies: Vec<Reply>,
    /// What it waits for; nothing when it has ended.
    pub(crate) asks: Option<Request>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) life: Life,
    /// The session in use.
    pub(crate) session: Option<SessionId>,
    /// All sessions of this life, the latest last.
    pub(crate) sessions: Vec<SessionId>,
    /// What the guard has still to end before it starts the process again.
    pub(crate) to_end: Vec<SessionId>,
    pub(crate) threads: Vec<Thread>,
    pub(crate) brain: Brain,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Brain {
    Master(Box<Master>),
    Worker(Box<Worker>),
    Client(Client),
}

impl Process {
    pub(crate) fn new(brain: Brain) -> Self {
        let asks = Some(Request::Open);
        let threads = vec![Thread { replies: Vec::new(), asks }];
        let (sessions, to_end) = (Vec::new(), Vec::new());
        Process { life: Life::Running, session: None, sessions, to_end, threads, brain }
    }

    /// Goes on, with what a thread has been answered, until it has to ask again.
    pub(crate) fn go_on(&mut self, thread: usize, now_ms: i64, setting: &Setting) {
        loop {
            let replies = self.threads[thread].replies.iter();
            let number = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
            let io = &mut Io { replies, now_ms, session: self.session, number, setting };
            let asked = match (&mut self.brain, self.session) {
                (Brain::Master(master), Some(_)) if !master.chains.is_empty() => {
                    match master.carry_out(thread, io) {
                        Ok(true) => None,
                        Ok(false) => {
                            self.threads[thread] = Thread { replies: Vec::new(), asks: None };
                            if self.threads.iter().any(|thread| thread.asks.is_some()) {
                                return;
                            }
                            // The last chain has ended.
                            master.carried_out();
                            self.threads.truncate(1);
                            return self.go_on(0, now_ms, setting);
                        }
                        Err(Ask(request)) => Some(request),
                    }
                }
                (Brain::Client(client), None) if client.reported.is_some() => Some(Request::Look),
                (Brain::Worker(worker), None) => {
                    worker.start_over_if_expired(setting);
                    Some(Request::Open)
                }
                (_, None) => Some(Request::Open),
                (brain, Some(_)) => {
                    // A unit that is not finished has changed nothing.
                    let mut next = brain.clone();
                    let unit = match &mut next {
                        Brain::Master(master) => master.unit(io),
                        Brain::Worker(worker) => worker.unit(io),
                        Brain::Client(client) => client.unit(io),
                    };
                    match unit {
                        Ok(()) => {
                            *brain = next;
                            None
                        }
                        Err(Ask(request)) => Some(request),
                    }
                }
            };
            if asked.is_some() {
                self.threads[thread].asks = asked;
                return;
            }
            self.threads[thread].replies.clear();
            if let Brain::Master(master) = &self.brain
                && thread == 0
                && self.threads.len() < master.chains.len()
            {
                // All chains are begun at once.
                let idle = Thread { replies: Vec::new(), asks: None };
                self.threads.resize(master.chains.len(), idle);
                for thread in (0..self.threads.len()).rev() {
                    self.go_on(thread, now_ms, setting);
                }
                return;
            }
        }
    }

    /// The session is over.
    pub(crate) fn lose(&mut self, now_ms: i64, setting: &Setting) {
        self.session = None;
        let sent = self.threads.iter().any(|thread| matches!(thread.asks, Some(Request::Submit(_))));
        self.threads = vec![Thread { replies: Vec::new(), asks: None }];
        match &mut self.brain {
            Brain::Master(master) => master.lose(),
            Brain::Worker(worker) => worker.lose(),
            Brain::Client(client) => client.sent |= sent,
        }
        self.go_on(0, now_ms, setting);
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Open => f.write_str("opens a session"),
            Request::Look => f.write_str("looks into its mailbox"),
            Request::Start { task, czxid, .. } => write!(f, "starts {task} for the assignment of zxid {czxid}"),
            Request::Get(path) => write!(f, "get {path}"),
            Request::List(parent) => write!(f, "ls {parent}"),
            Request::Create(path, data) => write!(f, "create {path}{data}"),
            Request::Own(path, data) => write!(f, "create -e {path}{data}"),
            Request::Submit(submit) => write!(f, "create -s /tasks/task- submit={submit}"),
            Request::Set(path, data, version) => write!(f, "set {path}{data} version={version:?}"),
            Request::Delete(path, _) => write!(f, "delete {path}"),
            Request::Sync => f.write_str("writes to its own node"),
            Request::End(session) => write!(f, "ends session {session}"),
        }
    }
}
