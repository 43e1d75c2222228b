//! What the data of each znode says: the head that somebody with `zkCli.sh` would write, and our metadata below it.
//!
//! Decoding never panics. Where somebody's data cannot be understood, the document says what is done about it: a task
//! ends as `failed` with the reason, so [`Task::decode`] is the one that tells; every other decoder gives what it can.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Instance, Stream, TaskName, WorkerName};

/// The most bytes of data that we put into a znode. ZooKeeper's `jute.maxbuffer` (1,048,575 bytes by default) bounds the
/// whole request; a server that gets a longer one cuts the connection.
pub const MAX_DATA: usize = 1_000_000;

/// Why the data of a znode cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not text.
    #[error("the data is not UTF-8")]
    NotUtf8,
    /// The last line has the key `"zk"`, but its fields are not what they should be.
    #[error("the metadata cannot be read: {0}")]
    Metadata(String),
    /// Nothing to run.
    #[error("the command is empty")]
    EmptyCommand,
    /// No process can get such an argument.
    #[error("the command has a NUL character")]
    NulInCommand,
    /// It has ended and is not to be kept ([`Task::removed`]).
    #[error("the task is being removed")]
    Removed,
    /// ZooKeeper would not take it.
    #[error("the command and its metadata have {0} bytes, the limit is {MAX_DATA}")]
    TooLong(usize),
}

/// The format of the metadata: 1. A document with a higher number was written by somebody who changed its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Format;

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            1 => Ok(Format),
            other => Err(serde::de::Error::custom(format!("format {other} is not known here"))),
        }
    }
}

/// Splits data into its head and its line of metadata.
///
/// The last line is metadata if it is a JSON object with the key `"zk"`. Writers put it below the head, so that line 1
/// is always the head; a reader accepts it as the only line too, as `zkCli.sh` cannot type a line break.
fn split(text: &str) -> (&str, Option<&str>) {
    let trimmed = text.strip_suffix('\n').unwrap_or(text);
    let (head, last) = match trimmed.rsplit_once('\n') {
        Some((head, last)) => (head, last),
        None => ("", trimmed),
    };
    #[derive(Deserialize)]
    struct Marked {
        #[serde(rename = "zk")]
        _zk: serde::de::IgnoredAny,
    }
    if last.starts_with('{') && serde_json::from_str::<Marked>(last).is_ok() {
        (head, Some(last))
    } else {
        (text, None)
    }
}

fn join<M: Serialize>(head: &str, meta: Option<&M>) -> Vec<u8> {
    let mut data = head.as_bytes().to_vec();
    if let Some(meta) = meta {
        data.push(b'\n');
        serde_json::to_writer(&mut data, meta).expect("our own types have string keys and no failing field");
    }
    data
}

fn decode<M: for<'de> Deserialize<'de>>(data: &[u8]) -> Result<(&str, Option<M>), DecodeError> {
    let text = std::str::from_utf8(data).map_err(|_| DecodeError::NotUtf8)?;
    let (head, meta) = split(text);
    let meta = meta.map(serde_json::from_str).transpose();
    Ok((head, meta.map_err(|error| DecodeError::Metadata(error.to_string()))?))
}

/// Decodes where damage is no reason to stop: what cannot be read is not there.
fn decode_lenient<M: for<'de> Deserialize<'de>>(data: &[u8]) -> (String, Option<M>) {
    let text = String::from_utf8_lossy(data);
    let (head, meta) = split(&text);
    (head.to_owned(), meta.and_then(|meta| serde_json::from_str(meta).ok()))
}

/// `/tasks/<task>`: what is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The shell command; may have several lines.
    pub command: String,
    /// Nothing for a task made by hand.
    pub meta: Option<TaskMeta>,
}

/// What a client says of a task beside its command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskMeta {
    /// The format.
    pub zk: Format,
    /// One submit is one task: of several tasks with the same id only the lowest number counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit: Option<String>,
    /// What the user calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Higher first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i64,
    /// How often it may be started when workers are lost under it.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// It may start once only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_requeue: bool,
    /// The only worker that may run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<WorkerName>,
    /// The labels that a worker must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, String>,
    /// The tasks that must be `done` before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<TaskName>,
    /// Added to the environment of the command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where the command runs; by default in a directory of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What the command can read on its standard input; by default that is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Bytes>,
    /// How long an attempt may run, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How often it is started again after the command failed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: u32,
    /// The pause before the first of them, in milliseconds; doubled for each further one ([`TaskMeta::pause_ms`]).
    #[serde(default, skip_serializing_if = "is_default")]
    pub backoff_ms: u64,
    /// The idempotency key under which it was submitted: `/keys/<key>` holds its submit id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// It has ended and is not to be kept: set by [`Task::removed`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub removed: bool,
    /// When it was signed, in milliseconds since 1970 by the client's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_ms: Option<u64>,
    /// The signature of all that stands before it ([`TaskKeys`](crate::TaskKeys)): always the last field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// The longest pause between a failure and the next attempt, in milliseconds, before jitter: an hour.
const LONGEST_PAUSE_MS: u64 = 3_600_000;

/// How often a task may be started when workers are lost under it, unless it says otherwise (CLI, `--max-attempts`).
const DEFAULT_MAX_ATTEMPTS: u32 = 3;

fn default_max_attempts() -> u32 {
    DEFAULT_MAX_ATTEMPTS
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl TaskMeta {
    /// The defaults, under a submit id.
    pub fn new(submit: String) -> Self {
        TaskMeta {
            zk: Format,
            submit: Some(submit),
            name: None,
            priority: 0,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            no_requeue: false,
            on: None,
            require: BTreeMap::new(),
            after: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            timeout_ms: None,
            retries: 0,
            backoff_ms: 0,
            key: None,
            removed: false,
            signed_ms: None,
            mac: None,
        }
    }

    /// The pause before the next attempt of a task that has failed so often, in milliseconds: the backoff, doubled for each
    /// failure but the first up to an hour, and up to a quarter more, so that what failed together is not all tried again
    /// at the same moment. Everybody who reads the tree computes the same: the jitter is drawn from the task's czxid.
    pub fn pause_ms(&self, czxid: i64, failures: u32) -> u64 {
        let doubled = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
        let pause = self.backoff_ms.saturating_mul(doubled).min(LONGEST_PAUSE_MS);
        // The finalizer of splitmix64: neighbouring numbers give unrelated ones.
        let mut draw = czxid.cast_unsigned().wrapping_add(u64::from(failures)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        draw = (draw ^ (draw >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        draw ^= draw >> 27;
        pause + draw % (pause / 4 + 1)
    }
}

impl Task {
    /// A task as the transcript writes it: the command and nothing else.
    pub fn plain(command: &str) -> Self {
        Task { command: command.to_owned(), meta: None }
    }

    /// What is written over the data of a finished task before anything of it is deleted. Its status has to go before
    /// the task itself does, and without a status it would be run again, if whoever removes it died in between. Nobody
    /// runs this: the primary goes on removing it, and to a reader that does not know the mark the command is empty.
    pub fn removed(data: &[u8]) -> Self {
        let before: Option<TaskMeta> = decode_lenient(data).1;
        let (submit, key) = before.map(|meta| (meta.submit, meta.key)).unwrap_or_default();
        let meta = TaskMeta { submit, key, removed: true, ..TaskMeta::new(String::new()) };
        Task { command: String::new(), meta: Some(meta) }
    }

    /// Reads what somebody submitted.
    ///
    /// # Errors
    /// The reason with which the task ends as `failed`; or [`DecodeError::Removed`].
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let (command, meta): (_, Option<TaskMeta>) = decode(data)?;
        if meta.as_ref().is_some_and(|meta| meta.removed) {
            return Err(DecodeError::Removed);
        }
        if command.trim().is_empty() {
            return Err(DecodeError::EmptyCommand);
        }
        if command.contains('\0') {
            return Err(DecodeError::NulInCommand);
        }
        Ok(Task { command: command.to_owned(), meta })
    }

    /// The data of the znode.
    pub fn encode(&self) -> Vec<u8> {
        join(&self.command, self.meta.as_ref())
    }

    /// The data of the znode, if whoever reads it gets this very task.
    ///
    /// # Errors
    /// The task would end as `failed`, would be read as another one, or is too long for a znode.
    pub fn encode_checked(&self) -> Result<Vec<u8>, DecodeError> {
        let data = self.encode();
        if data.len() > MAX_DATA {
            return Err(DecodeError::TooLong(data.len()));
        }
        if Task::decode(&data)? != *self {
            let what = "the last line of the command would be taken for metadata";
            return Err(DecodeError::Metadata(what.to_owned()));
        }
        Ok(data)
    }

    /// Higher is served first.
    pub fn priority(&self) -> i64 {
        self.meta.as_ref().map_or(0, |meta| meta.priority)
    }

    /// How often it may be started when workers are lost under it.
    pub fn max_attempts(&self) -> u32 {
        self.meta.as_ref().map_or(DEFAULT_MAX_ATTEMPTS, |meta| meta.max_attempts)
    }
}

/// The final word on a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The command exited with 0.
    Done,
    /// It exited with another code or by a signal, or could not be started.
    Failed,
    /// Its time limit passed.
    Timeout,
    /// Somebody asked it to stop.
    Cancelled,
    /// No attempt was left after its worker was lost.
    Lost,
    /// A word that somebody wrote by hand. It is final like the others.
    Other(String),
}

impl Outcome {
    /// The word in the znode.
    pub fn word(&self) -> &str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Timeout => "timeout",
            Outcome::Cancelled => "cancelled",
            Outcome::Lost => "lost",
            Outcome::Other(word) => word,
        }
    }

    /// What a word means.
    pub fn of(word: &str) -> Self {
        match word.trim() {
            "done" => Outcome::Done,
            "failed" => Outcome::Failed,
            "timeout" => Outcome::Timeout,
            "cancelled" => Outcome::Cancelled,
            "lost" => Outcome::Lost,
            other => Outcome::Other(other.to_owned()),
        }
    }
}

/// `/tasks/<task>/status`: created once, never written again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Status {
    /// The word.
    pub outcome: Outcome,
    /// Nothing for a task or a status made by hand.
    pub meta: Option<StatusMeta>,
}

/// What is known of the end of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct StatusMeta {
    /// The format.
    pub zk: Format,
    /// The code with which the command exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, where the code does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Which attempt this was, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The czxid of the assignment: tells this start from every other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<i64>,
    /// When the command started, in milliseconds since 1970 by the worker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// The end of what it wrote to its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Tail>,
    /// The end of what it wrote to its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
}

impl StatusMeta {
    /// The end of what the command wrote to this stream.
    pub fn get(&self, stream: Stream) -> Option<&Tail> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }
}

impl Status {
    /// One word, as the transcript has it.
    pub fn plain(outcome: Outcome) -> Self {
        Status { outcome, meta: None }
    }

    /// A status that says why.
    pub fn because(outcome: Outcome, reason: impl Into<String>) -> Self {
        Status { outcome, meta: Some(StatusMeta { reason: Some(reason.into()), ..StatusMeta::default() }) }
    }

    /// Reads a status: whatever is there is the final word, in whatever words.
    pub fn decode(data: &[u8]) -> Self {
        let (head, meta) = decode_lenient(data);
        Status { outcome: Outcome::of(&head), meta }
    }

    /// The data of the znode. The tails are cut as far as it takes to stay within [`MAX_DATA`].
    pub fn encode(&self) -> Vec<u8> {
        let data = join(self.outcome.word(), self.meta.as_ref());
        if data.len() <= MAX_DATA {
            return data;
        }
        let mut shorter = self.clone();
        if let Some(meta) = &mut shorter.meta {
            // Base64 takes a third more, and two of them fit with room for the rest of the metadata.
            for tail in [&mut meta.stdout, &mut meta.stderr].into_iter().flatten() {
                tail.keep(MAX_DATA / 3);
            }
        }
        join(shorter.outcome.word(), shorter.meta.as_ref())
    }
}

/// The end of a stream: any bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Tail {
    /// How many bytes the whole stream had.
    pub length: u64,
    /// The last of them.
    pub bytes: Vec<u8>,
}

impl Tail {
    /// Keeps the last `limit` bytes; where that cuts a character of a text in two, it is left out whole.
    fn keep(&mut self, limit: usize) {
        if self.bytes.len() > limit {
            let mut from = self.bytes.len() - limit;
            if std::str::from_utf8(&self.bytes).is_ok() {
                while self.bytes.get(from).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {
                    from += 1;
                }
            }
            self.bytes.drain(..from);
        }
    }
}

/// Any bytes. In JSON they are `text` where that says them exactly and briefly, else `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
struct BytesInJson<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl BytesInJson<'_> {
    fn of(bytes: &[u8]) -> BytesInJson<'_> {
        // Base64 takes a third more. JSON takes a byte more for a quote or a line break and five for other control
        // characters; of a short text, which somebody may read, that doesn't matter.
        let more = |byte: &u8| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
            byte if byte.is_ascii_control() => 5,
            _ => 0,
        };
        let more: usize = bytes.iter().map(more).sum();
        let text = std::str::from_utf8(bytes).ok().filter(|text| more <= text.len() / 3 + 64);
        let base64 = text.is_none().then(|| BASE64.encode(bytes));
        BytesInJson { text: text.map(Into::into), base64 }
    }

    fn decode<E: serde::de::Error>(self) -> Result<Vec<u8>, E> {
        match (self.text, self.base64) {
            (_, Some(base64)) => BASE64.decode(base64).map_err(E::custom),
            (text, None) => Ok(text.unwrap_or_default().into_owned().into_bytes()),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BytesInJson::of(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BytesInJson::deserialize(deserializer)?.decode().map(Bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct TailInJson<'a> {
    length: u64,
    #[serde(flatten)]
    bytes: BytesInJson<'a>,
}

impl Serialize for Tail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TailInJson { length: self.length, bytes: BytesInJson::of(&self.bytes) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tail {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tail = TailInJson::deserialize(deserializer)?;
        Ok(Tail { length: tail.length, bytes: tail.bytes.decode()? })
    }
}

/// `/workers/<worker>`: who offers to run tasks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Worker {
    /// `host:port`, as it was written.
    pub address: String,
    /// Nothing for a worker registered by hand: it has one slot and no labels.
    pub meta: Option<WorkerMeta>,
}

/// What one of our workers says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkerMeta {
    /// The format.
    pub zk: Format,
    /// Which life of the process this is.
    pub instance: Instance,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// What `--require` looks at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The program's version.
    #[serde(default)]
    pub version: String,
    /// It was asked to stop: it takes nothing new.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stopping: bool,
}

impl WorkerMeta {
    /// What `--require` looks at is empty, and it is not stopping.
    pub fn new(instance: Instance, slots: u32) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        WorkerMeta { zk: Format, instance, slots, labels: BTreeMap::new(), version, stopping: false }
    }
}

impl Worker {
    /// Reads a registration.
    ///
    /// # Errors
    /// Whoever wrote this is no worker that could be understood; it is to be ignored.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let (address, meta) = decode(data)?;
        Ok(Worker { address: address.to_owned(), meta })
    }

    /// The data of the znode.
    pub fn encode(&self) -> Vec<u8> {
        join(&self.address, self.meta.as_ref())
    }

    /// The life of the process; a worker registered by hand has none.
    pub fn instance(&self) -> Option<Instance> {
        self.meta.as_ref().map(|meta| meta.instance)
    }

    /// How many tasks it runs at once.
    pub fn slots(&self) -> u32 {
        self.meta.as_ref().map_or(1, |meta| meta.slots)
    }
}

/// `/assign/<worker>/<task>`: who is to run what. One made by hand has no metadata and is honoured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Assignment {
    /// What the primary says.
    pub meta: Option<AssignmentMeta>,
}

/// What a primary says of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AssignmentMeta {
    /// The format.
    pub zk: Format,
    /// The life of the worker it is for; nothing when that worker was registered by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The fence of the primary that assigned it: equal to `/epoch`, or it is not started.
    pub fence: i64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The czxid of the task meant: at the same path there may be another one by now.
    pub task: i64,
    /// That of the task: of what waits at a worker the highest is started first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i64,
    /// Set by the primary: a worker that has not started this yet is to return it, for another one is idle.
    #[serde(default, skip_serializing_if = "is_default")]
    pub recalled: bool,
    /// Set by the worker, in answer to that: it has started this.
    #[serde(default, skip_serializing_if = "is_default")]
    pub started: bool,
    /// Set by the worker: it did not start this and will not; somebody else may have it at once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub returned: bool,
}

impl Assignment {
    /// Reads an assignment. What cannot be understood counts as made by hand.
    pub fn decode(data: &[u8]) -> Self {
        Assignment { meta: decode_lenient(data).1 }
    }

    /// The data of the znode: line 1 is empty.
    pub fn encode(&self) -> Vec<u8> {
        join("", self.meta.as_ref())
    }

    /// The life of the worker it is for.
    pub fn instance(&self) -> Option<Instance> {
        self.meta.as_ref().and_then(|meta| meta.instance)
    }
}

/// How an attempt ended that did not lead to a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptKind {
    /// Its worker was lost, or its assignment was taken away. Counts for `--max-attempts`.
    Lost,
    /// The command failed. Counts for `--retries`.
    Failed,
}

/// `/tasks/<task>/attempt-<number>`: create-if-absent, so an attempt is recorded once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// How it ended; nothing when the record cannot be understood.
    pub kind: Option<AttemptKind>,
    /// Who, when, why.
    pub meta: Option<AttemptMeta>,
}

/// Who made an attempt, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct AttemptMeta {
    /// The format.
    pub zk: Format,
    /// Who had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Which life of that worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The czxid of the assignment, where whoever recorded it knew that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<i64>,
    /// Why it counts as ended.
    #[serde(default)]
    pub reason: String,
    /// The code with which the command exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When the command started, in milliseconds since 1970 by the worker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// The end of what it wrote to its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
}

impl Attempt {
    /// An attempt that ended without a status because its worker is gone or its assignment was taken away.
    pub fn lost(meta: AttemptMeta) -> Self {
        Attempt { kind: Some(AttemptKind::Lost), meta: Some(meta) }
    }

    /// An attempt whose command failed, after which there is another one.
    pub fn failed(meta: AttemptMeta) -> Self {
        Attempt { kind: Some(AttemptKind::Failed), meta: Some(meta) }
    }

    /// Reads a record.
    pub fn decode(data: &[u8]) -> Self {
        let (head, meta) = decode_lenient(data);
        let kind = match head.trim() {
            "lost" => Some(AttemptKind::Lost),
            "failed" => Some(AttemptKind::Failed),
            _ => None,
        };
        Attempt { kind, meta }
    }

    /// The data of the znode.
    pub fn encode(&self) -> Vec<u8> {
        let word = match self.kind {
            Some(AttemptKind::Lost) => "lost",
            Some(AttemptKind::Failed) => "failed",
            None => "",
        };
        join(word, self.meta.as_ref())
    }
}

/// What a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `zk-master`.
    Master,
    /// `zk-worker`.
    Worker,
    /// `zk-client`.
    Client,
}

/// `/live/<instance>-<n>`: a session of one of our processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// `host:port`; empty for a client.
    pub address: String,
    /// Nothing when it cannot be read.
    pub meta: Option<LiveMeta>,
}

/// What the process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMeta {
    /// The format.
    pub zk: Format,
    /// Its role.
    pub role: Role,
    /// A worker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
}

impl Live {
    /// The node of a process with this role.
    pub fn new(address: &str, role: Role, worker: Option<WorkerName>) -> Self {
        Live { address: address.to_owned(), meta: Some(LiveMeta { zk: Format, role, worker }) }
    }

    /// Reads a node below `/live`.
    pub fn decode(data: &[u8]) -> Self {
        let (address, meta) = decode_lenient(data);
        Live { address, meta }
    }

    /// The data of the znode.
    pub fn encode(&self) -> Vec<u8> {
        join(&self.address, self.meta.as_ref())
    }
}

/// `/assign/<worker>`: whether the worker is out of service. Outlives the worker's process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drain {
    /// The format.
    pub zk: Format,
    /// Nothing new for this worker.
    #[serde(default)]
    pub drain: bool,
}

impl Drain {
    /// Reads the data of `/assign/<worker>`; what cannot be understood is no drain.
    pub fn decode(data: &[u8]) -> Self {
        decode_lenient(data).1.unwrap_or_default()
    }

    /// The data of `/assign/<worker>` with this word changed, and whatever else it says kept.
    pub fn change(data: &[u8], drain: bool) -> Vec<u8> {
        let text = String::from_utf8_lossy(data);
        let (head, meta) = split(&text);
        let mut meta: serde_json::Map<_, _> = meta.and_then(|meta| serde_json::from_str(meta).ok()).unwrap_or_default();
        meta.insert("zk".to_owned(), 1.into());
        match drain {
            true => _ = meta.insert("drain".to_owned(), true.into()),
            false => _ = meta.remove("drain"),
        }
        join(head, Some(&meta).filter(|meta| meta.len() > 1))
    }
}

/// `/keys/<key>`: made by the first who uses the key; everybody who does submits under the id that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The submit id.
    pub submit: String,
    /// Where to look for its tasks; everywhere when that is not said.
    pub since: Option<Since>,
}

/// Where the tasks of a submit id begin: all of them have been made later than this was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The format.
    pub zk: Format,
    /// The czxid of `/tasks`: in another `/tasks` the numbers begin anew.
    pub tasks: i64,
    /// The lowest number that a task can have.
    pub from: u32,
}

impl Key {
    /// Reads a key; somebody with `zkCli.sh` may write any text there, or nothing.
    pub fn decode(data: &[u8]) -> Self {
        let (submit, since) = decode_lenient(data);
        Key { submit, since }
    }

    /// The data of the znode.
    pub fn encode(&self) -> Vec<u8> {
        join(&self.submit, self.since.as_ref())
    }
}

/// The number in `/epoch`; `None` when somebody wrote something else there.
pub fn decode_epoch(data: &[u8]) -> Option<i64> {
    std::str::from_utf8(data).ok()?.trim().parse().ok()
}

impl AssignmentMeta {
    /// An assignment of this attempt at this task, by the primary with this fence.
    pub fn new(instance: Option<Instance>, fence: i64, attempt: u32, task: i64) -> Self {
        AssignmentMeta {
            zk: Format,
            instance,
            fence,
            attempt,
            task,
            priority: 0,
            recalled: false,
            started: false,
            returned: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    const META: &str = "{\"zk\":1,\"submit\":\"s\"}";

    #[test]
    fn a_task_made_by_hand_is_its_command() {
        for command in ["cmd", "echo a\necho b", "echo '{\"zk\"'", "{\"zk\":1", "{\"a\":1}", "echo {\"zk\":1}", "a\n"] {
            assert_eq!(Task::decode(command.as_bytes()), Ok(Task::plain(command)), "{command:?}");
        }
    }

    #[test]
    fn metadata_is_the_last_line_with_the_key_zk() {
        let task = Task::decode(format!("echo a\necho b\n{META}").as_bytes()).unwrap();
        assert_eq!(task.command, "echo a\necho b");
        assert_eq!(task.meta, Some(TaskMeta::new("s".into())));
        let unknown = Task::decode(b"x\n{\"later\":[1,{}],\"submit\":\"s\",\"zk\":1}").unwrap();
        assert_eq!(unknown.meta, Some(TaskMeta::new("s".into())));
    }

    #[track_caller]
    fn check_undecodable(data: &[u8], why: &str) {
        let error = Task::decode(data).expect_err("must not be accepted").to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_task_that_cannot_be_decoded_says_why() {
        check_undecodable(b"", "empty");
        check_undecodable(b" \n\t", "empty");
        check_undecodable(META.as_bytes(), "empty");
        check_undecodable(b"a\0b", "NUL");
        check_undecodable(b"\xff\xfe", "UTF-8");
        check_undecodable(b"x\n{\"zk\":2,\"submit\":\"s\"}", "format 2");
        check_undecodable(b"x\n{\"zk\":1,\"submit\":\"s\",\"priority\":\"high\"}", "expected i64");
        check_undecodable(b"x\n{\"zk\":1,\"submit\":\"s\",\"on\":\"a/b\"}", "not a worker's name");
    }

    #[test]
    fn of_a_task_that_is_removed_its_ids_are_left_and_nothing_to_run() {
        let key = Some("k".to_owned());
        let task = Task { command: "x".into(), meta: Some(TaskMeta { key, ..TaskMeta::new("s".into()) }) };
        for (data, left) in [(&task.encode()[..], ",\"submit\":\"s\""), (b"x", ""), (b"\xff", "")] {
            let removed = Task::removed(data).encode();
            assert_eq!(Task::decode(&removed), Err(DecodeError::Removed));
            let text = String::from_utf8(removed.clone()).unwrap();
            assert!(text.starts_with(&format!("\n{{\"zk\":1{left},")), "{text}");
            assert_eq!(Task::removed(&removed).encode(), removed, "removing it again changes nothing");
        }
        assert_eq!(Task::removed(&task.encode()).meta.unwrap().key.as_deref(), Some("k"));
    }

    #[test]
    fn a_key_holds_a_submit_id() {
        let key = Key { submit: "id".into(), since: Some(Since { zk: Format, tasks: 7, from: 3 }) };
        assert_eq!(key.encode(), b"id\n{\"zk\":1,\"tasks\":7,\"from\":3}");
        assert_eq!(Key::decode(&key.encode()), key);
        assert_eq!(Key::decode(b"by hand"), Key { submit: "by hand".into(), since: None });
    }

    #[test]
    fn a_worker_is_drained_and_undrained_whatever_else_is_said_of_it() {
        for (before, drained, undrained) in [
            ("", "\n{\"drain\":true,\"zk\":1}", ""),
            ("{\"zk\":1,\"drain\":true}", "\n{\"drain\":true,\"zk\":1}", ""),
            ("a\n{\"zk\":1,\"x\":[2]}", "a\n{\"drain\":true,\"x\":[2],\"zk\":1}", "a\n{\"x\":[2],\"zk\":1}"),
            ("a", "a\n{\"drain\":true,\"zk\":1}", "a"),
        ] {
            let changed = Drain::change(before.as_bytes(), true);
            assert_eq!(String::from_utf8(changed.clone()).unwrap(), drained);
            assert!(Drain::decode(&changed).drain);
            assert_eq!(String::from_utf8(Drain::change(&changed, false)).unwrap(), undrained);
            assert!(!Drain::decode(&Drain::change(&changed, false)).drain);
        }
    }

    #[test]
    fn deep_json_is_no_metadata_and_no_crash() {
        let deep = format!("echo\n{{\"zk\":{}", "[".repeat(100_000));
        assert_eq!(Task::decode(deep.as_bytes()), Ok(Task::plain(&deep)));
    }

    #[test]
    fn a_command_that_would_be_read_as_another_is_refused() {
        assert!(Task::plain(&format!("echo\n{META}")).encode_checked().is_err());
        let with_meta = Task { command: format!("echo\n{META}"), meta: Some(TaskMeta::new("t".into())) };
        assert_eq!(Task::decode(&with_meta.encode_checked().unwrap()), Ok(with_meta));
        assert_eq!(Task::plain(&"x".repeat(MAX_DATA + 1)).encode_checked(), Err(DecodeError::TooLong(MAX_DATA + 1)));
        assert!(Task::plain(&"x".repeat(MAX_DATA)).encode_checked().is_ok());
    }

    #[test]
    fn a_status_made_by_hand_is_final_in_any_words() {
        assert_eq!(Status::decode(b"done"), Status::plain(Outcome::Done));
        assert_eq!(Status::decode(b"done\n"), Status::plain(Outcome::Done));
        assert_eq!(Status::decode(b"erledigt").outcome, Outcome::Other("erledigt".into()));
        assert_eq!(Status::decode(b"").outcome, Outcome::Other(String::new()));
        assert_eq!(Status::decode(b"failed\n{\"zk\":1,\"exit_code\":\"x\"}"), Status::plain(Outcome::Failed));
    }

    #[test]
    fn an_assignment_has_an_empty_first_line() {
        assert_eq!(Assignment::default().encode(), b"");
        let meta = AssignmentMeta::new(None, 5, 1, 9);
        let data = Assignment { meta: Some(meta) }.encode();
        assert_eq!(data, b"\n{\"zk\":1,\"fence\":5,\"attempt\":1,\"task\":9}");
        assert_eq!(Assignment::decode(b"anything"), Assignment::default());
    }

    #[test]
    fn drain_can_be_set_by_hand_on_one_line() {
        assert!(Drain::decode(b"{\"zk\":1,\"drain\":true}").drain);
        assert!(!Drain::decode(b"").drain);
    }

    #[test]
    fn a_status_never_grows_over_the_limit() {
        let tail = |byte: u8| Some(Tail { length: 5_000_000, bytes: vec![byte; 900_000] });
        let meta = StatusMeta { stdout: tail(7), stderr: tail(b'x'), ..StatusMeta::default() };
        let data = Status { outcome: Outcome::Failed, meta: Some(meta) }.encode();
        assert!(data.len() <= MAX_DATA, "{}", data.len());
        let back = Status::decode(&data).meta.unwrap();
        assert_eq!(back.stdout.as_ref().unwrap().length, 5_000_000);
        assert!(back.stdout.unwrap().bytes.len() > 300_000);
    }

    #[test]
    fn the_pause_after_a_failure_doubles_up_to_an_hour_with_a_quarter_of_jitter() {
        let meta = TaskMeta { backoff_ms: 1000, ..TaskMeta::new("s".into()) };
        for (failures, least) in [(1, 1000), (2, 2000), (5, 16_000), (20, LONGEST_PAUSE_MS), (200, LONGEST_PAUSE_MS)] {
            let pauses: Vec<u64> = (0..100).map(|czxid| meta.pause_ms(czxid, failures)).collect();
            assert!(pauses.iter().all(|pause| (least..=least + least / 4).contains(pause)), "{failures}: {pauses:?}");
            let different: std::collections::BTreeSet<&u64> = pauses.iter().collect();
            assert!(different.len() > 50, "{failures}: {pauses:?}");
        }
        assert_eq!(TaskMeta::new("s".into()).pause_ms(7, 3), 0, "without a backoff there is no pause");
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(data in vec(any::<u8>(), 0..200)) {
            Task::decode(&data).ok();
            Worker::decode(&data).ok();
            Status::decode(&data);
            Assignment::decode(&data);
            Attempt::decode(&data);
            Live::decode(&data);
            Drain::decode(&data);
            decode_epoch(&data);
        }

        #[test]
        fn no_json_makes_a_decoder_panic(head in ".{0,20}", field in "[a-z_]{1,12}", value in "[\\[\\]{}\",:0-9a-z-]{0,20}") {
            let data = format!("{head}\n{{\"zk\":1,\"{field}\":{value}}}");
            Task::decode(data.as_bytes()).ok();
            Worker::decode(data.as_bytes()).ok();
            Status::decode(data.as_bytes());
            Assignment::decode(data.as_bytes());
            Attempt::decode(data.as_bytes());
            Live::decode(data.as_bytes());
            Drain::decode(data.as_bytes());
        }

        #[test]
        fn a_task_survives_the_round_trip(
            command in "[^\0]{1,80}", submit in ".{0,20}", priority: i64, max_attempts: u32, no_requeue: bool,
            env in btree_map("[A-Z]{1,8}", ".{0,10}", 0..4), after in vec(any::<u32>(), 0..4),
            stdin in proptest::option::of(vec(any::<u8>(), 0..50)), timeout_ms: Option<u64>, retries: u32,
        ) {
            prop_assume!(!command.trim().is_empty());
            let meta = TaskMeta {
                priority, max_attempts, no_requeue, env, timeout_ms, retries,
                stdin: stdin.map(Bytes),
                after: after.into_iter().map(TaskName::from_number).collect(),
                ..TaskMeta::new(submit)
            };
            let task = Task { command, meta: Some(meta) };
            prop_assert_eq!(Task::decode(&task.encode()), Ok(task));
        }

        #[test]
        fn any_output_survives_the_round_trip(bytes in vec(any::<u8>(), 0..300), length: u64, code: i32) {
            let stdout = Some(Tail { length, bytes });
            let meta = StatusMeta { exit_code: Some(code), stdout, ..StatusMeta::default() };
            let status = Status { outcome: Outcome::Failed, meta: Some(meta) };
            prop_assert_eq!(Status::decode(&status.encode()), status);
        }
    }
}
