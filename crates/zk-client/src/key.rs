//! `--key`: the same key is the same task (PROTOCOL section 3, Clients).
//!
//! `/keys/<key>` is created first and holds the submit id under which all who use the key submit. So it does not matter who
//! of them creates the task, nor whether several do: of one id the lowest number counts. The primary deletes the key
//! together with the task: first it marks the task, then it deletes the key, then the task.

use std::time::{Duration, Instant};

use zk_session::{Error as Refusal, Kind, Session, Stat};
use znode_paths::{Key, Task, TaskKeys, TaskMeta, TaskName, paths};

use crate::connection::Connection;
use crate::submit::{self, Order};
use crate::{Error, look, output};

/// How long whoever made the key is given to create the task. If that dies in between, or is slow, somebody else does it.
const COURTESY: Duration = Duration::from_millis(500);

/// What came of an attempt.
enum Attempt {
    /// The task is there; and what it says.
    There(TaskName, Box<Task>),
    /// It is there, but not for much longer, and with it the key.
    BeingRemoved(TaskName),
    /// It was created; this is the one that counts.
    Created(TaskName),
    /// Whoever made the key may be about to create the task.
    NotYet,
    /// The key is not what it was when it was read.
    Again,
}

/// Creates the task, or finds it. `id` is the submit id that it has if nobody has used the key before.
pub(crate) fn submit(
    connection: &mut Connection,
    order: &Order,
    key: &str,
    id: &str,
    may_send: impl Fn() -> bool,
) -> Result<TaskName, Error> {
    let within = connection.patience();
    let begun = Instant::now();
    let mut courtesy = None;
    // Since when it is not known whether the task was created, and why.
    let mut lost: Option<(Instant, String)> = None;
    loop {
        let unknown = |why: &str| Error::Unknown { within, why: why.to_owned() };
        let (session, stat) = match (submit::place(connection), &lost) {
            (Err(error), Some(_)) => return Err(unknown(&error.to_string())),
            (_, Some((since, why))) if since.elapsed() >= within => return Err(unknown(why)),
            (place, _) => place?,
        };
        if !may_send() {
            return Err(Error::NotSubmitted);
        }
        let patient = courtesy.is_none_or(|until| Instant::now() < until);
        let attempt = match attempt(&session, order, connection.task_keys(), key, id, &stat, patient) {
            // Somebody deleted /tasks in between: a master will make it again.
            Err(Error::Request(Refusal::NoNode(_))) => continue,
            Err(Error::Request(error @ Refusal::Lost(_))) => {
                lost.get_or_insert_with(|| (Instant::now(), String::new())).1 = error.to_string();
                continue;
            }
            attempt => attempt?,
        };
        match attempt {
            Attempt::There(name, task) => {
                if !same(&task, &order.task) {
                    let what = "was submitted under this key with another command or other options, and stays as it is";
                    output::note(&format!("{name} {what}"));
                }
                return Ok(name);
            }
            Attempt::Created(name) => return Ok(name),
            Attempt::BeingRemoved(task) => {
                if begun.elapsed() >= within {
                    return Err(Error::BeingRemoved { task, within });
                }
                connection.receive(Some(begun + within));
            }
            Attempt::NotYet => {
                let until = *courtesy.get_or_insert_with(|| Instant::now() + COURTESY);
                connection.receive(Some(until));
            }
            Attempt::Again => {}
        }
    }
}

/// Every look sees at least what was there when the attempt began, which is with a write.
fn attempt(
    session: &Session,
    order: &Order,
    keys: Option<&TaskKeys>,
    key: &str,
    own: &str,
    stat: &Stat,
    patient: bool,
) -> Result<Attempt, Error> {
    let path = paths::key(key);
    let first = Key { submit: own.to_owned(), since: Some(submit::since(stat)) };
    let (held, others) = match session.create(&path, &first.encode(), Kind::Persistent) {
        Ok(_) => (first, false),
        Err(Refusal::NoNode(_)) => {
            session.ensure(paths::KEYS)?;
            return Ok(Attempt::Again);
        }
        Err(Refusal::NodeExists(_)) => {
            let Some((data, stat)) = session.read(&path, true)? else {
                return Ok(Attempt::Again);
            };
            let mut held = Key::decode(&data);
            if held.submit.trim().is_empty() {
                // Made by hand: any id will do that all who use the key make of it.
                held.submit = format!("key {key}");
            }
            if let Some((name, task)) = look::submitted(session, &held.submit, held.since)? {
                let there = |task| Attempt::There(name, Box::new(task));
                return Ok(task.map_or(Attempt::BeingRemoved(name), there));
            }
            // A key goes before its task does: if it is still there, there was none.
            let still = session.stat(&path, false)?;
            if still.is_none_or(|still| still.czxid != stat.czxid) {
                return Ok(Attempt::Again);
            }
            let others = held.submit != own;
            (held, others)
        }
        Err(error) => return Err(error.into()),
    };
    if others && patient {
        return Ok(Attempt::NotYet);
    }
    submit::refuse_full(stat, order.max_queue)?;
    let mut task = order.task.clone();
    if let Some(meta) = &mut task.meta {
        meta.submit = Some(held.submit.clone());
    }
    let created = submit::create(session, &task, keys)?;
    // Others may have created it, too.
    match look::submitted(session, &held.submit, held.since)? {
        Some((name, _)) => Ok(Attempt::Created(name)),
        None => submit::name_of(&created).map(Attempt::Created),
    }
}

/// Whether two tasks ask for the same.
fn same(one: &Task, other: &Task) -> bool {
    let options =
        |task: &Task| task.meta.clone().map(|meta| TaskMeta { submit: None, signed_ms: None, mac: None, ..meta });
    one.command == other.command && options(one) == options(other)
}
