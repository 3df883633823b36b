//! Which ends of TCP connections belong together, and what is on its way between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use forkyard_sys::sockets::{self, diag};
use rustix::net::{RecvFlags, recv};

use super::Capture;
use super::descriptors::Seen;
use super::inet::state;
use crate::error::{Context, Error, Result, unreadable};
use crate::inside::{self, Looker, SENT_END, STREAM_MOST as MOST};
use crate::picture::{Connection, DescriptionKind, Far, Inet, InetState};

/// `struct tcp_info` of linux/tcp.h, as far as it is of interest here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub(super) state: u8,
    /// Of one that listens: how many wait.
    unacknowledged: u32,
    /// Of one that listens: how many may wait.
    pub(super) acknowledged_selectively: u32,
    bytes_acknowledged: u64,
    bytes_received: u64,
    segments_in: u32,
}

impl Info {
    pub(super) fn read(fd: &OwnedFd) -> Result<Self> {
        let mut bytes = [0; 144];
        sockets::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)
            .context(|| "getsockopt TCP_INFO".to_owned())?;
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).unwrap_or_default();
            u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
        };
        let double = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        let [state, ..] = bytes;
        Ok(Self {
            state,
            unacknowledged: word(24),
            acknowledged_selectively: word(28),
            bytes_acknowledged: double(120),
            bytes_received: double(128),
            segments_in: word(140),
        })
    }

    /// Whether this end will send no more.
    pub(super) fn has_ended(&self) -> bool {
        SENT_END >> self.state & 1 == 1
    }

    /// Whether all that ever came of its peer was that it will not.
    pub(super) fn was_refused(&self) -> bool {
        self.segments_in <= 1 && self.bytes_acknowledged == 0 && self.bytes_received == 0
    }
}

/// A TCP socket that is connected, connects or listens.
#[derive(Debug)]
pub(super) struct End {
    /// Index of its description.
    index: usize,
    copy: OwnedFd,
    inode: u64,
    local: SocketAddr,
    peer: SocketAddr,
    info: Info,
    /// What it has sent or shall send, and has not been acknowledged.
    unsent: u64,
}

/// Nobody's address.
const NOWHERE: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0));

/// From and to where a connection is, whichever family its ends have.
type Way = (SocketAddr, SocketAddr);

fn way(from: SocketAddr, to: SocketAddr) -> Way {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (plain(from), plain(to))
}

impl Capture<'_> {
    /// Notes an end, whose description is the next, for when all are known.
    pub(super) fn note_end(
        &mut self,
        seen: &Seen<'_>,
        info: Info,
        local: Option<SocketAddr>,
        peer: Option<SocketAddr>,
    ) -> Result<()> {
        self.descriptions.ends.push(End {
            index: self.descriptions.all.len(),
            copy: seen.copy.try_clone().context(|| "duplicating a descriptor".to_owned())?,
            inode: seen.stat.st_ino,
            local: local.unwrap_or(NOWHERE),
            peer: peer.unwrap_or(NOWHERE),
            info,
            unsent: if peer.is_some() { unsent(&seen.copy)? } else { 0 },
        });
        Ok(())
    }

    /// Finds both ends of all connections.
    pub(super) fn connect_ends(&mut self, looker: &mut dyn Looker) -> Result<()> {
        let ends = std::mem::take(&mut self.descriptions.ends);
        if ends.is_empty() {
            return Ok(());
        }
        let mut by_way = HashMap::new();
        for end in ends.iter().filter(|end| end.is_connected()) {
            by_way.insert(way(end.local, end.peer), end);
        }
        let (mut listed, mut taken) = (None, Vec::new());
        for end in &ends {
            match end.info.state {
                state::LISTEN if end.info.unacknowledged > 0 => {
                    let listed = self.listed(&mut listed)?;
                    let left = left(listed, end, &by_way, &mut taken)?;
                    self.change(end.index, |state| {
                        if let InetState::Listening { left: place, .. } = state {
                            *place = left;
                        }
                    });
                }
                state::LISTEN => {}
                state::SYN_SENT => {
                    let listed = self.listed(&mut listed)?;
                    let found = listed.iter().find(|other| u64::from(other.inode) == end.inode);
                    let peer = found.ok_or_else(|| unsteady("a connection came about"))?.peer;
                    self.change(end.index, |state| *state = InetState::Connecting(peer));
                }
                _ => {
                    let (far, waits) = match by_way.get(&way(end.peer, end.local)) {
                        Some(other) => (Far::Here(other.index), between(other, end, looker)?),
                        None => (far(self.listed(&mut listed)?, end)?, unread(&end.copy)?),
                    };
                    self.change(end.index, |state| {
                        if let InetState::Connected(Connection { far: place, unread, .. }) = state {
                            *place = far;
                            *unread = waits;
                        }
                    });
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut InetState)) {
        let description = self.descriptions.all.get_mut(index);
        if let Some(DescriptionKind::Inet(inet)) = description.map(|found| &mut found.kind) {
            let Inet { state, .. } = inet.as_mut();
            change(state);
        }
    }

    /// All TCP sockets of the sandbox's network, listed once.
    fn listed<'a>(&self, known: &'a mut Option<Vec<diag::Tcp>>) -> Result<&'a [diag::Tcp]> {
        if known.is_none() {
            let socket = self.subject.diag.as_ref();
            let socket = socket.ok_or_else(|| unreadable("a list of sockets: there is none"))?;
            let all = diag::tcp(socket, !(1 << state::LISTEN));
            *known = Some(all.context(|| "listing sockets".to_owned())?);
        }
        Ok(known.as_deref().unwrap_or_default())
    }
}

/// What one end has sent or shall send, and nobody has read at the other.
fn between(from: &End, to: &End, looker: &mut dyn Looker) -> Result<Vec<u8>> {
    let heard = state::HEARD_END.contains(&to.info.state);
    // One end, and only one, counts the acknowledgement of its first packet.
    if heard || from.unsent == 0 || from.ahead_of(to).wrapping_add(to.ahead_of(from)) == 1 {
        return unread(&to.copy);
    }
    for _ in 0..TRIES {
        let before = waiting(&to.copy)?;
        let underway = inside::ask_underway(looker, &from.copy, &to.copy);
        let underway = underway.context(|| "looking at what is on its way".to_owned())?;
        let mut unread = unread(&to.copy)?;
        // Or some of it arrived meanwhile.
        if unread.len() == before {
            unread.extend(underway);
            return Ok(unread);
        }
    }
    Err(unsteady("data was on its way between processes"))
}

/// How often it is tried to look at a connection while nothing arrives.
const TRIES: u32 = 8;

/// How many bytes wait to be read.
fn waiting(fd: &OwnedFd) -> Result<usize> {
    let count = rustix::io::ioctl_fionread(fd).context(|| "ioctl FIONREAD".to_owned())?;
    usize::try_from(count).map_err(|_| unreadable("how much waits at a socket"))
}

/// What waits to be read of a connection, which keeps it.
pub(super) fn unread(fd: &OwnedFd) -> Result<Vec<u8>> {
    let length = waiting(fd)?;
    if length > MOST {
        return Err(unreadable("a connection at which too much waits"));
    }
    // Not more than is there: then an error is not come by, and not told here instead of there.
    let mut bytes = vec![0; length];
    if length > 0 {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (count, _) = recv(fd, bytes.as_mut_slice(), flags)
            .context(|| "looking at what waits to be read".to_owned())?;
        bytes.truncate(count);
    }
    Ok(bytes)
}

fn unsent(fd: &OwnedFd) -> Result<u64> {
    Ok(sockets::unsent(fd).context(|| "ioctl SIOCOUTQ".to_owned())? as u64)
}

impl End {
    /// How much more this end counts as sent, or to be sent, than the other as received.
    fn ahead_of(&self, far: &Self) -> u64 {
        let given = self.info.bytes_acknowledged.wrapping_add(self.unsent);
        given.wrapping_sub(far.info.bytes_received)
    }

    fn is_connected(&self) -> bool {
        !matches!(self.info.state, state::LISTEN | state::SYN_SENT)
    }
}

/// What waits to be accepted has no descriptor, and has not ended.
fn waits(tcp: &diag::Tcp) -> bool {
    const NEW: u8 = 12;
    let states = [state::ESTABLISHED, state::CLOSE_WAIT, state::SYN_RECV, NEW];
    tcp.inode == 0 && states.contains(&tcp.state)
}

/// What it has received nobody can look at before it is accepted.
fn check_waiting(tcp: &diag::Tcp) -> Result<()> {
    if tcp.unread > u32::from(tcp.state == state::CLOSE_WAIT) {
        let from = tcp.peer;
        return Err(unsteady(&format!(
            "the connection from {from} waits to be accepted with data"
        )));
    }
    Ok(())
}

/// Where the other end of a connection is that has no descriptor in the sandbox.
fn far(listed: &[diag::Tcp], end: &End) -> Result<Far> {
    let wanted = way(end.peer, end.local);
    let Some(other) = listed.iter().find(|other| way(other.local, other.peer) == wanted) else {
        return Ok(Far::Gone);
    };
    if waits(other) {
        check_waiting(other)?;
        if end.unsent > u64::from(end.info.has_ended()) {
            return Err(unsteady(&format!("{} is connected and was not answered", end.local)));
        }
        return Ok(Far::Waiting(end.inode));
    }
    let heard = state::HEARD_END.contains(&end.info.state);
    // Its end counts as one byte.
    if other.inode == 0 && !heard && other.unsent > 1 {
        let from = other.local;
        return Err(unsteady(&format!("{from} was closed and still has data to send")));
    }
    Ok(Far::Gone)
}

/// Connections that wait at a listener, and whose other end has no descriptor in the sandbox.
fn left(
    listed: &[diag::Tcp],
    listener: &End,
    known: &HashMap<Way, &End>,
    taken: &mut Vec<Way>,
) -> Result<Vec<Way>> {
    let (own, _) = way(listener.local, NOWHERE);
    let mut left = Vec::new();
    for other in listed.iter().filter(|other| waits(other)) {
        let (to, from) = way(other.local, other.peer);
        let here = to.port() == own.port() && (own.ip().is_unspecified() || own.ip() == to.ip());
        // Several may listen at one address.
        if here && !known.contains_key(&(from, to)) && !taken.contains(&(from, to)) {
            check_waiting(other)?;
            taken.push((from, to));
            left.push((other.peer, other.local));
        }
    }
    Ok(left)
}

fn unsteady(what: &str) -> Error {
    Error::Unsteady(what.to_owned())
}
