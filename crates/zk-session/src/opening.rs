//! Finding a server, and going on until there is one.

use std::io;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::stream::Server;
use crate::{Config, Event, Notify, OpenError, Session, SessionId, Tls, handshake};

/// After this long without an answer the next server is asked as well.
const HEAD_START: Duration = Duration::from_millis(200);

/// How long to wait for an answer of any server once all were asked. More than a handshake takes; only the resolver may
/// take longer, and it cannot be stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for those who do not answer when another server has answered that it cannot serve. Perhaps it elects a
/// leader with others, and will serve in a moment, while the silent one is a host that is gone. Whoever is only slow is
/// found when the search has gone on for longer.
fn silence(away: Duration) -> Duration {
    (away / 2).clamp(HEAD_START, PATIENCE)
}

/// The shortest pause between two attempts, and the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause after an attempt that failed, at most; it is drawn from its upper half. An ensemble elects a leader in less
/// than a second: it is asked often then, and the less often the longer it has been away.
fn pause(away: Duration) -> Duration {
    (away / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Finds a server that serves sessions, and the timeout that it grants. One that is dead, slow or has no address does
/// not hold up the others.
/// `away` is how long that was tried before.
pub(crate) fn reach(config: &Config, away: Duration) -> Result<(Server, Duration), OpenError> {
    let timeout = config.timeout;
    first_answer(config, silence(away), move |server| Ok((server.clone(), handshake::probe(server, timeout)?)))
}

/// Ends a session of ours, without having one: opens it again under its id and password and closes it. Returns false where
/// there was none any more, or the server does not accept the password: then it is gone when it expires.
///
/// # Errors
/// No server answered: the session may or may not be ended.
pub fn end_session(config: &Config, session: SessionId) -> Result<bool, OpenError> {
    first_answer(config, PATIENCE, move |server| handshake::close_session(server, session))
}

/// Asks the servers, in any order, until one answers; when one cannot, waits for the others only for the time of `silence`.
fn first_answer<T, F>(config: &Config, silence: Duration, ask: F) -> Result<T, OpenError>
where
    T: Send + 'static,
    F: Fn(&Server) -> io::Result<T> + Clone + Send + 'static,
{
    let mut hosts = config.connect.hosts().to_vec();
    fastrand::shuffle(&mut hosts);
    let mut waiting = hosts.into_iter();
    let mut errors = Vec::new();
    let mut unanswered = 0;
    let (tx, rx) = mpsc::channel();
    let mut until = Instant::now() + PATIENCE;
    loop {
        if let Some(host) = waiting.next() {
            let (tx, ask, tls) = (tx.clone(), ask.clone(), config.tls.clone());
            let asking = thread::Builder::new().name("zk-probe".into()).spawn(move || {
                tx.send(ask_host(&host, tls.as_ref(), &ask)).ok(); // nobody waits any more when another server answered
            });
            match asking {
                Ok(_) => unanswered += 1,
                Err(error) => errors.push(format!("no thread could be started: {error}")),
            }
            let patience = if errors.is_empty() { PATIENCE } else { silence };
            until = Instant::now() + if waiting.len() > 0 { HEAD_START } else { patience };
        } else if unanswered == 0 {
            return Err(OpenError(errors));
        }
        match rx.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => {
                errors.push(error);
                unanswered -= 1;
                until = until.min(Instant::now() + silence);
            }
            Err(_) if waiting.len() > 0 => {}
            Err(_) => {
                errors.push(format!("{unanswered} of {} servers did not answer", config.connect.hosts().len()));
                return Err(OpenError(errors));
            }
        }
    }
}

fn ask_host<T>(host: &str, tls: Option<&Tls>, ask: &impl Fn(&Server) -> io::Result<T>) -> Result<T, String> {
    let named = |error: &io::Error| format!("{host}: {}", sentence(error));
    let addresses = host.to_socket_addrs().map_err(|error| named(&error))?;
    let tls = tls.map(|tls| tls.to(host)).transpose().map_err(|error| named(&error))?;
    let mut why = format!("{host}: it has no address");
    for address in addresses {
        match ask(&Server { address, tls: tls.clone() }) {
            Ok(answer) => return Ok(answer),
            Err(error) => why = named(&error),
        }
    }
    Err(why)
}

/// An error of the system without the number that Rust appends.
fn sentence(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_lowercase(),
        None => text,
    }
}

/// Looks for a server, again and again, until a session is up or this is dropped.
#[must_use = "dropping it ends the search"]
#[derive(Debug)]
pub struct Opening(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits, at most so long; returns whether the search was stopped.
    fn wait(&self, pause: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stopped, pause, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        *self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

/// Opens a session as soon as there is a server, and puts it into the mailbox as [`Event::Opened`]. Says once that none
/// is reached, and once that one is.
pub fn open_in_background(config: &Arc<Config>, number: u32, notify: &Notify) -> Opening {
    let stop = Arc::new(Stop::default());
    let opening = Opening(stop.clone());
    let (config, notify) = (config.clone(), notify.clone());
    let search = move || {
        let began = Instant::now();
        let mut said = false;
        loop {
            match Session::open_after(began.elapsed(), &config, number, &notify) {
                Ok(session) => {
                    // Under the lock: once the search is stopped no session comes into the mailbox any more.
                    let stopped = stop.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                    if !*stopped {
                        log::info!(
                            "connected server={} timeout_ms={}",
                            session.server(),
                            session.timeout().as_millis()
                        );
                        warn_of_another_timeout(&config, &session);
                        notify(Event::Opened(session));
                    }
                    return;
                }
                Err(error) if !said => {
                    log::warn!("cannot reach ZooKeeper, will go on trying zk={}: {error}", config.connect);
                    said = true;
                }
                Err(error) => log::debug!("cannot reach ZooKeeper: {error}"),
            }
            if stop.wait(pause(began.elapsed()).mul_f64(0.5 + fastrand::f64() / 2.0)) {
                return;
            }
        }
    };
    let spawned = thread::Builder::new().name("zk-open".into()).spawn(search);
    spawned.expect("a daemon that cannot start a thread for its connection cannot go on");
    opening
}

fn warn_of_another_timeout(config: &Config, session: &Session) {
    if session.number() == 1 && session.timeout() != config.timeout {
        let (granted, asked) = (session.timeout().as_millis(), config.timeout.as_millis());
        log::warn!("the server grants another session timeout asked_ms={asked} granted_ms={granted}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_away_much_longer_than_the_ensemble() {
        for away in [1, 100, 700, 1000, 3000, 60_000].map(Duration::from_millis) {
            let (mut now, mut attempts) = (Duration::ZERO, 0);
            while now < away {
                now += pause(now);
                attempts += 1;
            }
            let late = now - away;
            assert!(late <= (away / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE), "{away:?}: {late:?}");
            assert!(attempts <= 20 + away.as_secs(), "{away:?}: {attempts} attempts");
        }
    }
}
