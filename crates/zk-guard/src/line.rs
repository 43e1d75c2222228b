//! What guard and daemon say to each other: words of a fixed length over a socket that is the daemon's standard input.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use zk_session::{SessionId, Witness};

use crate::SMALL_STACK;

/// What a daemon says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// It has a session, which is to be ended when it dies.
    Owns { session: SessionId, timeout: Duration },
    /// A write to its own node was acknowledged that was sent so long ago.
    Proved { age: Duration },
    /// It runs nothing, and starts nothing before it has proved something again.
    Released,
    /// Its loop goes round.
    Goes,
}

/// One letter and two numbers.
const LENGTH: usize = 17;

const PING: u8 = b'p';

impl Word {
    fn encode(self) -> [u8; LENGTH] {
        let (letter, first, second) = match self {
            Word::Owns { session, timeout } => (b'o', session.0.cast_unsigned(), millis(timeout)),
            Word::Proved { age } => (b'a', monotonic_ms().saturating_sub(millis(age)), 0),
            Word::Released => (b'r', 0, 0),
            Word::Goes => (b'g', 0, 0),
        };
        let mut bytes = [letter; LENGTH];
        bytes[1..9].copy_from_slice(&first.to_be_bytes());
        bytes[9..].copy_from_slice(&second.to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; LENGTH]) -> Option<Self> {
        let [letter, rest @ ..] = bytes;
        let (first, second) = rest.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or_default();
        let (first, second) = (number(first), number(second));
        Some(match letter {
            b'o' => Word::Owns { session: SessionId(first.cast_signed()), timeout: Duration::from_millis(second) },
            // As a point in time of a clock that both share: how long the word was on its way counts.
            b'a' => Word::Proved { age: Duration::from_millis(monotonic_ms().saturating_sub(first)) },
            b'r' => Word::Released,
            b'g' => Word::Goes,
            _ => return None,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1000 + nanos / 1_000_000
}

/// One end of the line.
#[derive(Debug, Clone)]
pub struct Line(Arc<UnixStream>);

impl Line {
    pub(crate) fn of_guard(stream: UnixStream) -> Self {
        Line(Arc::new(stream))
    }

    pub(crate) fn of_daemon() -> io::Result<Self> {
        Ok(Line(Arc::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))))
    }

    /// Neither side ever waits for the other: where the line is full the other one is frozen, and what is lost then is
    /// said again.
    fn say(&self, bytes: &[u8]) {
        rustix::net::send(&*self.0, bytes, rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL).ok();
    }

    pub(crate) fn ping(&self) {
        self.say(&[PING]);
    }

    /// Hears what the daemon says, until it has ended.
    pub(crate) fn listen(&self, mut hear: impl FnMut(Word) -> bool) {
        let mut bytes = [0; LENGTH];
        while (&*self.0).read_exact(&mut bytes).is_ok() {
            let Some(word) = Word::decode(bytes) else { return };
            if !hear(word) {
                return;
            }
        }
    }

    /// Calls `ping` whenever the guard asks whether the daemon's loop goes round: the loop itself has to answer with
    /// [`Line::goes`].
    ///
    /// # Errors
    /// No thread could be started.
    pub fn on_ping(&self, ping: impl Fn() + Send + 'static) -> io::Result<()> {
        let line = self.clone();
        let listening = move || {
            let mut byte = [0];
            while (&*line.0).read_exact(&mut byte).is_ok() {
                ping();
            }
        };
        thread::Builder::new().name("guard".into()).stack_size(SMALL_STACK).spawn(listening).map(drop)
    }

    /// The daemon's loop goes round.
    pub fn goes(&self) {
        self.say(&Word::Goes.encode());
    }

    /// The daemon runs nothing, and starts nothing before it has proved again that it is registered.
    pub fn released(&self) {
        self.say(&Word::Released.encode());
    }
}

impl Witness for Line {
    fn owns(&self, session: SessionId, timeout: Duration) {
        self.say(&Word::Owns { session, timeout }.encode());
    }

    fn proved(&self, sent: Instant) {
        self.say(&Word::Proved { age: sent.elapsed() }.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_line() {
        let timeout = Duration::from_millis(30_000);
        for word in [Word::Owns { session: SessionId(-5), timeout }, Word::Released, Word::Goes] {
            assert_eq!(Word::decode(word.encode()), Some(word));
        }
        let Some(Word::Proved { age }) = Word::decode(Word::Proved { age: timeout }.encode()) else { panic!() };
        assert!(age >= timeout && age < timeout + Duration::from_secs(5), "{age:?}");
    }

    #[test]
    fn a_full_line_blocks_nobody() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let line = Line::of_guard(ours);
        for _ in 0..100_000 {
            line.goes();
        }
    }
}
