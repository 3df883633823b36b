//! Unix sockets: names, and messages that are sent in somebody's name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Bytes of `struct sockaddr_un` before the path.
const FAMILY: usize = size_of::<libc::sa_family_t>();

/// The name of a Unix socket, or of its peer: a path, or a zero byte and an abstract name; none
/// where it has none, or no peer.
///
/// See [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).
pub fn name(socket: impl AsFd, of_peer: bool) -> io::Result<Option<Vec<u8>>> {
    // A path may use all of `sun_path`, and has a zero byte behind it then.
    let mut bytes = [0_u8; size_of::<libc::sockaddr_un>() + 1];
    let mut length = bytes.len() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    let (address, length_at) = (bytes.as_mut_ptr().cast(), &raw mut length);
    // SAFETY: the kernel writes at most `length` bytes, and how many there are.
    let result = unsafe {
        if of_peer {
            libc::getpeername(socket, address, length_at)
        } else {
            libc::getsockname(socket, address, length_at)
        }
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOTCONN) { Ok(None) } else { Err(error) };
    }
    Ok(name_in(bytes.get(..length as usize).unwrap_or_default()))
}

/// The name in an address as the kernel writes it: a path ends at its first zero byte.
pub fn name_in(address: &[u8]) -> Option<Vec<u8>> {
    let name = address.get(FAMILY..).filter(|bytes| !bytes.is_empty())?;
    if name.first() == Some(&0) {
        return Some(name.to_vec());
    }
    name.split(|&byte| byte == 0).next().map(<[u8]>::to_vec)
}

/// One `SCM_CREDENTIALS`: process, user and group.
#[repr(C, align(8))]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    credentials: [u32; 3],
    padding: u32,
}

/// Sends a message without waiting, to the peer or to an address of `sun_path`'s bytes, where it
/// can in the name of this process, user and group; gives how many bytes were taken.
///
/// See [send(2)](https://man7.org/linux/man-pages/man2/send.2.html).
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    to: Option<&[u8]>,
    credentials: Option<[u32; 3]>,
) -> io::Result<usize> {
    let mut address = address(to.unwrap_or_default())?;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if to.is_some() {
        message.msg_name = address.as_mut_ptr().cast();
        message.msg_namelen = address.len() as u32;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let mut control = Control {
        length: size_of::<Control>() - 4,
        level: libc::SOL_SOCKET,
        kind: libc::SCM_CREDENTIALS,
        credentials: credentials.unwrap_or_default(),
        padding: 0,
    };
    if credentials.is_some() {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>();
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: all that the message points to outlives the call and is only read.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Gives a Unix socket its name, as [`name`] tells it.
pub fn bind(socket: impl AsFd, name: &[u8]) -> io::Result<()> {
    at(socket, name, libc::bind)
}

/// Connects a Unix socket to one of this name.
pub fn connect(socket: impl AsFd, name: &[u8]) -> io::Result<()> {
    at(socket, name, libc::connect)
}

type Call = unsafe extern "C" fn(RawFd, *const libc::sockaddr, libc::socklen_t) -> i32;

fn at(socket: impl AsFd, name: &[u8], call: Call) -> io::Result<()> {
    let bytes = address(name)?;
    let length = bytes.len() as libc::socklen_t;
    // SAFETY: both calls read `length` bytes of the address.
    let result = unsafe { call(socket.as_fd().as_raw_fd(), bytes.as_ptr().cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A `struct sockaddr_un`: a path ends with a zero byte where there is room for one.
fn address(name: &[u8]) -> io::Result<Vec<u8>> {
    let room = size_of::<libc::sockaddr_un>() - FAMILY;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let family = libc::AF_UNIX as libc::sa_family_t;
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend_from_slice(name);
    if name.first().is_some_and(|&first| first != 0) && name.len() < room {
        bytes.push(0);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::{peek, set_number};
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn messages_are_seen_with_their_senders_and_stay() {
        let pair = || {
            let kind = SocketType::DGRAM;
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
        };
        let (one, other) = pair();
        let name = format!("\0forkyard-test-{}", std::process::id());
        bind(&one, name.as_bytes()).unwrap();
        assert_eq!(super::name(&one, false).unwrap().unwrap(), name.as_bytes());
        assert_eq!(super::name(&one, true).unwrap(), None);
        set_number(&other, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        assert_eq!(send(&one, b"text", None, None).unwrap(), 4);
        let mut buffer = [0; 2];
        for _ in 0..2 {
            let seen = peek(&other, &mut buffer, size_of::<Control>()).unwrap().unwrap();
            assert_eq!((seen.length, &buffer, seen.has_more), (4, b"te", false));
            assert_eq!(name_in(&seen.sender).unwrap(), name.as_bytes());
            let [(level, kind, data)] = seen.control.as_slice() else { panic!("{seen:?}") };
            assert_eq!((*level, *kind), (libc::SOL_SOCKET, libc::SCM_CREDENTIALS));
            assert_eq!(data[..4], std::process::id().to_ne_bytes());
        }
        assert!(peek(&one, &mut buffer, 0).unwrap().is_none());
    }
}
