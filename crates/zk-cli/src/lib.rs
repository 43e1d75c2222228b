//! What the command lines of `zk-master`, `zk-worker` and `zk-client` share: the options of the connection, the log, the
//! stop signals. Nothing of what any of them does.

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgAction, Args, Parser};
use log::LevelFilter;
use nix::sys::signal::{SigHandler, Signal, signal};
use rustix::process::{DumpableBehavior, getpid, getppid, set_dumpable_behavior, set_parent_process_death_signal};
use zk_session::{Config, ConnectString, NoDigestId, Others, Tls, TlsError};
use znode_paths::{KeyError, TaskKeys, paths};

/// How to reach the ensemble, and how much to say.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// The ensemble: `host:port[,host:port...][/chroot]`
    #[arg(long, env = "ZK_CONNECT", value_name = "CONNECT", default_value = "127.0.0.1:2181", global = true)]
    pub zk: ConnectString,

    /// A file with `digest:user:password`: every znode made is then for that identity only (also `ZK_AUTH`, which may hold the
    /// identity itself)
    #[arg(long, env = "ZK_AUTH_FILE", value_name = "FILE", global = true)]
    pub auth_file: Option<PathBuf>,

    /// A file with the certificates of the authorities that sign those of the servers, PEM: connections are then TLS
    #[arg(long, env = "ZK_TLS_CA", value_name = "FILE", global = true)]
    pub tls_ca: Option<PathBuf>,

    /// A file with our certificate and those between it and its authority, PEM, for servers that want one
    #[arg(long, env = "ZK_TLS_CERT", value_name = "FILE", global = true)]
    pub tls_cert: Option<PathBuf>,

    /// The file with its private key, PEM
    #[arg(long, env = "ZK_TLS_KEY", value_name = "FILE", global = true)]
    pub tls_key: Option<PathBuf>,

    /// The name that the servers' certificates are for [default: the host in `--zk`]
    #[arg(long, env = "ZK_TLS_NAME", value_name = "NAME", global = true)]
    pub tls_name: Option<String>,

    /// More in the log (twice: more still)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Less in the log (twice: errors only)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub quiet: u8,
}

/// The key that signs tasks: of clients and workers.
#[derive(Debug, Clone, Args)]
pub struct TaskKeyArgs {
    /// A file with a key, the same for clients and workers: tasks are signed with it, and no others are run. Of several
    /// lines the first signs, and all are accepted
    #[arg(long, env = "ZK_TASK_KEY_FILE", value_name = "FILE", global = true)]
    task_key: Option<PathBuf>,
}

impl TaskKeyArgs {
    /// The keys in the file, if one is given.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn read(&self) -> Result<Option<TaskKeys>, ArgsError> {
        let read = |file: &PathBuf| {
            TaskKeys::parse(&read_secret(file)?).map_err(|error| ArgsError::NoTaskKey(file.clone(), error))
        };
        self.task_key.as_ref().map(read).transpose()
    }
}

/// An option that cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// A file that an option names cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// Others could read the secret in it.
    #[error("{0} can be read by others: chmod 600 {0}")]
    Open(PathBuf),
    /// It does not hold an identity.
    #[error("{0} does not hold digest:user:password")]
    NoIdentity(String),
    /// What follows the identity does not say who the others are.
    #[error("the second line of {0} is not `submitters digest:user:HASH` or `daemons digest:user:HASH`")]
    NoOthers(String),
    /// It does not hold task keys.
    #[error("{0} holds no task key: {1}")]
    NoTaskKey(PathBuf, KeyError),
    /// TLS cannot be spoken with what was given.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An option is given without another one that it needs.
    #[error("{0} is of no use without {1}")]
    Without(&'static str, &'static str),
    /// Stop signals cannot be heard.
    #[error("cannot listen for stop signals: {0}")]
    Signals(ctrlc::Error),
}

impl CommonArgs {
    /// How to reach the ensemble.
    ///
    /// # Errors
    /// The identity cannot be used.
    pub fn config(&self, session_timeout: Duration) -> Result<Config, ArgsError> {
        let identity = identity(self.auth_file.as_deref(), std::env::var_os("ZK_AUTH"))?;
        let (digest, others) = identity.map_or((None, None), |(digest, others)| (Some(digest), others));
        Ok(Config { digest, others, tls: self.tls()?, ..Config::new(self.zk.clone(), session_timeout) })
    }

    fn tls(&self) -> Result<Option<Tls>, ArgsError> {
        let Some(authorities) = &self.tls_ca else {
            let others = [self.tls_cert.as_ref().map(|_| "--tls-cert"), self.tls_key.as_ref().map(|_| "--tls-key")];
            let name = self.tls_name.as_ref().map(|_| "--tls-name");
            let alone = others.into_iter().chain([name]).flatten().next();
            return alone.map_or(Ok(None), |alone| Err(ArgsError::Without(alone, "--tls-ca")));
        };
        let own = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read_secret(key)?)),
            (Some(_), None) => return Err(ArgsError::Without("--tls-cert", "--tls-key")),
            (None, Some(_)) => return Err(ArgsError::Without("--tls-key", "--tls-cert")),
            (None, None) => None,
        };
        let own = own.as_ref().map(|(certificate, key)| (&certificate[..], key.as_bytes()));
        Ok(Some(Tls::new(&read(authorities)?, own, self.tls_name.as_deref())?))
    }

    /// Starts the log on standard error: `info` and above, unless the options or `RUST_LOG` say otherwise.
    pub fn start_log(&self) {
        let level = match i16::from(self.verbose) - i16::from(self.quiet) {
            ..=-2 => LevelFilter::Error,
            -1 => LevelFilter::Warn,
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            2.. => LevelFilter::Trace,
        };
        let mut log = env_logger::Builder::new();
        log.filter_level(level).parse_default_env().format(|to, record| {
            // It logs 30,000 lines a second while a server is away, and at trace sessions' passwords and all data.
            if record.target().split("::").next() == Some("zookeeper") {
                return Ok(());
            }
            let (time, target) = (to.timestamp(), record.target());
            let style = to.default_level_style(record.level());
            let text = escape(&record.args().to_string());
            writeln!(to, "[{time} {style}{:<5}{style:#} {target}] {text}", record.level())
        });
        log.init();
    }
}

/// Lets no other process of this user, such as a task, read our memory or environment, and has the kernel dump no core of them
/// (prctl(2), `PR_SET_DUMPABLE`). It is as before in whatever we start.
fn keep_to_ourselves() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("processes of the same user can read the secrets of this one: {error}");
    }
}

/// Says that nobody is kept out, where that is so.
pub fn warn_without_identity(config: &Config) {
    if config.digest.is_none() {
        log::warn!("no identity (--auth-file): whoever reaches ZooKeeper can run commands on the workers");
    }
}

/// `user:password`, and who else has rights in what it makes.
type Identity = (String, Option<Others>);

/// What the file of `--auth-file` holds; without one, what `ZK_AUTH` holds, which is the same or the path of a file.
fn identity(file: Option<&Path>, variable: Option<OsString>) -> Result<Option<Identity>, ArgsError> {
    let in_file = |file: &Path| identity_of(&read_secret(file)?, &file.display().to_string()).map(Some);
    match (file, variable) {
        (Some(file), _) => in_file(file),
        (None, Some(variable)) if variable.as_encoded_bytes().starts_with(b"digest:") => {
            keep_to_ourselves();
            identity_of(&variable.to_string_lossy(), "ZK_AUTH").map(Some)
        }
        (None, Some(file)) if !file.is_empty() => in_file(file.as_ref()),
        (None, _) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ArgsError> {
    std::fs::read(path).map_err(|error| ArgsError::Unreadable(path.to_owned(), error))
}

/// Whether a terminal just shows this character: it is no control character and changes nothing of what stands beside it.
pub fn is_harmless(c: char) -> bool {
    matches!(c, ' '..='~') || c.escape_debug().len() == 1
}

/// The text on one line, without anything that a terminal would act upon: what came out of a znode was written by anybody.
/// Quotes and backslashes stay as they are.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_debug());
        }
    }
    escaped
}

fn read_secret(path: &Path) -> Result<String, ArgsError> {
    keep_to_ourselves();
    let unreadable = |error| ArgsError::Unreadable(path.to_owned(), error);
    let mut file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.mode() & 0o077 != 0 {
        return Err(ArgsError::Open(path.to_owned()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// `digest:user:password`; in a line of its own, `submitters` or `daemons` and the identity of the others, `digest:user:HASH`.
fn identity_of(text: &str, source: &str) -> Result<Identity, ArgsError> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let own = lines.next().and_then(|line| line.strip_prefix("digest:")).filter(|digest| digest.contains(':'));
    let own = own.ok_or_else(|| ArgsError::NoIdentity(source.to_owned()))?;
    let others = match lines.next().map(|line| line.split_once(" digest:").unwrap_or((line, ""))) {
        None => Ok(None),
        Some(("submitters", id)) => id.trim().parse().map(|id| Others::Submitters(id, &paths::OF_SUBMITTERS)).map(Some),
        Some(("daemons", id)) => id.trim().parse().map(Others::Daemons).map(Some),
        Some(_) => Err(NoDigestId),
    }
    .map_err(|_: NoDigestId| ArgsError::NoOthers(source.to_owned()))?;
    match lines.next() {
        None => Ok((own.to_owned(), others)),
        Some(_) => Err(ArgsError::NoOthers(source.to_owned())),
    }
}

/// A duration as the command line writes it: `500ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// What is wrong with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error} (write 500ms, 10s, 5m, 2h or 7d)"))?;
    // ZooKeeper counts a session timeout in milliseconds with 31 bits, and so does everybody who adds one to a clock.
    if duration.as_millis() > i32::MAX as u128 * 100 { Err("it is too long".to_owned()) } else { Ok(duration) }
}

/// A session timeout: a duration that ZooKeeper can be asked for.
///
/// # Errors
/// What is wrong with the text.
pub fn session_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    let possible = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
    if possible.contains(&timeout) { Ok(timeout) } else { Err("a session timeout is from 100ms to 24h".to_owned()) }
}

/// The name of this host.
pub fn host() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// A random number, as good as the system makes them: two processes anywhere must not draw the same one. (The `fastrand`
/// crate seeds itself from the time since boot, and hosts boot at the same time.)
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// The time by the system's clock, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Calls `stop` at each SIGINT, SIGTERM or SIGHUP. It runs on a thread of its own and should only send. Under `nohup`
/// SIGHUP goes on being ignored.
///
/// # Errors
/// The system does not allow it.
pub fn on_stop_signal(stop: impl FnMut() + Send + 'static) -> Result<(), ArgsError> {
    let hangup_ignored = ignores_hangup(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    ctrlc::set_handler(stop).map_err(ArgsError::Signals)?;
    if hangup_ignored {
        #[expect(unsafe_code, reason = "ctrlc handles SIGHUP whenever it handles SIGTERM")]
        // SAFETY: no handler is installed, and nothing else in the program installs one for this signal.
        let ignored = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
        ignored.map_err(|error| ArgsError::Signals(ctrlc::Error::System(error.into())))?;
    }
    Ok(())
}

/// Whether `/proc/self/status` says that SIGHUP, which is signal 1, is ignored (proc(5), `SigIgn`).
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Has the kernel kill the command when the thread that starts it ends, which must live as long as the process.
pub fn die_with_parent(command: &mut Command) {
    #[expect(unsafe_code, reason = "the parent-death signal can only be set by the child itself")]
    // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(dying_with_parent());
    }
}

/// The same, as what the child has to do.
pub fn dying_with_parent() -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
    let parent = getpid();
    move || {
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the call.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::PERM.into()) }
    }
}

/// Reads the command line. Wrong usage is one line on standard error and the exit code 2.
///
/// # Errors
/// The exit code with which the program ends now: also after `--help` and `--version`.
pub fn parse<A: Parser>(program: &str) -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            // A closed pipe is no reason to complain.
            error.print().ok();
            return ExitCode::SUCCESS;
        }
        say(program, &usage_error(&error.to_string()));
        ExitCode::from(2)
    })
}

/// The first paragraph of what clap says, on one line.
fn usage_error(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}

#[expect(clippy::print_stderr, reason = "the one place where a daemon speaks to its user beside its log")]
fn say(program: &str, text: &str) {
    eprintln!("{program}: {}", escape(text));
}

/// The end of a daemon: its exit code, or what went wrong, on one line of standard error with all its causes, and 1.
pub fn exit(program: &str, ran: Result<ExitCode, impl std::error::Error>) -> ExitCode {
    ran.unwrap_or_else(|error| {
        say(program, &chain(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[track_caller]
    fn check(file: Option<&Path>, variable: Option<&str>, expected: Result<Option<&str>, &str>) {
        match (identity(file, variable.map(OsString::from)), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.as_ref().map(|(digest, _)| digest.as_str()), expected),
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn an_identity_is_in_a_file_or_in_the_environment() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (path, name) = (file.path(), file.path().to_str().unwrap());
        std::fs::write(path, "digest:ann:secret\n").unwrap();
        check(Some(path), None, Ok(Some("ann:secret")));
        check(None, Some(name), Ok(Some("ann:secret")));
        check(None, Some("digest:bob:other"), Ok(Some("bob:other")));
        check(Some(path), Some("digest:bob:other"), Ok(Some("ann:secret")));
        check(None, Some(""), Ok(None));
        check(None, None, Ok(None));
        check(None, Some("digest:bob"), Err("ZK_AUTH does not hold digest:user:password"));
        check(None, Some("/nowhere"), Err("cannot read /nowhere"));
        std::fs::write(path, "ann").unwrap();
        check(Some(path), None, Err("does not hold digest:user:password"));
    }

    #[test]
    fn the_others_are_named_without_their_password() {
        let id = "ann:lK75jTNcA+U9vtVEw5vB51mj/w4=";
        let others = |line: &str| identity_of(&format!("digest:me:secret\n{line}\n"), "f").map(|(_, others)| others);
        let submitters = Others::Submitters(id.parse().unwrap(), &paths::OF_SUBMITTERS);
        assert_eq!(others(&format!("submitters digest:{id}")).unwrap(), Some(submitters));
        assert_eq!(others(&format!("daemons digest:{id}")).unwrap(), Some(Others::Daemons(id.parse().unwrap())));
        assert_eq!(others("").unwrap(), None);
        for wrong in ["submitters", "submitters digest:ann:secret", "friends digest:ann:x", &format!("daemons {id}")] {
            assert!(others(wrong).unwrap_err().to_string().starts_with("the second line of f is not"), "{wrong}");
        }
    }

    #[test]
    fn an_identity_that_others_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "digest:ann:secret\n").unwrap();
        for mode in [0o644, 0o640, 0o604] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            check(Some(file.path()), None, Err("chmod 600"));
        }
    }

    #[test]
    fn a_task_key_that_others_can_read_or_guess_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str, mode| {
            std::fs::write(file.path(), text).unwrap();
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let read = TaskKeyArgs { task_key: Some(file.path().to_owned()) }.read();
            read.map(|keys| assert!(keys.is_some())).map_err(|error| error.to_string())
        };
        assert_eq!(read("0123456789abcdef\n", 0o600), Ok(()));
        assert!(read("0123456789abcdef\n", 0o640).unwrap_err().contains("chmod 600"));
        assert!(read("0123456789abcde\n", 0o600).unwrap_err().contains("shorter than 16 bytes"));
        assert!(read("", 0o600).unwrap_err().contains("empty"));
        assert!(TaskKeyArgs { task_key: None }.read().unwrap().is_none());
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        assert_eq!(escape("echo 'a\\b' \"c\""), "echo 'a\\b' \"c\"");
        assert_eq!(escape("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(escape("\u{1b}[31m\u{7}"), "\\u{1b}[31m\\u{7}");
        assert_eq!(
            escape("\u{9b}31m \u{202e}\u{2066}\u{200f}\u{2028}"),
            "\\u{9b}31m \\u{202e}\\u{2066}\\u{200f}\\u{2028}"
        );
        assert_eq!(escape("größe 漢字"), "größe 漢字");
    }

    #[test]
    fn nohup_is_seen() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random(), random());
    }

    #[test]
    fn wrong_usage_is_one_line() {
        let clap = "error: invalid value 'x' for '--slots <N>'\n  [possible values: 1]\n\nFor more information, try";
        assert_eq!(usage_error(clap), "invalid value 'x' for '--slots <N>' [possible values: 1] (see --help)");
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "10", "-1s", "x", "9999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(session_timeout("1ms").is_err());
    }
}
