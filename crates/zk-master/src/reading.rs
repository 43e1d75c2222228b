//! Keeps the [`View`] true: reads what changed, and sets the watch that says so the next time.
//!
//! What is stale is marked and read again before the next plan; that includes all that the primary itself has written,
//! for reads on a session see the writes before them. Nothing is ever concluded from a notification alone.

use std::collections::{BTreeMap, BTreeSet};

use zk_session::{Change, Error, Session, in_parallel};
use znode_paths::paths::{self, Place, TaskChild, task_child};
use znode_paths::{
    Assignment, Attempt, DecodeError, Drain, LiveName, Outcome, Status, Task, TaskName, Worker, WorkerName,
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
    /// Where a write was refused, and when it is tried again, by the servers' clock.
    refused: BTreeMap<String, i64>,
}

/// How long a write that was refused is left alone: until somebody may have changed an ACL.
const REFUSED_MS: i64 = 30_000;

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
    /// What is below them.
    task: BTreeSet<TaskName>,
    /// All of them.
    rewritten: BTreeSet<TaskName>,
}

impl Reading {
    /// Nothing is read yet.
    pub(crate) fn new(fence: i64) -> Self {
        let view = View { fence, ..View::default() };
        let stale = Stale { census: true, assign: true, tasks: true, reign: true, ..Stale::default() };
        Reading { view, stale, ..Reading::default() }
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
                stale.desks.insert(worker.clone());
                stale.assignments.insert((worker, task));
            }
            Some(Place::Tasks) => stale.tasks = true,
            Some(Place::Task(task)) => match change {
                Change::Deleted => {
                    // There may be another one at that path by now.
                    self.view.tasks.remove(&task);
                    stale.tasks = true;
                }
                Change::Data => _ = stale.rewritten.insert(task),
                Change::Created | Change::Children => _ = stale.task.insert(task),
            },
            Some(Place::TaskChild(task, _)) => _ = stale.task.insert(task),
            None => {}
        }
    }

    /// The primary wrote, or tried to write, what a worker has.
    pub(crate) fn wrote_desk(&mut self, worker: &WorkerName) {
        self.stale.desks.insert(worker.clone());
    }

    /// The primary deleted an assignment itself: it did not vanish.
    pub(crate) fn unassigned(&mut self, worker: &WorkerName, task: TaskName) {
        self.view.unassigned(worker, task);
        self.stale.desks.insert(worker.clone());
    }

    /// The primary wrote below a task.
    pub(crate) fn wrote_task(&mut self, task: TaskName) {
        self.stale.task.insert(task);
    }

    /// The primary deleted a task.
    pub(crate) fn removed_task(&mut self, task: TaskName) {
        self.view.tasks.remove(&task);
        self.stale.tasks = true;
    }

    /// It is time to look at the workers that are missing.
    pub(crate) fn look_for_missing(&mut self) {
        self.stale.census |= !self.view.missing_since_ms.is_empty();
    }

    /// Reads whatever is stale. The order matters: assignments before the tasks and the workers they name, so that none of
    /// those is missed that was there when the assignment was.
    pub(crate) fn refresh(&mut self, session: &Session) -> Result<(), Error> {
        if std::mem::take(&mut self.stale.assign) {
            self.read_assign(session)?;
        }
        for worker in std::mem::take(&mut self.stale.desks) {
            self.read_desk(session, &worker)?;
        }
        let view = &self.view;
        let strange = |task: &TaskName| !view.tasks.contains_key(task);
        self.stale.tasks |= view.assign.values().any(|desk| desk.tasks.keys().any(strange));
        // Whoever deleted an assignment may have recorded its attempt before that.
        self.stale.task.extend(view.vanished.keys());
        if std::mem::take(&mut self.stale.tasks) {
            self.read_tasks(session)?;
        }
        self.read_each_task(session)?;
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

    /// The children of a parent that must be there: made again where somebody deleted it.
    fn list(&self, session: &Session, parent: &str) -> Result<Vec<String>, Error> {
        loop {
            match session.children(parent, true)? {
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
                Err(_) => self.ignore(format!("{parent}/{name}"), "its name is not of this protocol"),
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
        let read =
            self.readable(&path, session.children(&path, true))?.zip(self.readable(&path, session.read(&path, true))?);
        let Some((names, (data, stat))) = read else {
            self.closed.remove(worker);
            self.view.replace_desk(worker, None);
            return Ok(());
        };
        let drain = Drain::decode(&data).drain;
        let closed = self.closed.contains(worker) || stat.owner.is_some();
        let there: BTreeSet<TaskName> = self.parse(&path, &names);
        let mut desk = Desk { drain, closed, strangers: there.len() < names.len(), ..Desk::default() };
        let known = self.view.assign.get(worker).map(|desk| &desk.tasks);
        for (task, assignment) in known.into_iter().flatten() {
            let stale = self.stale.assignments.remove(&(worker.clone(), *task));
            if there.contains(task) && !stale {
                desk.tasks.insert(*task, assignment.clone());
            }
        }
        let unread: Vec<TaskName> = there.into_iter().filter(|task| !desk.tasks.contains_key(task)).collect();
        let read = in_parallel(&unread, |task| session.read(&paths::assignment(worker, task), true));
        for (task, read) in unread.into_iter().zip(read) {
            // One that went in between has fired the watch on its parent. One that may not be read is not ours.
            let read = self.readable(&paths::assignment(worker, &task), read)?;
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
        self.view.tasks.retain(|task, _| there.contains(task));
        self.stale.task.retain(|task| there.contains(task));
        self.stale.rewritten.retain(|task| there.contains(task));
        self.stale.task.extend(there.into_iter().filter(|task| !self.view.tasks.contains_key(task)));
        Ok(())
    }

    fn read_each_task(&mut self, session: &Session) -> Result<(), Error> {
        let rewritten = std::mem::take(&mut self.stale.rewritten);
        let tasks = &self.view.tasks;
        let mut stale = std::mem::take(&mut self.stale.task);
        stale.retain(|task| tasks.get(task).is_none_or(|known| known.open().is_some()));
        let stale: Vec<TaskName> = stale.union(&rewritten).copied().collect();
        let read = in_parallel(&stale, |task| {
            read_task(session, *task, tasks.get(task).filter(|_| !rewritten.contains(task)), true)
        });
        for (task, known) in stale.into_iter().zip(read) {
            match self.readable(&paths::task(&task), known)? {
                Some(known) => self.view.tasks.insert(task, known),
                None => self.view.tasks.remove(&task),
            };
        }
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
        self.view.live = nodes.into_iter().map(|node| node.instance).collect();
        if first {
            let View { tasks, workers, .. } = &self.view;
            let open = tasks.values().filter(|known| known.open().is_some()).count();
            log::info!("took over workers={} tasks={} unfinished={open}", workers.len(), tasks.len());
        }
        self.view.census_ms = session.server_time_ms().unwrap_or(self.view.census_ms);
        for worker in self.view.note_missing() {
            log::info!("worker missing worker={worker}");
        }
        Ok(())
    }
}

/// When a task has ended that is marked to be removed: too long ago to be kept, whatever the retention.
const LONG_AGO_MS: i64 = 0;

/// Reads a task: all of it at first, later what is below it. `None` when it is gone.
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
    let (czxid, submit, meta, attempts, removed) = match before {
        Some(Known { czxid, submit, stage: Stage::Open(open) }) => {
            (*czxid, submit.clone(), open.meta.clone(), open.attempts.clone(), false)
        }
        _ => {
            let Some((data, stat)) = session.read(&path, watch)? else { return Ok(None) };
            if stat.owner.is_some() {
                let why = "it is ephemeral, so it can have no status".to_owned();
                return Err(Error::Refused { path, why });
            }
            let (task, removed) = match Task::decode(&data) {
                Err(DecodeError::Removed) => (Ok(Task::removed(&data)), true),
                task => (task, false),
            };
            let submit = task.as_ref().ok().and_then(|task| task.meta.as_ref()?.submit.clone());
            let meta = task.map(|task| task.meta).map_err(|error| error.to_string());
            (stat.czxid, submit, meta, Default::default(), removed)
        }
    };
    let Some(names) = session.children(&path, watch)? else { return Ok(None) };
    let mut open = Open { meta, cancel: false, attempts };
    for child in names.iter().filter_map(|name| task_child(name)) {
        match child {
            TaskChild::Status => {
                if let Some((data, stat)) = session.read(&paths::status(&name), false)? {
                    let outcome = Status::decode(&data).outcome;
                    let at_ms = if removed { LONG_AGO_MS } else { stat.ctime_ms };
                    return Ok(Some(Known { czxid, submit, stage: Stage::Ended { outcome, at_ms } }));
                }
            }
            TaskChild::Cancel => open.cancel = true,
            TaskChild::Attempt(number) => {
                if let std::collections::btree_map::Entry::Vacant(vacant) = open.attempts.entry(number) {
                    let record = session.read(&paths::attempt(&name, number), false)?;
                    let record = record.map(|(data, stat)| (Attempt::decode(&data).kind, stat.ctime_ms));
                    let (kind, at_ms) = record.unwrap_or_default();
                    vacant.insert(Recorded { kind, at_ms });
                }
            }
        }
    }
    let stage = match removed {
        // Its status is deleted already.
        true => Stage::Ended { outcome: Outcome::Other("removed".to_owned()), at_ms: LONG_AGO_MS },
        false => Stage::Open(Box::new(open)),
    };
    Ok(Some(Known { czxid, submit, stage }))
}
