//! The decisions as values, and thousands of random trees on which carrying out plans must end.

use std::collections::BTreeMap;

use proptest::prelude::*;
use znode_paths::Worker;
use znode_paths::WorkerMeta;

use super::*;
use crate::view::{Desk, Recorded};

const FENCE: i64 = 100;
const NOW: i64 = 10_000_000;
const KEEP: Retention = Retention { age_ms: 3_600_000, count: 10_000 };

fn worker(name: &str) -> WorkerName {
    name.parse().unwrap()
}

fn task(number: u32) -> TaskName {
    TaskName::from_number(number)
}

fn instance(number: u64) -> Instance {
    Instance::from_random(number)
}

/// A tree in the making.
#[derive(Debug, Clone)]
struct Tree(View);

impl Tree {
    fn new() -> Self {
        Tree(View { fence: FENCE, now_ms: NOW, census_ms: NOW, ..View::default() })
    }

    /// A daemon is registered and has a node below /assign.
    fn worker(mut self, name: &str, number: u64, slots: u32) -> Self {
        let meta = WorkerMeta::new(instance(number), slots);
        self.0.workers.insert(worker(name), Worker { address: format!("{name}:1"), meta: Some(meta) });
        self.0.live.insert(instance(number));
        self.0.assign.entry(worker(name)).or_default();
        self
    }

    /// Somebody with zkCli.sh is registered.
    fn worker_by_hand(mut self, name: &str) -> Self {
        self.0.workers.insert(worker(name), Worker { address: format!("{name}:1"), meta: None });
        self.0.assign.entry(worker(name)).or_default();
        self
    }

    fn known(mut self, number: u32, submit: Option<&str>, stage: Stage) -> Self {
        let submit = submit.map(str::to_owned);
        self.0.tasks.insert(task(number), Known { czxid: i64::from(number) + 1, submit, stage });
        self
    }

    /// A task made by hand.
    fn plain(self, number: u32) -> Self {
        self.known(number, None, open(Ok(None)))
    }

    fn task(self, number: u32, change: impl FnOnce(&mut TaskMeta)) -> Self {
        let mut meta = TaskMeta::new(format!("submit-{number}"));
        change(&mut meta);
        let submit = meta.submit.clone();
        self.known(number, submit.as_deref(), open(Ok(Some(meta))))
    }

    fn ended(self, number: u32, outcome: Outcome, at_ms: i64) -> Self {
        self.known(number, None, Stage::Ended { outcome, at_ms })
    }

    /// The primary assigned it.
    fn assigned(mut self, name: &str, number: u32, holder: Option<u64>, attempt: u32) -> Self {
        let czxid = i64::from(number) + 1;
        let meta = AssignmentMeta::new(holder.map(instance), FENCE, attempt, czxid);
        let desk = self.0.assign.entry(worker(name)).or_default();
        desk.tasks.insert(task(number), Assignment { meta: Some(meta) });
        desk.since_ms.insert(task(number), NOW);
        self
    }

    /// So many milliseconds ago.
    fn ago(mut self, name: &str, number: u32, ago_ms: i64) -> Self {
        self.0.assign.get_mut(&worker(name)).unwrap().since_ms.insert(task(number), NOW - ago_ms);
        self
    }

    fn said(mut self, name: &str, number: u32, change: impl FnOnce(&mut AssignmentMeta)) -> Self {
        let desk = self.0.assign.get_mut(&worker(name)).unwrap();
        change(desk.tasks.get_mut(&task(number)).unwrap().meta.as_mut().unwrap());
        self
    }

    fn attempt(self, number: u32, attempt: u32, kind: AttemptKind) -> Self {
        self.attempt_at(number, attempt, kind, NOW - 1_000_000)
    }

    fn attempt_at(mut self, number: u32, attempt: u32, kind: AttemptKind, at_ms: i64) -> Self {
        self.change(number, |open| _ = open.attempts.insert(attempt, Recorded { kind: Some(kind), at_ms }));
        self
    }

    fn cancel(mut self, number: u32) -> Self {
        self.change(number, |open| open.cancel = true);
        self
    }

    fn change(&mut self, number: u32, change: impl FnOnce(&mut Open)) {
        let there = self.0.tasks.change(task(number), |known| match &mut known.stage {
            Stage::Open(open) => change(open),
            Stage::Ended { .. } => panic!("it has ended"),
        });
        assert!(there, "no such task");
    }

    /// The step that deletes it.
    fn unassign(&self, name: &str, number: u32) -> Step {
        let (name, number) = (worker(name), task(number));
        let assignment = self.0.assign[&name].tasks[&number].clone();
        Step::Unassign(name, number, Some(assignment))
    }

    fn plan(&self) -> Vec<Chain> {
        plan(&self.0, KEEP).chains
    }

    /// What the tree is after a step; nobody else does anything.
    fn carry_out(&mut self, step: &Step) {
        let view = &mut self.0;
        match step {
            Step::Record(name, number, attempt) => {
                view.tasks.change(*name, |known| {
                    if let Stage::Open(open) = &mut known.stage {
                        open.attempts.entry(*number).or_insert(Recorded { kind: attempt.kind, at_ms: NOW });
                    }
                });
            }
            Step::Finish(name, status) => {
                view.tasks.change(*name, |known| {
                    if let Stage::Open(_) = known.stage {
                        known.stage = Stage::Ended { outcome: status.outcome.clone(), at_ms: NOW };
                    }
                });
            }
            Step::Unassign(name, task, assignment) => {
                match assignment {
                    Some(assignment) => assert_eq!(view.assign[name].tasks[task], *assignment, "no other is deleted"),
                    None => assert!(view.tasks[task].open().is_none(), "it is still to be run"),
                }
                view.unassigned(name, *task);
            }
            Step::Recall(name, task, meta) => {
                let there = view.assign.get_mut(name).unwrap().tasks.get_mut(task).unwrap().meta.as_mut().unwrap();
                assert_eq!(AssignmentMeta { recalled: true, ..there.clone() }, *meta, "nothing else is changed");
                assert!(!there.recalled && !there.returned && !there.started, "{there:?}");
                *there = meta.clone();
            }
            Step::Assign(name, task, meta) => {
                let desk = view.assign.get_mut(name).unwrap();
                assert!(!desk.tasks.contains_key(task), "assigned twice to one worker");
                desk.tasks.insert(*task, Assignment { meta: Some(meta.clone()) });
                desk.since_ms.insert(*task, NOW);
            }
            Step::Remove(name, _) => _ = view.tasks.remove(*name),
            Step::RemoveDesk(name) => _ = view.assign.remove(name),
        }
        view.forget_vanished();
    }
}

fn open(meta: Result<Option<TaskMeta>, String>) -> Stage {
    Stage::Open(Box::new(Open { meta, cancel: false, attempts: BTreeMap::new(), submitted_ms: 0 }))
}

fn assign_to(name: &str, number: u32, holder: Option<u64>, attempt: u32) -> Chain {
    let meta = AssignmentMeta::new(holder.map(instance), FENCE, attempt, i64::from(number) + 1);
    vec![Step::Assign(worker(name), task(number), meta)]
}

#[track_caller]
fn check(tree: &Tree, expected: &[Chain]) {
    assert_eq!(tree.plan(), expected);
}

#[test]
fn without_workers_nothing_is_assigned() {
    check(&Tree::new().plain(0), &[]);
}

#[test]
fn a_task_goes_to_the_worker_with_the_most_free_slots_and_ties_to_the_first_name() {
    let tree = Tree::new().worker("b", 2, 2).worker("a", 1, 2).worker("c", 3, 3).plain(0).plain(1).plain(2);
    check(&tree, &[assign_to("c", 0, Some(3), 1), assign_to("a", 1, Some(1), 1), assign_to("b", 2, Some(2), 1)]);
}

#[test]
fn a_worker_without_its_node_below_assign_gets_nothing_yet() {
    let mut tree = Tree::new().worker("a", 1, 1).plain(0);
    tree.0.assign.clear();
    check(&tree, &[]);
}

#[test]
fn a_worker_that_is_drained_or_leaving_gets_nothing() {
    let mut drained = Tree::new().worker("a", 1, 1).plain(0);
    drained.0.assign.get_mut(&worker("a")).unwrap().drain = true;
    check(&drained, &[]);
    let mut leaving = Tree::new().worker("a", 1, 1).plain(0);
    leaving.0.workers.get_mut(&worker("a")).unwrap().meta.as_mut().unwrap().stopping = true;
    check(&leaving, &[]);
}

#[test]
fn priority_comes_before_the_number() {
    let tree =
        Tree::new().worker("a", 1, 1).plain(0).task(1, |meta| meta.priority = -1).task(2, |meta| meta.priority = 5);
    let meta = AssignmentMeta { priority: 5, ..AssignmentMeta::new(Some(instance(1)), FENCE, 1, 3) };
    assert_eq!(tree.plan()[0], [Step::Assign(worker("a"), task(2), meta)], "and the worker is told");
}

#[test]
fn a_task_that_fits_nowhere_does_not_hold_up_others() {
    let require = |meta: &mut TaskMeta| _ = meta.require.insert("disk".into(), "ssd".into());
    let mut tree = Tree::new().worker("a", 1, 1).task(0, |meta| meta.on = Some(worker("z"))).task(1, require).plain(2);
    check(&tree, &[assign_to("a", 2, Some(1), 1)]);
    let meta = tree.0.workers.get_mut(&worker("a")).unwrap().meta.as_mut().unwrap();
    meta.labels.insert("disk".into(), "ssd".into());
    check(&tree, &[assign_to("a", 1, Some(1), 1), assign_to("a", 2, Some(1), 1)]);
}

#[test]
fn a_worker_registered_by_hand_has_one_slot_and_gets_no_instance() {
    let tree = Tree::new().worker_by_hand("a").plain(0).plain(1);
    check(&tree, &[assign_to("a", 0, None, 1)]);
}

#[test]
fn what_a_lost_worker_had_is_recorded_then_deleted_then_assigned_again() {
    let mut tree = Tree::new().worker("b", 2, 1).plain(0).assigned("a", 0, Some(1), 1);
    let first = tree.plan();
    let [chain] = first.as_slice() else { panic!("{first:?}") };
    assert!(matches!(&chain[0], Step::Record(name, 1, attempt)
        if *name == task(0) && attempt.kind == Some(AttemptKind::Lost)));
    assert_eq!(chain[1], tree.unassign("a", 0));
    assert_eq!(chain.len(), 2);
    // A master that dies between the two leaves a record; the next one does not count the loss again.
    tree.carry_out(&chain[0]);
    check(&tree, &[vec![chain[1].clone()]]);
    tree.carry_out(&chain[1]);
    check(&tree, &[assign_to("b", 0, Some(2), 2)]);
}

#[test]
fn a_worker_lives_by_its_registration_or_by_any_of_its_sessions() {
    let tree = Tree::new().worker("a", 1, 1).plain(0).assigned("a", 0, Some(1), 1);
    let mut only_live = tree.clone();
    only_live.0.workers.clear();
    check(&only_live, &[]);
    let mut only_registered = tree.clone();
    only_registered.0.live.clear();
    check(&only_registered, &[]);
    let mut neither = tree;
    neither.0.workers.clear();
    neither.0.live.clear();
    assert_eq!(neither.plan().len(), 1);
}

#[test]
fn a_task_that_may_start_once_is_lost_with_its_worker() {
    let tree = Tree::new().worker("b", 2, 1).task(0, |meta| meta.no_requeue = true).assigned("a", 0, Some(1), 1);
    let plan = tree.plan();
    assert!(matches!(&plan[0][..], [Step::Finish(_, status), Step::Unassign(..)] if status.outcome == Outcome::Lost));
}

#[test]
fn the_last_attempt_of_a_lost_worker_ends_the_task() {
    let lost = |attempts: u32| {
        let mut tree = Tree::new().task(0, |meta| meta.max_attempts = 2).assigned("a", 0, Some(1), attempts);
        for attempt in 1..attempts {
            tree = tree.attempt(0, attempt, AttemptKind::Lost);
        }
        matches!(tree.plan()[0][0], Step::Finish(..))
    };
    assert!(!lost(1));
    assert!(lost(2));
    // Failures do not count.
    let failed = Tree::new()
        .task(0, |meta| meta.max_attempts = 2)
        .attempt(0, 1, AttemptKind::Failed)
        .attempt(0, 2, AttemptKind::Failed)
        .assigned("a", 0, Some(1), 3);
    assert!(matches!(failed.plan()[0][0], Step::Record(_, 3, _)));
}

#[test]
fn a_worker_that_dies_between_the_record_of_a_failure_and_the_next_step_has_not_lost_it_too() {
    let retries = |meta: &mut TaskMeta| (meta.retries, meta.max_attempts) = (1, 1);
    let mut tree = Tree::new().worker("b", 2, 1).task(0, retries).attempt(0, 1, AttemptKind::Failed);
    tree = tree.assigned("a", 0, Some(1), 1);
    check(&tree, &[vec![tree.unassign("a", 0)]]);
    tree.carry_out(&tree.unassign("a", 0));
    check(&tree, &[assign_to("b", 0, Some(2), 2)]);
}

#[test]
fn a_task_that_failed_pauses_by_the_servers_clock_before_it_is_tried_again() {
    let retries = |meta: &mut TaskMeta| (meta.retries, meta.backoff_ms) = (9, 1000);
    let tree = Tree::new().worker("a", 1, 1).task(0, retries).attempt(0, 1, AttemptKind::Lost);
    let tree = tree.attempt_at(0, 2, AttemptKind::Failed, NOW - 90_000).attempt_at(0, 3, AttemptKind::Failed, NOW - 10);
    let meta = tree.0.tasks[&task(0)].open().unwrap().meta.clone().unwrap().unwrap();
    let pause = i64::try_from(meta.pause_ms(1, 2)).unwrap();
    assert!((2000..=2500).contains(&pause), "{pause}");
    let plan_at = |now_ms| plan(&View { now_ms, ..tree.0.clone() }, KEEP);
    let over = NOW - 10 + pause;
    assert_eq!(plan_at(over - 1), Plan { look_again_ms: Some(over), ..Plan::default() });
    assert_eq!(plan_at(over).chains, [assign_to("a", 0, Some(1), 4)]);
    // Whoever cancels it need not wait for that.
    let why = Status::because(Outcome::Cancelled, "cancelled before it started again");
    check(&tree.clone().cancel(0), &[vec![Step::Finish(task(0), why)]]);
}

#[test]
fn cancelled_wins_over_requeueing() {
    let tree = Tree::new().worker("b", 2, 1).plain(0).assigned("a", 0, Some(1), 1).cancel(0);
    let status = Status::plain(Outcome::Cancelled);
    check(&tree, &[vec![Step::Finish(task(0), status), tree.unassign("a", 0)]]);
}

#[test]
fn a_pending_task_that_is_cancelled_never_starts() {
    let tree = Tree::new().worker("a", 1, 1).plain(0).cancel(0);
    check(&tree, &[vec![Step::Finish(task(0), Status::plain(Outcome::Cancelled))]]);
}

#[test]
fn a_worker_is_asked_once_about_a_task_that_is_cancelled_and_may_wait_there() {
    let assigned = Tree::new().worker("a", 1, 1).plain(0).assigned("a", 0, Some(1), 1).cancel(0);
    let meta = AssignmentMeta { recalled: true, ..AssignmentMeta::new(Some(instance(1)), FENCE, 1, 1) };
    check(&assigned, &[vec![Step::Recall(worker("a"), task(0), meta)]]);
    // It runs: the worker sees by itself that it is to be stopped.
    check(&assigned.clone().said("a", 0, |meta| meta.recalled = true), &[]);
    check(&assigned.said("a", 0, |meta| meta.started = true), &[]);
}

#[test]
fn a_task_with_a_worker_registered_by_hand_is_cancelled_by_the_primary() {
    let tree = Tree::new().worker_by_hand("a").plain(0).assigned("a", 0, None, 1).cancel(0);
    let status = Status::plain(Outcome::Cancelled);
    check(&tree, &[vec![Step::Finish(task(0), status), tree.unassign("a", 0)]]);
}

#[test]
fn a_worker_registered_by_hand_is_lost_after_a_second() {
    let missing = |since: i64| {
        let mut tree = Tree::new().plain(0).assigned("a", 0, None, 1);
        tree.0.missing_since_ms.insert(worker("a"), since);
        plan(&tree.0, KEEP)
    };
    let young = missing(NOW - SETTLING_MS + 1);
    assert_eq!((young.chains.len(), young.look_again_ms), (0, Some(NOW + 1)));
    assert_eq!(missing(NOW - SETTLING_MS).chains.len(), 1);
}

#[test]
fn what_was_meant_for_a_worker_by_hand_is_not_left_to_a_daemon_of_that_name() {
    let tree = Tree::new().worker("a", 1, 2).plain(0).assigned("a", 0, None, 1);
    assert!(matches!(tree.plan()[0][..], [Step::Record(..), Step::Unassign(..)]));
    // One made by hand it does run.
    let mut by_hand = Tree::new().worker("a", 1, 2).plain(0);
    by_hand.0.assign.get_mut(&worker("a")).unwrap().tasks.insert(task(0), Assignment::default());
    check(&by_hand, &[]);
}

#[test]
fn an_assignment_goes_when_its_task_has_a_status_or_is_gone_or_is_another() {
    let tree = Tree::new().worker("a", 1, 1).assigned("a", 0, Some(1), 1);
    let unassign = || [vec![tree.unassign("a", 0)]];
    let whichever = Step::Unassign(worker("a"), task(0), None);
    check(&tree.clone().ended(0, Outcome::Done, NOW), &[vec![whichever]]);
    check(&tree, &unassign());
    let mut another = tree.clone().plain(0);
    another.0.tasks.change(task(0), |known| known.czxid = 77);
    check(&another, &unassign());
}

#[test]
fn the_status_of_a_lost_worker_counts() {
    let tree = Tree::new().worker("b", 2, 1).ended(0, Outcome::Done, NOW).assigned("a", 0, Some(1), 1);
    check(&tree, &[vec![Step::Unassign(worker("a"), task(0), None)]]);
}

#[test]
fn what_a_worker_returned_goes_to_another_and_does_not_count() {
    let mut tree = Tree::new().worker("b", 2, 1).task(0, |meta| meta.no_requeue = true).assigned("a", 0, Some(1), 1);
    let desk = tree.0.assign.get_mut(&worker("a")).unwrap();
    desk.tasks.get_mut(&task(0)).unwrap().meta.as_mut().unwrap().returned = true;
    check(&tree, &[vec![tree.unassign("a", 0)]]);
    tree.carry_out(&tree.unassign("a", 0));
    check(&tree, &[assign_to("b", 0, Some(2), 1)]);
}

#[test]
fn an_assignment_that_vanished_goes_back_to_the_same_instance_as_long_as_that_lives() {
    let mut tree = Tree::new().worker("a", 1, 1).worker("b", 2, 5).plain(0).assigned("a", 0, Some(1), 1);
    let assignment = tree.0.assign.get_mut(&worker("a")).unwrap().tasks.remove(&task(0)).unwrap();
    tree.0.vanished.insert(task(0), Vanished { worker: worker("a"), assignment });
    check(&tree, &[assign_to("a", 0, Some(1), 1)]);
    tree.0.workers.remove(&worker("a"));
    check(&tree, &[]); // it lives by its session
    tree.0.live.remove(&instance(1));
    assert!(matches!(tree.plan()[0][..], [Step::Record(_, 1, _)]));
    for step in tree.plan().concat() {
        tree.carry_out(&step);
    }
    check(&tree, &[assign_to("b", 0, Some(2), 2)]);
}

#[test]
fn of_several_tasks_of_one_submit_only_the_first_counts() {
    let submit = |meta: &mut TaskMeta| meta.submit = Some("same".into());
    let tree = Tree::new().worker("a", 1, 9).task(3, submit).task(5, submit).task(7, submit);
    let plan = tree.plan();
    let removed = |number| vec![Step::Remove(task(number), Removal::Duplicate)];
    assert_eq!(plan[..2], [removed(5), removed(7)]);
    assert_eq!(plan[2..], [assign_to("a", 3, Some(1), 1)]);
    // Also when the first has ended already.
    let mut ended = tree;
    ended.0.tasks.change(task(3), |known| known.stage = Stage::Ended { outcome: Outcome::Done, at_ms: NOW });
    assert_eq!(ended.plan(), [removed(5), removed(7)]);
}

#[test]
fn a_task_that_cannot_be_decoded_ends_as_failed_with_the_reason() {
    let tree = Tree::new().worker("a", 1, 1).known(0, None, open(Err("the data is not UTF-8".into())));
    check(&tree, &[vec![Step::Finish(task(0), Status::because(Outcome::Failed, "the data is not UTF-8"))]]);
}

#[test]
fn a_task_waits_for_those_before_it() {
    let after = |meta: &mut TaskMeta| meta.after = vec![task(0), task(1)];
    let tree = Tree::new().worker("a", 1, 9).ended(0, Outcome::Done, NOW).task(2, after);
    check(&tree.clone().plain(1).assigned("a", 1, Some(1), 1), &[]);
    check(&tree.clone().ended(1, Outcome::Done, NOW), &[assign_to("a", 2, Some(1), 1)]);
    let cancelled = |why: &str| vec![vec![Step::Finish(task(2), Status::because(Outcome::Cancelled, why))]];
    let failed = tree.clone().ended(1, Outcome::Failed, NOW);
    check(&failed, &cancelled("task-0000000001, which it waited for, is failed"));
    check(&tree, &cancelled("task-0000000001, which it waited for, does not exist"));
}

#[test]
fn finished_tasks_are_kept_by_age_and_by_number_but_a_minute_at_least() {
    let removed = |tree: &Tree, age_ms, count| {
        let steps = plan(&tree.0, Retention { age_ms, count }).chains.concat();
        let numbers = steps.iter().map(|step| match step {
            Step::Remove(name, _) => name.to_string(),
            other => panic!("{other:?}"),
        });
        numbers.map(|name| name.trim_start_matches("task-0").parse().unwrap()).collect::<Vec<u32>>()
    };
    let tree = Tree::new()
        .ended(0, Outcome::Done, NOW - 500_000)
        .ended(1, Outcome::Done, NOW - 400_000)
        .ended(2, Outcome::Done, NOW - 70_000)
        .ended(3, Outcome::Done, NOW - 1_000);
    assert_eq!(removed(&tree, 450_000, 9), [0]);
    assert_eq!(removed(&tree, 3_600_000, 2), [0, 1]);
    assert_eq!(removed(&tree, 0, 0), [0, 1, 2]);
    assert!(removed(&tree, i64::MAX, 9).is_empty(), "a time beyond all counting");
}

#[test]
fn what_an_unfinished_task_waits_for_is_not_removed() {
    let tree = Tree::new().ended(0, Outcome::Done, 0).plain(1).task(2, |meta| meta.after = vec![task(0), task(1)]);
    check(&tree, &[]);
}

#[test]
fn the_desk_of_a_worker_long_gone_is_removed_when_empty() {
    let mut tree = Tree::new();
    tree.0.assign.insert(worker("a"), Desk::default());
    tree.0.missing_since_ms.insert(worker("a"), NOW - DESK_KEPT_MS);
    check(&tree, &[vec![Step::RemoveDesk(worker("a"))]]);
    for change in [|desk: &mut Desk| desk.drain = true, |desk: &mut Desk| desk.strangers = true] {
        let mut kept = tree.clone();
        change(kept.0.assign.get_mut(&worker("a")).unwrap());
        check(&kept, &[]);
    }
}

/// Slots, what waits ahead of them, and what is called back.
mod ahead {
    use super::*;

    fn numbers(tree: &Tree) -> Vec<(String, u32)> {
        let assigned = tree.plan().concat().into_iter().filter_map(|step| match step {
            Step::Assign(worker, name, _) => Some((worker.to_string(), name.to_string()[5..].parse().unwrap())),
            _ => None,
        });
        assigned.collect()
    }

    fn recalled(tree: &Tree) -> Vec<(String, u32)> {
        let recalled = tree.plan().concat().into_iter().filter_map(|step| match step {
            Step::Recall(worker, name, _) => Some((worker.to_string(), name.to_string()[5..].parse().unwrap())),
            _ => None,
        });
        recalled.collect()
    }

    fn at(name: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<(String, u32)> {
        numbers.into_iter().map(|number| (name.to_owned(), number)).collect()
    }

    /// A daemon `a` with this many slots and these tasks, assigned so long ago.
    fn busy(slots: u32, numbers: std::ops::Range<u32>, ago_ms: i64) -> Tree {
        numbers.fold(Tree::new().worker("a", 1, slots), |tree, number| {
            tree.plain(number).assigned("a", number, Some(1), 1).ago("a", number, ago_ms)
        })
    }

    fn plain(tree: Tree, numbers: std::ops::Range<u32>) -> Tree {
        numbers.fold(tree, Tree::plain)
    }

    #[test]
    fn a_worker_gets_as_many_tasks_ahead_as_it_has_slots_but_not_too_many() {
        let all = |slots| numbers(&plain(Tree::new().worker("a", 1, slots), 0..99));
        assert_eq!(all(2), at("a", 0..4));
        assert_eq!(all(40), at("a", 0..56));
        // One that is registered by hand gets one at a time.
        assert_eq!(numbers(&plain(Tree::new().worker_by_hand("h"), 0..9)), at("h", 0..1));
        assert_eq!(numbers(&plain(busy(2, 0..3, 10), 3..9)), at("a", 3..4));
    }

    #[test]
    fn nothing_is_ahead_anywhere_while_a_slot_is_free() {
        let tree = plain(busy(1, 0..1, 10).worker("b", 2, 3), 1..7);
        let expected = [at("b", 1..4), at("a", 4..5), at("b", 5..7)].concat();
        assert_eq!(numbers(&tree), expected);
    }

    #[test]
    fn what_is_served_first_overtakes_what_waits() {
        let first = |meta: &mut TaskMeta| meta.priority = 1;
        let full = busy(1, 1..3, 10);
        assert_eq!(numbers(&full.clone().plain(3)), []);
        assert_eq!(numbers(&full.clone().plain(0)), at("a", [0]));
        assert_eq!(numbers(&full.clone().task(3, first)), at("a", [3]));
        // But not without end.
        assert_eq!(numbers(&full.task(3, first).assigned("a", 3, Some(1), 1).task(4, |meta| meta.priority = 9)), []);
    }

    #[test]
    fn whoever_takes_something_new_and_has_half_as_many_tasks_ahead_as_slots_has_enough_to_go_on_with() {
        let supplied = |tree: &Tree| plan(&tree.0, KEEP).supplied;
        assert!(!supplied(&Tree::new()) && !supplied(&Tree::new().plain(0)), "there is nobody");
        assert!(!supplied(&busy(2, 0..3, 10)), "only one is ahead");
        let enough = busy(2, 0..3, 10).plain(3);
        assert!(supplied(&enough), "the plan itself puts another one ahead");
        assert!(!supplied(&enough.clone().worker("b", 2, 1)), "a slot is free elsewhere");
        let mut drained = enough.clone().worker("b", 2, 1);
        drained.0.assign.get_mut(&worker("b")).unwrap().drain = true;
        assert!(supplied(&drained), "who takes nothing new needs nothing");
        assert!(!supplied(&busy(8, 0..11, 10)) && supplied(&busy(8, 0..12, 10)));
    }

    #[test]
    fn a_worker_that_was_given_nothing_for_a_second_gets_nothing_ahead_and_what_waits_is_recalled() {
        let full = |ago_ms| busy(2, 0..2, ago_ms).plain(2);
        assert_eq!(numbers(&full(QUICK_MS - 1)), at("a", [2]));
        assert_eq!(numbers(&full(QUICK_MS)), []);
        let waits = |ago_ms| busy(2, 0..2, 5000).plain(2).assigned("a", 2, Some(1), 1).ago("a", 2, ago_ms);
        let quick = plan(&waits(QUICK_MS - 1).0, KEEP);
        assert_eq!((quick.chains.len(), quick.look_again_ms), (0, Some(NOW + 1)));
        assert_eq!(recalled(&waits(QUICK_MS)), at("a", [2]));
        // One short task among long ones keeps it quick.
        assert_eq!(recalled(&waits(QUICK_MS).ago("a", 0, 10)), []);
    }

    #[test]
    fn a_slot_that_nothing_else_takes_gets_what_waits_elsewhere_and_only_that() {
        let tree = busy(2, 0..4, 10).worker("b", 2, 1);
        assert_eq!(recalled(&tree), at("a", [2]), "what is served first of those that wait");
        assert_eq!(recalled(&tree.clone().plain(9)), [], "somebody else takes the slot");
        let mut tree = tree;
        tree.carry_out(&tree.plan()[0][0]);
        check(&tree, &[]);
        // The slot is kept for it until it is there.
        let back = tree.clone().said("a", 2, |meta| meta.returned = true);
        check(&back, &[vec![back.unassign("a", 2)]]);
        let mut back = back;
        back.carry_out(&back.unassign("a", 2));
        check(&back, &[assign_to("b", 2, Some(2), 1)]);
        // It had been started: another one comes instead.
        assert_eq!(recalled(&tree.said("a", 2, |meta| meta.started = true)), at("a", [1]));
        let nobody = |change: fn(&mut Tree)| {
            let mut tree = busy(2, 0..4, 10).worker("b", 2, 1);
            change(&mut tree);
            assert_eq!(recalled(&tree), []);
        };
        nobody(|tree| tree.0.assign.get_mut(&worker("b")).unwrap().drain = true);
        nobody(|tree| {
            for number in 0..4 {
                let meta = TaskMeta { on: Some(worker("a")), ..TaskMeta::new(number.to_string()) };
                tree.change(number, |open| open.meta = Ok(Some(meta)));
            }
        });
        nobody(|tree| tree.0.workers.get_mut(&worker("a")).unwrap().meta.as_mut().unwrap().stopping = true);
        nobody(|tree| {
            for assignment in tree.0.assign.get_mut(&worker("a")).unwrap().tasks.values_mut() {
                assignment.meta = None;
            }
        });
    }

    #[test]
    fn a_worker_that_is_taken_out_of_service_hands_back_all_that_it_has_not_started() {
        let mut tree = busy(2, 0..4, 10).said("a", 1, |meta| (meta.recalled, meta.started) = (true, true));
        tree.0.assign.get_mut(&worker("a")).unwrap().drain = true;
        assert_eq!(recalled(&tree), at("a", [3, 2, 0]));
        for step in tree.plan().concat() {
            tree.carry_out(&step);
        }
        check(&tree, &[]);
    }
}

/// The check list of the reference implementation's recovery tests: w1 lives, w2 is gone.
mod recovery {
    use super::*;

    fn restarted(tree: &Tree) -> Vec<String> {
        let mut tree = tree.clone();
        let mut restarted = Vec::new();
        for _ in 0..10 {
            for step in tree.plan().concat() {
                if let Step::Assign(_, name, _) = &step {
                    restarted.push(name.to_string());
                }
                tree.carry_out(&step);
            }
        }
        restarted
    }

    fn tree() -> Tree {
        Tree::new().worker("w1", 1, 9)
    }

    #[test]
    fn tasks_of_the_lost_worker_and_new_ones_are_assigned() {
        let tree = tree().ended(1, Outcome::Done, NOW).plain(2).plain(3);
        let tree = tree.assigned("w1", 1, Some(1), 1).assigned("w2", 2, Some(2), 1);
        assert_eq!(restarted(&tree), ["task-0000000003", "task-0000000002"]);
    }

    #[test]
    fn a_finished_task_of_a_lost_worker_is_not_run_again() {
        let tree = tree().plain(1).ended(2, Outcome::Done, NOW).ended(3, Outcome::Failed, NOW);
        let tree = tree.assigned("w1", 1, Some(1), 1).assigned("w2", 2, Some(2), 1).assigned("w2", 3, Some(2), 1);
        assert!(restarted(&tree).is_empty());
    }

    #[test]
    fn an_assignment_without_its_task_is_dropped() {
        let tree = tree().plain(1).plain(3).assigned("w1", 1, Some(1), 1).assigned("w2", 2, Some(2), 1);
        assert_eq!(restarted(&tree), ["task-0000000003"]);
    }
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let any_task = (0_u8..8, 0_u8..5, any::<bool>(), any::<bool>(), 0_u32..4, 0_u32..4, 0_u32..6, 0_u32..4);
    let any_worker = (0_u8..4, 0_u32..4, any::<bool>());
    let tasks = proptest::collection::vec(any_task, 0..12);
    let workers = proptest::collection::vec(any_worker, 0..4);
    (tasks, workers).prop_map(|(tasks, workers)| {
        let mut tree = Tree::new();
        for (index, (kind, slots, drain)) in workers.into_iter().enumerate() {
            let name = format!("w{index}");
            tree = match kind {
                0 => tree.worker_by_hand(&name),
                _ => tree.worker(&name, index as u64, slots),
            };
            tree.0.assign.get_mut(&worker(&name)).unwrap().drain = drain;
        }
        for (number, (kind, holder, no_requeue, cancel, lost, after, submit, failed)) in (0..).zip(tasks) {
            tree = match kind {
                0 => tree.plain(number),
                1 => tree.ended(number, Outcome::Done, NOW - 1_000_000),
                2 => tree.ended(number, Outcome::Failed, NOW),
                3 => tree.known(number, None, open(Err("undecodable".into()))),
                _ => tree.task(number, |meta| {
                    meta.no_requeue = no_requeue;
                    (meta.retries, meta.backoff_ms) = (failed, 60_000);
                    meta.submit = (submit < 3).then(|| submit.to_string());
                    meta.after =
                        (0..after).map(|before| task(before * 3)).filter(|before| *before < task(number)).collect();
                }),
            };
            if tree.0.tasks[&task(number)].open().is_some() {
                for attempt in 1..=lost {
                    // Some of the failures are so young that the task pauses.
                    tree = match attempt <= failed && !no_requeue {
                        true => tree.attempt_at(number, attempt, AttemptKind::Failed, NOW - i64::from(after * 50_000)),
                        false => tree.attempt(number, attempt, AttemptKind::Lost),
                    };
                }
                tree = if cancel { tree.cancel(number) } else { tree };
            }
            // Also on the desks of workers that are not there any more.
            tree = match holder {
                0 => tree.assigned("w0", number, Some(0), lost + 1).ago("w0", number, i64::from(submit) * 400),
                1 => tree.assigned("w1", number, None, lost + 1),
                3 => tree.assigned("w1", number, Some(1), lost + 1).ago("w1", number, i64::from(submit) * 400),
                2 => tree.assigned("gone", number, Some(99), lost.max(1)),
                _ => tree,
            };
        }
        for name in ["gone", "w0", "w1"].map(worker) {
            if tree.0.assign.contains_key(&name) && !tree.0.workers.contains_key(&name) {
                tree.0.missing_since_ms.insert(name, NOW - 2_000_000);
            }
        }
        tree
    })
}

#[test]
fn what_is_not_read_yet_is_not_taken_for_gone() {
    let mut tree =
        Tree::new().worker("a", 1, 3).assigned("a", 5, Some(1), 1).task(7, |meta| meta.after = vec![task(6)]);
    tree.0.unread = BTreeSet::from([task(5), task(6)]);
    assert_eq!(tree.plan(), Vec::<Chain>::new());
    tree.0.unread.clear();
    assert_eq!(
        tree.plan().len(),
        2,
        "the assignment without a task goes, the task without its predecessor is cancelled"
    );
}

/// What the daemons do: each starts what it has as its slots allow, and answers what is recalled.
fn answer(tree: &mut Tree, started: &mut BTreeSet<TaskName>, random: &mut fastrand::Rng) {
    let View { assign, workers, tasks, .. } = &mut tree.0;
    for (name, desk) in assign {
        let Some(registered) = workers.get(name) else { continue };
        let own = |assignment: &Assignment| {
            assignment.meta.as_ref().is_none_or(|meta| meta.instance == registered.instance() && !meta.returned)
        };
        let open = |task: &TaskName| tasks.get(task).is_some_and(|known| known.open().is_some());
        let here: Vec<TaskName> =
            desk.tasks.iter().filter(|(task, a)| own(a) && open(task)).map(|(task, _)| *task).collect();
        let mut free =
            (registered.slots() as usize).saturating_sub(here.iter().filter(|t| started.contains(t)).count());
        let mut unstarted: Vec<TaskName> = here.into_iter().filter(|task| !started.contains(task)).collect();
        random.shuffle(&mut unstarted);
        for task in unstarted {
            let recalled = desk.tasks[&task].meta.as_ref().is_some_and(|meta| meta.recalled);
            if free > 0 && !recalled {
                free -= 1;
                started.insert(task);
            }
        }
        for (task, assignment) in &mut desk.tasks {
            if let Some(meta) = assignment.meta.as_mut().filter(|meta| meta.recalled && !meta.returned) {
                (meta.started, meta.returned) = (started.contains(task), !started.contains(task));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// From any tree carrying out plans ends, in any order of the chains, also when the master dies after any step and
    /// the next one goes on; and the tree is in order then.
    #[test]
    fn plans_end_and_leave_the_tree_in_order(mut tree in any_tree(), seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rounds = 0;
        let mut started = BTreeSet::new();
        loop {
            answer(&mut tree, &mut started, &mut random);
            let mut chains = tree.plan();
            if chains.is_empty() {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 100, "plans do not end: {chains:?}");
            random.shuffle(&mut chains);
            // The master dies at any step: what is not yet done is planned anew.
            let steps: Vec<Step> = chains.concat();
            for step in &steps[..random.usize(1..=steps.len())] {
                tree.carry_out(step);
            }
        }
        let view = &tree.0;
        let mut holders: BTreeMap<TaskName, usize> = BTreeMap::new();
        for (name, desk) in &view.assign {
            let busy = u32::try_from(desk.tasks.len()).unwrap();
            for (task, assignment) in &desk.tasks {
                let known = view.tasks.get(task);
                prop_assert!(known.is_some_and(|known| known.open().is_some()), "{task} is assigned, but not open");
                prop_assert!(!view.holder_lost(name, assignment, &view.living()), "{task} is assigned to a lost worker");
                *holders.entry(*task).or_default() += 1;
            }
            if desk.drain && view.workers.get(name).is_some_and(|worker| worker.instance().is_some()) {
                let unstarted = desk.tasks.iter().find(|(task, a)| a.meta.is_some() && !started.contains(task));
                prop_assert!(unstarted.is_none(), "{unstarted:?} is left at {name}, which is drained");
            }
            // What was assigned before the plans began may be more than fits.
            let slots = view.workers.get(name).map_or(0, Worker::slots);
            let free = busy < slots && !desk.drain;
            let unplaced = |(name, known): (&TaskName, &Known)| {
                let open = known.open()?;
                let next = unassigned_task(view, *name, open, &view.living());
                (!holders.contains_key(name) && matches!(next, Next::Place)).then_some(*name)
            };
            if free {
                let held: BTreeSet<TaskName> = view.assign.values().flat_map(|desk| desk.tasks.keys().copied()).collect();
                let waiting = view.tasks.iter().filter_map(unplaced).find(|name| !held.contains(name));
                prop_assert!(waiting.is_none(), "{waiting:?} waits while {name} has room");
                for (other, desk) in view.assign.iter().filter(|(other, _)| *other != name) {
                    let by_hand = view.workers[other].instance().is_none();
                    let waits = |(task, a): (&TaskName, &Assignment)| a.meta.is_some() && !started.contains(task);
                    let waits = desk.tasks.iter().any(waits);
                    prop_assert!(by_hand || !waits, "something waits at {other} while {name} has room");
                }
            }
        }
        prop_assert!(holders.values().all(|count| *count == 1), "assigned to two workers: {holders:?}");
        prop_assert!(view.tasks.duplicates().is_empty());
    }

    /// What is in the queue is not asked anything but whose turn it is.
    #[test]
    fn of_what_is_in_the_queue_nothing_is_to_be_considered(tree in any_tree()) {
        let view = &tree.0;
        for (_, name) in view.tasks.queue().filter(|(_, name)| !view.vanished.contains_key(name)) {
            let open = view.tasks[&name].open().unwrap();
            prop_assert!(matches!(unassigned_task(view, name, open, &view.living()), Next::Place));
        }
    }

    /// A task that may start once only is never assigned after it may have started.
    #[test]
    fn what_may_start_once_is_never_assigned_again(tree in any_tree()) {
        for step in tree.plan().concat() {
            if let Step::Assign(_, name, _) = step {
                let open = tree.0.tasks[&name].open().unwrap();
                let once = open.meta.as_ref().unwrap().as_ref().is_some_and(|meta| meta.no_requeue);
                prop_assert!(!once || open.attempts.is_empty());
                prop_assert!(!tree.0.assign.values().any(|desk| desk.tasks.contains_key(&name)));
            }
        }
    }
}

#[test]
fn whoever_was_missing_for_the_first_time_is_looked_for_again_also_when_nothing_is_left_of_the_desk() {
    let mut tree = Tree::new().plain(0);
    let vanished = Vanished { worker: worker("h"), assignment: Assignment::default() };
    tree.0.vanished.insert(task(0), vanished);
    tree.0.missing_since_ms.insert(worker("h"), NOW);
    let plan = plan(&tree.0, KEEP);
    assert_eq!((plan.chains.len(), plan.look_again_ms), (0, Some(NOW + SETTLING_MS)));
}

#[test]
fn what_is_assigned_and_gone_takes_no_slot() {
    let tree = Tree::new().worker("a", 1, 1).assigned("a", 7, Some(1), 1).ago("a", 7, QUICK_MS).plain(0);
    check(&tree, &[vec![tree.unassign("a", 7)], assign_to("a", 0, Some(1), 1)]);
    let mut unread = tree;
    unread.0.unread.insert(task(7));
    check(&unread, &[]);
}
