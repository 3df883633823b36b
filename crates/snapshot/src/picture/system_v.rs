//! System V objects that hold no memory of a process.

use forkyard_sys::system_v::Object;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A set of semaphores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphores {
    /// What it is.
    pub object: Object,
    /// Their values.
    pub values: Vec<u16>,
    /// An operation has been done with one.
    pub used: bool,
}

/// A message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// What it is.
    pub object: Object,
    /// How many bytes it holds at most.
    pub capacity: u64,
    /// Types and bytes, oldest first.
    pub messages: Vec<(i64, ByteBuf)>,
}
