//! What is on its way from one end of a TCP connection to the other.

use std::io;
use std::os::fd::OwnedFd;

use forkyard_sys::sockets;
use rustix::net::{RecvFlags, recv};

use super::STREAM_MOST;

/// The longest packet.
const PACKET: usize = 1 << 20;

/// `TCP_REPAIR`, `TCP_REPAIR_QUEUE`, `TCP_QUEUE_SEQ` and their values, of `linux/tcp.h`.
const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQUENCE: i32 = 21;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// Without a packet for the other end.
const REPAIR_OFF: i32 = -1;

const TCP: i32 = libc::IPPROTO_TCP;

/// States in which an end has sent all that it will send: `FIN_WAIT1`, `FIN_WAIT2`, `LAST_ACK`,
/// `CLOSING`.
pub(crate) const SENT_END: u32 = 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11;

/// What a connection's `near` end has been given to send and its `far` end has not received.
pub(super) fn underway(near: &OwnedFd, far: &OwnedFd) -> io::Result<Vec<u8>> {
    let length = sockets::unsent(near)?;
    if length > STREAM_MOST {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut state = [0];
    sockets::option(near, TCP, libc::TCP_INFO, &mut state)?;
    let ended = state.iter().any(|&state| SENT_END >> state & 1 == 1);
    // The first packet in the queue may begin before what has not been acknowledged.
    let mut bytes = vec![0; length + PACKET];
    let (written, count) = in_repair(near, || {
        sockets::set_number(near, TCP, REPAIR_QUEUE, SEND_QUEUE)?;
        let written = sockets::number(near, TCP, QUEUE_SEQUENCE)?;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let count = if length == 0 { 0 } else { recv(near, bytes.as_mut_slice(), flags)?.0 };
        Ok((written, count))
    })?;
    bytes.truncate(count);
    let received = in_repair(far, || {
        sockets::set_number(far, TCP, REPAIR_QUEUE, RECEIVE_QUEUE)?;
        sockets::number(far, TCP, QUEUE_SEQUENCE)
    })?;
    // The end itself has a number in the sequence, too.
    let missing = written.wrapping_sub(received).cast_unsigned() as usize;
    let missing = missing.saturating_sub(usize::from(ended));
    let arrived = bytes.len().checked_sub(missing);
    let arrived = arrived.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(bytes.split_off(arrived))
}

/// Looks at a connection in repair mode, in which it neither sends nor receives. What arrives
/// meanwhile is sent again by the other end.
fn in_repair<T>(fd: &OwnedFd, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let reuse = sockets::number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    sockets::set_number(fd, TCP, REPAIR, 1)?;
    let seen = look();
    sockets::set_number(fd, TCP, REPAIR, REPAIR_OFF)?;
    // Repair mode forgets it.
    sockets::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    seen
}
