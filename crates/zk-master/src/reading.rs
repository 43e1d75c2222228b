//! Keeps the [`View`] true: reads what changed, and sets the watch that says so the next time.
//!
//! What is stale is marked and read again before the next plan. Nothing is ever concluded from a notification alone.
//!
//! Where ZooKeeper knows of watches on all below a znode (3.6 and later), `/tasks` and `/assign` have one each, which names
//! every znode that comes, goes or changes: only that is read. And what the primary has assigned itself is not read
//! again: whatever else happens to it is told. On older servers each znode has watches of its own, which are used up by a
//! change, so that its parent has to be listed again, and all that was written is read again.

use std::collections::{BTreeMap, BTreeSet};

use zk_session::{Change, Error, Read, Session, Stat, in_parallel};
use znode_paths::paths::{self, Place, TaskChild, task_child};
use znode_paths::{
    Address, Assignment, AssignmentMeta, Attempt, DecodeError, Drain, Instance, Live, LiveName, Outcome, Role, Status,
    Task, TaskMeta, TaskName, Worker, WorkerName,
};

use crate::plan::{Plan, Step};
use crate::view::{Desk, Known, Open, Recorded, Stage, View};

/// The view, and which parts of it are stale.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) view: View,
    /// Whether anything may have changed since the last plan.
    pub(crate) stale: Stale,
    /// Names that were found and are not of this protocol: each is said once.
    ignored: BTreeSet<String>,
    /// Workers to which nothing can be assigned.
    closed: BTreeSet<WorkerName>,
    /// `/tasks` and `/assign` have watches on all below them.
    below: bool,
    /// Every process that lives and is no registered worker: where it listens, if it is a master.
    masters: BTreeMap<Instance, Option<Address>>,
    /// Where a write was refused, and when it is tried again, by the servers' clock.
    refused: BTreeMap<String, i64>,
    /// What is marked to be removed and has nothing to it but a status: the version of its data.
    bare: BTreeMap<TaskName, i32>,
}

const NO_NAME: &str = "its name is not of this protocol";

/// How long a write that was refused is left alone: until somebody may have changed an ACL.
const REFUSED_MS: i64 = 30_000;

/// How soon what is stale is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// Somebody may wait for it.
    Now,
    /// Nobody does.
    Soon,
    /// Nothing is stale.
    No,
}

#[derive(Debug, Default)]
pub(crate) struct Stale {
    /// `/master` or `/epoch`.
    pub(crate) reign: bool,
    /// `/workers`, what is below it, and `/live`.
    census: bool,
    registrations: BTreeSet<WorkerName>,
    assign: bool,
    desks: BTreeSet<WorkerName>,
    assignments: BTreeSet<(WorkerName, TaskName)>,
    tasks: bool,
    /// `/requests`.
    pub(crate) requests: bool,
    /// What is below them.
    task: BTreeSet<TaskName>,
    /// All of them.
    rewritten: BTreeSet<TaskName>,
    /// Whether they have a status.
    ended: BTreeSet<TaskName>,
    /// A task that was known is gone, by another hand: others may have waited for it, or for its slot.
    gone: bool,
}

/// How many tasks are read before the next plan: right after a take-over the first of them are to be assigned, not all to
/// be known. They are read by number, so that the first task of each submit is known before the others.
const AT_ONCE: usize = 4_000;

impl Reading {
    /// Nothing is read yet. `below` says whether there are watches on all below `/tasks` and `/assign`.
    pub(crate) fn new(fence: i64, below: bool) -> Self {
        let view = View { fence, ..View::default() };
        let stale = Stale { census: true, assign: true, tasks: true, reign: true, requests: true, ..Stale::default() };
        Reading { view, stale, below, ..Reading::default() }
    }

    /// Whether some tasks are not read yet.
    pub(crate) fn is_behind(&self) -> bool {
        !self.view.unread.is_empty()
    }

    /// How soon what is stale is to be read. When all that is unfinished has ended, nobody waits for the slots.
    pub(crate) fn haste(&self) -> Haste {
        let Stale { reign, census, assign, tasks, requests, gone, .. } = self.stale;
        let Stale { registrations, desks, assignments, task, rewritten, ended, .. } = &self.stale;
        let other = reign || census || assign || tasks || requests || gone;
        let others = registrations.len() + desks.len() + assignments.len() + task.len() + rewritten.len();
        match ended.len() {
            _ if other || others > 0 => Haste::Now,
            0 => Haste::No,
            ends if ends >= self.view.tasks.unfinished() => Haste::Soon,
            _ => Haste::Now,
        }
    }

    /// ZooKeeper does not let us take this step.
    pub(crate) fn refused(&mut self, step: &Step, error: &Error) {
        let path = step.path();
        if let Step::Assign(worker, ..) = step {
            log::warn!("nothing can be assigned to worker={worker}: {error}");
            self.closed.insert(worker.clone());
        } else if !self.refused.contains_key(&path) {
            log::warn!("not allowed, will try again later: {error}");
        }
        self.refused.insert(path, self.view.now_ms + REFUSED_MS);
    }

    /// Leaves out of a plan what was refused a moment ago.
    pub(crate) fn leave_out_refused(&self, plan: &mut Plan) {
        let waits = |step: &Step| self.refused.get(&step.path()).copied().filter(|at_ms| *at_ms > self.view.now_ms);
        let mut again = Vec::new();
        plan.chains.retain(|chain| {
            let waits = chain.iter().filter_map(waits).max();
            again.extend(waits);
            waits.is_none()
        });
        again.into_iter().for_each(|at_ms| plan.look_again_at(at_ms));
    }

    /// Where the masters are, this one included.
    pub(crate) fn masters(&self) -> impl Iterator<Item = (Instance, &Address)> {
        self.masters.iter().filter_map(|(instance, address)| Some((*instance, address.as_ref()?)))
    }

    /// Something changed at a path.
    pub(crate) fn hint(&mut self, path: &str, change: Change) {
        let stale = &mut self.stale;
        match Place::of(path) {
            Some(Place::Master | Place::Epoch) => stale.reign = true,
            Some(Place::Workers | Place::Live | Place::LiveNode(_)) => stale.census = true,
            Some(Place::Worker(worker)) => {
                stale.census = true;
                stale.registrations.insert(worker);
            }
            Some(Place::Assign) => stale.assign = true,
            Some(Place::Assignments(worker)) => {
                stale.assign |= change == Change::Deleted;
                stale.desks.insert(worker);
            }
            Some(Place::Assignment(worker, task)) => {
                let known = self.view.assign.get(&worker).is_some_and(|desk| desk.tasks.contains_key(&task));
                // What is known to be there, or not to be there, is mostly what the primary did itself.
                if !self.below {
                    stale.desks.insert(worker.clone());
                } else if (change == Change::Created) == known && change != Change::Data {
                    return;
                }
                stale.assignments.insert((worker, task));
            }
            Some(Place::Requests) => stale.requests = true,
            Some(Place::Tasks) => stale.tasks = true,
            Some(Place::Task(task)) => match change {
                Change::Deleted => {
                    // There may be another one at that path by now.
                    stale.gone |= self.view.tasks.remove(task).is_some();
                    stale.gone |= self.view.unread.remove(&task);
                    self.bare.remove(&task);
                    stale.task.remove(&task);
                    stale.tasks |= !self.below;
                }
                Change::Data => _ = stale.rewritten.insert(task),
                Change::Created | Change::Children => _ = stale.task.insert(task),
            },
            Some(Place::TaskChild(task, TaskChild::Status)) if change == Change::Created => {
                stale.ended.insert(task);
            }
            Some(Place::TaskChild(task, _)) => _ = stale.task.insert(task),
            None => {
                let parents = [paths::TASKS, paths::ASSIGN];
                if change == Change::Created && parents.iter().any(|p| path.rsplit_once('/').is_some_and(|s| s.0 == *p))
                {
                    self.ignore(path.to_owned(), NO_NAME);
                }
            }
        }
    }

    /// The primary wrote, or tried to write, what a worker has.
    pub(crate) fn wrote_desk(&mut self, worker: &WorkerName) {
        self.stale.desks.insert(worker.clone());
    }

    /// The primary made an assignment, or wrote this over it.
    pub(crate) fn assigned(&mut self, worker: &WorkerName, task: TaskName, meta: &AssignmentMeta) {
        self.view.replace_assignment(worker, task, Some(Assignment { meta: Some(meta.clone()) }));
        if !self.below {
            self.wrote_desk(worker);
        }
    }

    /// The primary deleted an assignment itself: it did not vanish.
    pub(crate) fn unassigned(&mut self, worker: &WorkerName, task: TaskName) {
        self.view.unassigned(worker, task);
        if !self.below {
            self.wrote_desk(worker);
        }
    }

    /// An assignment is not as it was read.
    pub(crate) fn assignment_changed(&mut self, worker: &WorkerName, task: TaskName) {
        self.stale.assignments.insert((worker.clone(), task));
    }

    /// The primary wrote below a task.
    pub(crate) fn wrote_task(&mut self, task: TaskName) {
        self.stale.task.insert(task);
    }

    /// Of a task that is marked to be removed, and of which nothing else has to be considered, the version of its data.
    pub(crate) fn bare(&self, task: &TaskName) -> Option<i32> {
        self.bare.get(task).copied()
    }

    /// The primary deleted a task.
    pub(crate) fn removed_task(&mut self, task: TaskName) {
        self.view.tasks.remove(task);
        self.bare.remove(&task);
        self.stale.tasks |= !self.below;
    }

    /// It is time to look at the workers that are missing.
    pub(crate) fn look_for_missing(&mut self) {
        self.stale.census |= !self.view.missing_since_ms.is_empty();
    }

    /// Reads whatever is stale. The order matters: assignments before the tasks and the workers they name, so that none of
    /// those is missed that was there when the assignment was.
    pub(crate) fn refresh(&mut self, session: &Session) -> Result<(), Error> {
        self.stale.gone = false;
        if std::mem::take(&mut self.stale.assign) {
            self.read_assign(session)?;
        }
        for worker in std::mem::take(&mut self.stale.desks) {
            self.read_desk(session, &worker)?;
        }
        let mut ahead = self.read_ahead(session);
        self.read_assignments(session, &mut ahead)?;
        let view = &self.view;
        let strange = |task: &TaskName| !view.tasks.contains_key(task) && !view.unread.contains(task);
        self.stale.tasks |= view.assign.values().any(|desk| desk.tasks.keys().any(strange));
        // Whoever deleted an assignment may have recorded its attempt before that.
        self.stale.task.extend(view.vanished.keys());
        if std::mem::take(&mut self.stale.tasks) {
            self.read_tasks(session)?;
        }
        self.read_ends(session, &mut ahead)?;
        self.read_each_task(session, &mut ahead)?;
        self.view.forget_vanished();

        self.stale.census |= self.view.misses_somebody();
        if std::mem::take(&mut self.stale.census) {
            self.take_census(session)?;
        }
        if let Some(now) = session.server_time_ms() {
            self.view.now_ms = now;
        }
        Ok(())
    }

    fn read_assign(&mut self, session: &Session) -> Result<(), Error> {
        let names = self.list(session, paths::ASSIGN)?;
        let known: BTreeSet<WorkerName> = self.parse(paths::ASSIGN, &names);
        let before: Vec<WorkerName> = self.view.assign.keys().cloned().collect();
        for worker in before.into_iter().filter(|worker| !known.contains(worker)) {
            self.view.replace_desk(&worker, None);
        }
        let new = known.into_iter().filter(|worker| !self.view.assign.contains_key(worker));
        self.stale.desks.extend(new);
        Ok(())
    }

    /// Reads what is told to have changed, all of it with as few requests as there can be. Where each znode has a watch of its own,
    /// each is read for itself.
    fn read_ahead(&self, session: &Session) -> Ahead {
        let Stale { assignments, ended, task, rewritten, .. } = &self.stale;
        let open = |task: &TaskName| self.view.tasks.get(task).is_some_and(|known| known.open().is_some());
        let tasks = task.union(rewritten).filter(|task| rewritten.contains(task) || !open(task));
        let (assignments, others) = match self.below {
            true => (
                assignments.iter().map(|(worker, task)| paths::assignment(worker, task)).collect(),
                ended.iter().map(paths::status).chain(tasks.take(AT_ONCE).map(paths::task)).collect(),
            ),
            false => (Vec::new(), Vec::new()),
        };
        let groups = [assignments, others];
        let read = session.read_in_order(&groups);
        Ahead(groups.into_iter().flatten().zip(read.into_iter().flatten()).collect())
    }

    /// Reads znodes; with watches where each has its own.
    fn read_all(&self, session: &Session, paths: &[String], ahead: &mut Ahead) -> Vec<Read> {
        match self.below {
            true => ahead.read(session, paths),
            false => in_parallel(paths, |path| session.read(path, true)),
        }
    }

    /// Reads the assignments of which something is told; those of whole desks are read with these.
    fn read_assignments(&mut self, session: &Session, ahead: &mut Ahead) -> Result<(), Error> {
        let stale: Vec<(WorkerName, TaskName)> = std::mem::take(&mut self.stale.assignments).into_iter().collect();
        let paths: Vec<String> = stale.iter().map(|(worker, task)| paths::assignment(worker, task)).collect();
        let read = self.read_all(session, &paths, ahead);
        for ((worker, task), read) in stale.into_iter().zip(read) {
            // One that may not be read is there all the same, and is not ours.
            let foreign = read.is_err().then(Assignment::default);
            let read = self.readable(&paths::assignment(&worker, &task), read)?;
            let since_ms = read.as_ref().map(|(_, stat)| stat.ctime_ms);
            let assignment = read.map(|(data, _)| Assignment::decode(&data)).or(foreign);
            self.view.replace_assignment(&worker, task, assignment);
            if let Some(desk) = self.view.assign.get_mut(&worker) {
                desk.since_ms.extend(since_ms.map(|since_ms| (task, since_ms)));
            }
        }
        Ok(())
    }

    /// Reads the statuses that are told to have been made.
    fn read_ends(&mut self, session: &Session, ahead: &mut Ahead) -> Result<(), Error> {
        let ended: Vec<TaskName> = std::mem::take(&mut self.stale.ended).into_iter().collect();
        let paths: Vec<String> = ended.iter().map(paths::status).collect();
        let read = self.read_all(session, &paths, ahead);
        for (task, read) in ended.into_iter().zip(read) {
            let before = self.view.tasks.get(&task).filter(|known| known.open().is_some());
            let before = before.map(|known| (known.czxid, known.submit.clone()));
            match (self.readable(&paths::status(&task), read)?, before) {
                (Some((data, stat)), Some((czxid, submit))) => {
                    let stage = Stage::Ended { outcome: Status::decode(&data).outcome, at_ms: stat.ctime_ms };
                    self.view.tasks.insert(task, Known { czxid, submit, stage });
                }
                // It is gone again, or the task is not known yet.
                _ => _ = self.stale.task.insert(task),
            }
        }
        Ok(())
    }

    /// The children of a parent that must be there: made again where somebody deleted it.
    fn list(&self, session: &Session, parent: &str) -> Result<Vec<String>, Error> {
        let watch = !self.below || ![paths::TASKS, paths::ASSIGN].contains(&parent);
        loop {
            match session.children(parent, watch)? {
                Some(names) => return Ok(names),
                None => session.ensure(parent)?,
            }
        }
    }

    fn parse<N: std::str::FromStr + Ord>(&mut self, parent: &str, names: &[String]) -> BTreeSet<N> {
        let mut parsed = BTreeSet::new();
        for name in names {
            match name.parse() {
                Ok(name) => _ = parsed.insert(name),
                Err(_) => self.ignore(format!("{parent}/{name}"), NO_NAME),
            }
        }
        parsed
    }

    fn ignore(&mut self, path: String, why: &str) {
        // Somebody with an endless supply of names shall not fill our memory.
        if self.ignored.len() < 10_000 && !self.ignored.contains(&path) {
            log::warn!("ignored path={path:?}: {why}");
            self.ignored.insert(path);
        }
    }

    fn read_desk(&mut self, session: &Session, worker: &WorkerName) -> Result<(), Error> {
        let path = paths::assignments(worker);
        let watch = !self.below;
        let names = self.readable(&path, session.children(&path, watch))?;
        let read = names.zip(self.readable(&path, session.read(&path, watch))?);
        let Some((names, (data, stat))) = read else {
            self.closed.remove(worker);
            self.view.replace_desk(worker, None);
            return Ok(());
        };
        let drain = Drain::decode(&data).drain;
        let closed = self.closed.contains(worker) || stat.owner.is_some();
        let there: BTreeSet<TaskName> = self.parse(&path, &names);
        let mut desk = Desk { drain, closed, strangers: there.len() < names.len(), ..Desk::default() };
        let known = self.view.assign.get(worker);
        for (task, assignment) in known.into_iter().flat_map(|desk| &desk.tasks) {
            let stale = self.stale.assignments.remove(&(worker.clone(), *task));
            if there.contains(task) && !stale {
                desk.tasks.insert(*task, assignment.clone());
                desk.since_ms.extend(known.and_then(|desk| desk.since_ms.get_key_value(task)));
            }
        }
        let unread: Vec<TaskName> = there.into_iter().filter(|task| !desk.tasks.contains_key(task)).collect();
        let read = in_parallel(&unread, |task| session.read(&paths::assignment(worker, task), watch));
        for (task, read) in unread.into_iter().zip(read) {
            // One that went in between has fired the watch on its parent. One that may not be read is not ours.
            let read = self.readable(&paths::assignment(worker, &task), read)?;
            desk.since_ms.extend(read.as_ref().map(|(_, stat)| (task, stat.ctime_ms)));
            desk.tasks.insert(task, read.map(|(data, _)| Assignment::decode(&data)).unwrap_or_default());
        }
        self.view.replace_desk(worker, Some(desk));
        Ok(())
    }

    /// What may not be read is said once, and is as if it were not there.
    fn readable<T>(&mut self, path: &str, read: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
        match read {
            Err(error @ (Error::NotAllowed(_) | Error::Refused { .. })) => {
                self.ignore(path.to_owned(), &error.to_string());
                Ok(None)
            }
            read => read,
        }
    }

    fn read_tasks(&mut self, session: &Session) -> Result<(), Error> {
        let names = self.list(session, paths::TASKS)?;
        let there: BTreeSet<TaskName> = self.parse(paths::TASKS, &names);
        self.view.tasks.keep(&there);
        self.stale.task.retain(|task| there.contains(task));
        self.stale.rewritten.retain(|task| there.contains(task));
        self.stale.task.extend(there.into_iter().filter(|task| !self.view.tasks.contains_key(task)));
        Ok(())
    }

    fn read_each_task(&mut self, session: &Session, ahead: &mut Ahead) -> Result<(), Error> {
        let tasks = &self.view.tasks;
        self.stale.task.retain(|task| tasks.get(task).is_none_or(|known| known.open().is_some()));
        let mut stale: BTreeSet<TaskName> = &self.stale.task | &self.stale.rewritten;
        let later = stale.iter().nth(AT_ONCE).map(|first| stale.clone().split_off(first)).unwrap_or_default();
        stale.retain(|task| !later.contains(task));
        let read_anew = |task: &TaskName, known: &Known| known.open().is_some() && self.stale.rewritten.contains(task);
        let before = |task: &TaskName| tasks.get(task).filter(|known| !read_anew(task, known));
        let (new, known): (Vec<TaskName>, Vec<TaskName>) = stale.iter().partition(|task| before(task).is_none());
        let watch = !self.below;
        let read = match watch {
            true => in_parallel(&new, |task| read_task(session, *task, None, true)),
            false => read_new_tasks(session, &new, ahead),
        };
        let has_ended = |task: &TaskName| before(task).is_some_and(|known| known.open().is_none());
        let (ended, open): (Vec<TaskName>, Vec<TaskName>) =
            known.into_iter().partition(|task| !watch && has_ended(task));
        let ends = read_ended_tasks(session, &ended, before, ahead, &mut self.bare);
        let again = in_parallel(&open, |task| read_task(session, *task, before(task), watch));
        let read = new.into_iter().zip(read).chain(ended.into_iter().zip(ends)).chain(open.into_iter().zip(again));
        for (task, known) in read.collect::<Vec<_>>() {
            match self.readable(&paths::task(&task), known)? {
                Some(known) => self.view.tasks.insert(task, known),
                None => _ = self.view.tasks.remove(task),
            };
        }
        self.stale.task.retain(|task| later.contains(task));
        self.stale.rewritten.retain(|task| later.contains(task));
        self.view.unread = later.into_iter().filter(|task| !self.view.tasks.contains_key(task)).collect();
        Ok(())
    }

    /// Who is there. In this order: a write on our own session, so that the reads after it see all that was written
    /// before; `/workers`; `/live`. A worker with a new session makes its node below `/live` before it gives up the old
    /// session with its registration, so one of the two reads finds it (PROTOCOL section 3, Workers).
    fn take_census(&mut self, session: &Session) -> Result<(), Error> {
        let first = self.view.census_ms == 0;
        session.sync()?;
        let names = self.list(session, paths::WORKERS)?;
        let there: BTreeSet<WorkerName> = self.parse(paths::WORKERS, &names);
        self.view.workers.retain(|worker, _| there.contains(worker));
        let stale = std::mem::take(&mut self.stale.registrations);
        let unread: Vec<WorkerName> = there
            .iter()
            .filter(|worker| stale.contains(worker) || !self.view.workers.contains_key(worker))
            .cloned()
            .collect();
        let read = in_parallel(&unread, |worker| session.read(&paths::worker(worker), true));
        for (worker, read) in unread.into_iter().zip(read) {
            let before = self.view.workers.remove(&worker);
            let Some((data, _)) = self.readable(&paths::worker(&worker), read)? else { continue };
            match Worker::decode(&data) {
                Ok(registered) => {
                    if !first && before.as_ref() != Some(&registered) {
                        log::info!("worker registered worker={worker} address={:?}", registered.address);
                    }
                    self.view.workers.insert(worker, registered);
                }
                Err(error) => self.ignore(paths::worker(&worker), &error.to_string()),
            }
        }
        let names = self.list(session, paths::LIVE)?;
        let nodes: BTreeSet<LiveName> = self.parse(paths::LIVE, &names);
        self.view.live = nodes.iter().map(|node| node.instance).collect();
        self.meet_masters(session, &nodes)?;
        if first {
            let View { tasks, unread, workers, .. } = &self.view;
            log::info!("took over workers={} tasks={}", workers.len(), tasks.len() + unread.len());
        }
        self.view.census_ms = session.server_time_ms().unwrap_or(self.view.census_ms);
        for worker in self.view.note_missing() {
            log::info!("worker missing worker={worker}");
        }
        Ok(())
    }

    /// Looks once at each process that lives and is no registered worker. Nothing is decided by what they are: people want
    /// to know where the other masters are.
    fn meet_masters(&mut self, session: &Session, nodes: &BTreeSet<LiveName>) -> Result<(), Error> {
        let View { workers, live, .. } = &self.view;
        let workers: BTreeSet<Instance> = workers.values().filter_map(Worker::instance).collect();
        self.masters.retain(|instance, _| live.contains(instance) && !workers.contains(instance));
        let strangers = nodes.iter().filter(|node| !workers.contains(&node.instance));
        let strangers = strangers.filter(|node| !self.masters.contains_key(&node.instance));
        let strangers: Vec<LiveName> = strangers.take(MET_AT_ONCE).copied().collect();
        let read = in_parallel(&strangers, |node| session.read(&paths::live(node), false));
        for (node, read) in strangers.into_iter().zip(read) {
            let live = self.readable(&paths::live(&node), read)?.map(|(data, _)| Live::decode(&data));
            let master = live.filter(|live| live.meta.as_ref().is_some_and(|meta| meta.role == Role::Master));
            self.masters.insert(node.instance, master.and_then(|live| live.address.parse().ok()));
        }
        Ok(())
    }
}

/// So many processes that are no registered workers are looked at after each change.
const MET_AT_ONCE: usize = 100;

/// When a task has ended that is marked to be removed: too long ago to be kept, whatever the retention.
const LONG_AGO_MS: i64 = 0;

/// Reads a task: all of it at first, later what is below it; of one that has ended whether it is marked to be removed. `None`
/// when it is gone.
///
/// # Errors
/// As [`Session::read`]; [`Error::Refused`] for an ephemeral, which is no task.
pub fn read_task(
    session: &Session,
    name: TaskName,
    before: Option<&Known>,
    watch: bool,
) -> Result<Option<Known>, Error> {
    let path = paths::task(&name);
    let (head, mut attempts, children) = match before {
        Some(Known { czxid, submit, stage: Stage::Open(open) }) => {
            let (meta, submitted_ms) = (open.meta.clone(), open.submitted_ms);
            let head = Head { czxid: *czxid, submit: submit.clone(), meta, removed: false, submitted_ms };
            (head, open.attempts.clone(), true)
        }
        _ => {
            let Some((data, stat)) = session.read(&path, watch)? else { return Ok(None) };
            let head = head(&path, &data, stat)?;
            if let Some((outcome, at_ms)) = head.end(before) {
                return Ok(Some(head.ended_as(outcome, at_ms)));
            }
            (head, BTreeMap::new(), stat.children > 0)
        }
    };
    let names = match children || watch {
        true => session.children(&path, watch)?,
        false => Some(Vec::new()),
    };
    let Some(names) = names else { return Ok(None) };
    let mut cancel = false;
    for child in names.iter().filter_map(|name| task_child(name)) {
        match child {
            TaskChild::Status => {
                if let Some((data, stat)) = session.read(&paths::status(&name), false)? {
                    return Ok(Some(head.ended(&data, stat)));
                }
            }
            TaskChild::Cancel => cancel = true,
            TaskChild::Attempt(number) => {
                if let std::collections::btree_map::Entry::Vacant(vacant) = attempts.entry(number) {
                    let record = session.read(&paths::attempt(&name, number), false)?;
                    let record = record.map(|(data, stat)| (Attempt::decode(&data).kind, stat.ctime_ms));
                    let (kind, at_ms) = record.unwrap_or_default();
                    vacant.insert(Recorded { kind, at_ms });
                }
            }
        }
    }
    Ok(Some(head.open(cancel, attempts)))
}

/// Reads tasks for the first time, with as few requests as there can be; sets no watches.
fn read_new_tasks(session: &Session, names: &[TaskName], ahead: &mut Ahead) -> Vec<Result<Option<Known>, Error>> {
    let paths: Vec<String> = names.iter().map(paths::task).collect();
    let heads = ahead.read(session, &paths);
    // Most of what has children has ended.
    let has_children = |read: &Result<Option<(_, Stat)>, _>| matches!(read, Ok(Some((_, stat))) if stat.children > 0);
    let ended: Vec<usize> = (0..names.len()).filter(|at| has_children(&heads[*at])).collect();
    let statuses: Vec<String> = ended.iter().map(|at| paths::status(&names[*at])).collect();
    let statuses = session.read_each(&statuses, |read| read.map(|(data, stat)| (Status::decode(&data).outcome, stat)));
    let mut statuses: BTreeMap<usize, _> = ended.into_iter().zip(statuses).collect();
    let known = |(at, read): (usize, Read)| {
        let Some((data, stat)) = read? else { return Ok(None) };
        let head = head(&paths[at], &data, stat)?;
        match statuses.remove(&at).transpose()? {
            None => Ok(Some(head.open(false, BTreeMap::new()))),
            Some(Some((outcome, stat))) => Ok(Some(head.ended_as(outcome, stat.ctime_ms))),
            // It has something else below it.
            Some(None) => read_task(session, names[at], None, false),
        }
    };
    heads.into_iter().enumerate().map(known).collect()
}

/// Looks again at tasks that have ended, with as few requests as there can be: whether they are marked to be removed, and those
/// that are bare then. Sets no watches.
fn read_ended_tasks<'a>(
    session: &Session,
    names: &[TaskName],
    before: impl Fn(&TaskName) -> Option<&'a Known>,
    ahead: &mut Ahead,
    bare: &mut BTreeMap<TaskName, i32>,
) -> Vec<Result<Option<Known>, Error>> {
    let paths: Vec<String> = names.iter().map(paths::task).collect();
    let read = ahead.read(session, &paths);
    let known = |(task, read): (&TaskName, Read)| {
        let Some((data, stat)) = read? else { return Ok(None) };
        let head = head(&paths::task(task), &data, stat)?;
        if head.removed
            && stat.children == 1
            && head.meta.as_ref().is_ok_and(|meta| meta.as_ref().is_none_or(|meta| meta.key.is_none()))
        {
            bare.insert(*task, stat.version);
        }
        match head.end(before(task)) {
            Some((outcome, at_ms)) => Ok(Some(head.ended_as(outcome, at_ms))),
            // It is another task.
            None => read_task(session, *task, None, false),
        }
    };
    names.iter().zip(read).map(known).collect()
}

/// What was read ahead in a pass.
struct Ahead(BTreeMap<String, Read>);

impl Ahead {
    /// Takes out what is there, and reads the rest with as few requests as there can be.
    fn read(&mut self, session: &Session, paths: &[String]) -> Vec<Read> {
        let there: Vec<Option<Read>> = paths.iter().map(|path| self.0.remove(path)).collect();
        let missing: Vec<String> =
            paths.iter().zip(&there).filter(|(_, read)| read.is_none()).map(|(path, _)| path.clone()).collect();
        let mut others = session.read_each(&missing, |read| read).into_iter();
        there.into_iter().filter_map(|read| read.or_else(|| others.next())).collect()
    }
}

/// What a task's own data say.
struct Head {
    czxid: i64,
    submit: Option<String>,
    meta: Result<Option<TaskMeta>, String>,
    /// It is marked to be removed.
    removed: bool,
    submitted_ms: i64,
}

fn head(path: &str, data: &[u8], stat: Stat) -> Result<Head, Error> {
    if stat.owner.is_some() {
        let why = "it is ephemeral, so it can have no status".to_owned();
        return Err(Error::Refused { path: path.to_owned(), why });
    }
    let (task, removed) = match Task::decode(data) {
        Err(DecodeError::Removed) => (Ok(Task::removed(data)), true),
        task => (task, false),
    };
    let submit = task.as_ref().ok().and_then(|task| task.meta.as_ref()?.submit.clone());
    let meta = task.map(|task| task.meta).map_err(|error| error.to_string());
    Ok(Head { czxid: stat.czxid, submit, meta, removed, submitted_ms: stat.ctime_ms })
}

impl Head {
    fn ended(self, status: &[u8], stat: Stat) -> Known {
        self.ended_as(Status::decode(status).outcome, stat.ctime_ms)
    }

    /// How and when it ended, if that is what was known of it.
    fn end(&self, before: Option<&Known>) -> Option<(Outcome, i64)> {
        match before {
            Some(Known { czxid, stage: Stage::Ended { outcome, at_ms }, .. }) if *czxid == self.czxid => {
                Some((outcome.clone(), *at_ms))
            }
            _ => None,
        }
    }

    fn ended_as(self, outcome: Outcome, at_ms: i64) -> Known {
        let at_ms = if self.removed { LONG_AGO_MS } else { at_ms };
        Known { czxid: self.czxid, submit: self.submit, stage: Stage::Ended { outcome, at_ms } }
    }

    fn open(self, cancel: bool, attempts: BTreeMap<u32, Recorded>) -> Known {
        if self.removed {
            // Its status is deleted already.
            return self.ended_as(Outcome::Other("removed".to_owned()), LONG_AGO_MS);
        }
        let Head { czxid, submit, meta, submitted_ms, .. } = self;
        let stage = Stage::Open(Box::new(Open { meta, cancel, attempts, submitted_ms }));
        Known { czxid, submit, stage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A primary that has read what there is: these tasks, the first of them assigned to `w`.
    fn reading(tasks: u32) -> Reading {
        let mut view = View::default();
        for number in 0..tasks {
            let open = Open { meta: Ok(None), cancel: false, attempts: BTreeMap::new(), submitted_ms: 0 };
            let known = Known { czxid: 1, submit: None, stage: Stage::Open(Box::new(open)) };
            view.tasks.insert(TaskName::from_number(number), known);
        }
        let desk =
            Desk { tasks: BTreeMap::from([(TaskName::from_number(0), Assignment::default())]), ..Desk::default() };
        view.assign.insert("w".parse().unwrap(), desk);
        Reading { view, below: true, ..Reading::default() }
    }

    fn haste(tasks: u32, hints: &[(&str, Change)]) -> Haste {
        let mut reading = reading(tasks);
        hints.iter().for_each(|(path, change)| reading.hint(path, *change));
        reading.haste()
    }

    #[test]
    fn what_nobody_waits_for_is_put_off_and_what_the_primary_did_itself_is_no_news() {
        let ended = ("/tasks/task-0000000000/status", Change::Created);
        let submitted = ("/tasks/task-0000000001", Change::Created);
        let (made, deleted) = (Change::Created, Change::Deleted);
        assert_eq!(haste(1, &[]), Haste::No);
        assert_eq!(haste(1, &[("/assign/w/task-0000000000", made)]), Haste::No);
        assert_eq!(haste(1, &[("/assign/w/task-0000000007", deleted)]), Haste::No);
        assert_eq!(haste(1, &[("/tasks/task-0000000007", deleted)]), Haste::No);
        assert_eq!(haste(1, &[("/tasks/task-0000000000", deleted)]), Haste::Now, "by another hand");
        assert_eq!(haste(1, &[ended]), Haste::Soon, "the only one there is");
        assert_eq!(haste(2, &[ended]), Haste::Now, "another one may wait for the slot");
        assert_eq!(haste(1, &[ended, submitted]), Haste::Now);
        for other in ["/tasks/task-0000000000/cancel", "/workers/w", "/master", "/assign/x", "/live", "/requests"] {
            assert_eq!(haste(1, &[ended, (other, made)]), Haste::Now, "{other}");
        }
        assert_eq!(haste(1, &[ended, ("/assign/w/task-0000000000", deleted)]), Haste::Now, "by another hand");
    }
}
