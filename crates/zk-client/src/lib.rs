//! `zk-client`: submits tasks, waits for them and shows them.
//!
//! ```text
//!   args ──▶ Job ──▶ submit, wait, run ──▶ connection ──▶ ZooKeeper
//!                └─▶ look ──▶ state, report ──▶ render, or JSON
//! ```
//!
//! Whatever a client knows it has just read; it keeps nothing and holds no role. What it promises (PROTOCOL section 4,
//! G5): one submit is one task, also when the connection breaks between request and answer. Waiting goes on through
//! anything that ZooKeeper does.
//!
//! Results go to standard output. Standard error gets an error as one line, and notes to the user; the log is silent
//! unless `-v` or `RUST_LOG` ask for it.
//!
//! Deliberately absent: anything that a master decides. A client assigns nothing and judges nobody's life.

mod act;
mod args;
mod batch;
mod checkup;
pub mod completions;
mod connection;
pub mod doctor;
mod each;
mod error;
pub mod exit;
pub mod follow;
mod key;
mod live;
mod look;
mod output;
mod progress;
mod render;
pub mod report;
mod run;
mod scene;
mod signals;
pub mod submit;
mod top;
mod unwatched;
mod wait;
pub mod why;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use znode_paths::{TaskKeys, TaskName, WorkerName};

pub use args::Args;
pub use batch::Batch;
pub use each::Each;
pub use error::{Error, Failure};
pub use submit::{Order, Template};

use connection::{Connection, Patience};
use follow::{Shown, Wanted};
use report::{Explanation, Submitted, TaskDetail, TaskLine};
use wait::{News, Waiting};

/// What a client needs to know.
#[derive(Debug)]
pub struct Config {
    /// How to reach the ensemble.
    pub session: zk_session::Config,
    /// What tasks and requests for output are signed with.
    pub task_keys: Option<TaskKeys>,
    /// How long to wait for it, and for a first master.
    pub connect_timeout: Duration,
    /// Print JSON.
    pub json: bool,
    /// What to do.
    pub job: Job,
}

/// What to do.
#[derive(Debug)]
pub enum Job {
    /// Create a task.
    Submit(Order),
    /// Create a task, wait for it, and be it.
    Run(Order),
    /// Show what a task writes.
    Logs(TaskName, Wanted),
    /// Run a command on every worker.
    Each(Each),
    /// Run the commands of a file.
    Batch(Batch),
    /// Wait for tasks.
    Wait(BTreeSet<TaskName>),
    /// List the tasks in these states, or all.
    List(Vec<String>),
    /// Show a task.
    Show(TaskName),
    /// Say why a task is in its state.
    Why(TaskName),
    /// Ask for tasks to be stopped.
    Cancel(Vec<TaskName>),
    /// Submit finished tasks anew, unless there are more tasks than this.
    Retry(Vec<TaskName>, usize),
    /// Remove finished tasks.
    Remove(Vec<TaskName>),
    /// List the workers.
    Workers,
    /// Take a worker out of service, or back.
    Drain(WorkerName, bool),
    /// Show the cluster.
    Status,
    /// Print a script for this shell.
    Completions(completions::Shell),
    /// Print names for such a script.
    Names(completions::Kind),
    /// Show the cluster as it changes.
    Top,
    /// Check the tree; repair it if this is set.
    Doctor(bool),
}

/// Does what the command line says; tells the user on one line what went wrong.
pub fn run(args: Args) -> ExitCode {
    let done = args.config().and_then(|config| {
        let Config { session, task_keys, connect_timeout, json, job } = config;
        carry_out(job, Connection::new(session, task_keys, connect_timeout), json)
    });
    ExitCode::from(match done {
        Ok(code) => code,
        Err(failure) if output::unwanted(&failure.error) => exit::DONE,
        Err(failure) => {
            output::note(&failure.to_string());
            exit::of_error(&failure.error)
        }
    })
}

const TRIED_TO_WAIT: &str = "wait";

fn carry_out(job: Job, mut connection: Connection, json: bool) -> Result<u8, Failure> {
    let (tried, done) = match job {
        Job::Top => return top::top(connection).map_err(|error| error.of("show the cluster")),
        Job::Submit(order) => ("submit the task", submit(&mut connection, &order, json)),
        Job::Run(order) => return run::run(connection, order, json),
        Job::Logs(task, wanted) => ("show its output", logs(&mut connection, task, &wanted)),
        Job::Each(what) => return each::each(connection, what, json),
        Job::Batch(what) => return batch::batch(connection, what, json),
        Job::Wait(tasks) => (TRIED_TO_WAIT, wait_for(&mut connection, tasks, json)),
        Job::List(states) => ("list the tasks", list(&mut connection, &states, json)),
        Job::Show(task) => ("show the task", show(&mut connection, task, json)),
        Job::Why(task) => ("explain the task", explain(&mut connection, task, json)),
        Job::Cancel(tasks) => ("cancel", act::cancel(&mut connection, &tasks, json)),
        Job::Retry(tasks, max_queue) => ("retry", act::retry(&mut connection, &tasks, max_queue, json)),
        Job::Remove(tasks) => ("remove", act::remove(&mut connection, &tasks, json)),
        Job::Drain(worker, drain) => {
            let tried = if drain { "drain" } else { "undrain" };
            (tried, act::drain(&mut connection, &worker, drain, json))
        }
        Job::Workers => ("list the workers", workers(&mut connection, json)),
        Job::Status => ("show the cluster", status(&mut connection, json)),
        Job::Completions(shell) => ("print the script", output::text(&completions::script(shell)).map(|()| exit::DONE)),
        Job::Names(kind) => ("list the names", names(&mut connection, kind)),
        Job::Doctor(fix) => ("check the tree", checkup::doctor(&mut connection, fix, json)),
    };
    connection.close();
    done.map_err(|error| error.of(tried))
}

fn submit(connection: &mut Connection, order: &Order, json: bool) -> Result<u8, Error> {
    let task = submit::submit(connection, order, || true)?;
    log::info!("submitted task={task}");
    match output::results(json, &[Submitted { task }], |_| vec![task.to_string()]) {
        // Whoever sees only this must not submit it again.
        Err(Error::Stdout(error)) => Err(Error::Unprinted(task, error)),
        printed => printed.map(|()| exit::DONE),
    }
}

fn logs(connection: &mut Connection, task: TaskName, wanted: &Wanted) -> Result<u8, Error> {
    connection.session(Some(Instant::now() + connection.patience()))?;
    match follow::follow(connection, task, wanted, false)? {
        Shown { broken: Some(error), .. } => Err(Error::Stdout(error)),
        Shown { missing: true, .. } => Ok(exit::NOT_DONE),
        Shown { .. } => Ok(exit::DONE),
    }
}

fn wait_for(connection: &mut Connection, tasks: BTreeSet<TaskName>, json: bool) -> Result<u8, Error> {
    let single = tasks.len() == 1;
    let mut waiting = Waiting::new(tasks);
    let mut code = exit::DONE;
    let mut gone = false;
    connection.session(Some(Instant::now() + connection.patience()))?;
    loop {
        let news = waiting.next(connection, false)?;
        if news.is_empty() {
            break;
        }
        let (mut lines, mut missing) = (Vec::new(), Vec::new());
        for one in news {
            match one {
                News::Gone(task) => missing.push(task),
                News::Ended(seen) => {
                    match seen.status.as_ref().map_or(exit::NOT_DONE, exit::of_status) {
                        exit::DONE => {}
                        own if single => code = own,
                        _ => code = exit::NOT_DONE,
                    }
                    lines.push(TaskLine::new(&seen, &Default::default()));
                }
            }
        }
        output::results(json, &lines, |lines| lines.iter().map(render::ended).collect())?;
        if !missing.is_empty() {
            // Said at once, and the others are waited for.
            gone = true;
            output::note(&Error::NoTask(missing).of(TRIED_TO_WAIT).to_string());
        }
    }
    Ok(if gone { exit::FAILED } else { code })
}

fn list(connection: &mut Connection, states: &[String], json: bool) -> Result<u8, Error> {
    let read = connection.ask(Patience::Bounded, |session| Ok((look::crew(session)?, look::tasks(session)?)));
    let (crew, tasks) = read?;
    let lines = tasks.iter().map(|seen| TaskLine::new(seen, &crew)).collect();
    let lines = report::in_states(lines, states);
    output::results(json, &lines, |lines| {
        let table = render::list(lines, SystemTime::now(), terminal_width());
        render::painted(table, lines.iter().map(|line| line.state.as_str()))
    })?;
    Ok(exit::DONE)
}

fn show(connection: &mut Connection, task: TaskName, json: bool) -> Result<u8, Error> {
    let read = |session: &_| Ok((look::crew(session)?, look::details(session, task)?));
    let (crew, details) = connection.ask(Patience::Bounded, read)?;
    let detail = TaskDetail::new(&details.ok_or(Error::NoTask(vec![task]))?, &crew);
    output::results(json, &[detail], |details| {
        details.iter().flat_map(|detail| render::show(detail, SystemTime::now())).collect()
    })?;
    Ok(exit::DONE)
}

fn explain(connection: &mut Connection, task: TaskName, json: bool) -> Result<u8, Error> {
    let facts = connection.ask(Patience::Bounded, |session| look::facts(session, task))?;
    let cause = facts.and_then(|facts| why::why(task, facts)).ok_or(Error::NoTask(vec![task]))?;
    output::results(json, &[Explanation::new(task, &cause)], |all| all.iter().map(render::explanation).collect())?;
    Ok(exit::DONE)
}

fn names(connection: &mut Connection, kind: completions::Kind) -> Result<u8, Error> {
    let names = connection.ask(Patience::Bounded, |session| look::all_names(session, kind))?;
    output::text(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    Ok(exit::DONE)
}

fn workers(connection: &mut Connection, json: bool) -> Result<u8, Error> {
    let lines = report::workers(&connection.ask(Patience::Bounded, look::crew)?);
    output::results(json, &lines, |lines| {
        render::painted(render::workers(lines, terminal_width()), lines.iter().map(render::worker_state))
    })?;
    Ok(exit::DONE)
}

fn status(connection: &mut Connection, json: bool) -> Result<u8, Error> {
    let (masters, crew, outcomes) = connection.ask(Patience::Bounded, |session| {
        Ok((look::masters(session)?, look::crew(session)?, look::outcomes(session)?))
    })?;
    let cluster = report::cluster(masters, &crew, &outcomes);
    output::results(json, &[cluster], |clusters| clusters.iter().flat_map(render::status).collect())?;
    Ok(exit::DONE)
}

/// How many columns the terminal has; nothing when standard output is none.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    Some(size.ws_col.into()).filter(|width| *width > 0)
}
