//! Locks on files that belong to open file descriptions.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct flock` of the kernel as words, for `F_SETLK` and `F_OFD_SETLK`: `end` is the last byte,
/// none the end of the file. See fcntl(2).
pub fn to_words(exclusive: bool, start: u64, end: Option<u64>) -> [u64; 4] {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    // A length of zero reaches to the end.
    let length = end.map_or(0, |end| end.saturating_sub(start).saturating_add(1));
    // `l_type` and `l_whence` are 16 bits each; `SEEK_SET` is zero, and so is the process id.
    [kind as u64 & 0xffff, start, length, 0]
}

/// Locks a range of a file for a description, without waiting: `F_OFD_SETLK`.
///
/// # Errors
/// `EAGAIN` where another has a lock that forbids it.
pub fn set_for_description(
    file: impl AsFd,
    exclusive: bool,
    start: u64,
    end: Option<u64>,
) -> io::Result<()> {
    let words = to_words(exclusive, start, end);
    // SAFETY: the words are laid out as `struct flock`, which lives until the call returns.
    let result =
        unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, words.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_libc_lays_out() {
        use std::mem::offset_of;
        assert_eq!(size_of::<libc::flock>(), 32);
        assert_eq!([offset_of!(libc::flock, l_start), offset_of!(libc::flock, l_len)], [8, 16]);
        assert_eq!(to_words(true, 5, Some(9)), [libc::F_WRLCK as u64, 5, 5, 0]);
        assert_eq!(to_words(false, 5, None), [libc::F_RDLCK as u64, 5, 0, 0]);
    }
}
