//! Waiting for the end of tasks, through whatever happens to the connection meanwhile.
//!
//! A notification is a hint to look again. What is waited for is looked at again after every new session, so nothing is
//! missed, however long ZooKeeper was away.

use std::collections::BTreeSet;

use zk_session::{Event, Kind, Session, in_parallel};
use znode_paths::TaskName;
use znode_paths::paths::{self, Place, TaskChild};

use crate::Error;
use crate::connection::{Connection, Message, Patience};
use crate::look::{self, TaskSeen};

/// Which tasks have not ended, and which of them are to be looked at. Pure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Open {
    open: BTreeSet<TaskName>,
    stale: BTreeSet<TaskName>,
}

impl Open {
    fn new(tasks: BTreeSet<TaskName>) -> Self {
        Open { stale: tasks.clone(), open: tasks }
    }

    /// One more.
    pub(crate) fn add(&mut self, task: TaskName) {
        self.open.insert(task);
        self.stale.insert(task);
    }

    /// Something changed at a path.
    pub(crate) fn hint(&mut self, path: &str) {
        if let Some(Place::Task(task) | Place::TaskChild(task, TaskChild::Status)) = Place::of(path)
            && self.open.contains(&task)
        {
            self.stale.insert(task);
        }
    }

    /// No watch is left: everything may have changed.
    pub(crate) fn reopened(&mut self) {
        self.stale = self.open.clone();
    }

    /// What is to be looked at now.
    pub(crate) fn take_stale(&mut self) -> Vec<TaskName> {
        std::mem::take(&mut self.stale).into_iter().collect()
    }

    /// There is nothing more to come of a task.
    pub(crate) fn close(&mut self, task: TaskName) {
        self.open.remove(&task);
    }
}

/// What became of a task.
#[derive(Debug)]
pub(crate) enum News {
    /// It has a status.
    Ended(Box<TaskSeen>),
    /// It is not there.
    Gone(TaskName),
}

/// Tasks that are waited for.
pub(crate) struct Waiting {
    tasks: Open,
    /// The number of the session on which the watches are.
    session: Option<u32>,
}

impl Waiting {
    pub(crate) fn new(tasks: BTreeSet<TaskName>) -> Self {
        Waiting { tasks: Open::new(tasks), session: None }
    }

    /// What is new, in the order in which it came about. Nothing when all have ended, or the user wants to cancel.
    pub(crate) fn next(&mut self, connection: &mut Connection, cancellable: bool) -> Result<Vec<News>, Error> {
        while !self.tasks.open.is_empty() {
            if cancellable && connection.cancel {
                break;
            }
            let session = connection.session(None)?;
            if self.session.replace(session.number()) != Some(session.number()) {
                self.tasks.reopened();
            }
            let stale = self.tasks.take_stale();
            let news = match look_at(&session, &stale) {
                Ok(news) => news,
                Err(zk_session::Error::Lost(reason)) => {
                    log::info!("session lost: {reason}");
                    self.session = None;
                    continue;
                }
                Err(error) => return Err(Error::Request(error)),
            };
            if !news.is_empty() {
                for one in &news {
                    self.tasks.close(match one {
                        News::Ended(seen) => seen.name,
                        News::Gone(task) => *task,
                    });
                }
                return Ok(news);
            }
            let mut message = connection.receive(None);
            // All that is there is taken at once: a hundred hints are one look.
            while let Some(one) = message {
                if let Message::Session(Event::Watch { path, .. }) = one {
                    self.tasks.hint(&path);
                }
                message = connection.received();
            }
        }
        Ok(Vec::new())
    }
}

enum Look {
    Open,
    Missing,
    /// The transaction that made the status, and the task.
    Ended(i64, Box<TaskSeen>),
}

/// Looks at tasks and sets the watches that say when to look again.
///
/// What is missing is not just unknown to a server that is behind: opening a session is itself a write, which a server
/// answers when it has done all that was done before.
fn look_at(session: &Session, tasks: &[TaskName]) -> Result<Vec<News>, zk_session::Error> {
    let mut ended = Vec::new();
    let mut gone = Vec::new();
    for (task, look) in tasks.iter().zip(in_parallel(tasks, |task| look_at_one(session, *task))) {
        match look? {
            Look::Open => {}
            Look::Missing => gone.push(News::Gone(*task)),
            Look::Ended(czxid, seen) => ended.push((czxid, seen)),
        }
    }
    ended.sort_by_key(|(czxid, _)| *czxid);
    Ok(ended.into_iter().map(|(_, seen)| News::Ended(seen)).chain(gone).collect())
}

fn look_at_one(session: &Session, task: TaskName) -> Result<Look, zk_session::Error> {
    // Two watches: when a task is removed without ever having had a status, the one on the status does not fire.
    if let Some(stat) = session.stat(&paths::status(&task), true)? {
        return match look::task(session, task)? {
            Some(seen) if seen.status.is_some() => Ok(Look::Ended(stat.czxid, Box::new(seen))),
            Some(_) => Ok(Look::Open),
            None => Ok(Look::Missing),
        };
    }
    let there = session.stat(&paths::task(&task), true)?.is_some();
    Ok(if there { Look::Open } else { Look::Missing })
}

/// Asks for the cancellation of a task. That it was asked for already, or that the task is gone, is all the same.
pub(crate) fn cancel(connection: &mut Connection, task: TaskName, patience: Patience) -> Result<(), Error> {
    connection.ask(patience, |session| ask_to_stop(session, task).map(drop))
}

/// Asks for the cancellation of a task; returns whether there is such a task.
pub(crate) fn ask_to_stop(session: &Session, task: TaskName) -> Result<bool, zk_session::Error> {
    match session.create(&paths::cancel(&task), b"", Kind::Persistent) {
        Ok(_) | Err(zk_session::Error::NodeExists(_)) => Ok(true),
        Err(zk_session::Error::NoNode(_)) => Ok(false),
        // Submitters may not write there: the primary does it for them.
        Err(refused @ zk_session::Error::NotAllowed(_)) => {
            match session.create(&paths::request(&task), b"", Kind::Persistent) {
                Ok(_) | Err(zk_session::Error::NodeExists(_)) => Ok(true),
                Err(zk_session::Error::NoNode(_)) => Err(refused),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u32) -> TaskName {
        TaskName::from_number(number)
    }

    fn open() -> Open {
        let mut open = Open::new(BTreeSet::from([task(1), task(2)]));
        assert_eq!(open.take_stale(), [task(1), task(2)], "at first all are looked at");
        assert!(open.take_stale().is_empty());
        open
    }

    #[test]
    fn a_hint_makes_a_task_stale_whatever_the_change() {
        let mut open = open();
        open.hint("/tasks/task-0000000001/status");
        assert_eq!(open.take_stale(), [task(1)]);
        open.hint("/tasks/task-0000000002");
        assert_eq!(open.take_stale(), [task(2)]);
    }

    #[test]
    fn hints_about_anything_else_are_ignored() {
        let mut open = open();
        for path in ["/tasks/task-0000000003/status", "/tasks", "/tasks/task-0000000001/cancel", "/workers/w", "x", ""]
        {
            open.hint(path);
        }
        assert!(open.take_stale().is_empty());
    }

    #[test]
    fn a_new_session_makes_all_stale_that_have_not_ended() {
        let mut open = open();
        open.close(task(1));
        open.reopened();
        assert_eq!(open.take_stale(), [task(2)]);
        open.hint("/tasks/task-0000000001/status");
        assert!(open.take_stale().is_empty(), "it has ended");
    }
}
