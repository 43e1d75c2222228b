//! `top`: the cluster on the whole screen, as it is.
//!
//! ```text
//!   watcher thread: session, watches ──▶ Cluster ──▶ mailbox of the main thread ◀── keys, resizes, stop signals
//!                                                        └─▶ draw
//! ```
//!
//! A change fires a watch, and what it was about is read again: nothing is polled, and a finished task, which never
//! changes, is read once. The main thread owns the terminal and waits for nobody, so `q` works whatever the servers do.

mod screen;
mod watcher;

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use crate::connection::Connection;
use crate::{Error, exit};
use watcher::Cluster;

/// What the main thread hears.
enum News {
    /// The cluster has changed.
    Seen(Box<Cluster>),
    /// It cannot be seen at the moment, and why.
    Blind(String),
    /// The terminal has another size.
    Resized,
    /// The user, or a signal, wants it to end; or why no keys can be read.
    Leave(io::Result<()>),
}

/// The ages on the screen are to the second.
const TICK: Duration = Duration::from_secs(1);

/// Shows the cluster until the user leaves.
pub(crate) fn top(connection: Connection) -> Result<u8, Error> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let zk = connection.zk();
    let (tell, news) = mpsc::channel();
    let stop = tell.clone();
    // A mailbox that nobody reads any more belongs to a screen that has been left.
    zk_cli::on_stop_signal(move || _ = stop.send(News::Leave(Ok(())))).map_err(Error::Signals)?;
    let mut terminal = ratatui::try_init().map_err(Error::Stdout)?;
    let keys = tell.clone();
    spawn("zk-keys", move || listen(&keys));
    spawn("zk-watch", move || watcher::watch(connection, &tell));
    let mut view = screen::View { zk, cluster: None, trouble: None };
    let left = loop {
        let drawn = terminal.draw(|frame| screen::draw(frame, &view, SystemTime::now()));
        if let Err(error) = drawn {
            break Err(error);
        }
        let first = match news.recv_timeout(TICK) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
        };
        let mut left = None;
        for one in std::iter::once(first).chain(news.try_iter()) {
            match one {
                News::Seen(cluster) => (view.cluster, view.trouble) = (Some(*cluster), None),
                News::Blind(why) => view.trouble = Some(why),
                News::Resized => {}
                News::Leave(why) => left = Some(why),
            }
        }
        if let Some(why) = left {
            break why;
        }
    };
    // A panic restores the terminal as well: ratatui has a hook for that.
    ratatui::try_restore().map_err(Error::Stdout)?;
    left.map(|()| exit::DONE).map_err(Error::Stdout)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned.expect("a program that cannot start a thread cannot go on");
}

/// Reads the keys. In the raw mode of the terminal Ctrl-C is one of them.
fn listen(tell: &Sender<News>) {
    loop {
        let news = match event::read() {
            Ok(Event::Resize(..)) => News::Resized,
            Ok(Event::Key(key)) => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => News::Leave(Ok(())),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => News::Leave(Ok(())),
                _ => continue,
            },
            Ok(_) => continue,
            Err(error) => News::Leave(Err(error)),
        };
        let last = matches!(news, News::Leave(Err(_)));
        if tell.send(news).is_err() || last {
            return;
        }
    }
}

/// When the next look may be: many changes at once are one look, and no more time is spent on looking than on waiting.
fn pause_after(look: Instant) -> Instant {
    /// Often enough to follow with the eye.
    const LEAST: Duration = Duration::from_millis(250);
    look + LEAST.max(look.elapsed())
}
