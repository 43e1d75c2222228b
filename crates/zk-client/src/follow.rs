//! Shows what a task writes, attempt by attempt, through whatever happens to workers, masters, ZooKeeper and the network.
//!
//! The bytes come from the worker while it can be reached (`live`). What it did not give is taken from the tails in
//! the status, as soon as they hold all that is left; so a task that ends at once is shown without asking anybody, and with
//! no worker to ask only the middle of a long output is missing. That is said then.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use zk_session::Event;
use znode_paths::{StatusMeta, Stream, Tail, TaskName};

use crate::connection::{Connection, Message, Patience};
use crate::live::{Flow, Progress, Sink};
use crate::look::TaskSeen;
use crate::scene::{Act, Scene};
use crate::{Error, output, wait};

/// How long a worker that can be reached may give nothing of an attempt that is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same for one that is not registered: it comes back within a second if only its session was lost.
const UNREGISTERED: Duration = Duration::from_secs(1);

/// After so long without its worker whoever waits for output is told.
const UNREACHED: Duration = Duration::from_secs(2);

/// Between two tries to take over from a stream that is being written at this moment.
const BUSY: Duration = Duration::from_millis(20);

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Only what is there now, or until the task has ended.
    pub wait: bool,
    /// Which of the two.
    pub streams: Vec<Stream>,
    /// As lines of JSON.
    pub json: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// How the task ended, if it has.
    pub(crate) ended: Option<TaskSeen>,
    /// Some of the output could not be had.
    pub(crate) missing: bool,
    /// Standard output cannot be written to: nothing more was shown.
    pub(crate) broken: Option<io::Error>,
}

/// Shows the output of a task. With `cancel` the user can have it cancelled meanwhile.
pub(crate) fn follow(
    connection: &mut Connection,
    task: TaskName,
    wanted: &Wanted,
    cancel: bool,
) -> Result<Shown, Error> {
    let mut scene = Scene::new(task);
    let mut show = Show { task, wanted, done: BTreeSet::new(), playing: None, missing: false };
    let (mut number, mut cancelled) = (None, false);
    loop {
        if cancel && connection.cancel && !cancelled {
            wait::cancel(connection, task, Patience::Endless)?;
            cancelled = true;
        }
        let session = connection.session(None)?;
        if number.replace(session.number()) != Some(session.number()) {
            scene.reopened();
        }
        match scene.refresh(&session) {
            Ok(true) => {}
            Ok(false) => return Err(Error::NoTask(vec![task])),
            Err(zk_session::Error::Lost(reason)) => {
                log::info!("session lost: {reason}");
                number = None;
                continue;
            }
            Err(error) => return Err(Error::Request(error)),
        }
        let next = match show.go_on(&mut scene, connection) {
            Ok(next) => next,
            Err(broken) => return Ok(Shown { ended: scene.take_ended(), broken: Some(broken), missing: true }),
        };
        let until = match next {
            Next::Again => continue,
            Next::Wait(until) => until,
            Next::End => return Ok(Shown { ended: scene.take_ended(), missing: show.missing, broken: None }),
        };
        let mut message = connection.receive(until);
        // All that is there is taken at once: a hundred hints are one look.
        while let Some(one) = message {
            if let Message::Session(Event::Watch { path, .. }) = one {
                scene.hint(&path);
            }
            message = connection.received();
        }
    }
}

enum Next {
    /// Something else is to be looked at.
    Again,
    /// Nothing is to be done before that, unless a message comes.
    Wait(Option<Instant>),
    End,
}

struct Show<'a> {
    task: TaskName,
    wanted: &'a Wanted,
    /// The attempts that were shown, by the czxid of their assignments.
    done: BTreeSet<i64>,
    playing: Option<Playing>,
    missing: bool,
}

/// The attempt that is being shown.
struct Playing {
    fence: i64,
    act: Act,
    flows: Vec<Flow>,
    begun: Instant,
    /// The user knows that its worker is not reached.
    told: bool,
    /// Once it is over: how much was shown, and since when no more than that.
    still: Option<(u64, Instant)>,
}

impl Show<'_> {
    fn go_on(&mut self, scene: &mut Scene, connection: &Connection) -> io::Result<Next> {
        let acts = scene.acts();
        let Some(playing) = &mut self.playing else {
            let Some((fence, act)) = acts.into_iter().find(|(fence, _)| !self.done.contains(fence)) else {
                let end = scene.ended().is_some() || !self.wanted.wait;
                return Ok(if end { Next::End } else { Next::Wait(None) });
            };
            self.announce(&act);
            scene.set_host(act.worker.as_ref());
            let sink = |stream| {
                let (json, task, attempt) = (self.wanted.json, self.task, act.attempt);
                Sink { json, task, attempt, worker: act.worker.clone(), stream }
            };
            let wait = self.wanted.wait && !act.over;
            let start = |stream| Flow::start(sink(stream), fence, wait, connection);
            let flows = self.wanted.streams.iter().map(|stream| start(*stream)).collect();
            self.playing = Some(Playing { fence, act, flows, begun: Instant::now(), told: false, still: None });
            return Ok(Next::Again); // for the address
        };
        if let Some(address) = scene.address() {
            playing.flows.iter().for_each(|flow| flow.at(address));
        }
        let fence = playing.fence;
        let later = acts.last_key_value().is_some_and(|(last, _)| *last > fence);
        let over = !self.wanted.wait || later || acts.get(&fence).is_none_or(|act| act.over);
        let next = playing.go_on(over, scene.address().is_some(), scene.tails(fence))?;
        if let Turn::Wait(until) = next {
            return Ok(Next::Wait(until));
        }
        self.missing |= next == Turn::Missing;
        self.done.insert(fence);
        self.playing = None;
        Ok(Next::Again)
    }

    /// Whoever has seen output of an attempt is told that what follows is of another.
    fn announce(&self, act: &Act) {
        let worker = act.worker.as_ref().map(|worker| format!(" on worker {worker}")).unwrap_or_default();
        match act.attempt {
            Some(attempt) if attempt > 1 => output::note(&format!("attempt {attempt} begins{worker}")),
            _ if self.done.is_empty() => {}
            _ => output::note(&format!("another attempt begins{worker}")),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Wait(Option<Instant>),
    /// All was shown.
    Done,
    /// All that could be had was shown.
    Missing,
}

impl Playing {
    fn go_on(&mut self, over: bool, registered: bool, tails: Option<&StatusMeta>) -> io::Result<Turn> {
        let now = Instant::now();
        let progress = self.flows.iter().map(Flow::progress).collect::<io::Result<Vec<Progress>>>()?;
        // A status by hand that does not mention a stream says that there is none.
        let tail = |flow: &Flow| tails.map(|meta| meta.get(flow.sink().stream).cloned().unwrap_or_default());
        let mut each = self.flows.iter().zip(&progress);
        let held = |(flow, progress): (&Flow, &Progress)| {
            progress.complete || tail(flow).is_some_and(|tail| begin(&tail) <= progress.offset)
        };
        if each.clone().all(held) {
            return self.finish(tails, "");
        }
        let trouble = progress.iter().find_map(|progress| progress.trouble.clone());
        if !over {
            let tell_at = self.begun + UNREACHED;
            let trouble = trouble.filter(|_| !self.told);
            return Ok(Turn::Wait(match trouble {
                Some(_) if now < tell_at => Some(tell_at),
                Some(trouble) => {
                    self.told = true;
                    let end = "what it can tell of the output is shown when the task has ended";
                    output::note(&format!("{} is {trouble}; {end}", self.worker()));
                    None
                }
                None => None,
            }));
        }
        let shown: u64 = progress.iter().map(|progress| progress.offset).sum();
        let since = match self.still {
            Some((before, since)) if before == shown => since,
            _ => now,
        };
        self.still = Some((shown, since));
        // What is complete or known to be nowhere is not waited for.
        let hopeless = each.all(|(_, progress)| progress.complete || progress.absent);
        let until = since + if registered { PATIENCE } else { UNREGISTERED };
        if !hopeless && now < until {
            return Ok(Turn::Wait(Some(until)));
        }
        let why = match trouble {
            Some(trouble) => format!(" ({trouble})"),
            None => String::new(),
        };
        self.finish(tails, &why)
    }

    /// Shows the rest from the tails, and says what is missing.
    fn finish(&self, tails: Option<&StatusMeta>, why: &str) -> io::Result<Turn> {
        let Some(offsets) = self.flows.iter().map(Flow::close).collect::<Option<Vec<u64>>>() else {
            return Ok(Turn::Wait(Some(Instant::now() + BUSY)));
        };
        let mut missing = Vec::new();
        for (flow, offset) in self.flows.iter().zip(offsets) {
            let sink = flow.sink();
            match (tails.map(|meta| meta.get(sink.stream)), offset) {
                (Some(Some(tail)), _) => {
                    let (gap, from) = rest(tail, offset);
                    missing.extend(lack(sink.stream, offset, gap));
                    sink.write(offset + gap, &tail.bytes[from..])?;
                }
                (Some(None), _) => {}
                (None, _) if flow.progress()?.complete => {}
                (None, 0) => missing.push(format!("all of {}", sink.stream)),
                (None, _) => missing.push(format!("what {} has after the first {offset} bytes", sink.stream)),
            }
        }
        if missing.is_empty() {
            return Ok(Turn::Done);
        }
        let missing = missing.join(" and ");
        output::note(&format!("{missing} are missing here, the whole is on {}{why}", self.worker()));
        Ok(Turn::Missing)
    }

    fn worker(&self) -> String {
        self.act.worker.as_ref().map_or_else(|| "its worker".to_owned(), |worker| format!("worker {worker}"))
    }
}

/// The offset at which a tail begins.
fn begin(tail: &Tail) -> u64 {
    tail.length.saturating_sub(tail.bytes.len() as u64)
}

/// How many bytes are missing before a tail when so many were shown, and from where on it is new. Pure.
fn rest(tail: &Tail, shown: u64) -> (u64, usize) {
    let begin = begin(tail);
    let known = usize::try_from(shown.saturating_sub(begin)).unwrap_or(usize::MAX);
    (begin.saturating_sub(shown), known.min(tail.bytes.len()))
}

fn lack(stream: Stream, shown: u64, gap: u64) -> Option<String> {
    match (gap, shown) {
        (0, _) => None,
        (_, 0) => Some(format!("the first {gap} bytes of {stream}")),
        _ => Some(format!("{gap} bytes of {stream} after the first {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_tail_only_what_is_new_is_shown() {
        let tail = |length| Tail { length, bytes: b"defg".to_vec() };
        assert_eq!(rest(&tail(7), 0), (3, 0));
        assert_eq!(rest(&tail(7), 2), (1, 0));
        assert_eq!(rest(&tail(7), 3), (0, 0));
        assert_eq!(rest(&tail(7), 5), (0, 2));
        assert_eq!(rest(&tail(7), 7), (0, 4));
        assert_eq!(rest(&tail(7), 9), (0, 4));
        assert_eq!(rest(&tail(2), 0), (0, 0), "a length that is wrong is none of our business");
        assert_eq!(rest(&Tail::default(), 3), (0, 0));
    }

    #[test]
    fn what_is_missing_is_said_with_its_place() {
        assert_eq!(lack(Stream::Stdout, 5, 0), None);
        assert_eq!(lack(Stream::Stdout, 0, 7).unwrap(), "the first 7 bytes of stdout");
        assert_eq!(lack(Stream::Stderr, 5, 7).unwrap(), "7 bytes of stderr after the first 5");
    }
}
