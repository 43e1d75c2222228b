//! Creating a task: one submit is one task, also when the answer is lost (PROTOCOL section 3, Clients; G5).

use std::time::Instant;

use zk_session::{Kind, Session, Stat, Write, in_parallel};
use znode_paths::paths::{self, Place};
use znode_paths::{DecodeError, Format, Since, Task, TaskKeys, TaskMeta, TaskName, paths::TASKS};

use crate::connection::{Connection, Patience};
use crate::{Error, key, look, output};

/// What to submit.
#[derive(Debug, Clone)]
pub struct Order {
    /// With a submit id, except for `--plain`.
    pub task: Task,
    /// With more tasks than this, nothing is submitted.
    pub max_queue: usize,
}

/// What tasks have in common that are submitted with the same options.
#[derive(Debug, Clone)]
pub struct Template {
    /// Nothing with `--plain`.
    pub meta: Option<TaskMeta>,
}

impl Template {
    /// A task, under a submit id of its own.
    ///
    /// # Errors
    /// No worker could run the command, or it would be read as another one.
    pub fn task(&self, command: String) -> Result<Task, Error> {
        let meta = self.meta.clone().map(|meta| TaskMeta { submit: Some(random_id()), ..meta });
        let task = Task { command, meta };
        task.encode_checked().map_err(|error| match error {
            DecodeError::TooLong(bytes) => Error::TooLong(bytes),
            error => Error::Command(error),
        })?;
        Ok(task)
    }
}

/// Two submits with the same id would be one task.
pub(crate) fn random_id() -> String {
    format!("{:016x}{:016x}", zk_cli::random(), zk_cli::random())
}

/// Creates the task. `may_send` is asked once, before anything is sent that could create it.
pub(crate) fn submit(
    connection: &mut Connection,
    order: &Order,
    may_send: impl Fn() -> bool,
) -> Result<TaskName, Error> {
    let meta = order.task.meta.as_ref();
    if let Some(TaskMeta { key: Some(key), submit: Some(id), .. }) = meta {
        return key::submit(connection, order, key, id, may_send);
    }
    let id = meta.and_then(|meta| meta.submit.as_deref());
    loop {
        let (session, stat) = place(connection)?;
        refuse_full(&stat, order.max_queue)?;
        if !may_send() {
            return Err(Error::NotSubmitted);
        }
        match (create(&session, &order.task, connection.task_keys()), id) {
            (Ok(path), _) => return name_of(&path),
            // Somebody deleted /tasks in between: a master will make it again.
            (Err(zk_session::Error::NoNode(_)), _) => {}
            (Err(error @ zk_session::Error::Lost(_)), Some(id)) => {
                return recover(connection, &order.task, id, since(&stat), &error);
            }
            (Err(error @ zk_session::Error::Lost(_)), None) => return Err(Error::UnknownPlain(error)),
            (Err(error), _) => return Err(Error::Request(error)),
        }
    }
}

/// Creates the task.
pub(crate) fn create(session: &Session, task: &Task, keys: Option<&TaskKeys>) -> Result<String, zk_session::Error> {
    create_as(session, &signed(task, keys))
}

/// Creates tasks, in their order where that can be had.
pub(crate) fn create_each<'a>(
    session: &Session,
    tasks: impl Iterator<Item = &'a Task>,
    keys: Option<&TaskKeys>,
) -> Vec<Result<String, zk_session::Error>> {
    let data: Vec<Vec<u8>> = tasks.map(|task| signed(task, keys)).collect();
    let create =
        |data: &Vec<u8>| Write::Create { path: paths::NEW_TASK.to_owned(), data: data.clone(), sequential: true };
    match session.commit_each(&data.iter().map(|data| vec![create(data)]).collect::<Vec<_>>()) {
        // Any of them may be there.
        Err(error) => data.iter().map(|_| Err(error.clone())).collect(),
        Ok(made) => {
            let tried: Vec<(Vec<u8>, Option<Vec<String>>)> = data.into_iter().zip(made).collect();
            in_parallel(&tried, |(data, made)| match made.as_deref() {
                Some([path]) => Ok(path.clone()),
                _ => create_as(session, data),
            })
        }
    }
}

/// What is signed is signed as long as it is new.
fn signed(task: &Task, keys: Option<&TaskKeys>) -> Vec<u8> {
    keys.map_or_else(|| task.encode(), |keys| keys.sign(task, zk_cli::now_ms()).encode())
}

/// ZooKeeper makes the number from the count of children ever created, and where somebody took that name by hand it refuses, again
/// and again. Any other child makes it count on.
fn create_as(session: &Session, data: &[u8]) -> Result<String, zk_session::Error> {
    loop {
        match session.create(paths::NEW_TASK, data, Kind::Sequential) {
            Err(zk_session::Error::NodeExists(_)) => {
                let skipped = format!("{TASKS}/skipped-{:016x}", zk_cli::random());
                session.create(&skipped, b"", Kind::Ephemeral)?;
                session.delete(&skipped, None)?;
            }
            created => return created,
        }
    }
}

/// Where the tasks begin that are created after this was read of `/tasks`.
pub(crate) fn since(stat: &Stat) -> Since {
    Since { zk: Format, tasks: stat.czxid, from: stat.children_ever }
}

/// Whether there is room in the queue.
pub(crate) fn refuse_full(stat: &Stat, max_queue: usize) -> Result<(), Error> {
    match usize::try_from(stat.children).unwrap_or(0) {
        tasks if tasks > max_queue => Err(Error::Full { tasks, limit: max_queue }),
        _ => Ok(()),
    }
}

pub(crate) fn name_of(path: &str) -> Result<TaskName, Error> {
    match Place::of(path) {
        Some(Place::Task(name)) => Ok(name),
        _ => Err(Error::NoTaskName(path.to_owned())),
    }
}

/// Waits until there is a place to submit to: the order in which masters and clients start does not matter.
pub(crate) fn place(connection: &mut Connection) -> Result<(Session, Stat), Error> {
    let mut until = None;
    loop {
        let (session, stat) =
            connection.ask(Patience::Bounded, |session| Ok((session.clone(), session.stat(TASKS, true)?)))?;
        match stat {
            Some(stat) => return Ok((session, stat)),
            None => {
                let (zk, within) = (connection.zk(), connection.patience());
                let until = *until.get_or_insert_with(|| {
                    let time = humantime::format_duration(within);
                    output::note(&format!("no master has set up {TASKS} at {zk} yet, waiting up to {time}"));
                    Instant::now() + within
                });
                // Whatever comes is a reason to look again.
                if connection.receive(Some(until)).is_none() {
                    return Err(Error::NoMaster { zk, within });
                }
            }
        }
    }
}

/// What a client does after a look for the tasks of its submit id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Report this path.
    Report(String),
    /// Create the task, and look again: meanwhile an earlier request may have been carried out, too.
    Create,
}

/// Decides after a lost answer. `lowest` is what the look found, `created` what was created on this session before it.
pub fn next(lowest: Option<TaskName>, created: Option<String>) -> Next {
    lowest.map(|name| paths::task(&name)).or(created).map_or(Next::Create, Next::Report)
}

/// The answer was lost: finds out whether the task is there, and creates it again under the same id if it is not.
///
/// The first request may still be on its way and be carried out at any time. So the looks follow a write, which makes
/// them see everything before it; and it is the lowest number of that id which counts, for all readers the same: what
/// comes later has a higher one, and the primary deletes it.
fn recover(
    connection: &mut Connection,
    task: &Task,
    id: &str,
    since: Since,
    lost: &zk_session::Error,
) -> Result<TaskName, Error> {
    let within = connection.patience();
    let until = Instant::now() + within;
    let mut why = lost.to_string();
    while Instant::now() < until {
        log::info!("looking for the task, the answer did not come: {why}");
        let session = match connection.session(Some(until)) {
            Ok(session) => session,
            Err(error) => return Err(Error::Unknown { within, why: error.to_string() }),
        };
        let look_and_create = || -> Result<String, zk_session::Error> {
            connection.sync(&session)?;
            let mut created = None;
            loop {
                match next(look::submitted(&session, id, Some(since))?.map(|(name, _)| name), created) {
                    Next::Report(path) => return Ok(path),
                    Next::Create => created = Some(create(&session, task, connection.task_keys())?),
                }
            }
        };
        match look_and_create() {
            Ok(path) => return name_of(&path),
            Err(error) => {
                why = error.to_string();
                if !matches!(error, zk_session::Error::Lost(_)) {
                    break;
                }
            }
        }
    }
    Err(Error::Unknown { within, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_submit_has_an_id_of_its_own() {
        let ids: std::collections::BTreeSet<String> = (0..1000).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn after_a_lost_answer_the_lowest_number_is_reported_and_what_is_not_there_created() {
        let (low, own) = (TaskName::from_number(3), Some("/tasks/task-0000000004".to_owned()));
        assert_eq!(next(None, None), Next::Create);
        assert_eq!(next(Some(low), None), Next::Report(paths::task(&low)));
        assert_eq!(next(Some(low), own.clone()), Next::Report(paths::task(&low)));
        assert_eq!(next(None, own), Next::Report("/tasks/task-0000000004".to_owned()), "a hand has deleted it");
    }
}
