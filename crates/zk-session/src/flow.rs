//! How much may be on its way at once.
//!
//! The `zookeeper` crate drops a request when the send buffer of the socket is full exactly at a frame's end. With
//! little on the way it never is.

use std::sync::{Condvar, Mutex, MutexGuard};

/// Far below the smallest send buffer of a TCP socket on Linux (85 kB, of which the half holds data).
const AT_ONCE: usize = 32 * 1024;

#[derive(Default)]
pub(crate) struct Flow {
    /// Held while waiting for room, so that a large request is not overtaken for ever by small ones.
    turn: Mutex<()>,
    on_the_way: Mutex<usize>,
    room: Condvar,
}

/// Room for one request, given back when dropped.
pub(crate) struct Room<'a> {
    flow: &'a Flow,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics while it holds a lock, and numbers are whole at any time.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Flow {
    /// Waits until the request fits, or is alone. The wait ends when the session does: then all others get an error.
    pub(crate) fn enter(&self, bytes: usize) -> Room<'_> {
        let turn = lock(&self.turn);
        let mut on_the_way = lock(&self.on_the_way);
        while *on_the_way > 0 && *on_the_way + bytes > AT_ONCE {
            on_the_way = self.room.wait(on_the_way).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *on_the_way += bytes;
        drop(turn);
        Room { flow: self, bytes }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *lock(&self.flow.on_the_way) -= self.bytes;
        self.flow.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_large_request_goes_alone_and_is_not_starved() {
        let flow = Flow::default();
        let small = flow.enter(10);
        let (tx, rx) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let large = flow.enter(AT_ONCE * 10);
                tx.send("large").unwrap();
                drop(large);
            });
            assert!(rx.recv_timeout(Duration::from_millis(50)).is_err(), "the large one must wait for the small one");
            drop(small);
            assert_eq!(rx.recv(), Ok("large"));
        });
        assert_eq!(*lock(&flow.on_the_way), 0);
    }
}
