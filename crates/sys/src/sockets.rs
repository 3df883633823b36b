//! Sockets as whoever copies them sees them: options and addresses as bytes, messages that stay.
//!
//! See [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).

pub mod diag;
pub mod inet;
pub mod unix;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The longest option that [`value`] reads, in bytes.
const OPTION_MAX: usize = 64;

/// The longest address, and a zero byte behind a path that uses all of its room.
const ADDRESS_MAX: usize = size_of::<libc::sockaddr_storage>() + 1;

/// Reads an option into `value`; gives how long it is: in bytes, of `SO_GET_FILTER` in instructions
/// of eight bytes.
///
/// See [getsockopt(2)](https://man7.org/linux/man-pages/man2/getsockopt.2.html).
pub fn option(socket: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let unit = if (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER) { 8 } else { 1 };
    let mut length = (value.len() / unit) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` units to `value`, and the length to `length`. The
    // unit is a byte for all options but that one, whose instructions have eight.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

/// An option of up to 64 bytes, as the kernel writes it.
pub fn value(socket: impl AsFd, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; OPTION_MAX];
    let length = option(socket, level, name, &mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// An option that is a number.
pub fn number(socket: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    option(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Whether a filter of BPF decides what a socket receives.
pub fn has_filter(socket: impl AsFd) -> bool {
    // Without room, the kernel tells how many instructions there are; of some it does not tell.
    !matches!(option(socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut []), Ok(0))
}

/// The instructions of a socket's filter, see [`attach_filter`]; none where it has no filter. Fails
/// where the kernel does not tell them.
pub fn filter(socket: impl AsFd) -> io::Result<Vec<u64>> {
    let count = option(&socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut [])?;
    let mut bytes = vec![0; count * 8];
    let count = option(&socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut bytes)?;
    let words = bytes.chunks_exact(8).take(count);
    Ok(words.filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes)).collect())
}

/// Has a filter decide what a socket receives: instructions as the eight bytes of each
/// `struct sock_filter` are in memory.
///
/// See [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html), `SO_ATTACH_FILTER`.
pub fn attach_filter(socket: impl AsFd, instructions: &[u64]) -> io::Result<()> {
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads the structure and as many instructions as it says, each of eight
    // bytes whose alignment is not more than that of a word, and checks them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes an option.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes.
    let result = unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes an option that is a number.
pub fn set_number(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// How many bytes were sent, and have not been acknowledged or read: `SIOCOUTQ`, see [tcp(7)].
///
/// [tcp(7)]: https://man7.org/linux/man-pages/man7/tcp.7.html
pub fn unsent(socket: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { Ok(count.cast_unsigned() as usize) } else { Err(io::Error::last_os_error()) }
}

/// A message that waits in a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peeked {
    /// How long it is, which may be more than there was room for.
    pub length: usize,
    /// The address of who sent it, as the kernel writes it; empty where it has none.
    pub sender: Vec<u8>,
    /// What came with it: levels, kinds and data, see [cmsg(3)].
    ///
    /// [cmsg(3)]: https://man7.org/linux/man-pages/man3/cmsg.3.html
    pub control: Vec<(i32, i32, Vec<u8>)>,
    /// More came with it than there was room for.
    pub has_more: bool,
}

/// Looks at the next message of a socket, without waiting; it stays there. None where there is none.
///
/// Of what came with it, as much is given as fits into `room` bytes. Where that may be descriptors
/// there must be no room for them: nobody would close them.
///
/// See [recv(2)](https://man7.org/linux/man-pages/man2/recv.2.html), `MSG_PEEK`.
pub fn peek(socket: impl AsFd, buffer: &mut [u8], room: usize) -> io::Result<Option<Peeked>> {
    let mut address = [0_u8; ADDRESS_MAX];
    let mut control = vec![0_u64; room.div_ceil(8)];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = address.len() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if room > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = room;
    }
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes within the lengths that the message gives of what it points to,
    // all of which lives until the call returns.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // Nothing waits, or nothing can: it is not connected, or listens.
            Some(libc::EAGAIN | libc::EINVAL | libc::ENOTCONN) => Ok(None),
            _ => Err(error),
        };
    }
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(Some(Peeked {
        length: length.cast_unsigned(),
        sender: address.get(..message.msg_namelen as usize).unwrap_or_default().to_vec(),
        control: control_of(control.get(..message.msg_controllen).unwrap_or_default()),
        has_more: message.msg_flags & libc::MSG_CTRUNC != 0,
    }))
}

/// Takes apart what came with a message: headers of length, level and kind, each with its data.
fn control_of(mut rest: &[u8]) -> Vec<(i32, i32, Vec<u8>)> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut all = Vec::new();
    while let Some(length) = rest.first_chunk().map(|bytes| usize::from_ne_bytes(*bytes)) {
        let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
        let data = rest.get(HEADER..length);
        let (Some(level), Some(kind), Some(data)) = (word(8), word(12), data) else { break };
        all.push((level, kind, data.to_vec()));
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    all
}
