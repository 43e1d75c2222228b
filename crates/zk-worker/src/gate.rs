//! Who may read output: with a task key, whoever signs the request with it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use zk_http::Request;
use znode_paths::{RequestId, TaskKeys};

/// How far the clocks of client and worker may be apart, in milliseconds. Whoever overhears a request can make it again for so
/// long, but only if the worker does not know it any more: it was started again.
const SKEW_MS: u64 = 60_000;

/// So many requests are remembered, 16 bytes each: more than come in twice that time.
const REMEMBERED: usize = 100_000;

pub(crate) struct Gate {
    keys: Option<TaskKeys>,
    seen: Mutex<Seen>,
}

impl Gate {
    pub(crate) fn new(keys: Option<TaskKeys>) -> Gate {
        Gate { keys, seen: Mutex::default() }
    }

    /// Lets a request pass.
    ///
    /// # Errors
    /// Why not, as one line.
    pub(crate) fn admit(&self, request: &Request, now_ms: u64) -> Result<(), String> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let checked = keys.check_request(request.target(), request.header("authorization"));
        let id = checked.map_err(|why| format!("{why}: this worker has a --task-key"))?;
        // Whole at any time.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).admit(id, now_ms)
    }
}

/// The requests that were made, by time.
#[derive(Debug, Default)]
struct Seen(BTreeSet<RequestId>);

impl Seen {
    fn admit(&mut self, id: RequestId, now_ms: u64) -> Result<(), String> {
        let apart = now_ms.abs_diff(id.time_ms);
        if apart > SKEW_MS {
            let (apart, limit) = (apart / 1000, SKEW_MS / 1000);
            return Err(format!("its time is {apart} s from the worker's, more than {limit} s: set the clocks"));
        }
        while self.0.first().is_some_and(|first| first.time_ms.saturating_add(SKEW_MS) < now_ms)
            || self.0.len() >= REMEMBERED
        {
            self.0.pop_first();
        }
        if self.0.insert(id) { Ok(()) } else { Err("it was made before".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(time_ms: u64, nonce: u64) -> RequestId {
        RequestId { time_ms, nonce }
    }

    #[test]
    fn a_request_is_good_once_and_for_a_minute() {
        let (mut seen, now) = (Seen::default(), 1_000_000);
        for time in [now, now - SKEW_MS, now + SKEW_MS] {
            assert_eq!(seen.admit(id(time, 1), now), Ok(()));
            assert_eq!(seen.admit(id(time, 1), now), Err("it was made before".to_owned()));
            assert_eq!(seen.admit(id(time, 2), now), Ok(()));
        }
        for time in [now - SKEW_MS - 1, now + SKEW_MS + 1, 0, u64::MAX] {
            assert!(seen.admit(id(time, 3), now).unwrap_err().contains("set the clocks"), "{time}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        for nonce in 0..REMEMBERED as u64 + 10 {
            assert_eq!(seen.admit(id(1_000_000, nonce), 1_000_000), Ok(()));
        }
        assert_eq!(seen.0.len(), REMEMBERED);
        assert_eq!(seen.admit(id(2_000_000, 1), 2_000_000), Ok(()));
        assert_eq!(seen.0.len(), 1, "what is too old to be made again is forgotten");
    }
}
