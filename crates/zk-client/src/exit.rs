//! The exit codes of `zk-client`, and what leads to which. Pure.

use znode_paths::{Outcome, Status};

use crate::Error;

/// It was done. Of `wait` with several tasks: all of them are `done`.
pub const DONE: u8 = 0;
/// Of `wait` with several tasks: some are not `done`. Of a task: it failed, and no code of its own is known.
pub const NOT_DONE: u8 = 1;
/// Wrong usage; clap's own code as well.
pub const USAGE: u8 = 2;
/// The request went out and no answer could be had: the task may exist.
pub const UNKNOWN: u8 = 74;
/// The queue is full: nothing was submitted.
pub const FULL: u8 = 75;
/// The task's time limit passed.
pub const TIMEOUT: u8 = 124;
/// `zk-client` itself failed, or the task is `lost`.
pub const FAILED: u8 = 125;
/// The task was cancelled, or `run` was left.
pub const CANCELLED: u8 = 130;
/// To this the number of the signal that ended the command is added.
pub const SIGNAL: u8 = 128;

/// What a task's status makes of `run`, and of `wait` with one task: the command's own code where there is one.
///
/// The word decides, for it is the only thing that somebody with `zkCli.sh` writes.
pub fn of_status(status: &Status) -> u8 {
    match status.outcome {
        Outcome::Done => DONE,
        Outcome::Failed => match of_command(status) {
            Some(code) if code != DONE => code,
            _ => NOT_DONE,
        },
        Outcome::Timeout => TIMEOUT,
        Outcome::Cancelled => CANCELLED,
        Outcome::Lost => FAILED,
        Outcome::Other(_) => NOT_DONE,
    }
}

/// The code with which the command exited, or 128 and the signal that ended it; `None` where neither is known.
pub fn of_command(status: &Status) -> Option<u8> {
    let meta = status.meta.as_ref()?;
    let signal = || u8::try_from(meta.signal?).ok()?.checked_add(SIGNAL);
    meta.exit_code.and_then(|code| u8::try_from(code).ok()).or_else(signal)
}

/// What an error makes of any command.
pub fn of_error(error: &Error) -> u8 {
    match error {
        Error::Option(_) | Error::Usage(_) | Error::Command(_) | Error::Stdin(..) | Error::StdinTooLong => USAGE,
        Error::TooLong(_)
        | Error::Signals(_)
        | Error::Input(..)
        | Error::NotReached { .. }
        | Error::NoMaster { .. }
        | Error::NoTask(_)
        | Error::NotEnded(_)
        | Error::Unsigned(..)
        | Error::BeingRemoved { .. }
        | Error::NoWorker(_)
        | Error::NoWorkers
        | Error::NoTaskName(_)
        | Error::Request(_)
        | Error::NoTerminal
        | Error::Stdout(_)
        | Error::Unprinted(..) => FAILED,
        Error::Full { .. } => FULL,
        Error::Unknown { .. } | Error::UnknownPlain(_) => UNKNOWN,
        Error::NotSubmitted | Error::Left(_) | Error::LeftSeveral(_) | Error::LeftUnnamed => CANCELLED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::StatusMeta;

    #[track_caller]
    fn check(word: &str, exit_code: Option<i32>, signal: Option<i32>, expected: u8) {
        let meta = StatusMeta { exit_code, signal, ..StatusMeta::default() };
        let status = Status { outcome: Outcome::of(word), meta: Some(meta) };
        assert_eq!(of_status(&status), expected, "{status:?}");
    }

    #[test]
    fn a_command_that_failed_gives_its_own_code() {
        check("done", Some(0), None, 0);
        check("failed", Some(3), None, 3);
        check("failed", Some(255), None, 255);
        check("failed", None, Some(9), 137);
    }

    #[test]
    fn the_word_decides_where_the_code_says_something_else() {
        check("done", Some(7), None, 0);
        check("failed", Some(0), None, 1);
        check("timeout", None, Some(15), 124);
        check("cancelled", Some(0), None, 130);
        check("lost", None, None, 125);
    }

    #[test]
    fn numbers_that_are_no_codes_are_not_cut_to_one() {
        check("failed", Some(256), None, 1);
        check("failed", Some(-1), None, 1);
        check("failed", None, Some(200), 1);
    }

    #[test]
    fn what_was_written_by_hand_has_a_code() {
        assert_eq!(of_status(&Status::decode(b"done")), 0);
        assert_eq!(of_status(&Status::decode(b"failed")), 1);
        assert_eq!(of_status(&Status::decode(b"erledigt")), 1);
        assert_eq!(of_status(&Status::decode(b"")), 1);
    }
}
