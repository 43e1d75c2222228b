//! What a master knows of the cluster, as a value for whoever looks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{Address, Outcome, TaskName, Worker, WorkerName};

use crate::state::{Crew, State, WORDS, state, waiting};
use crate::tasks::plain;
use crate::view::{Known, Stage, View};

/// What a master knows.
#[derive(Debug)]
pub(crate) enum Overview {
    /// Nothing: it has no session.
    Nothing,
    /// Who is the primary: what `/master` holds. A standby reads nothing else.
    Standby { primary: String },
    /// It is the primary.
    Primary(Cluster),
}

/// The cluster, as its primary knows it.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The servers' clock, in milliseconds since 1970.
    pub(crate) now_ms: i64,
    /// Where the other masters are.
    pub(crate) standby: Vec<Address>,
    /// Who is registered.
    pub(crate) workers: Vec<Registered>,
    /// How many tasks there are in each state, in the order of a task's life. The words are those of `zk-client`, and then
    /// [`OTHER`] and [`UNREAD`].
    pub(crate) tasks: Vec<(&'static str, usize)>,
    /// How long the oldest task has waited, in milliseconds, that waits for nothing but a worker with a free slot.
    pub(crate) queue_age_ms: i64,
    /// The latest tasks that ended otherwise than they should have.
    pub(crate) failures: Vec<Failure>,
}

/// A worker that is registered.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) name: WorkerName,
    pub(crate) worker: Worker,
    /// An operator took it out of service.
    pub(crate) drained: bool,
    /// How many tasks it runs.
    pub(crate) running: usize,
}

/// The end of a task.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) task: TaskName,
    /// `failed`, `timeout` or `lost`.
    pub(crate) word: &'static str,
    pub(crate) at_ms: i64,
}

/// Tasks that ended with a word that somebody wrote by hand.
pub(crate) const OTHER: &str = "other";
/// Tasks that are not read yet, right after a take-over.
pub(crate) const UNREAD: &str = "unread";

/// How many failures are shown.
const LATEST: usize = 10;

impl Cluster {
    /// Costs a look at every task.
    pub(crate) fn of(view: &View, mut standby: Vec<Address>, now_ms: i64) -> Self {
        standby.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        let crew = crew(view);
        let running = crew.running();
        let workers = view.workers.iter().map(|(name, worker)| Registered {
            name: name.clone(),
            worker: worker.clone(),
            drained: crew.drained.contains(name),
            running: running.get(name).copied().unwrap_or_default(),
        });
        let mut counts: BTreeMap<&str, usize> = BTreeMap::from([(UNREAD, view.unread.len())]);
        let mut oldest_ms = now_ms;
        for (name, known) in &view.tasks {
            let state = match &known.stage {
                Stage::Ended { outcome, .. } => state(Some(outcome), None),
                Stage::Open(_) => state(None, crew.holder(*name, known.czxid)),
            };
            // One of which there is more to be considered may wait for that: for others, or between two attempts.
            if let (State::Pending, Some(open)) = (&state, known.open().filter(|open| plain(open))) {
                oldest_ms = oldest_ms.min(open.submitted_ms);
            }
            *counts.entry(word(&state)).or_default() += 1;
        }
        let words = WORDS.into_iter().chain([OTHER, UNREAD]);
        let failures = view.tasks.latest_ended().filter_map(|(at_ms, task)| {
            let word = failure(view.tasks.get(&task)?)?;
            Some(Failure { task, word, at_ms })
        });
        Cluster {
            now_ms,
            standby,
            workers: workers.collect(),
            tasks: words.map(|word| (word, counts.get(word).copied().unwrap_or_default())).collect(),
            queue_age_ms: now_ms - oldest_ms,
            failures: failures.take(LATEST).collect(),
        }
    }
}

/// The words for states that are ours, and one for all others.
fn word(state: &State) -> &'static str {
    WORDS.into_iter().find(|word| *word == state.word()).unwrap_or(OTHER)
}

fn failure(known: &Known) -> Option<&'static str> {
    match &known.stage {
        Stage::Ended { outcome: Outcome::Failed, .. } => Some("failed"),
        Stage::Ended { outcome: Outcome::Timeout, .. } => Some("timeout"),
        Stage::Ended { outcome: Outcome::Lost, .. } => Some("lost"),
        _ => None,
    }
}

fn crew(view: &View) -> Crew {
    let made = || view.assign.iter().flat_map(|(worker, desk)| desk.tasks.iter().map(move |made| (worker, desk, made)));
    let when = made().map(|(worker, desk, (task, assignment))| {
        (worker, *task, assignment, desk.since_ms.get(task).copied().unwrap_or_default())
    });
    let waiting = waiting(&view.workers, when);
    let mut assigned: BTreeMap<TaskName, Vec<_>> = BTreeMap::new();
    for (worker, _, (task, assignment)) in made() {
        assigned.entry(*task).or_default().push((worker.clone(), assignment.clone()));
    }
    let drained = view.assign.iter().filter(|(_, desk)| desk.drain).map(|(worker, _)| worker.clone());
    Crew { workers: view.workers.clone(), drained: drained.collect::<BTreeSet<_>>(), assigned, waiting }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Desk, Open};
    use znode_paths::{Assignment, AssignmentMeta, Instance, TaskMeta, WorkerMeta};

    fn task(number: u32) -> TaskName {
        TaskName::from_number(number)
    }

    fn known(number: u32, stage: Stage) -> (TaskName, Known) {
        (task(number), Known { czxid: number.into(), submit: None, stage })
    }

    /// Submitted when its number says.
    fn open(number: u32, after: &[u32]) -> (TaskName, Known) {
        let after = after.iter().map(|number| task(*number)).collect();
        let meta = Ok(Some(TaskMeta { after, ..TaskMeta::new(number.to_string()) }));
        let open = Open { meta, cancel: false, attempts: BTreeMap::new(), submitted_ms: number.into() };
        known(number, Stage::Open(Box::new(open)))
    }

    /// Ended when its number says.
    fn ended(number: u32, word: &str) -> (TaskName, Known) {
        known(number, Stage::Ended { outcome: Outcome::of(word), at_ms: number.into() })
    }

    /// A worker `w` with one slot that has these tasks, in this order.
    fn view(tasks: impl IntoIterator<Item = (TaskName, Known)>, has: &[u32]) -> View {
        let (name, instance): (WorkerName, _) = ("w".parse().unwrap(), Instance::from_random(1));
        let worker = Worker { address: "w:1".into(), meta: Some(WorkerMeta::new(instance, 1)) };
        let mut desk = Desk { drain: true, ..Desk::default() };
        for number in has {
            let meta = AssignmentMeta::new(Some(instance), 1, 1, i64::from(*number));
            desk.tasks.insert(task(*number), Assignment { meta: Some(meta) });
            desk.since_ms.insert(task(*number), i64::try_from(desk.tasks.len()).unwrap());
        }
        View {
            workers: BTreeMap::from([(name.clone(), worker)]),
            assign: BTreeMap::from([(name, desk)]),
            tasks: tasks.into_iter().collect(),
            unread: BTreeSet::from([task(900)]),
            ..View::default()
        }
    }

    #[test]
    fn tasks_are_counted_by_the_words_of_the_client() {
        let words = ["done", "done", "failed", "timeout", "cancelled", "lost", "erledigt"];
        let ends = words.into_iter().zip(10..).map(|(word, number)| ended(number, word));
        let open = [open(1, &[]), open(2, &[]), open(3, &[])];
        let cluster = Cluster::of(&view(ends.chain(open), &[2, 1]), Vec::new(), 0);
        let expected = [1, 1, 1, 2, 1, 1, 1, 1, 1, 1];
        assert_eq!(cluster.tasks.iter().map(|(_, count)| *count).collect::<Vec<_>>(), expected, "{:?}", cluster.tasks);
        let w = &cluster.workers[0];
        assert_eq!((w.name.as_str(), w.running, w.drained), ("w", 1, true));
    }

    #[test]
    fn the_queue_is_as_old_as_the_oldest_task_that_waits_for_nothing_but_a_worker() {
        let age = |tasks: Vec<_>, has: &[u32]| Cluster::of(&view(tasks, has), Vec::new(), 100).queue_age_ms;
        assert_eq!(age(vec![open(10, &[]), open(20, &[]), open(30, &[])], &[10]), 80);
        assert_eq!(age(vec![open(10, &[30]), open(30, &[])], &[]), 70, "one waits for another task");
        assert_eq!(age(vec![ended(10, "done"), open(30, &[])], &[30]), 0, "one has ended, a worker has the other");
        assert_eq!(age(vec![open(500, &[])], &[]), 0, "clocks go back");
    }

    #[test]
    fn the_latest_failures_come_first() {
        let mut tasks: Vec<_> = (1..=20).map(|number| ended(number, "failed")).collect();
        tasks.extend([ended(30, "done"), ended(31, "lost"), ended(32, "cancelled"), ended(33, "timeout")]);
        let failures = Cluster::of(&view(tasks, &[]), Vec::new(), 0).failures;
        let shown: Vec<_> = failures.iter().map(|failure| (failure.at_ms, failure.word)).collect();
        assert_eq!((shown.len(), &shown[..3]), (LATEST, &[(33, "timeout"), (31, "lost"), (20, "failed")][..]));
    }
}
