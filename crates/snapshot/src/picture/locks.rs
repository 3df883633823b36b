//! What a descriptor has beside a position.

use serde::{Deserialize, Serialize};

/// A lock on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Whose it is.
    pub kind: LockKind,
    /// It keeps all others away, and not only writers.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; none for the end of the file, wherever that is.
    pub end: Option<u64>,
}

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// The description's, of all of the file: flock(2).
    Whole,
    /// The description's: `F_OFD_SETLK`.
    Description,
    /// The process's: `F_SETLK`.
    Process,
}

/// Who is told by a signal, see `F_SETOWN_EX` in fcntl(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalOwner {
    /// `F_OWNER_*`
    pub kind: i32,
    /// Id of a thread, process or group.
    pub id: u32,
    /// `F_SETSIG`
    pub signal: i32,
}
