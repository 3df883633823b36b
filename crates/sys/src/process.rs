//! Processes: fork by `clone3`, `execve`, identity and descriptors of a child.

use std::ffi::{CStr, CString};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Gid, Pid, Uid};

/// Proof that this process had one thread when it was asked.
///
/// A fork copies only the calling thread, so a lock that another thread holds stays held in the
/// child for ever. The spawner and init make one of these at their start and never start a thread.
#[derive(Debug)]
pub struct SingleThreaded {
    not_send: PhantomData<*const ()>,
}

impl SingleThreaded {
    /// Counts this process's threads in `/proc/self/task`.
    ///
    /// # Errors
    /// `EBUSY` when there is more than one, or what reading the directory gave.
    pub fn prove() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self { not_send: PhantomData })
        } else {
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        }
    }
}

/// Namespaces of its own that a child starts with, as `clone3` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneFlags(u64);

impl CloneFlags {
    /// `CLONE_NEWUSER`
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// `CLONE_NEWNS`
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// `CLONE_NEWPID`
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// `CLONE_NEWNET`
    pub const NET: Self = Self(libc::CLONE_NEWNET as u64);
    /// `CLONE_NEWIPC`
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// `CLONE_NEWUTS`
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// From `linux/sched.h`; the one in `libc` does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process of this one.
#[derive(Debug)]
pub struct Child {
    /// Its process id in this process's pid namespace.
    pub pid: Pid,
    /// Refers to it for good, even when its id is used again. Closed on exec.
    pub pidfd: OwnedFd,
}

/// Forks this process: `child` runs in the copy, which exits with what it returns.
///
/// A panic in `child` ends the copy with status 101. See
/// [clone3(2)](https://man7.org/linux/man-pages/man2/clone.2.html).
///
/// # Errors
/// What `clone3` gave: `EAGAIN` at a limit on processes, `ENOSPC` at one on namespaces, `EPERM`
/// where user namespaces are forbidden.
pub fn fork(
    _proof: &SingleThreaded,
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(SingleThreaded) -> i32,
) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: every field of clone_args is an integer; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.0 | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child is a copy that shares no memory, and it runs on its own
    // copy of this stack. This process has one thread, so no lock is held by anyone else. `args`
    // and `pidfd` live until the call returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let proof = SingleThreaded { not_send: PhantomData };
            let status = catch_unwind(AssertUnwindSafe(|| child(proof))).unwrap_or(101);
            exit_now(status)
        }
        pid => {
            let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?;
            // SAFETY: clone3 succeeded, so it stored a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
    }
}

/// As [`fork`], but the child has the process id `pid` in the namespace of this process, for which
/// this process needs `CAP_CHECKPOINT_RESTORE` over it.
///
/// # Errors
/// `EEXIST` where a process has that id.
pub fn fork_as(
    _proof: &SingleThreaded,
    pid: u32,
    child: impl FnOnce(SingleThreaded) -> i32,
) -> io::Result<()> {
    let ids = [pid.cast_signed()];
    // SAFETY: every field of clone_args is an integer; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = ids.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: as in `fork`; `ids` lives until the call returns.
    let made = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    };
    match made {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let proof = SingleThreaded { not_send: PhantomData };
            let status = catch_unwind(AssertUnwindSafe(|| child(proof))).unwrap_or(101);
            exit_now(status)
        }
        _ => Ok(()),
    }
}

/// Ends this process at once: no destructors, no `atexit`.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Replaces this process's program; returns only when that failed.
///
/// `argv` must not be empty. See [execve(2)](https://man7.org/linux/man-pages/man2/execve.2.html).
pub fn execve(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let mut pointers: Vec<*const libc::c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: the three point to NUL-terminated strings, and the arrays end with a null pointer;
    // all outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Puts descriptors at given numbers, inherited by exec; whatever was there is closed.
///
/// For a child between fork and exec. Sources stay as they are.
pub fn place_fds(fds: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<()> {
    // First out of the way of all targets, so that no source is overwritten before its turn.
    let above = fds.iter().map(|&(_, target)| target).max().unwrap_or(0) + 1;
    let mut staged = Vec::with_capacity(fds.len());
    for &(source, target) in fds {
        staged.push((rustix::io::fcntl_dupfd_cloexec(source, above.max(3))?, target));
    }
    for (source, target) in &staged {
        // SAFETY: dup2 onto a number that this process's Rust code may own. Only callers between
        // fork and exec reach this: they own nothing afterwards that they close or use.
        if unsafe { libc::dup2(source.as_raw_fd(), *target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// As [`place_fds_alone`], each with whether it is closed on exec, and 0, 1 and 2 are closed too
/// unless they are among the targets.
pub fn replace_fds(fds: &[(BorrowedFd<'_>, RawFd, bool)]) -> io::Result<()> {
    let pairs: Vec<_> = fds.iter().map(|&(source, target, _)| (source, target)).collect();
    place_fds(&pairs)?;
    let mut keep: Vec<u32> = fds.iter().map(|&(_, target, _)| target as u32).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)?;
    for &(_, target, _) in fds.iter().filter(|(.., close_on_exec)| *close_on_exec) {
        // SAFETY: fcntl with integers; the descriptor is one that was just placed.
        if unsafe { libc::fcntl(target, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Marks every descriptor from `first` up as closed on exec.
///
/// See [close_range(2)](https://man7.org/linux/man-pages/man2/close_range.2.html).
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor but these and 0, 1 and 2.
///
/// For a child right after a fork, which owns copies of all its parent's descriptors: values that
/// own any of the closed ones must not be used or dropped afterwards.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_others(keep.iter().map(AsRawFd::as_raw_fd))
}

/// As [`place_fds`], and closes every other descriptor but `keep` and 0, 1 and 2: for a child that
/// is about to look up paths of a guest's choice, to which `/proc/self/fd` belongs.
///
/// What [`close_all_but`] says of the closed ones holds here too.
pub fn place_fds_alone(
    fds: &[(BorrowedFd<'_>, RawFd)],
    keep: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    place_fds(fds)?;
    let placed = fds.iter().map(|&(_, target)| target);
    close_others(placed.chain(keep.map(|fd| fd.as_raw_fd())))
}

fn close_others(keep: impl Iterator<Item = RawFd>) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.map(|fd| fd as u32).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: no memory is passed. That nothing uses a closed descriptor is what the callers'
    // contracts say.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes ownership of a descriptor that this process was started with, by its number.
///
/// # Errors
/// `EBADF` when there is no such descriptor.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number that may not be open only fails.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and the caller says that it was passed to it to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Becomes this user with these groups, for good: real, effective, saved and file system ids.
pub fn become_user(uid: Uid, gid: Gid, groups: &[Gid], set_groups: bool) -> io::Result<()> {
    if set_groups {
        rustix::thread::set_thread_groups(groups)?;
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Gives this process namespaces of its own: see
/// [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html).
pub fn unshare(_proof: &SingleThreaded, flags: CloneFlags) -> io::Result<()> {
    // SAFETY: the flags name namespaces only; no memory or descriptor table is unshared.
    if unsafe { libc::unshare(flags.0 as libc::c_int) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives this process a cgroup namespace rooted at the groups that it is in.
pub fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: as in `unshare`.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends `signal` (1 to 64) to every process that this one may signal, itself and init excepted.
///
/// `ESRCH`, nobody there, is success.
pub fn kill_all(signal: i32) -> io::Result<()> {
    kill(-1, signal)
}

/// Sends `signal` to a process, or with a negative id to a process group.
///
/// A process that is gone already is success.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill has no memory preconditions.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        e => Err(e),
    }
}

/// Makes the calling process's session leader own the terminal on descriptor 0.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps other processes out of this one's memory and `/proc` files: `PR_SET_DUMPABLE` 0.
///
/// See [PR_SET_DUMPABLE(2const)](https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html).
pub fn set_not_dumpable() -> io::Result<()> {
    set_dumpable(false)
}

/// Sets `PR_SET_DUMPABLE` to 1 or 0.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let behavior =
        if dumpable { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    Ok(set_dumpable_behavior(behavior)?)
}
