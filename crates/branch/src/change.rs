//! What a change is.

use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

/// A change to one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From the overlay's top, without a slash before it; any bytes but NUL.
    pub path: Vec<u8>,
    /// What was done.
    pub kind: ChangeKind,
    /// What it was.
    pub old: Option<Node>,
    /// What it is.
    pub new: Option<Node>,
    /// What of it is different; nothing where it was not there before, or is not any more.
    pub aspects: Aspects,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is there and was not.
    Added,
    /// It was there, and what it is, or how, is different now.
    Changed,
    /// It was there and is not any more.
    Removed,
    /// A file of the same contents was at another path, and is not there any more.
    Renamed {
        /// That path.
        from: Vec<u8>,
    },
}

/// What kind of file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or fifo.
    Other,
}

/// A file on one of the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Where a symbolic link leads.
    pub target: Option<Vec<u8>>,
    /// File type and device number, which tell special files apart.
    pub(crate) special: (u32, u64),
    /// Last change of its contents: seconds since the epoch, and nanoseconds.
    pub(crate) modified: (i64, i64),
    /// Number of its inode, where it has several names.
    pub(crate) linked: Option<u64>,
    /// In which layer it is.
    pub(crate) layer: usize,
}

/// What of a file is different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aspects {
    /// What kind of file it is.
    pub kind: bool,
    /// Its bytes, or where a link leads.
    pub contents: bool,
    /// Its permission bits.
    pub mode: bool,
    /// Its owner or group.
    pub owner: bool,
    /// Its extended attributes.
    pub attributes: bool,
}

impl Aspects {
    /// Whether anything is.
    pub fn any(self) -> bool {
        self.kind || self.contents || self.mode || self.owner || self.attributes
    }
}

impl Node {
    pub(crate) fn new(stat: &Stat, layer: usize) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Other,
        };
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == Kind::Directory { 0 } else { stat.st_size as u64 },
            target: None,
            special: (stat.st_mode & !0o7777, stat.st_rdev),
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            linked: (kind != Kind::Directory && stat.st_nlink > 1).then_some(stat.st_ino),
            layer,
        }
    }
}
