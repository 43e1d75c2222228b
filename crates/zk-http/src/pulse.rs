//! Whether a daemon's deciding loop goes round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
