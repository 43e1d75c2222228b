//! What is promised (PROTOCOL section 4), and whether it was kept: seen from outside, by somebody who sees everything.

use std::collections::BTreeSet;
use std::fmt;

use znode_paths::{Outcome, TaskName};

use crate::process::{Brain, Life};
use crate::tree::{Data, Node, Parent, Path, Tree};
use crate::world::World;
use crate::{Hands, Setting};

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// An accepted task reaches exactly one status.
    G1,
    /// Without a fault it runs once; with `--no-requeue` it starts once at most; every start but the last is recorded.
    G2,
    /// No two attempts of a task run at the same time.
    G3,
    /// No assignment of a deposed master is run.
    G4,
    /// One submit is one task.
    G5,
    /// The tree stays small: nothing is left over.
    Leftovers,
    /// When the faults are over, everything comes to rest.
    Rest,
}

/// A promise that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// A start of a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) task: TaskName,
    pub(crate) submit: u8,
    pub(crate) process: usize,
    /// Of the assignment.
    pub(crate) czxid: i64,
    /// It is over, and whether by itself.
    ended: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    pub(crate) runs: Vec<Run>,
    /// When `/epoch` was raised, and to what.
    pub(crate) raised: Vec<(i64, i64)>,
    pub(crate) violation: Option<Violation>,
}

impl Ledger {
    /// The runs that are not over.
    pub(crate) fn running(&self) -> impl Iterator<Item = usize> {
        self.runs.iter().enumerate().filter(|(_, run)| run.ended.is_none()).map(|(index, _)| index)
    }

    /// A command ends by itself.
    pub(crate) fn end(&mut self, run: usize) -> Run {
        self.runs[run].ended = Some(true);
        self.runs[run].clone()
    }

    /// All that a process runs is killed.
    pub(crate) fn kill(&mut self, process: usize) {
        for run in self.runs.iter_mut().filter(|run| run.process == process) {
            run.ended.get_or_insert(false);
        }
    }

    fn break_promise(&mut self, promise: Promise, what: String) {
        self.violation.get_or_insert(Violation { promise, what });
    }

    /// A worker starts a command, for an assignment with this czxid and the fence in it.
    pub(crate) fn start(
        &mut self,
        setting: &Setting,
        tree: &Tree,
        process: usize,
        task: TaskName,
        czxid: i64,
        fence: Option<i64>,
    ) {
        // A task that was deleted in between is a duplicate.
        let Some(submit) = self.submit_of(tree, task) else { return };
        let before: Vec<Run> = self.runs.iter().filter(|run| run.submit == submit).cloned().collect();
        self.runs.push(Run { task, submit, process, czxid, ended: None });
        let order = &setting.submits[usize::from(submit)];
        let records = tree.list(Parent::Task(task), tree.zxid).into_iter().flatten();
        let records = records.filter(|(path, _)| matches!(path, Path::Attempt(..))).count();
        let by_hand = setting.hands >= Hands::Assignments;
        if before.iter().any(|run| run.ended.is_none()) && !by_hand {
            self.break_promise(Promise::G3, format!("{task} is started while an attempt of it runs"));
        }
        if before.iter().any(|run| run.task != task) && !by_hand {
            self.break_promise(Promise::G5, format!("{task} and another task of its submit are run"));
        }
        if !before.is_empty() && order.no_requeue && !by_hand {
            self.break_promise(Promise::G2, format!("{task}, which may start once only, starts again"));
        }
        if before.len() > records && !by_hand {
            let starts = before.len();
            self.break_promise(Promise::G2, format!("{task} starts after {starts} starts and {records} records"));
        }
        let deposed = |fence| self.raised.iter().any(|(zxid, to)| *to > fence && *zxid < czxid);
        if fence.is_some_and(deposed) {
            self.break_promise(Promise::G4, format!("{task} is started for an assignment of a deposed master"));
        }
    }

    fn submit_of(&self, tree: &Tree, task: TaskName) -> Option<u8> {
        match tree.now(Path::Task(task)).map(|node| &node.data) {
            Some(Data::Task(submit) | Data::Removed(submit)) => Some(*submit),
            _ => self.runs.iter().find(|run| run.task == task).map(|run| run.submit),
        }
    }
}

/// What must be true when everything has come to rest.
pub(crate) fn at_rest(world: &World, setting: &Setting) -> Option<Violation> {
    let broken = |promise, what| Some(Violation { promise, what });
    let tree = &world.tree;
    let status = |task| tree.now(Path::Status(task)).map(|node| &node.data);
    let mut seen = BTreeSet::new();
    for (path, node) in tree.all() {
        if let Data::Removed(_) = node.data {
            return broken(Promise::Leftovers, format!("{path} is half removed"));
        }
        let (Path::Task(task), Data::Task(submit)) = (path, &node.data) else { continue };
        if !seen.insert(*submit) {
            return broken(Promise::G5, format!("{task} is a second task of its submit"));
        }
        let Some(Data::Status(outcome)) = status(task) else {
            return broken(Promise::G1, format!("{task} has no status"));
        };
        let order = &setting.submits[usize::from(*submit)];
        let runs: Vec<&Run> = world.ledger.runs.iter().filter(|run| run.task == task).collect();
        let ended = runs.iter().any(|run| run.ended == Some(true));
        let word = if order.fails { Outcome::Failed } else { Outcome::Done };
        let told = *outcome == Outcome::Lost || *outcome == Outcome::Cancelled || ended && *outcome == word;
        if !told {
            return broken(Promise::G1, format!("{task} is {} and was run {} times", outcome.word(), runs.len()));
        }
        let tries = if order.fails { 1 + order.retries as usize } else { 1 };
        if setting.faults == 0 && runs.len() != tries {
            return broken(Promise::G2, format!("{task} was started {} times without any fault", runs.len()));
        }
    }
    for process in &world.processes {
        let Brain::Client(client) = &process.brain else { continue };
        if let Some(task) = client.reported
            && status(task).is_none()
        {
            return broken(Promise::G1, format!("{task}, which was accepted, is gone"));
        }
        if process.life != Life::Dead && client.reported.is_none() {
            return broken(Promise::Rest, format!("{} has no answer", client.submit));
        }
    }
    let left = |(path, node): (Path, &Node)| match path {
        Path::Assignment(..) => true,
        _ => node.owner.is_some_and(|owner| world.processes[world.sessions[owner].of].session != Some(owner)),
    };
    if let Some((path, _)) = tree.all().find(|(path, node)| left((*path, node))) {
        return broken(Promise::Leftovers, format!("{path} is left over"));
    }
    if let Some(run) = world.ledger.running().next() {
        return broken(Promise::Rest, format!("{} still runs", world.ledger.runs[run].task));
    }
    None
}
