//! Makes a process by clone3(2): in a control group from its first moment, and, on x86-64, without a copy of our memory.
//!
//! A copy of the page tables, and of each page that we write to while the child has not become another program, costs more than
//! all else of a start. So the child works in our memory, on a stack of its own, while the calling thread waits, as in vfork(2)
//! and `posix_spawn(3)`; unless it is to be another user, who could look into our memory then (prctl(2), `PR_SET_DUMPABLE`).

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::ptr;

use rustix::process::Pid;

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

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child does. It makes system calls and nothing else: no lock, no memory of the heap.
type Child<'a> = &'a dyn Fn() -> Infallible;

/// Whose memory the child works in until it has become another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Ours, where we can do that.
    Shared,
    /// A copy.
    Own,
}

/// Starts `child` as a process of its own, with all signals blocked and none of our handlers, in a control group if there is one, whose
/// open folder that is. Where it works in our memory this returns when it has become another program, or has ended.
///
/// # Errors
/// Those of clone3(2): `ENOSYS` before Linux 5.3 and in containers that filter it, `EINVAL` before 5.5, and for a group before 5.7.
pub(crate) fn process(group: Option<&File>, memory: Memory, child: Child<'_>) -> io::Result<Pid> {
    let exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    let mut args = CloneArgs { flags: CLONE_CLEAR_SIGHAND, exit_signal, ..CloneArgs::default() };
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // A signal that ends the child before it is another program would be taken for one to the command.
    let before = set_signals(Signals::MAX);
    #[expect(unsafe_code, reason = "std knows none of the flags")]
    // SAFETY: the child never returns, and does what its type demands.
    let pid = unsafe {
        match memory {
            Memory::Shared => clone_here(&mut args, child),
            Memory::Own => clone_copy(&mut args, child),
        }
    };
    set_signals(before);
    let pid = i32::try_from(pid?).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

extern "C" fn begin(child: *const Child<'_>) -> ! {
    #[expect(unsafe_code, reason = "only a pointer gets through")]
    // SAFETY: it points to where the calling thread waits, or to a copy of that.
    let child = unsafe { *child };
    match child() {}
}

/// Enough for calls of the C library: `posix_spawn(3)` of glibc has half of it.
#[cfg(target_arch = "x86_64")]
const STACK: usize = 64 * 1024;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "see the only caller")]
unsafe fn clone_here(args: &mut CloneArgs, child: Child<'_>) -> io::Result<libc::c_long> {
    const CLONE_VM: u64 = 0x100;
    const CLONE_VFORK: u64 = 0x4000;
    // Aligned as the calling convention wants it. Nobody else knows of it, and it lives until the child has left it.
    let mut stack: Vec<MaybeUninit<u128>> = Vec::with_capacity(STACK / size_of::<u128>());
    args.flags |= CLONE_VM | CLONE_VFORK;
    args.stack = stack.as_mut_ptr().expose_provenance() as u64;
    args.stack_size = STACK as u64;
    let result: libc::c_long;
    // SAFETY: the child goes on behind the system call with our registers, but for the stack, and calls `begin`, which does not
    // return. We go on there when it has left our memory; it has written to its stack only, and to errno of this thread.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_mut(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") ptr::from_ref(&child),
            in("r13") begin as extern "C" fn(*const Child<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match i32::try_from(result) {
        Ok(error @ ..=-1) => Err(io::Error::from_raw_os_error(-error)),
        _ => Ok(result),
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "see the only caller")]
unsafe fn clone_here(args: &mut CloneArgs, child: Child<'_>) -> io::Result<libc::c_long> {
    // SAFETY: as demanded of us.
    unsafe { clone_copy(args, child) }
}

/// As fork(2) does it.
#[expect(unsafe_code, reason = "see the only caller")]
unsafe fn clone_copy(args: &mut CloneArgs, child: Child<'_>) -> io::Result<libc::c_long> {
    // SAFETY: the child has a stack as we have, and never returns from `begin`.
    match unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(args), size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => begin(&raw const child),
        pid => Ok(pid),
    }
}

/// The kernel's set of signals, all of them: also those that the C library keeps for itself, and that its own functions leave out.
type Signals = u64;

pub(crate) const NO_SIGNALS: Signals = 0;

/// Has these signals wait, of all that come to this thread; returns those that did before.
pub(crate) fn set_signals(mask: Signals) -> Signals {
    let mut before = 0;
    #[expect(unsafe_code, reason = "rustix has no rt_sigprocmask(2)")]
    // SAFETY: both sets are of this function, and as large as is said.
    unsafe {
        let (new, old): (*const Signals, *mut Signals) = (&raw const mask, &raw mut before);
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, size_of::<Signals>());
    }
    before
}
