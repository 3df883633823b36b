//! A tracer that cannot be kept waiting by the death of what it traces.
//!
//! A thread that executes a program waits until the other threads of its process are dead and
//! reaped, and holds a lock meanwhile that [`seize`](super::seize) of it waits for. Where those
//! others are traced, it is the tracer who reaps them: it would wait for itself, for ever.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::Tid;

/// How many threads can be watched: as many as a sandbox can have ids, and more than it is given.
const MOST: usize = 1 << 16;

/// Threads to look after, for a signal handler, which can reach nothing else. Only as much of it
/// is memory as is used.
static TIDS: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How often the dead are reaped.
const INTERVAL_US: libc::suseconds_t = 5_000;

/// Reaps threads until it is dropped. There can be one in a process at a time.
#[derive(Debug)]
pub struct Reaper(());

impl Reaper {
    /// Reaps this thread when it is dead, whatever call this process is in. Who waits for it may
    /// find that it is gone.
    ///
    /// # Errors
    /// `ENOSPC` when there are too many.
    pub fn watch(&self, tid: Tid) -> io::Result<()> {
        let count = COUNT.load(Ordering::Relaxed);
        let place = TIDS.get(count).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        place.store(tid.as_raw_nonzero().get(), Ordering::Relaxed);
        COUNT.store(count + 1, Ordering::Release);
        Ok(())
    }
}

/// Begins to reap, by an interval timer and its signal, SIGALRM, which nothing else here uses.
pub fn reap_meanwhile() -> io::Result<Reaper> {
    // SAFETY: zero is a value for all fields: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = reap as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler makes async-signal-safe calls only, and keeps errno.
    check(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) })?;
    set_blocked(libc::SIG_UNBLOCK)?;
    COUNT.store(0, Ordering::Release);
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
    let tids = TIDS.iter().take(COUNT.load(Ordering::Acquire));
    // SAFETY: errno is this thread's own; `info` is valid for writes, and zero is a value of it.
    unsafe {
        let errno = *libc::__errno_location();
        for tid in tids {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let tid = tid.load(Ordering::Relaxed) as libc::id_t;
            let how = libc::WEXITED | libc::WNOHANG | libc::__WALL;
            // Waiting for an end takes a stop as well, which is to be left to others.
            let found = libc::waitid(libc::P_PID, tid, &raw mut info, how | libc::WNOWAIT);
            let ends = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
            if found == 0 && info.si_pid() != 0 && ends.contains(&info.si_code) {
                libc::waitid(libc::P_PID, tid, &raw mut info, how);
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
