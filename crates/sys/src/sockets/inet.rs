//! Addresses of IPv4 and IPv6 as the kernel writes them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;

/// An address of IPv4 or IPv6 in a `struct sockaddr`; nothing for another family.
pub fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    if i32::from(family) == libc::AF_INET {
        let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
        return Some(SocketAddrV4::new(ip.into(), port).into());
    }
    if i32::from(family) == libc::AF_INET6 {
        let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
        return Some(SocketAddrV6::new(ip.into(), port, 0, scope).into());
    }
    None
}

/// A socket's own address; nothing where it is of another family.
pub fn local(socket: impl AsFd) -> io::Result<Option<SocketAddr>> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?).ok())
}

/// The address that a socket is connected to, if it is.
pub fn peer(socket: impl AsFd) -> io::Result<Option<SocketAddr>> {
    match rustix::net::getpeername(socket) {
        Ok(address) => Ok(address.and_then(|address| SocketAddr::try_from(address).ok())),
        Err(rustix::io::Errno::NOTCONN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{peek, set_number};
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_message_is_looked_at_and_stays() {
        let (one, other) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        set_number(&one, libc::IPPROTO_IP, libc::IP_PKTINFO, 1).unwrap();
        assert_eq!(peek(&one, &mut [0; 8], 64).unwrap(), None);
        other.send_to(b"hello", one.local_addr().unwrap()).unwrap();
        let mut bytes = [0; 3];
        let message = peek(&one, &mut bytes, 64).unwrap().unwrap();
        assert_eq!((message.length, bytes), (5, *b"hel"));
        assert_eq!(address(&message.sender), Some(other.local_addr().unwrap()));
        let [(level, kind, data)] = message.control.as_slice() else { panic!("{message:?}") };
        assert_eq!((*level, *kind, data.len()), (libc::IPPROTO_IP, libc::IP_PKTINFO, 12));
        let mut bytes = [0; 8];
        assert_eq!(one.recv(&mut bytes).unwrap(), 5);
    }

    #[test]
    fn addresses_of_sockets_are_told() {
        let six = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(local(&six).unwrap(), Some(six.local_addr().unwrap()));
        assert_eq!(peer(&six).unwrap(), None);
        six.connect(six.local_addr().unwrap()).unwrap();
        assert_eq!(peer(&six).unwrap(), Some(six.local_addr().unwrap()));
    }
}
