//! What is done to tasks and workers that are there: `cancel`, `retry`, `rm`, `drain`, `undrain`.

use std::cell::Cell;
use std::collections::BTreeSet;

use zk_session::{Error as Refusal, Kind, Session};
use znode_paths::{DecodeError, Drain, Status, Task, TaskName, WorkerName, paths};

use crate::connection::{Connection, Patience};
use crate::report::{CancelLine, DrainLine, RemoveLine, RetryLine};
use crate::submit::{self, Order};
use crate::{Error, exit, output, wait};

/// Does something to each task, in the order in which they are named. One to which it cannot be done is said at once, and
/// does not keep it from being done to the others.
fn each(
    connection: &mut Connection,
    tasks: &[TaskName],
    tried: &str,
    mut act: impl FnMut(&mut Connection, TaskName) -> Result<(), Error>,
) -> Result<u8, Error> {
    let (mut code, mut seen) = (exit::DONE, BTreeSet::new());
    for task in tasks.iter().filter(|task| seen.insert(**task)) {
        match act(connection, *task) {
            Ok(()) => {}
            Err(error @ (Error::NoTask(_) | Error::NotEnded(_) | Error::Command(_) | Error::Unsigned(..))) => {
                code = exit::FAILED;
                output::note(&error.of(tried).to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

/// Asks for tasks to be stopped.
pub(crate) fn cancel(connection: &mut Connection, tasks: &[TaskName], json: bool) -> Result<u8, Error> {
    each(connection, tasks, "cancel", |connection, task| {
        let asked =
            connection.ask(Patience::Bounded, |session| match session.read(&paths::status(&task), false)? {
                Some((status, _)) => Ok(Some(Some(Status::decode(&status).outcome))),
                None => Ok(wait::ask_to_stop(session, task)?.then_some(None)),
            })?;
        let ended = asked.ok_or(Error::NoTask(vec![task]))?;
        if let Some(outcome) = &ended {
            output::note(&format!("{task} has ended already: {}", outcome.word()));
        }
        let state = ended.map(|outcome| outcome.word().to_owned());
        output::results(json, &[CancelLine { task, state }], |_| Vec::new())
    })
}

/// The data of a task that has ended, and their version; or why that cannot be had.
type Finished = Result<(Vec<u8>, i32), Error>;

fn finished(session: &Session, task: TaskName) -> Result<Finished, Refusal> {
    let ended = session.stat(&paths::status(&task), false)?.is_some();
    Ok(match session.read(&paths::task(&task), false)? {
        Some((data, stat)) if ended || Task::decode(&data) == Err(DecodeError::Removed) => Ok((data, stat.version)),
        Some(_) => Err(Error::NotEnded(task)),
        None => Err(Error::NoTask(vec![task])),
    })
}

/// Submits finished tasks anew. What they waited for is over, so it is not waited for again. With a task key only what was
/// signed with it: somebody else may have written to what has ended.
pub(crate) fn retry(
    connection: &mut Connection,
    tasks: &[TaskName],
    max_queue: usize,
    json: bool,
) -> Result<u8, Error> {
    each(connection, tasks, "retry", |connection, retries| {
        let (data, _) = connection.ask(Patience::Bounded, |session| finished(session, retries))??;
        let mut task = Task::decode(&data).map_err(|error| match error {
            DecodeError::Removed => Error::NoTask(vec![retries]),
            error => Error::Command(error),
        })?;
        if let Some(keys) = connection.task_keys() {
            keys.check(&task, &data).map_err(|unsigned| Error::Unsigned(retries, unsigned))?;
        }
        if let Some(meta) = &mut task.meta {
            meta.submit = Some(submit::random_id());
            (meta.key, meta.after) = (None, Vec::new());
        }
        let task = submit::submit(connection, &Order { task, max_queue }, || true)?;
        output::results(json, &[RetryLine { task, retries }], |_| vec![task.to_string()])
    })
}

/// Marks finished tasks as such that need not be kept: the primary deletes them, as it does with all that are old enough.
/// It alone deletes, so that nobody's delete can come late and hit a successor.
pub(crate) fn remove(connection: &mut Connection, tasks: &[TaskName], json: bool) -> Result<u8, Error> {
    each(connection, tasks, "remove", |connection, task| {
        // After a lost answer it may be gone.
        let tried = Cell::new(false);
        connection.ask(Patience::Bounded, |session| {
            loop {
                let (data, version) = match finished(session, task)? {
                    Ok(finished) => finished,
                    Err(Error::NoTask(_)) if tried.get() => return Ok(Ok(())),
                    Err(why) => return Ok(Err(why)),
                };
                tried.set(true);
                match session.write(&paths::task(&task), &Task::removed(&data).encode(), Some(version)) {
                    Err(Refusal::BadVersion(_) | Refusal::NoNode(_)) => {}
                    written => return written.map(|_| Ok(())),
                }
            }
        })??;
        output::results(json, &[RemoveLine { task }], |_| Vec::new())
    })
}

/// Takes a worker out of service, or back. A worker that is not registered now is known by its node below `/assign`.
pub(crate) fn drain(connection: &mut Connection, worker: &WorkerName, drain: bool, json: bool) -> Result<u8, Error> {
    let path = paths::assignments(worker);
    let (registered, known) = connection.ask(Patience::Bounded, |session| {
        loop {
            let registered = session.stat(&paths::worker(worker), false)?.is_some();
            let changed = match session.read(&path, false)? {
                Some((data, stat)) => {
                    session.write(&path, &Drain::change(&data, drain), Some(stat.version)).map(|_| true)
                }
                None if registered && drain => {
                    session.create(&path, &Drain::change(b"", true), Kind::Persistent).map(|_| true)
                }
                None => Ok(registered),
            };
            match changed {
                // The worker has made or deleted it, or another operator has written to it in between.
                Err(Refusal::BadVersion(_) | Refusal::NodeExists(_)) => {}
                Err(Refusal::NoNode(_)) if session.stat(paths::ASSIGN, false)?.is_some() => {}
                changed => return Ok((registered, changed?)),
            }
        }
    })?;
    if !known {
        return Err(Error::NoWorker(worker.clone()));
    }
    if !registered {
        output::note(&format!("{worker} is not registered now: this holds when it comes back"));
    }
    output::results(json, &[DrainLine { worker: worker.clone(), drain }], |_| Vec::new())?;
    Ok(exit::DONE)
}
