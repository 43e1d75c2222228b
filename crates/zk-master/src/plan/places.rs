//! Where a task can go: into a free slot, or ahead of one.
//!
//! A worker that runs short tasks would stand idle between the end of one and the assignment of the next. So when no slot
//! is free, a worker gets some tasks ahead; it starts them in the order of service as its slots become free. Nothing waits
//! there longer than it would have waited here:
//!
//! * Few are ahead of a task: it goes where fewer than [`ahead`] of those that are served before it wait. So what is served
//!   first overtakes what waits already.
//! * A worker that was given nothing for [`QUICK_MS`] runs long tasks: it gets nothing ahead, and what waits there is
//!   recalled. So is what waits at a worker that is taken out of service.
//! * A slot that nothing else takes gets what waits elsewhere: that is recalled.
//!
//! A worker answers a recall: it hands back what it has not started, and says so of what it has. What is known here of
//! what it has started is a guess, that what was assigned last is waiting; each wrong one is answered by the truth.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use znode_paths::{AssignmentMeta, TaskName, Worker, WorkerName};

use super::{fits, priority};
use crate::view::{Desk, Known, Open, View};

/// The order of service: higher priority, then lower number.
pub(super) type Order = (Reverse<i64>, TaskName);

/// A worker that was given something within this time runs short tasks.
pub const QUICK_MS: i64 = 1000;

/// A worker gets as many tasks ahead as it has slots, but no more than this: enough for tasks of a few milliseconds.
const MOST_AHEAD: u32 = 16;

/// With so many tasks ahead a worker does not notice that the primary pauses for a moment: half of what it gets, but no fewer than
/// two.
fn enough(worker: &Worker) -> usize {
    (ahead(worker) / 2).max(2)
}

/// How many tasks may wait at a worker before one is served.
fn ahead(worker: &Worker) -> usize {
    // Whoever is registered by hand gets one at a time.
    worker.meta.as_ref().map_or(0, |meta| meta.slots.min(MOST_AHEAD) as usize)
}

/// A worker that something can be assigned to, or recalled from.
struct Place<'a> {
    worker: &'a Worker,
    /// Slots that nothing has.
    free: u32,
    /// It takes something new.
    open: bool,
    /// An operator took it out of service.
    drained: bool,
    /// When it was given something for the last time.
    latest_ms: Option<i64>,
    /// It runs short tasks.
    quick: bool,
    /// What probably waits there for a slot.
    waiting: Vec<Waiting<'a>>,
    /// All that it has not said to have started, what was assigned last first.
    unanswered: Vec<Waiting<'a>>,
}

#[derive(Clone)]
struct Waiting<'a> {
    order: Order,
    open: &'a Open,
    /// What its assignment says; nothing when that is only about to be made.
    meta: Option<&'a AssignmentMeta>,
}

impl Waiting<'_> {
    /// It is recalled, and is not here yet to be assigned anew.
    fn comes_back(&self) -> bool {
        self.meta.is_some_and(|meta| meta.recalled || meta.returned || self.open.cancel)
    }
}

/// All of them.
pub(super) struct Places<'a>(BTreeMap<&'a WorkerName, Place<'a>>);

impl<'a> Places<'a> {
    pub(super) fn of(view: &'a View) -> Self {
        // A worker whose node below /assign is not there yet cannot be given anything.
        let place = |(name, desk): (&'a WorkerName, &'a Desk)| {
            let (name, worker) = view.workers.get_key_value(name)?;
            Some((name, Place::of(view, worker, desk)))
        };
        Places(view.assign.iter().filter_map(place).collect())
    }

    /// The free slots of those that take something new.
    pub(super) fn free(&self) -> BTreeMap<&'a WorkerName, u32> {
        self.0.iter().filter(|(_, place)| place.open).map(|(name, place)| (*name, place.free)).collect()
    }

    /// Whether there is nothing left for this task, wherever it may go, nor for any that is served after it.
    pub(super) fn are_full(&self, order: Order) -> bool {
        self.0.values().all(|place| place.free == 0 && !place.has_room_ahead(order))
    }

    /// Whether all that take something new have enough ahead.
    pub(super) fn are_supplied(&self) -> bool {
        let mut open = self.0.values().filter(|place| place.open).peekable();
        open.peek().is_some() && open.all(|place| place.free == 0 && place.waiting.len() >= enough(place.worker))
    }

    /// Finds a place for a task and takes it: at the worker with the most free slots of those that may run it; if there is
    /// none, ahead at the one where the fewest wait. The first by name among equals.
    pub(super) fn take(&mut self, order: Order, open: &'a Open) -> Option<&'a WorkerName> {
        if let Some(name) = self.take_free(open) {
            return Some(name);
        }
        let places = self.0.iter_mut();
        let fitting = places.filter(|(name, place)| place.has_room_ahead(order) && fits(name, place.worker, open));
        let (name, place) = fitting.min_by_key(|(name, place)| (place.waiting.len(), **name))?;
        place.waiting.push(Waiting { order, open, meta: None });
        Some(name)
    }

    fn take_free(&mut self, open: &Open) -> Option<&'a WorkerName> {
        let places = self.0.iter_mut();
        let fitting = places.filter(|(name, place)| place.open && place.free > 0 && fits(name, place.worker, open));
        let (name, place) = fitting.max_by_key(|(name, place)| (place.free, Reverse(**name)))?;
        place.free -= 1;
        Some(name)
    }

    /// What is to be recalled when all that could be assigned has its place, and when to look again.
    pub(super) fn recalls(mut self) -> (Vec<(&'a WorkerName, TaskName, AssignmentMeta)>, Option<i64>) {
        let mut recalls = Vec::new();
        let mut look_again_ms = None;
        let mut others = Vec::new();
        for (name, place) in &self.0 {
            let wanted = match place {
                Place { drained: true, .. } => &place.unanswered,
                Place { quick: false, .. } => &place.waiting,
                _ => {
                    others.extend(place.waiting.iter().map(|waiting| (*name, waiting.clone())));
                    if let (false, Some(latest_ms)) = (place.waiting.is_empty(), place.latest_ms) {
                        let slow_ms: i64 = latest_ms.saturating_add(QUICK_MS);
                        look_again_ms = Some(look_again_ms.map_or(slow_ms, |earlier: i64| earlier.min(slow_ms)));
                    }
                    continue;
                }
            };
            recalls.extend(wanted.iter().map(|waiting| (*name, waiting.clone())));
        }
        // The slots of those that come back are kept for them.
        others.sort_by_key(|(_, waiting)| (!waiting.comes_back(), waiting.order));
        let coming = recalls.iter().map(|(_, waiting)| waiting.open).collect::<Vec<_>>();
        coming.into_iter().for_each(|open| _ = self.take_free(open));
        others.retain(|(_, waiting)| self.take_free(waiting.open).is_some());
        recalls.extend(others);
        let recall = |(name, waiting): (&'a WorkerName, Waiting<'a>)| {
            let meta = waiting.meta.filter(|_| !waiting.comes_back())?;
            Some((name, waiting.order.1, AssignmentMeta { recalled: true, ..meta.clone() }))
        };
        (recalls.into_iter().filter_map(recall).collect(), look_again_ms)
    }
}

impl<'a> Place<'a> {
    fn of(view: &'a View, worker: &'a Worker, desk: &'a Desk) -> Self {
        let slots = worker.slots();
        let stopping = worker.meta.as_ref().is_some_and(|meta| meta.stopping);
        let has_slot = |task: &&TaskName| match view.tasks.get(task) {
            Some(known) => known.open().is_some(),
            // What is gone, or may not be read, is nothing that a worker starts.
            None => view.unread.contains(task),
        };
        let busy = desk.tasks.keys().filter(has_slot);
        let busy = u32::try_from(busy.count()).unwrap_or(u32::MAX);
        let latest_ms = desk.since_ms.values().copied().max();
        let (free, too_many) = (slots.saturating_sub(busy), busy.saturating_sub(slots));
        let mut unanswered: Vec<(Reverse<i64>, Waiting<'a>)> = Vec::new();
        for (task, assignment) in &desk.tasks {
            let Some(open) = view.tasks.get(task).and_then(Known::open) else { continue };
            // What was made by hand, or for another process, nobody answers for; who is stopping hands back unasked.
            let meta =
                assignment.meta.as_ref().filter(|meta| meta.instance.is_some() && meta.instance == worker.instance());
            if let Some(meta) = meta.filter(|meta| !meta.started && !stopping) {
                let since_ms = desk.since_ms.get(task).copied().unwrap_or(i64::MIN);
                unanswered.push((
                    Reverse(since_ms),
                    Waiting { order: (Reverse(priority(open)), *task), open, meta: Some(meta) },
                ));
            }
        }
        unanswered.sort_by_key(|(since_ms, waiting)| (*since_ms, Reverse(waiting.order)));
        let unanswered: Vec<Waiting<'a>> = unanswered.into_iter().map(|(_, waiting)| waiting).collect();
        Place {
            worker,
            free,
            open: !desk.drain && !desk.closed && !stopping,
            drained: desk.drain,
            latest_ms,
            quick: free > 0 || latest_ms.is_some_and(|latest_ms| view.now_ms - latest_ms < QUICK_MS),
            waiting: unanswered.iter().take(too_many as usize).cloned().collect(),
            unanswered,
        }
    }

    fn has_room_ahead(&self, order: Order) -> bool {
        let before = self.waiting.iter().filter(|waiting| waiting.order < order).count();
        // What overtakes others does not pile up without end either.
        self.open && self.quick && before < ahead(self.worker) && self.waiting.len() < 2 * ahead(self.worker)
    }
}
