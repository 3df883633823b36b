//! Message channels between our own processes: Unix SEQPACKET sockets that carry descriptors.
//!
//! One message is one packet: whole or not at all, in order, with up to [`MAX_FDS`] descriptors.
//! A message longer than [`INLINE`] travels in a memfd that goes along as its last descriptor, so
//! that no socket buffer limits its size.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};

/// Most descriptors in one message. The kernel's own limit is 253.
pub const MAX_FDS: usize = 128;

/// Longest message that travels in the packet itself, in bytes.
pub const INLINE: usize = 8 * 1024;

/// Longest message at all, in bytes; a peer that sends more is not one of ours.
pub const MAX_MESSAGE: u64 = 64 * 1024 * 1024;

const IN_PACKET: u8 = 0;
const IN_MEMFD: u8 = 1;

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// A pair of connected ends, both closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A socket that listens at `path`; whatever was there is replaced.
///
/// A path longer than the 107 bytes of a socket address is reached through its directory's
/// descriptor.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    let socket = new_socket()?;
    with_address(path, |address| Ok(bind(&socket, address)?))?;
    listen(&socket, 8)?;
    Ok(socket)
}

/// Connects to a socket that listens at `path`.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    with_address(path, |address| Ok(connect(&socket, address)?))?;
    Ok(socket)
}

/// Takes a waiting connection.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC)?)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn with_address<T>(
    path: &Path,
    act: impl FnOnce(&SocketAddrUnix) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().as_bytes().len() < 108 {
        return act(&SocketAddrUnix::new(path)?);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = crate::mount::open_dir(parent)?;
    let short = format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let address = SocketAddrUnix::new(Path::new(&short).join(name))?;
    act(&address)
}

/// Sends one message. Waits when the socket's buffer is full, unless the socket is non-blocking.
///
/// # Errors
/// `EPIPE` or `ECONNRESET` when the other end is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() <= INLINE {
        return send_packet(socket, IN_PACKET, bytes, fds);
    }
    let memfd = rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&memfd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let mut all = fds.to_vec();
    all.push(memfd.as_fd());
    send_packet(socket, IN_MEMFD, &[], &all)
}

fn send_packet(
    socket: impl AsFd,
    kind: u8,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
    }
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message; `None` when the other end has closed.
///
/// # Errors
/// `EAGAIN` on a non-blocking socket without a message, `EBADMSG` on one that is not of our form.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut buffer = [0_u8; INLINE];
    let mut kind = [0_u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut kind), IoSliceMut::new(&mut buffer)];
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let bad = || io::Error::from_raw_os_error(libc::EBADMSG);
    let bytes = match kind {
        [IN_PACKET] => buffer.get(..received.bytes - 1).ok_or_else(bad)?.to_vec(),
        [IN_MEMFD] => read_memfd(&fds.pop().ok_or_else(bad)?)?,
        _ => return Err(bad()),
    };
    Ok(Some(Message { bytes, fds }))
}

fn read_memfd(memfd: &OwnedFd) -> io::Result<Vec<u8>> {
    let size = rustix::fs::fstat(memfd)?.st_size as u64;
    if size > MAX_MESSAGE {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut bytes = vec![0; size as usize];
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(memfd, rest, at as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => at += n,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_message_keeps_its_bytes_and_descriptors() {
        let (a, b) = pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(&a, b"hello", &[write.as_fd()]).unwrap();
        let mut message = receive(&b).unwrap().unwrap();
        assert_eq!(message.bytes, b"hello");
        drop(write);
        File::from(message.fds.pop().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_message_larger_than_any_socket_buffer_arrives_whole() {
        let (a, b) = pair().unwrap();
        let long: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        send(&a, &long, &[a.as_fd()]).unwrap();
        let message = receive(&b).unwrap().unwrap();
        assert_eq!(message.bytes, long);
        assert_eq!(message.fds.len(), 1);
    }

    #[test]
    fn an_empty_message_is_not_the_end() {
        let (a, b) = pair().unwrap();
        send(&a, b"", &[]).unwrap();
        drop(a);
        assert_eq!(receive(&b).unwrap().unwrap().bytes, b"");
        assert!(receive(&b).unwrap().is_none());
    }

    #[test]
    fn a_socket_listens_at_a_path_longer_than_an_address() {
        let dir = std::env::temp_dir().join(format!("channel-{}", std::process::id()));
        let deep = dir.join("d".repeat(150));
        std::fs::create_dir_all(&deep).unwrap();
        let listener = listen_at(&deep.join("socket")).unwrap();
        let client = connect_to(&deep.join("socket")).unwrap();
        send(&client, b"x", &[]).unwrap();
        assert_eq!(receive(accept(&listener).unwrap()).unwrap().unwrap().bytes, b"x");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
