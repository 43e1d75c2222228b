//! `batch`: a command a line, so many at a time, from a file or a pipe that is read no faster than the commands are run.
//!
//! A thread of its own reads, into a short channel; the loop takes from it as long as there is room. What is known is what
//! has not ended yet, so neither memory nor the tree grows with the number of lines: a task that has ended and was printed
//! is marked as one that need not be kept, and the primary removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use zk_session::{Error as Refusal, Event, Session, Stat, Write, in_parallel};
use znode_paths::paths::{self, TASKS, TaskChild, task_child};
use znode_paths::{MAX_DATA, Outcome, Since, Status, Task, TaskName};

use crate::connection::{Connection, Message};
use crate::error::Failure;
use crate::progress::{Progress, Tally};
use crate::report::EndedLine;
use crate::signals::{Reaction, interruptible};
use crate::submit::{self, Template};
use crate::unwatched::Unwatched;
use crate::wait::{self, Open};
use crate::{Error, exit, look, output, render};

/// What to run.
#[derive(Debug)]
pub struct Batch {
    /// The options of all.
    pub template: Template,
    /// How many tasks may be unfinished at a time.
    pub max_in_flight: usize,
    /// While there are more tasks than this, none is submitted.
    pub max_queue: usize,
    /// Leave the finished tasks in the tree.
    pub keep: bool,
    /// Where the commands are; `-` is standard input.
    pub file: PathBuf,
}

const TRIED: &str = "run the commands";

/// How many lines are read before they are needed.
const READ_AHEAD: usize = 64;

/// After so long it is looked again whether there is room in the queue.
const FULL: Duration = Duration::from_secs(1);

/// With so many tasks unfinished it is waited for so long for what ends about the same time: then one request does for all of it.
const MANY: usize = 64;
const GATHER: Duration = Duration::from_millis(10);

/// A command as it was read.
#[derive(Debug)]
struct Line {
    /// From 1.
    number: u64,
    /// How long it is in the file.
    bytes: u64,
    /// Its text, or what is wrong with it.
    command: Result<String, String>,
}

/// A command that has not ended.
#[derive(Debug)]
struct Job {
    line: u64,
    bytes: u64,
    task: Task,
    /// The answer to a request that creates it was lost: it may have been carried out, or may still be.
    sent: Option<Since>,
    /// It was asked to stop.
    stopped: bool,
    /// There is, or was, a watch on what is below it.
    watched: bool,
}

impl Job {
    fn id(&self) -> Option<&str> {
        self.task.meta.as_ref()?.submit.as_deref()
    }
}

/// Runs the commands; returns the exit code.
pub(crate) fn batch(connection: Connection, batch: Batch, json: bool) -> Result<u8, Failure> {
    let (input, size) = open(&batch.file).map_err(|error| Error::Input(batch.file.clone(), error).of(TRIED))?;
    let unfinished = Arc::new(AtomicUsize::new(0));
    let shared = unfinished.clone();
    let react = move |first| match first {
        true => Reaction::Cancel("cancelling what has not ended; the next Ctrl-C leaves it as it is"),
        false => Reaction::Leave(Error::LeftSeveral(unfinished.load(Ordering::Relaxed))),
    };
    interruptible(connection, TRIED, react, move |mut connection| {
        let (lines, read) = mpsc::sync_channel(READ_AHEAD);
        let outbox = connection.outbox();
        let reader = thread::Builder::new().name("zk-input".into()).spawn(move || read_lines(input, lines, &outbox));
        reader.expect("a program that cannot start a thread cannot go on");
        let progress = Progress::new(size, !json);
        let code = Work::new(batch, read, shared, progress, json).run(&mut connection);
        connection.close();
        code.map_err(|error| error.of(TRIED))
    })
}

/// The commands, and how many bytes they have where that is known.
fn open(path: &Path) -> io::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let size = meta.is_file().then_some(meta.len());
    Ok((Box::new(BufReader::new(file)), size))
}

/// Sends the lines, and says each time that there is something: at last that there is nothing more.
fn read_lines(mut input: Box<dyn BufRead + Send>, lines: SyncSender<io::Result<Line>>, outbox: &Sender<Message>) {
    for number in 1.. {
        let Some(line) = read_line(&mut *input, number).transpose() else { break };
        let unreadable = line.is_err();
        if lines.send(line).is_err() || outbox.send(Message::Input).is_err() {
            return;
        }
        if unreadable {
            break;
        }
    }
    drop(lines);
    outbox.send(Message::Input).ok(); // nobody waits for it when the work has ended
}

/// Reads a line, of which no more is kept than fits into a znode. `None` at the end.
fn read_line(input: &mut dyn BufRead, number: u64) -> io::Result<Option<Line>> {
    let limit = MAX_DATA as u64 + 1;
    let mut text = Vec::new();
    let mut part = |text: &mut Vec<u8>| -> io::Result<(u64, bool)> {
        text.clear();
        let bytes = (&mut *input).take(limit).read_until(b'\n', text)? as u64;
        Ok((bytes, bytes < limit || text.ends_with(b"\n")))
    };
    let (mut bytes, whole) = part(&mut text)?;
    if bytes == 0 {
        return Ok(None);
    }
    let mut over = whole;
    while !over {
        let (more, last) = part(&mut text)?;
        bytes += more;
        over = last;
    }
    let command = match String::from_utf8(text) {
        _ if !whole => Err(Error::TooLong(usize::try_from(bytes).unwrap_or(usize::MAX)).to_string()),
        Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(_) => Err("it is not UTF-8".to_owned()),
    };
    Ok(Some(Line { number, bytes, command }))
}

/// What became of a task.
enum Look {
    Open,
    Gone,
    /// The transaction that made its status, and that, without output.
    Ended(i64, Box<Status>),
}

/// Looks whether tasks have ended, and sets the watches that say when to look again. Where such a watch has fired, the status is
/// mostly there.
fn look_at(session: &Session, tasks: &[TaskName], watched: impl Fn(&TaskName) -> bool) -> Result<Vec<Look>, Refusal> {
    let fired: Vec<TaskName> = tasks.iter().filter(|task| watched(task)).copied().collect();
    let found = fired.iter().copied().zip(statuses(session, &fired)?);
    let mut found: BTreeMap<TaskName, Look> = found.filter_map(|(task, look)| Some((task, look?))).collect();
    let others: Vec<TaskName> = tasks.iter().filter(|task| !found.contains_key(task)).copied().collect();
    let ended = |task: &TaskName| -> Result<Option<bool>, Refusal> {
        let children = session.children(&paths::task(task), true)?;
        Ok(children.map(|names| names.iter().any(|name| task_child(name) == Some(TaskChild::Status))))
    };
    let mut late = Vec::new();
    for (task, ended) in others.iter().zip(in_parallel(&others, ended)) {
        match ended? {
            None => _ = found.insert(*task, Look::Gone),
            Some(false) => _ = found.insert(*task, Look::Open),
            Some(true) => late.push(*task),
        }
    }
    let ended = statuses(session, &late)?.into_iter().map(|look| look.unwrap_or(Look::Gone));
    found.extend(late.into_iter().zip(ended));
    Ok(tasks.iter().filter_map(|task| found.remove(task)).collect())
}

fn statuses(session: &Session, tasks: &[TaskName]) -> Result<Vec<Option<Look>>, Refusal> {
    let paths: Vec<String> = tasks.iter().map(paths::status).collect();
    look::read_all(session, &paths, ended)
}

/// How a task has ended, from its status.
fn ended(read: Option<(Vec<u8>, Stat)>) -> Option<Look> {
    let (data, stat) = read?;
    let mut status = Status::decode(&data);
    if let Some(meta) = &mut status.meta {
        (meta.stdout, meta.stderr) = (None, None);
    }
    Some(Look::Ended(stat.czxid, Box::new(status)))
}

struct Work {
    batch: Batch,
    json: bool,
    progress: Progress,
    lines: Receiver<io::Result<Line>>,
    /// Nothing more will be read.
    input_over: bool,
    /// It could not be read to its end.
    unreadable: bool,
    cancelled: bool,
    /// To be created, in the order of the lines.
    waiting: Vec<Job>,
    /// Created, and not ended.
    running: BTreeMap<TaskName, Job>,
    tasks: Open,
    unwatched: Unwatched,
    /// The number of the session on which the watches are.
    session: Option<u32>,
    tally: Tally,
    /// Something came of the last pass, so something else may be done.
    busy: bool,
    /// For whoever presses Ctrl-C: how many are running.
    shared: Arc<AtomicUsize>,
    /// The user knows that no master was there yet.
    told: bool,
}

impl Work {
    fn new(
        batch: Batch,
        lines: Receiver<io::Result<Line>>,
        shared: Arc<AtomicUsize>,
        progress: Progress,
        json: bool,
    ) -> Self {
        Work {
            batch,
            json,
            progress,
            lines,
            input_over: false,
            unreadable: false,
            cancelled: false,
            waiting: Vec::new(),
            running: BTreeMap::new(),
            tasks: Open::default(),
            unwatched: Unwatched::new(Instant::now()),
            session: None,
            tally: Tally::default(),
            busy: false,
            shared,
            told: false,
        }
    }

    fn run(&mut self, connection: &mut Connection) -> Result<u8, Error> {
        // Once there was a session no outage is too long: the tasks go on.
        connection.session(Some(Instant::now() + connection.patience()))?;
        loop {
            if connection.cancel && !self.cancelled {
                (self.cancelled, self.input_over) = (true, true);
                // What may be there already has to be found, to be cancelled.
                self.waiting.retain(|job| job.sent.is_some());
            }
            self.take_lines();
            if self.input_over && self.waiting.is_empty() && self.running.is_empty() {
                break;
            }
            let session = connection.session(None)?;
            if self.session.replace(session.number()) != Some(session.number()) {
                self.tasks.reopened();
            }
            match self.pass(connection, &session) {
                Ok(()) => {}
                Err(Error::Request(Refusal::Lost(reason))) => {
                    log::info!("session lost: {reason}");
                    self.session = None;
                    continue;
                }
                Err(error) => {
                    // Whoever gets no results does not want them.
                    self.stop_running(&session).ok();
                    return Err(error);
                }
            }
            self.tally.running = self.running.len();
            self.shared.store(self.running.len(), Ordering::Relaxed);
            self.progress.show(&self.tally);
            self.listen(connection);
        }
        self.progress.clear();
        Ok(match self.tally {
            _ if self.cancelled => exit::CANCELLED,
            _ if self.unreadable => exit::FAILED,
            Tally { failed: 0, .. } => exit::DONE,
            _ => exit::NOT_DONE,
        })
    }

    /// Takes what is in the mailbox; when nothing else is to be done, waits for it.
    fn listen(&mut self, connection: &mut Connection) {
        let now = Instant::now();
        let gathers = self.running.len() >= MANY;
        let gathered = if gathers { now + GATHER } else { now };
        let busy = std::mem::take(&mut self.busy).then_some(gathered);
        let full = (!self.waiting.is_empty()).then(|| now + FULL);
        let until = [busy, full, self.unwatched.wake()].into_iter().flatten().min();
        let mut message = connection.receive(until);
        while let Some(one) = message {
            if let Message::Session(Event::Watch { path, .. }) = one {
                self.tasks.hint(&path);
            }
            message = if gathers { connection.receive(Some(gathered)) } else { connection.received() };
        }
    }

    /// Takes lines as long as there is room for their tasks.
    fn take_lines(&mut self) {
        while !self.input_over && self.waiting.len() + self.running.len() < self.batch.max_in_flight {
            match self.lines.try_recv() {
                Ok(Ok(line)) => self.take_line(line),
                Ok(Err(error)) => {
                    self.say(&Error::Input(self.batch.file.clone(), error).of("go on").to_string());
                    (self.input_over, self.unreadable) = (true, true);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.input_over = true,
            }
        }
    }

    fn take_line(&mut self, line: Line) {
        let task = match line.command {
            Ok(text) if text.trim().is_empty() => return self.tally.bytes += line.bytes,
            Ok(text) => self.batch.template.task(text).map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match task {
            Ok(task) => {
                let Line { number: line, bytes, .. } = line;
                self.waiting.push(Job { line, bytes, task, sent: None, stopped: false, watched: false });
            }
            Err(why) => self.refuse(line.number, line.bytes, &why),
        }
    }

    /// A line that cannot be run does not keep the others from being run.
    fn refuse(&mut self, line: u64, bytes: u64, why: &str) {
        self.say(&format!("cannot run line {line}: {why}"));
        self.tally.failed += 1;
        self.tally.bytes += bytes;
        self.busy = true;
    }

    fn say(&self, text: &str) {
        self.progress.suspend(|| output::note(text));
    }

    /// Does whatever can be done without another message.
    fn pass(&mut self, connection: &Connection, session: &Session) -> Result<(), Error> {
        self.create(connection, session)?;
        if self.cancelled {
            self.stop_running(session)?;
        }
        let mut ended = self.ask_unwatched(session)?;
        let stale = self.tasks.take_stale();
        let watched = |task: &TaskName| self.running.get(task).is_some_and(|job| job.watched);
        for (task, look) in stale.iter().zip(look_at(session, &stale, watched)?) {
            match look {
                Look::Open => _ = self.running.get_mut(task).map(|job| job.watched = true),
                Look::Gone => {
                    if let Some(job) = self.close(*task) {
                        self.refuse(job.line, job.bytes, &format!("{task} was removed by somebody else"));
                    }
                }
                Look::Ended(czxid, status) => ended.push((czxid, *task, status)),
            }
        }
        ended.sort_unstable_by_key(|(czxid, ..)| *czxid);
        self.report(session, ended)
    }

    /// Asks for those tasks without watches that may have ended by now. Returns those that have.
    fn ask_unwatched(&mut self, session: &Session) -> Result<Vec<(i64, TaskName, Box<Status>)>, Error> {
        let due = self.unwatched.due(Instant::now());
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let read = session.glance_at_each(&due.iter().map(paths::status).collect::<Vec<_>>(), ended);
        let looks: Vec<Option<Look>> = read.into_iter().collect::<Result<_, _>>()?;
        let told = due.iter().zip(&looks).map(|(task, look)| (*task, look.is_some()));
        for task in self.unwatched.answered(told, Instant::now()) {
            self.tasks.add(task);
        }
        let ended = |(task, look)| match look {
            Some(Look::Ended(czxid, status)) => Some((czxid, task, status)),
            _ => None,
        };
        Ok(due.into_iter().zip(looks).filter_map(ended).collect())
    }

    fn close(&mut self, task: TaskName) -> Option<Job> {
        self.tasks.close(task);
        self.unwatched.close(task);
        self.running.remove(&task)
    }

    fn stop_running(&mut self, session: &Session) -> Result<(), Error> {
        let running: Vec<(&TaskName, &mut Job)> = self.running.iter_mut().filter(|(_, job)| !job.stopped).collect();
        let asked = in_parallel(&running, |(task, _)| wait::ask_to_stop(session, **task));
        for ((_, job), asked) in running.into_iter().zip(asked) {
            asked?;
            job.stopped = true;
        }
        Ok(())
    }

    /// Creates what waits, as far as there is room in the queue. Several at a time, so their numbers may be only about in the
    /// order of the lines.
    fn create(&mut self, connection: &Connection, session: &Session) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let Some(stat) = session.stat(TASKS, true)? else {
            if !std::mem::replace(&mut self.told, true) {
                self.say(&format!("no master has set up {TASKS} at {} yet, waiting", connection.zk()));
            }
            return Ok(());
        };
        self.find(connection, session)?;
        let tasks = usize::try_from(stat.children).unwrap_or(0);
        let room = self.batch.max_queue.saturating_add(1).saturating_sub(tasks).min(self.waiting.len());
        let keys = connection.task_keys();
        let results = submit::create_each(session, self.waiting[..room].iter().map(|job| &job.task), keys);
        let mut left = self.waiting.split_off(room);
        let (mut lost, mut unsure) = (None, false);
        for (mut job, result) in std::mem::take(&mut self.waiting).into_iter().zip(results) {
            match result {
                Ok(path) if job.sent.is_none() => self.start(session, submit::name_of(&path)?, job),
                // An earlier request may have been carried out as well: it is looked which one counts.
                Ok(_) => {
                    unsure = true;
                    left.push(job);
                }
                Err(error @ Refusal::Lost(_)) => {
                    if job.id().is_none() {
                        return Err(Error::UnknownPlain(error));
                    }
                    job.sent.get_or_insert(submit::since(&stat));
                    lost = Some(error);
                    left.push(job);
                }
                // Somebody deleted /tasks in between: a master will make it again.
                Err(Refusal::NoNode(_)) => left.push(job),
                Err(error @ Refusal::TooLarge { .. }) => self.refuse(job.line, job.bytes, &error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        left.sort_unstable_by_key(|job| job.line);
        self.waiting = left;
        match lost {
            Some(error) => Err(error.into()),
            None if unsure => self.find(connection, session),
            None => Ok(()),
        }
    }

    /// Looks for the tasks of those whose answer was lost. A task that is there is the one that counts: what comes later
    /// has a higher number, and the primary deletes it.
    fn find(&mut self, connection: &Connection, session: &Session) -> Result<(), Error> {
        let Some(since) = self.waiting.iter().filter_map(|job| job.sent).min_by_key(|since| since.from) else {
            return Ok(());
        };
        connection.sync(session)?;
        let ids: BTreeSet<&str> = self.waiting.iter().filter(|job| job.sent.is_some()).filter_map(Job::id).collect();
        let mut found = look::all_submitted(session, &ids, Some(since))?;
        for job in std::mem::take(&mut self.waiting) {
            match job.id().and_then(|id| found.remove(id)) {
                Some((task, _)) => self.start(session, task, job),
                None => self.waiting.push(job),
            }
        }
        Ok(())
    }

    fn start(&mut self, session: &Session, task: TaskName, job: Job) {
        self.busy = true;
        match self.running.len() >= MANY && session.has_bulk() {
            true => self.unwatched.add(task),
            false => self.tasks.add(task),
        }
        self.running.insert(task, job);
    }

    /// Prints what has ended, in that order, and marks it as what need not be kept.
    fn report(&mut self, session: &Session, ended: Vec<(i64, TaskName, Box<Status>)>) -> Result<(), Error> {
        if ended.is_empty() {
            return Ok(());
        }
        self.busy = true;
        let (mut lines, mut marks) = (Vec::new(), Vec::new());
        for (_, task, status) in ended {
            let Some(job) = self.close(task) else { continue };
            self.tally.bytes += job.bytes;
            match status.outcome {
                Outcome::Done => self.tally.done += 1,
                _ => self.tally.failed += 1,
            }
            lines.push(EndedLine::new(task, &job.task.command, &status).of_line(job.line));
            // Where an answer was lost, another request may still be on its way. The primary knows that one by this task
            // as a later one of the same submit, so this is kept.
            if !self.batch.keep && job.sent.is_none() {
                marks.push((paths::task(&task), Task::removed(&job.task.encode()).encode()));
            }
        }
        let json = self.json;
        self.progress.suspend(|| {
            output::results(json, &lines, |lines| lines.iter().map(render::ended_with_command).collect())
        })?;
        // Only as it was created: what somebody else has written to is not touched.
        let write = |(path, data): &(String, Vec<u8>)| {
            vec![Write::Data { path: path.clone(), data: data.clone(), version: Some(0) }]
        };
        let committed = session.commit_each(&marks.iter().map(write).collect::<Vec<_>>());
        // A session that is lost is noticed soon enough.
        let committed = committed.unwrap_or_else(|_| vec![None; marks.len()]).into_iter();
        let others = marks.into_iter().zip(committed).filter(|(_, committed)| committed.is_none());
        let others: Vec<(String, Vec<u8>)> = others.map(|(mark, _)| mark).collect();
        for marked in in_parallel(&others, |(path, mark)| session.write(path, mark, Some(0))) {
            match marked {
                // What is not marked goes when it is old enough. Submitters may not write to it.
                Ok(_)
                | Err(Refusal::NoNode(_) | Refusal::BadVersion(_) | Refusal::Lost(_) | Refusal::NotAllowed(_)) => {}
                Err(error) => log::warn!("cannot be removed: {error}"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<(u64, u64, Result<String, String>)> {
        let mut input = input;
        let read = (1..).map_while(|number| read_line(&mut input, number).unwrap());
        read.map(|line| (line.number, line.bytes, line.command)).collect()
    }

    #[test]
    fn a_line_is_a_command() {
        let read = lines(b"echo a\n\n echo b\t\r\nc");
        let expected = [(1, 7, "echo a"), (2, 1, ""), (3, 10, " echo b\t"), (4, 1, "c")];
        assert_eq!(read, expected.map(|(number, bytes, text)| (number, bytes, Ok(text.to_owned()))));
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\xff\nx\n")[0].2, Err("it is not UTF-8".to_owned()));
    }

    #[test]
    fn of_a_line_that_no_znode_can_hold_no_more_than_that_is_kept() {
        let mut input = vec![b'x'; 3 * MAX_DATA];
        input.extend(b"\nnext\n");
        let read = lines(&input);
        assert!(read[0].2.as_ref().unwrap_err().contains("3000001 bytes"), "{:?}", read[0].2);
        assert_eq!(read[1], (2, 5, Ok("next".to_owned())));
        assert_eq!(lines(&vec![b'x'; MAX_DATA]).len(), 1);
    }
}
