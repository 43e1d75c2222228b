//! `run`: submit, and hand on what the command writes and how it ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use znode_paths::{Outcome, Status, StatusMeta, Stream, TaskName};

use crate::connection::{Connection, Patience};
use crate::error::Failure;
use crate::follow::{Wanted, follow};
use crate::look::TaskSeen;
use crate::report::TaskDetail;
use crate::signals::{Reaction, interruptible};
use crate::submit::{Order, submit};
use crate::{Error, exit, look, output, wait};

/// How far it is, for whoever presses Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing was sent that could create the task.
    NotSent,
    /// The user left before that, so nothing will be sent.
    Left,
    /// The task may be there.
    Sent,
    /// It is.
    Submitted(TaskName),
}

/// The first signal cancels, the second leaves; before anything was sent there is nothing to cancel. Pure.
fn on_signal(progress: Progress, first: bool) -> (Progress, Reaction) {
    match progress {
        Progress::NotSent | Progress::Left => (Progress::Left, Reaction::Leave(Error::NotSubmitted)),
        Progress::Sent | Progress::Submitted(_) if first => {
            (progress, Reaction::Cancel("cancelling the task; the next Ctrl-C leaves it as it is"))
        }
        Progress::Sent => (progress, Reaction::Leave(Error::LeftUnnamed)),
        Progress::Submitted(task) => (progress, Reaction::Leave(Error::Left(task))),
    }
}

/// Runs a command; returns the exit code.
pub(crate) fn run(connection: Connection, order: Order, json: bool) -> Result<u8, Failure> {
    let progress = Arc::new(Mutex::new(Progress::NotSent));
    let shared = progress.clone();
    let react = move |first| {
        let mut progress = lock(&shared);
        let (next, reaction) = on_signal(*progress, first);
        *progress = next;
        reaction
    };
    interruptible(connection, "run the command", react, move |connection| work(connection, &order, &progress, json))
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    // It is whole at any time.
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(mut connection: Connection, order: &Order, progress: &Mutex<Progress>, json: bool) -> Result<u8, Failure> {
    let may_send = || {
        let mut progress = lock(progress);
        if *progress == Progress::NotSent {
            *progress = Progress::Sent;
        }
        *progress == Progress::Sent
    };
    let task = submit(&mut connection, order, may_send).map_err(|error| error.of("run the command"))?;
    *lock(progress) = Progress::Submitted(task);
    log::info!("submitted task={task}");
    let code = hand_on(&mut connection, task, json).map_err(|error| error.of(format!("follow {task}")));
    connection.close();
    code
}

/// Hands on what the command writes, and how it ends.
fn hand_on(connection: &mut Connection, task: TaskName, json: bool) -> Result<u8, Error> {
    let wanted = Wanted { wait: true, streams: Stream::BOTH.to_vec(), json };
    let shown = follow(connection, task, &wanted, true)?;
    let Some(TaskSeen { status: Some(status), .. }) = shown.ended else {
        // A command here would get a signal, or an error, when it writes to what nobody reads.
        wait::cancel(connection, task, Patience::Bounded)?;
        return Err(Error::Stdout(shown.broken.unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into())));
    };
    match shown.broken.map(Error::Stdout) {
        // The command has run: its code counts, whoever reads its output.
        Some(error) if !output::unwanted(&error) => return Err(error),
        Some(_) => {}
        None if json => {
            let details = connection.ask(Patience::Endless, |session| look::details(session, task))?;
            let details = details.ok_or(Error::NoTask(vec![task]))?;
            output::results(true, &[TaskDetail::new(&details, &Default::default())], |_| Vec::new())?;
        }
        None => {
            if let Some(text) = remark(task, &status) {
                output::note(&text);
            }
        }
    }
    Ok(exit::of_status(&status))
}

/// What the exit code does not say by itself. Pure.
fn remark(task: TaskName, status: &Status) -> Option<String> {
    let meta = status.meta.as_ref();
    let reason = meta.and_then(|meta| meta.reason.as_deref()).map(|reason| format!(": {reason}")).unwrap_or_default();
    match &status.outcome {
        Outcome::Done if reason.is_empty() => None,
        Outcome::Done => Some(format!("{task} is done{reason}")),
        Outcome::Failed => match meta {
            Some(StatusMeta { exit_code: Some(_), reason: None, .. }) => None,
            Some(StatusMeta { signal: Some(signal), .. }) => {
                Some(format!("{task} failed, ended by signal {signal}{reason}"))
            }
            _ => Some(format!("{task} failed{reason}")),
        },
        other => Some(format!("{task} ended as {}{reason}", other.word())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> TaskName {
        TaskName::from_number(7)
    }

    #[test]
    fn before_anything_was_sent_a_signal_leaves() {
        let (progress, reaction) = on_signal(Progress::NotSent, true);
        assert_eq!(progress, Progress::Left);
        assert!(matches!(reaction, Reaction::Leave(Error::NotSubmitted)));
    }

    #[test]
    fn the_first_signal_cancels_and_the_second_leaves() {
        for progress in [Progress::Sent, Progress::Submitted(task())] {
            assert!(matches!(on_signal(progress, true), (after, Reaction::Cancel(_)) if after == progress));
            assert!(matches!(on_signal(progress, false), (after, Reaction::Leave(_)) if after == progress));
        }
        let (_, Reaction::Leave(error)) = on_signal(Progress::Submitted(task()), false) else { panic!("not left") };
        assert!(error.to_string().contains("zk-client wait task-0000000007"), "{error}");
    }

    #[track_caller]
    fn check_remark(data: &str, expected: Option<&str>) {
        assert_eq!(remark(task(), &Status::decode(data.as_bytes())).as_deref(), expected, "{data}");
    }

    #[test]
    fn what_the_exit_code_does_not_say_is_said() {
        check_remark("done", None);
        check_remark("done\n{\"zk\":1,\"reason\":\"full\"}", Some("task-0000000007 is done: full"));
        check_remark("failed\n{\"zk\":1,\"exit_code\":3}", None);
        check_remark("failed", Some("task-0000000007 failed"));
        check_remark("failed\n{\"zk\":1,\"reason\":\"no\"}", Some("task-0000000007 failed: no"));
        check_remark("failed\n{\"zk\":1,\"signal\":9}", Some("task-0000000007 failed, ended by signal 9"));
        check_remark("lost\n{\"zk\":1,\"reason\":\"w\"}", Some("task-0000000007 ended as lost: w"));
        check_remark("cancelled", Some("task-0000000007 ended as cancelled"));
    }
}
