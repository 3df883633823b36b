//! A tracer that cannot be kept waiting by the death of what it traces.
//!
//! A thread that executes a program waits until the other threads of its process are dead and
//! reaped, and holds a lock meanwhile that [`seize`](super::seize) of it waits for. Where those
//! others are traced, it is the tracer who reaps them: it would wait for itself, for ever.

use std::io;

/// How often the dead are reaped.
const INTERVAL_US: libc::suseconds_t = 5_000;

/// Reaps what this process traces, and its children, until it is dropped.
#[derive(Debug)]
pub struct Reaper(());

/// Reaps what dies of that which this process traces, in whatever system call it waits: by an
/// interval timer and its signal, SIGALRM, which nothing else here uses.
///
/// Who waits for one of them meanwhile may find that it is gone.
pub fn reap_meanwhile() -> io::Result<Reaper> {
    // SAFETY: zero is a value for all fields: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = reap as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler makes async-signal-safe calls only, and keeps errno.
    check(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) })?;
    set_blocked(libc::SIG_UNBLOCK)?;
    let reaper = Reaper(());
    set_timer(INTERVAL_US)?;
    Ok(reaper)
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let _ = set_timer(0);
        let _ = set_blocked(libc::SIG_BLOCK);
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { libc::signal(libc::SIGALRM, libc::SIG_DFL) };
    }
}

extern "C" fn reap(_signal: libc::c_int) {
    // SAFETY: errno is this thread's own; `info` is valid for writes, and zero is a value of it.
    unsafe {
        let errno = *libc::__errno_location();
        loop {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let how = libc::WEXITED | libc::WNOHANG | libc::__WALL;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, how) != 0 || info.si_pid() == 0 {
                break;
            }
        }
        *libc::__errno_location() = errno;
    }
}

fn set_timer(every_us: libc::suseconds_t) -> io::Result<()> {
    let time = libc::timeval { tv_sec: 0, tv_usec: every_us };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: one `itimerval` is read.
    check(unsafe {
        libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, 0) as libc::c_int
    })
}

fn set_blocked(how: libc::c_int) -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    check(unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::sigprocmask(how, &raw const set, std::ptr::null_mut())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
