//! What the screen shows, kept true by watches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::Instant;

use zk_master::state::Crew;
use zk_session::{Change, Error as Refusal, Event, Session, in_parallel};
use znode_paths::paths::{self, Place};
use znode_paths::{Outcome, TaskName};

use super::{News, pause_after};
use crate::Error;
use crate::connection::{Connection, Message};
use crate::look;
use crate::report::{self, ClusterStatus, TaskLine, WorkerLine};

/// The cluster at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) status: ClusterStatus,
    pub(crate) workers: Vec<WorkerLine>,
    /// The newest first.
    pub(crate) failures: Vec<TaskLine>,
}

/// So many failures are kept for the screen.
const FAILURES: usize = 100;

/// What has been read, and what of it is stale.
struct Known {
    masters: look::Masters,
    crew: Crew,
    /// How each task ended, if it did.
    tasks: BTreeMap<TaskName, (i64, Option<Outcome>)>,
    /// By their end.
    failures: BTreeMap<(u64, TaskName), TaskLine>,
    stale: Stale,
}

#[derive(Default)]
struct Stale {
    masters: bool,
    crew: bool,
    names: bool,
    tasks: BTreeSet<TaskName>,
}

/// Tells what there is, until nobody listens.
pub(super) fn watch(mut connection: Connection, tell: &Sender<News>) {
    loop {
        let until = Instant::now() + connection.patience();
        let told = match connection.session(Some(until)) {
            Ok(session) => follow(&mut connection, &session, tell),
            Err(error) => Err(error),
        };
        match told {
            // Nobody listens any more.
            Ok(()) => return,
            Err(error) => {
                if tell.send(News::Blind(zk_cli::chain(&error))).is_err() {
                    return;
                }
                // What is not allowed now may be allowed later; nothing is asked without a pause.
                let until = pause_after(Instant::now());
                while connection.receive(Some(until)).is_some() {}
            }
        }
    }
}

/// Follows the cluster on one session. Whatever was known from an earlier one does not count: its watches are gone.
fn follow(connection: &mut Connection, session: &Session, tell: &Sender<News>) -> Result<(), Error> {
    let mut known = Known::new();
    loop {
        let look = Instant::now();
        known.refresh(session).map_err(Error::Request)?;
        if tell.send(News::Seen(Box::new(known.cluster()))).is_err() {
            return Ok(());
        }
        let next = pause_after(look);
        // Until something has changed, and at least until the next look may be.
        while !known.stale.any() || Instant::now() < next {
            match connection.receive(known.stale.any().then_some(next)) {
                Some(Message::Session(Event::Watch { path, change })) => known.hint(&path, change),
                Some(Message::Session(Event::Lost { session: number, reason })) if number == session.number() => {
                    return Err(Error::Request(Refusal::Lost(reason)));
                }
                _ => {}
            }
        }
    }
}

impl Stale {
    fn any(&self) -> bool {
        self.masters || self.crew || self.names || !self.tasks.is_empty()
    }
}

impl Known {
    fn new() -> Self {
        Known {
            masters: look::Masters { primary: None, ours: false, standby: Vec::new() },
            crew: Crew::default(),
            tasks: BTreeMap::new(),
            failures: BTreeMap::new(),
            stale: Stale { masters: true, crew: true, names: true, tasks: BTreeSet::new() },
        }
    }

    /// Something changed at a path: a hint to read it again.
    fn hint(&mut self, path: &str, change: Change) {
        match Place::of(path) {
            Some(Place::Master | Place::Live) => self.stale.masters = true,
            Some(Place::Workers | Place::Worker(_) | Place::Assign | Place::Assignments(_) | Place::Assignment(..)) => {
                self.stale.crew = true
            }
            Some(Place::Tasks) => self.stale.names = true,
            Some(Place::Task(task)) if change == Change::Deleted => {
                self.forget(task);
                self.stale.names = true;
            }
            Some(Place::Task(task) | Place::TaskChild(task, _)) => _ = self.stale.tasks.insert(task),
            Some(Place::Epoch | Place::Requests | Place::LiveNode(_)) | None => {}
        }
    }

    fn forget(&mut self, task: TaskName) {
        self.tasks.remove(&task);
        self.failures.retain(|(_, name), _| *name != task);
    }

    /// Reads what is stale, with the watches set before: what changes in between fires them. Assignments are read before
    /// the tasks, so that a task that ends meanwhile is seen with its status.
    fn refresh(&mut self, session: &Session) -> Result<(), Refusal> {
        if std::mem::take(&mut self.stale.masters) {
            session.stat(paths::MASTER, true)?;
            session.stat(paths::LIVE, true)?;
            session.children(paths::LIVE, true)?;
            self.masters = look::masters(session)?;
        }
        if std::mem::take(&mut self.stale.crew) {
            watch_crew(session)?;
            self.crew = look::crew(session)?;
        }
        if std::mem::take(&mut self.stale.names) {
            session.stat(paths::TASKS, true)?;
            let names = session.children(paths::TASKS, true)?.unwrap_or_default();
            let there: BTreeSet<TaskName> = names.iter().filter_map(|name| name.parse().ok()).collect();
            let gone: Vec<TaskName> = self.tasks.keys().filter(|task| !there.contains(task)).copied().collect();
            gone.into_iter().for_each(|task| self.forget(task));
            self.stale.tasks.extend(there.into_iter().filter(|task| !self.tasks.contains_key(task)));
        }
        let stale: Vec<TaskName> = std::mem::take(&mut self.stale.tasks).into_iter().collect();
        let read = in_parallel(&stale, |task| read_task(session, *task));
        for (task, read) in stale.into_iter().zip(read) {
            self.forget(task);
            let Some(seen) = read? else { continue };
            let outcome = seen.status.as_ref().map(|status| status.outcome.clone());
            if matches!(outcome, Some(Outcome::Failed | Outcome::Timeout | Outcome::Lost)) {
                let line = TaskLine::new(&seen, &self.crew);
                let end = line.end_ms.unwrap_or_else(|| u64::try_from(line.submitted_ms).unwrap_or(0));
                self.failures.insert((end, task), line);
                if self.failures.len() > FAILURES {
                    self.failures.pop_first();
                }
            }
            self.tasks.insert(task, (seen.czxid, outcome));
        }
        Ok(())
    }

    fn cluster(&self) -> Cluster {
        let outcomes: Vec<_> =
            self.tasks.iter().map(|(name, (czxid, outcome))| (*name, *czxid, outcome.clone())).collect();
        Cluster {
            status: report::cluster(self.masters.clone(), &self.crew, &outcomes),
            workers: report::workers(&self.crew),
            failures: self.failures.values().rev().cloned().collect(),
        }
    }
}

fn watch_crew(session: &Session) -> Result<(), Refusal> {
    for parent in [paths::ASSIGN, paths::WORKERS] {
        session.stat(parent, true)?;
        let names = session.children(parent, true)?.unwrap_or_default();
        let watched = in_parallel(&names, |name| {
            let path = format!("{parent}/{name}");
            session.stat(&path, true)?;
            if parent == paths::ASSIGN {
                session.children(&path, true)?;
            }
            Ok(())
        });
        watched.into_iter().collect::<Result<(), Refusal>>()?;
    }
    Ok(())
}

/// Reads a task, without its output; as long as it has no status, a watch tells of that.
fn read_task(session: &Session, name: TaskName) -> Result<Option<look::TaskSeen>, Refusal> {
    let read = |watch| -> Result<Option<look::TaskSeen>, Refusal> {
        if watch {
            session.children(&paths::task(&name), true)?;
        }
        let mut seen = look::task(session, name)?;
        if let Some(meta) = seen.as_mut().and_then(|seen| seen.status.as_mut()?.meta.as_mut()) {
            (meta.stdout, meta.stderr) = (None, None);
        }
        Ok(seen)
    };
    match read(false) {
        Ok(Some(seen)) if seen.status.is_none() => read(true),
        // Nobody is kept from seeing the rest by what is not for them.
        Err(Refusal::NotAllowed(_)) => Ok(None),
        seen => seen,
    }
}
