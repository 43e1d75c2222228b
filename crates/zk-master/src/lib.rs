//! `zk-master`: one of several is the primary and assigns tasks to workers.
//!
//! ```text
//!            a session is up                 /master is ours
//!  SEEKING ──────────────────▶ STANDING BY ─────────────────▶ REIGNING
//!     ▲                             ▲   /master goes: try        │
//!     │                             └────────────────────────────┤ /master or /epoch is not ours any more
//!     └──────────────────────────────────────────────────────────┘ the session is lost
//! ```
//!
//! One thread decides; whatever happens is a message in its mailbox. A primary reads what is stale (`reading`), decides
//! ([`mod@plan`], a pure function) and writes (`execute`), until there is nothing left to do, and then waits. All its
//! writes go through the very session that owns `/master`; with the session goes all that it knew.
//!
//! Deliberately absent: any state of its own. A master that dies at any moment leaves a tree from which the next one plans
//! the rest.

mod args;
mod election;
mod execute;
mod metrics;
mod overview;
mod page;
pub mod plan;
mod reading;
mod requests;
mod serve;
pub mod state;
pub mod tasks;
pub mod view;

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::{
    Arc,
    mpsc::{self, Sender},
};
use std::time::{Duration, Instant};

use zk_guard::{Duties, Line, Side};
use zk_http::{Listen, ListenError, Pulse, Ready, Unwell};
use zk_session::{Change, Event, Following, Notify, Opening, Others, Session, SessionId};
use znode_paths::{Address, Instance, Live, LiveName, Role, paths};

pub use args::Args;
pub use execute::carry_out_step;
pub use reading::read_task;

use election::Standing;
use metrics::Metrics;
use overview::{Cluster, Overview};
use plan::{Retention, plan};
use reading::{Haste, Reading};
use serve::Lookout;

/// What a master needs to know.
#[derive(Debug)]
pub struct Config {
    /// How to reach the ensemble.
    pub session: zk_session::Config,
    /// What `/master` holds while this is the primary.
    pub address: Address,
    /// Where to say that it is well.
    pub listen: Listen,
    /// What to keep of finished tasks.
    pub retention: Retention,
}

/// Why a master cannot start. Once it has started, it goes on until it is told to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option cannot be used.
    #[error(transparent)]
    Args(#[from] zk_cli::ArgsError),
    /// There is no guard.
    #[error(transparent)]
    Guard(#[from] zk_guard::Error),
    /// Nobody can be served there.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The master that was asked is not well.
    #[error(transparent)]
    Unwell(#[from] Unwell),
    /// The system has no threads left.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The name of this host makes no address.
    #[error("the name of this host makes no address, give one with --address: {0}")]
    Address(znode_paths::NameError),
}

enum Message {
    Session(Event),
    /// The guard asks whether the loop goes round.
    Ping,
    /// Somebody wants to know how things are, and how long it took to find out.
    Look(Sender<(Overview, Duration)>),
    Stop,
}

/// The words of a master that is ready.
const STANDBY: &str = "standby";
const PRIMARY: &str = "primary";

/// How long to wait for the server's word that the session is closed.
const CLOSE: Duration = Duration::from_secs(2);

/// The first pause after something failed for another reason than a lost session, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause after a pass in which no step could be carried out: somebody is changing the tree under us.
const FRUITLESS: Duration = Duration::from_millis(200);

/// The pause after a pass that has supplied everybody: what comes meanwhile is read at once, and what follows from it is written at
/// once. A tenth as many requests, each for ten times as much, cost the servers much less.
const GATHER: Duration = Duration::from_millis(5);

/// Runs until a stop signal, under a guard: as both processes.
///
/// # Errors
/// It cannot start.
pub fn run(config: Config) -> Result<ExitCode, Error> {
    match zk_guard::split(&config.session, Duties { deadline: true, tasks: false })? {
        Side::Guarded(code) => Ok(code),
        Side::Daemon(guard, _) => serve(config, guard).map(|()| ExitCode::SUCCESS),
    }
}

fn serve(config: Config, guard: Line) -> Result<(), Error> {
    let (pulse, metrics) = (Pulse::default(), Arc::<Metrics>::default());
    let (tx, rx) = mpsc::channel();
    if let Some(listener) = listen(config.listen)? {
        let lookout = Lookout::new(config.address.clone(), pulse.clone(), metrics.clone(), tx.clone());
        serve::serve(listener, lookout).map_err(Error::Thread)?;
    }
    let ping = tx.clone();
    guard.on_ping(move || _ = ping.send(Message::Ping)).map_err(Error::Thread)?;
    let stop = tx.clone();
    // A mailbox that nobody reads any more belongs to a master that has ended.
    zk_cli::on_stop_signal(move || _ = stop.send(Message::Stop))?;
    let notify: Notify = Arc::new(move |event| _ = tx.send(Message::Session(event)));
    let instance = Instance::from_random(zk_cli::random());
    let Config { mut session, address, listen, retention } = config;
    log::info!("started address={address} listen={listen} instance={instance} zk={}", session.connect);
    zk_cli::warn_without_identity(&session);
    session.witness = Some(Arc::new(guard.clone()));
    let session = Arc::new(session);
    let mut master = Master {
        session,
        guard,
        address,
        retention,
        instance,
        metrics,
        sessions: 0,
        notify,
        pause: FIRST_PAUSE,
        following: Following::default(),
    };
    let mut state = master.seek(Duration::ZERO);
    loop {
        pulse.beat(state.ready());
        let message = match state.wake() {
            None => rx.recv().ok(),
            Some(at) => rx.recv_timeout(at.saturating_duration_since(Instant::now())).ok(),
        };
        // Whoever looks changes nothing: that is no reason to read or to plan.
        let mut news = message.is_none();
        // All that is there is taken at once: a hundred hints are one reading.
        let mut next = message;
        while let Some(message) = next {
            news |= !matches!(message, Message::Look(_));
            match message {
                Message::Look(asked) => {
                    let begun = Instant::now();
                    let overview = master.overview(&state);
                    asked.send((overview, begun.elapsed())).ok(); // or they left
                }
                Message::Stop => {
                    state.close();
                    log::info!("stopped");
                    return Ok(());
                }
                Message::Ping => master.guard.goes(),
                Message::Session(event) => state = master.on_event(state, event),
            }
            next = match state.gathers() {
                None => rx.try_recv().ok(),
                Some(until) => rx.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
            };
        }
        if news && !state.puts_off() {
            state = master.go_on(state);
        }
    }
}

/// A port that was not asked for is no reason not to assign tasks: two masters on one host may have the same.
fn listen(listen: Listen) -> Result<Option<TcpListener>, Error> {
    match (listen.bind(), listen) {
        (Err(error), Listen::Everywhere(_)) => {
            log::warn!("serving nothing over HTTP: {error}");
            Ok(None)
        }
        (bound, _) => Ok(bound?),
    }
}

enum State {
    /// No session. The search starts when the pause is over.
    Seeking { from: Instant, opening: Option<Opening> },
    /// A session, and somebody else's `/master`, unless `stale`.
    StandingBy { session: Session, stale: bool, primary: String },
    /// `/master` is ours.
    Reigning { session: Session, reading: Box<Reading>, rest: Rest },
    /// The session is over; the news is on its way into the mailbox.
    Losing { session: Session },
}

impl State {
    fn wake(&self) -> Option<Instant> {
        match self {
            State::Seeking { from, opening: None } => Some(*from),
            State::Reigning { rest, .. } => rest.wake,
            _ => None,
        }
    }

    /// Until when whatever comes is only taken in.
    fn gathers(&self) -> Option<Instant> {
        match self {
            State::Reigning { rest, .. } => rest.gather,
            _ => None,
        }
    }

    /// Whether nobody waits for what is new: that is done with whatever comes next, or a moment later.
    fn puts_off(&mut self) -> bool {
        let State::Reigning { reading, rest, .. } = self else { return false };
        let now = Instant::now();
        if rest.wake.is_some_and(|at| at <= now) {
            return false;
        }
        let haste = reading.haste();
        if haste == Haste::Soon {
            rest.wake = Some(rest.wake.map_or(now + GATHER, |at| at.min(now + GATHER)));
        }
        haste != Haste::Now
    }

    fn session(&self) -> Option<&Session> {
        match self {
            State::Seeking { .. } => None,
            State::StandingBy { session, .. } | State::Reigning { session, .. } | State::Losing { session } => {
                Some(session)
            }
        }
    }

    fn ready(&self) -> Ready {
        match self {
            State::Seeking { .. } | State::Losing { .. } => Err("there is no session with ZooKeeper"),
            State::StandingBy { .. } => Ok(STANDBY),
            State::Reigning { .. } => Ok(PRIMARY),
        }
    }

    fn close(&self) {
        if let Some(session) = self.session() {
            session.close(CLOSE);
        }
    }
}

struct Master {
    session: Arc<zk_session::Config>,
    guard: Line,
    address: Address,
    retention: Retention,
    instance: Instance,
    metrics: Arc<Metrics>,
    /// How many sessions there have been.
    sessions: u32,
    notify: Notify,
    pause: Duration,
    following: Following,
}

impl Master {
    /// What this master knows, without asking anybody.
    fn overview(&self, state: &State) -> Overview {
        match state {
            State::Seeking { .. } | State::Losing { .. } => Overview::Nothing,
            State::StandingBy { primary, .. } => Overview::Standby { primary: primary.clone() },
            State::Reigning { session, reading, .. } => {
                let others = reading.masters().filter(|(instance, _)| *instance != self.instance);
                let others = others.map(|(_, address)| address.clone()).collect();
                let now_ms = session.server_time_ms().unwrap_or(reading.view.now_ms);
                Overview::Primary(Cluster::of(&reading.view, others, now_ms))
            }
        }
    }

    /// Without a session a master does nothing that its guard would have to stop.
    fn seek(&mut self, pause: Duration) -> State {
        self.guard.released();
        State::Seeking { from: Instant::now() + pause, opening: None }
    }

    fn on_event(&mut self, state: State, event: Event) -> State {
        match (event, state) {
            (Event::Opened(session), State::Seeking { .. }) => match self.introduce(&session) {
                Ok(()) => State::StandingBy { session, stale: true, primary: String::new() },
                Err(error) => self.give_up(session, &error),
            },
            (Event::Lost { session: number, reason }, state) => match state.session() {
                Some(session) if session.number() == number => {
                    log::warn!("session lost, was {}: {reason}", state_name(&state));
                    self.metrics.session_losses.inc();
                    self.seek(Duration::ZERO)
                }
                _ => state,
            },
            (Event::Watch { path, change }, mut state) => {
                match &mut state {
                    State::StandingBy { stale, .. } => *stale |= path == paths::MASTER && change != Change::Children,
                    State::Reigning { reading, .. } => reading.hint(&path, change),
                    State::Seeking { .. } | State::Losing { .. } => {}
                }
                state
            }
            (Event::Opened(_), state) => state,
        }
    }

    /// Does whatever can be done without another message.
    fn go_on(&mut self, state: State) -> State {
        match state {
            State::Seeking { from, opening: None } if from <= Instant::now() => {
                self.sessions += 1;
                let opening = zk_session::open_in_background(&self.session, self.sessions, &self.notify);
                State::Seeking { from, opening: Some(opening) }
            }
            State::StandingBy { session, stale: true, primary } => self.stand(session, &primary),
            State::Reigning { session, reading, .. } => self.reign(session, reading),
            state => state,
        }
    }

    /// Makes this process known: its node below `/live`. Then ends its earlier sessions, whose `/master` would stand in the
    /// way until they expire.
    fn introduce(&self, session: &Session) -> Result<(), zk_session::Error> {
        session.ensure("/")?;
        session.ensure(paths::LIVE)?;
        let name = LiveName { instance: self.instance, session: session.number() };
        let node = Live::new(self.address.as_str(), Role::Master, None);
        let id = session.own(&paths::live(&name), &node.encode())?;
        log::debug!("introduced session={id}");
        for earlier in earlier_sessions(session, name)? {
            match session.end_earlier(earlier) {
                Ok(true) => log::info!("ended an earlier session of this process session={earlier}"),
                Ok(false) => {}
                Err(error) => log::warn!("cannot end an earlier session, it will expire session={earlier}: {error}"),
            }
        }
        Ok(())
    }

    fn stand(&mut self, session: Session, before: &str) -> State {
        match election::stand(&session, &self.address) {
            Ok(Standing::Primary { fence }) => {
                log::info!("primary fence={fence}");
                self.pause = FIRST_PAUSE;
                if self.submitters()
                    && let Err(error) = requests::prepare(&session)
                {
                    return self.give_up(session, &error);
                }
                match self.following.start(&session, &[paths::TASKS, paths::ASSIGN]) {
                    Ok(below) => self.reign(session, Box::new(Reading::new(fence, below))),
                    Err(error) => self.give_up(session, &error),
                }
            }
            Ok(Standing::Standby { primary }) => {
                if primary != before {
                    log::info!("standing by primary={primary:?}");
                }
                self.pause = FIRST_PAUSE;
                State::StandingBy { session, stale: false, primary }
            }
            Err(error) => self.give_up(session, &error),
        }
    }

    /// Whether submitters have an identity of their own.
    fn submitters(&self) -> bool {
        matches!(self.session.others, Some(Others::Submitters(..)))
    }

    /// Reads, plans and writes once.
    fn reign(&mut self, session: Session, mut reading: Box<Reading>) -> State {
        reading.look_for_missing();
        match self.pass(&session, &mut reading) {
            Ok(Pass::Rest(rest)) => State::Reigning { session, reading, rest },
            Ok(Pass::Deposed) => {
                log::warn!("not the primary any more: /master or /epoch is not ours");
                State::StandingBy { session, stale: true, primary: String::new() }
            }
            Err(error) => self.give_up(session, &error),
        }
    }

    fn pass(&self, session: &Session, reading: &mut Reading) -> Result<Pass, zk_session::Error> {
        if std::mem::take(&mut reading.stale.reign) && !election::reigns(session, reading.view.fence)? {
            return Ok(Pass::Deposed);
        }
        if std::mem::take(&mut reading.stale.requests) && self.submitters() {
            requests::pass_on(session)?.into_iter().for_each(|task| reading.wrote_task(task));
        }
        reading.refresh(session)?;
        let mut plan = plan(&reading.view, self.retention);
        reading.leave_out_refused(&mut plan);
        let supplied = plan.supplied && !reading.is_behind();
        let pause = if plan.chains.is_empty() && !reading.is_behind() {
            let in_ms = plan.look_again_ms.map(|at| u64::try_from(at - reading.view.now_ms).unwrap_or(0));
            in_ms.map(|in_ms| Duration::from_millis(in_ms.max(10)))
        } else if execute::execute(session, &plan, reading, &self.metrics)? || reading.is_behind() {
            // There may be something else to be done now; in between the mailbox is looked at.
            Some(if reading.is_behind() { Duration::ZERO } else { GATHER })
        } else {
            Some(FRUITLESS)
        };
        let now = Instant::now();
        Ok(Pass::Rest(Rest { wake: pause.map(|pause| now + pause), gather: supplied.then(|| now + GATHER) }))
    }

    /// Something went wrong. A lost session is followed by the next; anything else is tried again after a pause.
    fn give_up(&mut self, session: Session, error: &zk_session::Error) -> State {
        if matches!(error, zk_session::Error::Lost(_)) {
            return State::Losing { session };
        }
        log::error!("cannot go on, will try again in {} ms: {error}", self.pause.as_millis());
        session.close(CLOSE);
        let state = self.seek(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        state
    }
}

enum Pass {
    Deposed,
    Rest(Rest),
}

/// What a primary does when it has done what it could.
struct Rest {
    /// Until then nothing is to be done, unless a message comes.
    wake: Option<Instant>,
    /// Until then nothing is to be done even if messages come.
    gather: Option<Instant>,
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::Seeking { .. } => "seeking",
        State::StandingBy { .. } => "standing by",
        State::Reigning { .. } => "primary",
        State::Losing { .. } => "losing it",
    }
}

/// The sessions of the same process that are not over yet.
fn earlier_sessions(session: &Session, own: LiveName) -> Result<Vec<SessionId>, zk_session::Error> {
    let mut earlier = Vec::new();
    for name in session.children(paths::LIVE, false)?.unwrap_or_default() {
        let Ok(name) = name.parse::<LiveName>() else { continue };
        if name.instance == own.instance && name.session < own.session {
            let owner = session.stat(&paths::live(&name), false)?.and_then(|stat| stat.owner);
            earlier.extend(owner);
        }
    }
    Ok(earlier)
}
