//! Files that no path leads to, and memory that processes share.

use forkyard_sys::system_v::Object;
use serde::{Deserialize, Serialize};

/// Something that every clone makes anew, with the same contents, for all who refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loose {
    /// What it is.
    pub kind: LooseKind,
    /// Length in bytes.
    pub size: u64,
    /// Its owner, inside.
    pub owner: (u32, u32),
    /// `st_mode`
    pub mode: u32,
    /// Times of the last access and modification: seconds and nanoseconds.
    pub times: [(i64, i64); 2],
    /// What is not zeros: offset, length, and where it is staged.
    pub parts: Vec<(u64, u64, u64)>,
}

/// What a loose file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LooseKind {
    /// `MAP_SHARED` and `MAP_ANONYMOUS`: init maps it at `at`, and all others take it from there.
    Anonymous {
        /// First address.
        at: u64,
    },
    /// Of shmget(2): init attaches it at two addresses, and all others take it from there.
    SystemV {
        /// What it is.
        object: Object,
        /// First address where it can be written.
        at: u64,
        /// Where it can be read only.
        read_only: u64,
    },
    /// Of `memfd_create`(2).
    Memfd {
        /// Its name.
        name: Vec<u8>,
        /// `F_SEAL_*`
        seals: u32,
    },
    /// A file that was deleted, or never had a name.
    Deleted {
        /// The path that it had, or below which it was made.
        path: Vec<u8>,
        /// It may still get a name: see `O_TMPFILE` in open(2).
        nameable: bool,
    },
    /// A directory that was removed.
    Removed {
        /// The path that it had.
        path: Vec<u8>,
    },
}

/// A file that is mapped or run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FileRef {
    /// By its path.
    Path(Vec<u8>),
    /// Index into the picture's loose files.
    Loose(usize),
}

/// What there is left to read of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// How many entries.
    pub count: u64,
    /// A sum over their names.
    pub sum: u64,
}
