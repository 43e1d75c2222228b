//! `zk-worker`: runs what is assigned to it.
//!
//! ```text
//!          a session is up              /workers and /assign are there
//!  DOWN ────────────────────▶ UP: ─────────────────────────────────────▶ registered: starts what is assigned
//!   ▲                          own node below /live, then the earlier       │
//!   │                          session ends, then /workers/<worker>         │
//!   └───────────────────────────────────────────────────────────────────────┘ the session is lost: nothing is started
//!
//!  the leash runs out (3/4 of the session timeout after the last proof): everything is killed, and the process goes on
//!  as a new instance on a new session
//! ```
//!
//! One thread decides; whatever happens is a message in its mailbox. What is assigned is read again whenever it may have
//! changed; each assignment is judged by a pure function ([`judge`]). Results that cannot be written are kept until
//! there is a session again.
//!
//! Deliberately absent: a queue of its own. What waits, waits in ZooKeeper.

mod args;
mod clone;
mod command;
mod connection;
mod container;
mod gate;
mod identity;
mod jobs;
pub mod judge;
pub mod keeper;
mod leftovers;
mod metrics;
mod output;
mod processes;
mod serve;
mod spawn;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use zk_guard::{Cgroup, Duties, Line, Side};
use zk_http::{Listen, ListenError, Pulse, Ready, Unwell};
use zk_session::{Event, Following, Notify, Opening};
use znode_paths::{Address, Instance, WorkerName};

pub use args::{Args, OnLost};
pub use identity::{Identity, IdentityError};

use connection::Connection;
use gate::Gate;
use jobs::Jobs;
use keeper::Keep;
use leftovers::Held;
use metrics::Metrics;
use output::Outputs;
use processes::{Exited, Processes};

/// What a worker needs to know.
#[derive(Debug)]
pub struct Config {
    /// How to reach the ensemble.
    pub session: zk_session::Config,
    /// The name to register under.
    pub name: WorkerName,
    /// What `/workers/<name>` holds.
    pub address: Address,
    /// Where to serve the output of tasks.
    pub listen: Listen,
    /// How many tasks run at once.
    pub slots: u32,
    /// What tasks can require.
    pub labels: BTreeMap<String, String>,
    /// Where tasks run and their output is kept.
    pub work_dir: PathBuf,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How many bytes of the end of each stream are kept in the status.
    pub output_limit: u64,
    /// The user that tasks run as; nothing for the worker's own.
    pub run_as: Option<Identity>,
    /// What is demanded of tasks; nothing where they need not be signed.
    pub signed: Option<judge::Rules>,
    /// What to keep of what has ended.
    pub keep: Keep,
    /// What becomes of running tasks when the worker counts as lost.
    pub on_lost: OnLost,
}

/// Why a worker cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option cannot be used.
    #[error(transparent)]
    Args(#[from] zk_cli::ArgsError),
    /// There is no guard.
    #[error(transparent)]
    Guard(#[from] zk_guard::Error),
    /// The name of this host cannot be a worker's.
    #[error("the name of this host is no worker's name, give one with --name: {0}")]
    Name(znode_paths::NameError),
    /// The worker's name makes no address.
    #[error("the worker's name makes no address, give one with --address: {0}")]
    Address(znode_paths::NameError),
    /// The work dir cannot be used.
    #[error("cannot use the work dir {0}: {1}")]
    WorkDir(PathBuf, io::Error),
    /// Two workers in one work dir would take each other's tasks for leftovers.
    #[error("another zk-worker uses the work dir {0}; give each its own --work-dir")]
    WorkDirTaken(PathBuf),
    /// Nobody can be served there.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The worker that was asked is not well.
    #[error(transparent)]
    Unwell(#[from] Unwell),
    /// The system has no threads left.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Tasks cannot run as that user.
    #[error("cannot run tasks as {0:?}: {1}")]
    RunAs(String, IdentityError),
    /// Somebody else lives under that name.
    #[error("another zk-worker runs under the name {name}: {holder}; give each its own --name")]
    NameTaken {
        /// The name.
        name: WorkerName,
        /// What that process says of itself.
        holder: String,
    },
}

enum Message {
    Session(Event),
    Exited(Exited),
    /// The leash has run out.
    Expired,
    /// The guard asks whether the loop goes round.
    Ping,
    Stop,
}

/// How far the worker is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    /// Not at all.
    No,
    /// Takes nothing new, finishes what runs.
    Draining,
    /// Stops what runs.
    Stopping,
}

/// How long to wait for the server's word that the session is closed.
const CLOSE: Duration = Duration::from_secs(2);

/// Where more is to be run than there are slots, so long it is waited for what ends about the same time: then one request says all of
/// it, and another one asks what is to start instead.
const GATHER: Duration = Duration::from_millis(1);

/// How long a worker that has ended waits for those who are still reading output.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// The first pause after something failed for another reason than a lost session, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs until a stop signal, under a guard: as both processes.
///
/// # Errors
/// It cannot start, or another process lives under its name.
pub fn run(config: Config) -> Result<ExitCode, Error> {
    let duties = Duties { deadline: config.on_lost == OnLost::Kill, tasks: true };
    match zk_guard::split(&config.session, duties)? {
        Side::Guarded(code) => Ok(code),
        Side::Daemon(guard, cgroup) => serve(config, guard, cgroup).map(|()| ExitCode::SUCCESS),
    }
}

fn serve(config: Config, guard: Line, cgroup: Option<Cgroup>) -> Result<(), Error> {
    let unusable = |error| Error::WorkDir(config.work_dir.clone(), error);
    let taken = leftovers::take(&config.work_dir).map_err(unusable)?;
    let mut held = taken.ok_or_else(|| Error::WorkDirTaken(config.work_dir.clone()))?;
    held.kill_leftovers(cgroup.as_ref());
    let listener = config.listen.bind()?;
    let instance = Instance::from_random(zk_cli::random());
    let mut instances = held.earlier();
    instances.push(instance);
    held.note(instance, cgroup.as_ref()).map_err(unusable)?;
    log::info!(
        "started worker={} address={} listen={} slots={} instance={instance} zk={} work_dir={} cgroup={}",
        config.name,
        config.address,
        config.listen,
        config.slots,
        config.session.connect,
        config.work_dir.display(),
        cgroup.as_ref().map_or(Path::new("none"), Cgroup::path).display(),
    );
    zk_cli::warn_without_identity(&config.session);
    let (to_keeper, ended) = mpsc::channel();
    let (outputs, pulse) = (Arc::new(Outputs::new(&config.work_dir, to_keeper)), Pulse::default());
    keeper::start(&outputs, ended, config.keep).map_err(Error::Thread)?;
    let keys = config.signed.as_ref().map(|rules| rules.keys.clone());
    if keys.is_none() && config.listen.is_public() {
        log::warn!("serving output to whoever can reach {}: only a --task-key can prevent that", config.listen);
    }
    let gate = Gate::new(keys);
    let metrics = Arc::new(Metrics::new(config.slots));
    let serve = |listener| serve::serve(listener, outputs.clone(), gate, pulse.clone(), metrics.clone());
    let server = listener.map(serve).transpose().map_err(Error::Thread)?;
    if config.run_as.is_none() && rustix::process::geteuid().is_root() {
        log::warn!("tasks run as root: whoever can submit is root here (--run-as gives them another user)");
    }
    let (tx, rx) = mpsc::channel();
    let ping = tx.clone();
    guard.on_ping(move || _ = ping.send(Message::Ping)).map_err(Error::Thread)?;
    // A mailbox that nobody reads any more belongs to a worker that has ended.
    let stop = tx.clone();
    zk_cli::on_stop_signal(move || _ = stop.send(Message::Stop))?;
    let (exited, expired) = (tx.clone(), tx.clone());
    let processes = Processes::new(
        config.on_lost == OnLost::Kill,
        cgroup,
        move |exit| _ = exited.send(Message::Exited(exit)),
        move || _ = expired.send(Message::Expired),
    )
    .map_err(Error::Thread)?;
    let notify: Notify = Arc::new(move |event| _ = tx.send(Message::Session(event)));
    let mut worker = Worker {
        session: Arc::new(zk_session::Config { witness: Some(Arc::new(guard.clone())), ..config.session.clone() }),
        guard,
        life: Life {
            config,
            outputs,
            metrics,
            instance,
            instances,
            leaving: Leaving::No,
            following: Following::default(),
        },
        held,
        jobs: Jobs::new(processes),
        link: Link::Down { from: Instant::now(), opening: None },
        sessions: 0,
        notify,
        pause: FIRST_PAUSE,
        pulse,
    };
    let ran = worker.serve(&rx);
    worker.jobs.processes.kill_all();
    worker.close();
    if let (Some(server), Ok(())) = (server, &ran) {
        // Nothing runs any more. Whoever has not yet read to the end of an output may do so.
        worker.guard.released();
        drop(worker.jobs);
        server.finish(LAST_OUTPUT);
    }
    log::info!("stopped");
    ran
}

/// Who this process is.
struct Life {
    config: Config,
    outputs: Arc<Outputs>,
    metrics: Arc<Metrics>,
    instance: Instance,
    /// All that this process has been, the present one included, and those who held its work dir before, who are dead.
    instances: Vec<Instance>,
    leaving: Leaving,
    following: Following,
}

enum Link {
    /// No session. The search starts when the pause is over.
    Down { from: Instant, opening: Option<Opening> },
    /// A session.
    Up(Box<Connection>),
    /// The session is over; the news is on its way into the mailbox.
    Losing { number: u32 },
}

#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    Exit,
}

struct Worker {
    life: Life,
    held: Held,
    session: Arc<zk_session::Config>,
    guard: Line,
    jobs: Jobs,
    link: Link,
    /// How many sessions there have been.
    sessions: u32,
    notify: Notify,
    pause: Duration,
    pulse: Pulse,
}

impl Worker {
    fn serve(&mut self, mailbox: &mpsc::Receiver<Message>) -> Result<(), Error> {
        while self.go_on() == Next::Wait {
            self.say_how_it_is();
            let message = match self.wake() {
                None => mailbox.recv().ok(),
                Some(at) => mailbox.recv_timeout(at.saturating_duration_since(Instant::now())).ok(),
            };
            // All that is there is taken at once: a hundred hints are one reading.
            let until = self.gathers();
            let mut next = message;
            while let Some(message) = next {
                self.on_message(message)?;
                next = match until {
                    None => mailbox.try_recv().ok(),
                    Some(until) => mailbox.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
                };
            }
        }
        Ok(())
    }

    /// Until when whatever comes is only taken in.
    fn gathers(&self) -> Option<Instant> {
        match &self.link {
            Link::Up(connection) if connection.has_more() => Some(Instant::now() + GATHER),
            _ => None,
        }
    }

    /// For whoever asks over HTTP.
    fn say_how_it_is(&self) {
        let ready: Ready = match &self.link {
            Link::Up(connection) => connection.ready(),
            Link::Down { .. } | Link::Losing { .. } => Err("there is no session with ZooKeeper"),
        };
        self.pulse.beat(ready);
        let metrics = &self.life.metrics;
        metrics.session_up.set(matches!(self.link, Link::Up(_)).into());
        metrics.registered.set(ready.is_ok().into());
        metrics.running.set(i64::try_from(self.jobs.running()).unwrap_or(i64::MAX));
    }

    fn wake(&self) -> Option<Instant> {
        let link = match &self.link {
            Link::Down { from, opening: None } => Some(*from),
            Link::Up(connection) => connection.wake(),
            _ => None,
        };
        [link, self.jobs.wake()].into_iter().flatten().min()
    }

    fn on_message(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Expired => {} // looked at before anything else, in go_on()
            Message::Ping => self.guard.goes(),
            Message::Exited(exited) => {
                if self.jobs.on_exit(exited, &self.life)
                    && let Link::Up(connection) = &mut self.link
                {
                    connection.look_again();
                }
            }
            Message::Stop => {
                self.life.leaving = match self.life.leaving {
                    Leaving::No => Leaving::Draining,
                    _ => Leaving::Stopping,
                };
                log::info!(
                    "asked to stop, {}",
                    match self.life.leaving {
                        Leaving::Stopping => "stopping what runs",
                        _ => "finishing what runs",
                    }
                );
                if let Link::Up(connection) = &mut self.link {
                    connection.look_again();
                }
            }
            Message::Session(Event::Opened(session)) => match self.link {
                Link::Down { .. } => self.link = Link::Up(Box::new(Connection::new(session))),
                _ => drop(session),
            },
            Message::Session(Event::Lost { session, reason }) => {
                let ours = match &self.link {
                    Link::Up(connection) => connection.number() == session,
                    Link::Losing { number } => *number == session,
                    Link::Down { .. } => false,
                };
                if ours {
                    log::warn!("session lost, starting nothing until there is another: {reason}");
                    self.life.metrics.session_losses.inc();
                    self.link = Link::Down { from: Instant::now(), opening: None };
                }
            }
            Message::Session(Event::Watch { path, change }) => {
                if let Link::Up(connection) = &mut self.link {
                    connection.hint(&path, change, &self.life, &self.jobs)?;
                }
            }
        }
        Ok(())
    }

    /// Does whatever can be done without another message.
    fn go_on(&mut self) -> Next {
        if self.jobs.processes.expired() && !self.start_over() {
            return Next::Wait;
        }
        if self.life.leaving == Leaving::Stopping {
            self.jobs.stop_all(&self.life);
        }
        self.jobs.keep_time(&self.life);
        if self.done() {
            return Next::Exit;
        }
        match &mut self.link {
            Link::Down { from, opening } if opening.is_none() && *from <= Instant::now() => {
                self.sessions += 1;
                *opening = Some(zk_session::open_in_background(&self.session, self.sessions, &self.notify));
            }
            Link::Up(connection) => match connection.go_on(&mut self.life, &mut self.jobs) {
                Ok(connection::Next::Wait) => self.pause = FIRST_PAUSE,
                Ok(connection::Next::Left) => return Next::Exit,
                Err(error) => self.give_up(&error),
            },
            _ => {}
        }
        if self.done() { Next::Exit } else { Next::Wait }
    }

    /// Asked to stop, with nothing that a session would be needed for.
    fn done(&self) -> bool {
        let up = matches!(self.link, Link::Up(_));
        match self.life.leaving {
            Leaving::No => false,
            Leaving::Draining => !up && self.jobs.is_empty(),
            Leaving::Stopping => self.jobs.nothing_runs() && (!up || self.jobs.is_empty()),
        }
    }

    /// The leash has run out: when everything is dead, goes on as a new instance. Returns whether that is so.
    fn start_over(&mut self) -> bool {
        if let Link::Up(connection) = &self.link {
            // Its registration goes with it. It is over on our side in any case.
            self.life.metrics.session_losses.inc();
            connection.close(Duration::ZERO);
            self.link = Link::Down { from: Instant::now(), opening: None };
        }
        let kill = self.life.config.on_lost == OnLost::Kill;
        if kill {
            self.jobs.forget_running(&self.life);
            if !self.jobs.processes.all_dead() {
                return false;
            }
        }
        self.guard.released();
        let instance = Instance::from_random(zk_cli::random());
        log::warn!(
            "could not prove for 3/4 of the session timeout to be registered: {}, going on as another instance \
             instance={instance}",
            if kill { "killed what ran" } else { "what runs may run twice" },
        );
        self.life.instance = instance;
        self.life.instances.push(instance);
        if let Err(error) = self.held.note(instance, None) {
            log::warn!("cannot write to the work dir, a restart may have to wait for the session timeout: {error}");
        }
        self.jobs.processes.renew();
        true
    }

    /// Something went wrong. A lost session is followed by the next; anything else is tried again after a pause.
    fn give_up(&mut self, error: &zk_session::Error) {
        let Link::Up(connection) = &self.link else { return };
        if matches!(error, zk_session::Error::Lost(_)) {
            self.link = Link::Losing { number: connection.number() };
            return;
        }
        log::error!("cannot go on, will try again in {} ms: {error}", self.pause.as_millis());
        connection.close(CLOSE);
        self.link = Link::Down { from: Instant::now() + self.pause, opening: None };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn close(&mut self) {
        if let Link::Up(connection) = &self.link {
            connection.close(CLOSE);
        }
    }
}
