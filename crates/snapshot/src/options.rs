//! Options of sockets of IPv4 and IPv6 that a copy has as well.

use std::net::IpAddr;
use std::os::fd::AsFd;

use forkyard_sys::sockets;

/// An option by level and name, and how long its value is at most.
struct Known {
    level: i32,
    name: i32,
    length: usize,
    of: Of,
}

/// Which sockets have an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    Tcp,
    /// TCP that is not connected: of one that is they tell something else.
    IdleTcp,
    Udp,
    Six,
}

/// What kind of socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) tcp: bool,
    pub(crate) six: bool,
    /// It is connected, or was.
    pub(crate) connected: bool,
}

const fn known(level: i32, name: i32, length: usize, of: Of) -> Known {
    Known { level, name, length, of }
}

const fn socket(name: i32) -> Known {
    known(libc::SOL_SOCKET, name, 4, Of::All)
}

const fn tcp(name: i32) -> Known {
    known(libc::IPPROTO_TCP, name, 4, Of::Tcp)
}

const fn ip(name: i32) -> Known {
    known(libc::IPPROTO_IP, name, 4, Of::All)
}

const fn six(name: i32) -> Known {
    known(libc::IPPROTO_IPV6, name, 4, Of::Six)
}

const fn udp(name: i32) -> Known {
    known(libc::IPPROTO_UDP, name, 4, Of::Udp)
}

/// The place of `SO_REUSEADDR`: all sockets have it while they are built, so that none is in
/// another's way.
const REUSE: usize = 0;

/// All of them. Not there is what changes by itself, needs rights over the host, or was read with
/// the state: buffers, errors, counters.
const KNOWN: [Known; 72] = [
    socket(libc::SO_REUSEADDR),
    socket(libc::SO_REUSEPORT),
    socket(libc::SO_KEEPALIVE),
    socket(libc::SO_BROADCAST),
    socket(libc::SO_DONTROUTE),
    socket(libc::SO_OOBINLINE),
    socket(libc::SO_PRIORITY),
    socket(libc::SO_RCVLOWAT),
    socket(libc::SO_TIMESTAMP),
    socket(libc::SO_TIMESTAMPNS),
    socket(libc::SO_TIMESTAMPING),
    socket(libc::SO_MARK),
    socket(libc::SO_RXQ_OVFL),
    socket(libc::SO_NO_CHECK),
    socket(libc::SO_ZEROCOPY),
    socket(libc::SO_BUSY_POLL),
    known(libc::SOL_SOCKET, libc::SO_LINGER, 8, Of::All),
    known(libc::SOL_SOCKET, libc::SO_RCVTIMEO, 16, Of::All),
    known(libc::SOL_SOCKET, libc::SO_SNDTIMEO, 16, Of::All),
    // An interface's name.
    known(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16, Of::All),
    tcp(libc::TCP_NODELAY),
    tcp(libc::TCP_CORK),
    tcp(libc::TCP_KEEPIDLE),
    tcp(libc::TCP_KEEPINTVL),
    tcp(libc::TCP_KEEPCNT),
    tcp(libc::TCP_SYNCNT),
    tcp(libc::TCP_LINGER2),
    tcp(libc::TCP_USER_TIMEOUT),
    tcp(libc::TCP_THIN_LINEAR_TIMEOUTS),
    tcp(libc::TCP_NOTSENT_LOWAT),
    tcp(libc::TCP_INQ),
    // An algorithm's name.
    known(libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16, Of::Tcp),
    known(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4, Of::IdleTcp),
    known(libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4, Of::IdleTcp),
    known(libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 4, Of::IdleTcp),
    known(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 4, Of::IdleTcp),
    known(libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 4, Of::IdleTcp),
    ip(libc::IP_TOS),
    ip(libc::IP_TTL),
    ip(libc::IP_MTU_DISCOVER),
    ip(libc::IP_RECVERR),
    ip(libc::IP_PKTINFO),
    ip(libc::IP_RECVTTL),
    ip(libc::IP_RECVTOS),
    ip(libc::IP_RECVOPTS),
    ip(libc::IP_RETOPTS),
    ip(libc::IP_RECVORIGDSTADDR),
    ip(libc::IP_FREEBIND),
    ip(libc::IP_TRANSPARENT),
    ip(libc::IP_BIND_ADDRESS_NO_PORT),
    ip(libc::IP_MINTTL),
    ip(libc::IP_MULTICAST_TTL),
    ip(libc::IP_MULTICAST_LOOP),
    ip(libc::IP_MULTICAST_IF),
    ip(libc::IP_MULTICAST_ALL),
    // `IP_LOCAL_PORT_RANGE`
    ip(51),
    six(libc::IPV6_V6ONLY),
    six(libc::IPV6_UNICAST_HOPS),
    six(libc::IPV6_MTU_DISCOVER),
    six(libc::IPV6_RECVERR),
    six(libc::IPV6_RECVPKTINFO),
    six(libc::IPV6_RECVHOPLIMIT),
    six(libc::IPV6_RECVTCLASS),
    six(libc::IPV6_TCLASS),
    six(libc::IPV6_FREEBIND),
    six(libc::IPV6_TRANSPARENT),
    six(libc::IPV6_MULTICAST_HOPS),
    six(libc::IPV6_MULTICAST_LOOP),
    six(libc::IPV6_MULTICAST_IF),
    udp(libc::UDP_CORK),
    // `UDP_SEGMENT` and `UDP_GRO`
    udp(103),
    udp(104),
];

impl Known {
    fn has(&self, kind: Kind) -> bool {
        match self.of {
            Of::All => true,
            Of::Tcp => kind.tcp,
            Of::IdleTcp => kind.tcp && !kind.connected,
            Of::Udp => !kind.tcp,
            Of::Six => kind.six,
        }
    }

    /// Nothing for one that this kernel or this socket does not have.
    fn read(&self, fd: impl AsFd) -> Option<u128> {
        let mut bytes = [0; 16];
        let value = bytes.get_mut(..self.length)?;
        sockets::option(fd, self.level, self.name, value).ok()?;
        Some(u128::from_le_bytes(bytes))
    }
}

/// Reads all options of a socket.
pub(crate) fn read(fd: impl AsFd, kind: Kind) -> Vec<(u8, u128)> {
    let all = KNOWN.iter().zip(0..).filter(|(known, _)| known.has(kind));
    all.filter_map(|(known, place)| Some((place, known.read(&fd)?))).collect()
}

/// Gives a socket the options that it does not have yet. What the kernel does not let change at
/// this time is as it is: the socket was made so.
pub(crate) fn write(fd: impl AsFd, options: &[(u8, u128)]) {
    for &(place, value) in options {
        let Some(known) = KNOWN.get(usize::from(place)) else { continue };
        if known.read(&fd) != Some(value) {
            let bytes = value.to_le_bytes();
            let value = bytes.get(..known.length).unwrap_or_default();
            let _ = sockets::set_option(&fd, known.level, known.name, value);
        }
    }
}

/// Gives a new socket its options before it is bound: all but the right to an address that
/// another has, which it gets anyway for now.
pub(crate) fn write_first(fd: impl AsFd, options: &[(u8, u128)]) -> std::io::Result<()> {
    let others: Vec<_> =
        options.iter().copied().filter(|(place, _)| usize::from(*place) != REUSE).collect();
    write(&fd, &others);
    sockets::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// A group of hosts and an interface: `struct group_req`, as other structures begin, too.
pub(crate) fn group(group: IpAddr, interface: u32) -> Vec<u8> {
    /// Offset and length of the group's address.
    const ADDRESS: usize = 8;
    const STORAGE: usize = 128;
    let mut bytes = interface.to_ne_bytes().to_vec();
    bytes.resize(ADDRESS, 0);
    match group {
        IpAddr::V4(ip) => {
            bytes.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend_from_slice(&[0; 6]);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.resize(ADDRESS + STORAGE, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn options_come_over_to_another_socket() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let kind = Kind { tcp: true, six: false, connected: false };
        sockets::set_number(&one, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77).unwrap();
        sockets::set_option(&one, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        let options = read(&one, kind);
        assert_ne!(read(&other, kind), options);
        write(&other, &options);
        assert_eq!(read(&other, kind), options);
    }
}
