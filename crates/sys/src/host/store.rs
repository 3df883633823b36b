//! The file system that the store is on.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Feature, Findings};

/// Less than this free, in bytes, is called too little: room for an image and some uppers.
const LEAST_FREE: u64 = 2 << 30;

/// The file system of a store.
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// The directory that was looked at: the store's, or the nearest parent that exists.
    pub directory: PathBuf,
    /// The file system's type: `ext4`, `xfs`, `btrfs`, ... or its magic number.
    pub file_system: String,
    /// Bytes free for this user.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

pub(super) fn probe(found: &mut Findings, store: &Path) -> Store {
    let directory = store.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let magic = rustix::fs::statfs(directory).map_or(0, |stat| stat.f_type as u64);
    let file_system = name_of(magic).map_or_else(|| format!("{magic:#x}"), str::to_owned);
    let room = rustix::fs::statvfs(directory);
    let (free, size) =
        room.map_or((0, 0), |room| (room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize));
    let shown = directory.display();
    let detail = format!("{file_system}, {} GiB of {} free at {shown}", free >> 30, size >> 30);
    if free >= LEAST_FREE {
        found.present(Feature::StoreSpace, detail);
    } else {
        let remedy = "free some room, or point XDG_DATA_HOME to a larger file system";
        found.absent(Feature::StoreSpace, detail, Some(remedy));
    }
    Store { directory: directory.to_owned(), file_system, free, size }
}

/// Names for the magic numbers of statfs(2), where a store may be.
fn name_of(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0xf2f5_2010 => "f2fs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xff53_4d42 => "cifs",
        _ => return None,
    })
}
