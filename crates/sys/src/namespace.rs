//! User namespaces, by descriptors that lead to them: see `user_namespaces`(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::SingleThreaded;

/// The one that this process is in.
pub fn own_user() -> io::Result<OwnedFd> {
    Ok(open("/proc/self/ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The one that it was made in, `NS_GET_PARENT` of `ioctl_nsfs`(2).
///
/// # Errors
/// `EPERM` where that is not this process's own or below it, `ENOTTY` for what is no namespace.
pub fn parent(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // _IO(0xb7, 0x2)
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: takes no argument, and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether both are the same.
pub fn are_same(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Enters one, with all capabilities there.
///
/// # Errors
/// `EPERM` for who has no right over it: its owner has, from where it was made.
pub fn enter_user(_proof: &SingleThreaded, namespace: impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?)
}
