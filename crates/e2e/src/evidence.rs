//! What was really done, and whether the promises were kept: computed from two witnesses that no daemon can talk into
//! anything, and nothing else.
//!
//! * **What tasks wrote.** Each of their processes (the program `e2e-task`) appends lines to one file: when it starts, every
//!   few milliseconds that it lives, when it ends. Each line is one append, so the order of the lines is the order of what
//!   happened, whatever the clocks said, and a process that should be dead shows.
//! * **What the servers committed** ([`crate::txnlog`], [`crate::joined`]): which session made each assignment and each status.

use std::collections::{BTreeMap, BTreeSet};

use znode_paths::{Outcome, Status, Task, TaskName, paths, paths::Place, paths::TaskChild};

use crate::txnlog::{Txn, TxnKind};

/// What a line of a task says: `task attempt fence host word nanoseconds pid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It starts.
    Start,
    /// It lives.
    Beat,
    /// It ends with this exit code.
    End(i32),
}

/// One start of a task, as its processes wrote it down. The fence tells it from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which task.
    pub task: TaskName,
    /// Which attempt.
    pub attempt: u32,
    /// The czxid of its assignment.
    pub fence: i64,
    /// On which host.
    pub host: String,
    /// When it said first and last that it lives, in nanoseconds of the monotonic clock.
    pub first_ns: u64,
    /// See `first_ns`.
    pub last_ns: u64,
    /// How often it said that it starts: more than once where one assignment was run twice.
    pub starts: usize,
    /// The exit code with which it said that it ends; nothing of one that was killed.
    pub end: Option<i32>,
    first_line: usize,
    last_line: usize,
}

/// Reads what tasks wrote, as far as the last line is whole.
///
/// # Panics
/// Somebody else wrote into the file.
#[must_use]
#[track_caller]
pub fn runs(evidence: &str) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut known = BTreeMap::new();
    let whole = evidence.rfind('\n').map_or("", |end| &evidence[..end]);
    for (number, line) in whole.lines().enumerate() {
        let (run, word) = parse(line, number).unwrap_or_else(|| panic!("not a line of evidence: {line:?}"));
        let at = *known.entry((run.task, run.fence)).or_insert_with(|| {
            runs.push(run.clone());
            runs.len() - 1
        });
        let known = &mut runs[at];
        known.last_line = number;
        known.last_ns = known.last_ns.max(run.last_ns);
        match word {
            Word::Start => known.starts += 1,
            Word::Beat => {}
            Word::End(code) => known.end = Some(code),
        }
    }
    runs
}

fn parse(line: &str, number: usize) -> Option<(Run, Word)> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let (task, attempt) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let (fence, host) = (next()?.parse().ok()?, next()?.to_owned());
    let word = match next()? {
        "start" => Word::Start,
        "beat" => Word::Beat,
        end => Word::End(end.strip_prefix("end=")?.parse().ok()?),
    };
    let at_ns = next()?.parse().ok()?;
    let run = Run {
        task,
        attempt,
        fence,
        host,
        first_ns: at_ns,
        last_ns: at_ns,
        starts: 0,
        end: None,
        first_line: number,
        last_line: number,
    };
    Some((run, word))
}

/// How long it took, in nanoseconds, until what ran on a host at that time ran anywhere again: one figure for each task
/// that did.
#[must_use]
pub fn restarts_ns(runs: &[Run], host: &str, at_ns: u64) -> Vec<u64> {
    let ran =
        |run: &&Run| run.host == host && run.first_ns <= at_ns && run.last_ns + LIVES_NS >= at_ns && run.end.is_none();
    let again = |dead: &Run| {
        let next = runs.iter().filter(|run| run.task == dead.task && run.fence > dead.fence);
        next.map(|run| run.first_ns.saturating_sub(at_ns)).min()
    };
    runs.iter().filter(ran).filter_map(again).collect()
}

/// What said so long ago that it lives still lives, unless it was killed: two beats on a busy machine.
const LIVES_NS: u64 = 100_000_000;

/// What the servers committed, sorted.
#[derive(Debug, Default)]
pub struct History {
    /// By task, also those that were never acknowledged.
    pub tasks: BTreeMap<TaskName, Record>,
    /// In their order.
    pub reigns: Vec<Reign>,
    /// All assignments, oldest first.
    pub assigned: Vec<Assigned>,
    /// When sessions of daemons made themselves known, in milliseconds since the epoch.
    pub introduced_ms: Vec<i64>,
    /// What the protocol forbids and yet was committed, as sentences.
    pub wrong: Vec<String>,
    /// What ZooKeeper itself did wrong, as sentences: then nothing else here says anything about our promises.
    pub unsound: Vec<String>,
}

/// What was committed about one task.
#[derive(Debug, Default)]
pub struct Record {
    /// It may start once only.
    pub no_requeue: bool,
    /// Its status.
    pub status: Option<Status>,
    /// The numbers of the attempts that ended without a status.
    pub attempts: BTreeSet<u32>,
    /// Who has it assigned now.
    pub assigned: BTreeSet<String>,
}

/// From the creation of `/master` to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Who.
    pub session: i64,
    /// When, in milliseconds since the epoch.
    pub from_ms: i64,
    /// Likewise; nothing while it lasts.
    pub to_ms: Option<i64>,
}

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Which task.
    pub task: TaskName,
    /// By which session.
    pub session: i64,
    /// When, in milliseconds since the epoch.
    pub at_ms: i64,
}

impl History {
    /// Of what was committed below a chroot (`""`: everywhere), oldest first.
    #[must_use]
    pub fn of(txns: &[Txn], chroot: &str) -> History {
        let mut history = History::default();
        let mut epoch = i64::MIN;
        for txn in txns {
            match &txn.kind {
                TxnKind::CloseSession if history.primary() == Some(txn.session) => history.end_reign(txn.time_ms),
                TxnKind::Create { path, data } => {
                    let Some(path) = path.strip_prefix(chroot) else { continue };
                    history.created(txn, path, data);
                }
                TxnKind::Delete { path } => {
                    let Some(path) = path.strip_prefix(chroot) else { continue };
                    history.deleted(txn, path);
                }
                TxnKind::SetData { path, data } => match path.strip_prefix(chroot) {
                    Some(paths::EPOCH) => {
                        let fence = znode_paths::decode_epoch(data).unwrap_or(i64::MIN);
                        if fence <= epoch {
                            history.wrong.push(format!("/epoch went from {epoch} to {fence}"));
                        }
                        epoch = fence;
                    }
                    Some(path) if matches!(Place::of(path), Some(Place::TaskChild(_, TaskChild::Status))) => {
                        history.wrong.push(format!("{path} was written again"));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        history
    }

    fn created(&mut self, txn: &Txn, path: &str, data: &[u8]) {
        match Place::of(path) {
            Some(Place::Master) => {
                self.reigns.push(Reign { session: txn.session, from_ms: txn.time_ms, to_ms: None });
            }
            Some(Place::LiveNode(_)) => self.introduced_ms.push(txn.time_ms),
            Some(Place::Task(task)) => {
                let meta = Task::decode(data).ok().and_then(|task| task.meta);
                let no_requeue = meta.is_some_and(|meta| meta.no_requeue);
                self.tasks.insert(task, Record { no_requeue, ..Record::default() });
            }
            Some(Place::TaskChild(task, TaskChild::Status)) => {
                self.tasks.entry(task).or_default().status = Some(Status::decode(data));
            }
            Some(Place::TaskChild(task, TaskChild::Attempt(number))) => {
                self.tasks.entry(task).or_default().attempts.insert(number);
            }
            Some(Place::Assignment(worker, task)) => {
                let session = txn.session;
                if self.primary() != Some(session) {
                    self.wrong.push(format!("{path} was made by session {session:#x}, which did not own /master"));
                }
                let record = self.tasks.entry(task).or_default();
                if let Some(other) = record.assigned.first() {
                    self.wrong.push(format!("{path} was made while {task} was assigned to {other}"));
                }
                record.assigned.insert(worker.to_string());
                self.assigned.push(Assigned { task, session, at_ms: txn.time_ms });
            }
            _ => {}
        }
    }

    fn deleted(&mut self, txn: &Txn, path: &str) {
        match Place::of(path) {
            Some(Place::Master) => self.end_reign(txn.time_ms),
            Some(Place::Assignment(worker, task)) => {
                self.tasks.entry(task).or_default().assigned.remove(worker.as_str());
            }
            Some(Place::TaskChild(task, TaskChild::Status)) => {
                self.wrong.push(format!("the status of {task} was deleted"));
            }
            _ => {}
        }
    }

    fn primary(&self) -> Option<i64> {
        self.reigns.last().filter(|reign| reign.to_ms.is_none()).map(|reign| reign.session)
    }

    fn end_reign(&mut self, at_ms: i64) {
        if let Some(reign) = self.reigns.last_mut() {
            reign.to_ms.get_or_insert(at_ms);
        }
    }

    /// How long it took, in milliseconds, until a primary assigned that was not the one at that time.
    #[must_use]
    pub fn takeover_ms(&self, at_ms: i64) -> Option<i64> {
        let old = self.reigns.iter().rfind(|reign| reign.from_ms <= at_ms)?.session;
        let next = self.assigned.iter().find(|made| made.at_ms >= at_ms && made.session != old)?;
        Some(next.at_ms - at_ms)
    }

    /// How long it took, in milliseconds, until the last session was there that a daemon opened between these times.
    #[must_use]
    pub fn reconnected_ms(&self, at_ms: i64, until_ms: i64) -> Option<i64> {
        let made = self.introduced_ms.iter().filter(|made| (at_ms..=until_ms).contains(*made));
        made.max().map(|made| made - at_ms)
    }
}

/// What became of some tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many there are.
    pub tasks: usize,
    /// How many have no status.
    pub lost: usize,
    /// How many started more than once.
    pub again: usize,
    /// How many started while an earlier attempt of theirs still lived.
    pub overlapped: usize,
    /// Each of these, as a sentence.
    pub beside: Vec<String>,
    /// Each other broken promise, as a sentence.
    pub wrong: Vec<String>,
}

/// Judges tasks whose creation was acknowledged, once all of them should have ended.
#[must_use]
pub fn judge(history: &History, runs: &[Run], accepted: &[TaskName]) -> Verdict {
    let mut of_task: BTreeMap<TaskName, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        of_task.entry(run.task).or_default().push(run);
    }
    let mut verdict = Verdict::default();
    for task in accepted {
        let runs = of_task.entry(*task).or_default();
        runs.sort_by_key(|run| run.fence);
        verdict.add(*task, history.tasks.get(task), runs);
    }
    verdict
}

impl Verdict {
    fn add(&mut self, task: TaskName, record: Option<&Record>, runs: &[&Run]) {
        self.tasks += 1;
        let starts: usize = runs.iter().map(|run| run.starts).sum();
        self.again += usize::from(starts > 1);
        let beside = |pair: &&[&Run]| pair[0].last_line > pair[1].first_line;
        if let Some([earlier, later]) = runs.windows(2).find(beside) {
            self.overlapped += 1;
            let ms = earlier.last_ns.saturating_sub(later.first_ns) / 1_000_000;
            let (a, b, on, other) = (earlier.attempt, later.attempt, &earlier.host, &later.host);
            self.beside.push(format!("{task}: attempt {a} on {on} lived for {ms} ms beside attempt {b} on {other}"));
        }
        for run in runs.iter().filter(|run| run.starts > 1) {
            self.wrong.push(format!("{task}: one assignment was started {} times on {}", run.starts, run.host));
        }
        let Some(record) = record else {
            self.lost += 1;
            return self.wrong.push(format!("{task} was acknowledged, but the servers do not know it"));
        };
        if starts > record.attempts.len() + 1 {
            let recorded = record.attempts.len();
            self.wrong.push(format!("{task} started {starts} times, but {recorded} attempts are recorded as ended"));
        }
        if record.no_requeue && starts > 1 {
            self.wrong.push(format!("{task} may start once only and started {starts} times"));
        }
        if let Some(worker) = record.assigned.first() {
            self.wrong.push(format!("{task} is still assigned to {worker}"));
        }
        match &record.status {
            None => {
                self.lost += 1;
                self.wrong.push(format!("{task} has no status"));
            }
            Some(status) => self.wrong.extend(unfounded(status, record, runs).map(|why| format!("{task} {why}"))),
        }
    }
}

/// Why a status does not say what happened, if so.
fn unfounded(status: &Status, record: &Record, runs: &[&Run]) -> Option<String> {
    let meta = status.meta.as_ref();
    let fence = meta.and_then(|meta| meta.fence);
    let mut ends = runs.iter().filter(|run| fence.is_none_or(|fence| fence == run.fence)).filter_map(|run| run.end);
    let founded = match status.outcome {
        Outcome::Done => ends.any(|code| code == 0),
        Outcome::Failed => ends.any(|code| code != 0),
        // Given up before all attempts were used only where a second start is not allowed.
        Outcome::Lost => record.no_requeue,
        _ => false,
    };
    let reason = meta.and_then(|meta| meta.reason.as_deref()).unwrap_or("no reason given");
    (!founded).then(|| format!("is {:?} ({reason}), but that is not how it ended: {runs:?}", status.outcome.word()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u32) -> TaskName {
        format!("task-{number:010}").parse().unwrap()
    }

    /// Transactions, a session and a kind each; all times are the zxids.
    fn log(kinds: Vec<(i64, TxnKind)>) -> Vec<Txn> {
        let txn = |(zxid, (session, kind))| Txn { session, zxid, time_ms: zxid, kind };
        (1..).zip(kinds).map(txn).collect()
    }

    fn create(path: &str, data: &str) -> TxnKind {
        TxnKind::Create { path: path.to_owned(), data: data.as_bytes().to_vec() }
    }

    fn delete(path: &str) -> TxnKind {
        TxnKind::Delete { path: path.to_owned() }
    }

    const TASK: &str = "/tasks/task-0000000001";
    const STATUS: &str = "/tasks/task-0000000001/status";
    const ON_A: &str = "/assign/a/task-0000000001";
    const ON_B: &str = "/assign/b/task-0000000001";
    const META: &str = "x\n{\"zk\":1,\"no_requeue\":true}";

    /// A task that ran once, and more transactions after the assignment.
    fn one(data: &str, more: Vec<(i64, TxnKind)>) -> History {
        let mut all = vec![(7, create("/master", "m:1")), (9, create(TASK, data)), (7, create(ON_A, ""))];
        all.extend(more);
        History::of(&log(all), "")
    }

    /// The end of a task that had no trouble.
    fn done() -> Vec<(i64, TxnKind)> {
        vec![(8, create(STATUS, "done")), (8, delete(ON_A))]
    }

    const ONCE: &str =
        "task-0000000001 1 3 a start 10 1\ntask-0000000001 1 3 a beat 20 1\ntask-0000000001 1 3 a end=0 30 1\n";

    #[track_caller]
    fn check(history: &History, evidence: &str, expected: (usize, usize, usize), wrong: &[&str]) {
        let verdict = judge(history, &runs(evidence), &[task(1)]);
        let found: Vec<_> = history.wrong.iter().chain(&verdict.beside).chain(&verdict.wrong).collect();
        assert_eq!((verdict.lost, verdict.again, verdict.overlapped), expected, "{found:?}");
        assert_eq!(found.len(), wrong.len(), "{found:?}");
        for (found, wrong) in found.iter().zip(wrong) {
            assert!(found.contains(wrong), "{found}");
        }
    }

    #[test]
    fn a_task_that_ran_once_is_fine() {
        check(&one("x", done()), ONCE, (0, 0, 0), &[]);
    }

    #[test]
    fn a_line_that_is_still_being_written_is_left_out() {
        let cut = &ONCE[..ONCE.len() - 1];
        assert_eq!(runs(cut)[0].end, None);
        assert_eq!(runs(ONCE)[0].end, Some(0));
    }

    #[test]
    fn a_task_without_a_status_is_lost() {
        let history = one("x", vec![(8, delete(ON_A))]);
        check(&history, ONCE, (1, 0, 0), &["has no status"]);
        check(&History::default(), "", (1, 0, 0), &["the servers do not know it"]);
    }

    #[test]
    fn an_attempt_that_lives_when_the_next_has_begun_overlaps_whatever_its_clock_says() {
        let again = vec![
            (7, create("/tasks/task-0000000001/attempt-1", "lost")),
            (7, delete(ON_A)),
            (7, create(ON_B, "")),
            (8, create(STATUS, "done")),
            (8, delete(ON_B)),
        ];
        let history = one("x", again);
        let (first, second) = ("task-0000000001 1 3 a start 10 1\n", "task-0000000001 2 6 b start 40 2\n");
        let (beat, end) = ("task-0000000001 1 3 a beat 20 1\n", "task-0000000001 2 6 b end=0 50 2\n");
        check(&history, &[first, beat, second, end].concat(), (0, 1, 0), &[]);
        check(&history, &[first, second, beat, end].concat(), (0, 1, 1), &["lived for"]);
        assert_eq!(restarts_ns(&runs(&[first, beat, second, end].concat()), "a", 25), [15]);
    }

    #[test]
    fn more_starts_than_recorded_attempts_are_found() {
        let history =
            one("x", vec![(7, delete(ON_A)), (7, create(ON_B, "")), (8, create(STATUS, "done")), (8, delete(ON_B))]);
        let second = ONCE.replace(" 3 a ", " 5 b ");
        check(&history, &[ONCE, &second].concat(), (0, 1, 0), &["started 2 times, but 0 attempts"]);
        let twice = "task-0000000001 1 3 a start 40 2\n";
        let wrong = ["one assignment was started 2 times", "started 2 times, but 0"];
        check(&one("x", done()), &[ONCE, twice].concat(), (0, 1, 0), &wrong);
    }

    #[test]
    fn a_task_that_may_start_once_only_starts_once() {
        let lost = |word| {
            let record = create("/tasks/task-0000000001/attempt-1", "lost");
            one(META, vec![(7, record), (7, create(STATUS, word)), (7, delete(ON_A))])
        };
        let killed = "task-0000000001 1 3 a start 10 1\n";
        check(&lost("lost"), killed, (0, 0, 0), &[]);
        let again = ONCE.replace(" 1 3 a ", " 2 6 b ");
        check(&lost("done"), &[killed, &again].concat(), (0, 1, 0), &["may start once only"]);
    }

    #[test]
    fn a_status_says_how_a_run_ended() {
        let failed = || vec![(8, create(STATUS, "failed")), (8, delete(ON_A))];
        check(&one("x", failed()), &ONCE.replace("end=0", "end=3"), (0, 0, 0), &[]);
        check(&one("x", failed()), ONCE, (0, 0, 0), &["is \"failed\""]);
        let begun = ONCE.lines().next().unwrap().to_owned() + "\n";
        check(&one("x", done()), &begun, (0, 0, 0), &["is \"done\""]);
        check(&one("x", vec![(7, create(STATUS, "lost")), (7, delete(ON_A))]), ONCE, (0, 0, 0), &["is \"lost\""]);
    }

    #[test]
    fn only_the_owner_of_master_assigns() {
        let history = one("x", vec![(7, delete(ON_A)), (7, TxnKind::CloseSession), (7, create(ON_B, ""))]);
        assert_eq!(history.wrong.len(), 1, "{:?}", history.wrong);
        assert!(history.wrong[0].contains("did not own /master"), "{:?}", history.wrong);
        assert_eq!(history.reigns, [Reign { session: 7, from_ms: 1, to_ms: Some(5) }]);
    }

    #[test]
    fn nothing_is_assigned_twice_at_a_time_or_left_assigned() {
        let history = one("x", vec![(7, create(ON_B, "")), (8, create(STATUS, "done")), (8, delete(ON_A))]);
        check(&history, ONCE, (0, 0, 0), &["was assigned to a", "still assigned to b"]);
    }

    #[test]
    fn a_status_is_final_and_epochs_grow() {
        let set = |path: &str, data: &str| TxnKind::SetData { path: path.to_owned(), data: data.as_bytes().to_vec() };
        let written = one("x", [done(), vec![(8, set(STATUS, "failed")), (8, delete(STATUS))]].concat());
        assert_eq!(written.wrong.len(), 2, "{:?}", written.wrong);
        let epochs = History::of(&log(vec![(7, set("/c/epoch", "5")), (7, set("/c/epoch", "5"))]), "/c");
        assert_eq!(epochs.wrong, ["/epoch went from 5 to 5"]);
    }

    #[test]
    fn a_take_over_lasts_until_another_primary_assigns() {
        let mut all = vec![(7, create("/master", "m:1")), (7, create(ON_A, "")), (7, TxnKind::CloseSession)];
        all.extend([(8, create("/live/00000000000000aa-1", "")), (8, create("/master", "m:2")), (8, create(ON_B, ""))]);
        let history = History::of(&log(all), "");
        assert_eq!(history.takeover_ms(2), Some(4));
        assert_eq!(history.takeover_ms(7), None);
        assert_eq!((history.reconnected_ms(3, 9), history.reconnected_ms(5, 9)), (Some(1), None));
    }
}
