//! Reads the tree into plain values. No decisions here, and nothing is written.
//!
//! Any znode may go between two requests; then it is as if it had never been there. Assignments are read before the
//! tasks, so that a task that ends meanwhile is seen with its status, and never as one that nobody has.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zk_master::state::{Crew, waiting};
use zk_master::view::{Desk, Known};
use zk_session::{Error, Session, Stat, in_parallel};
use znode_paths::paths::{self, TaskChild, task_child};
use znode_paths::{
    Assignment, Attempt, DecodeError, Drain, Instance, Live, LiveName, Outcome, Role, Since, Status, Task, TaskName,
    Worker, WorkerName, decode_epoch,
};

use crate::completions::Kind;
use crate::why::{Facts, Primary, Tree};

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
#[derive(Debug, Clone)]
pub(crate) struct Masters {
    /// What `/master` holds.
    pub(crate) primary: Option<String>,
    /// It is held by one of ours.
    pub(crate) ours: bool,
    /// The addresses of all others, sorted.
    pub(crate) standby: Vec<String>,
}

/// Reads a task and its status. One that is being removed is as good as gone.
pub(crate) fn task(session: &Session, name: TaskName) -> Result<Option<TaskSeen>, Error> {
    let Some((data, stat)) = session.read(&paths::task(&name), false)? else { return Ok(None) };
    let Some(task) = decode(&data) else { return Ok(None) };
    let status = match stat.children {
        0 => None,
        _ => session.read(&paths::status(&name), false)?.map(|(data, _)| Status::decode(&data)),
    };
    Ok(Some(TaskSeen { name, czxid: stat.czxid, submitted_ms: stat.ctime_ms, task, status }))
}

/// What is to be run; `None` where it is being removed.
fn decode(data: &[u8]) -> Option<Task> {
    match Task::decode(data) {
        Err(DecodeError::Removed) => None,
        task => Some(task.unwrap_or_else(|_| Task::plain(&String::from_utf8_lossy(data)))),
    }
}

/// Reads all tasks, in the order of their names, without the output of their commands.
pub(crate) fn tasks(session: &Session) -> Result<Vec<TaskSeen>, Error> {
    let names = all_tasks(session)?;
    let read = read_all(session, &task_paths(&names), |read| {
        let (data, stat) = read?;
        Some((decode(&data)?, stat))
    })?;
    let there = names.into_iter().zip(read).filter_map(|(name, read)| Some((name, read?)));
    let there: Vec<(TaskName, (Task, Stat))> = there.collect();
    let mut statuses = statuses(session, there.iter().map(|(name, (_, stat))| (*name, *stat)))?;
    let seen = |(name, (task, stat)): (TaskName, (Task, Stat))| {
        let status = statuses.remove(&name);
        TaskSeen { name, czxid: stat.czxid, submitted_ms: stat.ctime_ms, task, status }
    };
    Ok(there.into_iter().map(seen).collect())
}

/// Reads how all tasks ended: name, czxid and the word, if any.
pub(crate) fn outcomes(session: &Session) -> Result<Vec<(TaskName, i64, Option<Outcome>)>, Error> {
    let names = all_tasks(session)?;
    let stats = read_all(session, &task_paths(&names), |read| read.map(|(_, stat)| stat))?;
    let there: Vec<(TaskName, Stat)> = names.into_iter().zip(stats).filter_map(|(n, stat)| Some((n, stat?))).collect();
    let mut statuses = statuses(session, there.iter().copied())?;
    Ok(there.into_iter().map(|(n, stat)| (n, stat.czxid, statuses.remove(&n).map(|status| status.outcome))).collect())
}

/// Reads znodes; of no use is what is not read whole.
pub(crate) fn read_all<T: Send>(
    session: &Session,
    paths: &[String],
    make: impl Fn(Option<(Vec<u8>, Stat)>) -> T + Sync,
) -> Result<Vec<T>, Error> {
    session.read_each(paths, make).into_iter().collect()
}

fn all_tasks(session: &Session) -> Result<Vec<TaskName>, Error> {
    Ok(names::<TaskName>(session, paths::TASKS)?.into_iter().collect())
}

fn task_paths(names: &[TaskName]) -> Vec<String> {
    names.iter().map(paths::task).collect()
}

/// Reads the statuses of tasks, those that have one, without the output of their commands: ten thousand of these are 1.3 GB.
fn statuses(
    session: &Session,
    tasks: impl Iterator<Item = (TaskName, Stat)>,
) -> Result<BTreeMap<TaskName, Status>, Error> {
    let names: Vec<TaskName> = tasks.filter(|(_, stat)| stat.children > 0).map(|(name, _)| name).collect();
    let paths: Vec<String> = names.iter().map(paths::status).collect();
    let read = read_all(session, &paths, |read| {
        let mut status = Status::decode(&read?.0);
        if let Some(meta) = &mut status.meta {
            (meta.stdout, meta.stderr) = (None, None);
        }
        Some(status)
    })?;
    Ok(names.into_iter().zip(read).filter_map(|(name, status)| Some((name, status?))).collect())
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
        Ok(read.map(|(data, stat)| (*task, worker.clone(), Assignment::decode(&data), stat.czxid)))
    })?;
    let workers = registered(session)?;
    let made = assignments.iter().map(|(task, worker, assignment, czxid)| (worker, *task, assignment, *czxid));
    let waiting = waiting(&workers, made);
    let mut assigned: BTreeMap<TaskName, Vec<_>> = BTreeMap::new();
    for (task, worker, assignment, _) in assignments {
        assigned.entry(task).or_default().push((worker, assignment));
    }
    Ok(Crew { workers, drained, assigned, waiting })
}

/// Reads who is registered.
fn registered(session: &Session) -> Result<BTreeMap<WorkerName, Worker>, Error> {
    let names: BTreeSet<WorkerName> = names(session, paths::WORKERS)?;
    let workers = each(&names, |worker| {
        let Some((data, _)) = session.read(&paths::worker(worker), false)? else { return Ok(None) };
        let decoded = Worker::decode(&data);
        let decoded = decoded.inspect_err(|error| log::warn!("ignored path={}: {error}", paths::worker(worker)));
        Ok(decoded.ok().map(|registered| (worker.clone(), registered)))
    })?;
    Ok(workers.into_iter().collect())
}

/// Reads what is below `/live`.
fn live(session: &Session) -> Result<Vec<(LiveName, Live, Stat)>, Error> {
    let names: BTreeSet<LiveName> = names(session, paths::LIVE)?;
    each(&names, |name| {
        let read = session.read(&paths::live(name), false)?;
        Ok(read.map(|(data, stat)| (*name, Live::decode(&data), stat)))
    })
}

/// Reads who is the primary and who stands by.
pub(crate) fn masters(session: &Session) -> Result<Masters, Error> {
    let live = live(session)?;
    masters_among(session, &live)
}

/// The primary's own nodes below `/live` are known by their instance, for two masters may have been started with the same
/// address.
fn masters_among(session: &Session, live: &[(LiveName, Live, Stat)]) -> Result<Masters, Error> {
    let masters = live.iter().filter(|(_, node, _)| node.meta.as_ref().is_some_and(|meta| meta.role == Role::Master));
    let masters: Vec<_> = masters.map(|(name, node, stat)| (name.instance, stat.owner, node.address.clone())).collect();
    let held = session.read(paths::MASTER, false)?;
    let owner = held.as_ref().and_then(|(_, stat)| stat.owner);
    let reigning: Option<Instance> = masters.iter().find(|node| owner.is_some() && node.1 == owner).map(|node| node.0);
    let others: BTreeMap<Instance, String> = masters
        .into_iter()
        .filter(|(instance, ..)| Some(*instance) != reigning)
        .map(|(instance, _, address)| (instance, address))
        .collect();
    let mut standby: Vec<String> = others.into_values().collect();
    standby.sort_unstable();
    let primary = held.map(|(data, _)| String::from_utf8_lossy(&data).into_owned());
    Ok(Masters { primary, ours: reigning.is_some(), standby })
}

/// Reads what explains a task; `None` when it is not there.
pub(crate) fn facts(session: &Session, name: TaskName) -> Result<Option<Facts>, Error> {
    if let Some((data, stat)) = session.read(&paths::status(&name), false)? {
        return Ok(Some(Facts::Ended {
            status: Status::decode(&data).into(),
            since: since(stat.ctime_ms, now_ms(&[])),
        }));
    }
    if session.stat(&paths::task(&name), false)?.is_none() {
        return Ok(None);
    }
    let mut tree = Tree::default();
    let view = &mut tree.view;
    let desks: BTreeSet<WorkerName> = names(session, paths::ASSIGN)?;
    for worker in desks {
        let path = paths::assignments(&worker);
        let Some((data, stat)) = session.read(&path, false)? else { continue };
        let tasks: BTreeSet<TaskName> = names(session, &path)?;
        let assignments = each(&tasks, |task| {
            let read = session.read(&paths::assignment(&worker, task), false)?;
            Ok(read.map(|(data, stat)| (*task, Assignment::decode(&data), stat)))
        })?;
        let (drain, closed) = (Drain::decode(&data).drain, stat.owner.is_some());
        let mut desk = Desk { drain, closed, ..Desk::default() };
        for (task, assignment, stat) in assignments {
            tree.made.insert((worker.clone(), task), (stat.czxid, stat.ctime_ms));
            desk.since_ms.insert(task, stat.ctime_ms);
            desk.tasks.insert(task, assignment);
        }
        view.assign.insert(worker, desk);
    }
    // The queue counts only for a task that nobody has.
    let colleagues = view.assign.values().filter(|desk| desk.tasks.contains_key(&name));
    let mut tasks: BTreeSet<TaskName> = colleagues.flat_map(|desk| desk.tasks.keys().copied()).collect();
    if tasks.is_empty() {
        tasks = names(session, paths::TASKS)?;
    }
    let known = each(&tasks, |task| match zk_master::read_task(session, *task, None, false) {
        // Nobody is held up by what is not for us, or is no task.
        Err(Error::NotAllowed(_) | Error::Refused { .. }) if *task != name => Ok(None),
        known => Ok(known?.map(|known| (*task, known))),
    })?;
    view.tasks = known.into_iter().collect();
    view.workers = registered(session)?;
    let live = live(session)?;
    view.live = live.iter().map(|(name, ..)| name.instance).collect();
    view.now_ms = now_ms(&live);
    if let Some((data, stat)) = session.read(paths::EPOCH, false)? {
        view.fence = decode_epoch(&data).unwrap_or_default();
        tree.raised = stat.mzxid;
    }
    tree.primary = match masters_among(session, &live)? {
        Masters { primary: None, .. } => Primary::None,
        Masters { primary: Some(address), ours: false, .. } => Primary::ByHand(address),
        Masters { ours: true, .. } => Primary::Daemon,
    };
    match tree.view.tasks.get(&name).map(Known::open) {
        None => Ok(None),
        // It ended meanwhile.
        Some(None) => facts(session, name),
        Some(Some(_)) => Ok(Some(Facts::Open(Box::new(tree)))),
    }
}

/// The servers' clock: ours, unless the newest heartbeat says that ours is behind.
fn now_ms(live: &[(LiveName, Live, Stat)]) -> i64 {
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let heartbeats = live.iter().map(|(.., stat)| stat.mtime_ms);
    heartbeats.chain([i64::try_from(ours).unwrap_or(i64::MAX)]).max().unwrap_or_default()
}

fn since(then_ms: i64, now_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms - then_ms).unwrap_or(0))
}

/// How many tasks are read before it is looked whether one of them was it.
const CHUNK: usize = 64;

/// Looks for the tasks with this submit id, and sets a watch on `/tasks`. Returns the lowest, which is the one that counts;
/// without what it says where it is being removed.
pub(crate) fn submitted(
    session: &Session,
    id: &str,
    since: Option<Since>,
) -> Result<Option<(TaskName, Option<Task>)>, Error> {
    Ok(all_submitted(session, &BTreeSet::from([id]), since)?.into_values().next())
}

/// The same for several ids.
pub(crate) fn all_submitted(
    session: &Session,
    ids: &BTreeSet<&str>,
    since: Option<Since>,
) -> Result<BTreeMap<String, (TaskName, Option<Task>)>, Error> {
    let mut found = BTreeMap::new();
    let Some(names) = session.children(paths::TASKS, true)? else { return Ok(found) };
    let tasks = session.stat(paths::TASKS, false)?.map(|stat| stat.czxid);
    let from = since.filter(|since| Some(since.tasks) == tasks).map_or(0, |since| since.from);
    let names: BTreeSet<TaskName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let names: Vec<TaskName> = names.range(TaskName::from_number(from)..).copied().collect();
    for names in names.chunks(CHUNK) {
        if found.len() == ids.len() {
            break;
        }
        let read = in_parallel(names, |name| session.read(&paths::task(name), false));
        for (name, read) in names.iter().zip(read) {
            let data = match read {
                Ok(Some((data, _))) => data,
                // What may not be read is somebody else's.
                Ok(None) | Err(Error::NotAllowed(_)) => continue,
                Err(error) => return Err(error),
            };
            let (task, meta) = match Task::decode(&data) {
                Err(DecodeError::Removed) => (None, Task::removed(&data).meta),
                Ok(task) => (Some(task.clone()), task.meta),
                Err(_) => continue,
            };
            if let Some(id) = meta.and_then(|meta| meta.submit).filter(|id| ids.contains(id.as_str())) {
                found.entry(id).or_insert((*name, task));
            }
        }
    }
    Ok(found)
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

/// The names of all tasks, the newest first, or of all workers that are there or out of service.
pub(crate) fn all_names(session: &Session, kind: Kind) -> Result<Vec<String>, Error> {
    Ok(match kind {
        Kind::Tasks => names::<TaskName>(session, paths::TASKS)?.iter().rev().map(ToString::to_string).collect(),
        Kind::Workers => {
            let mut workers = names::<WorkerName>(session, paths::WORKERS)?;
            workers.append(&mut names(session, paths::ASSIGN)?);
            workers.iter().map(ToString::to_string).collect()
        }
    })
}
