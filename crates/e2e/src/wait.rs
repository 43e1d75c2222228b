//! Waiting by asking: never for a time, always for a state.

use std::{
    fmt::Display,
    sync::mpsc,
    time::{Duration, Instant},
};

/// Pause between two questions.
const POLL: Duration = Duration::from_millis(20);

/// How long [`wait_for`] asks: far longer than anything takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Asks until `check` gives `Ok`, and panics after 30 s with the last `Err`: what was seen instead of `what`. It may cost
/// something to display that, for that is done only then.
#[track_caller]
pub fn wait_for<T, S: Display>(what: &str, check: impl FnMut() -> Result<T, S>) -> T {
    wait_within(LIMIT, what, check)
}

/// [`wait_for`] with a limit of its own: for what is promised within a time.
#[track_caller]
pub fn wait_within<T, S: Display>(limit: Duration, what: &str, mut check: impl FnMut() -> Result<T, S>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(found) => return found,
            Err(seen) if start.elapsed() >= limit => panic!("waited {limit:?} for {what}, last seen: {seen}"),
            Err(_) => pause(),
        }
    }
}

/// Asks for as long as `duration` whether `check` still holds, and panics with its `Err` as soon as it doesn't: for what must
/// not happen.
#[track_caller]
pub fn stays(what: &str, duration: Duration, mut check: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < duration {
        if let Err(seen) = check() {
            panic!("{what} held for only {:?}, seen: {seen}", start.elapsed());
        }
        pause();
    }
}

/// Lets [`POLL`] pass: nobody ever sends.
pub(crate) fn pause() {
    let (_sender, nothing) = mpsc::channel::<()>();
    nothing.recv_timeout(POLL).ok();
}
