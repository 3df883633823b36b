//! Descriptors that an event loop waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Gives a descriptor to the current tokio runtime to wait for. It should be non-blocking.
///
/// # Errors
/// What `epoll_ctl` gives: `EPERM` for a file that cannot be waited for.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and the `AsyncFd` that
    // takes it takes it out of the runtime before that.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
