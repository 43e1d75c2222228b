//! The command line, as it is typed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Parser, Subcommand};
use zk_cli::{CommonArgs, TaskKeyArgs};
use zk_master::state::WORDS;
use znode_paths::{Bytes, DecodeError, Stream, TaskMeta, TaskName, WorkerName};

use crate::batch::Batch;
use crate::completions::{Kind, Shell};
use crate::each::Each;
use crate::error::Failure;
use crate::follow::Wanted;
use crate::submit::{Order, Template};
use crate::{Config, Error, Job};

/// Submits tasks to the workers of a ZooKeeper ensemble, waits for them and shows them.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, arg_required_else_help = false)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,

    #[command(flatten)]
    task_key: TaskKeyArgs,

    /// The session timeout to ask for
    #[arg(long, env = "ZK_SESSION_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = zk_cli::session_timeout, global = true)]
    session_timeout: Duration,

    /// How long to wait for ZooKeeper, and for a first master
    #[arg(long, env = "ZK_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = zk_cli::duration, global = true)]
    connect_timeout: Duration,

    /// Submit nothing while there are more tasks than this
    #[arg(long, env = "ZK_MAX_QUEUE", value_name = "N", default_value_t = 50_000, global = true)]
    max_queue: usize,

    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a task and print its name
    #[command(
        after_help = "Examples:\n  zk-client submit --name backup -- 'tar c /data | zstd > /backup/data.tar.zst'\n  zk-client submit --after task-0000000007 --retries 3 --backoff 10s -- ./report.sh"
    )]
    Submit {
        #[command(flatten)]
        task: TaskArgs,
    },
    /// Submit a task, show its output as it comes and exit with its code; Ctrl-C cancels it
    #[command(
        after_help = "Examples:\n  zk-client run --require disk=ssd -- make -j4 all\n  zk-client run --timeout 5m --on worker1 -- uname -a"
    )]
    Run {
        #[command(flatten)]
        task: TaskArgs,
    },
    /// Show the output of a task: from its worker, or from its status when the worker is gone; 1 if some is missing
    #[command(after_help = "Examples:\n  zk-client logs -f task-0000000007\n  zk-client logs --stderr task-0000000007")]
    Logs {
        /// Go on until the task has ended
        #[arg(short, long)]
        follow: bool,
        /// Only its standard output
        #[arg(long, conflicts_with = "stderr")]
        stdout: bool,
        /// Only its standard error
        #[arg(long)]
        stderr: bool,
        /// Which
        #[arg(value_name = "TASK")]
        task: TaskName,
    },
    /// Run the commands of a file, one a line, so many at a time; print TASK, STATE, EXIT CODE and COMMAND of each as it
    /// ends; Ctrl-C cancels what has not ended
    #[command(
        after_help = "Examples:\n  zk-client batch --max-in-flight 8 commands.txt\n  zk-client batch --retries 1 -"
    )]
    Batch {
        #[command(flatten)]
        options: TaskOptions,
        /// How many tasks may be unfinished at a time
        #[arg(long, env = "ZK_MAX_IN_FLIGHT", value_name = "N", default_value_t = 1000, value_parser = positive)]
        max_in_flight: usize,
        /// Keep the finished tasks as long as others are kept; otherwise they are removed once they are printed
        #[arg(long)]
        keep: bool,
        /// Where the commands are; `-` is standard input
        #[arg(value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// Run a command once on every worker that takes tasks; print what it writes, each line behind the worker's name
    #[command(after_help = "Examples:\n  zk-client each -- df -h /")]
    Each {
        #[command(flatten)]
        task: TaskArgs,
    },
    /// Block until all tasks are finished; print TASK, STATE and EXIT CODE of each as it ends
    #[command(after_help = "Examples:\n  zk-client wait task-0000000007 task-0000000008")]
    Wait {
        /// Which
        #[arg(value_name = "TASK", required = true)]
        tasks: Vec<TaskName>,
    },
    /// List the tasks, oldest first
    #[command(after_help = "Examples:\n  zk-client list --state running --state pending\n  zk-client list --json")]
    List {
        /// Only those in this state; may be given several times
        #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(WORDS))]
        state: Vec<String>,
    },
    /// Show everything known of a task
    #[command(after_help = "Examples:\n  zk-client show task-0000000007")]
    Show {
        /// Which
        #[arg(value_name = "TASK")]
        task: TaskName,
    },
    /// Say in one sentence why a task is in its state, from the tree alone
    #[command(after_help = "Examples:\n  zk-client why task-0000000007")]
    Why {
        /// Which
        #[arg(value_name = "TASK")]
        task: TaskName,
    },
    /// Ask for tasks to be stopped, and wait for nothing; one that has ended stays as it is
    #[command(after_help = "Examples:\n  zk-client cancel task-0000000007")]
    Cancel {
        /// Which
        #[arg(value_name = "TASK", required = true)]
        tasks: Vec<TaskName>,
    },
    /// Submit finished tasks anew, with the same command and options but --key and --after; print the new names
    #[command(after_help = "Examples:\n  zk-client retry task-0000000007")]
    Retry {
        /// Which
        #[arg(value_name = "TASK", required = true)]
        tasks: Vec<TaskName>,
    },
    /// Remove finished tasks before their time
    #[command(after_help = "Examples:\n  zk-client rm task-0000000007")]
    Rm {
        /// Which
        #[arg(value_name = "TASK", required = true)]
        tasks: Vec<TaskName>,
    },
    /// List the workers
    #[command(after_help = "Examples:\n  zk-client workers")]
    Workers,
    /// Take a worker out of service: it finishes what it has and gets nothing new, also after it is started again
    #[command(after_help = "Examples:\n  zk-client drain worker1")]
    Drain {
        /// Which
        #[arg(value_name = "WORKER")]
        worker: WorkerName,
    },
    /// Take a worker back into service
    #[command(after_help = "Examples:\n  zk-client undrain worker1")]
    Undrain {
        /// Which
        #[arg(value_name = "WORKER")]
        worker: WorkerName,
    },
    /// Show the cluster: masters, workers, tasks by state
    #[command(after_help = "Examples:\n  zk-client status --json")]
    Status,
    /// Print a script that completes the command line, with the names of tasks and workers
    #[command(
        after_help = "Examples:\n  zk-client completions bash > /etc/bash_completion.d/zk-client\n  zk-client completions zsh > ~/.zfunc/_zk-client"
    )]
    Completions {
        /// For which shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print names for the completion scripts
    #[command(hide = true)]
    Names {
        /// Whose
        kind: Kind,
    },
    /// Show the cluster on the whole screen, as it changes: masters, workers, tasks by state, the newest failures; q quits
    #[command(after_help = "Examples:\n  zk-client top")]
    Top,
    /// Check the whole tree against the protocol; exits with 1 when something is wrong with it
    #[command(after_help = "Examples:\n  zk-client doctor\n  zk-client doctor --fix")]
    Doctor {
        /// Repair what can be repaired while everybody works
        #[arg(long)]
        fix: bool,
    },
}

#[derive(Debug, clap::Args)]
struct TaskArgs {
    #[command(flatten)]
    options: TaskOptions,

    /// Several words are quoted for the shell word by word; a single one is a shell command line as it stands
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Task options")]
struct TaskOptions {
    /// What you call it
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,

    /// The same key is the same task, also when it is given again: then that task is named and nothing submitted
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    key: Option<String>,

    /// Higher is served first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i64,

    /// How long an attempt may run; then it is stopped, and the task ends as `timeout`
    #[arg(long, value_name = "DURATION", value_parser = time_limit)]
    timeout: Option<Duration>,

    /// How often it is started again after its command failed
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "no_requeue")]
    retries: u32,

    /// The pause before the first retry; doubled for each further one, up to an hour
    #[arg(long, value_name = "DURATION", default_value = "0s", requires = "retries", value_parser = zk_cli::duration)]
    backoff: Duration,

    /// How often it may be started when workers are lost under it [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,

    /// Start it once only, even if its worker is lost
    #[arg(long)]
    no_requeue: bool,

    /// The only worker that may run it
    #[arg(long, value_name = "WORKER")]
    on: Option<WorkerName>,

    /// A label that its worker must have; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    require: Vec<(String, String)>,

    /// Start it when this task is done, cancel it if that ends otherwise; may be given several times
    #[arg(long, value_name = "TASK")]
    after: Vec<TaskName>,

    /// Added to its environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,

    /// Where it runs, on the worker; by default in a folder of its own
    #[arg(long, value_name = "DIR", value_parser = folder)]
    cwd: Option<String>,

    /// A file for it to read on its standard input, at most 512 KiB; `-` is the standard input of zk-client
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,

    /// Write just the command, without metadata, as somebody with zkCli.sh would
    #[arg(long, conflicts_with_all =
          ["name", "key", "priority", "timeout", "retries", "backoff", "max_attempts", "no_requeue", "on", "require",
           "after", "env", "cwd", "stdin"])]
    plain: bool,
}

const AFTER_HELP: &str = "\
Exit codes:
  run, and wait with one task: the command's own; 128+n after a signal n
  wait with several: 0 all done, 1 some not
  2 wrong usage; 74 outcome unknown; 75 queue full; 124 the task's time limit passed;
  125 zk-client itself failed, or the task is lost; 130 cancelled

Examples:
  zk-client submit --name backup -- 'tar c /data | zstd > /backup/data.tar.zst'
  zk-client run --require disk=ssd -- make -j4 all
  zk-client wait $(zk-client submit sleep 5)";

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is KEY=VALUE".to_owned()),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "it is a number from 1".to_owned())
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match zk_cli::duration(text)? {
        Duration::ZERO => Err("nothing could run".to_owned()),
        limit => Ok(limit),
    }
}

/// The most that `--stdin` takes, in bytes: with its metadata it has to fit into a znode, also in base64.
const MAX_STDIN: u64 = 512 * 1024;

/// What a task is to read on its standard input.
fn input(path: &Path) -> Result<Bytes, Failure> {
    let read = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.take(MAX_STDIN + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let read =
        if path == Path::new("-") { read(&mut io::stdin()) } else { File::open(path).and_then(|mut f| read(&mut f)) };
    let bytes = read.map_err(|error| Error::Stdin(path.to_owned(), error).of("submit the task"))?;
    if bytes.len() as u64 > MAX_STDIN { Err(Error::StdinTooLong.of("submit the task")) } else { Ok(Bytes(bytes)) }
}

fn variable(text: &str) -> Result<(String, String), String> {
    // No process can get such a variable.
    if text.contains('\0') { Err("it has a NUL character".to_owned()) } else { pair(text) }
}

/// A folder as it is called from here, like Slurm's --chdir: on hosts that share their file systems that is what is meant.
fn folder(text: &str) -> Result<String, String> {
    let path = std::path::absolute(Path::new(text)).map_err(|error| error.to_string())?;
    path.into_os_string().into_string().map_err(|path| format!("{} is not UTF-8", PathBuf::from(path).display()))
}

impl Args {
    /// Starts the log and says what the options mean.
    ///
    /// # Errors
    /// An option or the command cannot be used.
    pub fn config(self) -> Result<Config, Failure> {
        // A user at a terminal is told what matters in sentences; the log is for whoever asks for it.
        let mut common = self.common;
        common.quiet = common.quiet.saturating_add(if common.verbose == 0 { 2 } else { 1 });
        common.start_log();
        let session = common.config(self.session_timeout);
        let session = session.map_err(|error| Error::Option(error).of("use the options"))?;
        let task_keys = self.task_key.read().map_err(|error| Error::Option(error).of("use the options"))?;
        let signed = task_keys.is_some();
        let job = match self.command {
            Command::Submit { task } => Job::Submit(task.order(signed, self.max_queue)?),
            Command::Run { task } => Job::Run(task.order(signed, self.max_queue)?),
            Command::Logs { follow, stdout, stderr, task } => {
                let streams = match (stdout, stderr) {
                    (true, _) => vec![Stream::Stdout],
                    (_, true) => vec![Stream::Stderr],
                    _ => Stream::BOTH.to_vec(),
                };
                Job::Logs(task, Wanted { wait: follow, streams, json: self.json })
            }
            Command::Each { task } => {
                let TaskArgs { options, command: words } = task;
                let tried = "run the command on each worker";
                options.refuse_key().map_err(|error| error.of(tried))?;
                if options.on.is_some() || options.plain {
                    let what = "each task is for one worker: neither --on nor --plain can be used";
                    return Err(Error::Usage(what).of(tried));
                }
                let (template, command) = (options.template(signed)?, command(&words)?);
                template.task(command.clone()).map_err(|error| error.of(tried))?;
                Job::Each(Each { template, command, max_queue: self.max_queue })
            }
            Command::Batch { options, max_in_flight, keep, file } => {
                let tried = "run the commands";
                options.refuse_key().map_err(|error| error.of(tried))?;
                if file == Path::new("-") && options.stdin.as_deref() == Some(&file) {
                    let what = "standard input cannot be both the commands and what they read";
                    return Err(Error::Usage(what).of(tried));
                }
                let template = options.template(signed)?;
                Job::Batch(Batch { template, max_in_flight, max_queue: self.max_queue, keep, file })
            }
            Command::Wait { tasks } => Job::Wait(tasks.into_iter().collect()),
            Command::List { state } => Job::List(state),
            Command::Show { task } => Job::Show(task),
            Command::Why { task } => Job::Why(task),
            Command::Cancel { tasks } => Job::Cancel(tasks),
            Command::Retry { tasks } => Job::Retry(tasks, self.max_queue),
            Command::Rm { tasks } => Job::Remove(tasks),
            Command::Workers => Job::Workers,
            Command::Drain { worker } => Job::Drain(worker, true),
            Command::Undrain { worker } => Job::Drain(worker, false),
            Command::Status => Job::Status,
            Command::Top => Job::Top,
            Command::Doctor { fix } => Job::Doctor(fix),
            Command::Completions { shell } => Job::Completions(shell),
            Command::Names { kind } => Job::Names(kind),
        };
        Ok(Config { session, task_keys, connect_timeout: self.connect_timeout, json: self.json, job })
    }
}

impl TaskArgs {
    fn order(self, signed: bool, max_queue: usize) -> Result<Order, Failure> {
        let task = self.options.template(signed)?.task(command(&self.command)?);
        Ok(Order { task: task.map_err(|error| error.of(TRIED))?, max_queue })
    }
}

const TRIED: &str = "submit the task";

/// The command line that the words make.
fn command(words: &[String]) -> Result<String, Failure> {
    match words {
        [line] => Ok(line.clone()),
        // The only words that cannot be quoted are those with a NUL.
        words => shlex::try_join(words.iter().map(String::as_str))
            .map_err(|_| Error::Command(DecodeError::NulInCommand).of(TRIED)),
    }
}

impl TaskOptions {
    fn refuse_key(&self) -> Result<(), Error> {
        match self.key {
            Some(_) => Err(Error::Usage("--key is for one task, and this makes several")),
            None => Ok(()),
        }
    }

    fn template(self, signed: bool) -> Result<Template, Failure> {
        if self.plain && signed {
            let what = "a --plain task has no place for the signature of --task-key (ZK_TASK_KEY_FILE)";
            return Err(Error::Usage(what).of(TRIED));
        }
        if self.plain {
            return Ok(Template { meta: None });
        }
        let stdin = self.stdin.as_deref().map(input).transpose()?;
        let defaults = TaskMeta::new(String::new());
        let meta = TaskMeta {
            name: self.name,
            key: self.key,
            priority: self.priority,
            timeout_ms: self.timeout.map(millis),
            retries: self.retries,
            backoff_ms: millis(self.backoff),
            max_attempts: self.max_attempts.unwrap_or(defaults.max_attempts),
            no_requeue: self.no_requeue,
            on: self.on,
            require: self.require.into_iter().collect::<BTreeMap<_, _>>(),
            after: self.after,
            env: self.env.into_iter().collect::<BTreeMap<_, _>>(),
            cwd: self.cwd,
            stdin,
            ..defaults
        };
        Ok(Template { meta: Some(meta) })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use znode_paths::Task;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    /// The help of each command ends with lines that can be typed.
    #[test]
    fn every_example_is_a_command_line() {
        for command in Args::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().unwrap_or_else(|| panic!("{} has no examples", command.get_name()));
            let help = help.to_string();
            let examples = help.lines().filter_map(|line| line.strip_prefix("  "));
            for example in examples.clone() {
                let typed =
                    example.split(" > /etc").next().and_then(|line| line.split(" > ~").next()).unwrap_or_default();
                let words = shlex::split(typed).unwrap();
                assert_eq!(words.get(1).map(String::as_str), Some(command.get_name()), "{example}");
                if let Err(error) = Args::try_parse_from(words) {
                    panic!("{example}: {error}");
                }
            }
            assert!(examples.count() > 0, "{help}");
        }
    }

    /// What a command line submits.
    #[track_caller]
    fn submitted(words: &[&str]) -> Result<Task, String> {
        let line = ["zk-client", "submit"].iter().chain(words);
        let args = Args::try_parse_from(line).map_err(|error| error.to_string())?;
        let Command::Submit { task } = args.command else { panic!("not a submit") };
        Ok(task.order(false, args.max_queue).map_err(|failure| failure.to_string())?.task)
    }

    #[track_caller]
    fn check_command(words: &[&str], expected: &str) {
        assert_eq!(submitted(words).map(|task| task.command), Ok(expected.to_owned()), "{words:?}");
    }

    #[test]
    fn a_single_word_is_a_command_line_and_several_are_quoted() {
        check_command(&["--", "echo a; echo b"], "echo a; echo b");
        check_command(&["--", "echo", "a b", "$HOME", "it's"], "echo 'a b' '$HOME' \"it's\"");
        check_command(&["--", "echo", ""], "echo ''");
        check_command(&["--", "printf", "a\nb"], "printf 'a\nb'");
    }

    #[test]
    fn options_after_the_first_word_belong_to_the_command() {
        check_command(&["--priority", "-1", "sleep", "--name", "x", "-v"], "sleep --name x -v");
        check_command(&["echo", "--", "-n"], "echo -- -n");
        assert!(submitted(&["--nmae", "x", "sleep", "1"]).is_err(), "a typing error is no command");
    }

    #[test]
    fn a_command_that_nobody_can_run_is_refused() {
        assert!(submitted(&["--", ""]).unwrap_err().contains("empty"));
        assert!(submitted(&["--", "  "]).unwrap_err().contains("empty"));
        assert!(submitted(&["--"]).is_err());
        assert!(submitted(&["--", "a\0b"]).unwrap_err().contains("NUL"));
        assert!(submitted(&["--", "a", "b\0"]).unwrap_err().contains("NUL"));
        assert!(submitted(&["--", &"x".repeat(1_000_001)]).unwrap_err().contains("the limit is 1000000"));
        assert!(submitted(&["--plain", "--", "echo\n{\"zk\":1}"]).unwrap_err().contains("metadata"));
    }

    #[test]
    fn a_plain_task_is_its_command_and_nothing_else() {
        assert_eq!(submitted(&["--plain", "--", "cmd"]), Ok(Task::plain("cmd")));
        for option in [
            &["--name", "x"][..],
            &["--key", "x"],
            &["--no-requeue"],
            &["--env", "A=b"],
            &["--after", "task-0000000000"],
            &["--timeout", "1s"],
        ] {
            let line = [&["--plain"], option, &["--", "cmd"]].concat();
            assert!(submitted(&line).is_err(), "{option:?}");
        }
    }

    #[test]
    fn options_become_metadata() {
        let line = "--name n --key k --priority -5 --max-attempts 1 --no-requeue --on w --require a=b --require c= \
                    --after task-0000000001 --env X=1=2 --cwd /tmp --timeout 5m cmd";
        let meta = submitted(&line.split_whitespace().collect::<Vec<_>>()).unwrap().meta.unwrap();
        let expected = TaskMeta {
            name: Some("n".into()),
            key: Some("k".into()),
            priority: -5,
            max_attempts: 1,
            no_requeue: true,
            on: Some("w".parse().unwrap()),
            require: BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())]),
            after: vec![TaskName::from_number(1)],
            env: BTreeMap::from([("X".into(), "1=2".into())]),
            cwd: Some("/tmp".into()),
            timeout_ms: Some(300_000),
            ..TaskMeta::new(meta.submit.clone().unwrap())
        };
        assert_eq!(meta, expected);
    }

    #[test]
    fn failures_can_be_tried_again_but_not_of_what_may_start_once() {
        let meta = submitted(&["--retries", "3", "--backoff", "1500ms", "x"]).unwrap().meta.unwrap();
        assert_eq!((meta.retries, meta.backoff_ms), (3, 1500));
        for bad in [&["--backoff", "1s", "x"][..], &["--retries", "1", "--no-requeue", "x"], &["--timeout", "0s", "x"]]
        {
            assert!(submitted(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_can_be_its_standard_input_if_it_is_not_too_long() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |bytes: Vec<u8>| {
            std::fs::write(file.path(), &bytes).unwrap();
            let read = submitted(&["--stdin", file.path().to_str().unwrap(), "cat"]);
            read.map(|task| assert_eq!(task.meta.unwrap().stdin, Some(Bytes(bytes))))
        };
        // The longest that are as long as can be in JSON.
        assert_eq!(check(vec![0xff; 512 * 1024]), Ok(()));
        assert_eq!(check(b"\"\\".repeat(256 * 1024)), Ok(()));
        assert!(check(vec![b'x'; 512 * 1024 + 1]).unwrap_err().contains("512 KiB"));
        assert!(submitted(&["--stdin", "/nowhere", "cat"]).unwrap_err().contains("/nowhere"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            &["--on", "a/b", "x"][..],
            &["--after", "task-1", "x"],
            &["--require", "x", "x"],
            &["--env", "=1", "x"],
            &["--max-attempts", "0", "x"],
        ] {
            assert!(submitted(bad).is_err(), "{bad:?}");
        }
    }
}
