//! What a primary has read of the tree: plain data, the input of [`mod@crate::plan`].

use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{Assignment, AttemptKind, Instance, Outcome, TaskMeta, TaskName, Worker, WorkerName};

/// The tree as the primary has read it in its reign, and the time.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The czxid of its own `/master`, or more: what its assignments carry and `/epoch` holds.
    pub fence: i64,
    /// The servers' clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// Who is registered.
    pub workers: BTreeMap<WorkerName, Worker>,
    /// The instances that have a node below `/live`.
    pub live: BTreeSet<Instance>,
    /// When `workers` and `live` were read: first the one, then the other, after a write on the primary's own session.
    pub census_ms: i64,
    /// Who has a node below `/assign`, and what is there.
    pub assign: BTreeMap<WorkerName, Desk>,
    /// What was submitted.
    pub tasks: BTreeMap<TaskName, Known>,
    /// Assignments that disappeared by another hand, and whose attempt is not recorded: its processes may still be about to
    /// end. Whoever ran them records it when they are dead.
    pub vanished: BTreeMap<TaskName, Vanished>,
    /// Since when a worker is missing that was registered before, or that has something assigned.
    pub missing_since_ms: BTreeMap<WorkerName, i64>,
}

/// `/assign/<worker>` and what is below it.
#[derive(Debug, Clone, Default)]
pub struct Desk {
    /// An operator took the worker out of service.
    pub drain: bool,
    /// It has children that are no assignments, so it cannot be deleted.
    pub strangers: bool,
    /// No assignment can be created there: it is an ephemeral, or its ACL is for somebody else.
    pub closed: bool,
    /// What is assigned to it.
    pub tasks: BTreeMap<TaskName, Assignment>,
}

/// An assignment that is gone though nobody here deleted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vanished {
    /// Who had it.
    pub worker: WorkerName,
    /// What it said.
    pub assignment: Assignment,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Known {
    /// Tells it from another one at the same path.
    pub czxid: i64,
    /// The id of its submit.
    pub submit: Option<String>,
    /// How far it is.
    pub stage: Stage,
}

/// How far a task is.
#[derive(Debug, Clone)]
pub enum Stage {
    /// It has no status.
    Open(Box<Open>),
    /// It has one.
    Ended {
        /// Which.
        outcome: Outcome,
        /// Since when, in milliseconds by the servers' clock.
        at_ms: i64,
    },
}

/// A task without a status.
#[derive(Debug, Clone)]
pub struct Open {
    /// What was asked for beside the command; nothing for a task made by hand; or why it cannot be decoded.
    pub meta: Result<Option<TaskMeta>, String>,
    /// Somebody wants it cancelled.
    pub cancel: bool,
    /// The attempts that ended without a status.
    pub attempts: BTreeMap<u32, Option<AttemptKind>>,
}

impl Known {
    /// The task, if it has no status.
    pub fn open(&self) -> Option<&Open> {
        match &self.stage {
            Stage::Open(open) => Some(open),
            Stage::Ended { .. } => None,
        }
    }
}

/// Two reads so far apart must miss a worker registered by hand before it counts as lost (PROTOCOL section 3, Workers).
pub const SETTLING_MS: i64 = 1000;

impl View {
    /// The processes that live: their registration or one of their sessions is there.
    pub fn living(&self) -> BTreeSet<Instance> {
        self.workers.values().filter_map(Worker::instance).chain(self.live.iter().copied()).collect()
    }

    /// Whether whoever has this assignment is lost (PROTOCOL section 3, Workers).
    pub fn holder_lost(&self, worker: &WorkerName, assignment: &Assignment, living: &BTreeSet<Instance>) -> bool {
        if let Some(instance) = assignment.instance() {
            return !living.contains(&instance);
        }
        match self.workers.get(worker) {
            // Whoever is registered by hand runs what carries no instance, and so does a daemon with what was made by
            // hand. But what a primary meant for a worker registered by hand, a daemon of the same name does not run.
            Some(registered) => registered.instance().is_some() && assignment.meta.is_some(),
            None => {
                let since = self.missing_since_ms.get(worker);
                since.is_some_and(|since| self.census_ms - since >= SETTLING_MS)
            }
        }
    }
}
