//! Signals of a process that serves: all blocked, read from a descriptor.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks every signal that can be blocked and gives a non-blocking descriptor that becomes
/// readable when a child changes state.
///
/// See [signalfd(2)](https://man7.org/linux/man-pages/man2/signalfd.2.html).
pub fn child_events() -> io::Result<OwnedFd> {
    set_blocked(true)?;
    let mut mask = empty_set();
    // SAFETY: `mask` is an initialised signal set.
    unsafe { libc::sigaddset(&raw mut mask, libc::SIGCHLD) };
    // SAFETY: `mask` is an initialised signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const mask, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks all signals, or none.
pub fn set_blocked(blocked: bool) -> io::Result<()> {
    let mut set = empty_set();
    if blocked {
        // SAFETY: `set` is an initialised signal set.
        unsafe { libc::sigfillset(&raw mut set) };
    }
    // SAFETY: `set` is initialised; no old set is asked for.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets every signal to its default action, ignored ones too.
///
/// Ignored signals are inherited through exec: a program started under `nohup`, or by a Rust
/// program that ignores SIGPIPE, would hand that on to everything it starts.
pub fn set_all_default() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours; SIGKILL, SIGSTOP and the two that libc keeps
        // for itself are refused with EINVAL, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sets every signal to its default action, with no flags: as exec(2) leaves those that were
/// caught, and so that forks of this process tell nothing of its own handlers.
pub fn forget_actions() {
    // `struct kernel_sigaction`: handler, flags, restorer, mask.
    let none = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads one structure; SIG_DFL runs no code of ours. SIGKILL and
        // SIGSTOP are refused with EINVAL.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, none.as_ptr(), 0, size_of::<u64>());
        }
    }
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain bits; sigemptyset initialises all of it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}
