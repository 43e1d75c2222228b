//! What is in hand: commands that run, and results that are not written yet.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal};
use znode_paths::{Attempt, AttemptMeta, Instance, Outcome, Status, StatusMeta, Task, TaskName};

use crate::judge::{Report, Starts, Why, report};
use crate::output::Folder;
use crate::processes::{Exited, NotStarted, Processes};
use crate::{Life, leftovers};

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
    start_ms: u64,
    folder: Option<Folder>,
    pub(crate) stage: Stage,
}

/// How far it is.
pub(crate) enum Stage {
    /// It runs, or is being stopped.
    Running { pid: Pid, stop: Option<Stop> },
    /// It has ended: this is to be written.
    Ended(Written),
}

/// It is being stopped.
pub(crate) struct Stop {
    why: Why,
    /// When SIGKILL follows; nothing once it did.
    kill_at: Option<Instant>,
}

/// What is to be written about an end.
#[derive(Clone)]
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

    /// When something is to be killed.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let kill_at = |job: &Job| match &job.stage {
            Stage::Running { stop: Some(stop), .. } => stop.kill_at,
            _ => None,
        };
        self.jobs.values().filter_map(kill_at).min()
    }

    /// Starts a command. When it cannot be started, that is its end.
    pub(crate) fn start(&mut self, start: &Start<'_>, life: &Life) {
        let Start { name, task, fence, attempt, .. } = *start;
        let mut job = Job {
            task: start.czxid,
            fence,
            attempt,
            instance: life.instance,
            plain: task.meta.is_none(),
            start_ms: now_ms(),
            folder: None,
            stage: Stage::Ended(Written::Status(Status::plain(Outcome::Failed))),
        };
        let started = match command(start, life) {
            Ok((command, folder)) => {
                job.folder = Some(folder);
                self.processes.start(command)
            }
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
                let reason = format!("cannot start it: {error}");
                Stage::Ended(Written::Status(job.status(Outcome::Failed, None, Some(reason), life)))
            }
        };
        self.jobs.insert(name, job);
    }

    /// Asks a running task to stop: SIGTERM now, SIGKILL after the grace period. The first reason counts.
    pub(crate) fn stop(&mut self, name: &TaskName, why: Why, life: &Life) {
        if let Some(Job { stage: Stage::Running { pid, stop: stop @ None }, .. }) = self.jobs.get_mut(name) {
            log::info!("stopping task={name}: {}", reason(why));
            self.processes.signal(*pid, Signal::TERM);
            *stop = Some(Stop { why, kill_at: Some(Instant::now() + life.config.grace) });
        }
    }

    pub(crate) fn stop_all(&mut self, life: &Life) {
        let names: Vec<TaskName> = self.jobs.keys().copied().collect();
        for name in names {
            self.stop(&name, Why::Shutdown, life);
        }
    }

    /// Kills what did not stop within its grace period.
    pub(crate) fn escalate(&mut self) {
        let now = Instant::now();
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

    /// Takes note that a command ended. Returns whether there is something to be written, or room again.
    pub(crate) fn on_exit(&mut self, exited: &Exited, life: &Life) -> bool {
        let is_it = |job: &Job| matches!(&job.stage, Stage::Running { pid, .. } if *pid == exited.pid);
        let Some(name) = self.jobs.iter().find(|(_, job)| is_it(job)).map(|(name, _)| *name) else { return false };
        let Some(job) = self.jobs.get_mut(&name) else { return false };
        let Stage::Running { stop, .. } = &job.stage else { return false };
        let why = stop.as_ref().map(|stop| stop.why);
        if self.processes.expired() && life.config.on_lost == crate::OnLost::Kill {
            // It was killed with everything else, or might have been: to the primary we are lost.
            self.jobs.remove(&name);
            return false;
        }
        log::info!("ended task={name} attempt={} {}", job.attempt, how(exited));
        if let Some(folder) = &job.folder {
            folder.close();
        }
        match report(why, exited.code == Some(0)) {
            Report::Status(outcome) => {
                job.stage = Stage::Ended(Written::Status(job.status(outcome, Some(exited), why.map(reason), life)));
            }
            Report::Lost => {
                let meta = AttemptMeta {
                    worker: Some(life.config.name.clone()),
                    instance: Some(job.instance),
                    fence: Some(job.fence),
                    reason: reason(Why::Revoked),
                    ..AttemptMeta::default()
                };
                job.stage = Stage::Ended(Written::Record(Attempt::lost(meta)));
            }
            Report::Nothing => _ = self.jobs.remove(&name),
        }
        true
    }

    /// The leash has run out: what ran is dead, and to the primary it was never ours.
    pub(crate) fn forget_running(&mut self) {
        self.jobs.retain(|name, job| {
            let ended = matches!(job.stage, Stage::Ended(_));
            if !ended {
                log::warn!("killed task={name} attempt={}: this worker may count as lost", job.attempt);
            }
            ended
        });
    }
}

impl Job {
    /// The status of this start: one word for a task made by hand, as in the transcript.
    fn status(&mut self, outcome: Outcome, exited: Option<&Exited>, reason: Option<String>, life: &Life) -> Status {
        if self.plain {
            return Status::plain(outcome);
        }
        let limit = life.config.output_limit;
        let (stdout, stderr) = self.folder.as_ref().map_or((None, None), |folder| folder.tails(limit));
        let meta = StatusMeta {
            exit_code: exited.and_then(|exited| exited.code),
            signal: exited.and_then(|exited| exited.signal),
            reason,
            worker: Some(life.config.name.clone()),
            attempt: Some(self.attempt),
            fence: Some(self.fence),
            start_ms: Some(self.start_ms),
            end_ms: Some(now_ms()),
            stdout,
            stderr,
            ..StatusMeta::default()
        };
        Status { outcome, meta: Some(meta) }
    }
}

fn reason(why: Why) -> String {
    match why {
        Why::Cancelled => "cancelled while it ran",
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

/// Linux takes no longer argument (`MAX_ARG_STRLEN`, execve(2)), with the NUL at its end: the shell reads a longer command
/// from a file.
const LONGEST_ARGUMENT: usize = 128 * 1024;

/// `/bin/sh -c COMMAND` in a folder of its own, with nothing of the worker's settings.
fn command(start: &Start<'_>, life: &Life) -> std::io::Result<(Command, Folder)> {
    let folder = Folder::create(&life.outputs, start.name, start.fence)?;
    let (stdout, stderr) = folder.streams()?;
    let mut command = Command::new("/bin/sh");
    if start.task.command.len() < LONGEST_ARGUMENT {
        command.arg("-c").arg(&start.task.command);
    } else {
        command.arg(folder.write_command(&start.task.command)?);
    }
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    for (key, _) in std::env::vars_os() {
        let ours = key.to_str().is_some_and(|key| key.starts_with("ZK_") || key == "RUST_LOG");
        if ours {
            command.env_remove(key);
        }
    }
    command.current_dir(&folder.files);
    if let Some(meta) = &start.task.meta {
        for (key, value) in &meta.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return Err(std::io::Error::other(format!("{key:?} is no environment variable")));
            }
        }
        command.envs(&meta.env);
        if let Some(cwd) = &meta.cwd {
            if !std::path::Path::new(cwd).is_dir() {
                return Err(std::io::Error::other(format!("{cwd} is not a directory here")));
            }
            command.current_dir(cwd);
        }
    }
    command.env(leftovers::FOLDER, &folder.path);
    command.env("ZK_TASK", start.name.to_string());
    command.env("ZK_TASK_ATTEMPT", start.attempt.to_string());
    command.env("ZK_TASK_FENCE", start.fence.to_string());
    Ok((command, folder))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
