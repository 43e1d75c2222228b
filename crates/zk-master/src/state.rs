//! What state a task is in, derived from what was read. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{Assignment, Outcome, TaskName, Worker, WorkerName};

/// The words that `--state` takes: a task's life, in its order.
pub const WORDS: [&str; 8] = ["pending", "assigned", "running", "done", "failed", "timeout", "cancelled", "lost"];

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nobody has it.
    Pending,
    /// It is meant for a worker that is not there, or not there any more; or it waits there for a slot.
    Assigned,
    /// A worker that is there has it, and probably a slot for it.
    Running,
    /// It has a status.
    Ended(Outcome),
}

impl State {
    /// The word for it.
    pub fn word(&self) -> &str {
        match self {
            State::Pending => "pending",
            State::Assigned => "assigned",
            State::Running => "running",
            State::Ended(outcome) => outcome.word(),
        }
    }
}

/// The workers, and who is to run what.
#[derive(Debug, Clone, Default)]
pub struct Crew {
    /// Who is registered.
    pub workers: BTreeMap<WorkerName, Worker>,
    /// Who was taken out of service.
    pub drained: BTreeSet<WorkerName>,
    /// What is assigned, and to whom: to several only where that was done by hand.
    pub assigned: BTreeMap<TaskName, Vec<(WorkerName, Assignment)>>,
    /// What probably waits for a slot where it is assigned ([`waiting`]).
    pub waiting: BTreeSet<(WorkerName, TaskName)>,
}

/// What probably waits for a slot where it is assigned. A worker starts what it has as its slots allow, and what it was
/// given first in most cases first; only of what was recalled it says whether it has started that. `made` are assignments
/// with what orders them by when they were made: the transaction, or the time.
pub fn waiting<'a>(
    workers: &BTreeMap<WorkerName, Worker>,
    made: impl IntoIterator<Item = (&'a WorkerName, TaskName, &'a Assignment, i64)>,
) -> BTreeSet<(WorkerName, TaskName)> {
    let mut desks: BTreeMap<&WorkerName, Vec<_>> = BTreeMap::new();
    for (worker, task, assignment, czxid) in made {
        let (started, recalled) = assignment.meta.as_ref().map_or((false, false), |meta| (meta.started, meta.recalled));
        desks.entry(worker).or_default().push((!started, recalled, czxid, task));
    }
    let mut waiting = BTreeSet::new();
    for (worker, mut desk) in desks {
        desk.sort_unstable();
        let slots = workers.get(worker).map_or(0, Worker::slots) as usize;
        waiting.extend(desk.into_iter().skip(slots).map(|(.., task)| (worker.clone(), task)));
    }
    waiting
}

/// Who has a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder<'a> {
    /// Who.
    pub worker: &'a WorkerName,
    /// As which attempt; nothing for an assignment made by hand.
    pub attempt: Option<u32>,
    /// Whether that worker is there to run it, and has a slot for it.
    pub runs: bool,
}

impl Crew {
    /// Who has the task that was made by this transaction. A worker that is there comes before one that is not.
    pub fn holder(&self, task: TaskName, czxid: i64) -> Option<Holder<'_>> {
        let assigned = self.assigned.get(&task).map(Vec::as_slice).unwrap_or_default();
        let holders = assigned.iter().filter_map(|(worker, assignment)| {
            let meta = assignment.meta.as_ref();
            // What is for an earlier task at that path, or was handed back, nobody runs.
            if meta.is_some_and(|meta| meta.task != czxid || meta.returned) {
                return None;
            }
            let runs = self.runs(worker, task, assignment);
            Some(Holder { worker, attempt: meta.map(|meta| meta.attempt), runs })
        });
        holders.min_by_key(|holder| (!holder.runs, holder.worker))
    }

    /// Whether a worker that is registered runs this: one made by hand, or one for this life of its process.
    fn runs(&self, worker: &WorkerName, task: TaskName, assignment: &Assignment) -> bool {
        let registered = self.workers.get(worker);
        registered.is_some_and(|worker| assignment.meta.is_none() || worker.instance() == assignment.instance())
            && !self.waiting.contains(&(worker.clone(), task))
    }

    /// How many tasks each worker that is there runs; those that run none are left out.
    pub fn running(&self) -> BTreeMap<&WorkerName, usize> {
        let mut running = BTreeMap::new();
        for (task, all) in &self.assigned {
            for (worker, _) in all.iter().filter(|(worker, assignment)| self.runs(worker, *task, assignment)) {
                *running.entry(worker).or_default() += 1;
            }
        }
        running
    }
}

/// The state of a task: a status is final whatever else there is.
pub fn state(ended: Option<&Outcome>, holder: Option<Holder<'_>>) -> State {
    match (ended, holder) {
        (Some(outcome), _) => State::Ended(outcome.clone()),
        (None, Some(Holder { runs: true, .. })) => State::Running,
        (None, Some(Holder { runs: false, .. })) => State::Assigned,
        (None, None) => State::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::{AssignmentMeta, Instance, WorkerMeta};

    const CZXID: i64 = 70;

    fn task(number: u32) -> TaskName {
        TaskName::from_number(number)
    }

    fn name(name: &str) -> WorkerName {
        name.parse().unwrap()
    }

    /// A daemon `w` with the instance 1, and somebody by hand, `h`.
    fn crew(assigned: &[(&str, Option<AssignmentMeta>)]) -> Crew {
        let meta = WorkerMeta::new(Instance::from_random(1), 2);
        let daemon = Worker { address: "w:1".into(), meta: Some(meta) };
        let by_hand = Worker { address: "h:1".into(), meta: None };
        let assigned = assigned.iter().map(|(worker, meta)| (name(worker), Assignment { meta: meta.clone() }));
        Crew {
            workers: BTreeMap::from([(name("w"), daemon), (name("h"), by_hand)]),
            drained: BTreeSet::new(),
            assigned: BTreeMap::from([(task(1), assigned.collect())]),
            waiting: BTreeSet::new(),
        }
    }

    fn meant_for(instance: Option<u64>) -> Option<AssignmentMeta> {
        Some(AssignmentMeta::new(instance.map(Instance::from_random), 5, 2, CZXID))
    }

    #[track_caller]
    fn check(assigned: &[(&str, Option<AssignmentMeta>)], expected: &State, worker: Option<&str>) {
        let crew = crew(assigned);
        let holder = crew.holder(task(1), CZXID);
        assert_eq!(&state(None, holder), expected);
        assert_eq!(holder.map(|holder| holder.worker.as_str()), worker);
    }

    #[test]
    fn a_task_that_nobody_has_is_pending() {
        check(&[], &State::Pending, None);
        assert_eq!(state(None, crew(&[("w", None)]).holder(task(2), CZXID)), State::Pending);
    }

    #[test]
    fn a_task_runs_when_the_life_it_is_meant_for_is_there() {
        check(&[("w", meant_for(Some(1)))], &State::Running, Some("w"));
        check(&[("w", meant_for(Some(2)))], &State::Assigned, Some("w"));
        check(&[("w", meant_for(None))], &State::Assigned, Some("w"));
        check(&[("gone", meant_for(Some(1)))], &State::Assigned, Some("gone"));
    }

    #[test]
    fn what_is_made_by_hand_is_run_by_whoever_is_there() {
        check(&[("w", None)], &State::Running, Some("w"));
        check(&[("h", None)], &State::Running, Some("h"));
        check(&[("h", meant_for(None))], &State::Running, Some("h"));
        check(&[("gone", None)], &State::Assigned, Some("gone"));
    }

    #[test]
    fn of_several_the_one_that_is_there_counts() {
        check(&[("gone", None), ("w", meant_for(Some(1)))], &State::Running, Some("w"));
        check(&[("w", meant_for(Some(2))), ("z", None)], &State::Assigned, Some("w"));
    }

    #[test]
    fn what_was_handed_back_or_is_for_another_task_does_not_count() {
        let returned = meant_for(Some(1)).map(|meta| AssignmentMeta { returned: true, ..meta });
        check(&[("w", returned)], &State::Pending, None);
        let another = meant_for(Some(1)).map(|meta| AssignmentMeta { task: CZXID + 1, ..meta });
        check(&[("w", another)], &State::Pending, None);
    }

    #[test]
    fn a_status_is_final_whatever_else_there_is() {
        let crew = crew(&[("w", meant_for(Some(1)))]);
        let holder = crew.holder(task(1), CZXID);
        for word in ["done", "failed", "erledigt"] {
            assert_eq!(state(Some(&Outcome::of(word)), holder), State::Ended(Outcome::of(word)));
        }
        assert_eq!(State::Ended(Outcome::of("erledigt")).word(), "erledigt");
    }

    #[test]
    fn the_words_are_those_of_the_states() {
        let open = [State::Pending, State::Assigned, State::Running];
        let ended = WORDS[3..].iter().map(|word| State::Ended(Outcome::of(word)));
        let words: Vec<String> = open.into_iter().chain(ended).map(|state| state.word().to_owned()).collect();
        assert_eq!(words, WORDS);
        assert!(WORDS[3..].iter().all(|word| !matches!(Outcome::of(word), Outcome::Other(_))));
    }

    #[test]
    fn of_what_a_worker_has_as_many_run_as_it_has_slots_and_what_it_was_given_first() {
        let workers = crew(&[]).workers; // two slots, and one by hand
        let (w, h) = (name("w"), name("h"));
        let plain = Assignment { meta: meant_for(Some(1)) };
        let said = |recalled, started| {
            let meta = meant_for(Some(1)).map(|meta| AssignmentMeta { recalled, started, ..meta });
            Assignment { meta }
        };
        let check = |made: &[(&WorkerName, u32, &Assignment, i64)], expected: &[u32]| {
            let made =
                made.iter().map(|(worker, number, assignment, czxid)| (*worker, task(*number), *assignment, *czxid));
            let numbers: Vec<TaskName> = waiting(&workers, made).into_iter().map(|(_, task)| task).collect();
            assert_eq!(numbers, expected.iter().map(|number| task(*number)).collect::<Vec<_>>());
        };
        check(&[(&w, 1, &plain, 30), (&w, 2, &plain, 20), (&w, 3, &plain, 10), (&h, 4, &plain, 40)], &[1]);
        check(&[(&w, 1, &said(true, true), 30), (&w, 2, &plain, 20), (&w, 3, &plain, 10)], &[2]);
        check(&[(&w, 1, &plain, 30), (&w, 2, &plain, 20), (&w, 3, &said(true, false), 10)], &[3]);
        check(&[(&h, 1, &plain, 10), (&h, 2, &plain, 20)], &[2]);
        let mut crew = crew(&[("w", meant_for(Some(1)))]);
        crew.waiting = BTreeSet::from([(w.clone(), task(1))]);
        assert_eq!(state(None, crew.holder(task(1), CZXID)), State::Assigned);
        assert!(crew.running().is_empty());
    }

    #[test]
    fn a_worker_runs_what_it_has() {
        assert_eq!(crew(&[("w", meant_for(Some(1)))]).running().into_iter().collect::<Vec<_>>(), [(&name("w"), 1)]);
        assert!(crew(&[("w", meant_for(Some(2)))]).running().is_empty());
        assert_eq!(crew(&[("w", None)]).running().len(), 1);
    }
}
