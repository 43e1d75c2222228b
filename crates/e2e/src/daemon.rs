//! Our programs, run as anyone would run them.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{Read, Write},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    Host,
    process::{self, Process, lock},
    wait_for, wait_within,
};

/// How long after the end of a process its output may still come: what it leaves behind may hold its pipes open for ever.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// A running or ended program. Dropping it kills it, and shows its output if the test is failing.
pub struct Daemon {
    name: String,
    process: Process,
    stdout: Output,
    stderr: Output,
}

/// A program that is about to be started.
#[derive(Clone, Debug)]
#[must_use = "nothing runs before start()"]
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    log: Option<PathBuf>,
}

impl Launch {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Launch {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Launch {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable. Those named `ZK_...` and `RUST_LOG` are unset unless set here.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Launch {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Takes back what was set.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Launch {
        self.env.retain(|(set, _)| set != name.as_ref());
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Launch {
        self.dir = Some(dir.into());
        self
    }

    /// Sets what it can read on stdin: nothing unless set here.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Launch {
        self.stdin = Some(input.into());
        self
    }

    /// Has its stderr in a file: for whoever measures, and does not want to be woken by each line.
    pub fn log(mut self, file: impl Into<PathBuf>) -> Launch {
        self.log = Some(file.into());
        self
    }

    /// Has another program start it, which gets these arguments before it.
    pub fn under(mut self, program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Launch {
        let program = std::mem::replace(&mut self.program, program.into());
        let own = std::mem::take(&mut self.args);
        self.args(args).arg(program).args(own)
    }

    /// Has a shell prepare what it starts with: the script is to end with `exec "$@"`.
    pub fn through(mut self, script: &str) -> Launch {
        let program = std::mem::replace(&mut self.program, PathBuf::from("/bin/sh")).into_os_string();
        self.args.splice(..0, ["-c".into(), script.into(), "sh".into(), program]);
        self
    }

    /// Starts it.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Daemon {
        let command = process::command(&self.program, None);
        self.start_as(command)
    }

    /// Starts it in a host.
    #[must_use]
    #[track_caller]
    pub fn start_in(self, host: &Host) -> Daemon {
        let command = process::command(&self.program, Some(host));
        self.start_as(command)
    }

    #[track_caller]
    fn start_as(self, mut command: Command) -> Daemon {
        for (name, _) in std::env::vars_os() {
            if name == "RUST_LOG" || name.as_encoded_bytes().starts_with(b"ZK_") {
                command.env_remove(name);
            }
        }
        command.args(self.args).envs(self.env).stdout(Stdio::piped());
        let open = |path| File::create_new(path).expect("a file can be made");
        command.stderr(self.log.as_ref().map_or_else(Stdio::piped, |path| open(path).into()));
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        if let Some(dir) = self.dir {
            command.current_dir(dir);
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (process, (stdin, stdout, stderr)) =
            Process::start(&name, command, |child| (child.stdin.take(), child.stdout.take(), child.stderr.take()));
        if let (Some(mut pipe), Some(input)) = (stdin, self.stdin) {
            // Fails when the program doesn't read to the end, which is its right.
            std::thread::spawn(move || pipe.write_all(&input).ok());
        }
        let stdout = Output::of(stdout.expect("stdout is a pipe"));
        let stderr = stderr.map(Output::of).or(self.log.map(Output::File)).expect("stderr is a pipe or a file");
        Daemon { name, process, stdout, stderr }
    }
}

impl Daemon {
    /// One of our programs, such as `zk-master`. It does not listen unless it is told to: any number of tests run at once.
    #[track_caller]
    pub fn named(name: &str) -> Launch {
        let program = binary(name);
        assert!(program.is_file(), "{} is missing: build it first: cargo build --workspace", program.display());
        Daemon::program(program).env("ZK_LISTEN", "off")
    }

    /// Any program.
    pub fn program(program: impl Into<PathBuf>) -> Launch {
        Launch { program: program.into(), args: Vec::new(), env: Vec::new(), dir: None, stdin: None, log: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process that works below a daemon's guard, which is what a test starts; nothing while the guard waits to start it
    /// again.
    #[must_use]
    pub fn guarded(&self) -> Option<Pid> {
        let own = self.pid();
        let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        // The guard has other children too: what dead tasks have left to it.
        let child: u32 =
            children.find(|pid| program(*pid).is_some_and(|program_of| Some(program_of) == program(own)))?;
        Pid::from_raw(child.cast_signed())
    }

    /// What it has printed on stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The same, byte by byte.
    #[must_use]
    pub fn stdout_bytes(&self) -> Vec<u8> {
        self.stdout.bytes()
    }

    /// What it has printed on stderr so far, byte by byte.
    #[must_use]
    pub fn stderr_bytes(&self) -> Vec<u8> {
        self.stderr.bytes()
    }

    /// What it has printed on stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until its stderr contains a text.
    #[track_caller]
    pub fn wait_stderr(&self, text: &str) {
        wait_for(&format!("{} to log {text:?}", self.name), || {
            let stderr = self.stderr();
            if stderr.contains(text) { Ok(()) } else { Err(stderr) }
        });
    }

    /// Waits until its stdout contains a text.
    #[track_caller]
    pub fn wait_stdout(&self, text: &str) {
        wait_for(&format!("{} to print {text:?}", self.name), || {
            let stdout = self.stdout();
            if stdout.contains(text) { Ok(()) } else { Err(stdout) }
        });
    }

    /// Sends a signal; nothing happens when it has ended.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL to this one process; returns when it is gone.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Freezes it; returns when all its threads stand still.
    #[track_caller]
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&self) {
        self.process.resume();
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Waits for its end; its output is complete then. Panics after `limit`.
    #[track_caller]
    pub fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let status = self.process.wait_exit(limit);
        let end = Instant::now() + LAST_OUTPUT;
        wait_within(LAST_OUTPUT * 2, "the last output", || {
            let complete = self.stdout.complete() && self.stderr.complete();
            if complete || Instant::now() >= end { Ok(()) } else { Err(String::new()) }
        });
        status
    }
}

impl Drop for Daemon {
    #[expect(clippy::print_stderr, reason = "belongs to the report of a failed test, which captures it")]
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            let (name, pid) = (&self.name, self.pid());
            eprintln!(
                "--- stdout of {name} (pid {pid})\n{}--- stderr of {name} (pid {pid})\n{}---",
                self.stdout(),
                self.stderr()
            );
        }
    }
}

/// Where cargo puts a program of this workspace: beside the other programs, and in the parent of the tests' directory.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its program");
    let dir = own.parent().expect("a program is in a directory");
    let target = if dir.ends_with("deps") { dir.parent().expect("cargo puts deps/ into the target") } else { dir };
    target.join(name)
}

/// What a program has printed.
enum Output {
    /// Into a pipe, read by a thread of its own so that the program never waits for us.
    Pipe { bytes: Arc<Mutex<Vec<u8>>>, complete: Arc<AtomicBool> },
    /// Into a file.
    File(PathBuf),
}

impl Output {
    fn of(mut pipe: impl Read + Send + 'static) -> Output {
        let (bytes, complete) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicBool>::default());
        let output = Output::Pipe { bytes: bytes.clone(), complete: complete.clone() };
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => lock(&bytes).extend(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            complete.store(true, Ordering::Release);
        });
        output
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Output::Pipe { bytes, .. } => lock(bytes).clone(),
            Output::File(path) => fs::read(path).unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn complete(&self) -> bool {
        match self {
            Output::Pipe { complete, .. } => complete.load(Ordering::Acquire),
            Output::File(_) => true,
        }
    }
}
