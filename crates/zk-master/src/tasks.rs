//! The tasks that a primary knows, and what a plan asks of all of them, kept up to date with each: a plan is made after
//! every change, and must not look at fifty thousand tasks to find the one that is next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use znode_paths::{TaskMeta, TaskName};

use crate::plan::priority;
use crate::view::{Known, Open, Stage};

/// The tasks by name. It can be read as the map that it is; only [`Tasks::insert`] and [`Tasks::remove`] change it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tasks {
    known: BTreeMap<TaskName, Known>,
    /// Those that have not ended and of which nothing is to be considered but whose turn it is, in that order.
    queue: BTreeSet<(Reverse<i64>, TaskName)>,
    /// All others that have not ended.
    special: BTreeSet<TaskName>,
    /// Those that have ended, the longest ago first.
    ended: BTreeSet<(i64, TaskName)>,
    /// How many that have not ended name this one in `--after`.
    needed: BTreeMap<TaskName, usize>,
    /// The task that counts of each submit: the one with the lowest number.
    first: BTreeMap<String, TaskName>,
    /// The others.
    duplicates: BTreeSet<TaskName>,
}

impl Deref for Tasks {
    type Target = BTreeMap<TaskName, Known>;

    fn deref(&self) -> &Self::Target {
        &self.known
    }
}

impl FromIterator<(TaskName, Known)> for Tasks {
    fn from_iter<I: IntoIterator<Item = (TaskName, Known)>>(known: I) -> Self {
        let mut tasks = Tasks::default();
        known.into_iter().for_each(|(name, known)| tasks.insert(name, known));
        tasks
    }
}

impl<'a> IntoIterator for &'a Tasks {
    type Item = (&'a TaskName, &'a Known);
    type IntoIter = std::collections::btree_map::Iter<'a, TaskName, Known>;

    fn into_iter(self) -> Self::IntoIter {
        self.known.iter()
    }
}

fn meta(open: &Open) -> Option<&TaskMeta> {
    open.meta.as_ref().ok()?.as_ref()
}

/// Whether nothing is to be considered but whose turn it is.
pub(crate) fn plain(open: &Open) -> bool {
    open.meta.is_ok() && !open.cancel && open.attempts.is_empty() && meta(open).is_none_or(|meta| meta.after.is_empty())
}

impl Tasks {
    /// A task was read, for the first time or again.
    pub fn insert(&mut self, name: TaskName, known: Known) {
        self.remove(name);
        match &known.stage {
            Stage::Open(open) => {
                match plain(open) {
                    true => _ = self.queue.insert((Reverse(priority(open)), name)),
                    false => _ = self.special.insert(name),
                }
                for before in meta(open).into_iter().flat_map(|meta| &meta.after) {
                    *self.needed.entry(*before).or_default() += 1;
                }
            }
            Stage::Ended { at_ms, .. } => _ = self.ended.insert((*at_ms, name)),
        }
        if let Some(submit) = &known.submit {
            let first = self.first.entry(submit.clone()).or_insert(name);
            if name < *first {
                self.duplicates.insert(std::mem::replace(first, name));
            } else if name > *first {
                self.duplicates.insert(name);
            }
        }
        self.known.insert(name, known);
    }

    /// A task is gone.
    pub fn remove(&mut self, name: TaskName) -> Option<Known> {
        let known = self.known.remove(&name)?;
        match &known.stage {
            Stage::Open(open) => {
                self.queue.remove(&(Reverse(priority(open)), name));
                self.special.remove(&name);
                for before in meta(open).into_iter().flat_map(|meta| &meta.after) {
                    if let Some(count) = self.needed.get_mut(before) {
                        *count -= 1;
                        if *count == 0 {
                            self.needed.remove(before);
                        }
                    }
                }
            }
            Stage::Ended { at_ms, .. } => _ = self.ended.remove(&(*at_ms, name)),
        }
        if let Some(submit) = &known.submit
            && !self.duplicates.remove(&name)
        {
            let of_it = |other: &&TaskName| self.known[other].submit.as_ref() == Some(submit);
            match self.duplicates.iter().find(of_it).copied() {
                Some(next) => {
                    self.duplicates.remove(&next);
                    self.first.insert(submit.clone(), next);
                }
                None => _ = self.first.remove(submit),
            }
        }
        Some(known)
    }

    /// Something about a task is not as it was read; returns whether it is there.
    pub fn change(&mut self, name: TaskName, change: impl FnOnce(&mut Known)) -> bool {
        let Some(mut known) = self.remove(name) else { return false };
        change(&mut known);
        self.insert(name, known);
        true
    }

    /// Those that are not there any more are gone.
    pub fn keep(&mut self, there: &BTreeSet<TaskName>) {
        let gone: Vec<TaskName> = self.known.keys().filter(|name| !there.contains(name)).copied().collect();
        gone.into_iter().for_each(|name| _ = self.remove(name));
    }

    /// Those that wait for nothing but their turn, or are being run: the highest priority first, then the lowest number.
    pub fn queue(&self) -> impl Iterator<Item = (Reverse<i64>, TaskName)> {
        self.queue.iter().copied()
    }

    /// The others that have not ended: of each there is something to be considered.
    pub fn special(&self) -> impl Iterator<Item = TaskName> {
        self.special.iter().copied()
    }

    /// How many have not ended.
    pub fn unfinished(&self) -> usize {
        self.queue.len() + self.special.len()
    }

    /// Those that have ended, the latest first, each with when that was.
    pub fn latest_ended(&self) -> impl Iterator<Item = (i64, TaskName)> {
        self.ended.iter().rev().copied()
    }

    /// Those that have ended and that nobody waits for who has not, the longest ago first, each with when that was.
    pub fn removable(&self) -> impl Iterator<Item = (i64, TaskName)> {
        self.ended.iter().filter(|(_, name)| !self.needed.contains_key(name)).copied()
    }

    /// How many these are.
    pub fn removable_count(&self) -> usize {
        let waited_for = |name: &&TaskName| self.known.get(name).is_some_and(|known| known.open().is_none());
        self.ended.len() - self.needed.keys().filter(waited_for).count()
    }

    /// Of several tasks of one submit all but the one with the lowest number (PROTOCOL section 3, Clients).
    pub fn duplicates(&self) -> &BTreeSet<TaskName> {
        &self.duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Recorded;
    use proptest::prelude::*;
    use znode_paths::Outcome;

    fn known() -> impl Strategy<Value = Known> {
        let meta =
            (0..3_i64, prop::collection::vec(0..8_u32, 0..3), any::<bool>()).prop_map(|(priority, after, made)| {
                let after = after.into_iter().map(TaskName::from_number).collect();
                made.then(|| TaskMeta { priority, after, ..TaskMeta::new("x".into()) })
            });
        let open =
            (prop::result::maybe_ok(meta, "no"), any::<bool>(), 0..3_u32).prop_map(|(meta, cancel, attempts)| {
                let meta = meta.map_err(|why| why.to_string());
                let attempts = (0..attempts).map(|number| (number, Recorded { kind: None, at_ms: 0 })).collect();
                Stage::Open(Box::new(Open { meta, cancel, attempts, submitted_ms: 0 }))
            });
        let ended = (0..5_i64).prop_map(|at_ms| Stage::Ended { outcome: Outcome::Done, at_ms });
        let submit = prop::option::of("[ab]");
        (prop_oneof![open, ended], submit).prop_map(|(stage, submit)| Known { czxid: 1, submit, stage })
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_answers_are_those_of_looking_at_all(
            steps in prop::collection::vec((0..8_u32, prop::option::of(known())), 0..40),
        ) {
            let mut tasks = Tasks::default();
            for (number, known) in steps {
                let name = TaskName::from_number(number);
                match known {
                    Some(known) => tasks.insert(name, known),
                    None => _ = tasks.remove(name),
                }
            }
            let open: Vec<(TaskName, &Open)> =
                tasks.iter().filter_map(|(name, known)| Some((*name, known.open()?))).collect();
            let mut queue: Vec<_> = open.iter().filter(|(_, open)| plain(open)).collect();
            queue.sort_by_key(|(name, open)| (Reverse(priority(open)), *name));
            let queue: Vec<TaskName> = queue.into_iter().map(|(name, _)| *name).collect();
            prop_assert_eq!(tasks.queue().map(|(_, name)| name).collect::<Vec<_>>(), queue);
            let special: Vec<TaskName> = open.iter().filter(|(_, o)| !plain(o)).map(|(name, _)| *name).collect();
            prop_assert_eq!(tasks.special().collect::<Vec<_>>(), special);
            prop_assert_eq!(tasks.unfinished(), open.len());
            let needed: BTreeSet<TaskName> =
                open.iter().filter_map(|(_, open)| meta(open)).flat_map(|meta| meta.after.clone()).collect();
            let mut ended: Vec<(i64, TaskName)> = tasks
                .iter()
                .filter_map(|(name, known)| match known.stage {
                    Stage::Ended { at_ms, .. } if !needed.contains(name) => Some((at_ms, *name)),
                    _ => None,
                })
                .collect();
            ended.sort_unstable();
            prop_assert_eq!(tasks.removable().collect::<Vec<_>>(), &ended[..]);
            prop_assert_eq!(tasks.removable_count(), ended.len());
            let mut seen = BTreeSet::new();
            let submits = tasks.iter().filter_map(|(name, known)| Some((*name, known.submit.as_deref()?)));
            let duplicates: BTreeSet<TaskName> =
                submits.filter(|(_, submit)| !seen.insert(*submit)).map(|(name, _)| name).collect();
            prop_assert_eq!(tasks.duplicates(), &duplicates);
        }
    }
}
