//! What a worker does on a session: registers, looks at what is assigned, writes what came of it.
//!
//! Every step may be repeated: each is a create-if-absent, a delete of something that must not stay, or a read. With the
//! session all that is known here goes; what runs does not.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use zk_cli::now_ms;
use zk_http::Ready;
use zk_session::{Change, Error, Kind, Session};
use znode_paths::paths::{self, Place, TaskChild, task_child};
use znode_paths::{
    Assignment, AssignmentMeta, Attempt, AttemptKind, DecodeError, Drain, Instance, Live, LiveName, Role, Status,
    StatusMeta, Task, TaskName, Worker, WorkerMeta, decode_epoch,
};

use crate::jobs::{Jobs, Stage, Start, Written};
use crate::judge::{Case, Claim, Own, TaskFacts, Verdict, counts, is_earlier, judge, oversee, retries_left, too_late};
use crate::{Leaving, Life};

/// How long a worker that has nothing left waits for the primary to see that it is leaving.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    /// Nothing is left to do here, and nothing can be assigned any more.
    Left,
}

pub(crate) struct Connection {
    session: Session,
    registration: Registration,
    /// The registration says that the worker is leaving.
    told: bool,
    /// What is assigned may have changed.
    desk_stale: bool,
    /// Jobs whose task or assignment may have changed.
    stale: BTreeSet<TaskName>,
    /// Assignments that are decided as long as nothing happens to their znodes.
    settled: BTreeSet<TaskName>,
    /// Assignments for which there is no room yet, in the order of service: higher priority first, then the lower number.
    waiting: BTreeSet<(Reverse<i64>, TaskName)>,
    /// Results were kept on an earlier session.
    unwritten: bool,
    leave_at: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Registration {
    /// Something has to be looked at.
    Stale,
    /// There is no `/workers` or no `/assign` yet.
    Waiting,
    /// Somebody else holds the name. Whether that process lives, its next heartbeat will tell.
    Contested(Option<Instance>),
    Registered,
}

impl Connection {
    pub(crate) fn new(session: Session) -> Self {
        Connection {
            session,
            registration: Registration::Stale,
            told: false,
            desk_stale: true,
            stale: BTreeSet::new(),
            settled: BTreeSet::new(),
            waiting: BTreeSet::new(),
            unwritten: true,
            leave_at: None,
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.session.number()
    }

    /// Whether something can be assigned, or why not.
    pub(crate) fn ready(&self) -> Ready {
        match self.registration {
            Registration::Registered => Ok("registered"),
            Registration::Stale => Err("it is about to register"),
            Registration::Waiting => Err("it waits for a master to set up the tree"),
            Registration::Contested(_) => Err("its name is registered by another session"),
        }
    }

    pub(crate) fn close(&self, patience: Duration) {
        self.session.close(patience);
    }

    pub(crate) fn wake(&self) -> Option<Instant> {
        self.leave_at
    }

    /// A command ended or the worker was asked to stop.
    pub(crate) fn look_again(&mut self) {
        self.desk_stale = true;
        self.unwritten = true;
    }

    /// Something changed at a path.
    pub(crate) fn hint(&mut self, path: &str, change: Change, life: &Life, jobs: &Jobs) -> Result<(), crate::Error> {
        match Place::of(path) {
            Some(Place::Workers | Place::Assign) => self.registration = Registration::Stale,
            Some(Place::Worker(name)) if name == life.config.name => self.registration = Registration::Stale,
            Some(Place::Assignments(name)) if name == life.config.name => {
                self.desk_stale = true;
                if change == Change::Deleted {
                    self.registration = Registration::Stale;
                }
            }
            Some(Place::Assignment(name, task)) if name == life.config.name => {
                self.desk_stale = true;
                self.settled.remove(&task);
                self.stale.insert(task);
            }
            Some(Place::Task(task) | Place::TaskChild(task, _))
                if jobs.get(&task).is_some() || self.waiting.iter().any(|(_, waiting)| *waiting == task) =>
            {
                self.desk_stale = true;
                self.stale.insert(task);
            }
            // That was a heartbeat.
            Some(Place::LiveNode(node))
                if self.registration == Registration::Contested(Some(node.instance)) && change == Change::Data =>
            {
                return Err(self.name_taken(life));
            }
            _ => {}
        }
        Ok(())
    }

    /// Does whatever can be done without another message.
    pub(crate) fn go_on(&mut self, life: &mut Life, jobs: &mut Jobs) -> Result<Next, Error> {
        if self.registration == Registration::Stale {
            self.register(life, jobs)?;
        }
        if std::mem::take(&mut self.unwritten) {
            self.write_results(life, jobs)?;
        }
        if self.registration == Registration::Registered {
            if life.leaving > Leaving::No && !self.told {
                self.session.write(&paths::worker(&life.config.name), &registration(life).encode(), None)?;
                self.told = true;
            }
            // A command that could not be started has ended at once: its result is written now, too.
            while std::mem::take(&mut self.desk_stale) {
                self.look_at_desk(life, jobs)?;
                self.write_results(life, jobs)?;
            }
        }
        if life.leaving > Leaving::No && jobs.is_empty() { self.leave(life) } else { Ok(Next::Wait) }
    }

    /// Registers, as far as the tree is there; sets the watches that say when to go on.
    fn register(&mut self, life: &Life, jobs: &Jobs) -> Result<(), Error> {
        let (session, name) = (&self.session, &life.config.name);
        let before = std::mem::replace(&mut self.registration, Registration::Waiting);
        if session.stat(paths::WORKERS, true)?.is_none() {
            log::info!("waiting for a master to set up {}", paths::WORKERS);
            return Ok(());
        }
        if session.id().is_none() {
            self.introduce(life, jobs)?;
        }
        let path = paths::worker(name);
        loop {
            match session.create(&path, &registration(life).encode(), Kind::Ephemeral) {
                Ok(_) => {
                    log::info!("registered worker={name} address={}", life.config.address);
                }
                Err(Error::NodeExists(_)) => {}
                Err(Error::NoNode(_)) => {
                    self.registration = Registration::Stale;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            match session.read(&path, true)? {
                Some((data, stat)) if stat.owner == session.id() => {
                    // Somebody wrote something else there by hand.
                    if data != registration(life).encode() {
                        session.write(&path, &registration(life).encode(), Some(stat.version))?;
                    }
                    break;
                }
                Some(_) => return self.contest(life, &before),
                None => {}
            }
        }
        self.told = life.leaving > Leaving::No;
        if session.stat(paths::ASSIGN, true)?.is_none() {
            log::info!("waiting for a master to set up {}", paths::ASSIGN);
            return Ok(());
        }
        match session.create(&paths::assignments(name), b"", Kind::Persistent) {
            Ok(_) | Err(Error::NodeExists(_)) => {}
            Err(Error::NoNode(_)) => {
                self.registration = Registration::Stale;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.registration = Registration::Registered;
        self.desk_stale = true;
        // Nothing is known of what happened to our jobs before the watches of this session.
        self.stale.extend(jobs.iter().map(|(name, _)| *name));
        Ok(())
    }

    /// The order is what makes it safe (PROTOCOL section 3, Sessions): first our node below `/live` on the new session, so
    /// that at no time nobody carries our instance; then the end of the earlier sessions, whose `/workers/<worker>` would
    /// stand in the way until they expire.
    fn introduce(&self, life: &Life, jobs: &Jobs) -> Result<(), Error> {
        let (session, config) = (&self.session, &life.config);
        session.ensure(paths::LIVE)?;
        let name = LiveName { instance: life.instance, session: session.number() };
        let node = Live::new(config.address.as_str(), Role::Worker, Some(config.name.clone()));
        session.own(&paths::live(&name), &node.encode())?;
        jobs.processes.follow(session);
        for other in session.children(paths::LIVE, false)?.unwrap_or_default() {
            let Ok(other) = other.parse::<LiveName>() else { continue };
            if !is_earlier(other, name, &life.instances) {
                continue;
            }
            let Some(earlier) = session.stat(&paths::live(&other), false)?.and_then(|stat| stat.owner) else {
                continue;
            };
            match session.end_earlier(earlier) {
                Ok(true) => log::info!("ended an earlier session of this process session={earlier}"),
                Ok(false) => {}
                Err(error) => log::warn!("cannot end an earlier session, it will expire session={earlier}: {error}"),
            }
        }
        Ok(())
    }

    /// The name is held by another session. A process that lives writes to its node below `/live` every sixth of its
    /// session timeout; one that is dead does not, and its registration goes with its session.
    fn contest(&mut self, life: &Life, before: &Registration) -> Result<(), Error> {
        let path = paths::worker(&life.config.name);
        let holder = self.session.read(&path, true)?.and_then(|(data, _)| Worker::decode(&data).ok());
        let instance = holder.as_ref().and_then(Worker::instance);
        let ours = instance.is_some_and(|instance| life.instances.contains(&instance));
        let contested = Registration::Contested(instance.filter(|_| !ours));
        if *before != contested {
            let address = holder.map_or_else(String::new, |holder| holder.address);
            log::info!("the name is registered, waiting until that session ends path={path} address={address:?}");
        }
        self.registration = contested;
        for node in self.session.children(paths::LIVE, false)?.unwrap_or_default() {
            let Ok(node) = node.parse::<LiveName>() else { continue };
            if Some(node.instance) == instance && !ours {
                self.session.stat(&paths::live(&node), true)?;
            }
        }
        Ok(())
    }

    fn name_taken(&self, life: &Life) -> crate::Error {
        let path = paths::worker(&life.config.name);
        let holder = self.session.read(&path, false).ok().flatten();
        let holder = holder.and_then(|(data, _)| Worker::decode(&data).ok()).map_or_else(String::new, |worker| {
            let instance = worker.instance().map(|instance| instance.to_string()).unwrap_or_default();
            format!("address {}, instance {instance}", worker.address)
        });
        crate::Error::NameTaken { name: life.config.name.clone(), holder }
    }

    /// Reads what is assigned, and does what follows.
    fn look_at_desk(&mut self, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        let path = paths::assignments(&life.config.name);
        let Some(names) = self.session.children(&path, true)? else {
            self.registration = Registration::Stale;
            return Ok(());
        };
        let assigned: BTreeSet<TaskName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        self.settled.retain(|task| assigned.contains(task));
        jobs.assigned(&assigned);
        let stale = std::mem::take(&mut self.stale);
        let running: Vec<(TaskName, i64, i64)> = jobs
            .iter()
            .filter(|(name, job)| {
                matches!(job.stage, Stage::Running { .. }) && (stale.contains(name) || !assigned.contains(name))
            })
            .map(|(name, job)| (*name, job.fence, job.task))
            .collect();
        for (task, fence, czxid) in running {
            let path = paths::assignment(&life.config.name, &task);
            let assignment = self.session.read(&path, true)?.filter(|(_, stat)| stat.czxid == fence);
            let ours = assignment.is_some();
            if let Some((data, stat)) = assignment
                && let Some(answer) = too_late(Assignment::decode(&data))
            {
                done_already(self.session.write(&path, &answer.encode(), Some(stat.version)).map(drop))?;
            }
            let facts = self.read_task(task, life)?.map(|(facts, _)| facts);
            if let Some(why) = oversee(facts.as_ref(), czxid, ours) {
                jobs.stop(&task, why, life);
            }
        }
        let leaving = life.leaving > Leaving::No;
        self.waiting.retain(|(_, task)| assigned.contains(task) && !stale.contains(task) && !leaving);
        let known = |task: &TaskName| jobs.get(task).is_some() || self.settled.contains(task);
        let waits: BTreeSet<TaskName> = self.waiting.iter().map(|(_, task)| *task).collect();
        let new: Vec<TaskName> = assigned.into_iter().filter(|task| !known(task) && !waits.contains(task)).collect();
        // Where not all of them can start, they are looked at first, and start in their order then.
        let room_for_all = waits.len() + new.len() <= jobs.free(life);
        for task in new {
            self.consider(task, room_for_all, life, jobs)?;
        }
        while jobs.free(life) > 0
            && let Some((_, task)) = self.waiting.pop_first()
        {
            self.consider(task, true, life, jobs)?;
        }
        Ok(())
    }

    /// Reads an assignment, then `/epoch`, then the task, on this session and not from memory, and does what follows.
    fn consider(&mut self, name: TaskName, room: bool, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        let path = paths::assignment(&life.config.name, &name);
        let Some((data, stat)) = self.session.read(&path, true)? else { return Ok(()) };
        if jobs.was_started(&name, stat.czxid) {
            self.settled.insert(name);
            return Ok(());
        }
        let assignment = Assignment::decode(&data);
        let epoch = self.session.read(paths::EPOCH, false)?.and_then(|(data, _)| decode_epoch(&data));
        let (facts, task) = self.read_task(name, life)?.unzip();
        let (czxid, failures) = facts.as_ref().map_or((0, 0), |facts: &TaskFacts| (facts.czxid, facts.failures));
        let own =
            Own { instance: life.instance, room: room && jobs.free(life) > 0, leaving: life.leaving > Leaving::No };
        let verdict = judge(&Case { assignment: &assignment, epoch, task: facts }, own);
        match verdict {
            Verdict::Wait => {
                let priority = task.flatten().as_ref().map_or(0, Task::priority);
                self.waiting.insert((Reverse(priority), name));
            }
            Verdict::Start(attempt) => {
                if let Some(Some(task)) = task {
                    let again = retries_left(&task, failures);
                    jobs.start(&Start { name, task: &task, czxid, fence: stat.czxid, attempt, again }, life);
                }
            }
            Verdict::Leave(why) => {
                log::debug!("left alone task={name}: {why}");
                self.settled.insert(name);
            }
            Verdict::Delete(why) => {
                log::info!("deleted an assignment unstarted task={name}: {why}");
                done_already(self.session.delete(&path, Some(stat.version)))?;
                self.desk_stale = true;
            }
            Verdict::Return => {
                let fence = epoch.unwrap_or_default();
                let made_by_hand = || AssignmentMeta::new(Some(life.instance), fence, 1, czxid);
                let meta = AssignmentMeta { returned: true, ..assignment.meta.unwrap_or_else(made_by_hand) };
                let data = Assignment { meta: Some(meta) }.encode();
                done_already(self.session.write(&path, &data, Some(stat.version)).map(drop))?;
                log::info!("returned unstarted task={name}");
                self.settled.insert(name);
            }
            Verdict::End(outcome, reason) => {
                log::info!("ended unstarted task={name} status={}: {reason}", outcome.word());
                let status = match task.flatten() {
                    Some(Task { meta: None, .. }) => Status::plain(outcome),
                    _ => {
                        // With the fence whoever follows the assignment knows that it wrote nothing.
                        let (worker, fence) = (Some(life.config.name.clone()), Some(stat.czxid));
                        let meta = StatusMeta { reason: Some(reason), worker, fence, ..StatusMeta::default() };
                        Status { outcome, meta: Some(meta) }
                    }
                };
                match done_already(
                    self.session.create(&paths::status(&name), &status.encode(), Kind::Persistent).map(drop),
                ) {
                    Err(error @ (Error::NotAllowed(_) | Error::Refused { .. })) => {
                        log::error!("cannot end task={name}: {error}");
                    }
                    result => result?,
                }
                self.settled.insert(name);
            }
        }
        Ok(())
    }

    /// Reads a task and what is below it, and sets a watch on that. The task itself is missing where nobody may run it.
    ///
    /// What is below it is read first: whoever removes a finished task marks it before its status goes, so one that is
    /// seen without a status and then without the mark has not ended.
    fn read_task(&self, name: TaskName, life: &Life) -> Result<Option<(TaskFacts, Option<Task>)>, Error> {
        let path = paths::task(&name);
        let Some(children) = self.session.children(&path, true)? else { return Ok(None) };
        let Some((data, stat)) = self.session.read(&path, false)? else { return Ok(None) };
        if stat.owner.is_some() {
            // Nothing can be created below an ephemeral, so no status: it is no task.
            return Ok(None);
        }
        let mut facts = TaskFacts { czxid: stat.czxid, ..TaskFacts::default() };
        for child in children.iter().filter_map(|child| task_child(child)) {
            match child {
                TaskChild::Status => facts.status = true,
                TaskChild::Cancel => facts.cancel = true,
                TaskChild::Attempt(number) => _ = facts.attempts.insert(number),
            }
        }
        let task = match Task::decode(&data) {
            Ok(task) => Ok(task),
            Err(DecodeError::Removed) => return Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let task = task.and_then(|task| {
            let Some(rules) = &life.config.signed else { return Ok(task) };
            let (created_ms, version) = (stat.ctime_ms, stat.version);
            let claim = Claim { task: &task, data: &data, created_ms, version, now_ms: now_ms() };
            rules.accept(&claim, &life.config.name, &life.config.labels).map(|()| task)
        });
        let task = task.map_err(|why| facts.refused = Some(why)).ok();
        if task.as_ref().is_some_and(|task| retries_left(task, 0)) {
            for number in &facts.attempts {
                let record = self.session.read(&paths::attempt(&name, *number), false)?;
                let kind = record.and_then(|(data, _)| Attempt::decode(&data).kind);
                facts.failures += u32::from(kind == Some(AttemptKind::Failed));
            }
        }
        Ok(Some((facts, task)))
    }

    /// Writes what came of the commands that have ended.
    fn write_results(&mut self, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        let ended: Vec<TaskName> =
            jobs.iter().filter(|(_, job)| matches!(job.stage, Stage::Ended(_))).map(|(name, _)| *name).collect();
        for name in ended {
            // Something happened to it that was not looked at yet.
            if self.stale.contains(&name) && self.read_task(name, life)?.is_some_and(|(facts, _)| facts.cancel) {
                jobs.cancel_ended(&name);
            }
            let written = jobs.written(&name, life);
            let Some(job) = jobs.get(&name) else { continue };
            let assignment = paths::assignment(&life.config.name, &name);
            let there = || Ok(self.session.stat(&assignment, false)?.map(|stat| stat.czxid));
            if counts(job.instance, life.instance, job.fence, there)? {
                if let Some(written) = &written {
                    self.write_result(name, job.attempt, job.fence, written)?;
                }
                if let Some(Written::Record(Attempt { kind: Some(AttemptKind::Failed), .. })) = &written {
                    self.give_back(name, job.fence, life)?;
                }
            } else {
                log::warn!("dropped the result of task={name}: it was given to somebody else");
            }
            // The assignment that was started is settled. There may be another one by now, if somebody took that away.
            jobs.remove(&name);
            self.desk_stale = true;
        }
        Ok(())
    }

    fn write_result(&self, name: TaskName, attempt: u32, fence: i64, written: &Written) -> Result<(), Error> {
        let (path, data) = match written {
            Written::Status(status) => (paths::status(&name), status.encode()),
            Written::Record(record) => (paths::attempt(&name, attempt), record.encode()),
        };
        match (self.session.create(&path, &data, Kind::Persistent), written) {
            (Ok(_), Written::Status(status)) => log::info!("reported task={name} status={}", status.outcome.word()),
            (Ok(_), Written::Record(record)) => log::info!("recorded a {} task={name} attempt={attempt}", kind(record)),
            (Err(Error::NodeExists(_)), Written::Record(_)) => {}
            (Err(Error::NodeExists(_)), Written::Status(_)) => {
                // Ours, if the answer to an earlier try was lost.
                let there = self.session.read(&path, false)?.map(|(data, _)| Status::decode(&data));
                let ours = there.as_ref().and_then(|status| status.meta.as_ref()?.fence) == Some(fence);
                if !ours {
                    let word = there.map(|status| status.outcome.word().to_owned()).unwrap_or_default();
                    log::warn!("dropped the result of task={name}: its status is {word:?} already");
                }
            }
            (Err(Error::NoNode(_)), _) => log::warn!("dropped the result of task={name}: the task is gone"),
            (Err(error @ (Error::NotAllowed(_) | Error::Refused { .. })), _) => {
                log::error!("dropped the result of task={name}, which has no status now: {error}");
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// Deletes the assignment that was started: its attempt is recorded, and the primary assigns the task anew. Where that
    /// is gone, and another one at its path that comes between these two requests, it is one that was not started.
    fn give_back(&self, name: TaskName, fence: i64, life: &Life) -> Result<(), Error> {
        let path = paths::assignment(&life.config.name, &name);
        while let Some(stat) = self.session.stat(&path, false)?.filter(|stat| stat.czxid == fence) {
            match self.session.delete(&path, Some(stat.version)) {
                // It was recalled in between.
                Err(Error::BadVersion(_)) => {}
                deleted => return done_already(deleted),
            }
        }
        Ok(())
    }

    /// Leaves so that nothing can be assigned any more: without its node below `/assign` the primary cannot create an
    /// assignment, and the node can be deleted only when nothing is below it. Where that cannot be had in time, the worker
    /// leaves all the same; what it returned is marked.
    fn leave(&mut self, life: &Life) -> Result<Next, Error> {
        let until = *self.leave_at.get_or_insert_with(|| Instant::now() + FAREWELL);
        if self.registration != Registration::Registered || Instant::now() >= until {
            return Ok(Next::Left);
        }
        let path = paths::assignments(&life.config.name);
        let Some((data, stat)) = self.session.read(&path, false)? else { return Ok(Next::Left) };
        if Drain::decode(&data).drain {
            // It says that the worker is out of service, which outlives the process; so nothing is assigned anyway.
            return Ok(Next::Left);
        }
        match self.session.delete(&path, Some(stat.version)) {
            Ok(()) | Err(Error::NoNode(_)) => Ok(Next::Left),
            Err(Error::NotEmpty(_) | Error::BadVersion(_)) => Ok(Next::Wait),
            Err(error) => Err(error),
        }
    }
}

fn kind(record: &Attempt) -> &'static str {
    match record.kind {
        Some(AttemptKind::Failed) => "failed attempt",
        _ => "lost attempt",
    }
}

fn registration(life: &Life) -> Worker {
    let config = &life.config;
    let meta = WorkerMeta {
        labels: config.labels.clone(),
        stopping: life.leaving > Leaving::No,
        ..WorkerMeta::new(life.instance, config.slots)
    };
    Worker { address: config.address.to_string(), meta: Some(meta) }
}

/// The znode is gone or was changed in between: whatever is there now fires the watch on it.
fn done_already(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NoNode(_) | Error::NodeExists(_) | Error::BadVersion(_)) => Ok(()),
        result => result,
    }
}
