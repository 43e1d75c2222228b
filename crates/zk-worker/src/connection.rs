//! What a worker does on a session: registers, looks at what is assigned, writes what came of it.
//!
//! Every step may be repeated: each is a create-if-absent, a delete of something that must not stay, or a read. With the
//! session all that is known here goes; what runs does not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use zk_cli::now_ms;
use zk_http::Ready;
use zk_session::{Change, Error, Kind, Read, Session, Stat, Write, in_parallel};
use znode_paths::paths::{self, Place, TaskChild, task_child};
use znode_paths::{
    Assignment, AssignmentMeta, Attempt, AttemptKind, DecodeError, Drain, Instance, Live, LiveName, Role, Status,
    StatusMeta, Task, TaskName, Worker, WorkerMeta, decode_epoch,
};

use crate::jobs::{Job, Jobs, Stage, Start, Written};
use crate::judge::{
    Case, Claim, Own, TaskFacts, Verdict, Why, counts, is_earlier, judge, oversee, retries_left, too_late,
};
use crate::{Leaving, Life};

/// How long a worker that has nothing left waits for the primary to see that it is leaving.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long an assignment that may not be read is left alone: until somebody may have changed an ACL.
const BARRED: Duration = Duration::from_secs(30);

/// What runs for so long is watched, in case somebody wants it stopped: most tasks have ended before that could be done.
const WATCHED_FROM: Duration = Duration::from_millis(50);

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
    /// There is a watch on all below `/assign/<worker>`, which names every assignment that comes, goes or changes.
    follows: bool,
    /// What is assigned, if it was listed since there is that watch.
    desk: Option<BTreeSet<TaskName>>,
    /// What is assigned may have changed.
    desk_stale: bool,
    /// Jobs whose task or assignment may have changed.
    stale: BTreeSet<TaskName>,
    /// Assignments that are decided as long as nothing happens to their znodes.
    settled: BTreeSet<TaskName>,
    /// Assignments of which something may not be read or written, and when that is tried again: of another ACL nobody is told.
    barred: BTreeMap<TaskName, Instant>,
    /// Assignments for which there is no room yet, in the order of service: higher priority first, then the lower number.
    waiting: BTreeSet<(Reverse<i64>, TaskName)>,
    /// What was started without a watch on what is below its task, and when that is set.
    unwatched: BTreeMap<TaskName, Instant>,
    /// There may be results to be written, on this session or from an earlier one.
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
            follows: false,
            desk: None,
            desk_stale: true,
            stale: BTreeSet::new(),
            settled: BTreeSet::new(),
            barred: BTreeMap::new(),
            waiting: BTreeSet::new(),
            unwatched: BTreeMap::new(),
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
        // Nothing is looked at before.
        let barred = self.barred.values().filter(|_| self.registration == Registration::Registered);
        self.unwatched.values().chain(barred).copied().chain(self.leave_at).min()
    }

    /// Whether something waits here for a slot.
    pub(crate) fn has_more(&self) -> bool {
        !self.waiting.is_empty()
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
                self.desk = None;
                if change == Change::Deleted {
                    self.registration = Registration::Stale;
                }
            }
            Some(Place::Assignment(name, task)) if name == life.config.name => {
                self.desk_stale = true;
                self.settled.remove(&task);
                self.barred.remove(&task);
                self.stale.insert(task);
                match (&mut self.desk, change) {
                    (Some(desk), Change::Created) => _ = desk.insert(task),
                    (Some(desk), Change::Deleted) => _ = desk.remove(&task),
                    _ => {}
                }
            }
            Some(Place::Task(task) | Place::TaskChild(task, _)) if jobs.get(&task).is_some() => {
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
        self.watch_what_lasts(jobs)?;
        if self.registration == Registration::Registered && life.leaving > Leaving::No && !self.told {
            self.session.write(&paths::worker(&life.config.name), &registration(life).encode(), None)?;
            self.told = true;
        }
        self.desk_stale |= self.barred.values().any(|at| *at <= Instant::now());
        loop {
            let look = self.registration == Registration::Registered && std::mem::take(&mut self.desk_stale);
            let looked = if look { self.look_at_desk(life, jobs) } else { Ok(Vec::new()) };
            let (found, looked) = looked.map_or_else(|error| (Vec::new(), Err(error)), |found| (found, Ok(())));
            if std::mem::take(&mut self.unwritten) || look {
                self.write_results(found, life, jobs)?;
            }
            looked?;
            if self.registration != Registration::Registered || !(self.desk_stale || self.unwritten) {
                break;
            }
        }
        if life.leaving > Leaving::No && jobs.is_empty() { self.leave(life) } else { Ok(Next::Wait) }
    }

    /// Registers, as far as the tree is there; sets the watches that say when to go on.
    fn register(&mut self, life: &mut Life, jobs: &Jobs) -> Result<(), Error> {
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
        self.follows = life.following.start(&self.session, &[&paths::assignments(name)])?;
        self.registration = Registration::Registered;
        (self.desk, self.desk_stale) = (None, true);
        self.settled.clear();
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

    /// Looks at what is assigned, and does what follows for what runs. Returns what is to be decided about now.
    fn look_at_desk(&mut self, life: &Life, jobs: &mut Jobs) -> Result<Vec<Found>, Error> {
        let path = paths::assignments(&life.config.name);
        if self.desk.is_none() || !self.follows {
            let Some(names) = self.session.children(&path, !self.follows)? else {
                self.registration = Registration::Stale;
                return Ok(Vec::new());
            };
            self.desk = Some(names.iter().filter_map(|name| name.parse().ok()).collect());
        }
        let assigned = self.desk.clone().unwrap_or_default();
        self.settled.retain(|task| assigned.contains(task));
        self.barred.retain(|task, _| assigned.contains(task));
        jobs.assigned(&assigned);
        // What has ended is looked at again when that is written.
        let ended = |name: &TaskName| jobs.get(name).is_some_and(|job| matches!(job.stage, Stage::Ended(_)));
        let stale;
        (self.stale, stale) = std::mem::take(&mut self.stale).into_iter().partition(ended);
        let running: Vec<(TaskName, i64, i64)> = jobs
            .iter()
            .filter(|(name, job)| {
                matches!(job.stage, Stage::Running { .. }) && (stale.contains(name) || !assigned.contains(name))
            })
            .map(|(name, job)| (*name, job.fence, job.task))
            .collect();
        for (task, fence, czxid) in running {
            let path = paths::assignment(&life.config.name, &task);
            let read = if_allowed(self.session.read(&path, !self.follows))?;
            let ours = read.as_ref().is_none_or(|read| read.as_ref().is_some_and(|(_, stat)| stat.czxid == fence));
            if let Some((data, stat)) = read.flatten().filter(|_| ours)
                && let Some(answer) = too_late(Assignment::decode(&data))
            {
                if_allowed(done_already(self.session.write(&path, &answer.encode(), Some(stat.version)).map(drop)))?;
            }
            let why = match if_allowed(self.read_task(task, life))? {
                Some(read) => oversee(read.map(|(facts, _)| facts).as_ref(), czxid, ours),
                None => (!ours).then_some(Why::Revoked),
            };
            if let Some(why) = why {
                jobs.stop(&task, why, life);
            }
        }
        let leaving = life.leaving > Leaving::No;
        self.waiting.retain(|(_, task)| assigned.contains(task) && !stale.contains(task) && !leaving);
        let waits: BTreeSet<TaskName> = self.waiting.iter().map(|(_, task)| *task).collect();
        let now = Instant::now();
        let barred = |task: &TaskName| self.barred.get(task).is_some_and(|at| *at > now);
        let known = |task: &TaskName| {
            jobs.get(task).is_some() || self.settled.contains(task) || waits.contains(task) || barred(task)
        };
        let new: Vec<TaskName> = assigned.into_iter().filter(|task| !known(task)).collect();
        // Where not all of them can start, it is looked first which of them are to start first.
        let free = jobs.free(life);
        let mut next = match waits.len() + new.len() <= free {
            true => new,
            false => self.line_up(new, life)?,
        };
        let room = free.saturating_sub(next.len());
        next.extend((0..room).map_while(|_| self.waiting.pop_first()).map(|(_, task)| task));
        self.find(next, life, jobs)
    }

    /// An assignment of which something may not be read or written is left alone for some time; that is said once.
    fn permitted<T>(&mut self, name: TaskName, done: Result<T, Error>) -> Result<Option<T>, Error> {
        match done {
            Err(error @ Error::NotAllowed(_)) => {
                if self.barred.insert(name, Instant::now() + BARRED).is_none() {
                    log::warn!("cannot run task={name}, will look again: {error}");
                }
                Ok(None)
            }
            done => {
                self.barred.remove(&name);
                done.map(Some)
            }
        }
    }

    /// Reads groups of znodes, each after the one before it; with watches where there is none on all of the desk.
    fn read<const N: usize>(&self, groups: &[Vec<String>; N]) -> [Vec<Read>; N] {
        match self.follows {
            true => self.session.read_in_order(groups),
            false => groups.each_ref().map(|group| in_parallel(group, |path| self.session.read(path, true))),
        }
    }

    /// Puts what only has to wait among what waits; returns the others, of which something else is to be considered. What is
    /// asked of one that waits meanwhile, the primary asks by recalling it.
    fn line_up(&mut self, new: Vec<TaskName>, life: &Life) -> Result<Vec<TaskName>, Error> {
        let mut others = Vec::new();
        let [read] = self.read(&[new.iter().map(|task| paths::assignment(&life.config.name, task)).collect()]);
        for (task, read) in new.into_iter().zip(read) {
            let Some(Some((data, _))) = self.permitted(task, read)? else { continue };
            match Assignment::decode(&data).meta.filter(|meta| only_waits(meta, life)) {
                Some(meta) => _ = self.waiting.insert((Reverse(meta.priority), task)),
                None => others.push(task),
            }
        }
        Ok(others)
    }

    /// Reads assignments, the tasks, and then `/epoch`, at the server of this session and not from memory. Leaves out what was started
    /// already.
    fn find(&mut self, names: Vec<TaskName>, life: &Life, jobs: &Jobs) -> Result<Vec<Found>, Error> {
        let mut all = Vec::new();
        if names.is_empty() {
            return Ok(all);
        }
        let assignments = names.iter().map(|name| paths::assignment(&life.config.name, name)).collect();
        let tasks = names.iter().map(paths::task).collect();
        let [assignments, tasks, mut epoch] = self.read(&[assignments, tasks, vec![paths::EPOCH.to_owned()]]);
        let epoch = epoch.remove(0)?.and_then(|(data, _)| decode_epoch(&data));
        for ((name, assignment), task) in names.into_iter().zip(assignments).zip(tasks) {
            let read = assignment.and_then(|assignment| {
                let task = self.facts_to_start(name, task?, life)?;
                Ok(assignment.map(|(data, stat)| Found {
                    name,
                    assignment: Assignment::decode(&data),
                    stat,
                    epoch,
                    task,
                }))
            });
            let Some(Some(found)) = self.permitted(name, read)? else { continue };
            match jobs.was_started(&name, found.stat.czxid) {
                true => _ = self.settled.insert(name),
                false => all.push(found),
            }
        }
        Ok(all)
    }

    /// Does what follows for each assignment.
    fn decide_each(&mut self, found: Vec<Found>, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        for found in found {
            let name = found.name;
            let decided = self.decide(found, life, jobs);
            self.permitted(name, decided)?;
        }
        // Some of them needed no slot, unless nothing can be started any more.
        self.desk_stale |= jobs.free(life) > 0 && !self.waiting.is_empty() && !jobs.processes.expired();
        Ok(())
    }

    /// Sets watches on what is below the tasks that go on running, and looks at what has come since they were read.
    fn watch_what_lasts(&mut self, jobs: &Jobs) -> Result<(), Error> {
        let now = Instant::now();
        let due: Vec<TaskName> = self.unwatched.iter().filter(|(_, at)| **at <= now).map(|(name, _)| *name).collect();
        self.unwatched.retain(|_, at| *at > now);
        let lasting: Vec<TaskName> = due.into_iter().filter(|name| jobs.get(name).is_some()).collect();
        let below = in_parallel(&lasting, |name| self.session.children(&paths::task(name), true));
        let is_news = |child: &String| matches!(task_child(child), Some(TaskChild::Status | TaskChild::Cancel));
        for (name, below) in lasting.into_iter().zip(below) {
            if let Err(error @ Error::NotAllowed(_)) = &below {
                log::warn!("cannot look at task={name} while it runs, nobody can stop it: {error}");
            }
            let Some(below) = if_allowed(below)? else { continue };
            if below.is_none_or(|below| below.iter().any(is_news)) {
                self.stale.insert(name);
                self.desk_stale = true;
            }
        }
        Ok(())
    }

    /// Does what follows for one assignment.
    fn decide(&mut self, found: Found, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        let Found { name, assignment, stat, epoch, task } = found;
        let path = paths::assignment(&life.config.name, &name);
        let (facts, task) = task.unzip();
        let (czxid, failures) = facts.as_ref().map_or((0, 0), |facts: &TaskFacts| (facts.czxid, facts.failures));
        let own = Own { instance: life.instance, room: jobs.free(life) > 0, leaving: life.leaving > Leaving::No };
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
                    self.unwatched.insert(name, Instant::now() + WATCHED_FROM);
                    // A command that could not be started has ended at once.
                    self.unwritten |= jobs.get(&name).is_some_and(|job| matches!(job.stage, Stage::Ended(_)));
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

    /// What a task says that is to be started. Where nothing is below it, what was read says so, of the same moment as the data.
    fn facts_to_start(
        &self,
        name: TaskName,
        read: Option<(Vec<u8>, Stat)>,
        life: &Life,
    ) -> Result<Option<Facts>, Error> {
        match read {
            Some((data, stat)) if stat.children == 0 => Ok(facts(&data, stat, &[], life)),
            Some(_) => self.read_task(name, life),
            None => Ok(None),
        }
    }

    /// Reads a task and what is below it, and sets a watch on that. The task itself is missing where nobody may run it.
    ///
    /// What is below it is read first: whoever removes a finished task marks it before its status goes, or lets both go at once, so
    /// one that is seen without a status and then without the mark has not ended.
    fn read_task(&self, name: TaskName, life: &Life) -> Result<Option<Facts>, Error> {
        let path = paths::task(&name);
        let Some(children) = self.session.children(&path, true)? else { return Ok(None) };
        let Some((data, stat)) = self.session.read(&path, false)? else { return Ok(None) };
        let Some((mut facts, task)) = facts(&data, stat, &children, life) else { return Ok(None) };
        if task.as_ref().is_some_and(|task| retries_left(task, 0)) {
            for number in &facts.attempts {
                let record = self.session.read(&paths::attempt(&name, *number), false)?;
                let kind = record.and_then(|(data, _)| Attempt::decode(&data).kind);
                facts.failures += u32::from(kind == Some(AttemptKind::Failed));
            }
        }
        Ok(Some((facts, task)))
    }

    /// Writes what came of the commands that have ended. Whether there is something to be written or not, does what follows for the
    /// assignments: what can start does not wait until the disks of the ensemble have what has ended.
    fn write_results(&mut self, found: Vec<Found>, life: &Life, jobs: &mut Jobs) -> Result<(), Error> {
        let ended: Vec<TaskName> =
            jobs.iter().filter(|(_, job)| matches!(job.stage, Stage::Ended(_))).map(|(name, _)| *name).collect();
        for name in &ended {
            // Something happened to it that was not looked at yet.
            if self.stale.contains(name)
                && let Some(Some((TaskFacts { cancel: true, .. }, _))) = if_allowed(self.read_task(*name, life))?
            {
                jobs.cancel_ended(name);
            }
        }
        let written: Vec<(TaskName, Option<Written>)> =
            ended.into_iter().map(|name| (name, jobs.written(&name, life))).collect();
        let statuses = self.statuses(&written, life, jobs);
        let session = self.session.clone();
        let (committed, begun) = session.commit_each_while(&statuses, || self.decide_each(found, life, jobs));
        let ended = |((name, written), made): ((TaskName, _), Option<Vec<String>>)| {
            // Where nothing was made, nothing was asked to be made, or it was not to be had.
            let committed = made.is_some_and(|made| !made.is_empty());
            Some(Ended { name, job: jobs.get(&name)?, written, committed })
        };
        let (done, others): (Vec<Ended<'_>>, Vec<Ended<'_>>) =
            written.into_iter().zip(committed?).filter_map(ended).partition(|ended| ended.committed);
        done.iter().for_each(Ended::say_reported);
        let mut reported: Vec<Result<(), Error>> = done.iter().map(|_| Ok(())).collect();
        reported.extend(in_parallel(&others, |ended| self.report(ended, life)));
        let undisturbed = |Ended { name, job, .. }: &Ended<'_>| {
            job.instance == life.instance && job.ended_by_itself() && !self.stale.contains(name)
        };
        let results: Vec<(TaskName, bool)> =
            done.iter().chain(&others).map(|ended| (ended.name, undisturbed(ended))).collect();
        for ((name, undisturbed), reported) in results.into_iter().zip(reported) {
            reported?;
            jobs.remove(&name);
            self.unwatched.remove(&name);
            self.desk_stale = true;
            // The assignment that was started is settled. There may be another one by now, if somebody took that away.
            if undisturbed {
                self.settled.insert(name);
            }
        }
        begun
    }

    /// The statuses that count whatever else there is, as far as none is there yet.
    fn statuses(&self, written: &[(TaskName, Option<Written>)], life: &Life, jobs: &Jobs) -> Vec<Vec<Write>> {
        // Without a node of the session's own there would be no fence.
        let fenced = self.session.id().is_some();
        let ours = |name: &TaskName| fenced && jobs.get(name).is_some_and(|job| job.instance == life.instance);
        let status = |(name, written): &(TaskName, Option<Written>)| match written {
            Some(Written::Status(status)) if ours(name) => {
                let (path, data) = (paths::status(name), status.encode());
                vec![Write::Create { path, data, sequential: false }]
            }
            _ => Vec::new(),
        };
        written.iter().map(status).collect()
    }

    /// Writes what came of a command, if that still counts.
    fn report(&self, ended: &Ended<'_>, life: &Life) -> Result<(), Error> {
        let Ended { name, job, written, .. } = ended;
        let name = *name;
        let assignment = paths::assignment(&life.config.name, &name);
        let there = || Ok(self.session.stat(&assignment, false)?.map(|stat| stat.czxid));
        if !counts(job.instance, life.instance, job.fence, there)? {
            log::warn!("dropped the result of task={name}: it was given to somebody else");
            return Ok(());
        }
        if let Some(written) = written {
            self.write_result(ended, written)?;
        }
        if let Some(Written::Record(Attempt { kind: Some(AttemptKind::Failed), .. })) = written {
            // Where that is not allowed, it is an assignment whose attempt is recorded.
            if_allowed(self.give_back(name, job.fence, life))?;
        }
        Ok(())
    }

    fn write_result(&self, ended: &Ended<'_>, written: &Written) -> Result<(), Error> {
        let Ended { name, job: Job { attempt, fence, .. }, .. } = ended;
        let (path, data) = match written {
            Written::Status(status) => (paths::status(name), status.encode()),
            Written::Record(record) => (paths::attempt(name, *attempt), record.encode()),
        };
        match (self.session.create(&path, &data, Kind::Persistent), written) {
            (Ok(_), Written::Status(_)) => ended.say_reported(),
            (Ok(_), Written::Record(record)) => log::info!("recorded a {} task={name} attempt={attempt}", kind(record)),
            (Err(Error::NodeExists(_)), Written::Record(_)) => {}
            (Err(Error::NodeExists(_)), Written::Status(_)) => {
                // Ours, if the answer to an earlier try was lost.
                let there = if_allowed(self.session.read(&path, false))?.flatten();
                let there = there.map(|(data, _)| Status::decode(&data));
                let ours = there.as_ref().and_then(|status| status.meta.as_ref()?.fence) == Some(*fence);
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

/// An assignment as it was read, and after it the task and `/epoch`.
struct Found {
    name: TaskName,
    assignment: Assignment,
    stat: Stat,
    epoch: Option<i64>,
    task: Option<Facts>,
}

/// What a task says and what is below it; the task is missing where nobody may run it.
type Facts = (TaskFacts, Option<Task>);

/// A command that has ended, what is to be written about it, and whether that is done.
struct Ended<'a> {
    name: TaskName,
    job: &'a Job,
    written: Option<Written>,
    committed: bool,
}

impl Ended<'_> {
    fn say_reported(&self) {
        if let Some(Written::Status(status)) = &self.written {
            log::info!("reported task={} status={}", self.name, status.outcome.word());
        }
    }
}

/// What may not be done is not done; what runs goes on.
fn if_allowed<T>(done: Result<T, Error>) -> Result<Option<T>, Error> {
    match done {
        Err(Error::NotAllowed(_)) => Ok(None),
        done => done.map(Some),
    }
}

/// Whether there is nothing to be considered but when it is its turn, as far as the assignment says.
fn only_waits(meta: &AssignmentMeta, life: &Life) -> bool {
    meta.instance == Some(life.instance) && !meta.recalled && !meta.returned && life.leaving == Leaving::No
}

fn facts(data: &[u8], stat: Stat, children: &[String], life: &Life) -> Option<Facts> {
    if stat.owner.is_some() {
        // Nothing can be created below an ephemeral, so no status: it is no task.
        return None;
    }
    let mut facts = TaskFacts { czxid: stat.czxid, ..TaskFacts::default() };
    for child in children.iter().filter_map(|child| task_child(child)) {
        match child {
            TaskChild::Status => facts.status = true,
            TaskChild::Cancel => facts.cancel = true,
            TaskChild::Attempt(number) => _ = facts.attempts.insert(number),
        }
    }
    let task = match Task::decode(data) {
        Ok(task) => Ok(task),
        Err(DecodeError::Removed) => return None,
        Err(error) => Err(error.to_string()),
    };
    let task = task.and_then(|task| {
        let Some(rules) = &life.config.signed else { return Ok(task) };
        let (created_ms, version) = (stat.ctime_ms, stat.version);
        let claim = Claim { task: &task, data, created_ms, version, now_ms: now_ms() };
        rules.accept(&claim, &life.config.name, &life.config.labels).map(|()| task)
    });
    let task = task.map_err(|why| facts.refused = Some(why)).ok();
    Some((facts, task))
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
