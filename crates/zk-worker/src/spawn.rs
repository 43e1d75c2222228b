//! Starts a command, in a control group where there is one: the process is born there, by clone3(2) with `CLONE_INTO_CGROUP`.
//!
//! std knows only processes that enter a group by themselves, and the write that does that waits until all processors have been
//! through the kernel's scheduler, some 8 ms, and whoever starts the process waits with it. So it is done like that only where
//! the other way does not work ([`works_in`]): before Linux 5.7, in containers that filter clone3, and on some kernels when the
//! group of the caller was once killed as a whole (they take each process born in a younger group for one of those to be killed).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, WaitOptions, waitpid};
use zk_guard::Cgroup;

/// What a process does to itself before it becomes the command. Between fork and exec: it makes system calls and nothing else.
type Step = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A command that is about to be started.
pub(crate) struct Spawn {
    /// Program, by its whole path; arguments; environment; directory.
    pub(crate) command: Command,
    /// Standard input, output and error.
    pub(crate) stdio: [File; 3],
    steps: Vec<Step>,
}

/// The argument of clone3(2), `struct clone_args` in its second version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Clone3(2).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

impl Spawn {
    pub(crate) fn new(command: Command, stdio: [File; 3]) -> Self {
        Spawn { command, stdio, steps: Vec::new() }
    }

    /// One more step, after those that were given before.
    pub(crate) fn then(&mut self, step: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        self.steps.push(Box::new(step));
    }

    /// Starts it as the leader of a process group. `born_there` says whether [`works_in`] was true of such groups.
    ///
    /// # Errors
    /// Those of a step, or of execve(2).
    pub(crate) fn spawn(self, group: Option<&Cgroup>, born_there: bool) -> io::Result<Pid> {
        match group {
            Some(group) if born_there => self.spawn_in(group),
            _ => self.spawn_and_enter(group),
        }
    }

    fn spawn_and_enter(self, group: Option<&Cgroup>) -> io::Result<Pid> {
        let Spawn { mut command, stdio: [stdin, stdout, stderr], steps } = self;
        command.stdin(stdin).stdout(stdout).stderr(stderr).process_group(0);
        // First: the user that it becomes may not enter the group.
        group.map(|group| group.enter(&mut command)).transpose()?;
        #[expect(unsafe_code, reason = "only the child itself can take these steps")]
        // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken.
        unsafe {
            command.pre_exec(move || steps.iter().try_for_each(|step| step()));
        }
        Ok(Pid::from_child(&command.spawn()?))
    }

    fn spawn_in(&self, group: &Cgroup) -> io::Result<Pid> {
        let image = Image::of(&self.command)?;
        let group = File::open(group.path())?;
        // Beside the numbers that they are to have: one may be in the way of another.
        let [stdin, stdout, stderr] = &self.stdio;
        let aside = |file: &File| fcntl_dupfd_cloexec(file, 3);
        let stdio = [aside(stdin)?, aside(stdout)?, aside(stderr)?];
        let (mut why, fails) = io::pipe()?;
        let args = CloneArgs {
            flags: CLONE_INTO_CGROUP,
            exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
            cgroup: u64::from(group.as_raw_fd().unsigned_abs()),
            ..CloneArgs::default()
        };
        #[expect(unsafe_code, reason = "std cannot start a process in a control group")]
        // SAFETY: the child has a copy of all memory, as after fork(2), and goes on with `become_it`, which makes only system
        // calls, allocates nothing, takes no lock, and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if pid == 0 {
            let Err(error) = self.become_it(&image, &stdio);
            let code = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
            rustix::io::write(&fails, &code).ok(); // nobody is there to be told
            #[expect(unsafe_code, reason = "nothing of the parent may run at the end of the child")]
            // SAFETY: it ends the process, without its exit handlers.
            unsafe {
                libc::_exit(127)
            }
        }
        let pid = i32::try_from(pid).ok().and_then(|pid| if pid > 0 { Pid::from_raw(pid) } else { None });
        let pid = pid.ok_or_else(io::Error::last_os_error)?;
        drop(fails);
        let mut code = [0; 4];
        match why.read_exact(&mut code) {
            // Closed by execve.
            Err(_) => Ok(pid),
            Ok(()) => {
                waitpid(Some(pid), WaitOptions::empty()).ok(); // it has nothing else to do than to end
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code)))
            }
        }
    }

    /// As the child: becomes the command.
    fn become_it(&self, image: &Image, stdio: &[OwnedFd; 3]) -> io::Result<Infallible> {
        let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        #[expect(unsafe_code, reason = "std cannot do this in a child that it has not made")]
        // SAFETY: all pointers are to arrays and strings of `image` that end as execve(2) wants, and to a set of signals.
        unsafe {
            for (number, file) in (0..).zip(stdio) {
                check(libc::dup2(file.as_raw_fd(), number))?;
            }
            check(libc::chdir(image.dir.as_ptr()))?;
            check(libc::setpgid(0, 0))?;
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))?;
            self.steps.iter().try_for_each(|step| step())?;
            libc::execve(image.program.as_ptr(), image.args.pointers.as_ptr(), image.env.pointers.as_ptr());
        }
        Err(io::Error::last_os_error())
    }
}

/// Whether processes can be born in a group below this one: tries it. Must be called before anybody else reaps.
pub(crate) fn works_in(all: &Cgroup) -> bool {
    let tried = || -> io::Result<bool> {
        let null = || File::options().read(true).write(true).open("/dev/null");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ":"]);
        let group = all.child("trial")?;
        let pid = Spawn::new(command, [null()?, null()?, null()?]).spawn_in(&group);
        let ended = pid.and_then(|pid| Ok(waitpid(Some(pid), WaitOptions::empty())?));
        group.remove();
        Ok(ended?.and_then(|(_, status)| status.exit_status()) == Some(0))
    };
    let works = tried();
    log::debug!("tasks are born in their control groups: {works:?}");
    works.unwrap_or(false)
}

/// A command as execve(2) wants it.
struct Image {
    program: CString,
    args: Strings,
    env: Strings,
    dir: CString,
}

/// Pointers to strings, and a null after the last.
struct Strings {
    pointers: Vec<*const libc::c_char>,
    /// What they point to.
    _strings: Vec<CString>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Strings { pointers, _strings: strings }
    }
}

impl Image {
    fn of(command: &Command) -> io::Result<Self> {
        let program = CString::new(command.get_program().as_bytes())?;
        let args = command.get_args().map(|arg| CString::new(arg.as_bytes()));
        let args = std::iter::once(Ok(program.clone())).chain(args).collect::<Result<_, _>>()?;
        let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => _ = env.insert(key.to_owned(), value.to_owned()),
                None => _ = env.remove(key),
            }
        }
        let variable =
            |(key, value): (OsString, OsString)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat());
        let env = env.into_iter().map(variable).collect::<Result<_, _>>()?;
        let dir = command.get_current_dir().map_or(&b"."[..], |dir| dir.as_os_str().as_bytes());
        Ok(Image { program, args: Strings::new(args), env: Strings::new(env), dir: CString::new(dir)? })
    }
}
