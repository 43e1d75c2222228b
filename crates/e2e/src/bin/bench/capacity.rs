//! What an installation sustains: the arithmetic of docs/performance.md, and a simulation that it is held against.
//!
//! In the simulation tasks come at random times. The ensemble serves requests one after the other, each as long as its kind
//! takes; a task has a slot from its assignment until its status is written. Nothing else is slow: masters and workers are
//! many machines, and the ensemble is one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Requests of a task until it is there, until it runs, for its status, and afterwards: writes and reads, each by itself. The table
/// in docs/performance.md says which.
const SUBMIT: (f64, f64) = (1.0, 1.0);
const START: (f64, f64) = (1.0, 4.0);
const STATUS: (f64, f64) = (1.0, 1.0);
const AFTERWARDS: (f64, f64) = (4.0, 2.0);

/// An ensemble, and workers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installation {
    /// What the ensemble sustains of each alone, a second.
    pub(crate) writes: f64,
    pub(crate) reads: f64,
    /// Slots of all workers.
    pub(crate) slots: usize,
    /// How long a task runs, in seconds.
    pub(crate) runs: f64,
}

/// What came of a simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sustained {
    /// Tasks ended a second, from when the first came until the last ended.
    pub(crate) rate: f64,
    /// From submission to status in the second half, in seconds: the median and the 99th of 100.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Installation {
    /// How long the ensemble is busy with requests, in seconds.
    fn takes(&self, (writes, reads): (f64, f64)) -> f64 {
        writes / self.writes + reads / self.reads
    }

    /// The tasks a second that it can do: what the ensemble or what the slots can do, whichever is less.
    pub(crate) fn most(&self) -> f64 {
        let ensemble = 1.0 / [SUBMIT, START, STATUS, AFTERWARDS].map(|part| self.takes(part)).iter().sum::<f64>();
        let held = self.takes(START) + self.runs + self.takes(STATUS);
        #[expect(clippy::cast_precision_loss, reason = "a number of slots")]
        let slots = self.slots as f64 / held;
        ensemble.min(slots)
    }

    /// So many tasks that come at this rate.
    pub(crate) fn simulate(&self, rate: f64, count: usize, seed: u64) -> Sustained {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut came = Vec::with_capacity(count);
        let mut now = 0.0;
        for _ in 0..count {
            now -= (1.0 - random.f64()).ln() / rate;
            came.push(now);
        }
        let mut world = World { install: *self, busy_until: 0.0, free: self.slots, waiting: VecDeque::new() };
        // By time; of equal times the task that came first.
        let mut events: BinaryHeap<Reverse<(Time, usize, Stage)>> =
            came.iter().enumerate().map(|(task, at)| Reverse((Time(*at), task, Stage::Comes))).collect();
        let mut ended = vec![0.0; count];
        while let Some(Reverse((Time(now), task, stage))) = events.pop() {
            let next = match stage {
                Stage::Comes => Some((task, world.ask(now, SUBMIT), Stage::IsThere)),
                Stage::IsThere if world.free > 0 => {
                    world.free -= 1;
                    Some((task, world.ask(now, START), Stage::Runs))
                }
                Stage::IsThere => {
                    world.waiting.push_back(task);
                    None
                }
                Stage::Runs => Some((task, now + self.runs, Stage::Ends)),
                Stage::Ends => Some((task, world.ask(now, STATUS), Stage::HasStatus)),
                Stage::HasStatus => {
                    ended[task] = now;
                    world.ask(now, AFTERWARDS);
                    world.free += 1;
                    world.waiting.pop_front().map(|next| {
                        world.free -= 1;
                        (next, world.ask(now, START), Stage::Runs)
                    })
                }
            };
            events.extend(next.map(|(task, at, stage)| Reverse((Time(at), task, stage))));
        }
        let half = count / 2;
        let mut took: Vec<f64> = (half..count).map(|task| ended[task] - came[task]).collect();
        took.sort_by(f64::total_cmp);
        let last = ended.iter().copied().max_by(f64::total_cmp).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a number of tasks")]
        let rate = count as f64 / last;
        Sustained { rate, p50: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
    }
}

struct World {
    install: Installation,
    /// The ensemble has something to do until then.
    busy_until: f64,
    free: usize,
    /// Tasks that no slot was free for.
    waiting: VecDeque<usize>,
}

impl World {
    /// When requests that are made now are answered.
    fn ask(&mut self, now: f64, requests: (f64, f64)) -> f64 {
        self.busy_until = self.busy_until.max(now) + self.install.takes(requests);
        self.busy_until
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Comes,
    IsThere,
    Runs,
    Ends,
    HasStatus,
}

/// Seconds, in their order.
#[derive(Debug, Clone, Copy)]
struct Time(f64);

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(install: Installation) {
        let most = install.most();
        for part in [0.5, 0.9, 1.5] {
            let sustained = install.simulate(most * part, 40_000, 1);
            let expected = most * part.min(1.0);
            assert!((sustained.rate / expected - 1.0).abs() < 0.03, "{install:?} at {part}: {sustained:?} of {most}");
        }
    }

    #[test]
    fn what_is_computed_is_what_is_sustained_and_no_more() {
        // The ensemble is the narrow place, or the slots are.
        check(Installation { writes: 10_000.0, reads: 40_000.0, slots: 1_000, runs: 0.1 });
        check(Installation { writes: 10_000.0, reads: 40_000.0, slots: 200, runs: 1.0 });
    }

    #[test]
    fn at_nine_tenths_of_what_is_possible_nobody_waits_long() {
        let install = Installation { writes: 10_000.0, reads: 40_000.0, slots: 1_000, runs: 0.1 };
        let sustained = install.simulate(install.most() * 0.9, 40_000, 1);
        assert!(sustained.p99 < 0.15, "{sustained:?}");
    }
}
