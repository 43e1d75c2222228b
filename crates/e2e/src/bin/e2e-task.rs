//! The command of a task that leaves evidence (`e2e::evidence` reads it): `e2e-task FILE MILLISECONDS [EXIT CODE]` appends to
//! a file that it starts, every few milliseconds that it lives, and that it ends. Without an exit code it only lives: it is
//! some child of the task's command.

use std::{
    env,
    fs::File,
    io::{Error, Write as _},
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// Between two signs of life: how long an overlap must last to be seen.
const BEAT: Duration = Duration::from_millis(10);

fn main() -> Result<ExitCode, Error> {
    let mut args = env::args().skip(1);
    let usage = || Error::other("usage: e2e-task FILE MILLISECONDS [EXIT CODE]");
    let mut file = File::options().append(true).open(args.next().ok_or_else(usage)?)?;
    let end = args.next().and_then(|ms| ms.parse().ok()).map(Duration::from_millis).ok_or_else(usage)?;
    let code: Option<u8> = args.next().map(|code| code.parse().map_err(|_| usage())).transpose()?;

    let began = Instant::now();
    let var = |name| env::var(name).unwrap_or_else(|_| "-".to_owned());
    let who = ["ZK_TASK", "ZK_TASK_ATTEMPT", "ZK_TASK_FENCE", "E2E_HOST"].map(var).join(" ");
    let pid = std::process::id();
    // One write is one append: lines of different processes stand in the order in which they were written.
    let mut say = |word: &str| file.write_all(format!("{who} {word} {} {pid}\n", monotonic_ns()).as_bytes());
    if code.is_some() {
        say("start")?;
    }
    let (_never, pause) = mpsc::channel::<()>();
    while began.elapsed() < end {
        say("beat")?;
        pause.recv_timeout(BEAT).ok();
    }
    if let Some(code) = code {
        say(&format!("end={code}"))?;
    }
    Ok(ExitCode::from(code.unwrap_or(0)))
}

fn monotonic_ns() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
