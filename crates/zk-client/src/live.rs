//! A stream of an attempt, as it comes from the worker that runs it or ran it.
//!
//! A thread for each stream asks the worker and hands on what comes, byte by byte as it was written. A connection that
//! breaks is followed by the next, which goes on at the very offset. Whoever shows the output may at any time take over
//! from there: of the two nobody writes what the other has written.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use zk_http::{Answer, Piece};
use znode_paths::{Bytes, OutputPath, RequestId, Stream, TaskKeys, TaskName, WorkerName};

use crate::connection::{Connection, Message};
use crate::output;
use crate::report::Chunk;

/// The pause after the first failure, and the longest; each is doubled until something comes.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Between two looks whether anybody still wants it, while nothing comes.
const LOOK: Duration = Duration::from_secs(1);

/// Where the bytes of a stream go: to the descriptor of the same name, or into lines of JSON.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    pub(crate) json: bool,
    pub(crate) task: TaskName,
    pub(crate) attempt: Option<u32>,
    pub(crate) worker: Option<WorkerName>,
    pub(crate) stream: Stream,
}

impl Sink {
    /// Writes bytes of the stream that begin at this offset.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.stream {
            _ if bytes.is_empty() => Ok(()),
            _ if self.json => {
                let Sink { task, attempt, ref worker, stream, .. } = *self;
                output::object(&Chunk {
                    task,
                    attempt,
                    worker: worker.as_ref(),
                    stream,
                    offset,
                    bytes: Bytes(bytes.to_vec()),
                })
            }
            Stream::Stdout => output::stdout(bytes),
            // A standard error that cannot be written to is nothing that could be told to anybody.
            Stream::Stderr => output::stderr(bytes).or(Ok(())),
        }
    }
}

/// A stream that is being shown. Dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Flow {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

#[derive(Debug)]
struct Shared {
    sink: Sink,
    /// What requests are signed with.
    task_keys: Option<TaskKeys>,
    /// Held by whoever writes to the sink.
    turn: Mutex<()>,
    state: Mutex<State>,
}

/// How far a stream is.
#[derive(Debug, Default)]
struct State {
    /// So many bytes were shown.
    offset: u64,
    address: Option<String>,
    stage: Stage,
    /// Why nothing comes, if so.
    trouble: Option<String>,
    /// The worker says that it has no such output.
    absent: bool,
}

#[derive(Debug, Default)]
enum Stage {
    /// More may come.
    #[default]
    Open,
    /// The worker says that this was all.
    Complete,
    /// Somebody else shows the rest.
    Closed,
    /// Nobody takes it.
    Unwritable(Option<io::Error>),
}

/// What is known of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// So many bytes were shown.
    pub(crate) offset: u64,
    /// The worker says that this was all.
    pub(crate) complete: bool,
    /// The worker says that it has no such output.
    pub(crate) absent: bool,
    /// Why nothing comes, if so.
    pub(crate) trouble: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flow {
    /// Starts to show a stream from its beginning, as soon as there is an address to ask at. With `wait` until the attempt
    /// has ended, else what there is now. Whatever happens is told by a message that says only that.
    pub(crate) fn start(sink: Sink, fence: i64, wait: bool, connection: &Connection) -> Flow {
        let path = OutputPath { task: sink.task, fence, stream: sink.stream };
        let task_keys = connection.task_keys().cloned();
        let shared = Arc::new(Shared { sink, task_keys, turn: Mutex::default(), state: Mutex::default() });
        let (wake, woken) = mpsc::channel();
        let (pumping, outbox) = (shared.clone(), connection.outbox());
        let pump = move || {
            pumping.pump(&path, wait, &woken, &outbox);
            outbox.send(Message::Output).ok(); // the client has ended
        };
        let spawned = thread::Builder::new().name("zk-output".into()).spawn(pump);
        spawned.expect("a program that cannot start a thread cannot go on");
        Flow { shared, wake }
    }

    /// Where the worker is.
    pub(crate) fn at(&self, address: &str) {
        let before = lock(&self.shared.state).address.replace(address.to_owned());
        if before.as_deref() != Some(address) {
            self.wake.send(()).ok(); // it has ended
        }
    }

    /// How far it is.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub(crate) fn progress(&self) -> io::Result<Progress> {
        let mut state = lock(&self.shared.state);
        if let Stage::Unwritable(error) = &mut state.stage {
            return Err(error.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
        }
        Ok(Progress {
            offset: state.offset,
            complete: matches!(state.stage, Stage::Complete),
            absent: state.absent,
            trouble: state.trouble.clone(),
        })
    }

    /// Takes over: from now on nothing is written but by the caller. `None` while something is being written.
    pub(crate) fn close(&self) -> Option<u64> {
        let turn = match self.shared.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let mut state = lock(&self.shared.state);
        if let Stage::Open = state.stage {
            state.stage = Stage::Closed;
        }
        drop(turn);
        Some(state.offset)
    }

    /// Where the bytes go.
    pub(crate) fn sink(&self) -> &Sink {
        &self.shared.sink
    }
}

impl Shared {
    fn pump(&self, path: &OutputPath, wait: bool, woken: &Receiver<()>, outbox: &Sender<Message>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let (address, before) = {
                let state = lock(&self.state);
                (state.address.clone(), state.offset)
            };
            if let Some(address) = address {
                let stream = self.stream(&address, path, wait, woken);
                let mut state = lock(&self.state);
                match stream {
                    Ok(true) => return,
                    Ok(false) => {} // the worker has not begun it yet
                    Err(error) => state.trouble = Some(format!("not reached at {address}: {error}")),
                }
                if state.offset > before {
                    pause = FIRST_PAUSE;
                }
            }
            outbox.send(Message::Output).ok(); // the client has ended
            // There may be another address.
            if woken.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection. Returns whether there is nothing more to do.
    fn stream(&self, address: &str, path: &OutputPath, wait: bool, woken: &Receiver<()>) -> io::Result<bool> {
        let offset = lock(&self.state).offset;
        let follow = if wait { "&follow" } else { "" };
        let target = format!("{path}?offset={offset}{follow}");
        let id = RequestId { time_ms: zk_cli::now_ms(), nonce: zk_cli::random() };
        let authorization = self.task_keys.as_ref().map(|keys| keys.sign_request(&target, id));
        let mut body = match zk_http::get(address, &target, authorization.as_deref())? {
            Answer::Stream(body) => body,
            Answer::Refused { status: 404, .. } => {
                lock(&self.state).absent = true;
                return Ok(false);
            }
            Answer::Refused { status, reason } => return Err(io::Error::other(format!("{status}: {reason}"))),
        };
        {
            let mut state = lock(&self.state);
            (state.absent, state.trouble) = (false, None);
        }
        body.set_patience(LOOK)?;
        loop {
            match body.read()? {
                Piece::Bytes(bytes) if self.take(bytes) => {}
                Piece::Bytes(_) => return Ok(true),
                Piece::Quiet if woken.try_recv() == Err(TryRecvError::Disconnected) => return Ok(true),
                Piece::Quiet => {}
                Piece::End => {
                    let mut state = lock(&self.state);
                    if let Stage::Open = state.stage {
                        state.stage = Stage::Complete;
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// Shows the next bytes. Returns whether more are wanted.
    fn take(&self, bytes: &[u8]) -> bool {
        let turn = lock(&self.turn);
        let offset = {
            let state = lock(&self.state);
            let Stage::Open = state.stage else { return false };
            state.offset
        };
        let written = self.sink.write(offset, bytes);
        let mut state = lock(&self.state);
        match written {
            Ok(()) => state.offset += bytes.len() as u64,
            Err(error) => state.stage = Stage::Unwritable(Some(error)),
        }
        drop(turn);
        matches!(state.stage, Stage::Open)
    }
}
