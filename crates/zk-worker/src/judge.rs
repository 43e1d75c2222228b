//! What a worker does about what it has read: decisions as values. No I/O, no clock, no processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use znode_paths::{Assignment, AssignmentMeta, Instance, LiveName, Outcome, Task, TaskKeys, TaskName, WorkerName};

/// An assignment as it was read, and after it `/epoch` and the task, all at the same server and never from memory.
#[derive(Debug, Clone)]
pub struct Case<'a> {
    /// What it says.
    pub assignment: &'a Assignment,
    /// What `/epoch` says: the fence of the latest primary.
    pub epoch: Option<i64>,
    /// The task at that path; nothing when there is none.
    pub task: Option<TaskFacts>,
}

/// What is known of the task.
#[derive(Debug, Clone, Default)]
pub struct TaskFacts {
    /// Tells it from another one at the same path.
    pub czxid: i64,
    /// It has a status.
    pub status: bool,
    /// Somebody wants it cancelled.
    pub cancel: bool,
    /// The attempts that are recorded.
    pub attempts: BTreeSet<u32>,
    /// How many of them are recorded as failed; not looked for where the task is not to be tried again.
    pub failures: u32,
    /// Why nobody may run it: its data cannot be decoded, or is not signed ([`Rules::accept`]).
    pub refused: Option<String>,
}

/// The worker itself.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// Which life of the process this is.
    pub instance: Instance,
    /// It has room for another task.
    pub room: bool,
    /// It was asked to stop.
    pub leaving: bool,
}

/// What to do about an assignment that is not being run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Run it, as this attempt.
    Start(u32),
    /// Look again when there is room.
    Wait,
    /// It is for somebody else to deal with, for this reason.
    Leave(&'static str),
    /// Delete it unstarted: the primary assigns anew.
    Delete(&'static str),
    /// Say that it will not be started: the primary gives it to somebody else.
    Return,
    /// Write this status; nothing runs.
    End(Outcome, String),
}

/// Decides about an assignment that is not being run (PROTOCOL section 3, Assignments).
///
/// It is started only if it carries our own instance and the fence equal to `/epoch`, or neither, which is one made by
/// hand. What carries another instance is not ours to delete: it may have been started by that instance, and the primary
/// has to record that before it is gone.
pub fn judge(case: &Case<'_>, own: Own) -> Verdict {
    let meta = case.assignment.meta.as_ref();
    if let Some(AssignmentMeta { instance, .. }) = meta
        && *instance != Some(own.instance)
    {
        return Verdict::Leave("it is for another instance");
    }
    if meta.is_some_and(|meta| meta.returned) {
        return Verdict::Leave("it was returned");
    }
    if meta.is_some_and(|meta| Some(meta.fence) != case.epoch) {
        return Verdict::Delete("it was assigned by a master that is not the primary any more");
    }
    let Some(task) = &case.task else { return Verdict::Leave("there is no such task") };
    if meta.is_some_and(|meta| meta.task != task.czxid) {
        return Verdict::Leave("it is for an earlier task of that name");
    }
    if task.status {
        return Verdict::Leave("the task has a status");
    }
    let attempt = match meta {
        Some(meta) if task.attempts.contains(&meta.attempt) => {
            return Verdict::Delete("its attempt is recorded already");
        }
        Some(meta) => meta.attempt,
        None => task.attempts.last().map_or(1, |last| last.saturating_add(1)),
    };
    if task.cancel {
        return Verdict::End(Outcome::Cancelled, "cancelled before it started".to_owned());
    }
    if let Some(why) = &task.refused {
        return Verdict::End(Outcome::Failed, why.clone());
    }
    match own {
        _ if meta.is_some_and(|meta| meta.recalled) => Verdict::Return,
        Own { leaving: true, .. } => Verdict::Return,
        Own { room: false, .. } => Verdict::Wait,
        _ => Verdict::Start(attempt),
    }
}

/// How far the clocks of clients, workers and ZooKeeper servers may be apart where tasks are signed.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// What a worker with a task key demands of a task.
#[derive(Debug, Clone)]
pub struct Rules {
    /// One of them has signed it.
    pub keys: TaskKeys,
    /// No longer ago than this.
    pub max_age: Duration,
}

/// A task as it was read.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// What it says.
    pub task: &'a Task,
    /// In these bytes.
    pub data: &'a [u8],
    /// When its znode was made, in milliseconds since 1970 by the clocks of the servers.
    pub created_ms: i64,
    /// How often they were written since.
    pub version: i32,
    /// Now, in milliseconds since 1970 by the worker's clock.
    pub now_ms: u64,
}

impl Rules {
    /// Whether a worker of this name and with these labels may run the task.
    ///
    /// Whoever can write to the tree can copy a signed task. The copy has the submit id of the first, of which the primary
    /// lets one be there; it is created later than it was signed, or written over something that was; and it runs where the
    /// signed options say. What is left is the time by which clocks may differ, and to run the first again until it is too
    /// old.
    ///
    /// # Errors
    /// Why not: the reason with which the task ends.
    pub fn accept(
        &self,
        claim: &Claim<'_>,
        name: &WorkerName,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let signed_ms = self.keys.check(claim.task, claim.data).map_err(|unsigned| unsigned.to_string())?;
        let since = |ms: u64| Duration::from_millis(ms.saturating_sub(signed_ms));
        let before = |ms: u64| Duration::from_millis(signed_ms.saturating_sub(ms));
        let created_ms = u64::try_from(claim.created_ms).unwrap_or_default();
        let age = since(claim.now_ms);
        if age > self.max_age {
            let (age, limit) = (age.as_secs(), self.max_age.as_secs());
            return Err(format!("it was signed {age} s ago, and the worker's --task-max-age is {limit} s"));
        }
        if before(claim.now_ms) > SKEW {
            let ahead = before(claim.now_ms).as_secs();
            return Err(format!("it was signed {ahead} s in the future: the clocks of client and worker differ"));
        }
        if claim.version != 0 || since(created_ms).max(before(created_ms)) > SKEW {
            return Err("it was not created when it was signed: it is a copy, or clocks differ".to_owned());
        }
        if let Some(meta) = &claim.task.meta {
            if meta.on.as_ref().is_some_and(|on| on != name) {
                return Err(format!("it is signed for another worker than {name}"));
            }
            if meta.require.iter().any(|(key, value)| labels.get(key) != Some(value)) {
                return Err(format!("it is signed for workers with labels that {name} does not have"));
            }
        }
        Ok(())
    }
}

/// The answer to a recall of what runs already, if that is asked for: it has been started. A recall is always answered, with
/// this or with the return; until then the primary recalls nothing else in its place.
pub fn too_late(assignment: Assignment) -> Option<Assignment> {
    let meta = assignment.meta.filter(|meta| meta.recalled && !meta.started && !meta.returned)?;
    Some(Assignment { meta: Some(AssignmentMeta { started: true, ..meta }) })
}

/// What was started, by the czxid of its assignment, as long as that is there: whatever becomes of a start, it is never
/// taken for an assignment that has not been started.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Starts(BTreeMap<TaskName, i64>);

impl Starts {
    /// This one was started.
    pub fn note(&mut self, name: TaskName, fence: i64) {
        self.0.insert(name, fence);
    }

    /// Whether the assignment with this czxid was started here.
    pub fn contain(&self, name: &TaskName, fence: i64) -> bool {
        self.0.get(name) == Some(&fence)
    }

    /// Forgets all others: their assignments never come back.
    pub fn keep(&mut self, wanted: impl Fn(&TaskName) -> bool) {
        self.0.retain(|name, _| wanted(name));
    }
}

/// Whether a session found below `/live` is an earlier one of ours, which the new session `own` has to end. `instances` are
/// all that this process has been, and those that held its work dir before and are dead. Sessions are counted by each
/// process for itself.
pub fn is_earlier(found: LiveName, own: LiveName, instances: &[Instance]) -> bool {
    match found.instance == own.instance {
        true => found.session < own.session,
        false => instances.contains(&found.instance),
    }
}

/// Whether the result of a command that the instance `started_by` of this process started is still to be written. To the
/// primary an earlier life of this process is another one: its result counts as long as the assignment `fence` is there,
/// for then the primary has not yet given the task to somebody else. `there` reads the czxid of what is at its path now.
///
/// # Errors
/// Those of `there`.
pub fn counts<E>(
    started_by: Instance,
    own: Instance,
    fence: i64,
    there: impl FnOnce() -> Result<Option<i64>, E>,
) -> Result<bool, E> {
    Ok(started_by == own || there()? == Some(fence))
}

/// Why a running task is to be stopped. Of several reasons the greatest counts, also of those that come up while the task
/// is being stopped: what others have decided before what was asked for, and that before what the worker decides itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// The worker was asked to stop for the second time.
    Shutdown,
    /// Its time limit has passed.
    TimedOut,
    /// Somebody asked for it.
    Cancelled,
    /// The assignment is gone, or another one is at its path.
    Revoked,
    /// The task has a status that we did not write.
    Superseded,
    /// The task is gone.
    TaskGone,
}

/// Whether a running task is to be stopped: `ours` says whether the assignment it was started for is still there.
pub fn oversee(task: Option<&TaskFacts>, czxid: i64, ours: bool) -> Option<Why> {
    match task {
        None => Some(Why::TaskGone),
        Some(task) if task.czxid != czxid => Some(Why::TaskGone),
        Some(task) if task.status => Some(Why::Superseded),
        _ if !ours => Some(Why::Revoked),
        Some(task) if task.cancel => Some(Why::Cancelled),
        Some(_) => None,
    }
}

/// Whether a failure of the next attempt is followed by another attempt, after so many failures. What may start once only
/// does not start again, whatever else it asks for.
pub fn retries_left(task: &Task, failures: u32) -> bool {
    task.meta.as_ref().is_some_and(|meta| failures < meta.retries && !meta.no_requeue)
}

/// What is to be written when a command has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Report {
    /// This status.
    Status(Outcome),
    /// The record of a failed attempt, before the assignment is deleted: there will be another one.
    Failed,
    /// The record of a lost attempt: it may have done something, and it gets no status.
    Lost,
    /// Nothing.
    Nothing,
}

/// What is to be written when a command has ended by itself, or after it was to be stopped. `again` says whether there is
/// another attempt after a failure ([`retries_left`]).
pub fn report(stopped: Option<Why>, success: bool, again: bool) -> Report {
    match stopped {
        None if success => Report::Status(Outcome::Done),
        None if again => Report::Failed,
        None => Report::Status(Outcome::Failed),
        Some(Why::Cancelled) => Report::Status(Outcome::Cancelled),
        Some(Why::TimedOut) => Report::Status(Outcome::Timeout),
        Some(Why::Revoked) => Report::Lost,
        // Whoever takes our node away with our session records it: that our processes are dead is certain only then.
        Some(Why::Superseded | Why::TaskGone | Why::Shutdown) => Report::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::TaskMeta;

    const FENCE: i64 = 50;
    const TASK: i64 = 7;

    fn own() -> Own {
        Own { instance: Instance::from_random(1), room: true, leaving: false }
    }

    fn assigned(change: impl FnOnce(&mut AssignmentMeta)) -> Assignment {
        let mut meta = AssignmentMeta::new(Some(own().instance), FENCE, 2, TASK);
        change(&mut meta);
        Assignment { meta: Some(meta) }
    }

    fn facts(change: impl FnOnce(&mut TaskFacts)) -> Option<TaskFacts> {
        let mut facts = TaskFacts { czxid: TASK, ..TaskFacts::default() };
        change(&mut facts);
        Some(facts)
    }

    #[track_caller]
    fn check(assignment: &Assignment, task: Option<TaskFacts>, own: Own, expected: &Verdict) {
        assert_eq!(&judge(&Case { assignment, epoch: Some(FENCE), task }, own), expected);
    }

    #[test]
    fn what_is_meant_for_us_by_the_present_primary_is_started() {
        check(&assigned(|_| ()), facts(|_| ()), own(), &Verdict::Start(2));
    }

    #[test]
    fn what_was_made_by_hand_is_started_whatever_the_epoch() {
        let by_hand = Assignment::default();
        check(&by_hand, facts(|_| ()), own(), &Verdict::Start(1));
        check(&by_hand, facts(|task| task.attempts = BTreeSet::from([1, 4])), own(), &Verdict::Start(5));
        let case = Case { assignment: &by_hand, epoch: None, task: facts(|_| ()) };
        assert_eq!(judge(&case, own()), Verdict::Start(1));
    }

    #[test]
    fn an_assignment_of_a_deposed_master_is_deleted_unstarted() {
        for epoch in [None, Some(FENCE - 1), Some(FENCE + 1)] {
            let case = Case { assignment: &assigned(|_| ()), epoch, task: facts(|_| ()) };
            assert!(matches!(judge(&case, own()), Verdict::Delete(_)), "{epoch:?}");
        }
    }

    #[test]
    fn what_another_instance_may_have_started_is_left_to_the_primary() {
        let another = Verdict::Leave("it is for another instance");
        check(&assigned(|meta| meta.instance = Some(Instance::from_random(2))), facts(|_| ()), own(), &another);
        check(&assigned(|meta| meta.instance = None), facts(|_| ()), own(), &another);
        // Not even a fence of the past makes it ours to delete: a start would be forgotten.
        let old = assigned(|meta| (meta.instance, meta.fence) = (Some(Instance::from_random(2)), 1));
        check(&old, facts(|_| ()), own(), &another);
    }

    #[test]
    fn a_task_that_is_gone_or_another_or_ended_is_not_started() {
        check(&assigned(|_| ()), None, own(), &Verdict::Leave("there is no such task"));
        let earlier = Verdict::Leave("it is for an earlier task of that name");
        check(&assigned(|_| ()), facts(|task| task.czxid = 8), own(), &earlier);
        check(&assigned(|_| ()), facts(|task| task.status = true), own(), &Verdict::Leave("the task has a status"));
    }

    #[test]
    fn an_attempt_that_is_recorded_is_not_started_under_its_number() {
        let verdict = Verdict::Delete("its attempt is recorded already");
        check(&assigned(|_| ()), facts(|task| task.attempts = BTreeSet::from([2])), own(), &verdict);
    }

    #[test]
    fn a_leaving_worker_returns_what_it_has_not_started() {
        let leaving = Own { leaving: true, ..own() };
        check(&assigned(|_| ()), facts(|_| ()), leaving, &Verdict::Return);
        check(&assigned(|meta| meta.returned = true), facts(|_| ()), leaving, &Verdict::Leave("it was returned"));
        check(&assigned(|_| ()), facts(|_| ()), Own { room: false, ..own() }, &Verdict::Wait);
    }

    #[test]
    fn what_is_recalled_is_returned_if_it_has_not_started_and_said_to_be_started_if_it_has() {
        let recalled = assigned(|meta| meta.recalled = true);
        check(&recalled, facts(|_| ()), own(), &Verdict::Return);
        check(&recalled, facts(|_| ()), Own { room: false, ..own() }, &Verdict::Return);
        let cancelled = Verdict::End(Outcome::Cancelled, "cancelled before it started".into());
        check(&recalled, facts(|task| task.cancel = true), own(), &cancelled);
        let started = assigned(|meta| (meta.recalled, meta.started) = (true, true));
        assert_eq!(too_late(recalled), Some(started.clone()));
        // Nobody asks, or it is answered already.
        for settled in [Assignment::default(), assigned(|_| ()), started, assigned(|meta| meta.returned = true)] {
            assert_eq!(too_late(settled), None);
        }
    }

    const NOW_MS: u64 = 1_700_000_000_000;
    const DAY: Duration = Duration::from_secs(86_400);

    /// What a worker with a key makes of a task that was signed so long ago, if it is so changed.
    fn accepted(ago: Duration, change: impl FnOnce(&mut Task, &mut Claim<'_>)) -> Result<(), String> {
        let rules = Rules { keys: TaskKeys::parse("0123456789abcdef").unwrap(), max_age: DAY };
        let signed_ms = NOW_MS - u64::try_from(ago.as_millis()).unwrap();
        let task = rules.keys.sign(&Task { command: "true".into(), meta: Some(TaskMeta::new("s".into())) }, signed_ms);
        let created_ms = i64::try_from(signed_ms).unwrap();
        let mut changed = task.clone();
        let mut claim = Claim { task: &task, data: b"", created_ms, version: 0, now_ms: NOW_MS };
        change(&mut changed, &mut claim);
        let data = changed.encode();
        let claim = Claim { task: &changed, data: &data, ..claim };
        rules.accept(&claim, &"w".parse().unwrap(), &BTreeMap::new())
    }

    #[track_caller]
    fn check_refused(ago: Duration, change: impl FnOnce(&mut Task, &mut Claim<'_>), why: &str) {
        let refused = accepted(ago, change).expect_err("must not be run");
        assert!(refused.contains(why), "{refused}");
    }

    #[test]
    fn what_is_signed_is_run_until_it_is_too_old() {
        assert_eq!(accepted(Duration::ZERO, |_, _| ()), Ok(()));
        assert_eq!(accepted(DAY, |_, _| ()), Ok(()));
        let late = "it was signed 86401 s ago, and the worker's --task-max-age is 86400 s";
        check_refused(DAY + Duration::from_secs(1), |_, _| (), late);
    }

    #[test]
    fn what_is_not_signed_or_was_changed_is_not_run() {
        check_refused(Duration::ZERO, |task, _| task.meta = None, "not signed");
        check_refused(Duration::ZERO, |task, _| task.meta.as_mut().unwrap().mac = None, "not signed");
        check_refused(Duration::ZERO, |task, _| task.command = "false".into(), "its signature is wrong");
        check_refused(Duration::ZERO, |task, _| task.meta.as_mut().unwrap().retries = 9, "its signature is wrong");
        check_refused(Duration::ZERO, |task, _| task.meta.as_mut().unwrap().signed_ms = None, "its signature is wrong");
    }

    #[test]
    fn a_copy_of_what_is_signed_is_not_run() {
        let copy = "a copy, or clocks differ";
        let skew = i64::try_from(SKEW.as_millis()).unwrap();
        for made in [skew + 1, -skew - 1, i64::MIN / 2] {
            check_refused(DAY, |_, claim| claim.created_ms += made, copy);
        }
        check_refused(DAY, |_, claim| claim.version = 1, copy);
        assert_eq!(accepted(DAY, |_, claim| claim.created_ms += skew), Ok(()), "clocks differ a little");
        assert_eq!(accepted(Duration::ZERO, |_, claim| claim.now_ms -= 300_000), Ok(()), "clocks differ a little");
        check_refused(Duration::ZERO, |_, claim| claim.now_ms -= 301_000, "301 s in the future");
    }

    /// Whoever assigns it, by hand or as a master.
    #[test]
    fn what_is_signed_runs_only_where_it_says() {
        let rules = Rules { keys: TaskKeys::parse("0123456789abcdef").unwrap(), max_age: DAY };
        let accepts = |change: &dyn Fn(&mut TaskMeta)| {
            let mut meta = TaskMeta::new("s".into());
            change(&mut meta);
            let task = rules.keys.sign(&Task { command: "true".into(), meta: Some(meta) }, NOW_MS);
            let created_ms = i64::try_from(NOW_MS).unwrap();
            let claim = Claim { task: &task, data: &task.encode(), created_ms, version: 0, now_ms: NOW_MS };
            rules.accept(&claim, &"w".parse().unwrap(), &BTreeMap::from([("a".into(), "b".into())])).is_ok()
        };
        assert!(accepts(&|meta| meta.on = Some("w".parse().unwrap())));
        assert!(!accepts(&|meta| meta.on = Some("v".parse().unwrap())));
        assert!(accepts(&|meta| _ = meta.require.insert("a".into(), "b".into())));
        assert!(!accepts(&|meta| _ = meta.require.insert("a".into(), "c".into())));
        assert!(!accepts(&|meta| _ = meta.require.insert("c".into(), String::new())));
    }

    #[test]
    fn what_is_refused_ends_as_failed_with_the_reason() {
        let failed = Verdict::End(Outcome::Failed, "not signed".into());
        check(&assigned(|_| ()), facts(|task| task.refused = Some("not signed".into())), own(), &failed);
    }

    #[test]
    fn cancel_wins_over_the_start() {
        let cancelled = Verdict::End(Outcome::Cancelled, "cancelled before it started".into());
        check(&assigned(|_| ()), facts(|task| task.cancel = true), own(), &cancelled);
    }

    #[test]
    fn a_running_task_is_stopped_when_it_is_not_ours_any_more() {
        assert_eq!(oversee(facts(|_| ()).as_ref(), TASK, true), None);
        assert_eq!(oversee(facts(|_| ()).as_ref(), TASK, false), Some(Why::Revoked));
        assert_eq!(oversee(facts(|_| ()).as_ref(), 8, true), Some(Why::TaskGone));
        assert_eq!(oversee(None, TASK, true), Some(Why::TaskGone));
        assert_eq!(oversee(facts(|task| task.status = true).as_ref(), TASK, false), Some(Why::Superseded));
        assert_eq!(oversee(facts(|task| task.cancel = true).as_ref(), TASK, true), Some(Why::Cancelled));
    }

    #[test]
    fn a_command_that_ends_by_itself_is_done_or_failed() {
        assert_eq!(report(None, true, false), Report::Status(Outcome::Done));
        assert_eq!(report(None, true, true), Report::Status(Outcome::Done));
        assert_eq!(report(None, false, false), Report::Status(Outcome::Failed));
        assert_eq!(report(None, false, true), Report::Failed);
    }

    #[test]
    fn of_several_reasons_to_stop_the_one_that_others_decided_counts_however_the_command_ends() {
        let order = [Why::Shutdown, Why::TimedOut, Why::Cancelled, Why::Revoked, Why::Superseded, Why::TaskGone];
        assert!(order.is_sorted());
        for (success, again) in [(true, true), (true, false), (false, true), (false, false)] {
            let reports = order.map(|why| report(Some(why), success, again));
            let (timeout, cancelled) = (Report::Status(Outcome::Timeout), Report::Status(Outcome::Cancelled));
            let nothing = || Report::Nothing;
            assert_eq!(reports, [nothing(), timeout, cancelled, Report::Lost, nothing(), nothing()]);
        }
    }

    #[test]
    fn a_failure_is_followed_by_as_many_attempts_as_were_asked_for() {
        let retries = |retries, no_requeue| {
            let meta = TaskMeta { retries, no_requeue, ..TaskMeta::new("s".into()) };
            let task = Task { command: "x".into(), meta: Some(meta) };
            (0..9).take_while(|failures| retries_left(&task, *failures)).count()
        };
        assert_eq!((retries(0, false), retries(3, false), retries(3, true)), (0, 3, 0));
        assert!(!retries_left(&Task::plain("x"), 0));
    }

    #[test]
    fn the_result_of_an_earlier_life_counts_as_long_as_its_assignment_is_there() {
        let (earlier, own) = (Instance::from_random(1), Instance::from_random(2));
        let there = |czxid| move || Ok::<_, ()>(czxid);
        assert_eq!(counts(earlier, own, 9, there(Some(9))), Ok(true));
        assert_eq!(counts(earlier, own, 9, there(Some(10))), Ok(false));
        assert_eq!(counts(earlier, own, 9, there(None)), Ok(false));
        assert_eq!(counts(own, own, 9, || Err(())), Ok(true), "its own is not even looked for");
    }

    #[test]
    fn only_sessions_before_it_and_of_this_process_are_ended() {
        let (before, own) = (Instance::from_random(1), Instance::from_random(2));
        let node = |instance, session| LiveName { instance, session };
        let earlier = |found| is_earlier(found, node(own, 3), &[before, own]);
        assert!(earlier(node(own, 2)) && earlier(node(before, 1)) && earlier(node(before, 7)));
        assert!(!earlier(node(own, 3)) && !earlier(node(own, 4)) && !earlier(node(Instance::from_random(3), 1)));
    }
}
