//! Watches on all below some znodes, where the servers know of such: they came with ZooKeeper 3.6.

use crate::{Error, Session};

/// Whether a process has such watches, from one session to the next.
#[derive(Debug, Default)]
pub struct Following {
    /// The number of the session on which they are.
    on: Option<u32>,
    /// The last session was asked for them, and ended, or is about to: an older server answers with an error and ends the connection.
    ended: bool,
    /// How often in a row that was so.
    failures: u32,
}

/// Whoever has found out so often that the servers do not know of such watches does not ask any more: each time costs a session.
const ENOUGH: u32 = 2;

impl Following {
    /// Whether there are such watches on this session from now on. Where the question has ended the session before, it is not
    /// asked on this one.
    ///
    /// # Errors
    /// As [`Session::watch_below`], but for [`Error::Refused`].
    pub fn start(&mut self, session: &Session, paths: &[&str]) -> Result<bool, Error> {
        if self.on == Some(session.number()) {
            return Ok(true);
        }
        if std::mem::take(&mut self.ended) || self.failures >= ENOUGH {
            return Ok(false);
        }
        for path in paths {
            match session.watch_below(path) {
                Ok(()) => {}
                Err(error) => {
                    (self.ended, self.failures) = (true, self.failures + 1);
                    return if matches!(error, Error::Refused { .. }) { Ok(false) } else { Err(error) };
                }
            }
        }
        (self.on, self.failures) = (Some(session.number()), 0);
        Ok(true)
    }
}
