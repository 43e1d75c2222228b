//! The stock `zkCli.sh`, as the person in the transcript uses it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, Stdio},
    sync::{
        Mutex,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use crate::{
    Host,
    process::{self, Process, lock},
    wait,
};

/// Where Debian puts it.
const ZK_CLI: &str = "/usr/share/zookeeper/bin/zkCli.sh";

/// The session timeout that is asked for unless told otherwise.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// An interactive session of `zkCli.sh`: one ZooKeeper session, whose ephemeral znodes live as long as this value (and, after
/// a [`kill`](ZkCli::kill) or a drop, until the session has expired).
pub struct ZkCli {
    process: Process,
    talk: Mutex<Talk>,
}

/// What is said and heard. Behind a mutex, so that a session can be used through `&self`.
struct Talk {
    /// Dropping it is Ctrl-D.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// `WatchedEvent ...` lines that nobody has waited for yet.
    events: Vec<String>,
    /// All that was said and heard, for a panic.
    transcript: String,
    commands: u32,
}

impl Talk {
    #[track_caller]
    fn say(&mut self, command: &str) {
        self.transcript += &format!("> {command}\n");
        let stdin = self.stdin.as_mut().expect("nothing is said after the end");
        if let Err(error) = writeln!(stdin, "{command}") {
            panic!("zkCli.sh is gone at `{command}`: {error}\n{}", self.transcript);
        }
    }

    /// The next line; a `WATCHER::` message is put aside and gives `None`.
    #[track_caller]
    fn hear(&mut self, end: Instant, what: &str) -> Option<String> {
        let rest = end.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(rest) {
            Ok(line) => {
                self.transcript += &format!("{line}\n");
                if line.starts_with("WatchedEvent ") {
                    self.events.push(line);
                    return None;
                }
                (line != "WATCHER::").then_some(line)
            }
            Err(RecvTimeoutError::Timeout) => panic!("waited too long for {what}:\n{}", self.transcript),
            Err(RecvTimeoutError::Disconnected) => panic!("zkCli.sh ended before {what}:\n{}", self.transcript),
        }
    }
}

impl ZkCli {
    /// Connects, and returns when the session is there.
    #[must_use]
    #[track_caller]
    pub fn connect(connect_string: &str) -> ZkCli {
        ZkCli::connect_with(connect_string, SESSION_TIMEOUT, None)
    }

    /// Connects with a session timeout of its own (how long its ephemerals outlive a [`kill`](ZkCli::kill)), maybe in a host.
    #[must_use]
    #[track_caller]
    pub fn connect_with(connect_string: &str, session_timeout: Duration, host: Option<&Host>) -> ZkCli {
        assert!(std::fs::exists(ZK_CLI).is_ok_and(|exists| exists), "{ZK_CLI} is missing: apt-get install zookeeper");
        let mut command = process::command("/bin/sh", host);
        // One stream for both, in the order of printing: zkCli.sh says some things on stdout and some on stderr.
        command.args(["-c", r#"exec "$0" -waitforconnection "$@" 2>&1"#, ZK_CLI, "-timeout"]);
        command.arg(session_timeout.as_millis().to_string()).args(["-server", connect_string]);
        command.env("CLIENT_JVMFLAGS", "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (process, (stdin, stdout)) =
            Process::start("zkCli.sh", command, |child| (child.stdin.take(), child.stdout.take()));
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(stdout.expect("stdout is a pipe"));
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                sender.send(line).ok(); // with nobody there, read on all the same: zkCli.sh must not block
            }
        });
        let talk = Talk { stdin, lines, events: Vec::new(), transcript: String::new(), commands: 0 };
        let cli = ZkCli { process, talk: Mutex::new(talk) };
        cli.run("version"); // answers after the connection is there
        cli
    }

    /// Runs one command, and returns what it printed, without `WATCHER::` messages. An error is a text like any other.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let mut talk = lock(&self.talk);
        talk.commands += 1;
        // An option that doesn't exist: zkCli.sh complains about it in one line that contains it, without asking the server.
        let marker = format!("-end-of-command-{}", talk.commands);
        talk.say(command);
        talk.say(&format!("version {marker}"));
        let end = Instant::now() + wait::LIMIT;
        let mut lines = Vec::new();
        loop {
            match talk.hear(end, &format!("the end of `{command}`")) {
                Some(line) if line.ends_with(&marker) => return lines.join("\n"),
                Some(line) => lines.push(line),
                // A message comes after an empty line.
                None => drop(lines.pop_if(|line| line.is_empty())),
            }
        }
    }

    /// Waits for a `WATCHER::` message that contains a text, such as `type:NodeDeleted path:/master`, and returns it. Each
    /// message is found once, whatever the order; those that came before the call count.
    #[track_caller]
    pub fn wait_output(&self, contains: &str) -> String {
        let mut talk = lock(&self.talk);
        let end = Instant::now() + wait::LIMIT;
        loop {
            if let Some(found) = talk.events.iter().position(|event| event.contains(contains)) {
                return talk.events.remove(found);
            }
            talk.hear(end, &format!("the message {contains:?}"));
        }
    }

    /// Quits: the session is closed, its ephemeral znodes are gone when this returns.
    #[track_caller]
    pub fn close(self) {
        let mut talk = lock(&self.talk);
        talk.say("quit");
        talk.stdin = None;
        drop(talk);
        self.process.wait_exit(wait::LIMIT);
    }

    /// SIGKILL, as if the machine were gone: the session lives on until it expires.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for ZkCli {
    fn drop(&mut self) {
        self.process.kill_group(); // the script doesn't replace itself by Java
    }
}
