//! Sockets of IPv4 and IPv6, and those of other families but Unix.
//!
//! All is asked of duplicates, and nothing is changed by that: what is looked at stays where it
//! is, and errors that wait to be told are not taken.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use forkyard_sys::sockets::{self, inet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::Capture;
use super::connections::{Info, unread};
use super::descriptors::Seen;
use super::waiting::Waiting;
use crate::error::{Context, Error, Result};
use crate::inside::{self, Looker};
use crate::options::{self, Kind};
use crate::picture::{Connection, Datagram, DescriptionKind, Far, Inet, InetState};

const IPPROTO_MPTCP: i32 = 262;

/// States of TCP, `netinet/tcp.h`.
pub(super) mod state {
    pub(in crate::capture) const ESTABLISHED: u8 = 1;
    pub(in crate::capture) const SYN_SENT: u8 = 2;
    pub(in crate::capture) const SYN_RECV: u8 = 3;
    pub(in crate::capture) const CLOSE: u8 = 7;
    pub(in crate::capture) const CLOSE_WAIT: u8 = 8;
    pub(in crate::capture) const LAST_ACK: u8 = 9;
    pub(in crate::capture) const LISTEN: u8 = 10;
    pub(in crate::capture) const CLOSING: u8 = 11;

    /// The other end has said that it sends no more.
    pub(in crate::capture) const HEARD_END: [u8; 3] = [CLOSE_WAIT, LAST_ACK, CLOSING];
}

impl Capture<'_> {
    /// A socket that is not of the Unix family.
    pub(super) fn inet_socket(&mut self, seen: &Seen<'_>, family: i32) -> Result<DescriptionKind> {
        let general = |name| {
            let number = sockets::number(&seen.copy, libc::SOL_SOCKET, name);
            number.context(|| "getsockopt".to_owned())
        };
        let (kind, protocol) = (general(libc::SO_TYPE)?, general(libc::SO_PROTOCOL)?);
        let known = matches!(family, libc::AF_INET | libc::AF_INET6);
        let what = match (kind, protocol) {
            _ if family == libc::AF_PACKET => "a packet socket",
            _ if !known => "a socket of this family",
            (libc::SOCK_STREAM, libc::IPPROTO_TCP | IPPROTO_MPTCP)
            | (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => "",
            (libc::SOCK_RAW, _) => "a raw socket",
            (_, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "a socket of ICMP",
            (_, libc::IPPROTO_UDPLITE) => "a socket of UDP-Lite",
            (_, libc::IPPROTO_SCTP) => "a socket of SCTP",
            _ => "a socket of this protocol",
        };
        if !what.is_empty() {
            return Err(seen.refuse(what));
        }
        check_socket(seen)?;
        let local = inet::local(&seen.copy).context(|| "getsockname".to_owned())?;
        let local = local.filter(|local| local.port() != 0 || !local.ip().is_unspecified());
        let now = events(&seen.copy)?;
        let six = family == libc::AF_INET6;
        let tcp = kind == libc::SOCK_STREAM;
        let state =
            if tcp { self.tcp(seen, now, local, protocol)? } else { self.udp(seen, now, local)? };
        let connected = matches!(state, InetState::Connected(_) | InetState::Over { .. });
        let inet = Inet {
            six,
            protocol: protocol.cast_unsigned(),
            owner: (self.users.inside(seen.stat.st_uid), self.groups.inside(seen.stat.st_gid)),
            local: local.filter(|_| !self.subject.host_network),
            state,
            options: options::read(&seen.copy, Kind { tcp, six, connected }),
            buffers: buffers(&seen.copy),
        };
        Ok(DescriptionKind::Inet(Box::new(inet)))
    }

    fn tcp(
        &mut self,
        seen: &Seen<'_>,
        now: PollFlags,
        local: Option<SocketAddr>,
        protocol: i32,
    ) -> Result<InetState> {
        let info = Info::read(&seen.copy)?;
        let own_port = self.refuse_port(seen, local);
        let over = now.contains(PollFlags::RDHUP);
        let reset = now.contains(PollFlags::ERR);
        match info.state {
            state::LISTEN => {
                own_port?;
                self.note_end(seen, info, local, None)?;
                let backlog = info.acknowledged_selectively;
                return Ok(InetState::Listening { backlog, left: Vec::new() });
            }
            state::CLOSE if reset && info.was_refused() => return Ok(InetState::Refused),
            state::CLOSE if over || reset => {
                return Ok(InetState::Over { unread: unread(&seen.copy)?, reset });
            }
            state::CLOSE => {
                own_port?;
                return Ok(InetState::Unconnected);
            }
            state::SYN_SENT if self.subject.host_network => return Ok(InetState::Refused),
            _ if protocol == IPPROTO_MPTCP => {
                return Err(seen.refuse("a connection of Multipath TCP"));
            }
            state::SYN_SENT => {
                self.note_end(seen, info, local, None)?;
                // Where to is found out with all connections.
                return Ok(InetState::Refused);
            }
            state::SYN_RECV => return Err(seen.refuse("a connection that is being made")),
            _ => {}
        }
        check_connection(seen)?;
        let peer = inet::peer(&seen.copy).context(|| "getpeername".to_owned())?;
        let peer = peer.ok_or_else(|| Error::Unsteady("a connection ended".to_owned()))?;
        // In a network with others there is no more to find out. Else, the kernel goes on sending
        // what is on its way: what waits is looked at when the ends of all are known.
        let unread = if self.subject.host_network {
            unread(&seen.copy)?
        } else {
            self.note_end(seen, info, local, Some(peer))?;
            Vec::new()
        };
        let connection = Connection {
            peer,
            far: Far::Gone,
            unread,
            ended: info.has_ended(),
            deaf: over && !state::HEARD_END.contains(&info.state),
        };
        Ok(InetState::Connected(connection))
    }

    fn udp(
        &mut self,
        seen: &Seen<'_>,
        now: PollFlags,
        local: Option<SocketAddr>,
    ) -> Result<InetState> {
        let peer = inet::peer(&seen.copy).context(|| "getpeername".to_owned())?;
        if peer.is_none() {
            self.refuse_port(seen, local)?;
        }
        if now.contains(PollFlags::ERR) {
            // Looking would take it.
            return Err(seen.refuse("a socket with an error that was not told"));
        }
        if now.contains(PollFlags::IN) && !self.subject.host_network {
            self.note_datagrams(seen)?;
        }
        let groups = self.groups_of(seen)?;
        let both = now.contains(PollFlags::HUP);
        let shut = (both || now.contains(PollFlags::RDHUP), both);
        Ok(InetState::Datagrams { peer, unread: Vec::new(), shut, groups })
    }

    /// In the host's network a port is one sandbox's alone.
    fn refuse_port(&self, seen: &Seen<'_>, local: Option<SocketAddr>) -> Result<()> {
        match local {
            Some(local) if self.subject.host_network && local.port() != 0 => {
                let what = "of the host's network, which a copy cannot have as well";
                Err(seen.refuse(&format!("a socket at port {} {what}", local.port())))
            }
            _ => Ok(()),
        }
    }

    /// The groups that a socket is a member of. The kernel does not list them: it tells whether
    /// one is among those that anybody is a member of.
    fn groups_of(&mut self, seen: &Seen<'_>) -> Result<Vec<(IpAddr, u32)>> {
        let known = self.descriptions.multicast.get_or_insert_with(|| {
            let read = |file| crate::proc::read(seen.pid, file).unwrap_or_default();
            let [four, six] = ["net/igmp", "net/igmp6"].map(read);
            let mut all = igmp(&String::from_utf8_lossy(&four));
            all.extend(igmp6(&String::from_utf8_lossy(&six)));
            all
        });
        let mut groups = Vec::new();
        for &(group, interface) in known.iter() {
            match membership(&seen.copy, group, interface) {
                Some((EXCLUDE, 0)) => groups.push((group, interface)),
                Some(_) => {
                    return Err(seen.refuse("a socket that hears only some of a group"));
                }
                None => {}
            }
        }
        Ok(groups)
    }
}

/// What no socket may have.
fn check_socket(seen: &Seen<'_>) -> Result<()> {
    let general = |name| sockets::number(&seen.copy, libc::SOL_SOCKET, name);
    if general(libc::SO_PEEK_OFF).is_ok_and(|offset| offset >= 0) {
        return Err(seen.refuse("a socket with an offset to peek from"));
    }
    if sockets::has_filter(&seen.copy) {
        return Err(seen.refuse("a socket with a filter"));
    }
    Ok(())
}

/// What no connection may have.
fn check_connection(seen: &Seen<'_>) -> Result<()> {
    let flags = RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT;
    if !matches!(recv(&seen.copy, &mut [0_u8][..], flags), Err(rustix::io::Errno::INVAL)) {
        return Err(seen.refuse("a connection with urgent data"));
    }
    let mut layer = [0; 16];
    let length = sockets::option(&seen.copy, libc::IPPROTO_TCP, libc::TCP_ULP, &mut layer);
    if length.is_ok_and(|length| length > 0) {
        return Err(seen.refuse("a connection that the kernel encrypts"));
    }
    Ok(())
}

/// A socket of UDP at which something waits.
#[derive(Debug)]
pub(super) struct WithDatagrams {
    waiting: Waiting,
    copy: OwnedFd,
}

/// Room for what comes with a datagram: addresses, times, options of IP.
const ROOM: u32 = 1024;

impl Capture<'_> {
    /// Notes a socket, whose description is the next, for when init is asked.
    fn note_datagrams(&mut self, seen: &Seen<'_>) -> Result<()> {
        let copy = seen.copy.try_clone().context(|| "duplicating a descriptor".to_owned())?;
        let waiting = Waiting::of(seen, self.descriptions.all.len());
        self.descriptions.datagrams.push(WithDatagrams { waiting, copy });
        Ok(())
    }

    /// Has init look at datagrams.
    pub(super) fn look_into_datagrams(&mut self, looker: &mut dyn Looker) -> Result<()> {
        let found = std::mem::take(&mut self.descriptions.datagrams);
        let asked: Vec<_> = found.iter().map(|found| (&found.copy, ROOM)).collect();
        let all = inside::ask_messages(looker, &asked);
        let all = all.context(|| "looking at datagrams that wait in sockets".to_owned())?;
        for (WithDatagrams { waiting, .. }, messages) in found.iter().zip(all) {
            let messages =
                messages.ok_or_else(|| waiting.refuse("more than 16 MiB wait to be read"))?;
            let description = self.descriptions.all.get_mut(waiting.index);
            if let Some(DescriptionKind::Inet(inet)) = description.map(|found| &mut found.kind)
                && let InetState::Datagrams { unread, .. } = &mut inet.state
            {
                *unread = messages.into_iter().map(datagram).collect();
            }
        }
        Ok(())
    }
}

fn datagram(message: inside::Waiting) -> Datagram {
    let mut datagram = Datagram {
        from: inet::address(&message.sender),
        bytes: message.bytes,
        ..Datagram::default()
    };
    for (level, kind, data) in message.control {
        match (level, kind) {
            // `struct in_pktinfo`: interface, local address, destination.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let to = data.get(8..12).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                datagram.to = to.map(IpAddr::from);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let to = data.first_chunk::<16>();
                datagram.to = to.map(|bytes| IpAddr::from(*bytes).to_canonical());
            }
            (libc::IPPROTO_UDP, libc::UDP_GRO) => {
                datagram.segment = data.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    datagram
}

/// What can be done with a socket right now.
fn events(fd: &OwnedFd) -> Result<PollFlags> {
    let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).context(|| "poll".to_owned())?;
    let [polled] = fds;
    Ok(polled.revents())
}

/// Sizes of `SO_SNDBUF` and `SO_RCVBUF`, where they were chosen: `SO_BUF_LOCK` tells.
fn buffers(fd: &OwnedFd) -> (Option<u32>, Option<u32>) {
    const SO_BUF_LOCK: i32 = 72;
    let general = |name| sockets::number(fd, libc::SOL_SOCKET, name);
    let locks = general(SO_BUF_LOCK).unwrap_or(0);
    let size = |bit, name| {
        let chosen = locks & bit != 0;
        chosen.then(|| general(name).ok()).flatten().map(i32::cast_unsigned)
    };
    (size(1, libc::SO_SNDBUF), size(2, libc::SO_RCVBUF))
}

/// `MCAST_EXCLUDE`: all are heard but those that are named.
const EXCLUDE: u32 = 0;

/// How a socket is a member of a group, by `MCAST_MSFILTER`: mode, and how many sources are named.
fn membership(fd: &OwnedFd, group: IpAddr, interface: u32) -> Option<(u32, u32)> {
    const MCAST_MSFILTER: i32 = 48;
    /// Offsets in `struct group_filter`.
    const MODE: usize = 136;
    const LENGTH: usize = 144;
    let mut filter = crate::options::group(group, interface);
    filter.resize(LENGTH, 0);
    let level = if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    sockets::option(fd, level, MCAST_MSFILTER, &mut filter).ok()?;
    let word = |at: usize| Some(u32::from_ne_bytes(filter.get(at..at + 4)?.try_into().ok()?));
    Some((word(MODE)?, word(MODE + 4)?))
}

/// Groups of `/proc/net/igmp` that somebody has joined: lines of interfaces, each followed by
/// those of its groups, which begin with tabs.
fn igmp(text: &str) -> Vec<(IpAddr, u32)> {
    let mut interface = 0;
    let mut groups = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !line.starts_with('\t') {
            interface = first.parse().unwrap_or_default();
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            let group = IpAddr::from(group.to_ne_bytes());
            let users: u32 = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
            // Every interface is a member of the group of all hosts.
            if users > u32::from(group == IpAddr::from([224, 0, 0, 1])) {
                groups.push((group, interface));
            }
        }
    }
    groups
}

/// The same of `/proc/net/igmp6`: index and name of an interface, group, how many have joined.
fn igmp6(text: &str) -> Vec<(IpAddr, u32)> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let interface = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        let users: u32 = words.next()?.parse().ok()?;
        // The groups of all nodes.
        let own = matches!(group >> 112, 0xff01 | 0xff02) && group << 16 == 1 << 16;
        (users > u32::from(own)).then(|| (IpAddr::from(group.to_be_bytes()), interface))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_what_proc_lists() {
        let four = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\
                    \t\t\t\t0A0000EF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(igmp(four), [(IpAddr::from([239, 0, 0, 10]), 1)]);
        let six = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                   1    lo              ff150000000000000000000000000007     2 00000004 0\n";
        assert_eq!(igmp6(six), [("ff15::7".parse().unwrap(), 1)]);
    }
}
