//! The sockets of a network namespace, as the kernel lists them.
//!
//! See [sock_diag(7)](https://man7.org/linux/man-pages/man7/sock_diag.7.html). What a socket made
//! by [`open`] tells is of the namespace that it was made in, whoever asks through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`: the type of requests and of what is found.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Most messages that are taken of one list: more sockets than a sandbox may have.
const MOST: usize = 1 << 20;

/// A socket that can be asked for the sockets of this process's network namespace.
pub fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    Ok(socket)
}

/// Sends a request of one family, `struct inet_diag_req_v2` or its like, and gives what is found to
/// `each`, as the family lays it out.
pub fn dump(socket: impl AsFd, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend_from_slice(&((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&DUMP.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..MOST {
        // The answer is made while it is asked for, so there is nothing to wait for.
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)?;
        if messages(buffer.get(..length).unwrap_or_default(), &mut each)? {
            return Ok(());
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Takes the messages of one packet apart; tells whether they were the last.
fn messages(mut rest: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(*rest.first_chunk().ok_or_else(bad)?) as usize;
        let kind = rest.get(4..6).and_then(|bytes| bytes.try_into().ok()).ok_or_else(bad)?;
        let body = rest.get(HEADER..length).ok_or_else(bad)?;
        match u16::from_ne_bytes(kind) {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => each(body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// A TCP socket of a namespace, with a descriptor or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// `TCP_*` of `netinet/tcp.h`.
    pub state: u8,
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's.
    pub peer: SocketAddr,
    /// Bytes that have not been read.
    pub unread: u32,
    /// Bytes that have not been acknowledged.
    pub unsent: u32,
    /// The inode of a socket that somebody has or had a descriptor of, else 0.
    pub inode: u32,
}

/// All TCP sockets in these states, bit N for state N.
pub fn tcp(socket: impl AsFd, states: u32) -> io::Result<Vec<Tcp>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, a socket's id.
        let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend_from_slice(&states.to_ne_bytes());
        request.resize(8 + 48, 0);
        dump(&socket, &request, |body| found.extend(parse(body)))?;
    }
    Ok(found)
}

/// `struct inet_diag_msg`
fn parse(body: &[u8]) -> Option<Tcp> {
    let byte = |at: usize| body.get(at).copied();
    let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let six = i32::from(byte(0)?) == libc::AF_INET6;
    let ip = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(if six { Ipv6Addr::from(bytes).into() } else { Ipv4Addr::new(a, b, c, d).into() })
    };
    Some(Tcp {
        state: byte(1)?,
        local: SocketAddr::new(ip(8)?, port(4)?),
        peer: SocketAddr::new(ip(24)?, port(6)?),
        unread: word(56)?,
        unsent: word(60)?,
        inode: word(68)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn both_ends_of_a_connection_are_found_with_what_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"hello").unwrap();
        let all = tcp(open().unwrap(), u32::MAX).unwrap();
        let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let near = all.iter().find(|tcp| (tcp.local, tcp.peer) == (here, there)).unwrap();
        let far = all.iter().find(|tcp| (tcp.local, tcp.peer) == (there, here)).unwrap();
        // It has not been accepted.
        assert_eq!((far.inode, far.unread, far.state), (0, 5, 1));
        assert!(near.inode != 0 && near.unread == 0);
    }
}
