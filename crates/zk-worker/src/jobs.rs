//! What is in hand: commands that run, and results that are not written yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use zk_cli::now_ms;
use znode_paths::{Attempt, AttemptMeta, Instance, Status, StatusMeta, Stream, Task, TaskName};

use crate::Life;
use crate::command::command;
use crate::judge::{Report, Starts, Why, report};
use crate::output::Folder;
use crate::processes::{Exited, NotStarted, Processes};

/// Everything in hand, by task.
pub(crate) struct Jobs {
    pub(crate) processes: Processes,
    jobs: BTreeMap<TaskName, Job>,
    started: Starts,
}

/// A task that was started here.
pub(crate) struct Job {
    /// The czxid of the task.
    pub(crate) task: i64,
    /// The czxid of the assignment: tells this start from every other.
    pub(crate) fence: i64,
    /// Which attempt it is.
    pub(crate) attempt: u32,
    /// Which life of this process started it.
    pub(crate) instance: Instance,
    /// The task was made by hand: its status is one word.
    plain: bool,
    /// After a failure there is another attempt.
    again: bool,
    start_ms: u64,
    /// The same, by a clock that nobody sets.
    since: Instant,
    /// When its time limit passes.
    limit_at: Option<Instant>,
    folder: Option<Folder>,
    pub(crate) stage: Stage,
}

/// How far it is.
pub(crate) enum Stage {
    /// It runs, or is being stopped.
    Running { pid: Pid, stop: Option<Stop> },
    /// It has ended, and that is to be written.
    Ended(End),
}

/// It is being stopped.
pub(crate) struct Stop {
    why: Why,
    /// When SIGKILL follows; nothing once it did.
    kill_at: Option<Instant>,
}

/// How a start ended.
pub(crate) struct End {
    /// Nothing when it could not be started.
    exited: Option<Exited>,
    /// Why it was stopped.
    why: Option<Why>,
    /// Why it could not be started.
    error: Option<String>,
    at_ms: u64,
}

/// What is to be written about an end.
pub(crate) enum Written {
    /// `/tasks/<task>/status`.
    Status(Status),
    /// `/tasks/<task>/attempt-<n>`.
    Record(Attempt),
}

/// An assignment that is to be started.
pub(crate) struct Start<'a> {
    pub(crate) name: TaskName,
    pub(crate) task: &'a Task,
    pub(crate) czxid: i64,
    pub(crate) fence: i64,
    pub(crate) attempt: u32,
    /// After a failure there is another attempt.
    pub(crate) again: bool,
}

impl Jobs {
    pub(crate) fn new(processes: Processes) -> Self {
        Jobs { processes, jobs: BTreeMap::new(), started: Starts::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(crate) fn nothing_runs(&self) -> bool {
        self.running() == 0
    }

    pub(crate) fn running(&self) -> usize {
        self.jobs.values().filter(|job| matches!(job.stage, Stage::Running { .. })).count()
    }

    /// How many slots nothing runs in.
    pub(crate) fn free(&self, life: &Life) -> usize {
        (life.config.slots as usize).saturating_sub(self.running())
    }

    pub(crate) fn get(&self, name: &TaskName) -> Option<&Job> {
        self.jobs.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TaskName, &Job)> {
        self.jobs.iter()
    }

    /// Whether the assignment with this czxid was started here.
    pub(crate) fn was_started(&self, name: &TaskName, fence: i64) -> bool {
        self.started.contain(name, fence)
    }

    /// Only these are assigned: any other start can be forgotten, for its assignment never comes back.
    pub(crate) fn assigned(&mut self, names: &BTreeSet<TaskName>) {
        let jobs = &self.jobs;
        self.started.keep(|name| names.contains(name) || jobs.contains_key(name));
    }

    pub(crate) fn remove(&mut self, name: &TaskName) {
        self.jobs.remove(name);
    }

    /// When something is to be stopped or killed.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let at = |job: &Job| match &job.stage {
            Stage::Running { stop: Some(stop), .. } => stop.kill_at,
            Stage::Running { stop: None, .. } => job.limit_at,
            Stage::Ended(_) => None,
        };
        self.jobs.values().filter_map(at).min()
    }

    /// Does what is to be done by now: stops what has run for too long, and kills what did not stop when it was asked to.
    pub(crate) fn keep_time(&mut self, life: &Life) {
        let now = Instant::now();
        let passed = |job: &Job| job.limit_at.is_some_and(|at| at <= now);
        let late: Vec<TaskName> = self.jobs.iter().filter(|(_, job)| passed(job)).map(|(name, _)| *name).collect();
        for name in late {
            self.stop(&name, Why::TimedOut, life);
        }
        for (name, job) in &mut self.jobs {
            if let Stage::Running { pid, stop: Some(stop) } = &mut job.stage
                && stop.kill_at.is_some_and(|at| at <= now)
            {
                log::warn!("killing task={name}: it did not stop within its grace period");
                self.processes.signal(*pid, Signal::KILL);
                stop.kill_at = None;
            }
        }
    }

    /// Starts a command. When it cannot be started, that is its end.
    pub(crate) fn start(&mut self, start: &Start<'_>, life: &Life) {
        let Start { name, task, czxid, fence, attempt, again } = *start;
        let mut job = Job {
            task: czxid,
            fence,
            attempt,
            instance: life.instance,
            plain: task.meta.is_none(),
            again,
            start_ms: now_ms(),
            since: Instant::now(),
            limit_at: task.meta.as_ref().and_then(|meta| meta.timeout_ms).and_then(limit_at),
            folder: None,
            stage: Stage::Ended(End { exited: None, why: None, error: None, at_ms: now_ms() }),
        };
        let run_as = life.config.run_as.as_ref();
        let prepared = Folder::create(&life.outputs, name, fence).and_then(|folder| {
            let folder = job.folder.insert(folder);
            let command = command(start, folder, run_as)?;
            if let Some(identity) = run_as {
                folder.give_to(identity.uid(), identity.gid())?;
            }
            Ok(command)
        });
        let started = match prepared {
            Ok(command) => self.processes.start(command, run_as),
            Err(error) => Err(NotStarted::Failed(error)),
        };
        job.stage = match started {
            Ok(pid) => {
                log::info!("started task={name} attempt={attempt} pid={}", pid.as_raw_nonzero());
                self.started.note(name, fence);
                Stage::Running { pid, stop: None }
            }
            Err(NotStarted::Expired) => return,
            Err(NotStarted::Failed(error)) => {
                log::warn!("cannot start task={name} attempt={attempt}: {error}");
                life.metrics.start_failures.inc();
                let cwd = task.meta.as_ref().and_then(|meta| meta.cwd.as_ref());
                let place = cwd.map(|cwd| format!(" in {cwd}")).unwrap_or_default();
                let error = Some(format!("cannot start it{place}: {error}"));
                Stage::Ended(End { exited: None, why: None, error, at_ms: now_ms() })
            }
        };
        self.jobs.insert(name, job);
    }

    /// Asks a running task to stop: SIGTERM now, SIGKILL after the grace period. Of several reasons the greatest counts.
    pub(crate) fn stop(&mut self, name: &TaskName, why: Why, life: &Life) {
        match self.jobs.get_mut(name).map(|job| &mut job.stage) {
            Some(Stage::Running { pid, stop: stop @ None }) => {
                log::info!("stopping task={name}: {}", reason(why));
                self.processes.signal(*pid, Signal::TERM);
                *stop = Some(Stop { why, kill_at: Some(Instant::now() + life.config.grace) });
            }
            Some(Stage::Running { stop: Some(stop), .. }) => stop.why = stop.why.max(why),
            Some(Stage::Ended(_)) | None => {}
        }
    }

    pub(crate) fn stop_all(&mut self, life: &Life) {
        let names: Vec<TaskName> = self.jobs.keys().copied().collect();
        for name in names {
            self.stop(&name, Why::Shutdown, life);
        }
    }

    /// Takes note that a command ended. Returns whether there is something to be written, or room again.
    pub(crate) fn on_exit(&mut self, exited: Exited, life: &Life) -> bool {
        let is_it = |job: &Job| matches!(&job.stage, Stage::Running { pid, .. } if *pid == exited.pid);
        let Some((name, job)) = self.jobs.iter_mut().find(|(_, job)| is_it(job)) else { return false };
        let (name, Stage::Running { stop, .. }) = (*name, &job.stage) else { return false };
        let why = stop.as_ref().map(|stop| stop.why);
        if self.processes.expired() && life.config.on_lost == crate::OnLost::Kill {
            // It was killed with everything else, or might have been: to the primary we are lost.
            life.metrics.ended(&Report::Lost, job.since.elapsed());
            self.jobs.remove(&name);
            return false;
        }
        log::info!("ended task={name} attempt={} {}", job.attempt, how(&exited));
        let error = job.folder.as_ref().and_then(Folder::close);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let length = job.folder.as_ref().and_then(|folder| folder.length(stream));
            life.metrics.wrote(stream, length.unwrap_or_default());
        }
        life.metrics.ended(&report(why, exited.code == Some(0), job.again), job.since.elapsed());
        job.stage = Stage::Ended(End { exited: Some(exited), why, error, at_ms: now_ms() });
        true
    }

    /// Its cancellation was seen before its end was written: then it is reported as nothing else.
    pub(crate) fn cancel_ended(&mut self, name: &TaskName) {
        if let Some(Job { stage: Stage::Ended(end), .. }) = self.jobs.get_mut(name) {
            end.why = end.why.max(Some(Why::Cancelled));
        }
    }

    /// What is to be written about one that has ended.
    pub(crate) fn written(&self, name: &TaskName, life: &Life) -> Option<Written> {
        let job = self.jobs.get(name)?;
        let Stage::Ended(end) = &job.stage else { return None };
        let limit = life.config.output_limit;
        let tails = |limit| job.folder.as_ref().map_or((None, None), |folder| folder.tails(limit));
        let success = end.exited.as_ref().is_some_and(|exited| exited.code == Some(0));
        match report(end.why, success, job.again) {
            Report::Status(outcome) if job.plain => Some(Written::Status(Status::plain(outcome))),
            Report::Status(outcome) => {
                let (stdout, stderr) = tails(limit);
                let meta = StatusMeta { stdout, stderr, ..job.status(end, life) };
                Some(Written::Status(Status { outcome, meta: Some(meta) }))
            }
            Report::Failed => {
                let stderr = tails(limit.min(RECORDED_OUTPUT)).1;
                Some(Written::Record(Attempt::failed(AttemptMeta { stderr, ..job.record(end, life) })))
            }
            Report::Lost => Some(Written::Record(Attempt::lost(job.record(end, life)))),
            Report::Nothing => None,
        }
    }

    /// The leash has run out: what ran is dead, and to the primary it was never ours.
    pub(crate) fn forget_running(&mut self, life: &Life) {
        self.jobs.retain(|name, job| {
            let ended = matches!(job.stage, Stage::Ended(_));
            if !ended {
                life.metrics.ended(&Report::Lost, job.since.elapsed());
                log::warn!("killed task={name} attempt={}: this worker may count as lost", job.attempt);
            }
            ended
        });
        // An assignment made by hand carries no instance: it is for whoever this process is now, who has not started it.
        let jobs = &self.jobs;
        self.started.keep(|name| jobs.contains_key(name));
    }
}

impl Job {
    /// It was not stopped, for whatever reason.
    pub(crate) fn ended_by_itself(&self) -> bool {
        matches!(self.stage, Stage::Ended(End { why: None, .. }))
    }

    fn status(&self, end: &End, life: &Life) -> StatusMeta {
        StatusMeta {
            exit_code: end.code(),
            signal: end.signal(),
            reason: end.reason(),
            worker: Some(life.config.name.clone()),
            attempt: Some(self.attempt),
            fence: Some(self.fence),
            start_ms: Some(self.start_ms),
            end_ms: Some(end.at_ms),
            ..StatusMeta::default()
        }
    }

    fn record(&self, end: &End, life: &Life) -> AttemptMeta {
        AttemptMeta {
            worker: Some(life.config.name.clone()),
            instance: Some(self.instance),
            fence: Some(self.fence),
            reason: end.reason().unwrap_or_else(|| "its command failed".to_owned()),
            exit_code: end.code(),
            signal: end.signal(),
            start_ms: Some(self.start_ms),
            end_ms: Some(end.at_ms),
            ..AttemptMeta::default()
        }
    }
}

impl End {
    /// A command that was never started has the code of a shell that cannot start one.
    fn code(&self) -> Option<i32> {
        self.exited.as_ref().map_or(Some(NOT_STARTED), |exited| exited.code)
    }

    fn signal(&self) -> Option<i32> {
        self.exited.as_ref().and_then(|exited| exited.signal)
    }

    fn reason(&self) -> Option<String> {
        self.why.map(reason).or_else(|| self.error.clone())
    }
}

/// The exit code of a command that could not be started (POSIX, the shell's exit status of a command that is found but
/// cannot be executed).
const NOT_STARTED: i32 = 126;

/// How many bytes of the end of standard error are kept in the record of an attempt. There may be many of them.
const RECORDED_OUTPUT: u64 = 4096;

/// When a time limit passes that begins now; a limit beyond all clocks is none.
fn limit_at(limit_ms: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(limit_ms))
}

fn reason(why: Why) -> String {
    match why {
        Why::Cancelled => "cancelled while it ran",
        Why::TimedOut => "its time limit passed",
        Why::Superseded => "somebody else wrote its status",
        Why::TaskGone => "the task is gone",
        Why::Revoked => "its assignment was taken away",
        Why::Shutdown => "the worker was asked to stop",
    }
    .to_owned()
}

fn how(exited: &Exited) -> String {
    match (exited.code, exited.signal) {
        (Some(code), _) => format!("code={code}"),
        (None, Some(signal)) => format!("signal={signal}"),
        (None, None) => "in an unknown way".to_owned(),
    }
}
