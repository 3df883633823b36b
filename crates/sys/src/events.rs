//! Descriptors of events: what rustix lacks of signalfd, timerfd, inotify and epoll.

use std::cmp::Ordering;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

use crate::remote::ordering;

/// A descriptor that signals of this mask are read from: bit 0 is signal 1.
///
/// See [signalfd(2)](https://man7.org/linux/man-pages/man2/signalfd.2.html).
pub fn signalfd(mask: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | if nonblocking { libc::SFD_NONBLOCK } else { 0 };
    // SAFETY: the kernel reads a mask of eight bytes; -1 asks for a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd4 gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sets how many expirations of a timer wait to be read, which must not be 0: `TFD_IOC_SET_TICKS`.
///
/// See [timerfd_create(2)](https://man7.org/linux/man-pages/man2/timerfd_create.2.html).
pub fn set_timer_ticks(timer: impl AsFd, ticks: u64) -> io::Result<()> {
    // _IOW('T', 0, __u64)
    const TFD_IOC_SET_TICKS: u64 = 1 << 30 | 8 << 16 | (b'T' as u64) << 8;
    let timer = timer.as_fd().as_raw_fd();
    // SAFETY: the request reads a number of eight bytes.
    match unsafe { libc::ioctl(timer, TFD_IOC_SET_TICKS, &raw const ticks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the number that the next watch of an inotify descriptor gets: `INOTIFY_IOC_SETNEXTWD`.
///
/// See `include/uapi/linux/inotify.h`.
pub fn set_next_watch(inotify: impl AsFd, number: i32) -> io::Result<()> {
    // _IOW('I', 0, __s32)
    const INOTIFY_IOC_SETNEXTWD: u64 = 1 << 30 | 4 << 16 | (b'I' as u64) << 8;
    let inotify = inotify.as_fd().as_raw_fd();
    // SAFETY: the request takes its number as it is, and no pointer.
    match unsafe { libc::ioctl(inotify, INOTIFY_IOC_SETNEXTWD, i64::from(number)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One entry of an epoll descriptor, as kcmp(2) finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EpollSlot {
    /// The epoll descriptor's number.
    pub epoll: u32,
    /// The number that was watched.
    pub target: u32,
    /// Which one of those that had this number, in the order of `/proc/PID/fdinfo`.
    pub nth: u32,
}

/// The order of what a process's descriptor refers to and what an entry of an epoll descriptor of
/// another's does, by the same measure as [`crate::remote::compare`].
///
/// # Errors
/// `ENOENT` when there is no such entry.
pub fn compare_epoll_target(
    one: (Pid, u32),
    other: Pid,
    mut slot: EpollSlot,
) -> io::Result<Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // SAFETY: kcmp reads one `struct kcmp_epoll_slot`, which is laid out like `EpollSlot`.
    ordering(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.0.as_raw_nonzero().get(),
            other.as_raw_nonzero().get(),
            KCMP_EPOLL_TFD,
            u64::from(one.1),
            &raw mut slot,
        )
    })
}

/// Has a file at a number for the time of a call; whatever is there comes back afterwards.
///
/// This process must have one thread. See [dup(2)](https://man7.org/linux/man-pages/man2/dup.2.html).
pub fn with_number<T>(
    file: BorrowedFd<'_>,
    number: RawFd,
    act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    if file.as_raw_fd() == number {
        return act(file);
    }
    // SAFETY: fcntl with integers; a number that is not open gives an error.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    let aside = if flags < 0 {
        None
    } else {
        // SAFETY: it is open, and stays so while it is borrowed here.
        let there = unsafe { BorrowedFd::borrow_raw(number) };
        Some(rustix::io::fcntl_dupfd_cloexec(there, number.max(2) + 1)?)
    };
    place(file.as_raw_fd(), number, libc::O_CLOEXEC)?;
    // SAFETY: the number was placed just now, and is closed or replaced below only.
    let done = act(unsafe { BorrowedFd::borrow_raw(number) });
    match aside {
        Some(aside) => {
            let flags = if flags & libc::FD_CLOEXEC == 0 { 0 } else { libc::O_CLOEXEC };
            place(aside.as_raw_fd(), number, flags)?;
        }
        // SAFETY: nobody owns the number: it was closed before it was placed.
        None => drop(unsafe { OwnedFd::from_raw_fd(number) }),
    }
    done
}

fn place(file: RawFd, number: RawFd, flags: i32) -> io::Result<()> {
    // SAFETY: dup3 with integers. Who owns the number finds its own file there again, as the one
    // caller of this sees to.
    if unsafe { libc::dup3(file, number, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_file_is_at_a_number_for_the_time_of_a_call() {
        let [one, other] = [1, 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC).unwrap());
        let read = |fd: BorrowedFd<'_>| {
            let mut bytes = [0; 8];
            rustix::io::read(fd, &mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        assert_eq!(with_number(one.as_fd(), other.as_raw_fd(), read).unwrap(), 1);
        assert_eq!(with_number(other.as_fd(), 400, read).unwrap(), 2);
        // SAFETY: only asked about.
        assert_eq!(unsafe { libc::fcntl(400, libc::F_GETFD) }, -1);
    }
}
