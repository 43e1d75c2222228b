//! Everything together: who may do what next, and what comes of it.
//!
//! Time goes in ticks of a quarter of the session timeout. A tick comes only when nobody is late: whoever is to be dead
//! at 3/4 of the timeout is dead before the whole of it has passed. Within a tick everything may happen in any order.

use std::collections::VecDeque;
use std::fmt;

use znode_paths::{Assignment, TaskName};

use crate::client::Client;
use crate::ledger::Ledger;
use crate::master::Master;
use crate::mutation::Mutation;
use crate::process::{Brain, Life, Process, Reply, Request, What};
use crate::tree::{Data, Path, SessionId, Tree, worker_name};
use crate::worker::Worker;
use crate::{Hands, Setting};

/// The session timeout, and after how much of it a worker kills what it runs; in ticks.
const TIMEOUT: u32 = 4;
const LEASH: u32 = 3;

/// A tick, by the servers' clock.
const TICK_MS: i64 = 2_500;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    /// A process gets the answer to what a thread of it asks for; a read sees the tree as it was at this zxid.
    Do {
        process: usize,
        thread: usize,
        at: i64,
    },
    /// A request that was on its way when its sender gave the session up is carried out.
    Late(SessionId),
    /// A command ends.
    Ends(usize),
    /// A worker kills what it runs, because its leash has run out.
    LeashOut(usize),
    /// A guard kills a frozen daemon for the same reason.
    GuardKills(usize),
    /// A guard ends one session of the daemon that died.
    GuardEnds(usize),
    /// A guard, or somebody after a host has died, starts a daemon.
    Starts(usize),
    /// A process that gets no answers gives up its session.
    GivesUp(usize),
    /// A link that was silent works again.
    Mended(usize),
    Thaws(usize),
    /// The ensemble expires a session.
    Expires(SessionId),
    Tick,
    /// The connection breaks; so many of the requests that were asked for last were not sent.
    Cut {
        process: usize,
        unsent: usize,
    },
    /// The server loses the quorum: it goes on answering reads, as of now.
    Silent(usize),
    Freezes(usize),
    /// The daemon's process dies; its guard lives.
    Crashes(usize),
    /// The host dies.
    HostDies(usize),
    /// Somebody with `zkCli.sh`.
    HandDeletes(Path),
    HandCancels(TaskName),
    HandAssigns(u8, TaskName),
}

impl Move {
    /// Whether it is a fault, or something that somebody does by hand.
    pub(crate) fn is_fault(&self) -> bool {
        use Move::*;
        matches!(
            self,
            Cut { .. }
                | Silent(_)
                | Freezes(_)
                | Crashes(_)
                | HostDies(_)
                | HandDeletes(_)
                | HandCancels(_)
                | HandAssigns(..)
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) of: usize,
    pub(crate) open: bool,
    /// Its reads are of this zxid or later.
    pub(crate) seen: i64,
    /// When the ensemble last heard of it.
    pub(crate) touched: u32,
    /// When the last acknowledged write to its own node was sent.
    pub(crate) proved: Option<u32>,
    /// Its server has lost the quorum, and knows nothing later than this.
    pub(crate) silent: Option<i64>,
    /// Sent, and may still be carried out though nobody waits for it any more.
    pub(crate) in_flight: VecDeque<Request>,
}

/// The state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) tree: Tree,
    pub(crate) sessions: Vec<Session>,
    pub(crate) processes: Vec<Process>,
    pub(crate) now: u32,
    /// How many may still happen.
    pub(crate) faults: u8,
    pub(crate) ledger: Ledger,
}

impl World {
    pub(crate) fn new(setting: &Setting) -> Self {
        let masters = (0..setting.masters).map(|name| Brain::Master(Box::new(Master::new(name, 0))));
        let workers = (0..setting.workers).map(|name| Brain::Worker(Box::new(Worker::new(name, 0))));
        let submits = u8::try_from(setting.submits.len()).expect("a few");
        let clients = (0..submits).map(|submit| Brain::Client(Client::new(submit)));
        let processes = masters.chain(workers).chain(clients).map(Process::new).collect();
        let (tree, sessions) = (Tree::default(), Vec::new());
        World { tree, sessions, processes, now: 0, faults: setting.faults, ledger: Ledger::default() }
    }

    fn now_ms(&self) -> i64 {
        i64::from(self.now) * TICK_MS + 1 // 0 would be "never"
    }

    /// The latest zxid that a session can read.
    fn latest(&self, session: SessionId) -> i64 {
        self.sessions[session].silent.unwrap_or(self.tree.zxid)
    }

    /// The moves that are possible now, into a list that is reused.
    pub(crate) fn moves(&self, setting: &Setting, moves: &mut Vec<Move>) {
        moves.clear();
        for (index, process) in self.processes.iter().enumerate() {
            let session = process.session;
            match process.life {
                Life::Dead => match (&process.brain, process.to_end.is_empty()) {
                    (Brain::Client(_), _) => {}
                    (_, true) => moves.push(Move::Starts(index)),
                    (_, false) => moves.push(Move::GuardEnds(index)),
                },
                Life::Frozen => {
                    moves.push(Move::Thaws(index));
                    if self.late(index, setting) {
                        moves.push(Move::GuardKills(index));
                    }
                }
                Life::Running => {
                    for (thread, asks) in process.threads.iter().enumerate() {
                        let Some(request) = &asks.asks else { continue };
                        let at = session.map_or(0, |session| self.latest(session));
                        let silent = session.is_some_and(|session| self.sessions[session].silent.is_some());
                        let possible = match request {
                            Request::Look => self.has_news(process, at),
                            request => !silent || !request.writes(),
                        };
                        if possible {
                            moves.push(Move::Do { process: index, thread, at });
                        }
                    }
                    if session.is_some_and(|session| self.sessions[session].silent.is_some()) {
                        moves.push(Move::GivesUp(index));
                        moves.push(Move::Mended(index));
                    }
                    if matches!(&process.brain, Brain::Worker(worker) if !worker.expired) && self.late(index, setting) {
                        moves.push(Move::LeashOut(index));
                    }
                }
            }
        }
        moves.extend(self.ledger.running().map(Move::Ends));
        for (index, session) in self.sessions.iter().enumerate().filter(|(_, session)| session.open) {
            if !session.in_flight.is_empty() {
                moves.push(Move::Late(index));
            }
            if self.now - session.touched >= TIMEOUT {
                moves.push(Move::Expires(index));
            }
        }
        let late = |index: usize| self.processes[index].life != Life::Dead && self.worker_late(index, setting);
        if !(0..self.processes.len()).any(late) {
            moves.push(Move::Tick);
        }
        if self.faults > 0 {
            self.faults(setting, moves);
        }
    }

    fn faults(&self, setting: &Setting, moves: &mut Vec<Move>) {
        for (index, process) in self.processes.iter().enumerate() {
            let client = matches!(process.brain, Brain::Client(_));
            let done = matches!(&process.brain, Brain::Client(client) if client.reported.is_some());
            if process.life == Life::Dead || done {
                continue;
            }
            if process.life == Life::Running
                && let Some(session) = process.session
            {
                let waiting = process.threads.iter().filter(|thread| thread.asks.is_some()).count();
                moves.extend((0..=waiting.min(2)).map(|unsent| Move::Cut { process: index, unsent }));
                if self.sessions[session].silent.is_none() {
                    moves.push(Move::Silent(index));
                }
                if !client {
                    moves.push(Move::Freezes(index));
                }
            }
            moves.push(Move::HostDies(index));
            if !client {
                moves.push(Move::Crashes(index));
            }
        }
        if setting.hands >= Hands::Nodes {
            let by_hand = |path: &Path| match path {
                Path::Master | Path::Worker(_) => true,
                Path::Assignment(..) => setting.hands >= Hands::Assignments,
                _ => false,
            };
            moves.extend(self.tree.all().map(|(path, _)| path).filter(by_hand).map(Move::HandDeletes));
            for (path, _) in self.tree.all() {
                let Path::Task(name) = path else { continue };
                if self.tree.now(Path::Status(name)).is_some() {
                    continue;
                }
                if self.tree.now(Path::Cancel(name)).is_none() {
                    moves.push(Move::HandCancels(name));
                }
                if setting.hands >= Hands::Assignments {
                    let desks = (0..setting.workers).filter(|worker| self.tree.now(Path::Desk(*worker)).is_some());
                    let free = desks.filter(|worker| self.tree.now(Path::Assignment(*worker, name)).is_none());
                    moves.extend(free.map(|worker| Move::HandAssigns(worker, name)));
                }
            }
        }
    }

    fn has_news(&self, process: &Process, at: i64) -> bool {
        match &process.brain {
            Brain::Master(master) => master.has_news(&self.tree, at, self.now_ms()),
            Brain::Worker(worker) => worker.has_news(&self.tree, at),
            Brain::Client(_) => false,
        }
    }

    /// Whether the last proof of the process is so old that it must not run anything any more.
    fn late(&self, process: usize, setting: &Setting) -> bool {
        let session = match &self.processes[process].brain {
            Brain::Master(_) => self.processes[process].session,
            Brain::Worker(worker) => worker.leash,
            Brain::Client(_) => None,
        };
        let proved = session.and_then(|session| self.sessions[session].proved);
        setting.mutation != Some(Mutation::NoDeadline) && proved.is_some_and(|proved| self.now - proved >= LEASH)
    }

    fn worker_late(&self, process: usize, setting: &Setting) -> bool {
        matches!(&self.processes[process].brain, Brain::Worker(worker) if !worker.expired)
            && self.late(process, setting)
    }

    /// Does it. Returns a line for whoever reads the trace, where there is one.
    pub(crate) fn apply(&mut self, setting: &Setting, step: Move, told: bool) -> Option<String> {
        if step.is_fault() {
            self.faults -= 1;
        }
        let say = |text: String| told.then_some(text);
        match step {
            Move::Do { process, thread, at } => return self.answer(setting, process, thread, at, told),
            Move::Late(session) => {
                let request = self.sessions[session].in_flight.pop_front().expect("there is one");
                self.sessions[session].touched = self.now;
                let what = self.write(setting, session, &request);
                return say(format!("late, of session {session}: {request}: {what}"));
            }
            Move::Ends(run) => {
                let run = self.ledger.end(run);
                let success = !setting.submits[usize::from(run.submit)].fails;
                let process = &mut self.processes[run.process];
                if let Brain::Worker(worker) = &mut process.brain {
                    worker.exits.push((run.czxid, success));
                    if process.life == Life::Running && process.session.is_none() {
                        worker.hear();
                    }
                }
                return say(format!("{}: the command of {} ends", self.name(run.process), run.task));
            }
            Move::LeashOut(process) => {
                self.ledger.kill(process);
                if let Brain::Worker(worker) = &mut self.processes[process].brain {
                    worker.expired = true;
                }
                return say(format!("{}: the leash runs out, all it ran is killed", self.name(process)));
            }
            Move::GuardKills(process) => {
                self.die(process, true);
                return say(format!("{}: frozen for too long, the guard kills it", self.name(process)));
            }
            Move::GuardEnds(process) => {
                let session = self.processes[process].to_end.remove(0);
                self.end(setting, session);
                return say(format!("{}: the guard ends session {session}", self.name(process)));
            }
            Move::Starts(index) => {
                let process = &mut self.processes[index];
                *process = Process::new(match &process.brain {
                    Brain::Master(master) => Brain::Master(Box::new(Master::new(master.name, master.lives))),
                    Brain::Worker(worker) => Brain::Worker(Box::new(Worker::new(worker.name, worker.lives))),
                    Brain::Client(client) => Brain::Client(client.clone()),
                });
                return say(format!("{}: starts again", self.name(index)));
            }
            Move::GivesUp(process) | Move::Cut { process, unsent: _ } => {
                let unsent = if let Move::Cut { unsent, .. } = step { unsent } else { 0 };
                self.sent(process, unsent);
                let now_ms = self.now_ms();
                self.processes[process].lose(now_ms, setting);
                let why = if step.is_fault() { "the connection breaks" } else { "gives up its silent session" };
                return say(format!("{}: {why}", self.name(process)));
            }
            Move::Mended(process) => {
                if let Some(session) = self.processes[process].session {
                    self.sessions[session].silent = None;
                    return say(format!("{}: its server is back", self.name(process)));
                }
            }
            Move::Thaws(process) => {
                self.processes[process].life = Life::Running;
                return say(format!("{}: thaws", self.name(process)));
            }
            Move::Expires(session) => {
                self.close(session);
                return say(format!("session {session} of {} expires", self.name(self.sessions[session].of)));
            }
            Move::Tick => {
                self.now += 1;
                self.beat(setting);
                return say(format!("a quarter of the session timeout passes: {}", self.now));
            }
            Move::Silent(process) => {
                if let Some(session) = self.processes[process].session {
                    self.sessions[session].silent = Some(self.tree.zxid);
                    return say(format!("{}: its server loses the quorum", self.name(process)));
                }
            }
            Move::Freezes(process) => {
                self.processes[process].life = Life::Frozen;
                return say(format!("{}: freezes", self.name(process)));
            }
            Move::Crashes(process) => {
                self.die(process, true);
                return say(format!("{}: crashes, its guard lives", self.name(process)));
            }
            Move::HostDies(process) => {
                self.die(process, false);
                return say(format!("{}: its host dies", self.name(process)));
            }
            Move::HandDeletes(path) => {
                let done = self.tree.delete(path, None);
                return say(format!("by hand: delete {path}: {done:?}"));
            }
            Move::HandCancels(task) => {
                let done = self.tree.create(Path::Cancel(task), Data::Empty, None);
                return say(format!("by hand: create {}: {done:?}", Path::Cancel(task)));
            }
            Move::HandAssigns(worker, task) => {
                let path = Path::Assignment(worker, task);
                let done = self.tree.create(path, Data::Assignment(Assignment::default()), None);
                return say(format!("by hand: create {path}: {done:?}"));
            }
        }
        None
    }

    /// Forgets what nobody can read or use any more, so that states which differ in nothing else are one: what was read when
    /// reads see the latest, and how long ago something was beyond the session timeout. Time stands still then, but for ages.
    pub(crate) fn forget(&mut self) {
        let latest = |session: &Session| session.silent.unwrap_or(self.tree.zxid);
        let used = self.sessions.iter().filter(|session| session.open || session.silent.is_some());
        let oldest = used.map(latest).min().unwrap_or(self.tree.zxid);
        self.tree.forget(oldest);
        let age = |at: u32| TIMEOUT - (self.now - at).min(TIMEOUT);
        for (index, session) in self.sessions.iter_mut().enumerate() {
            let leash =
                |process: &Process| matches!(&process.brain, Brain::Worker(worker) if worker.leash == Some(index));
            let leash = self.processes.iter().any(leash);
            session.touched = if session.open { age(session.touched) } else { 0 };
            session.proved = session.proved.filter(|_| session.open || leash).map(age);
            session.seen = if session.open { session.silent.unwrap_or(self.tree.zxid) } else { 0 };
        }
        self.now = TIMEOUT;
    }

    /// Whoever can sends a heartbeat: a write, for those who have a node of their own.
    fn beat(&mut self, setting: &Setting) {
        for process in &self.processes {
            let (Life::Running, Some(session)) = (process.life, process.session) else { continue };
            let session = &mut self.sessions[session];
            let reads = session.silent.is_some();
            if reads && setting.mutation == Some(Mutation::ReadsProve) {
                session.proved = session.proved.map(|_| self.now);
            }
            if reads || !session.open {
                continue;
            }
            session.touched = self.now;
            if session.proved.is_some() {
                session.proved = Some(self.now);
                session.seen = self.tree.zxid;
            }
        }
    }

    fn answer(&mut self, setting: &Setting, index: usize, thread: usize, at: i64, told: bool) -> Option<String> {
        let process = &mut self.processes[index];
        let request = process.threads[thread].asks.clone().expect("it asks");
        let line;
        let name = || name_of(&process.brain);
        match (&request, process.session) {
            (Request::Open, _) => {
                let session = self.sessions.len();
                line = told.then(|| format!("{}: opens session {session}", name()));
                process.session = Some(session);
                process.sessions.push(session);
                let (seen, touched) = (self.tree.zxid, self.now);
                let (proved, silent, in_flight) = (None, None, VecDeque::new());
                self.sessions.push(Session { of: index, open: true, seen, touched, proved, silent, in_flight });
            }
            (Request::Look, Some(session)) => {
                let seen = self.sessions[session].seen.max(at);
                self.sessions[session].seen = seen;
                let now_ms = self.now_ms();
                match &mut self.processes[index].brain {
                    Brain::Master(master) => master.look(&self.tree, seen),
                    Brain::Worker(worker) if worker.expired => {
                        let name = self.name(index);
                        // It closes its session, and does not wait for that.
                        self.sessions[session].in_flight.push_back(Request::End(session));
                        self.processes[index].lose(now_ms, setting);
                        return told.then(|| format!("{name}: goes on as another instance"));
                    }
                    Brain::Worker(worker) => worker.look(&self.tree, seen),
                    Brain::Client(_) => {}
                }
                line = told.then(|| format!("{}: looks into its mailbox (zxid {seen})", self.name(index)));
            }
            (Request::Start { task, czxid, fence }, _) => {
                let Brain::Worker(worker) = &process.brain else { unreachable!("only workers start anything") };
                let proved = worker.leash.and_then(|session| self.sessions[session].proved);
                let fresh = proved.is_some_and(|proved| self.now - proved < LEASH) && !worker.expired;
                let started = fresh || setting.mutation == Some(Mutation::NoDeadline);
                line = told.then(|| format!("{}: {request}: {started}", name()));
                if started {
                    self.ledger.start(setting, &self.tree, index, *task, *czxid, *fence);
                }
                self.reply(index, thread, 0, What::Started(started));
            }
            (_, Some(session)) => {
                let silent = self.sessions[session].silent.is_some();
                if !self.sessions[session].open && (request.writes() || !silent) {
                    line = told.then(|| format!("{}: {request}: the session is over", name()));
                    let now_ms = self.now_ms();
                    self.processes[index].lose(now_ms, setting);
                    return line;
                }
                let (what, stamp) = if request.writes() {
                    self.sessions[session].touched = self.now;
                    let what = self.write(setting, session, &request);
                    self.sessions[session].seen = self.tree.zxid;
                    (what, 0)
                } else {
                    let seen = self.sessions[session].seen.max(at);
                    self.sessions[session].seen = seen;
                    match &request {
                        Request::Get(path) => {
                            (What::Node(self.tree.at(*path, seen).cloned()), self.tree.stamp(*path, seen))
                        }
                        Request::List(parent) => {
                            (What::Children(self.tree.list(*parent, seen)), self.tree.children_stamp(*parent, seen))
                        }
                        _ => unreachable!("not a read"),
                    }
                };
                let seen = self.sessions[session].seen;
                line = told.then(|| format!("{}: {request}: {what} (zxid {seen})", self.name(index)));
                if matches!(request, Request::Own(Path::Live(..), _) | Request::Sync) {
                    self.sessions[session].proved = Some(self.now);
                }
                if matches!(request, Request::Own(Path::Live(..), _)) && !self.worker_late(index, setting) {
                    // The leash follows this session, unless it has run out.
                    if let Brain::Worker(worker) = &mut self.processes[index].brain
                        && !worker.expired
                    {
                        worker.leash = Some(session);
                    }
                }
                self.reply(index, thread, stamp, what);
            }
            (_, None) => unreachable!("a request without a session"),
        }
        let now_ms = self.now_ms();
        self.processes[index].go_on(thread, now_ms, setting);
        line
    }

    fn reply(&mut self, process: usize, thread: usize, seen: i64, what: What) {
        self.processes[process].threads[thread].replies.push(Reply { seen, what });
    }

    fn write(&mut self, setting: &Setting, session: SessionId, request: &Request) -> What {
        let tree = &mut self.tree;
        let done = match request.clone() {
            Request::Create(path, data) => tree.create(path, data, None),
            Request::Own(path, data) => tree.create(path, data, Some(session)),
            Request::Set(path, data, version) => tree.set(path, data, version),
            Request::Delete(path, version) => tree.delete(path, version),
            Request::Submit(submit) => return What::Submitted(tree.submit(submit)),
            Request::Sync => Ok(()),
            Request::End(other) => {
                self.end(setting, other);
                Ok(())
            }
            other => unreachable!("{other:?} is not a write"),
        };
        if let (Ok(()), Request::Create(_, Data::Epoch(fence)) | Request::Set(_, Data::Epoch(fence), _)) =
            (done, request)
        {
            self.ledger.raised.push((self.tree.zxid, *fence));
        }
        done.map_or_else(What::Refused, |()| What::Done)
    }

    /// Opens a session again and closes it.
    fn end(&mut self, setting: &Setting, session: SessionId) {
        if setting.closes() {
            self.close(session);
            return;
        }
        let owned = |(path, node): (Path, &crate::tree::Node)| {
            (node.owner == Some(session) && !matches!(path, Path::Live(..))).then_some(path)
        };
        let owned: Vec<Path> = self.tree.all().filter_map(owned).collect();
        for path in owned {
            self.tree.delete(path, None).ok();
        }
    }

    fn close(&mut self, session: SessionId) {
        if std::mem::replace(&mut self.sessions[session].open, false) {
            self.sessions[session].in_flight.clear();
            self.tree.end(session);
        }
    }

    /// What a process has asked for is on its way, whether it lives to hear the answer or not.
    fn sent(&mut self, process: usize, unsent: usize) {
        let Some(session) = self.processes[process].session else { return };
        let asked = self.processes[process].threads.iter().filter_map(|thread| thread.asks.clone());
        let asked: Vec<Request> = asked.filter(|request| request.writes() && request.uses_session()).collect();
        let sent = asked.len().saturating_sub(unsent);
        self.sessions[session].in_flight.extend(asked.into_iter().take(sent));
    }

    fn die(&mut self, index: usize, guarded: bool) {
        self.sent(index, 0);
        self.ledger.kill(index);
        let process = &mut self.processes[index];
        process.life = Life::Dead;
        process.session = None;
        process.threads.clear();
        process.to_end.clear();
        if guarded {
            let open = process.sessions.iter().filter(|session| self.sessions[**session].open);
            process.to_end = open.copied().collect();
        }
    }

    pub(crate) fn name(&self, process: usize) -> String {
        name_of(&self.processes[process].brain)
    }
}

fn name_of(brain: &Brain) -> String {
    match brain {
        Brain::Master(master) => format!("m{}", master.name + 1),
        Brain::Worker(worker) => worker_name(worker.name).to_string(),
        Brain::Client(client) => format!("c{}", client.submit + 1),
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Done => f.write_str("done"),
            What::Refused(refusal) => write!(f, "{refusal:?}"),
            What::Submitted(name) => write!(f, "{name}"),
            What::Node(None) | What::Children(None) => f.write_str("not there"),
            What::Node(Some(node)) => write!(f, "czxid={}{}", node.czxid, node.data),
            What::Children(Some(children)) => {
                let names: Vec<String> = children.iter().map(|(path, _)| path.to_string()).collect();
                write!(f, "[{}]", names.join(" "))
            }
            What::Started(started) => write!(f, "{started}"),
        }
    }
}
