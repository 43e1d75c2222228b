//! What a primary does about what it has read: decisions as values. No I/O, no clock, no randomness.
//!
//! Why an order of writes is safe is decided here. A [`Chain`] is carried out in its order and stops where a step fails;
//! chains are independent of each other. Every step is a create-if-absent under a fixed name or a delete of something
//! that nobody needs any more, so that a master that dies after any of them leaves a tree from which the next one plans
//! the rest:
//!
//! * *record, delete, assign again* for what a lost worker had. Recorded first, a start is never forgotten: a task that
//!   may start once only does not start again. "Already there" means already counted, for the number of the record is the
//!   number in the assignment. Assigned again only in a later plan, when the assignment is seen to be gone.
//! * A status is never written by the primary while the task may run: only when its worker is lost (and so its processes
//!   are dead), when it never started, or when it is a worker registered by hand that cannot be asked.
//! * An assignment is deleted only when its worker is lost, its task is gone or has a status, or its worker returned it; and,
//!   unless its task has ended and needs none, only if it still is the one about which that was decided. A primary whose
//!   `/master` somebody deleted by hand still has its session, and the next one may have made another at the same path.
//!   ZooKeeper cannot compare and delete at once (all versions are 0), so it is read right before: what remains is a delete
//!   that is on its way while all of this happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{
    Assignment, AssignmentMeta, Attempt, AttemptKind, AttemptMeta, Instance, Outcome, Status, TaskMeta, TaskName,
    Worker, WorkerName, paths,
};

use crate::view::{Known, Open, SETTLING_MS, Stage, Vanished, View};

mod places;

pub use places::QUICK_MS;

use places::Places;

/// What to keep of finished tasks.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// For how long, in milliseconds.
    pub age_ms: i64,
    /// How many.
    pub count: usize,
}

/// Nothing finished is removed sooner: a client between two sessions must find it (PROTOCOL section 3, Housekeeping).
const KEPT_AT_LEAST_MS: i64 = 60_000;

/// The desk of a worker that is missing for so long is removed when it is empty.
const DESK_KEPT_MS: i64 = 60_000;

/// One write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Create `attempt-<number>` below the task, if absent.
    Record(TaskName, u32, Attempt),
    /// Create the task's status, if absent.
    Finish(TaskName, Status),
    /// Delete an assignment, if it still is this one; whichever it is, where its task has ended.
    Unassign(WorkerName, TaskName, Option<Assignment>),
    /// Create an assignment.
    Assign(WorkerName, TaskName, AssignmentMeta),
    /// Write this over an assignment, if nothing but that it is recalled has changed.
    Recall(WorkerName, TaskName, AssignmentMeta),
    /// Delete a task and what is below it.
    Remove(TaskName, Removal),
    /// Delete the empty `/assign/<worker>` of a worker long gone.
    RemoveDesk(WorkerName),
}

/// Why a task is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removal {
    /// It is a later one of the same submit.
    Duplicate,
    /// It has ended, and was kept as long as it had to be. Its key, if any, can be used anew.
    Ended,
}

impl Step {
    /// Where it writes.
    pub fn path(&self) -> String {
        match self {
            Step::Record(task, number, _) => paths::attempt(task, *number),
            Step::Finish(task, _) => paths::status(task),
            Step::Unassign(worker, task, _) | Step::Assign(worker, task, _) | Step::Recall(worker, task, _) => {
                paths::assignment(worker, task)
            }
            Step::Remove(task, _) => paths::task(task),
            Step::RemoveDesk(worker) => paths::assignments(worker),
        }
    }
}

/// Steps to be carried out one after the other.
pub type Chain = Vec<Step>;

/// What to do now, and when to look again though nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a step that is not carried out is a decision lost"]
pub struct Plan {
    /// In any order, also at the same time.
    pub chains: Vec<Chain>,
    /// By the servers' clock.
    pub look_again_ms: Option<i64>,
    /// Whoever runs something has enough to go on with: what is decided a moment later holds nobody up.
    pub supplied: bool,
}

impl Plan {
    pub(crate) fn look_again_at(&mut self, at_ms: i64) {
        self.look_again_ms = Some(self.look_again_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
    }
}

/// Decides what is to be done.
pub fn plan(view: &View, retention: Retention) -> Plan {
    let living = view.living();
    let duplicates = view.tasks.duplicates();
    let mut plan = Plan::default();
    let mut held = BTreeSet::new();

    for name in duplicates {
        plan.chains.push(vec![Step::Remove(*name, Removal::Duplicate)]);
    }
    for (worker, desk) in &view.assign {
        for (name, assignment) in &desk.tasks {
            held.insert(*name);
            let chain = held_task(view, worker, *name, assignment, &living);
            if !chain.is_empty() && !duplicates.contains(name) {
                plan.chains.push(chain);
            }
        }
    }
    let free = |name: &TaskName| !held.contains(name) && !duplicates.contains(name);
    let mut waiting = BTreeSet::new();
    let special: BTreeSet<TaskName> = view.tasks.special().chain(view.vanished.keys().copied()).collect();
    for name in special.into_iter().filter(free) {
        let Some((known, open)) = view.tasks.get(&name).and_then(|known| Some((known, known.open()?))) else {
            continue;
        };
        match unassigned_task(view, name, open, &living) {
            Next::End(outcome, reason) => {
                plan.chains.push(vec![Step::Finish(name, status(open, outcome, reason))]);
            }
            Next::Record(number, attempt) => plan.chains.push(vec![Step::Record(name, number, attempt)]),
            Next::BackTo(worker) => plan.chains.push(vec![assign(view, worker, name, known, open)]),
            Next::Wait(Wait::Until(at_ms)) => plan.look_again_at(at_ms),
            Next::Wait(_) => {}
            Next::Place => _ = waiting.insert((Reverse(priority(open)), name)),
        }
    }
    place_in_turn(view, &mut plan, waiting, free);
    housekeeping(view, retention, &mut plan);
    plan
}

/// Assigns what is next, until there is no room, and recalls what waits in the wrong place. `waiting` are those of the special
/// ones whose turn may have come.
fn place_in_turn(
    view: &View,
    plan: &mut Plan,
    waiting: BTreeSet<(Reverse<i64>, TaskName)>,
    free: impl Fn(&TaskName) -> bool,
) {
    let mut places = Places::of(view);
    let (mut queue, mut special) = (view.tasks.queue().peekable(), waiting.into_iter().peekable());
    // Where nobody with room may run one, nobody may run the next of the same kind.
    let mut hopeless = BTreeSet::new();
    let mut looked = false;
    loop {
        let next = match (queue.peek(), special.peek()) {
            (Some(next), Some(other)) if other < next => special.next(),
            (None, _) => special.next(),
            (Some((_, name)), _) if view.vanished.contains_key(name) => {
                queue.next();
                continue;
            }
            (Some(_), _) => queue.next(),
        };
        let Some(order @ (_, name)) = next else { break };
        let Some((known, open)) = view.tasks.get(&name).and_then(|known| Some((known, known.open()?))) else {
            continue;
        };
        let kind = wishes(open);
        if !free(&name) || hopeless.contains(&kind) {
            continue;
        }
        if !std::mem::replace(&mut looked, true) && places.are_full(order) {
            break;
        }
        match places.take(order, open) {
            Some(worker) => plan.chains.push(vec![assign(view, worker, name, known, open)]),
            None => _ = hopeless.insert(kind),
        }
        looked = false;
    }
    plan.supplied = places.are_supplied();
    let (recalls, slow_ms) = places.recalls();
    let recall = |(worker, name, meta): (&WorkerName, _, _)| vec![Step::Recall(worker.clone(), name, meta)];
    plan.chains.extend(recalls.into_iter().map(recall));
    slow_ms.into_iter().for_each(|at_ms| plan.look_again_at(at_ms));
}

/// What a task asks of its worker.
fn wishes(open: &Open) -> Option<(Option<&WorkerName>, &BTreeMap<String, String>)> {
    let meta = open.meta.as_ref().ok().and_then(Option::as_ref)?;
    Some((meta.on.as_ref(), &meta.require))
}

/// What to do about a task that is assigned: nothing while whoever has it is to run it. `living` is [`View::living`].
pub fn held_task(
    view: &View,
    worker: &WorkerName,
    name: TaskName,
    assignment: &Assignment,
    living: &BTreeSet<Instance>,
) -> Chain {
    let unassign = Step::Unassign(worker.clone(), name, Some(assignment.clone()));
    let Some(known) = view.tasks.get(&name) else {
        return if view.unread.contains(&name) { Vec::new() } else { vec![unassign] };
    };
    let another = assignment.meta.as_ref().is_some_and(|meta| meta.task != known.czxid);
    let returned = assignment.meta.as_ref().is_some_and(|meta| meta.returned);
    let Stage::Open(open) = &known.stage else { return vec![Step::Unassign(worker.clone(), name, None)] };
    if another || returned {
        return vec![unassign];
    }
    if view.holder_lost(worker, assignment, living) {
        let number = assignment.meta.as_ref().map(|meta| meta.attempt);
        if number.is_some_and(|number| open.attempts.contains_key(&number)) {
            // By the primary before us, or by the worker when it had failed; either died before the next step.
            return vec![unassign];
        }
        let first = match after_loss(worker, assignment, open) {
            Next::End(outcome, reason) => Step::Finish(name, status(open, outcome, reason)),
            Next::Record(number, attempt) => Step::Record(name, number, attempt),
            Next::BackTo(_) | Next::Wait(_) | Next::Place => unreachable!("a loss is recorded or ends the task"),
        };
        return vec![first, unassign];
    }
    let by_hand = view.workers.get(worker).is_none_or(|worker| worker.instance().is_none());
    if open.cancel && by_hand && assignment.instance().is_none() {
        let why = "cancelled while a worker registered by hand had it".to_owned();
        return vec![Step::Finish(name, status(open, Outcome::Cancelled, why)), unassign];
    }
    // A worker that runs it sees that by itself; one where it waits for a slot looks at it when it is recalled.
    if let Some(meta) = assignment.meta.as_ref().filter(|meta| open.cancel && meta.instance.is_some())
        && !meta.recalled
        && !meta.started
    {
        return vec![Step::Recall(worker.clone(), name, AssignmentMeta { recalled: true, ..meta.clone() })];
    }
    Vec::new()
}

/// What comes next for a task that has no status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<'a> {
    /// It ends, for this reason.
    End(Outcome, String),
    /// This attempt is recorded.
    Record(u32, Attempt),
    /// Its assignment vanished: it goes back to whoever had it.
    BackTo(&'a WorkerName),
    /// Something has to happen first.
    Wait(Wait<'a>),
    /// It is assigned as soon as it is its turn and a worker has room for it.
    Place,
}

/// What a task waits for that cannot be assigned yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait<'a> {
    /// This task is to be `done` before.
    After(TaskName),
    /// Its assignment vanished, and whoever had it lives but is not registered.
    Holder(&'a WorkerName),
    /// The pause after a failure is over then, in milliseconds by the servers' clock.
    Until(i64),
}

/// What becomes of a task whose worker is lost with it.
fn after_loss(worker: &WorkerName, assignment: &Assignment, open: &Open) -> Next<'static> {
    if open.cancel {
        return Next::End(Outcome::Cancelled, format!("cancelled, and its worker {worker} was lost"));
    }
    let number = assignment.meta.as_ref().map_or_else(|| next_attempt(open), |meta| meta.attempt);
    let mut losses = losses(open);
    losses.insert(number);
    if let Some(why) = no_more_starts(open, losses.len()) {
        return Next::End(Outcome::Lost, format!("its worker {worker} was lost, {why}"));
    }
    let meta = AttemptMeta {
        worker: Some(worker.clone()),
        instance: assignment.instance(),
        reason: "its worker was lost".to_owned(),
        ..AttemptMeta::default()
    };
    Next::Record(number, Attempt::lost(meta))
}

/// The attempts that ended because of a lost worker; a record that cannot be read counts, to be on the safe side.
fn losses(open: &Open) -> BTreeSet<u32> {
    let lost = open.attempts.iter().filter(|(_, record)| record.kind != Some(AttemptKind::Failed));
    lost.map(|(number, _)| *number).collect()
}

/// Until when a task pauses after its latest failure, if it has failed: the time of the record is the servers', and the
/// length of the pause the same for every master ([`TaskMeta::pause_ms`]).
fn pause_until_ms(czxid: i64, open: &Open) -> Option<i64> {
    let meta = open.meta.as_ref().ok()?.as_ref()?;
    let failed = open.attempts.values().filter(|record| record.kind == Some(AttemptKind::Failed));
    let failures = u32::try_from(failed.clone().count()).unwrap_or(u32::MAX);
    let latest = failed.map(|record| record.at_ms).max()?;
    Some(latest.saturating_add_unsigned(meta.pause_ms(czxid, failures)))
}

fn no_more_starts(open: &Open, losses: usize) -> Option<String> {
    let meta = open.meta.as_ref().ok().and_then(Option::as_ref);
    if losses > 0 && meta.is_some_and(|meta| meta.no_requeue) {
        return Some("and it may start once only".to_owned());
    }
    let most = meta.map_or_else(|| TaskMeta::new(String::new()).max_attempts, |meta| meta.max_attempts);
    let used_up = losses >= usize::try_from(most.max(1)).unwrap_or(usize::MAX);
    used_up.then(|| format!("attempt {losses} of {most}"))
}

fn next_attempt(open: &Open) -> u32 {
    open.attempts.last_key_value().map_or(1, |(number, _)| number.saturating_add(1))
}

/// What to do about a task that is not assigned. `living` is [`View::living`].
pub fn unassigned_task<'a>(view: &'a View, name: TaskName, open: &Open, living: &BTreeSet<Instance>) -> Next<'a> {
    let meta = match &open.meta {
        Ok(meta) => meta.as_ref(),
        Err(why) => return Next::End(Outcome::Failed, why.clone()),
    };
    if let Some(Vanished { worker, assignment }) = view.vanished.get(&name) {
        // Somebody deleted the assignment, and perhaps the processes still run: as long as whoever had it lives, nobody
        // else may get it. It comes back to them with a new fence, and they start it when the old processes are gone.
        return match view.holder_lost(worker, assignment, living) {
            true => after_loss(worker, assignment, open),
            false if view.assign.contains_key(worker) && view.workers.contains_key(worker) => Next::BackTo(worker),
            false => Next::Wait(Wait::Holder(worker)),
        };
    }
    if open.cancel {
        let when = if open.attempts.is_empty() { "before it started" } else { "before it started again" };
        return Next::End(Outcome::Cancelled, format!("cancelled {when}"));
    }
    let losses = losses(open).len();
    if losses > 0
        && let Some(why) = no_more_starts(open, losses)
    {
        return Next::End(Outcome::Lost, format!("its worker was lost, {why}"));
    }
    for before in meta.into_iter().flat_map(|meta| &meta.after) {
        match view.tasks.get(before).map(|known| &known.stage) {
            Some(Stage::Open(_)) => return Next::Wait(Wait::After(*before)),
            Some(Stage::Ended { outcome: Outcome::Done, .. }) => {}
            Some(Stage::Ended { outcome, .. }) => {
                return Next::End(Outcome::Cancelled, format!("{before}, which it waited for, is {}", outcome.word()));
            }
            None if view.unread.contains(before) => return Next::Wait(Wait::After(*before)),
            None => {
                return Next::End(Outcome::Cancelled, format!("{before}, which it waited for, does not exist"));
            }
        }
    }
    let czxid = view.tasks.get(&name).map_or(0, |known| known.czxid);
    match pause_until_ms(czxid, open) {
        Some(until_ms) if until_ms > view.now_ms => Next::Wait(Wait::Until(until_ms)),
        _ => Next::Place,
    }
}

/// The status that a primary writes: one word for a task made by hand, as in the transcript; but somebody whose data
/// cannot be decoded is told why.
fn status(open: &Open, outcome: Outcome, reason: String) -> Status {
    match open.meta {
        Ok(None) => Status::plain(outcome),
        Ok(Some(_)) | Err(_) => Status::because(outcome, reason),
    }
}

/// Higher is served first, then the lower number.
pub fn priority(open: &Open) -> i64 {
    open.meta.as_ref().ok().and_then(Option::as_ref).map_or(0, |meta| meta.priority)
}

/// The workers that take something new, and how many free slots each has.
pub fn room(view: &View) -> BTreeMap<&WorkerName, u32> {
    Places::of(view).free()
}

/// Whether a worker may run the task: its name and its labels are what `--on` and `--require` ask for.
pub fn fits(name: &WorkerName, worker: &Worker, open: &Open) -> bool {
    let Some(meta) = open.meta.as_ref().ok().and_then(Option::as_ref) else { return true };
    let labels = worker.meta.as_ref().map(|meta| &meta.labels);
    let has = |(key, value): (&String, &String)| labels.and_then(|labels| labels.get(key)) == Some(value);
    meta.on.as_ref().is_none_or(|on| on == name) && meta.require.iter().all(has)
}

fn assign(view: &View, worker: &WorkerName, name: TaskName, known: &Known, open: &Open) -> Step {
    let instance = view.workers[worker].instance();
    let meta = AssignmentMeta::new(instance, view.fence, next_attempt(open), known.czxid);
    Step::Assign(worker.clone(), name, AssignmentMeta { priority: priority(open), ..meta })
}

/// What is kept of what has ended, and when to look again.
fn housekeeping(view: &View, retention: Retention, plan: &mut Plan) {
    for (worker, since) in &view.missing_since_ms {
        if view.census_ms - since < SETTLING_MS {
            plan.look_again_at(since + SETTLING_MS);
            continue;
        }
        let Some(desk) = view.assign.get(worker) else { continue };
        if desk.tasks.is_empty() && !desk.drain && !desk.strangers {
            if view.now_ms - since >= DESK_KEPT_MS {
                plan.chains.push(vec![Step::RemoveDesk(worker.clone())]);
            } else {
                plan.look_again_at(since + DESK_KEPT_MS);
            }
        }
    }
    let surplus = view.tasks.removable_count().saturating_sub(retention.count);
    for (index, (at_ms, name)) in view.tasks.removable().enumerate() {
        let age = if index < surplus { KEPT_AT_LEAST_MS } else { retention.age_ms.max(KEPT_AT_LEAST_MS) };
        if view.now_ms - at_ms < age {
            // All others have ended later, and are kept at least as long.
            plan.look_again_at(at_ms.saturating_add(age));
            break;
        }
        plan.chains.push(vec![Step::Remove(name, Removal::Ended)]);
    }
}

#[cfg(test)]
mod tests;
