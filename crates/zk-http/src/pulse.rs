//! Whether a daemon's deciding loop goes round, and whether it can do what it is there for.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Reply, Status};

/// A loop that has not gone round for so long is stuck. It is when its guard kills it, unless a session timeout is so long
/// that a request may take longer.
const STUCK: Duration = Duration::from_secs(20);

/// What a daemon does for the cluster right now, in a word; or why it does nothing.
pub type Ready = Result<&'static str, &'static str>;

/// Felt by `GET /healthz` and `GET /readyz`. Its guard asks the loop every five seconds, so that an idle one goes round, too.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds after the start.
    last: Arc<AtomicU64>,
    ready: Arc<Mutex<Ready>>,
}

impl Default for Pulse {
    fn default() -> Self {
        let ready = Arc::new(Mutex::new(Err("it is starting")));
        Pulse { start: Instant::now(), last: Arc::default(), ready }
    }
}

impl Pulse {
    /// The loop has gone round, and this is what came of it.
    pub fn beat(&self, ready: Ready) {
        self.last.store(self.now_ms(), Ordering::Relaxed);
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
    }

    /// What the loop said when it went round for the last time.
    pub fn ready(&self) -> Ready {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers `/healthz`: 200 while the loop goes round, else 503 and since when it does not.
    ///
    /// # Errors
    /// The client is gone.
    pub fn health(&self, reply: Reply<'_>) -> io::Result<()> {
        self.answer(reply, Ok("ok"))
    }

    /// Answers `/readyz`: 200 and the word, else 503 and why not.
    ///
    /// # Errors
    /// The client is gone.
    pub fn readiness(&self, reply: Reply<'_>) -> io::Result<()> {
        self.answer(reply, self.ready())
    }

    fn answer(&self, reply: Reply<'_>, ready: Ready) -> io::Result<()> {
        let age = Duration::from_millis(self.now_ms().saturating_sub(self.last.load(Ordering::Relaxed)));
        match ready {
            _ if age >= STUCK => {
                let text = format!("the deciding loop has not gone round for {} s\n", age.as_secs());
                reply.send(Status::Unavailable, &text)
            }
            Ok(word) => reply.send(Status::Ok, &format!("{word}\n")),
            Err(why) => reply.send(Status::Unavailable, &format!("{why}\n")),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
