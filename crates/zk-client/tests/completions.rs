//! The completion scripts in the real shells.

mod common;

use std::path::Path;
use std::process::Command;

use common::{CLIENT, Tree};

/// Two tasks, two workers (one of them only as a desk), and a shell that knows the script.
struct Typist {
    tree: Tree,
    shell: &'static str,
}

#[expect(clippy::print_stderr, reason = "whoever runs the tests is to know what they did not test")]
fn skipped(shell: &str) {
    eprintln!("skipped: {shell} is not installed (apt-get install {shell})");
}

impl Typist {
    /// Nothing where that shell is not installed.
    fn at(shell: &'static str) -> Option<Typist> {
        if Command::new(shell).args(["-c", "true"]).output().is_err() {
            skipped(shell);
            return None;
        }
        let tree = Tree::new("completions");
        tree.task("x");
        tree.task("y");
        tree.worker("worker1");
        tree.create("/assign/drained", "");
        Some(Typist { tree, shell })
    }

    /// What a script of that shell prints, with the completions sourced before; sorted.
    #[track_caller]
    fn lines(&self, env: &[(&str, &str)], script: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        std::fs::write(file.path(), self.tree.prints(&["completions", self.shell], 0)).expect("it can be written");
        let folder = Path::new(CLIENT).parent().expect("it is in a folder").display();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(self.shell);
        command.env_remove("ZK_CONNECT").env("PATH", path).envs(env.iter().copied()).env("SCRIPT", file.path());
        let output = command.args(["-c", script]).output().expect("it is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&output.stderr), "", "{script}");
        let mut lines: Vec<String> = text(&output.stdout).lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    }

    /// The names for a line, in the environment of the tree and with the tree named on the line.
    #[track_caller]
    fn completes(&self, line: &str, expected: &[&str], script: impl Fn(&str) -> String) {
        assert_eq!(self.lines(&[("ZK_CONNECT", &self.tree.zk)], &script(line)), expected, "{line}");
        let named = line.replacen("zk-client ", &format!("zk-client --zk {} ", self.tree.zk), 1);
        assert_eq!(self.lines(&[], &script(&named)), expected, "{named}");
    }
}

const LINES: [(&str, &[&str]); 6] = [
    ("zk-client show ", &["task-0000000000", "task-0000000001"]),
    ("zk-client wait task-0000000000 task-00000000", &["task-0000000000", "task-0000000001"]),
    ("zk-client drain w", &["worker1"]),
    ("zk-client undrain ", &["drained", "worker1"]),
    ("zk-client run --on ", &["drained", "worker1"]),
    ("zk-client submit --after task-0000000001", &["task-0000000001"]),
];

#[test]
fn bash_completes_names() {
    let Some(typist) = Typist::at("bash") else { return };
    // As readline does it: with its default word breaks a connect string is several words.
    let script = |line: &str| {
        let words = line.replace(':', " : ");
        let last = if line.ends_with(' ') { " ''" } else { "" };
        format!(
            "source $SCRIPT; COMP_LINE='{line}'; COMP_WORDS=({words}{last}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _zk_client_or_names zk-client \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
    };
    for (line, expected) in LINES {
        typist.completes(line, expected, script);
    }
    let commands = typist.lines(&[], &script("zk-client und"));
    assert_eq!(commands, ["undrain"]);
}

#[test]
fn fish_completes_names() {
    let Some(typist) = Typist::at("fish") else { return };
    let script = |line: &str| format!("source $SCRIPT; complete -C '{line}' | string replace -r '\\t.*' ''");
    for (line, expected) in LINES {
        typist.completes(line, expected, script);
    }
    assert_eq!(typist.lines(&[], &script("zk-client und")), ["undrain"]);
}

/// zsh completes only at a terminal. What its own machinery calls is called here, with what that would give.
#[test]
fn zsh_completes_names() {
    let Some(typist) = Typist::at("zsh") else { return };
    let script = |line: &str| {
        let kind = if ["drain", "--on"].iter().any(|place| line.contains(place)) { "workers" } else { "tasks" };
        format!(
            "compdef() {{ }}; compadd() {{ print -l -- ${{(P)@[-1]}} }}; source $SCRIPT; words=({line}); \
             whence -w _zk-client > /dev/null && _zk_client_names {kind} -J names"
        )
    };
    typist.completes("zk-client show ", &["task-0000000000", "task-0000000001"], script);
    typist.completes("zk-client run --on ", &["drained", "worker1"], script);
}
