//! Whether a daemon's deciding loop goes round.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Reply, Status};

/// A loop that has not gone round for so long is stuck. It is when its guard kills it, unless a session timeout is so long
/// that a request may take longer.
const STUCK: Duration = Duration::from_secs(20);

/// Felt by `GET /healthz`. Its guard asks the loop every five seconds, so that an idle one goes round, too.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds after the start.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { start: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// The loop has gone round.
    pub fn beat(&self) {
        self.last.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Says whether the loop goes round: 200, or 503 and since when it does not.
    ///
    /// # Errors
    /// The client is gone.
    pub fn answer(&self, reply: Reply<'_>) -> io::Result<()> {
        let age = Duration::from_millis(self.now_ms().saturating_sub(self.last.load(Ordering::Relaxed)));
        if age < STUCK {
            return reply.send(Status::Ok, "ok\n");
        }
        reply.send(Status::Unavailable, &format!("the deciding loop has not gone round for {} s\n", age.as_secs()))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
