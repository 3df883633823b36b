//! POSIX message queues.
//!
//! See [mq_overview(7)](https://man7.org/linux/man-pages/man7/mq_overview.7.html). A queue is a
//! file of an `mqueue` file system, and however it was opened, its descriptor takes these calls.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What a queue can hold, and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// How many messages it holds at most.
    pub capacity: u32,
    /// How many bytes each has at most.
    pub size: u32,
    /// How many there are.
    pub count: u32,
}

/// What a queue can hold, and does.
///
/// # Errors
/// `EBADF` for what is no queue.
pub fn attributes(queue: impl AsFd) -> io::Result<Attributes> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `mq_attr`.
    result(unsafe { libc::mq_getattr(queue.as_fd().as_raw_fd(), &raw mut all) })?;
    let [capacity, size, count] =
        [all.mq_maxmsg, all.mq_msgsize, all.mq_curmsgs].map(|number| number as u32);
    Ok(Attributes { capacity, size, count })
}

/// Takes the message that is next: bytes and priority.
///
/// # Errors
/// `EMSGSIZE` for less room than the queue's messages may have, `EAGAIN` when there is none and the
/// descriptor does not wait.
pub fn receive(queue: impl AsFd, size: u32) -> io::Result<(Vec<u8>, u32)> {
    let mut text = vec![0_u8; size as usize];
    let mut priority = 0;
    let fd = queue.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most as many bytes as there are, and the priority.
    let count =
        unsafe { libc::mq_receive(fd, text.as_mut_ptr().cast(), text.len(), &raw mut priority) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    text.truncate(count as usize);
    Ok((text, priority))
}

/// Puts a message into a queue.
///
/// # Errors
/// `EAGAIN` when there is no room and the descriptor does not wait.
pub fn send(queue: impl AsFd, text: &[u8], priority: u32) -> io::Result<()> {
    let fd = queue.as_fd().as_raw_fd();
    // SAFETY: the kernel reads as many bytes as there are.
    result(unsafe { libc::mq_send(fd, text.as_ptr().cast(), text.len(), priority) })
}

/// Makes a queue, whose name begins with a slash, for this user alone; its descriptor does not
/// wait.
///
/// # Errors
/// `EEXIST`, and `EINVAL` or `EMFILE` where it would be larger than it may.
pub fn make(name: &CStr, attributes: Attributes) -> io::Result<OwnedFd> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::mq_attr = unsafe { std::mem::zeroed() };
    (all.mq_maxmsg, all.mq_msgsize) = (attributes.capacity.into(), attributes.size.into());
    let how = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the name ends with a zero, and the kernel reads one `mq_attr`.
    let fd = unsafe { libc::mq_open(name.as_ptr(), how, 0o600 as libc::mode_t, &raw const all) };
    owned(fd)
}

/// Opens a queue by its name, with `O_*` flags.
pub fn open(name: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero; without O_CREAT there are no more arguments.
    owned(unsafe { libc::mq_open(name.as_ptr(), flags & !libc::O_CREAT) })
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    result(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn result(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
