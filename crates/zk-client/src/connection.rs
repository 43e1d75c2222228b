//! A session that is there when it is needed, and the one mailbox.
//!
//! Not `zk_session::open_in_background`, which tells a daemon's log once that nothing is reached: the user of a command
//! that gives up after ten seconds is to be told why.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use zk_session::{Event, Notify, OpenError, Others, Session};
use znode_paths::{Instance, Live, LiveName, Role, TaskKeys, paths};

use crate::{Error, output};

/// What comes into the mailbox.
pub(crate) enum Message {
    /// Of a session.
    Session(Event),
    /// An attempt to open one failed; it goes on.
    NotOpened(OpenError),
    /// The user wants the task cancelled.
    Cancel,
    /// Something happened to a stream of output.
    Output,
    /// There is more to do, or nothing more.
    Input,
}

/// How long to go on without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For `--connect-timeout`.
    Bounded,
    /// For ever: the task goes on, and its end will be there.
    Endless,
}

/// The first pause between two attempts to open a session, and the longest; each is doubled, and drawn from its upper half.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// After so long without a session somebody who waits is told, once.
const LONG: Duration = Duration::from_secs(5);

/// How long to wait for the server's word that the session is closed. It owns nothing that anybody waits for.
const CLOSE: Duration = Duration::from_secs(1);

/// The way to the ensemble.
pub(crate) struct Connection {
    config: Arc<zk_session::Config>,
    task_keys: Option<TaskKeys>,
    patience: Duration,
    instance: Instance,
    /// The present session, if any, and since when.
    session: Option<(Session, Instant)>,
    /// How many sessions there have been.
    sessions: u32,
    outbox: Sender<Message>,
    mailbox: Receiver<Message>,
    /// The user wants the task cancelled.
    pub(crate) cancel: bool,
}

impl Connection {
    /// Nothing is opened yet. `patience` is `--connect-timeout`.
    pub(crate) fn new(config: zk_session::Config, task_keys: Option<TaskKeys>, patience: Duration) -> Self {
        let (outbox, mailbox) = mpsc::channel();
        Connection {
            config: Arc::new(config),
            task_keys,
            patience,
            instance: Instance::from_random(zk_cli::random()),
            session: None,
            sessions: 0,
            outbox,
            mailbox,
            cancel: false,
        }
    }

    /// Where others put what they have for the mailbox.
    pub(crate) fn outbox(&self) -> Sender<Message> {
        self.outbox.clone()
    }

    /// `--connect-timeout`.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// What tasks and requests for output are signed with.
    pub(crate) fn task_keys(&self) -> Option<&TaskKeys> {
        self.task_keys.as_ref()
    }

    /// Whether it is for us to say who may do what: under an identity that is not that of submitters.
    pub(crate) fn has_rights(&self) -> bool {
        self.config.digest.is_some() && !self.is_submitter()
    }

    /// Whether all that is made belongs to the daemons, who are another identity.
    pub(crate) fn is_submitter(&self) -> bool {
        matches!(self.config.others, Some(Others::Daemons(_)))
    }

    /// Where ZooKeeper is.
    pub(crate) fn zk(&self) -> String {
        self.config.connect.to_string()
    }

    /// The next message, or `None` when the time has come.
    pub(crate) fn receive(&mut self, until: Option<Instant>) -> Option<Message> {
        let message = match until {
            None => self.mailbox.recv().ok(),
            Some(until) => self.mailbox.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        };
        self.cancel |= matches!(message, Some(Message::Cancel));
        message
    }

    /// The next message, if there is one already.
    pub(crate) fn received(&mut self) -> Option<Message> {
        self.receive(Some(Instant::now()))
    }

    /// A session that is up: the present one, or the next. Whoever gets another one than before reads all again.
    pub(crate) fn session(&mut self, until: Option<Instant>) -> Result<Session, Error> {
        let mut pause = Duration::ZERO;
        if let Some((session, since)) = self.session.take() {
            if session.over().is_none() {
                self.session = Some((session.clone(), since));
                return Ok(session);
            }
            // A server that loses each session at once is not asked for the next one at once.
            if since.elapsed() < LONGEST_PAUSE {
                pause = LONGEST_PAUSE / 2;
            }
        }
        self.sessions += 1;
        let search = self.search(pause);
        let session = self.found(until);
        drop(search);
        let session = session?;
        log::info!("connected server={} timeout_ms={}", session.server(), session.timeout().as_millis());
        if self.sessions == 1 && session.timeout() != self.config.timeout {
            let asked = self.config.timeout.as_millis();
            log::warn!("the server grants another session timeout than was asked for asked_ms={asked}");
        }
        self.session = Some((session.clone(), Instant::now()));
        Ok(session)
    }

    /// Waits for the session that is being looked for.
    fn found(&mut self, until: Option<Instant>) -> Result<Session, Error> {
        let begun = Instant::now();
        let mut why = "no answer".to_owned();
        let mut told = false;
        loop {
            let wake = until.or((!told).then_some(begun + LONG));
            match self.receive(wake) {
                Some(Message::Session(Event::Opened(session))) if session.number() == self.sessions => {
                    return Ok(session);
                }
                Some(Message::NotOpened(error)) => why = error.to_string(),
                Some(_) => {} // about an earlier session
                None if until.is_some() => {
                    return Err(Error::NotReached { zk: self.zk(), within: self.patience, why });
                }
                None => {
                    output::note(&format!("ZooKeeper at {} is not reached, still waiting: {why}", self.zk()));
                    told = true;
                }
            }
        }
    }

    /// Starts to look for a server after the pause, again and again, until a session is up or the sender is dropped.
    fn search(&self, mut pause: Duration) -> Sender<()> {
        let (stop, stopped) = mpsc::channel();
        let (config, number, outbox) = (self.config.clone(), self.sessions, self.outbox.clone());
        let mailbox = outbox.clone();
        // A mailbox that nobody reads any more belongs to a client that has ended.
        let notify: Notify = Arc::new(move |event| _ = mailbox.send(Message::Session(event)));
        let search = move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let message = match Session::open(&config, number, &notify) {
                    Ok(session) => Message::Session(Event::Opened(session)),
                    Err(error) => Message::NotOpened(error),
                };
                let opened = matches!(message, Message::Session(_));
                if outbox.send(message).is_err() || opened {
                    return;
                }
                let longer = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                pause = longer.mul_f64(0.5 + fastrand::f64() / 2.0);
            }
        };
        let spawned = thread::Builder::new().name("zk-open".into()).spawn(search);
        spawned.expect("a program that cannot start a thread for its connection cannot go on");
        stop
    }

    /// When patience ends, counted from now.
    fn limit(&self, patience: Patience) -> Option<Instant> {
        match patience {
            Patience::Bounded => Some(Instant::now() + self.patience),
            Patience::Endless => None,
        }
    }

    /// Does something that may be done twice. When the session is lost in between, it is done again on the next one.
    pub(crate) fn ask<T>(
        &mut self,
        patience: Patience,
        work: impl Fn(&Session) -> Result<T, zk_session::Error>,
    ) -> Result<T, Error> {
        let mut until = self.limit(patience);
        let mut losses = 0;
        loop {
            let session = self.session(until)?;
            match work(&session) {
                Ok(answer) => return Ok(answer),
                Err(zk_session::Error::Lost(reason)) => {
                    log::info!("session lost: {reason}");
                    losses += 1;
                    if losses == 1 {
                        until = self.limit(patience);
                    }
                }
                Err(error) => return Err(Error::Request(error)),
            }
        }
    }

    /// Writes, so that the reads that follow on this session see all that was written before by anybody.
    pub(crate) fn sync(&self, session: &Session) -> Result<(), zk_session::Error> {
        if session.id().is_some() {
            return session.sync();
        }
        let name = LiveName { instance: self.instance, session: session.number() };
        if self.is_submitter() {
            return session.own(&format!("{}/{name}", paths::REQUESTS), b"").map(drop);
        }
        session.ensure(paths::LIVE)?;
        session.own(&paths::live(&name), &Live::new("", Role::Client, None).encode()).map(drop)
    }

    /// Tells the server that nothing more will come.
    pub(crate) fn close(self) {
        if let Some((session, _)) = self.session {
            session.close(CLOSE);
        }
    }
}
