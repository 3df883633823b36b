//! Sockets of UDP, made again, with what waits at them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use forkyard_sys::sockets;
use rustix::net::{SendFlags, Shutdown, bind, connect, connect_unspec, sendto, shutdown};

use super::{loopback, new, set_buffers};
use crate::options;
use crate::picture::{Datagram, Inet, InetState};

/// How long a datagram may take to the socket that it is sent to.
const PATIENCE: Duration = Duration::from_secs(10);

/// `UDP_SEGMENT` of linux/udp.h.
const SEGMENT: i32 = 103;

/// Makes a socket of UDP.
pub(super) fn open(inet: &Inet) -> io::Result<OwnedFd> {
    let made = new(inet)?;
    options::write_first(&made, &inet.options)?;
    // Before what waits: it shall fit.
    set_buffers(&made, inet);
    if let Some(local) = inet.local {
        bind(&made, &local)?;
    }
    let InetState::Datagrams { peer, unread, shut, groups } = &inet.state else {
        return Ok(made);
    };
    for &(group, interface) in groups {
        const MCAST_JOIN_GROUP: i32 = 42;
        let level = if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let request = options::group(group, interface);
        sockets::set_option(&made, level, MCAST_JOIN_GROUP, &request)?;
    }
    let mut senders = BTreeMap::new();
    for datagram in unread {
        deliver(inet, &made, datagram, &mut senders)?;
    }
    match peer {
        Some(peer) => connect(&made, peer)?,
        None if !unread.is_empty() => connect_unspec(&made)?,
        None => {}
    }
    let (reads, writes) = *shut;
    if reads || writes {
        let how = if writes { Shutdown::Both } else { Shutdown::Read };
        // It says that there is no connection, and does it.
        let _ = shutdown(&made, how);
    }
    Ok(made)
}

/// Sends a datagram again, in the name of who had sent it.
fn deliver(
    inet: &Inet,
    made: &OwnedFd,
    datagram: &Datagram,
    senders: &mut BTreeMap<SocketAddr, OwnedFd>,
) -> io::Result<()> {
    let (Some(local), Some(from)) = (inet.local, datagram.from) else { return Ok(()) };
    let to = datagram.to.filter(|to| !to.is_multicast());
    let home = if from.ip().to_canonical().is_ipv4() { loopback(false) } else { loopback(true) };
    let mut to = to.unwrap_or(if local.ip().is_unspecified() { home } else { local.ip() });
    // Of several at one port it is for the one that is connected to its sender; but connected, it
    // would hear at the usual address only. What it was connected to before has left a mark.
    connect_unspec(made)?;
    if !local.ip().is_unspecified() || to == home {
        connect(made, &from)?;
    }
    if let (std::net::IpAddr::V4(ip), true) = (to, inet.six) {
        to = ip.to_ipv6_mapped().into();
    }
    let sender = match senders.entry(from) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => {
            let sender = new(inet)?;
            bind(&sender, &from)?;
            place.insert(sender)
        }
    };
    let sender = &*sender;
    sockets::set_number(sender, libc::IPPROTO_UDP, SEGMENT, datagram.segment.unwrap_or(0).into())?;
    let before = waiting(made)?;
    let end = Instant::now() + PATIENCE;
    let to = SocketAddr::new(to, local.port());
    sendto(sender, &datagram.bytes, SendFlags::DONTWAIT, &to)?;
    // It is there at once, unless this processor has other things to do.
    while waiting(made)? == before {
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// How much memory is taken by what waits at a socket: the first word of `SO_MEMINFO`.
fn waiting(fd: &OwnedFd) -> io::Result<u32> {
    let mut words = [0; 64];
    sockets::option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut words)?;
    Ok(words.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)))
}
