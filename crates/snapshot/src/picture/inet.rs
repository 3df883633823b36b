//! Sockets of IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A socket of IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inet {
    /// It is of IPv6.
    pub six: bool,
    /// `IPPROTO_*`: TCP, MPTCP or UDP.
    pub protocol: u32,
    /// User and group, by the ids inside.
    pub owner: (u32, u32),
    /// Its own address, where it is bound to one.
    pub local: Option<SocketAddr>,
    /// What it is doing.
    pub state: InetState,
    /// Options by their place in a table of this crate's: what getsockopt(2) gave, its first byte
    /// the lowest.
    pub options: Vec<(u8, u128)>,
    /// `SO_SNDBUF` and `SO_RCVBUF`, where the program chose them.
    pub buffers: (Option<u32>, Option<u32>),
}

/// What a socket is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InetState {
    /// TCP that has not been connected.
    Unconnected,
    /// TCP that waits for connections.
    Listening {
        /// Most that wait.
        backlog: u32,
        /// Addresses from and to which there are connections whose other end is gone, and which
        /// wait to be accepted.
        left: Vec<(SocketAddr, SocketAddr)>,
    },
    /// TCP that is waiting for an answer of this address.
    Connecting(SocketAddr),
    /// TCP that got no for an answer, and has not told so.
    Refused,
    /// A TCP connection.
    Connected(Connection),
    /// A TCP connection that is over.
    Over {
        /// What was received and has not been read.
        #[serde(with = "serde_bytes")]
        unread: Vec<u8>,
        /// It was reset, and has not told so.
        reset: bool,
    },
    /// UDP.
    Datagrams {
        /// The address that it is connected to.
        peer: Option<SocketAddr>,
        /// What waits.
        unread: Vec<Datagram>,
        /// It was shut down for reading, and for writing.
        shut: (bool, bool),
        /// Groups that it is a member of, with the index of an interface.
        groups: Vec<(IpAddr, u32)>,
    },
}

/// One end of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The other end's address.
    pub peer: SocketAddr,
    /// Where the other end is.
    pub far: Far,
    /// What the other end has sent and this one has not read, wherever it waited.
    #[serde(with = "serde_bytes")]
    pub unread: Vec<u8>,
    /// This end will send no more.
    pub ended: bool,
    /// This end was shut down for reading.
    pub deaf: bool,
}

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Far {
    /// It is the description with this index.
    Here(usize),
    /// It waits to be accepted: those with lower numbers came before.
    Waiting(u64),
    /// It is gone, or outside.
    Gone,
}

/// A message that has not been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Who sent it.
    pub from: Option<SocketAddr>,
    /// Where to, if the socket tells.
    pub to: Option<IpAddr>,
    /// It is several of this length in one.
    pub segment: Option<u16>,
    /// What it says.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}
