//! Sockets to the kernel.

use serde::{Deserialize, Serialize};

/// A netlink socket at which nothing waits, see netlink(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netlink {
    /// `SOCK_RAW` or `SOCK_DGRAM`
    pub kind: u32,
    /// `NETLINK_*`
    pub protocol: u32,
    /// Its port, where it is bound.
    pub port: u32,
    /// Numbers of the groups that it is a member of, from 1 up.
    pub groups: Vec<u32>,
    /// Instructions of its filter, see [`forkyard_sys::sockets::attach_filter`].
    pub filter: Vec<u64>,
    /// Levels, options, and what getsockopt(2) gave.
    pub options: Vec<(i32, i32, Vec<u8>)>,
}
