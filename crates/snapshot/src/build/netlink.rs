//! Netlink sockets, opened again.

use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;

use forkyard_sys::sockets;
use rustix::fs::OFlags;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, socket_with};

use crate::picture::netlink::Netlink;

/// `NETLINK_ADD_MEMBERSHIP` of linux/netlink.h.
const ADD_MEMBERSHIP: i32 = 1;

/// Opens a socket, with the flags of its description.
pub(super) fn open(socket: &Netlink, flags: OFlags) -> io::Result<OwnedFd> {
    let how = if flags.contains(OFlags::NONBLOCK) {
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
    } else {
        SocketFlags::CLOEXEC
    };
    let protocol = NonZero::new(socket.protocol).map(Protocol::from_raw);
    let made =
        socket_with(AddressFamily::NETLINK, SocketType::from_raw(socket.kind), how, protocol)?;
    // Before it hears of anything.
    for (level, name, wanted) in &socket.options {
        if sockets::value(&made, *level, *name).is_ok_and(|now| now == *wanted) {
            continue;
        }
        let buffer =
            [libc::SO_SNDBUF, libc::SO_RCVBUF].contains(name) && *level == libc::SOL_SOCKET;
        match wanted.first_chunk().filter(|_| buffer) {
            // The kernel doubles what it is given.
            Some(bytes) => {
                sockets::set_number(&made, *level, *name, i32::from_ne_bytes(*bytes) / 2)?;
            }
            None => sockets::set_option(&made, *level, *name, wanted)?,
        }
    }
    if !socket.filter.is_empty() {
        sockets::attach_filter(&made, &socket.filter)?;
    }
    if socket.port != 0 {
        bind(&made, &SocketAddrNetlink::new(socket.port, 0))?;
    }
    for group in &socket.groups {
        let group = group.cast_signed();
        sockets::set_number(&made, libc::SOL_NETLINK, ADD_MEMBERSHIP, group)?;
    }
    Ok(made)
}
