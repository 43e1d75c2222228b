//! Carries out a [`Plan`]: no decisions live here.
//!
//! A chain is done step by step, and stops where one fails. Where there is much to do, the chains are tried as transactions
//! before that, several with one request: it is as if all the steps of a chain were taken at once, or none yet.

use std::collections::BTreeMap;

use zk_session::{Error, Kind, Session, Write, in_parallel};
use znode_paths::{Assignment, AssignmentMeta, Key, Task, TaskMeta, TaskName, paths};

use crate::metrics::Metrics;
use crate::plan::{Chain, Plan, Removal, Step};
use crate::reading::Reading;

/// From so many removals on it is worth to look at them first.
const MANY: usize = 32;

/// How far a chain came, and why not further.
type Progress<'a> = (Vec<&'a Step>, Result<(), Error>);

/// Carries out the chains, several at a time, and marks as stale whatever was written, so that it is read before the
/// next plan. Returns whether anything was done.
pub(crate) fn execute(session: &Session, plan: &Plan, reading: &mut Reading, metrics: &Metrics) -> Result<bool, Error> {
    let mut outcome = Ok(());
    let done = |step: &Step| {
        log::log!(level(step), "{}", sentence(step));
        if let Step::Assign(_, task, meta) = step {
            metrics.assigned(*task, meta, &reading.view, session.server_time_ms());
        }
    };
    let committed = commit(session, &plan.chains, reading)?;
    let (at_once, others): (Vec<_>, Vec<_>) = plan.chains.iter().zip(committed).partition(|(_, committed)| *committed);
    let mut progress = !at_once.is_empty();
    at_once.iter().flat_map(|(chain, _)| *chain).for_each(done);
    let results = in_parallel(&others, |(chain, _)| carry_out(session, chain, done));
    at_once.iter().flat_map(|(chain, _)| *chain).for_each(|step| mark(step, true, reading));
    for (tried, result) in results {
        progress |= result.is_ok() || tried.len() > 1;
        for (index, step) in tried.iter().enumerate() {
            mark(step, result.is_ok() || index + 1 < tried.len(), reading);
        }
        match result {
            Ok(()) => {}
            // The tree is not as it was read: it is read again, and planned again.
            Err(Error::NoNode(_) | Error::NodeExists(_) | Error::NotEmpty(_) | Error::BadVersion(_)) => {}
            // Nobody else is held up by what is not allowed here.
            Err(error @ (Error::NotAllowed(_) | Error::Refused { .. } | Error::TooLarge { .. })) => {
                if let Some(step) = tried.last() {
                    reading.refused(step, &error);
                }
            }
            Err(error) => outcome = Err(error),
        }
    }
    outcome.map(|()| progress)
}

/// Carries out chains as transactions; returns for each whether that was done, as a whole. If not, nothing of it was.
fn commit(session: &Session, chains: &[Chain], reading: &Reading) -> Result<Vec<bool>, Error> {
    let ended = chains.iter().flatten().filter_map(|step| match step {
        Step::Remove(task, Removal::Ended) => Some(*task),
        _ => None,
    });
    let removals = removals(session, &ended.collect::<Vec<_>>(), reading);
    let mut done = vec![false; chains.len()];
    let (indices, transactions): (Vec<usize>, Vec<Vec<Write>>) = chains
        .iter()
        .enumerate()
        .filter_map(|(at, chain)| {
            let writes: Option<Vec<Vec<Write>>> = chain.iter().map(|step| writes(step, &removals)).collect();
            Some((at, writes?.concat()))
        })
        .unzip();
    for (at, committed) in indices.into_iter().zip(session.commit_each(&transactions)?) {
        done[at] = committed.is_some();
    }
    Ok(done)
}

/// A step as part of a transaction; nothing where it has to look at something in between.
fn writes(step: &Step, removals: &BTreeMap<TaskName, Vec<Write>>) -> Option<Vec<Write>> {
    let create = |path, data| vec![Write::Create { path, data, sequential: false }];
    let delete = |path| vec![Write::Delete { path, version: None }];
    match step {
        Step::Record(_, _, attempt) => Some(create(step.path(), attempt.encode())),
        Step::Finish(_, status) => Some(create(step.path(), status.encode())),
        Step::Assign(.., meta) => Some(create(step.path(), Assignment { meta: Some(meta.clone()) }.encode())),
        Step::Unassign(_, _, None) | Step::RemoveDesk(_) => Some(delete(step.path())),
        Step::Remove(task, Removal::Ended) => removals.get(task).cloned(),
        Step::Unassign(_, _, Some(_)) | Step::Recall(..) | Step::Remove(_, Removal::Duplicate) => None,
    }
}

/// How ended tasks can be removed at once, where there is nothing to them but a status. So no mark is needed: none is half
/// removed.
fn removals(session: &Session, tasks: &[TaskName], reading: &Reading) -> BTreeMap<TaskName, Vec<Write>> {
    let bare = |task: &TaskName| Some((*task, reading.bare(task)?));
    let mut versions: BTreeMap<TaskName, i32> = tasks.iter().filter_map(bare).collect();
    let others: Vec<&TaskName> = tasks.iter().filter(|task| !versions.contains_key(task)).collect();
    if others.len() >= MANY || session.has_bulk() {
        let paths: Vec<String> = others.iter().map(|task| paths::task(task)).collect();
        let read = session.read_each(&paths, |read| {
            let (data, stat) = read?;
            let keyed = Task::removed(&data).meta.is_some_and(|meta| meta.key.is_some());
            (stat.children == 1 && !keyed).then_some(stat.version)
        });
        // What may not be read is said when it is removed.
        versions.extend(others.into_iter().zip(read).filter_map(|(task, read)| Some((*task, read.ok()??))));
    }
    let removal = |(task, version)| {
        let status = Write::Delete { path: paths::status(&task), version: None };
        (task, vec![status, Write::Delete { path: paths::task(&task), version: Some(version) }])
    };
    versions.into_iter().map(removal).collect()
}

fn carry_out<'a>(session: &Session, chain: &'a Chain, done: impl Fn(&Step)) -> Progress<'a> {
    let mut tried = Vec::new();
    for step in chain {
        tried.push(step);
        match carry_out_step(session, step) {
            Ok(()) => done(step),
            Err(error) => {
                log::debug!("not done: {}: {error}", sentence(step));
                return (tried, Err(error));
            }
        }
    }
    (tried, Ok(()))
}

/// Takes one step. What is done already is no error.
///
/// # Errors
/// As the requests of [`Session`].
pub fn carry_out_step(session: &Session, step: &Step) -> Result<(), Error> {
    match step {
        // Already there means already recorded, perhaps by the primary before us.
        Step::Record(task, number, attempt) => {
            let path = paths::attempt(task, *number);
            already(session.create(&path, &attempt.encode(), Kind::Persistent).map(drop))
        }
        // Already there means already final.
        Step::Finish(task, status) => {
            already(session.create(&paths::status(task), &status.encode(), Kind::Persistent).map(drop))
        }
        Step::Unassign(worker, task, Some(before)) => unassign(session, &paths::assignment(worker, task), before),
        Step::Unassign(worker, task, None) => gone(session.delete(&paths::assignment(worker, task), None)),
        Step::Assign(worker, task, meta) => {
            let data = Assignment { meta: Some(meta.clone()) }.encode();
            session.create(&paths::assignment(worker, task), &data, Kind::Persistent).map(drop)
        }
        Step::Recall(worker, task, meta) => recall(session, &paths::assignment(worker, task), meta),
        Step::Remove(task, why) => remove(session, &paths::task(task), *why),
        Step::RemoveDesk(worker) => gone(session.delete(&paths::assignments(worker), None)),
    }
}

/// Deletes an assignment, if it is as it was when that was decided.
fn unassign(session: &Session, path: &str, before: &Assignment) -> Result<(), Error> {
    let Some((data, stat)) = session.read(path, false)? else { return Ok(()) };
    if Assignment::decode(&data) != *before {
        return Err(Error::BadVersion(path.to_owned()));
    }
    gone(session.delete(path, Some(stat.version)))
}

/// Marks an assignment, if it is as it was when that was decided.
fn recall(session: &Session, path: &str, meta: &AssignmentMeta) -> Result<(), Error> {
    let (data, stat) = session.read(path, false)?.ok_or_else(|| Error::NoNode(path.to_owned()))?;
    let before = AssignmentMeta { recalled: false, ..meta.clone() };
    if Assignment::decode(&data).meta != Some(before) {
        return Err(Error::BadVersion(path.to_owned()));
    }
    let data = Assignment { meta: Some(meta.clone()) }.encode();
    session.write(path, &data, Some(stat.version)).map(drop)
}

/// Deletes a task with all that is below it. It is marked first: a master that dies before the end leaves a task without
/// a status, and that must not be run again. The mark still says which key the task has, and that goes before the task does:
/// whoever finds the key, then no such task, and then the same key still there, knows that there never was one.
fn remove(session: &Session, path: &str, why: Removal) -> Result<(), Error> {
    let Some((data, stat)) = session.read(path, false)? else { return Ok(()) };
    let removed = Task::removed(&data);
    let mark = removed.encode();
    if data != mark {
        session.write(path, &mark, Some(stat.version))?;
    }
    if let (Removal::Ended, Some(TaskMeta { submit: Some(submit), key: Some(key), .. })) = (why, removed.meta) {
        let key = paths::key(&key);
        let held = session.read(&key, false)?.filter(|(data, _)| Key::decode(data).submit == submit);
        if let Some((_, stat)) = held {
            gone(session.delete(&key, Some(stat.version)))?;
        }
    }
    session.delete_all(path)
}

fn already(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NodeExists(_)) => Ok(()),
        result => result,
    }
}

fn gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NoNode(_)) => Ok(()),
        result => result,
    }
}

/// Takes note of a step that was taken or, if it is not `done`, that could not be taken: the tree is not as it was read.
fn mark(step: &Step, done: bool, reading: &mut Reading) {
    match step {
        Step::Record(task, ..) | Step::Finish(task, _) => reading.wrote_task(*task),
        Step::Unassign(worker, task, _) if done => reading.unassigned(worker, *task),
        Step::Assign(worker, task, meta) if done => reading.assigned(worker, *task, meta),
        Step::Assign(worker, task, _) => {
            reading.wrote_desk(worker);
            reading.wrote_task(*task);
        }
        Step::Recall(worker, task, meta) if done => reading.assigned(worker, *task, meta),
        Step::Recall(worker, task, _) | Step::Unassign(worker, task, _) => reading.assignment_changed(worker, *task),
        Step::RemoveDesk(worker) => reading.wrote_desk(worker),
        Step::Remove(task, _) => reading.removed_task(*task),
    }
}

/// What follows from a task's end is no news.
fn level(step: &Step) -> log::Level {
    match step {
        Step::Record(..) | Step::Finish(..) | Step::Assign(..) => log::Level::Info,
        Step::Unassign(..) | Step::Recall(..) | Step::Remove(..) | Step::RemoveDesk(_) => log::Level::Debug,
    }
}

fn sentence(step: &Step) -> String {
    match step {
        Step::Record(task, number, attempt) => {
            let worker = attempt.meta.as_ref().and_then(|meta| meta.worker.as_ref());
            let worker = worker.map(|worker| format!(" worker={worker}")).unwrap_or_default();
            format!("recorded a lost attempt task={task} attempt={number}{worker}")
        }
        Step::Finish(task, status) => {
            let reason = status.meta.as_ref().and_then(|meta| meta.reason.as_deref());
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("ended task={task} status={}{reason}", status.outcome.word())
        }
        Step::Recall(worker, task, _) => format!("recalled task={task} worker={worker}"),
        Step::Unassign(worker, task, _) => format!("unassigned task={task} worker={worker}"),
        Step::Assign(worker, task, meta) => format!("assigned task={task} worker={worker} attempt={}", meta.attempt),
        Step::Remove(task, Removal::Duplicate) => format!("removed a later task of the same submit task={task}"),
        Step::Remove(task, Removal::Ended) => format!("removed task={task}"),
        Step::RemoveDesk(worker) => format!("removed what a worker long gone left worker={worker}"),
    }
}
