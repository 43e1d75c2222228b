//! Ctrl-C: the first cancels, the second leaves.
//!
//! The work is done on a thread of its own, which a server that does not answer may hold up. So the user can leave at
//! once whatever happens: the main thread only listens.

use std::sync::mpsc;
use std::thread;

use crate::connection::{Connection, Message};
use crate::error::Failure;
use crate::{Error, output};

/// What a stop signal means.
#[derive(Debug)]
pub(crate) enum Reaction {
    /// What runs is cancelled, and the user is told this.
    Cancel(&'static str),
    /// The program ends now.
    Leave(Error),
}

enum Word {
    Signal,
    Ended,
}

/// Says that a thread has ended, also when it panicked.
struct Farewell(mpsc::Sender<Word>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.send(Word::Ended).ok(); // nobody listens any more when the user has left
    }
}

/// Does the work, and says to it that it is cancelled. `react` is told whether a signal is the first.
pub(crate) fn interruptible(
    connection: Connection,
    tried: &'static str,
    react: impl Fn(bool) -> Reaction,
    work: impl FnOnce(Connection) -> Result<u8, Failure> + Send + 'static,
) -> Result<u8, Failure> {
    let (words, heard) = mpsc::channel();
    let signals = words.clone();
    zk_cli::on_stop_signal(move || _ = signals.send(Word::Signal)).map_err(|error| Error::Signals(error).of(tried))?;
    let outbox = connection.outbox();
    let work = thread::Builder::new().name("zk-work".into()).spawn(move || {
        let _farewell = Farewell(words);
        work(connection)
    });
    let work = work.expect("a program that cannot start a thread cannot go on");
    let mut first = true;
    for word in heard {
        match word {
            Word::Ended => break,
            Word::Signal => match react(first) {
                Reaction::Leave(error) => return Err(error.of(tried)),
                Reaction::Cancel(text) => {
                    output::note(text);
                    outbox.send(Message::Cancel).ok(); // fails when the work has ended meanwhile
                    first = false;
                }
            },
        }
    }
    work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
