//! Reads the tree into plain values. No decisions here, and nothing is written.
//!
//! Any znode may go between two requests; then it is as if it had never been there. Assignments are read before the
//! tasks, so that a task that ends meanwhile is seen with its status, and never as one that nobody has.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use zk_session::{Error, Session, Stat, in_parallel};
use znode_paths::paths::{self, TaskChild, task_child};
use znode_paths::{
    Assignment, Attempt, Drain, Instance, Live, LiveName, Outcome, Role, Status, Task, TaskName, Worker, WorkerName,
};

use crate::state::Crew;

/// A task, and its status if it has one.
#[derive(Debug)]
pub(crate) struct TaskSeen {
    pub(crate) name: TaskName,
    /// Tells it from another one at the same path.
    pub(crate) czxid: i64,
    /// By the servers' clock.
    pub(crate) submitted_ms: i64,
    /// What is to be run; where that cannot be decoded, the data as a command.
    pub(crate) task: Task,
    pub(crate) status: Option<Status>,
}

/// What there is of a task beside it and its status.
#[derive(Debug)]
pub(crate) struct TaskDetails {
    pub(crate) task: TaskSeen,
    /// Somebody asked for its cancellation.
    pub(crate) cancel: bool,
    /// The attempts that ended without a status, and when that was recorded.
    pub(crate) attempts: BTreeMap<u32, (Attempt, i64)>,
}

/// Where all the daemons are.
#[derive(Debug)]
pub(crate) struct Masters {
    /// What `/master` holds.
    pub(crate) primary: Option<String>,
    /// The addresses of all others, sorted.
    pub(crate) standby: Vec<String>,
}

/// Reads a task and its status.
pub(crate) fn task(session: &Session, name: TaskName) -> Result<Option<TaskSeen>, Error> {
    let Some((data, stat)) = session.read(&paths::task(&name), false)? else { return Ok(None) };
    let task = Task::decode(&data).unwrap_or_else(|_| Task::plain(&String::from_utf8_lossy(&data)));
    let status = status(session, name, stat)?;
    Ok(Some(TaskSeen { name, czxid: stat.czxid, submitted_ms: stat.ctime_ms, task, status }))
}

/// Reads the status of a task; without a request where the task has nothing below it.
fn status(session: &Session, name: TaskName, stat: Stat) -> Result<Option<Status>, Error> {
    if stat.children == 0 {
        return Ok(None);
    }
    Ok(session.read(&paths::status(&name), false)?.map(|(data, _)| Status::decode(&data)))
}

/// Reads all tasks, in the order of their names, without the output of their commands.
pub(crate) fn tasks(session: &Session) -> Result<Vec<TaskSeen>, Error> {
    let names: BTreeSet<TaskName> = names(session, paths::TASKS)?;
    each(&names, |name| {
        let mut seen = task(session, *name)?;
        // Ten thousand of these are 1.3 GB.
        if let Some(meta) = seen.as_mut().and_then(|seen| seen.status.as_mut()?.meta.as_mut()) {
            (meta.stdout, meta.stderr) = (None, None);
        }
        Ok(seen)
    })
}

/// Reads how all tasks ended: name, czxid and the word, if any.
pub(crate) fn outcomes(session: &Session) -> Result<Vec<(TaskName, i64, Option<Outcome>)>, Error> {
    let names: BTreeSet<TaskName> = names(session, paths::TASKS)?;
    each(&names, |name| {
        let Some(stat) = session.stat(&paths::task(name), false)? else { return Ok(None) };
        let status = status(session, *name, stat)?;
        Ok(Some((*name, stat.czxid, status.map(|status| status.outcome))))
    })
}

/// Reads a task and all that is below it.
pub(crate) fn details(session: &Session, name: TaskName) -> Result<Option<TaskDetails>, Error> {
    let path = paths::task(&name);
    let children = session.children(&path, false)?.unwrap_or_default();
    let (mut cancel, mut attempts) = (false, BTreeMap::new());
    for child in children.iter().filter_map(|child| task_child(child)) {
        match child {
            TaskChild::Status => {}
            TaskChild::Cancel => cancel = true,
            TaskChild::Attempt(number) => {
                if let Some((data, stat)) = session.read(&paths::attempt(&name, number), false)? {
                    attempts.insert(number, (Attempt::decode(&data), stat.ctime_ms));
                }
            }
        }
    }
    Ok(task(session, name)?.map(|task| TaskDetails { task, cancel, attempts }))
}

/// Reads who is to run what, and then who is there.
pub(crate) fn crew(session: &Session) -> Result<Crew, Error> {
    let desks: BTreeSet<WorkerName> = names(session, paths::ASSIGN)?;
    let desks = each(&desks, |worker| {
        let path = paths::assignments(worker);
        let Some((data, _)) = session.read(&path, false)? else { return Ok(None) };
        let tasks: BTreeSet<TaskName> = names(session, &path)?;
        Ok(Some((worker.clone(), Drain::decode(&data).drain, tasks)))
    })?;
    let drained = desks.iter().filter(|(_, drained, _)| *drained).map(|(worker, ..)| worker.clone()).collect();
    let pairs: BTreeSet<(TaskName, WorkerName)> =
        desks.into_iter().flat_map(|(worker, _, tasks)| tasks.into_iter().map(move |t| (t, worker.clone()))).collect();
    let assignments = each(&pairs, |(task, worker)| {
        let read = session.read(&paths::assignment(worker, task), false)?;
        Ok(read.map(|(data, _)| (*task, worker.clone(), Assignment::decode(&data))))
    })?;
    let mut assigned: BTreeMap<TaskName, Vec<_>> = BTreeMap::new();
    for (task, worker, assignment) in assignments {
        assigned.entry(task).or_default().push((worker, assignment));
    }
    let registered: BTreeSet<WorkerName> = names(session, paths::WORKERS)?;
    let workers = each(&registered, |worker| {
        let Some((data, _)) = session.read(&paths::worker(worker), false)? else { return Ok(None) };
        let decoded = Worker::decode(&data);
        let decoded = decoded.inspect_err(|error| log::warn!("ignored path={}: {error}", paths::worker(worker)));
        Ok(decoded.ok().map(|registered| (worker.clone(), registered)))
    })?;
    Ok(Crew { workers: workers.into_iter().collect(), drained, assigned })
}

/// Reads who is the primary and who stands by. The primary's own nodes below `/live` are known by their instance, for two
/// masters may have been started with the same address.
pub(crate) fn masters(session: &Session) -> Result<Masters, Error> {
    let names: BTreeSet<LiveName> = names(session, paths::LIVE)?;
    let nodes = each(&names, |name| {
        let Some((data, stat)) = session.read(&paths::live(name), false)? else { return Ok(None) };
        let node = Live::decode(&data);
        let master = node.meta.is_some_and(|meta| meta.role == Role::Master);
        Ok(master.then_some((name.instance, stat.owner, node.address)))
    })?;
    let held = session.read(paths::MASTER, false)?;
    let owner = held.as_ref().and_then(|(_, stat)| stat.owner);
    let reigning: Option<Instance> = nodes.iter().find(|node| owner.is_some() && node.1 == owner).map(|node| node.0);
    let others: BTreeMap<Instance, String> = nodes
        .into_iter()
        .filter(|(instance, ..)| Some(*instance) != reigning)
        .map(|(instance, _, address)| (instance, address))
        .collect();
    let mut standby: Vec<String> = others.into_values().collect();
    standby.sort_unstable();
    let primary = held.map(|(data, _)| String::from_utf8_lossy(&data).into_owned());
    Ok(Masters { primary, standby })
}

/// Looks for the tasks with this submit id. Returns the lowest, which is the one that counts.
pub(crate) fn submitted(session: &Session, id: &str) -> Result<Option<TaskName>, Error> {
    let names: BTreeSet<TaskName> = names(session, paths::TASKS)?;
    let found = each(&names, |name| {
        let Some((data, _)) = session.read(&paths::task(name), false)? else { return Ok(None) };
        let submit = Task::decode(&data).ok().and_then(|task| task.meta?.submit);
        Ok((submit.as_deref() == Some(id)).then_some(*name))
    })?;
    Ok(found.into_iter().min())
}

/// The children of a znode that are of this protocol; none where there is no such znode.
fn names<N: FromStr + Ord>(session: &Session, parent: &str) -> Result<BTreeSet<N>, Error> {
    let children = session.children(parent, false)?.unwrap_or_default();
    Ok(children.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Reads something for each, several at a time; what is not there any more is left out.
fn each<N: Ord + Sync, T: Send>(
    names: &BTreeSet<N>,
    read: impl Fn(&N) -> Result<Option<T>, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let names: Vec<&N> = names.iter().collect();
    in_parallel(&names, |name| read(name)).into_iter().filter_map(Result::transpose).collect()
}
