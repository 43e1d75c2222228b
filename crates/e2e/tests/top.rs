//! `zk-client top` at a real terminal: tmux is the terminal.

mod common;

use std::{path::Path, process::Command};

use common::{Bench, SECOND, well};
use e2e::{Server, wait_for};

/// A window of a tmux server of its own in which a shell runs the client and then says how it ended.
struct Window {
    socket: String,
}

impl Window {
    #[track_caller]
    fn open(bench: &Bench, environment: &str, command: &str) -> Window {
        let window = Window { socket: bench.path(&format!("tmux{environment}")).display().to_string() };
        // Beside the folder of this test.
        let own = std::env::current_exe().expect("a program has a path");
        let client = own.parent().and_then(Path::parent).expect("it is in target/debug/deps").join("zk-client");
        let shell = format!(
            "{environment} {} --zk {} {command}; echo ended with $?; stty -a | grep -o -- '-\\?icanon'; sleep 600",
            client.display(),
            bench.zk
        );
        window.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "24", &shell]);
        window
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").args(["-S", &self.socket]).args(args).output().expect("tmux is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn shows(&self, texts: &[&str]) {
        wait_for(&format!("{texts:?} on the screen"), || {
            let screen = self.screen();
            if texts.iter().all(|text| screen.contains(text)) { Ok(()) } else { Err(screen) }
        });
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn installed() -> bool {
    Command::new("tmux").arg("-V").output().is_ok()
}

#[test]
fn the_screen_follows_the_cluster() {
    if !installed() {
        return;
    }
    let bench = Bench::shared("top");
    let window = Window::open(&bench, "", "top");
    window.shows(&["none: nothing is assigned", "q quits"]);
    let master = bench.master("m1:2223").start();
    window.shows(&["primary m1:2223", "workers 0"]);
    let standby = bench.master("m2:2223").start();
    window.shows(&["standby m2:2223"]);
    let worker = bench.worker("w1").start();
    window.shows(&["w1", "0/2", "workers 1, running 0 of 2"]);
    bench.tree.submit(&bench.gate("gate"));
    window.shows(&["running 1 of 2", "█████·····"]);
    let failed = bench.tree.submit("exit 7");
    window.shows(&["failed 1", &failed.to_string(), "exit 7", "running 1 "]);
    bench.open("gate");
    window.shows(&["running 0 of 2", "done 1"]);
    assert_eq!(bench.client().args(["drain", "w1"]).start().wait_exit(30 * SECOND).code(), Some(0));
    window.shows(&["drained"]);
    window.tmux(&["send-keys", "q"]);
    // What was on the terminal before is there again, and it has lines again.
    window.shows(&["ended with 0", "\nicanon"]);
    assert!(!window.screen().contains("primary"));
    well(&[&master, &standby, &worker]);
}

#[test]
fn ctrl_c_leaves_the_terminal_as_it_was() {
    if !installed() {
        return;
    }
    let bench = Bench::shared("top-ctrl-c");
    let window = Window::open(&bench, "NO_COLOR=1", "top");
    window.shows(&["q quits"]);
    window.tmux(&["send-keys", "C-c"]);
    window.shows(&["ended with 0", "\nicanon"]);
}

/// A finished task never changes: it is read once, and one that is new is no reason to read the others again.
#[test]
fn what_has_ended_is_read_once() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let bench = Bench::at(server.chroot("top-many"));
    bench.tree.make(&["/tasks", "/workers", "/assign"]);
    let finish = || {
        let task = bench.tree.submit("x");
        bench.tree.create(&format!("/tasks/{task}/status"), "done");
    };
    (0..300).for_each(|_| finish());
    let window = Window::open(&bench, "", "top");
    window.shows(&["done 300"]);
    let requests = || {
        let answer = server.four_letter("mntr").expect("it serves");
        let count = answer.lines().find_map(|line| line.strip_prefix("zk_packets_received"));
        count.and_then(|count| count.trim().parse::<u64>().ok()).expect("it counts")
    };
    let before = requests();
    finish();
    window.shows(&["done 301"]);
    let asked = requests() - before;
    assert!(asked < 100, "{asked} requests for one task");
}

#[test]
fn a_terminal_has_colours_unless_the_user_wants_none() {
    if !installed() {
        return;
    }
    let bench = Bench::shared("colours");
    bench.tree.make(&["/tasks"]);
    let task = bench.tree.submit("x");
    bench.tree.create(&format!("/tasks/{task}/status"), "failed");
    for (environment, coloured) in [("", true), ("NO_COLOR=1", false), ("CLICOLOR=0", false)] {
        let window = Window::open(&bench, environment, "list");
        window.shows(&["ended with 0"]);
        let screen = window.tmux(&["capture-pane", "-e", "-p"]);
        assert_eq!(screen.contains("\u{1b}[31mfailed"), coloured, "{environment}: {screen:?}");
    }
    let piped = bench.client().arg("list").start();
    piped.wait_exit(30 * SECOND);
    assert!(piped.stdout().contains("failed") && !piped.stdout().contains('\u{1b}'), "{}", piped.stdout());
}

#[test]
fn without_a_terminal_it_says_so() {
    let bench = Bench::shared("top-none");
    let client = bench.client().arg("top").start();
    assert_eq!(client.wait_exit(30 * SECOND).code(), Some(125));
    assert_eq!(client.stdout(), "");
    assert_eq!(client.stderr().lines().count(), 1);
    assert!(client.stderr().contains("no terminal"), "{}", client.stderr());
}
