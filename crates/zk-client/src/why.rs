//! Why a task is in its state: one sentence, from what was read. Pure.
//!
//! The rules are the primary's own ([`zk_master::plan`]), asked about one task. What only a primary can know, because it
//! watches (since when a worker is missing, which assignment vanished), is not in the tree and not said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use zk_master::plan::{self, Next, Retention, Step, Wait};
use zk_master::view::{Known, Open, View};
use znode_paths::{Assignment, AttemptKind, Outcome, Status, TaskName, WorkerName};

use crate::render::age;

/// What was read to explain a task.
#[derive(Debug)]
pub enum Facts {
    /// It has a status.
    Ended {
        /// Which.
        status: Box<Status>,
        /// For how long.
        since: Duration,
    },
    /// It has none.
    Open(Box<Tree>),
}

/// The tree around a task that has no status.
#[derive(Debug, Default)]
pub struct Tree {
    /// As a primary would have read it. `fence` is what `/epoch` says.
    pub view: View,
    /// The transaction that last wrote `/epoch`.
    pub raised: i64,
    /// Who would act.
    pub primary: Primary,
    /// Of each assignment that is on a desk with this task: the transaction that made it and when, by the servers' clock.
    pub made: BTreeMap<(WorkerName, TaskName), (i64, i64)>,
}

/// Who holds `/master`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Primary {
    /// Nobody.
    #[default]
    None,
    /// Somebody with `zkCli.sh`, under this address.
    ByHand(String),
    /// A zk-master.
    Daemon,
}

/// Why a task is in its state. [`fmt::Display`] is the sentence, [`Cause::word`] what scripts get.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the sentences below say what each of them is")]
pub enum Cause {
    // It has a status.
    Finished { status: Status, since: Duration },
    // Somebody has it.
    Running { worker: WorkerName, attempt: Option<u32>, since: Duration },
    RunningByHand { worker: WorkerName, since: Duration },
    Cancelling { worker: WorkerName },
    NotTakenUp { worker: WorkerName, slots: u32, since: Duration },
    Reconnecting { worker: WorkerName },
    HandWorkerMissing { worker: WorkerName },
    WorkerLost { worker: WorkerName, then: Option<String> },
    Fenced { worker: WorkerName },
    Returned { worker: WorkerName },
    EarlierTask { worker: WorkerName },
    // Nobody has it, and it is about to end.
    Undecodable { reason: String },
    CancelledUnstarted,
    AttemptsUsedUp { reason: String },
    PredecessorFailed { reason: String },
    Duplicate { first: TaskName },
    // Nobody has it yet.
    NoMaster { then: Box<Cause> },
    MasterByHand { address: String, then: Box<Cause> },
    Waiting { after: TaskName },
    Pausing { failures: usize, left: Duration },
    NoWorker,
    NoneMatches { workers: usize, asked: String },
    OutOfService { workers: Vec<(WorkerName, &'static str)> },
    Busy { workers: usize, before: usize },
    Queued { before: usize },
    NextToBeAssigned { worker: WorkerName },
}

/// What [`Cause::word`] says.
pub const WORDS: [&str; 26] = [
    "assigned_by_hand",
    "attempts_used_up",
    "busy",
    "cancelled_unstarted",
    "cancelling",
    "duplicate",
    "earlier_task",
    "fenced",
    "finished",
    "hand_worker_missing",
    "master_by_hand",
    "next",
    "no_master",
    "no_worker",
    "none_matches",
    "not_taken_up",
    "out_of_service",
    "pausing",
    "predecessor_failed",
    "queued",
    "reconnecting",
    "returned",
    "running",
    "undecodable",
    "waiting",
    "worker_lost",
];

impl Cause {
    /// A stable word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Cause::Finished { .. } => "finished",
            Cause::Running { .. } => "running",
            Cause::RunningByHand { .. } => "assigned_by_hand",
            Cause::Cancelling { .. } => "cancelling",
            Cause::NotTakenUp { .. } => "not_taken_up",
            Cause::Reconnecting { .. } => "reconnecting",
            Cause::HandWorkerMissing { .. } => "hand_worker_missing",
            Cause::WorkerLost { .. } => "worker_lost",
            Cause::Fenced { .. } => "fenced",
            Cause::Returned { .. } => "returned",
            Cause::EarlierTask { .. } => "earlier_task",
            Cause::Undecodable { .. } => "undecodable",
            Cause::CancelledUnstarted => "cancelled_unstarted",
            Cause::AttemptsUsedUp { .. } => "attempts_used_up",
            Cause::PredecessorFailed { .. } => "predecessor_failed",
            Cause::Duplicate { .. } => "duplicate",
            Cause::NoMaster { .. } => "no_master",
            Cause::MasterByHand { .. } => "master_by_hand",
            Cause::Waiting { .. } => "waiting",
            Cause::Pausing { .. } => "pausing",
            Cause::NoWorker => "no_worker",
            Cause::NoneMatches { .. } => "none_matches",
            Cause::OutOfService { .. } => "out_of_service",
            Cause::Busy { .. } => "busy",
            Cause::Queued { .. } => "queued",
            Cause::NextToBeAssigned { .. } => "next",
        }
    }

    /// The state of the task, as `list` has it.
    pub fn state(&self) -> &str {
        match self {
            Cause::Finished { status, .. } => status.outcome.word(),
            Cause::Running { .. } | Cause::RunningByHand { .. } | Cause::Cancelling { .. } => "running",
            Cause::NotTakenUp { .. }
            | Cause::Reconnecting { .. }
            | Cause::HandWorkerMissing { .. }
            | Cause::WorkerLost { .. }
            | Cause::Fenced { .. } => "assigned",
            _ => "pending",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Finished { status, since } => write!(f, "{}, {} ago", ended(status), age(*since)),
            Cause::Running { worker, attempt, since } => {
                write!(f, "{worker} has it since {} ago", age(*since))?;
                attempt.map_or(Ok(()), |attempt| write!(f, " (attempt {attempt})"))
            }
            Cause::RunningByHand { worker, since } => {
                write!(f, "{worker}, registered by hand, has it since {} ago; whoever that is runs it", age(*since))
            }
            Cause::Cancelling { worker } => write!(f, "its cancellation was asked for, and {worker} is to stop it"),
            Cause::NotTakenUp { worker, slots, since } => write!(
                f,
                "it was assigned to {worker} {} ago and is not taken up yet: earlier tasks have the slots there ({slots})",
                age(*since)
            ),
            Cause::Reconnecting { worker } => {
                write!(f, "{worker} has it and lives, but is not registered: it is between two sessions")
            }
            Cause::HandWorkerMissing { worker } => {
                write!(
                    f,
                    "{worker}, registered by hand, has it and is missing: after a second without it a primary counts it as lost"
                )
            }
            Cause::WorkerLost { worker, then: None } => {
                write!(f, "its worker {worker} was lost: a primary is to record that and assign it again")
            }
            Cause::WorkerLost { worker, then: Some(then) } => {
                write!(f, "its worker {worker} was lost, and it may not start again: {then}")
            }
            Cause::Fenced { worker } => {
                write!(f, "a master that is deposed assigned it to {worker}, which will not start it")
            }
            Cause::Returned { worker } => write!(f, "{worker} gave it back unstarted: a primary is to assign it anew"),
            Cause::EarlierTask { worker } => {
                write!(
                    f,
                    "the assignment of an earlier task of this name at {worker} is in the way: a primary is to delete it"
                )
            }
            Cause::Undecodable { reason } => {
                write!(f, "it cannot be decoded, so a primary is to end it as failed: {reason}")
            }
            Cause::CancelledUnstarted => {
                f.write_str("its cancellation was asked for before it started: a primary is to end it")
            }
            Cause::AttemptsUsedUp { reason } => {
                write!(f, "it may not start again, so a primary is to end it as lost: {reason}")
            }
            Cause::PredecessorFailed { reason } => write!(f, "a primary is to end it as cancelled: {reason}"),
            Cause::Duplicate { first } => {
                write!(
                    f,
                    "it is a second copy of {first}, from a submit whose answer was lost: a primary is to remove it"
                )
            }
            Cause::NoMaster { then } => {
                write!(f, "there is no master, so nothing is assigned (start zk-master); apart from that: {then}")
            }
            Cause::MasterByHand { address, then } => write!(
                f,
                "the primary is {address:?}, played by hand: whoever that is decides; by the rules of zk-master: {then}"
            ),
            Cause::Waiting { after } => write!(f, "it waits for {after} to be done"),
            Cause::Pausing { failures, left } => {
                write!(f, "its command failed, it is tried again in {}; failures so far: {failures}", age(*left))
            }
            Cause::NoWorker => f.write_str("no worker is registered (start zk-worker)"),
            Cause::NoneMatches { workers, asked } => {
                write!(f, "none of the workers that are registered ({workers}) has what it asks for: {asked}")
            }
            Cause::OutOfService { workers } => {
                f.write_str("every worker that matches is out of service: ")?;
                for (index, (worker, why)) in workers.iter().enumerate() {
                    write!(f, "{}{worker} {why}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Cause::Busy { workers, before } => {
                write!(f, "all slots of the workers that match ({workers}) are busy; before it in the queue: {before}")
            }
            Cause::Queued { before } => {
                write!(f, "the free slots that match go to those before it in the queue: {before}")
            }
            Cause::NextToBeAssigned { worker } => {
                write!(f, "it is its turn, and a primary is to assign it to {worker} now")
            }
        }
    }
}

/// How a task ended.
fn ended(status: &Status) -> String {
    let meta = status.meta.clone().unwrap_or_default();
    let what = match (meta.reason, meta.exit_code, meta.signal) {
        (Some(reason), ..) => reason,
        (None, Some(code), _) => format!("the command exited with {code}"),
        (None, None, Some(signal)) => format!("the command was ended by signal {signal}"),
        (None, None, None) => "its status says no more than that".to_owned(),
    };
    let attempt = meta.attempt.map(|attempt| format!(" (attempt {attempt})")).unwrap_or_default();
    match meta.worker {
        Some(worker) => format!("{what}, on {worker}{attempt}"),
        None => what,
    }
}

/// Explains a task; `None` when there is no such task in the tree.
pub fn why(name: TaskName, facts: Facts) -> Option<Cause> {
    let tree = match facts {
        Facts::Ended { status, since } => return Some(Cause::Finished { status: *status, since }),
        Facts::Open(tree) => tree,
    };
    let view = &tree.view;
    let known = view.tasks.get(&name)?;
    let open = known.open()?;
    if view.tasks.duplicates().contains(&name) {
        let first = view.tasks.iter().find(|(_, other)| other.submit == known.submit);
        return first.map(|(first, _)| Cause::Duplicate { first: *first });
    }
    // Of several assignments, which somebody made by hand, the one that is run counts.
    let held = view.assign.iter().filter_map(|(worker, desk)| {
        let assignment = desk.tasks.get(&name)?;
        Some(held(&tree, worker, assignment, name, known, open))
    });
    let order = |cause: &Cause| ["running", "assigned"].iter().position(|state| *state == cause.state()).unwrap_or(2);
    if let Some(cause) = held.min_by_key(order) {
        return Some(cause);
    }
    let then = unassigned(view, name, open);
    Some(match tree.primary {
        Primary::Daemon => then,
        Primary::None => Cause::NoMaster { then: then.into() },
        Primary::ByHand(address) => Cause::MasterByHand { address, then: then.into() },
    })
}

/// Why a task is at a worker.
fn held(
    tree: &Tree,
    worker: &WorkerName,
    assignment: &Assignment,
    name: TaskName,
    known: &Known,
    open: &Open,
) -> Cause {
    let Tree { view, made, raised, .. } = tree;
    let (worker, meta) = (worker.clone(), assignment.meta.as_ref());
    if meta.is_some_and(|meta| meta.task != known.czxid) {
        return Cause::EarlierTask { worker };
    }
    if meta.is_some_and(|meta| meta.returned) {
        return Cause::Returned { worker };
    }
    let living = view.living();
    if view.holder_lost(&worker, assignment, &living) {
        let chain = plan::held_task(view, &worker, name, assignment, &living);
        let then = chain.iter().find_map(|step| match step {
            Step::Finish(_, status) => Some(ended(status)),
            _ => None,
        });
        return Cause::WorkerLost { worker, then };
    }
    let Some(registered) = view.workers.get(&worker) else {
        return match assignment.instance() {
            Some(_) => Cause::Reconnecting { worker },
            None => Cause::HandWorkerMissing { worker },
        };
    };
    if meta.is_some() && registered.instance() != assignment.instance() {
        return Cause::Reconnecting { worker };
    }
    let Some(_) = registered.instance() else {
        let since = since(tree, &worker, name);
        return if open.cancel { Cause::Cancelling { worker } } else { Cause::RunningByHand { worker, since } };
    };
    let own = made.get(&(worker.clone(), name)).map_or(0, |(czxid, _)| *czxid);
    // What an earlier primary assigned before its successor raised the fence may have been started then, and runs on.
    if meta.is_some_and(|meta| meta.fence != view.fence) && own > *raised {
        return Cause::Fenced { worker };
    }
    if open.cancel {
        return Cause::Cancelling { worker };
    }
    let earlier = view.assign[&worker].tasks.iter().filter(|(other, assignment)| {
        let busy = view.tasks.get(other).is_none_or(|known| known.open().is_some());
        let runs = assignment.meta.as_ref().is_none_or(|meta| !meta.returned);
        busy && runs && made.get(&(worker.clone(), **other)).is_some_and(|(czxid, _)| *czxid < own)
    });
    let (slots, since) = (registered.slots(), since(tree, &worker, name));
    if earlier.count() >= usize::try_from(slots).unwrap_or(usize::MAX) {
        return Cause::NotTakenUp { worker, slots, since };
    }
    Cause::Running { worker, attempt: meta.map(|meta| meta.attempt), since }
}

fn since(tree: &Tree, worker: &WorkerName, name: TaskName) -> Duration {
    let then = tree.made.get(&(worker.clone(), name)).map_or(tree.view.now_ms, |(_, at_ms)| *at_ms);
    Duration::from_millis(u64::try_from(tree.view.now_ms - then).unwrap_or(0))
}

/// Why nobody has a task.
fn unassigned(view: &View, name: TaskName, open: &Open) -> Cause {
    let living = view.living();
    match plan::unassigned_task(view, name, open, &living) {
        Next::End(Outcome::Lost, reason) => Cause::AttemptsUsedUp { reason },
        Next::End(Outcome::Cancelled, _) if open.cancel => Cause::CancelledUnstarted,
        Next::End(Outcome::Cancelled, reason) => Cause::PredecessorFailed { reason },
        Next::End(_, reason) => Cause::Undecodable { reason },
        Next::Wait(Wait::After(after)) => Cause::Waiting { after },
        Next::Wait(Wait::Until(at_ms)) => {
            let failed = open.attempts.values().filter(|record| record.kind == Some(AttemptKind::Failed));
            let left = Duration::from_millis(u64::try_from(at_ms - view.now_ms).unwrap_or(0));
            Cause::Pausing { failures: failed.count(), left }
        }
        Next::Record(..) | Next::BackTo(_) | Next::Wait(Wait::Holder(_)) => {
            unreachable!("only a primary, which watches, knows of an assignment that vanished")
        }
        Next::Place => unplaced(view, name, open),
    }
}

/// Why a task that could be assigned is not.
fn unplaced(view: &View, name: TaskName, open: &Open) -> Cause {
    if view.workers.is_empty() {
        return Cause::NoWorker;
    }
    let matching: BTreeSet<&WorkerName> = view
        .workers
        .iter()
        .filter(|(worker, registered)| plan::fits(worker, registered, open))
        .map(|(worker, _)| worker)
        .collect();
    if matching.is_empty() {
        return Cause::NoneMatches { workers: view.workers.len(), asked: asked(open) };
    }
    let room = plan::room(view);
    if !matching.iter().any(|worker| room.contains_key(*worker)) {
        let workers = matching.into_iter().map(|worker| (worker.clone(), out_of_service(view, worker)));
        return Cause::OutOfService { workers: workers.collect() };
    }
    // What a primary would do with the tree as it is.
    let now = plan::plan(view, Retention { age_ms: 0, count: 0 });
    let assigned = now.chains.iter().flatten().find_map(|step| match step {
        Step::Assign(worker, task, _) if *task == name => Some(worker.clone()),
        _ => None,
    });
    if let Some(worker) = assigned {
        return Cause::NextToBeAssigned { worker };
    }
    let before = before(view, name, open);
    if matching.iter().all(|worker| room.get(*worker).is_none_or(|free| *free == 0)) {
        Cause::Busy { workers: matching.len(), before }
    } else {
        Cause::Queued { before }
    }
}

/// How many tasks that could be assigned as well are served before this one.
fn before(view: &View, name: TaskName, open: &Open) -> usize {
    let living = view.living();
    let held: BTreeSet<&TaskName> = view.assign.values().flat_map(|desk| desk.tasks.keys()).collect();
    let duplicates = view.tasks.duplicates();
    let own = (std::cmp::Reverse(plan::priority(open)), name);
    let first = view.tasks.iter().filter(|(other, known)| {
        let Some(open) = known.open() else { return false };
        (std::cmp::Reverse(plan::priority(open)), **other) < own
            && !held.contains(other)
            && !duplicates.contains(other)
            && plan::unassigned_task(view, **other, open, &living) == Next::Place
    });
    first.count()
}

fn asked(open: &Open) -> String {
    let Some(meta) = open.meta.as_ref().ok().and_then(Option::as_ref) else { return String::new() };
    let on = meta.on.iter().map(|on| format!("--on {on}"));
    let require = meta.require.iter().map(|(key, value)| format!("--require {key}={value}"));
    on.chain(require).collect::<Vec<_>>().join(" ")
}

fn out_of_service(view: &View, worker: &WorkerName) -> &'static str {
    match view.assign.get(worker) {
        None => "has no node below /assign yet",
        Some(desk) if desk.drain => "is drained",
        Some(desk) if desk.closed => "has a node below /assign in which nothing can be created",
        Some(_) => "is stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_master::view::{Desk, Recorded, Stage};
    use znode_paths::{AssignmentMeta, Instance, TaskMeta, Worker, WorkerMeta};

    const NOW_MS: i64 = 1_000_000;
    const FENCE: i64 = 50;

    fn task(number: u32) -> TaskName {
        TaskName::from_number(number)
    }

    fn worker(name: &str) -> WorkerName {
        name.parse().unwrap()
    }

    /// A tree under construction, in which the task 7 is to be explained.
    struct Scene(Tree);

    impl Scene {
        /// The task is there, and a master; nothing else.
        fn new() -> Scene {
            let view = View { fence: FENCE, now_ms: NOW_MS, census_ms: NOW_MS, ..View::default() };
            let scene = Scene(Tree { view, raised: NOW_MS - 60, primary: Primary::Daemon, made: BTreeMap::new() });
            scene.task(7, |_| ())
        }

        /// A task with an id of its own; its czxid is its number.
        fn task(mut self, number: u32, change: impl FnOnce(&mut Open)) -> Scene {
            let submit = format!("submit-{number}");
            let meta = Ok(Some(TaskMeta::new(submit.clone())));
            let mut open = Open { meta, cancel: false, attempts: BTreeMap::new(), submitted_ms: 0 };
            change(&mut open);
            let submit = open.meta.as_ref().ok().and_then(|meta| meta.as_ref()?.submit.clone());
            let known = Known { czxid: number.into(), submit, stage: Stage::Open(Box::new(open)) };
            self.0.view.tasks.insert(task(number), known);
            self
        }

        fn ended(mut self, number: u32, word: &str) -> Scene {
            let stage = Stage::Ended { outcome: Outcome::of(word), at_ms: 0 };
            self.0.view.tasks.insert(task(number), Known { czxid: number.into(), submit: None, stage });
            self
        }

        /// A worker with this instance (0: by hand) and these slots, and its desk.
        fn worker(mut self, name: &str, instance: u64, slots: u32) -> Scene {
            let meta = (instance > 0).then(|| WorkerMeta::new(Instance::from_random(instance), slots));
            self.0.view.workers.insert(worker(name), Worker { address: String::new(), meta });
            self.0.view.assign.entry(worker(name)).or_default();
            self
        }

        fn desk(mut self, name: &str, change: impl FnOnce(&mut Desk)) -> Scene {
            change(self.0.view.assign.entry(worker(name)).or_default());
            self
        }

        /// An assignment to this instance (0: to a worker registered by hand), made so many seconds ago.
        fn assigned(mut self, name: &str, instance: u64, number: u32, ago: i64) -> Scene {
            let instance = (instance > 0).then(|| Instance::from_random(instance));
            let meta = Some(AssignmentMeta::new(instance, FENCE, 1, number.into()));
            let desk = self.0.view.assign.entry(worker(name)).or_default();
            desk.tasks.insert(task(number), Assignment { meta });
            self.0.made.insert((worker(name), task(number)), (NOW_MS - ago, NOW_MS - ago * 1000));
            self
        }

        /// Changes the assignment of the task to this worker.
        fn but(self, name: &str, change: impl FnOnce(&mut AssignmentMeta)) -> Scene {
            self.desk(name, |desk| change(desk.tasks.get_mut(&task(7)).unwrap().meta.as_mut().unwrap()))
        }

        fn primary(mut self, primary: Primary) -> Scene {
            self.0.primary = primary;
            self
        }

        fn live(mut self, instance: u64) -> Scene {
            self.0.view.live.insert(Instance::from_random(instance));
            self
        }

        /// The word for the cause, the state, and a part of the sentence.
        #[track_caller]
        fn is(self, word: &str, state: &str, says: &str) {
            let cause = why(task(7), Facts::Open(Box::new(self.0))).expect("the task is there");
            assert_eq!((cause.word(), cause.state()), (word, state), "{cause}");
            assert!(WORDS.contains(&word), "{word}");
            assert!(cause.to_string().contains(says), "{says:?} is not in {cause}");
        }
    }

    fn ask(open: &mut Open) -> &mut TaskMeta {
        open.meta.as_mut().unwrap().as_mut().unwrap()
    }

    #[track_caller]
    fn check_ended(status: &str, sentence: &str) {
        let status = Status::decode(status.as_bytes());
        let cause = why(task(7), Facts::Ended { status: status.into(), since: Duration::from_secs(61) }).unwrap();
        assert_eq!((cause.word(), cause.to_string().as_str()), ("finished", sentence));
    }

    #[test]
    fn a_status_says_how_it_ended() {
        check_ended(
            "done\n{\"zk\":1,\"exit_code\":0,\"worker\":\"w\",\"attempt\":2}",
            "the command exited with 0, on w (attempt 2), 1m1s ago",
        );
        check_ended(
            "failed\n{\"zk\":1,\"signal\":9,\"worker\":\"w\"}",
            "the command was ended by signal 9, on w, 1m1s ago",
        );
        check_ended("lost\n{\"zk\":1,\"reason\":\"attempt 3 of 3\"}", "attempt 3 of 3, 1m1s ago");
        check_ended("done", "its status says no more than that, 1m1s ago");
    }

    #[test]
    fn a_task_that_is_not_there_has_no_cause() {
        assert_eq!(why(task(8), Facts::Open(Box::new(Scene::new().0))), None);
    }

    #[test]
    fn a_worker_that_has_it_runs_it() {
        let scene = || Scene::new().worker("w", 1, 1).assigned("w", 1, 7, 75);
        scene().is("running", "running", "w has it since 1m15s ago (attempt 1)");
        scene().task(7, |open| open.cancel = true).is("cancelling", "running", "w is to stop it");
        // Made before the fence was raised, it may have been started before.
        scene().but("w", |meta| meta.fence -= 1).is("running", "running", "w has it");
        let late = Scene::new().worker("w", 1, 1).assigned("w", 1, 7, 5);
        late.but("w", |meta| meta.fence -= 1).is("fenced", "assigned", "w, which will not start it");
        scene().but("w", |meta| meta.returned = true).is("returned", "pending", "w gave it back");
        scene().but("w", |meta| meta.task = 1).is("earlier_task", "pending", "an earlier task of this name at w");
        // Whoever would have to act makes no difference to what is running.
        scene().primary(Primary::None).is("running", "running", "w has it");
    }

    #[test]
    fn more_assignments_than_slots_are_taken_up_in_the_order_of_their_making() {
        let scene =
            |own| Scene::new().task(9, |_| ()).worker("w", 1, 1).assigned("w", 1, 9, 20).assigned("w", 1, 7, own);
        scene(10).is("not_taken_up", "assigned", "assigned to w 10s ago and is not taken up yet");
        scene(30).is("running", "running", "");
        scene(10).ended(9, "done").is("running", "running", "");
    }

    #[test]
    fn a_lost_worker_is_told_from_one_between_two_sessions() {
        let scene = || Scene::new().assigned("w", 1, 7, 5);
        scene().is("worker_lost", "assigned", "its worker w was lost: a primary is to record that");
        scene().worker("w", 2, 1).is("worker_lost", "assigned", "its worker w was lost");
        scene().live(1).is("reconnecting", "assigned", "w has it and lives");
        scene().worker("w", 2, 1).live(1).is("reconnecting", "assigned", "w has it and lives");
        let once = scene().task(7, |open| ask(open).no_requeue = true);
        once.is("worker_lost", "assigned", "may not start again: its worker w was lost, and it may start once only");
    }

    #[test]
    fn a_worker_registered_by_hand_is_given_a_second() {
        let scene = || Scene::new().assigned("h", 0, 7, 5);
        scene().is("hand_worker_missing", "assigned", "after a second without it");
        scene().worker("h", 0, 1).is("assigned_by_hand", "running", "h, registered by hand, has it since 5s ago");
        scene().worker("h", 0, 1).task(7, |open| open.cancel = true).is("cancelling", "running", "h is to stop it");
        scene().worker("h", 1, 1).is("worker_lost", "assigned", "its worker h was lost");
    }

    #[test]
    fn of_several_assignments_the_one_that_is_run_counts() {
        let scene = Scene::new().assigned("a", 9, 7, 5).worker("w", 1, 1).assigned("w", 1, 7, 5);
        scene.is("running", "running", "w has it");
    }

    #[test]
    fn what_is_about_to_end_says_as_what() {
        Scene::new().task(7, |open| open.meta = Err("the data is not UTF-8".into())).is(
            "undecodable",
            "pending",
            "not UTF-8",
        );
        Scene::new().task(7, |open| open.cancel = true).is("cancelled_unstarted", "pending", "before it started");
        let used_up = |open: &mut Open| {
            ask(open).max_attempts = 2;
            let lost = |kind| Recorded { kind, at_ms: 0 };
            open.attempts = BTreeMap::from([(1, lost(Some(AttemptKind::Lost))), (2, lost(None))]);
        };
        Scene::new().task(7, used_up).is("attempts_used_up", "pending", "attempt 2 of 2");
        let after = |open: &mut Open| ask(open).after = vec![task(3)];
        Scene::new().task(7, after).is(
            "predecessor_failed",
            "pending",
            "task-0000000003, which it waited for, does not exist",
        );
        Scene::new().ended(3, "failed").task(7, after).is("predecessor_failed", "pending", "is failed");
        Scene::new().task(3, |_| ()).task(7, after).is("waiting", "pending", "it waits for task-0000000003 to be done");
        let failed = |open: &mut Open| {
            (ask(open).retries, ask(open).backoff_ms) = (3, 60_000);
            let failed = Recorded { kind: Some(AttemptKind::Failed), at_ms: NOW_MS };
            open.attempts = BTreeMap::from([(1, failed)]);
        };
        Scene::new().task(7, failed).is("pausing", "pending", "it is tried again in 1m");
        let same = |open: &mut Open| ask(open).submit = Some("submit-7".into());
        Scene::new().task(3, same).is("duplicate", "pending", "a second copy of task-0000000003");
    }

    #[test]
    fn without_a_master_it_is_said_what_else_is_missing() {
        Scene::new().primary(Primary::None).is("no_master", "pending", "start zk-master); apart from that: no worker");
        let by_hand = Primary::ByHand("m:1".into());
        Scene::new().primary(by_hand).is("master_by_hand", "pending", "\"m:1\", played by hand");
    }

    #[test]
    fn workers_that_cannot_take_it_say_why() {
        Scene::new().is("no_worker", "pending", "start zk-worker");
        let on = |open: &mut Open| {
            ask(open).on = Some(worker("v"));
            ask(open).require = BTreeMap::from([("disk".into(), "ssd".into())]);
        };
        Scene::new().task(7, on).worker("w", 1, 1).is("none_matches", "pending", "--on v --require disk=ssd");
        Scene::new().worker("w", 1, 1).desk("w", |desk| desk.drain = true).is(
            "out_of_service",
            "pending",
            "w is drained",
        );
        Scene::new().worker("w", 1, 1).desk("w", |desk| desk.closed = true).is(
            "out_of_service",
            "pending",
            "nothing can be created",
        );
        let mut undesked = Scene::new().worker("w", 1, 1);
        undesked.0.view.assign.clear();
        undesked.is("out_of_service", "pending", "w has no node below /assign yet");
        let mut stopping = Scene::new().worker("w", 1, 1);
        stopping.0.view.workers.get_mut(&worker("w")).unwrap().meta.as_mut().unwrap().stopping = true;
        stopping.is("out_of_service", "pending", "w is stopping");
    }

    #[test]
    fn the_queue_is_told_from_full_workers() {
        let busy = || Scene::new().task(1, |_| ()).worker("w", 1, 1).assigned("w", 1, 1, 3);
        busy().is("busy", "pending", "workers that match (1) are busy; before it in the queue: 0");
        busy().task(2, |_| ()).task(9, |open| ask(open).priority = 1).is("busy", "pending", "in the queue: 2");
        let free = || Scene::new().worker("w", 1, 1);
        free().is("next", "pending", "assign it to w now");
        free().task(3, |_| ()).is("next", "pending", "");
        free().task(3, |_| ()).task(4, |_| ()).is("queued", "pending", "those before it in the queue: 2");
        free().task(3, |_| ()).task(7, |open| ask(open).priority = 1).is("next", "pending", "");
        free().task(8, |_| ()).is("next", "pending", "");
    }
}
