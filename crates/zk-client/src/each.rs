//! `each`: a command once on every worker that takes tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zk_master::state::Crew;
use znode_paths::{Outcome, Status, Tail, Task, TaskMeta, TaskName, WorkerName};

use crate::connection::{Connection, Patience};
use crate::error::Failure;
use crate::report::EndedLine;
use crate::signals::{Reaction, interruptible};
use crate::submit::{self, Order, Template};
use crate::wait::{self, News, Waiting};
use crate::{Error, exit, look, output, render};

/// What to run.
#[derive(Debug)]
pub struct Each {
    /// The options of all.
    pub template: Template,
    /// The command.
    pub command: String,
    /// With more tasks than this, nothing is submitted.
    pub max_queue: usize,
}

const TRIED: &str = "run the command on each worker";

/// Runs the command; returns the exit code.
pub(crate) fn each(connection: Connection, each: Each, json: bool) -> Result<u8, Failure> {
    let unfinished = Arc::new(AtomicUsize::new(0));
    let shared = unfinished.clone();
    let react = move |first| match (first, unfinished.load(Ordering::Relaxed)) {
        (_, 0) => Reaction::Leave(Error::NotSubmitted),
        (true, _) => Reaction::Cancel("cancelling what has not ended; the next Ctrl-C leaves it as it is"),
        (false, count) => Reaction::Leave(Error::LeftSeveral(count)),
    };
    interruptible(connection, TRIED, react, move |mut connection| {
        let code = run(&mut connection, &each, &shared, json);
        connection.close();
        code.map_err(|error| error.of(TRIED))
    })
}

/// Who takes tasks, and who is registered and does not. Pure.
fn divide(crew: &Crew) -> (Vec<WorkerName>, Vec<WorkerName>) {
    let stopping = |name: &WorkerName| crew.workers[name].meta.as_ref().is_some_and(|meta| meta.stopping);
    let takes = |name: &WorkerName| !crew.drained.contains(name) && !stopping(name);
    crew.workers.keys().cloned().partition(takes)
}

fn run(connection: &mut Connection, each: &Each, unfinished: &AtomicUsize, json: bool) -> Result<u8, Error> {
    let (workers, out) = divide(&connection.ask(Patience::Bounded, look::crew)?);
    if !out.is_empty() {
        let names: Vec<&str> = out.iter().map(WorkerName::as_str).collect();
        output::note(&format!("left out, for they are drained or stopping: {}", names.join(", ")));
    }
    if workers.is_empty() {
        return Err(Error::NoWorkers);
    }
    let mut open = BTreeMap::new();
    for worker in workers {
        let Task { command, meta } = each.template.task(each.command.clone())?;
        let meta = meta.map(|meta| TaskMeta { on: Some(worker.clone()), ..meta });
        let order = Order { task: Task { command, meta }, max_queue: each.max_queue };
        unfinished.fetch_add(1, Ordering::Relaxed);
        open.insert(submit::submit(connection, &order, || true)?, worker);
    }
    let tasks: BTreeSet<TaskName> = open.keys().copied().collect();
    let mut waiting = Waiting::new(tasks);
    let (mut code, mut cancelled) = (exit::DONE, false);
    loop {
        let news = waiting.next(connection, !cancelled)?;
        if news.is_empty() {
            if cancelled || open.is_empty() {
                return Ok(if cancelled { exit::CANCELLED } else { code });
            }
            cancelled = true;
            for task in open.keys() {
                wait::cancel(connection, *task, Patience::Endless)?;
            }
        }
        for one in news {
            let (task, seen) = match one {
                News::Ended(seen) => (seen.name, Some(seen)),
                News::Gone(task) => (task, None),
            };
            let Some(worker) = open.remove(&task) else { continue };
            unfinished.store(open.len(), Ordering::Relaxed);
            let status = seen.as_ref().and_then(|seen| seen.status.as_ref());
            if status.is_none_or(|status| status.outcome != Outcome::Done) {
                code = exit::NOT_DONE;
            }
            match status {
                Some(status) if json => {
                    let line = EndedLine::new(task, &each.command, status);
                    output::results(true, &[EndedLine { worker: Some(worker), ..line }], |_| Vec::new())?;
                }
                Some(status) => show(&worker, task, status)?,
                None => output::note(&format!("{worker}: {task} was removed by somebody else")),
            }
        }
    }
}

/// What a command wrote, each line behind the name of its worker; and how it ended, if not well.
fn show(worker: &WorkerName, task: TaskName, status: &Status) -> Result<(), Error> {
    let meta = status.meta.clone().unwrap_or_default();
    let lines = |tail: &Option<Tail>| prefixed(worker, tail.as_ref().map(|tail| &tail.bytes[..]).unwrap_or_default());
    output::stdout(&lines(&meta.stdout)).map_err(Error::Stdout)?;
    // A standard error that cannot be written to is nothing that could be told to anybody.
    output::stderr(&lines(&meta.stderr)).ok();
    let cut = |tail: &Option<Tail>| tail.as_ref().is_some_and(|tail| tail.length > tail.bytes.len() as u64);
    if cut(&meta.stdout) || cut(&meta.stderr) {
        output::note(&format!("{worker}: this is only the end of its output, all of it: zk-client logs {task}"));
    }
    if status.outcome != Outcome::Done {
        let code = render::exit(meta.exit_code, meta.signal);
        let reason = meta.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        output::note(&format!("{worker}: {task} is {}, exit code {code}{reason}", status.outcome.word()));
    }
    Ok(())
}

/// Each line behind the name of the worker, the last one ended. Pure.
fn prefixed(worker: &WorkerName, output: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        text.extend([worker.as_str().as_bytes(), b": ", line].concat());
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use znode_paths::{Instance, Worker, WorkerMeta};

    #[test]
    fn each_line_is_behind_the_name_of_its_worker() {
        let worker = "w".parse().unwrap();
        assert_eq!(prefixed(&worker, b"a\n\n\xff"), b"w: a\nw: \nw: \xff\n");
        assert_eq!(prefixed(&worker, b"a\n"), b"w: a\n");
        assert_eq!(prefixed(&worker, b""), b"");
    }

    #[test]
    fn who_takes_nothing_new_is_left_out() {
        let mut crew = Crew::default();
        for (name, stopping) in
            [("hand", None), ("ok", Some(false)), ("drained", Some(false)), ("stopping", Some(true))]
        {
            let meta = |stopping| WorkerMeta { stopping, ..WorkerMeta::new(Instance::from_random(1), 1) };
            let worker = Worker { address: "w:1".into(), meta: stopping.map(meta) };
            crew.workers.insert(name.parse().unwrap(), worker);
        }
        crew.drained.extend(["drained", "gone"].map(|name| name.parse().unwrap()));
        let (takes, out) = divide(&crew);
        assert_eq!(takes.iter().map(WorkerName::as_str).collect::<Vec<_>>(), ["hand", "ok"]);
        assert_eq!(out.iter().map(WorkerName::as_str).collect::<Vec<_>>(), ["drained", "stopping"]);
    }
}
