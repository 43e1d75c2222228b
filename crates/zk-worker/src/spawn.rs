//! Starts a command, in a control group where there is one: the process is born there ([`clone`]).
//!
//! std copies our page tables where a process has to do something before it becomes the command, and knows only processes that
//! enter a group by themselves. The write that does that waits until all processors have been through the kernel's scheduler,
//! some 8 ms, and whoever starts the process waits with it. So std's way is gone only where the other does not work ([`works`]):
//! before Linux 5.7, in containers that filter clone3, and on some kernels when the group of the caller was once killed as a
//! whole (they take each process born in a younger group for one of those to be killed).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use rustix::process::{Pid, WaitOptions, waitpid};
use zk_guard::Cgroup;

use crate::clone::{self, Memory};
use crate::command::begin_afresh;

/// What a process does to itself before it becomes the command. Between fork and exec: it makes system calls and nothing else.
type Step = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A command that is about to be started.
pub(crate) struct Spawn {
    /// Program, by its whole path; arguments; environment, which is all of it; directory.
    pub(crate) command: Command,
    /// Standard input, output and error.
    pub(crate) stdio: [File; 3],
    steps: Vec<Step>,
    memory: Memory,
}

impl Spawn {
    pub(crate) fn new(command: Command, stdio: [File; 3]) -> Self {
        Spawn { command, stdio, steps: Vec::new(), memory: Memory::Shared }
    }

    /// One more step, after those that were given before.
    pub(crate) fn then(&mut self, step: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        self.steps.push(Box::new(step));
    }

    /// One of its steps makes it another user.
    pub(crate) fn apart(&mut self) {
        self.memory = Memory::Own;
    }

    /// Starts it as the leader of a process group, in a control group if there is one. `cloned` says whether [`works`] was true of
    /// such groups.
    ///
    /// # Errors
    /// Those of a step, or of execve(2).
    pub(crate) fn spawn(self, group: Option<&Cgroup>, cloned: bool) -> io::Result<Pid> {
        match cloned {
            true => self.spawn_cloned(group),
            false => self.spawn_and_enter(group),
        }
    }

    fn spawn_and_enter(self, group: Option<&Cgroup>) -> io::Result<Pid> {
        let Spawn { mut command, stdio: [stdin, stdout, stderr], steps, .. } = self;
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

    fn spawn_cloned(&self, group: Option<&Cgroup>) -> io::Result<Pid> {
        let image = Image::of(&self.command)?;
        let group = group.map(|group| File::open(group.path())).transpose()?;
        let (mut why, fails) = io::pipe()?;
        let pid = clone::process(group.as_ref(), self.memory, &|| {
            let Err(error) = self.become_it(&image);
            let code = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
            rustix::io::write(&fails, &code).ok(); // nobody is there to be told
            #[expect(unsafe_code, reason = "nothing of the parent may run at the end of the child")]
            // SAFETY: it ends the process, without its exit handlers.
            unsafe {
                libc::_exit(127)
            }
        })?;
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
    fn become_it(&self, image: &Image) -> io::Result<Infallible> {
        let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        #[expect(unsafe_code, reason = "std cannot do this in a child that it has not made")]
        // SAFETY: all pointers are to arrays and strings of `image` that end as execve(2) wants.
        unsafe {
            // None is in the way of another: Rust has something open at the numbers of the standard streams from the start.
            for (number, file) in (0..).zip(&self.stdio) {
                check(libc::dup2(file.as_raw_fd(), number))?;
            }
            check(libc::chdir(image.dir.as_ptr()))?;
            check(libc::setpgid(0, 0))?;
            // In this order: with signals comes what the steps make of them.
            self.steps.iter().try_for_each(|step| step())?;
            clone::set_signals(clone::NO_SIGNALS);
            libc::execve(image.program.as_ptr(), image.args.pointers.as_ptr(), image.env.pointers.as_ptr());
        }
        Err(io::Error::last_os_error())
    }
}

/// Whether processes can be made by clone3(2), and in groups below this one if there is one: tries it. Must be called before
/// anybody else reaps.
pub(crate) fn works(all: Option<&Cgroup>) -> bool {
    let tried = || -> io::Result<bool> {
        let null = || File::options().read(true).write(true).open("/dev/null");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ":"]).env_clear();
        let group = all.map(|all| all.child("trial")).transpose()?;
        let mut spawn = Spawn::new(command, [null()?, null()?, null()?]);
        spawn.then(begin_afresh());
        let pid = spawn.spawn_cloned(group.as_ref());
        let ended = pid.and_then(|pid| Ok(waitpid(Some(pid), WaitOptions::empty())?));
        group.iter().for_each(Cgroup::remove);
        Ok(ended?.and_then(|(_, status)| status.exit_status()) == Some(0))
    };
    let works = tried();
    log::debug!("tasks are made by clone3, in their control groups: {works:?}");
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
        let env =
            command.get_envs().filter_map(|(key, value)| Some([key.as_bytes(), b"=", value?.as_bytes()].concat()));
        let env = env.map(CString::new).collect::<Result<_, _>>()?;
        let dir = command.get_current_dir().map_or(&b"."[..], |dir| dir.as_os_str().as_bytes());
        Ok(Image { program, args: Strings::new(args), env: Strings::new(env), dir: CString::new(dir)? })
    }
}
