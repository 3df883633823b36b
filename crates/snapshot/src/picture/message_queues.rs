//! POSIX message queues.

use std::ffi::CString;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Its name, with a slash first.
    pub name: CString,
    /// User and group.
    pub owner: (u32, u32),
    /// Permissions.
    pub mode: u32,
    /// How many messages it holds at most.
    pub capacity: u32,
    /// How many bytes each has at most.
    pub size: u32,
    /// Bytes and priorities, next first.
    pub messages: Vec<(ByteBuf, u32)>,
}
