//! Sockets of IPv4 and IPv6, made again.
//!
//! Connections are made as any program makes them, over the loopback, between two sockets of this
//! process: then there is nothing of TCP to be known here. What had been sent is sent again. While
//! sockets are made all may have each other's addresses (`SO_REUSEADDR`); what their programs had
//! chosen they get at the end.

mod datagrams;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use forkyard_sys::sockets::{self, inet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::net::{
    AddressFamily, Protocol, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, bind,
    connect, listen, send, shutdown, socket_with,
};

use crate::error::{Context, Result, unreadable};
use crate::options;
use crate::picture::{Connection, DescriptionKind, Far, Inet, InetState, Picture};

/// How long this machine may take for what it does at once unless it is very busy.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How long the end of a connection is waited for, which comes at once unless packets are lost.
const CLOSING: Duration = Duration::from_millis(500);

/// What fits into any socket's buffers.
const LITTLE: usize = 32 * 1024;

/// Sockets by the index of their description.
type Sockets = BTreeMap<usize, OwnedFd>;

/// Makes all sockets of a picture.
pub(super) fn open_all(picture: &Picture) -> Result<Sockets> {
    let all: Vec<(usize, &Inet)> = picture
        .descriptions
        .iter()
        .enumerate()
        .filter_map(|(index, description)| match &description.kind {
            DescriptionKind::Inet(inet) => Some((index, inet.as_ref())),
            _ => None,
        })
        .collect();
    let mut making = Making { by_index: all.iter().copied().collect(), ..Making::default() };
    if all.is_empty() {
        return Ok(making.made);
    }
    for &(index, inet) in &all {
        making.connection(index, inet).context(|| "making a TCP connection".to_owned())?;
    }
    // From here on nothing of ours listens.
    making.listeners.clear();
    for &(index, inet) in &all {
        making.bound(index, inet).context(|| format!("binding a socket to {:?}", inet.local))?;
    }
    making.listen(&all).context(|| "listening for TCP connections".to_owned())?;
    let made = making.made;
    for (index, inet) in all {
        let flags = picture.descriptions.get(index).map_or(0, |description| description.flags);
        let made = made.get(&index).ok_or_else(|| unreadable("a picture: half a connection"))?;
        finish(made, inet, OFlags::from_bits_retain(flags)).context(|| "fcntl".to_owned())?;
    }
    Ok(made)
}

#[derive(Default)]
struct Making<'a> {
    by_index: BTreeMap<usize, &'a Inet>,
    made: Sockets,
    /// Sockets of ours at which connections are made, by their address.
    listeners: BTreeMap<SocketAddr, OwnedFd>,
}

impl Making<'_> {
    /// Makes a connection, or what is left of one.
    fn connection(&mut self, index: usize, inet: &Inet) -> io::Result<()> {
        match &inet.state {
            InetState::Connected(connection) => match connection.far {
                Far::Here(other) => self.pair(index, inet, other, connection),
                Far::Gone => {
                    let (near, far) = self.ends(inet, Some(connection.peer))?;
                    deliver(&far, &near, &connection.unread)?;
                    drop(far);
                    close_ways(&near, connection)?;
                    self.made.insert(index, near);
                    Ok(())
                }
                Far::Waiting(_) => Ok(()),
            },
            InetState::Over { unread, reset } => {
                let (near, far) = self.ends(inet, None)?;
                deliver(&far, &near, unread)?;
                if *reset {
                    // Closed with nothing to wait for, it resets its connection.
                    let now = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
                    sockets::set_option(&far, libc::SOL_SOCKET, libc::SO_LINGER, &now)?;
                    drop(far);
                } else {
                    drop(far);
                    shutdown(&near, Shutdown::Write)?;
                }
                self.made.insert(index, near);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes both ends of a connection, when the first of them comes up.
    fn pair(
        &mut self,
        index: usize,
        inet: &Inet,
        other: usize,
        connection: &Connection,
    ) -> io::Result<()> {
        let far = self.by_index.get(&other).copied();
        let Some((far, back)) = far.and_then(|far| Some((far, connection_of(far)?))) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if index == other {
            let own = new(inet)?;
            bind(&own, &inet.local.unwrap_or(connection.peer))?;
            connect(&own, &connection.peer)?;
            deliver(&own, &own, &connection.unread)?;
            close_ways(&own, connection)?;
            self.made.insert(index, own);
        } else if index < other {
            // Mostly, many connections go to one low port.
            let port = |inet: &Inet| inet.local.map_or(0, |local| local.port());
            let (near_end, far_end) = if port(far) <= port(inet) {
                let (far_end, near_end) = self.ends_by(far, inet, Some(connection.peer))?;
                (near_end, far_end)
            } else {
                self.ends_by(inet, far, Some(back.peer))?
            };
            deliver(&far_end, &near_end, &connection.unread)?;
            deliver(&near_end, &far_end, &back.unread)?;
            close_ways(&near_end, connection)?;
            close_ways(&far_end, back)?;
            self.made.insert(index, near_end);
            self.made.insert(other, far_end);
        }
        Ok(())
    }

    /// Both ends of a connection of which one is to go. Where it is not its own address that
    /// counts, as in a network that is not the sandbox's own, there may be any.
    fn ends(&mut self, near: &Inet, peer: Option<SocketAddr>) -> io::Result<(OwnedFd, OwnedFd)> {
        let far = Inet { local: peer.filter(|_| near.local.is_some()), ..near.clone() };
        self.ends_by(near, &far, near.local)
    }

    /// Both ends of a connection: `near` is where it is accepted, by the name `to`.
    fn ends_by(
        &mut self,
        near: &Inet,
        far: &Inet,
        to: Option<SocketAddr>,
    ) -> io::Result<(OwnedFd, OwnedFd)> {
        let made = self.try_ends(near, far, to);
        if matches!(&made, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            // By one of our own, most likely.
            self.listeners.clear();
            return self.try_ends(near, far, to);
        }
        made
    }

    fn try_ends(
        &mut self,
        near: &Inet,
        far: &Inet,
        to: Option<SocketAddr>,
    ) -> io::Result<(OwnedFd, OwnedFd)> {
        let any = SocketAddr::new(loopback(near.six), 0);
        let at = near.local.unwrap_or(any);
        let listener = match self.listeners.entry(at) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let listener = new(near)?;
                bind(&listener, &at)?;
                listen(&listener, 16)?;
                place.insert(listener)
            }
        };
        let listener = &*listener;
        let to = match to.filter(|to| to.port() != 0) {
            Some(to) => to,
            None => inet::local(listener)?.ok_or(io::ErrorKind::InvalidData)?,
        };
        let far_end = new(far)?;
        if let Some(local) = far.local {
            bind(&far_end, &local)?;
        }
        connect(&far_end, &to)?;
        let own = inet::local(&far_end)?;
        // In a network with others, they may have come first.
        loop {
            await_events(listener, PollFlags::IN)?;
            let near_end = accept_with(listener, SocketFlags::CLOEXEC)?;
            let peer = inet::peer(&near_end)?;
            if peer.map(plain) == own.map(plain) {
                return Ok((near_end, far_end));
            }
        }
    }

    /// Makes a socket that is not connected, at its address.
    fn bound(&mut self, index: usize, inet: &Inet) -> io::Result<()> {
        match &inet.state {
            InetState::Unconnected | InetState::Listening { .. } | InetState::Connecting(_) => {
                let made = new(inet)?;
                options::write_first(&made, &inet.options)?;
                if let Some(local) = inet.local {
                    bind(&made, &local)?;
                }
                self.made.insert(index, made);
            }
            InetState::Refused => {
                self.made.insert(index, refused(inet)?);
            }
            InetState::Datagrams { .. } => {
                self.made.insert(index, datagrams::open(inet)?);
            }
            InetState::Connected(_) | InetState::Over { .. } => {}
        }
        Ok(())
    }

    /// Has those listen that shall, with those who wait, and those connect that are about to.
    fn listen(&mut self, all: &[(usize, &Inet)]) -> io::Result<()> {
        let mut waiting: Vec<_> = all
            .iter()
            .filter_map(|&(index, inet)| match connection_of(inet)? {
                Connection { far: Far::Waiting(order), peer, .. } => {
                    Some((*order, index, inet, *peer))
                }
                _ => None,
            })
            .collect();
        waiting.sort_unstable_by_key(|&(order, index, ..)| (order, index));
        let listeners: Vec<_> = all
            .iter()
            .filter_map(|&(index, inet)| match &inet.state {
                InetState::Listening { backlog, left } => Some((index, inet, *backlog, left)),
                _ => None,
            })
            .collect();
        let more = listeners.iter().map(|(.., left)| left.len()).sum::<usize>() + waiting.len();
        for &(index, _, backlog, _) in &listeners {
            // Whoever waited in the original does here, full or not.
            self.listen_at(index, backlog as usize + more)?;
        }
        for &(_, inet, _, left) in &listeners {
            for &(from, to) in left {
                let gone = new(inet)?;
                bind(&gone, &from)?;
                connect(&gone, &to)?;
            }
        }
        for (_, index, inet, peer) in waiting {
            let made = new(inet)?;
            if let Some(local) = inet.local {
                bind(&made, &local)?;
            }
            start_connecting(&made, peer)?;
            await_events(&made, PollFlags::OUT)?;
            if let Some(connection) = connection_of(inet) {
                close_ways(&made, connection)?;
            }
            self.made.insert(index, made);
        }
        for &(index, _, backlog, _) in &listeners {
            self.listen_at(index, backlog as usize)?;
        }
        for &(index, inet) in all {
            if let (InetState::Connecting(peer), Some(made)) = (&inet.state, self.made.get(&index))
            {
                start_connecting(made, *peer)?;
            }
        }
        Ok(())
    }

    fn listen_at(&self, index: usize, backlog: usize) -> io::Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        self.made.get(&index).map_or(Ok(()), |made| Ok(listen(made, backlog)?))
    }
}

fn connection_of(inet: &Inet) -> Option<&Connection> {
    match &inet.state {
        InetState::Connected(connection) => Some(connection),
        _ => None,
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The loopback address of a family.
pub(super) fn loopback(six: bool) -> IpAddr {
    if six { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// A socket of the same kind, which may be bound to an address that another has.
pub(super) fn new(inet: &Inet) -> io::Result<OwnedFd> {
    let family = if inet.six { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = match inet.state {
        InetState::Datagrams { .. } => SocketType::DGRAM,
        _ => SocketType::STREAM,
    };
    let protocol = rustix::net::RawProtocol::new(inet.protocol).map(Protocol::from_raw);
    let made = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    if inet.six {
        // Its address says which family it is for.
        sockets::set_number(&made, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    }
    sockets::set_number(&made, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    Ok(made)
}

/// A socket that has been told that nobody listens where it wanted to connect to.
fn refused(inet: &Inet) -> io::Result<OwnedFd> {
    let nobody = new(inet)?;
    bind(&nobody, &SocketAddr::new(loopback(inet.six), 0))?;
    let to = inet::local(&nobody)?.ok_or(io::ErrorKind::InvalidData)?;
    let made = new(inet)?;
    start_connecting(&made, to)?;
    await_events(&made, PollFlags::OUT)?;
    Ok(made)
}

fn start_connecting(fd: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    match connect(fd, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fcntl_setfl(fd, flags)?)
}

fn await_events(fd: &OwnedFd, events: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, events)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&PATIENCE)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Sends what shall wait at the other end. What does not fit there waits at this one.
fn deliver(from: &OwnedFd, to: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let reads_at_least = |count: usize| {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        sockets::set_number(to, libc::SOL_SOCKET, libc::SO_RCVLOWAT, count)
    };
    if bytes.len() > LITTLE {
        // A buffer grows with what its owner wants to read at once.
        reads_at_least(bytes.len())?;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        match send(from, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN) => await_events(from, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    if bytes.len() > LITTLE {
        reads_at_least(1)?;
    }
    Ok(())
}

fn close_ways(end: &OwnedFd, connection: &Connection) -> io::Result<()> {
    if connection.ended {
        shutdown(end, Shutdown::Write)?;
    }
    if connection.deaf {
        shutdown(end, Shutdown::Read)?;
    }
    Ok(())
}

/// Waits until a connection whose ends have both said that they are done is over, and takes what
/// error came of that: its program has been told all there was to tell.
fn see_end(made: &OwnedFd) -> io::Result<()> {
    const CLOSE: u8 = 7;
    let end = Instant::now() + CLOSING;
    loop {
        let mut state = [0];
        sockets::option(made, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
        if state == [CLOSE] || Instant::now() > end {
            return sockets::number(made, libc::SOL_SOCKET, libc::SO_ERROR).map(drop);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What does not matter before all are there.
fn finish(made: &OwnedFd, inet: &Inet, flags: OFlags) -> io::Result<()> {
    if matches!(inet.state, InetState::Over { reset: false, .. }) {
        see_end(made)?;
    }
    options::write(made, &inet.options);
    set_buffers(made, inet);
    let (uid, gid) = inet.owner;
    if inet.owner != (0, 0) {
        // With a single id there is no other owner.
        let _ = fchown(made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
    Ok(fcntl_setfl(made, fcntl_getfl(made)? | flags & OFlags::NONBLOCK)?)
}

/// Sizes of buffers that a program has chosen. The kernel doubles what it is told.
pub(super) fn set_buffers(made: &OwnedFd, inet: &Inet) {
    let (send, receive) = inet.buffers;
    for (name, size) in [(libc::SO_SNDBUF, send), (libc::SO_RCVBUF, receive)] {
        if let Some(size) = size {
            let half = i32::try_from(size / 2).unwrap_or(i32::MAX);
            let _ = sockets::set_number(made, libc::SOL_SOCKET, name, half);
        }
    }
}
