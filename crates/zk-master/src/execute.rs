//! Carries out a [`Plan`]: no decisions live here.

use zk_session::{Error, Kind, Session, in_parallel};
use znode_paths::{Assignment, AssignmentMeta, Key, Task, TaskMeta, paths};

use crate::metrics::Metrics;
use crate::plan::{Chain, Plan, Removal, Step};
use crate::reading::Reading;

/// How far a chain came, and why not further.
type Progress<'a> = (Vec<&'a Step>, Result<(), Error>);

/// Carries out the chains, several at a time, and marks as stale whatever was written, so that it is read before the
/// next plan. Returns whether anything was done.
pub(crate) fn execute(session: &Session, plan: &Plan, reading: &mut Reading, metrics: &Metrics) -> Result<bool, Error> {
    let mut outcome = Ok(());
    let mut progress = false;
    let done = |step: &Step| {
        log::log!(level(step), "{}", sentence(step));
        if let Step::Assign(_, task, meta) = step {
            metrics.assigned(*task, meta, &reading.view, session.server_time_ms());
        }
    };
    for (tried, result) in in_parallel(&plan.chains, |chain| carry_out(session, chain, done)) {
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
