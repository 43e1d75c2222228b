//! Tasks without watches: which of them are asked for now, and which get a watch after all. Pure.
//!
//! A watch costs a request and a notification for each task. Where thousands are submitted that take a moment each, they end about in
//! the order in which they were created, so it is known well enough which of them to ask for, sixteen with one request. What is
//! asked for in vain several times takes longer, and gets its watch. The less comes of it, the more rarely is asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use znode_paths::TaskName;

/// So many are asked for when nothing is known yet, and always beyond those that probably have ended.
const FEW: usize = 4;
const MANY: usize = 256;

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_millis(80);

/// What was asked for so often gets a watch.
const PATIENCE: u8 = 8;

/// The tasks.
#[derive(Debug)]
pub(crate) struct Unwatched {
    /// How often each was asked for.
    asked: BTreeMap<TaskName, u8>,
    /// How many are asked for at once, and when the next time.
    window: usize,
    pause: Duration,
    next: Instant,
}

impl Unwatched {
    pub(crate) fn new(now: Instant) -> Self {
        Unwatched { asked: BTreeMap::new(), window: FEW, pause: SHORT, next: now }
    }

    /// One more.
    pub(crate) fn add(&mut self, task: TaskName) {
        self.asked.insert(task, 0);
    }

    /// When some are to be asked for.
    pub(crate) fn wake(&self) -> Option<Instant> {
        (!self.asked.is_empty()).then_some(self.next)
    }

    /// Those that are to be asked for now.
    pub(crate) fn due(&self, now: Instant) -> Vec<TaskName> {
        let window = if self.next <= now { self.window } else { 0 };
        self.asked.keys().take(window).copied().collect()
    }

    /// There is nothing more to come of a task.
    pub(crate) fn close(&mut self, task: TaskName) {
        self.asked.remove(&task);
    }

    /// These were asked for, and have ended or not. Returns those that are not kept here any longer: they get a watch. What has
    /// ended is, until it is closed.
    pub(crate) fn answered(&mut self, tasks: impl Iterator<Item = (TaskName, bool)>, now: Instant) -> Vec<TaskName> {
        let (mut ended, mut lasting) = (0, Vec::new());
        for (task, has_ended) in tasks {
            let Some(asked) = self.asked.get_mut(&task) else { continue };
            *asked = asked.saturating_add(1);
            if has_ended {
                ended += 1;
            } else if *asked >= PATIENCE {
                lasting.push(task);
                self.asked.remove(&task);
            }
        }
        (self.window, self.pause) = match ended {
            0 => ((self.window * 2).min(MANY), (self.pause * 2).min(LONG)),
            _ => ((ended * 2 + FEW).min(MANY), SHORT),
        };
        self.next = now + self.pause;
        lasting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: usize) -> TaskName {
        TaskName::from_number(u32::try_from(number).unwrap())
    }

    /// Asks for a thousand tasks until none is left; returns how many answers that took, and how many tasks got a watch.
    fn ask(has_ended: impl Fn(usize, Duration) -> bool) -> (usize, usize) {
        let begun = Instant::now();
        let mut unwatched = Unwatched::new(begun);
        (0..1000).for_each(|number| unwatched.add(task(number)));
        let number: BTreeMap<TaskName, usize> = (0..1000).map(|number| (task(number), number)).collect();
        let (mut answers, mut watched) = (0, 0);
        while let Some(now) = unwatched.wake() {
            let due = unwatched.due(now);
            assert!(!due.is_empty(), "it is time to ask for some");
            answers += due.len();
            let ended = |task: &TaskName| has_ended(number[task], now - begun);
            let told: Vec<(TaskName, bool)> = due.iter().map(|task| (*task, ended(task))).collect();
            watched += unwatched.answered(told.iter().copied(), now).len();
            told.into_iter().filter(|(_, ended)| *ended).for_each(|(task, _)| unwatched.close(task));
        }
        (answers, watched)
    }

    #[test]
    fn what_ends_in_its_order_needs_few_answers_and_no_watches() {
        let (answers, watched) = ask(|number, time| time >= Duration::from_millis(10 + u64::try_from(number).unwrap()));
        assert!(answers < 4000 && watched == 0, "{answers} answers, {watched} watches");
    }

    #[test]
    fn what_does_not_end_gets_a_watch_and_is_not_asked_for_any_more() {
        let (answers, watched) = ask(|_, _| false);
        assert!(answers <= 1000 * usize::from(PATIENCE) && watched == 1000, "{answers} answers, {watched} watches");
    }

    #[test]
    fn what_lasts_is_in_nobodys_way() {
        let (answers, watched) =
            ask(|number, time| number >= 50 && time >= Duration::from_millis(10 + u64::try_from(number).unwrap()));
        assert!(answers < 5000 && (50..200).contains(&watched), "{answers} answers, {watched} watches");
    }

    #[test]
    fn nothing_is_asked_for_before_its_time() {
        let now = Instant::now();
        let mut unwatched = Unwatched::new(now);
        assert_eq!(unwatched.wake(), None);
        unwatched.add(task(1));
        assert_eq!(unwatched.due(now), [task(1)]);
        assert!(unwatched.answered([(task(1), false)].into_iter(), now).is_empty());
        assert!(unwatched.due(now).is_empty() && unwatched.wake() > Some(now));
    }
}
