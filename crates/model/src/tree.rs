//! The ensemble's side: the tree with its history, so that a session can read what was true a while ago.

use std::collections::BTreeMap;
use std::fmt;

use znode_paths::{Assignment, AttemptKind, Instance, LiveName, Outcome, TaskName, WorkerName, paths};

/// A session, by its place in the list of all.
pub(crate) type SessionId = usize;

/// A znode. The persistent parents (`/workers`, `/tasks`, `/assign`, `/live`) are always there.
///
/// The order of the variants keeps the children of one parent next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Path {
    Master,
    Epoch,
    Worker(u8),
    Live(Instance, u32),
    Desk(u8),
    Assignment(u8, TaskName),
    Task(TaskName),
    Cancel(TaskName),
    Status(TaskName),
    Attempt(TaskName, u32),
}

/// What has children, or is watched as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Parent {
    Workers,
    Live,
    Assign,
    Desk(u8),
    Tasks,
    Task(TaskName),
}

/// The data of a znode, as its reader decodes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Data {
    Empty,
    /// `/workers/<worker>` of one of our daemons.
    Registration(Instance),
    Epoch(i64),
    Assignment(Assignment),
    /// Which submit it is of.
    Task(u8),
    /// Likewise; it is being removed.
    Removed(u8),
    Status(Outcome),
    Attempt(Option<AttemptKind>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) data: Data,
    pub(crate) owner: Option<SessionId>,
    pub(crate) czxid: i64,
    pub(crate) version: i32,
}

/// Why a request is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    NodeExists,
    NoNode,
    NotEmpty,
    BadVersion,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    /// Of the latest transaction.
    pub(crate) zxid: i64,
    /// What each znode was from which transaction on.
    nodes: BTreeMap<Path, Vec<(i64, Option<Node>)>>,
    next_task: u32,
}

impl Tree {
    /// A znode as it was after a transaction.
    pub(crate) fn at(&self, path: Path, zxid: i64) -> Option<&Node> {
        let (_, node) = self.nodes.get(&path)?.iter().rev().find(|(since, _)| *since <= zxid)?;
        node.as_ref()
    }

    pub(crate) fn now(&self, path: Path) -> Option<&Node> {
        self.at(path, self.zxid)
    }

    /// What is there now.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Path, &Node)> {
        self.nodes.iter().filter_map(|(path, history)| Some((*path, history.last()?.1.as_ref()?)))
    }

    /// The children as they were after a transaction; `None` where the parent was not there.
    pub(crate) fn list(&self, parent: Parent, zxid: i64) -> Option<Vec<(Path, Node)>> {
        let there = match parent {
            Parent::Desk(worker) => self.at(Path::Desk(worker), zxid).is_some(),
            Parent::Task(task) => self.at(Path::Task(task), zxid).is_some(),
            _ => true,
        };
        let children = ranges(parent).into_iter().flat_map(|(from, to)| self.nodes.range(from..=to));
        there.then(|| {
            let children = children.filter(|(path, _)| !matches!((parent, path), (Parent::Desk(_), Path::Desk(_))));
            children.filter_map(|(path, _)| Some((*path, self.at(*path, zxid)?.clone()))).collect()
        })
    }

    /// Whether a znode was made, written or deleted after one transaction and not after another.
    pub(crate) fn changed(&self, path: Path, after: i64, until: i64) -> bool {
        self.nodes.get(&path).is_some_and(|history| within(history, after, until))
    }

    /// Which transaction was the latest, up to this one, that made, wrote or deleted a znode.
    pub(crate) fn stamp(&self, path: Path, until: i64) -> i64 {
        self.nodes.get(&path).map_or(0, |history| latest(history, until))
    }

    /// The same of all children; for a desk, of itself as well.
    pub(crate) fn children_stamp(&self, parent: Parent, until: i64) -> i64 {
        let children = ranges(parent).into_iter().flat_map(|(from, to)| self.nodes.range(from..=to));
        children.map(|(_, history)| latest(history, until)).max().unwrap_or(0)
    }

    /// Whether a child, or a desk itself, was made, written or deleted after one transaction and not after another.
    pub(crate) fn children_changed(&self, parent: Parent, after: i64, until: i64) -> bool {
        let mut children = ranges(parent).into_iter().flat_map(|(from, to)| self.nodes.range(from..=to));
        children.any(|(_, history)| within(history, after, until))
    }

    pub(crate) fn create(&mut self, path: Path, data: Data, owner: Option<SessionId>) -> Result<(), Refusal> {
        let parent = match path {
            Path::Assignment(worker, _) => Some(Path::Desk(worker)),
            Path::Cancel(task) | Path::Status(task) | Path::Attempt(task, _) => Some(Path::Task(task)),
            _ => None,
        };
        if parent.is_some_and(|parent| self.now(parent).is_none()) {
            return Err(Refusal::NoNode);
        }
        if self.now(path).is_some() {
            return Err(Refusal::NodeExists);
        }
        self.zxid += 1;
        self.put(path, Some(Node { data, owner, czxid: self.zxid, version: 0 }));
        Ok(())
    }

    /// Creates a task with the next number.
    pub(crate) fn submit(&mut self, submit: u8) -> TaskName {
        let name = TaskName::from_number(self.next_task);
        self.next_task += 1;
        self.create(Path::Task(name), Data::Task(submit), None).expect("the number is new, the parent always there");
        name
    }

    pub(crate) fn set(&mut self, path: Path, data: Data, version: Option<i32>) -> Result<(), Refusal> {
        let mut node = self.now(path).ok_or(Refusal::NoNode)?.clone();
        if version.is_some_and(|version| version != node.version) {
            return Err(Refusal::BadVersion);
        }
        self.zxid += 1;
        (node.data, node.version) = (data, node.version + 1);
        self.put(path, Some(node));
        Ok(())
    }

    pub(crate) fn delete(&mut self, path: Path, version: Option<i32>) -> Result<(), Refusal> {
        let node = self.now(path).ok_or(Refusal::NoNode)?;
        if version.is_some_and(|version| version != node.version) {
            return Err(Refusal::BadVersion);
        }
        let parent = match path {
            Path::Desk(worker) => Some(Parent::Desk(worker)),
            Path::Task(task) => Some(Parent::Task(task)),
            _ => None,
        };
        if parent.is_some_and(|parent| self.list(parent, self.zxid).is_some_and(|children| !children.is_empty())) {
            return Err(Refusal::NotEmpty);
        }
        self.zxid += 1;
        self.put(path, None);
        Ok(())
    }

    /// Removes what a session owns, in one transaction.
    pub(crate) fn end(&mut self, session: SessionId) {
        let owned: Vec<Path> =
            self.all().filter(|(_, node)| node.owner == Some(session)).map(|(path, _)| path).collect();
        self.zxid += 1;
        for path in owned {
            self.put(path, None);
        }
    }

    /// Forgets what was before a transaction.
    pub(crate) fn forget(&mut self, before: i64) {
        for history in self.nodes.values_mut() {
            let kept = history.iter().rposition(|(since, _)| *since <= before).unwrap_or(0);
            history.drain(..kept);
        }
    }

    fn put(&mut self, path: Path, node: Option<Node>) {
        self.nodes.entry(path).or_default().push((self.zxid, node));
    }
}

fn latest(history: &[(i64, Option<Node>)], until: i64) -> i64 {
    history.iter().rev().map(|(zxid, _)| *zxid).find(|zxid| *zxid <= until).unwrap_or(0)
}

fn within(history: &[(i64, Option<Node>)], after: i64, until: i64) -> bool {
    history.iter().any(|(zxid, _)| (after + 1..=until).contains(zxid))
}

/// The paths of the children; and a desk itself, whose deletion fires the same watches.
fn ranges(parent: Parent) -> Vec<(Path, Path)> {
    let most = Instance::from_random(u64::MAX);
    let (first, last) = (TaskName::from_number(0), TaskName::from_number(u32::MAX));
    match parent {
        Parent::Workers => vec![(Path::Worker(0), Path::Worker(u8::MAX))],
        Parent::Live => vec![(Path::Live(Instance::from_random(0), 0), Path::Live(most, u32::MAX))],
        Parent::Assign => vec![(Path::Desk(0), Path::Desk(u8::MAX))],
        Parent::Desk(worker) => vec![
            (Path::Desk(worker), Path::Desk(worker)),
            (Path::Assignment(worker, first), Path::Assignment(worker, last)),
        ],
        Parent::Tasks => vec![(Path::Task(first), Path::Task(last))],
        Parent::Task(task) => vec![
            (Path::Cancel(task), Path::Cancel(task)),
            (Path::Status(task), Path::Status(task)),
            (Path::Attempt(task, 0), Path::Attempt(task, u32::MAX)),
        ],
    }
}

/// The name of a worker of the model.
pub(crate) fn worker_name(worker: u8) -> WorkerName {
    const NAMES: [&str; 3] = ["w1", "w2", "w3"];
    NAMES[usize::from(worker)].parse().expect("a good name")
}

/// The worker of the model with that name.
pub(crate) fn worker_of(name: &WorkerName) -> u8 {
    name.as_str().as_bytes()[1] - b'1'
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match *self {
            Path::Master => paths::MASTER.to_owned(),
            Path::Epoch => paths::EPOCH.to_owned(),
            Path::Worker(worker) => paths::worker(&worker_name(worker)),
            Path::Live(instance, session) => paths::live(&LiveName { instance, session }),
            Path::Desk(worker) => paths::assignments(&worker_name(worker)),
            Path::Assignment(worker, task) => paths::assignment(&worker_name(worker), &task),
            Path::Task(task) => paths::task(&task),
            Path::Cancel(task) => paths::cancel(&task),
            Path::Status(task) => paths::status(&task),
            Path::Attempt(task, attempt) => paths::attempt(&task, attempt),
        })
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Parent::Workers => f.write_str(paths::WORKERS),
            Parent::Live => f.write_str(paths::LIVE),
            Parent::Assign => f.write_str(paths::ASSIGN),
            Parent::Desk(worker) => Path::Desk(worker).fmt(f),
            Parent::Tasks => f.write_str(paths::TASKS),
            Parent::Task(task) => Path::Task(task).fmt(f),
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::Empty => Ok(()),
            Data::Registration(instance) => write!(f, " instance={instance}"),
            Data::Epoch(fence) => write!(f, " {fence}"),
            Data::Assignment(Assignment { meta: None }) => write!(f, " by hand"),
            Data::Assignment(Assignment { meta: Some(meta) }) => {
                let instance = meta.instance.map(|instance| instance.to_string()).unwrap_or_default();
                write!(f, " instance={instance} fence={} attempt={}", meta.fence, meta.attempt)
            }
            Data::Task(submit) => write!(f, " submit={submit}"),
            Data::Removed(submit) => write!(f, " removed submit={submit}"),
            Data::Status(outcome) => write!(f, " {}", outcome.word()),
            Data::Attempt(kind) => write!(f, " {kind:?}"),
        }
    }
}
