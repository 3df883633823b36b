//! Netlink sockets, by which programs hear of interfaces, addresses and devices.

use forkyard_sys::sockets;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::getsockname;
use rustix::net::netlink::SocketAddrNetlink;

use super::Capture;
use super::descriptors::Seen;
use crate::error::{Context, Result};
use crate::picture::netlink::Netlink;

/// `NETLINK_LIST_MEMBERSHIPS` of linux/netlink.h.
const MEMBERSHIPS: i32 = 9;

/// Options that are kept: those of sockets, then `NETLINK_PKTINFO`, `_BROADCAST_ERROR`,
/// `_NO_ENOBUFS`, `_CAP_ACK`, `_EXT_ACK`, `_GET_STRICT_CHK`.
const OPTIONS: [(i32, i32); 13] = [
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_NETLINK, 3),
    (libc::SOL_NETLINK, 4),
    (libc::SOL_NETLINK, 5),
    (libc::SOL_NETLINK, 10),
    (libc::SOL_NETLINK, 11),
    (libc::SOL_NETLINK, 12),
];

impl Capture<'_> {
    /// A netlink socket at which nothing waits. What waits would be lost to clones: there is no way
    /// to have the kernel say it again.
    pub(super) fn netlink_socket(&mut self, seen: &Seen<'_>) -> Result<Netlink> {
        let failed = || "asking a netlink socket".to_owned();
        let general = |name| sockets::number(&seen.copy, libc::SOL_SOCKET, name).context(failed);
        // None is connected to another but the kernel: that takes rights which no guest has.
        let local = getsockname(&seen.copy).and_then(SocketAddrNetlink::try_from);
        let local = local.context(failed)?;
        if self.subject.host_network && local.pid() != 0 {
            let what = "a netlink socket with a port in the host's network";
            return Err(seen.refuse(what));
        }
        // Without a filter there is nothing to tell.
        let filter = if sockets::has_filter(&seen.copy) {
            let filter = sockets::filter(&seen.copy);
            filter.map_err(|_| seen.refuse("a netlink socket with a filter of eBPF"))?
        } else {
            Vec::new()
        };
        let mut polled = [PollFd::new(&seen.copy, PollFlags::IN)];
        let waits = poll(&mut polled, Some(&Timespec::default())).context(failed)? > 0;
        if waits {
            return Err(seen.refuse("something waits to be read of a netlink socket"));
        }
        let options = OPTIONS.into_iter().filter_map(|(level, name)| {
            // Not every kernel has all of them.
            Some((level, name, sockets::value(&seen.copy, level, name).ok()?))
        });
        let members = sockets::value(&seen.copy, libc::SOL_NETLINK, MEMBERSHIPS).context(failed)?;
        Ok(Netlink {
            kind: general(libc::SO_TYPE)?.cast_unsigned(),
            protocol: general(libc::SO_PROTOCOL)?.cast_unsigned(),
            port: local.pid(),
            groups: groups(&members),
            filter,
            options: options.collect(),
        })
    }
}

/// Numbers of groups whose bits are set, the first of which is that of group 1.
fn groups(bits: &[u8]) -> Vec<u32> {
    let is_set = |number: &u32| {
        let (byte, bit) = ((number - 1) / 8, (number - 1) % 8);
        bits.get(byte as usize).is_some_and(|bits| bits >> bit & 1 == 1)
    };
    (1..=bits.len() as u32 * 8).filter(is_set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_from_one() {
        assert_eq!(groups(&[0b0001_0011, 1, 0, 0, 0x80]), [1, 2, 5, 9, 40]);
        assert!(groups(&[]).is_empty());
    }
}
