//! How a task's command is called: its shell, its standard streams, its environment. Nothing of the worker itself gets
//! into it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::LazyLock;

use rustix::fs::Mode;
use rustix::process::umask;

use crate::identity::Identity;
use crate::jobs::Start;
use crate::leftovers;
use crate::output::Folder;
use crate::spawn::Spawn;

/// Linux takes no longer argument (`MAX_ARG_STRLEN`, execve(2)), with the NUL at its end: the shell reads a longer command
/// from a file.
const LONGEST_ARGUMENT: usize = 128 * 1024;

/// `/bin/sh -c COMMAND` in its folder.
pub(crate) fn command(start: &Start<'_>, folder: &Folder, run_as: Option<&Identity>) -> io::Result<Spawn> {
    let mut command = Command::new("/bin/sh");
    if start.task.command.len() < LONGEST_ARGUMENT {
        command.arg("-c").arg(&start.task.command);
    } else {
        command.arg(folder.write_command(&start.task.command)?);
    }
    command.current_dir(&folder.files);
    command.env_clear().envs(INHERITED.iter().map(|(key, value)| (key, value)));
    if let Some(identity) = run_as {
        identity.introduce(&mut command);
    }
    if let Some(meta) = &start.task.meta {
        for (key, value) in &meta.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return Err(io::Error::other(format!("{key:?} is no environment variable")));
            }
        }
        command.envs(&meta.env);
        if let Some(cwd) = &meta.cwd {
            if !Path::new(cwd).is_dir() {
                return Err(io::Error::other("that is not a directory here"));
            }
            command.current_dir(cwd);
        }
    }
    command.env(leftovers::FOLDER, &folder.path);
    command.env("ZK_TASK", start.name.to_string());
    command.env("ZK_TASK_ATTEMPT", start.attempt.to_string());
    command.env("ZK_TASK_FENCE", start.fence.to_string());
    let stdin = match start.task.meta.as_ref().and_then(|meta| meta.stdin.as_ref()) {
        // From a file, so that nobody has to write to a pipe that nobody may read.
        Some(stdin) => folder.write_stdin(&stdin.0)?,
        None => File::open("/dev/null")?,
    };
    let (stdout, stderr) = folder.streams()?;
    let mut spawn = Spawn::new(command, [stdin, stdout, stderr]);
    spawn.then(begin_afresh());
    Ok(spawn)
}

/// What of the worker's environment its tasks have. Nothing changes that while the worker runs.
static INHERITED: LazyLock<Vec<(OsString, OsString)>> =
    LazyLock::new(|| std::env::vars_os().filter(|(key, _)| is_inherited(key)).collect());

/// What systemd tells a service about itself (`systemd.exec(5)`, `sd_notify(3)`, `sd_listen_fds(3)`): a task is not that
/// service.
const SERVICE: [&str; 17] = [
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Whether a variable of the worker's environment is one of its tasks', too: all but the worker's own settings, among them
/// `ZK_AUTH`, and what is about its process.
fn is_inherited(key: &OsStr) -> bool {
    let key = key.to_string_lossy();
    let own = ["ZK_", "RUST_LOG", "RUST_BACKTRACE"].iter().any(|prefix| key.starts_with(prefix));
    !own && !SERVICE.contains(&&*key)
}

/// Linux has signals up to this number (signal(7)).
const LAST_SIGNAL: i32 = 64;

/// The signals that the worker ignores, the lowest bit for signal 1 (proc(5), `SigIgn`): all of them where that cannot be known.
/// Whoever started it has chosen them, and Rust before `main`.
static IGNORED: LazyLock<u64> = LazyLock::new(|| {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|ignored| u64::from_str_radix(ignored.trim(), 16).ok()).unwrap_or(u64::MAX)
});

/// What has a command begin like one of a new login, whoever started the worker and how: no signal is ignored (none is blocked
/// either), files can be read by others, no descriptor is open but the standard streams.
pub(crate) fn begin_afresh() -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
    let ignored = *IGNORED;
    move || {
        umask(Mode::WGRP | Mode::WOTH);
        // The kernel's struct sigaction, which has no more than that anywhere: SIG_DFL, no flags, nothing blocked.
        let default = [0_u64; 8];
        for signal in (1..=LAST_SIGNAL).filter(|signal| ignored >> (signal - 1) & 1 == 1) {
            #[expect(unsafe_code, reason = "rustix has no rt_sigaction(2), and signal(3) may take a lock")]
            // SAFETY: no handler is installed. It fails for signals that cannot be ignored.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    default.as_ptr(),
                    ptr::null_mut::<u64>(),
                    size_of::<u64>(),
                );
            }
        }
        #[expect(unsafe_code, reason = "rustix has no close_range(2)")]
        // SAFETY: no descriptor is closed before exec, which those of this process rely on. A kernel before 5.11 refuses, and
        // what the worker itself has inherited stays open; what it has opened is closed in any case.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_inherits_the_environment_but_for_what_is_about_the_worker() {
        for kept in ["PATH", "HOME", "LANG", "ZKX", "LISTEN", "AWS_REGION"] {
            assert!(is_inherited(OsStr::new(kept)), "{kept}");
        }
        for own in ["ZK_AUTH", "ZK_CONNECT", "RUST_LOG", "RUST_LOG_STYLE", "NOTIFY_SOCKET", "LISTEN_FDS"] {
            assert!(!is_inherited(OsStr::new(own)), "{own}");
        }
    }
}
