//! Unix sockets.

use serde::{Deserialize, Serialize};

/// A Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: u32,
    /// What it is to others.
    pub state: State,
    /// What it is bound to: a path, or a zero byte and an abstract name.
    pub name: Option<Vec<u8>>,
    /// Where its file is, if it is anywhere.
    pub place: Option<Vec<u8>>,
    /// What it has shut down: 1 for reading, 2 for writing, or both.
    pub shutdown: u8,
    /// User and group of who made it listen, or of its peer: what `SO_PEERCRED` tells.
    pub peer_user: (u32, u32),
    /// Options of `SOL_SOCKET`, by their numbers, as the kernel has them.
    pub options: Vec<(i32, Vec<u8>)>,
    /// What nobody has read yet: one of all bytes of a stream, or each for itself.
    pub unread: Vec<Message>,
}

/// What a socket is to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing yet.
    #[default]
    Alone,
    /// It awaits connections.
    Listens {
        /// How many may wait.
        backlog: u32,
        /// Those who have connected and were not accepted, in order: indices of descriptions.
        pending: Vec<usize>,
    },
    /// It has connected to one that has not accepted it.
    Pends,
    /// Its peer, or what its messages go to: index of the description.
    Connected(usize),
    /// Its peer is gone.
    Left {
        /// The peer's name.
        name: Option<Vec<u8>>,
        /// The next call fails with `ECONNRESET`: the peer had not read all.
        reset: bool,
    },
}

/// What waits in a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The name of who sent it.
    pub sender: Option<Vec<u8>>,
    /// Process, user and group of who sent it, where the socket asks for them.
    pub credentials: Option<[u32; 3]>,
}
