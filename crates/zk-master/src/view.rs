//! What a primary has read of the tree: plain data, the input of [`mod@crate::plan`].

use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{Assignment, AttemptKind, Instance, Outcome, TaskMeta, TaskName, Worker, WorkerName};

use crate::tasks::Tasks;

/// The tree as the primary has read it in its reign, and the time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
    pub tasks: Tasks,
    /// What else is below `/tasks` and is not read yet: only right after a take-over.
    pub unread: BTreeSet<TaskName>,
    /// Assignments that disappeared by another hand, and whose attempt is not recorded: its processes may still be about to
    /// end. Whoever ran them records it when they are dead.
    pub vanished: BTreeMap<TaskName, Vanished>,
    /// Since when a worker is missing that was registered before, or that has something assigned.
    pub missing_since_ms: BTreeMap<WorkerName, i64>,
}

/// `/assign/<worker>` and what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Desk {
    /// An operator took the worker out of service.
    pub drain: bool,
    /// It has children that are no assignments, so it cannot be deleted.
    pub strangers: bool,
    /// No assignment can be created there: it is an ephemeral, or its ACL is for somebody else.
    pub closed: bool,
    /// What is assigned to it.
    pub tasks: BTreeMap<TaskName, Assignment>,
    /// Since when, in milliseconds by the servers' clock.
    pub since_ms: BTreeMap<TaskName, i64>,
}

/// An assignment that is gone though nobody here deleted it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vanished {
    /// Who had it.
    pub worker: WorkerName,
    /// What it said.
    pub assignment: Assignment,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Known {
    /// Tells it from another one at the same path.
    pub czxid: i64,
    /// The id of its submit.
    pub submit: Option<String>,
    /// How far it is.
    pub stage: Stage,
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Open {
    /// What was asked for beside the command; nothing for a task made by hand; or why it cannot be decoded.
    pub meta: Result<Option<TaskMeta>, String>,
    /// Somebody wants it cancelled.
    pub cancel: bool,
    /// The attempts that ended without a status.
    pub attempts: BTreeMap<u32, Recorded>,
    /// When it was submitted, in milliseconds by the servers' clock.
    pub submitted_ms: i64,
}

/// The record of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recorded {
    /// How it ended; nothing when the record cannot be understood.
    pub kind: Option<AttemptKind>,
    /// When it was recorded, in milliseconds by the servers' clock.
    pub at_ms: i64,
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

/// The fence of a reign that begins with a `/master` of this czxid, when `/epoch` holds that number.
///
/// Where `/epoch` is above the czxid, the tree was moved to an ensemble that counts anew: the fence then is one more than
/// what is there. It still grows from reign to reign, and no two reigns share one.
pub fn fence(epoch: Option<i64>, czxid: i64) -> i64 {
    match epoch {
        Some(epoch) if epoch >= czxid => epoch.saturating_add(1),
        _ => czxid,
    }
}

impl View {
    /// `/assign/<worker>` was read, and is like this, or is gone. What is not there any more vanished by another hand.
    pub fn replace_desk(&mut self, worker: &WorkerName, desk: Option<Desk>) {
        let there = |task: &TaskName| desk.as_ref().is_some_and(|desk| desk.tasks.contains_key(task));
        let before = self.assign.get(worker).into_iter().flat_map(|before| before.tasks.keys());
        let gone: Vec<TaskName> = before.filter(|task| !there(task)).copied().collect();
        gone.into_iter().for_each(|task| self.replace_assignment(worker, task, None));
        match desk {
            Some(desk) => self.assign.insert(worker.clone(), desk),
            None => self.assign.remove(worker),
        };
    }

    /// An assignment was read, and says this, or is gone: by another hand, unless the worker returned it.
    pub fn replace_assignment(&mut self, worker: &WorkerName, task: TaskName, assignment: Option<Assignment>) {
        let Some(desk) = self.assign.get_mut(worker) else { return };
        if let Some(assignment) = assignment {
            desk.tasks.insert(task, assignment);
            desk.since_ms.entry(task).or_insert(self.now_ms);
            return;
        }
        desk.since_ms.remove(&task);
        let before = desk.tasks.remove(&task);
        if let Some(assignment) = before.filter(|before| before.meta.as_ref().is_none_or(|meta| !meta.returned)) {
            self.vanished.insert(task, Vanished { worker: worker.clone(), assignment });
        }
    }

    /// The primary deleted an assignment itself: it did not vanish.
    pub fn unassigned(&mut self, worker: &WorkerName, task: TaskName) {
        if let Some(desk) = self.assign.get_mut(worker) {
            desk.tasks.remove(&task);
            desk.since_ms.remove(&task);
        }
    }

    /// An assignment that vanished does not matter any more once its attempt is recorded, or the task is assigned again,
    /// has a status or is gone.
    pub fn forget_vanished(&mut self) {
        let View { vanished, tasks, assign, .. } = self;
        vanished.retain(|task, Vanished { assignment, .. }| {
            let Some(open) = tasks.get(task).and_then(Known::open) else { return false };
            let recorded = assignment.meta.as_ref().is_some_and(|meta| open.attempts.contains_key(&meta.attempt));
            let assigned = assign.values().any(|desk| desk.tasks.contains_key(task));
            !recorded && !assigned
        });
    }

    /// Whether somebody who has, or had, something assigned seems to be gone: nobody is lost before that was read again.
    pub fn misses_somebody(&self) -> bool {
        let living = self.living();
        let assigned = self.assign.iter().flat_map(|(name, desk)| desk.tasks.values().map(move |a| (name, a)));
        let mut all = assigned.chain(self.vanished.values().map(|vanished| (&vanished.worker, &vanished.assignment)));
        all.any(|(name, assignment)| match assignment.instance() {
            Some(instance) => !living.contains(&instance),
            None => !self.workers.contains_key(name) && !self.missing_since_ms.contains_key(name),
        })
    }

    /// After a census: who is missing since then is remembered and returned, who is back is forgotten.
    pub fn note_missing(&mut self) -> Vec<WorkerName> {
        let View { missing_since_ms: missing, workers, assign, vanished, census_ms, .. } = self;
        missing.retain(|worker, _| !workers.contains_key(worker));
        let mut new = Vec::new();
        for worker in assign.keys().chain(vanished.values().map(|vanished| &vanished.worker)) {
            if !workers.contains_key(worker) && !missing.contains_key(worker) {
                missing.insert(worker.clone(), *census_ms);
                new.push(worker.clone());
            }
        }
        missing.retain(|worker, _| assign.contains_key(worker) || vanished.values().any(|v| v.worker == *worker));
        new
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_grows_from_reign_to_reign_also_where_zxids_begin_anew() {
        assert_eq!(fence(None, 7), 7);
        assert_eq!(fence(Some(5), 7), 7);
        assert_eq!(fence(Some(7), 7), 8);
        assert_eq!(fence(Some(900), 7), 901);
    }

    #[test]
    fn what_another_hand_deletes_vanishes_and_what_the_primary_deletes_does_not() {
        let (name, task) = ("w".parse::<WorkerName>().unwrap(), TaskName::from_number(0));
        let desk = Desk { tasks: BTreeMap::from([(task, Assignment::default())]), ..Desk::default() };
        for (own, vanished) in [(true, 0), (false, 1)] {
            let mut view = View::default();
            view.replace_desk(&name, Some(desk.clone()));
            if own {
                view.unassigned(&name, task);
            }
            view.replace_desk(&name, Some(Desk::default()));
            assert_eq!(view.vanished.len(), vanished);
        }
    }
}
