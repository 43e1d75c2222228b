//! What is wrong with a tree, and what may be done about it while everybody works. Pure.
//!
//! A finding is a fact about one look. What daemons are about to mend is none of anybody's business, so a finding counts
//! when later looks show the very same znodes (`Finding::same`). A repair is a write checked by version, a create of
//! what is missing, a delete of what nobody uses, or the steps that a primary would take, in its order; nothing that may
//! be running is taken from anybody.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use zk_master::plan::{self, Next, Removal, Step};
use zk_master::view::{Desk, Known, Stage, View};
use zk_session::{SessionId, Stat};
use znode_paths::paths::{self, TaskChild, task_child};
use znode_paths::{
    Address, Assignment, AssignmentMeta, Attempt, AttemptMeta, Drain, Live, LiveName, Outcome, Role, Status,
    StatusMeta, TaskName, Worker, WorkerName, decode_epoch,
};

/// A znode as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Znode {
    pub(crate) path: String,
    pub(crate) data: Vec<u8>,
    pub(crate) stat: Stat,
}

impl Znode {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A look at the tree: all of it but the data of the tasks.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The names in the root.
    pub(crate) root: Vec<String>,
    /// What is there of the znodes in the root that the protocol knows.
    pub(crate) top: BTreeMap<&'static str, Znode>,
    /// What is below `/workers`.
    pub(crate) workers: Vec<Znode>,
    /// What is below `/live`.
    pub(crate) live: Vec<Znode>,
    /// What is below `/keys`.
    pub(crate) keys: Vec<Znode>,
    /// What is below `/assign`, and below that.
    pub(crate) desks: Vec<(Znode, Vec<Znode>)>,
    /// The tasks, as a primary knows them.
    pub(crate) tasks: BTreeMap<TaskName, Known>,
    /// A transaction later than all that was read.
    pub(crate) newest: i64,
    /// The paths of znodes in which others have other rights than our identity gives; looked for only under one.
    pub(crate) open: Vec<(String, Stat)>,
}

/// What the protocol knows in the root.
pub(crate) const TOP: [&str; 8] = [
    paths::MASTER,
    paths::EPOCH,
    paths::WORKERS,
    paths::TASKS,
    paths::ASSIGN,
    paths::LIVE,
    paths::KEYS,
    paths::REQUESTS,
];

macro_rules! classes {
    ($($class:ident $word:literal $meaning:literal)*) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Class {
            $(#[doc = $meaning] $class,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &[Class] = &[$(Class::$class),*];

            /// A stable word for it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Class::$class => $word,)*
                }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Class::$class => $meaning,)*
                }
            }
        }
    };
}

classes! {
    AclOpen "acl_open" "its ACL is not what the identity in use gives to all that it makes (--auth-file)"
    AssignedTwice "assigned_twice" "its task is assigned to another worker as well, and both may run it"
    AssignmentFenced "assignment_fenced" "its fence is not that of /epoch, so its worker never starts it"
    AssignmentName "assignment_name" "its name is no task's, so nobody runs it"
    AssignmentOfEarlierTask "assignment_of_earlier_task" "it is for an earlier task of that name"
    AssignmentOfLostWorker "assignment_of_lost_worker" "its worker was lost: it is to be recorded and taken back"
    AssignmentUndecodable "assignment_undecodable" "its data cannot be decoded and counts as made by hand"
    AssignmentWithStatus "assignment_with_status" "its task has a status: it should be gone"
    AssignmentWithoutTask "assignment_without_task" "its task does not exist"
    AttemptUndecodable "attempt_undecodable" "the record cannot be decoded and counts as a lost attempt"
    DeskEphemeral "desk_ephemeral" "it is ephemeral, so nothing can be assigned there"
    DeskName "desk_name" "its name is no worker's, so nobody looks at it"
    DeskUndecodable "desk_undecodable" "its data cannot be decoded and says nothing"
    DeskWithoutWorker "desk_without_worker" "its worker is gone, and no master is there to remove it"
    DuplicateSubmit "duplicate_submit" "an earlier task has the same submit id: this one is to be removed"
    EpochBehind "epoch_behind" "it is below the czxid of /master, so nothing assigned now is started"
    EpochMissing "epoch_missing" "it is missing, so nothing that a master assigned is started"
    EpochUndecodable "epoch_undecodable" "it holds no czxid, so nothing that a master assigned is started"
    Ephemeral "ephemeral" "it is ephemeral, and will be forgotten with the session that made it"
    InstanceTwice "instance_twice" "another registration has the same instance and is the true one"
    KeyUndecodable "key_undecodable" "it holds no submit id, so its key cannot be used"
    LiveName "live_name" "its name is no instance's, so nobody looks at it"
    LivePersistent "live_persistent" "it is persistent, so its process seems to live for ever and is never found lost"
    LiveUndecodable "live_undecodable" "it does not say what its process is"
    MasterData "master_data" "it does not hold the address of a master"
    MasterPersistent "master_persistent" "it is persistent, so no other master ever takes over"
    ParentEphemeral "parent_ephemeral" "it is ephemeral, so nothing can be made below it and it goes with a session"
    ParentMissing "parent_missing" "it is missing"
    RegistrationForeign "registration_foreign" "it carries the instance of a process that did not make it"
    RegistrationPersistent "registration_persistent" "it is persistent, so its worker is never found lost"
    RegistrationUndecodable "registration_undecodable" "it cannot be decoded, so nothing is assigned there"
    RegistrationWithoutLive "registration_without_live" "no session of its instance is known below /live"
    SequenceEnd "sequence_end" "the sequence of task numbers is nearly used up (2147483647 is the last)"
    StatusUndecodable "status_undecodable" "its word or its metadata are not of this protocol; it is final all the same"
    Strangers "strangers" "there are znodes below it where none belong, so it cannot be deleted"
    TaskName "task_name" "its name is no task's, so nobody runs it"
    TaskUndecodable "task_undecodable" "it cannot be decoded: it is to end as failed"
    TooManyTasks "too_many_tasks" "there are so many that zkCli.sh and Java clients cannot list them soon"
    UnknownNode "unknown_node" "it is not of this protocol, and ignored"
    WorkerName "worker_name" "its name is no worker's, so nothing is assigned to it"
    WorkerWithoutDesk "worker_without_desk" "it has no node below /assign, so nothing can be assigned to it"
}

impl Class {
    /// Whether it breaks the protocol; the others are only said.
    pub fn violates(self) -> bool {
        !matches!(self, Class::UnknownNode | Class::StatusUndecodable)
    }
}

/// What may be done about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Nothing that is safe; this is for a human to decide.
    Nothing(&'static str),
    /// Make it, if absent, with this data.
    Make(Vec<u8>),
    /// Write this data over that version.
    Write(Vec<u8>, i32),
    /// Delete that version.
    Delete(i32),
    /// Delete it with all that is below it.
    DeleteAll,
    /// Delete what is below it.
    DeleteBelow,
    /// Delete the ephemeral and make a persistent one.
    Remake(Vec<u8>),
    /// What a primary would do.
    Steps(Vec<Step>),
    /// Give it the ACL of all that is made under this identity.
    Protect,
}

impl Repair {
    /// What it is, for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Repair::Nothing(advice) => (*advice).to_owned(),
            Repair::Make(_) => "make it".to_owned(),
            Repair::Write(data, _) if data.is_empty() => "write it empty".to_owned(),
            Repair::Write(data, _) => format!("write {:?}", String::from_utf8_lossy(data)),
            Repair::Delete(_) => "delete it".to_owned(),
            Repair::DeleteAll => "delete it with all that is below it".to_owned(),
            Repair::DeleteBelow => "delete what is below it".to_owned(),
            Repair::Remake(_) => "make it anew, persistent".to_owned(),
            Repair::Steps(steps) => {
                let step = |step: &Step| match step {
                    Step::Record(..) => "record the attempt",
                    Step::Finish(_, status) if status.outcome == Outcome::Failed => "end the task as failed",
                    Step::Finish(..) => "end the task",
                    _ => "delete it",
                };
                steps.iter().map(step).collect::<Vec<_>>().join(", then ")
            }
            Repair::Protect => "set its ACL".to_owned(),
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) class: Class,
    pub(crate) path: String,
    /// The transactions that made it and last wrote it; 0 where it is missing.
    seen: (i64, i64),
    pub(crate) repair: Repair,
}

impl Finding {
    /// Whether an earlier look found the very same.
    pub(crate) fn same(&self, earlier: &Finding) -> bool {
        self.is(earlier) && self.seen == earlier.seen
    }

    /// Whether it is the same trouble at the same place.
    pub(crate) fn is(&self, other: &Finding) -> bool {
        (self.class, &self.path) == (other.class, &other.path)
    }
}

fn found(class: Class, path: &str, stat: Option<&Stat>, repair: Repair) -> Finding {
    Finding { class, path: path.to_owned(), seen: stat.map_or((0, 0), |stat| (stat.czxid, stat.mzxid)), repair }
}

fn at(class: Class, node: &Znode, repair: Repair) -> Finding {
    found(class, &node.path, Some(&node.stat), repair)
}

fn delete(class: Class, node: &Znode) -> Finding {
    at(class, node, Repair::Delete(node.stat.version))
}

/// Whether this is no text, or its last line looks like metadata and is none of this kind. Most decoders tell no errors and
/// take that for made by hand.
fn broken<M: DeserializeOwned>(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return true };
    let last = text.trim_end_matches('\n').rsplit('\n').next().unwrap_or_default();
    last.starts_with('{') && serde_json::from_str::<M>(last).is_err()
}

/// Below these nothing belongs.
fn leaf(node: &Znode) -> Option<Finding> {
    (node.stat.children > 0).then(|| at(Class::Strangers, node, Repair::DeleteBelow))
}

const BY_HAND: &str = "whoever made it has to make it anew; --fix would lose what it says for a moment";

/// How many task numbers before the last one are a warning.
const SEQUENCE_RESERVE: u32 = 1_000_000;

/// So many tasks are a warning (PROTOCOL, G8: 50,000 is where clients refuse to submit).
const MANY_TASKS: usize = 45_000;

/// Fences beyond this are somebody's own invention: no ensemble comes so far.
const LAST_FENCE: i64 = i64::MAX / 2;

impl Survey {
    /// The sessions, instances and roles below `/live`.
    fn sessions(&self) -> impl Iterator<Item = (LiveName, Live, Option<SessionId>)> + '_ {
        self.live.iter().filter_map(|node| Some((node.name().parse().ok()?, Live::decode(&node.data), node.stat.owner)))
    }

    /// The address of the zk-master that holds `/master`, if one does.
    pub(crate) fn primary(&self) -> Option<String> {
        let owner = self.top.get(paths::MASTER)?.stat.owner?;
        let role = |live: &Live| live.meta.as_ref().is_some_and(|meta| meta.role == Role::Master);
        let reigning = self.sessions().find(|(_, live, session)| *session == Some(owner) && role(live));
        reigning.map(|(_, live, _)| live.address)
    }

    /// The tree as a primary would have read it.
    fn view(&mut self) -> View {
        let epoch = self.top.get(paths::EPOCH).and_then(|node| decode_epoch(&node.data));
        let mut view = View { fence: epoch.unwrap_or_default(), ..View::default() };
        view.live = self.sessions().map(|(name, ..)| name.instance).collect();
        for node in &self.workers {
            if let (Ok(name), Ok(worker)) = (node.name().parse(), Worker::decode(&node.data)) {
                view.workers.insert(name, worker);
            }
        }
        for (node, below) in &self.desks {
            let Ok(worker) = node.name().parse() else { continue };
            let tasks =
                below.iter().filter_map(|node| Some((node.name().parse().ok()?, Assignment::decode(&node.data))));
            let drain = Drain::decode(&node.data).drain;
            view.assign.insert(worker, Desk { drain, tasks: tasks.collect(), ..Desk::default() });
        }
        view.tasks = std::mem::take(&mut self.tasks).into_iter().collect();
        view
    }
}

/// All that is wrong in a look, but for what [`examine_task`] finds.
pub(crate) fn examine(mut survey: Survey) -> Vec<Finding> {
    let view = survey.view();
    let survey = &survey;
    let mut findings = Vec::new();
    top(survey, &view, &mut findings);
    live(survey, &view, &mut findings);
    workers(survey, &view, &mut findings);
    desks(survey, &view, &mut findings);
    tasks(&view, &mut findings);
    for node in &survey.keys {
        let id = std::str::from_utf8(&node.data).is_ok_and(|id| !id.trim().is_empty());
        findings.extend((!id).then(|| delete(Class::KeyUndecodable, node)));
        findings.extend(leaf(node));
    }
    let open = |(path, stat): &(String, Stat)| found(Class::AclOpen, path, Some(stat), Repair::Protect);
    findings.extend(survey.open.iter().map(open));
    findings
}

fn top(survey: &Survey, view: &View, findings: &mut Vec<Finding>) {
    for name in &survey.root {
        let path = format!("/{name}");
        if !TOP.contains(&path.as_str()) && name != "zookeeper" {
            findings.push(found(Class::UnknownNode, &path, None, Repair::Nothing("leave it to whoever made it")));
        }
    }
    let parents = [paths::WORKERS, paths::TASKS, paths::ASSIGN];
    // Before the first master there is nothing, and nothing is wrong with that.
    let begun = [paths::MASTER, paths::EPOCH].iter().chain(&parents).any(|path| survey.top.contains_key(path));
    for path in parents {
        if begun && !survey.top.contains_key(path) {
            findings.push(found(Class::ParentMissing, path, None, Repair::Make(Vec::new())));
        }
    }
    for (path, node) in &survey.top {
        if *path != paths::MASTER && node.stat.owner.is_some() {
            findings.push(at(Class::ParentEphemeral, node, Repair::Remake(node.data.clone())));
        }
    }
    let ours = survey.primary();
    let master = survey.top.get(paths::MASTER);
    if let Some(node) = master {
        if node.stat.owner.is_none() {
            findings.push(delete(Class::MasterPersistent, node));
        }
        let address = |data: &[u8]| std::str::from_utf8(data).is_ok_and(|text| text.parse::<Address>().is_ok());
        if !address(&node.data) {
            let known = ours.clone().filter(|known| address(known.as_bytes()));
            let by_hand = Repair::Nothing("whoever holds it is to write host:port there");
            let repair = known.map_or(by_hand, |known| Repair::Write(known.into_bytes(), node.stat.version));
            findings.push(at(Class::MasterData, node, repair));
        }
        findings.extend(leaf(node));
    }
    // The czxid of the primary's own /master; without one a number that no assignment carries, and no later master undercuts.
    let fence = master.filter(|_| ours.is_some()).map_or(survey.newest, |node| node.stat.czxid);
    let data = fence.to_string().into_bytes();
    match survey.top.get(paths::EPOCH) {
        None => {
            let metas = view.assign.values().flat_map(|desk| desk.tasks.values());
            if ours.is_some() || metas.into_iter().any(|assignment| assignment.meta.is_some()) {
                findings.push(found(Class::EpochMissing, paths::EPOCH, None, Repair::Make(data)));
            }
        }
        Some(node) => {
            findings.extend(leaf(node));
            let repair = Repair::Write(data, node.stat.version);
            match decode_epoch(&node.data) {
                Some(epoch) if (0..LAST_FENCE).contains(&epoch) => {
                    if ours.is_some() && epoch < fence {
                        findings.push(at(Class::EpochBehind, node, repair));
                    }
                }
                _ => findings.push(at(Class::EpochUndecodable, node, repair)),
            }
        }
    }
}

fn live(survey: &Survey, view: &View, findings: &mut Vec<Finding>) {
    for node in &survey.live {
        let Ok(name) = node.name().parse::<LiveName>() else {
            findings.push(at(Class::LiveName, node, Repair::DeleteAll));
            continue;
        };
        findings.extend(leaf(node));
        if node.stat.owner.is_none() {
            findings.push(delete(Class::LivePersistent, node));
        } else if Live::decode(&node.data).meta.is_none() {
            let worker = view.workers.iter().find(|(_, worker)| worker.instance() == Some(name.instance));
            let repair = match worker {
                Some((worker, registered)) => {
                    let live = Live::new(&registered.address, Role::Worker, Some(worker.clone()));
                    Repair::Write(live.encode(), node.stat.version)
                }
                None => Repair::Nothing("its process writes it anew; if there is none, it goes with its session"),
            };
            findings.push(at(Class::LiveUndecodable, node, repair));
        }
    }
}

fn workers(survey: &Survey, view: &View, findings: &mut Vec<Finding>) {
    for node in &survey.workers {
        let Ok(name) = node.name().parse::<WorkerName>() else {
            findings.push(at(Class::WorkerName, node, Repair::DeleteAll));
            continue;
        };
        findings.extend(leaf(node));
        if node.stat.owner.is_none() {
            // One of ours registers anew at once.
            findings.push(delete(Class::RegistrationPersistent, node));
            continue;
        }
        let Ok(worker) = Worker::decode(&node.data) else {
            findings.push(delete(Class::RegistrationUndecodable, node));
            continue;
        };
        let Some(instance) = worker.instance() else { continue };
        let sessions: Vec<_> = survey.sessions().filter(|(name, ..)| name.instance == instance).collect();
        let own = |live: &Live| live.meta.as_ref().and_then(|meta| meta.worker.as_ref()) == Some(&name);
        let same = view.workers.values().filter(|other| other.instance() == Some(instance)).count();
        if sessions.is_empty() {
            findings.push(delete(Class::RegistrationWithoutLive, node));
        } else if same > 1 && !sessions.iter().any(|(_, live, _)| own(live)) {
            findings.push(delete(Class::InstanceTwice, node));
        } else if !sessions.iter().any(|(.., session)| *session == node.stat.owner) {
            findings.push(delete(Class::RegistrationForeign, node));
        } else if !view.assign.contains_key(&name) && survey.top.contains_key(paths::ASSIGN) {
            let path = paths::assignments(&name);
            findings.push(found(Class::WorkerWithoutDesk, &path, Some(&node.stat), Repair::Make(Vec::new())));
        }
    }
}

fn desks(survey: &Survey, view: &View, findings: &mut Vec<Finding>) {
    let living = view.living();
    let raised = survey.top.get(paths::EPOCH).map(|node| node.stat.mzxid);
    let mut holders: BTreeMap<TaskName, Vec<&Znode>> = BTreeMap::new();
    for (node, below) in &survey.desks {
        let Ok(worker) = node.name().parse::<WorkerName>() else {
            findings.push(at(Class::DeskName, node, Repair::DeleteAll));
            continue;
        };
        if node.stat.owner.is_some() {
            findings.push(delete(Class::DeskEphemeral, node));
        }
        if broken::<Drain>(&node.data) {
            findings.push(at(Class::DeskUndecodable, node, Repair::Write(Vec::new(), node.stat.version)));
        }
        let idle = below.is_empty() && !Drain::decode(&node.data).drain && !view.workers.contains_key(&worker);
        if idle && survey.primary().is_none() {
            findings.push(delete(Class::DeskWithoutWorker, node));
        }
        for node in below {
            let Ok(task) = node.name().parse::<TaskName>() else {
                findings.push(at(Class::AssignmentName, node, Repair::DeleteAll));
                continue;
            };
            findings.extend(leaf(node));
            if node.stat.owner.is_some() {
                findings.push(at(Class::Ephemeral, node, Repair::Nothing(BY_HAND)));
            }
            if broken::<AssignmentMeta>(&node.data) {
                findings.push(at(Class::AssignmentUndecodable, node, Repair::Write(Vec::new(), node.stat.version)));
            }
            let assignment = Assignment::decode(&node.data);
            if let Some(class) = left_over(view, &worker, task, &assignment) {
                let steps = plan::held_task(view, &worker, task, &assignment, &living);
                findings.push(at(class, node, Repair::Steps(steps)));
                continue;
            }
            let meta = assignment.meta.as_ref();
            // Made after the fence was raised, it was never one to be started.
            if meta.is_some_and(|meta| meta.fence != view.fence)
                && raised.is_some_and(|raised| node.stat.czxid > raised)
            {
                findings.push(delete(Class::AssignmentFenced, node));
                continue;
            }
            if !meta.is_some_and(|meta| meta.returned) {
                holders.entry(task).or_default().push(node);
            }
        }
    }
    for node in holders.into_values().filter(|nodes| nodes.len() > 1).flatten() {
        let advice = "look which of them runs it, and delete the other one by hand";
        findings.push(at(Class::AssignedTwice, node, Repair::Nothing(advice)));
    }
}

/// What is wrong with an assignment that nobody runs.
fn left_over(view: &View, worker: &WorkerName, task: TaskName, assignment: &Assignment) -> Option<Class> {
    let meta = assignment.meta.as_ref();
    let Some(known) = view.tasks.get(&task) else { return Some(Class::AssignmentWithoutTask) };
    if known.open().is_none() {
        return Some(Class::AssignmentWithStatus);
    }
    if meta.is_some_and(|meta| meta.task != known.czxid) {
        return Some(Class::AssignmentOfEarlierTask);
    }
    let returned = meta.is_some_and(|meta| meta.returned);
    let lost = !returned && view.holder_lost(worker, assignment, &view.living());
    lost.then_some(Class::AssignmentOfLostWorker)
}

fn tasks(view: &View, findings: &mut Vec<Finding>) {
    let living = view.living();
    let held: BTreeSet<TaskName> = view.assign.values().flat_map(|desk| desk.tasks.keys().copied()).collect();
    let seen = |known: &Known| (known.czxid, known.czxid);
    let duplicates = view.tasks.duplicates();
    for name in duplicates {
        let steps = vec![Step::Remove(*name, Removal::Duplicate)];
        let (class, path, seen) = (Class::DuplicateSubmit, paths::task(name), seen(&view.tasks[name]));
        findings.push(Finding { class, path, seen, repair: Repair::Steps(steps) });
    }
    for (name, known) in &view.tasks {
        let Some(open) = known.open().filter(|open| open.meta.is_err() && !held.contains(name)) else { continue };
        if let Next::End(outcome, why) = plan::unassigned_task(view, *name, open, &living) {
            let steps = vec![Step::Finish(*name, Status::because(outcome, why))];
            let (class, path, seen) = (Class::TaskUndecodable, paths::task(name), seen(known));
            findings.push(Finding { class, path, seen, repair: Repair::Steps(steps) });
        }
    }
    let advice = "when nothing runs, delete /tasks with all that is below it: the next master makes it anew";
    let near = TaskName::from_number(i32::MAX.unsigned_abs() - SEQUENCE_RESERVE);
    if let Some((last, known)) = view.tasks.last_key_value().filter(|(last, _)| **last >= near) {
        let (class, path, seen) = (Class::SequenceEnd, paths::task(last), seen(known));
        findings.push(Finding { class, path, seen, repair: Repair::Nothing(advice) });
    }
    if view.tasks.len() > MANY_TASKS {
        let advice = "submit less at once, or let the masters keep less: --retain, --retain-max";
        findings.push(found(Class::TooManyTasks, paths::TASKS, None, Repair::Nothing(advice)));
    }
}

/// What is wrong with a child of `/tasks` and what is below it.
pub(crate) fn examine_task(node: &Znode, below: &[Znode]) -> Vec<Finding> {
    let Ok(_) = node.name().parse::<TaskName>() else {
        // A client makes and deletes such an ephemeral to step over a number that somebody took by hand.
        return match node.stat.owner {
            Some(_) => Vec::new(),
            None => vec![at(Class::TaskName, node, Repair::DeleteAll)],
        };
    };
    let mut findings = Vec::new();
    if node.stat.owner.is_some() {
        findings.push(at(Class::Ephemeral, node, Repair::Nothing("nobody runs it: submit it with zk-client")));
    }
    for child in below {
        let Some(kind) = task_child(child.name()) else {
            findings.push(at(Class::UnknownNode, child, Repair::Nothing("leave it to whoever made it")));
            continue;
        };
        findings.extend(leaf(child));
        if child.stat.owner.is_some() {
            findings.push(at(Class::Ephemeral, child, Repair::Nothing(BY_HAND)));
        }
        match kind {
            TaskChild::Status => {
                let word = Status::decode(&child.data).outcome;
                if matches!(word, Outcome::Other(_)) || broken::<StatusMeta>(&child.data) {
                    findings.push(at(
                        Class::StatusUndecodable,
                        child,
                        Repair::Nothing("a status is never written again"),
                    ));
                }
            }
            TaskChild::Cancel => {}
            TaskChild::Attempt(_) => {
                let attempt = Attempt::decode(&child.data);
                if attempt.kind.is_none() || broken::<AttemptMeta>(&child.data) {
                    // That is what it counts as. A failure whose details are broken stays one.
                    let reason = "the record could not be decoded".to_owned();
                    let kind = attempt.kind.or(Attempt::lost(AttemptMeta::default()).kind);
                    let meta = Some(AttemptMeta { reason, ..AttemptMeta::default() });
                    let data = Attempt { kind, meta }.encode();
                    findings.push(at(Class::AttemptUndecodable, child, Repair::Write(data, child.stat.version)));
                }
            }
        }
    }
    findings
}

/// What a primary knows of a task, without what a doctor need not keep.
pub(crate) fn slim(mut known: Known) -> Known {
    if let Stage::Open(open) = &mut known.stage
        && let Ok(Some(meta)) = &mut open.meta
    {
        meta.stdin = None;
        meta.env.clear();
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_tasks_are_a_warning_before_they_cannot_be_listed() {
        let task = |number| {
            let stage = Stage::Ended { outcome: Outcome::Done, at_ms: 0 };
            (TaskName::from_number(number), Known { czxid: 1, submit: None, stage })
        };
        let examined = |count| examine(Survey { tasks: (0..count).map(task).collect(), ..Survey::default() });
        assert_eq!(examined(45_000), []);
        assert_eq!(examined(45_001).iter().map(|finding| finding.class).collect::<Vec<_>>(), [Class::TooManyTasks]);
    }
}
