//! What is to be moved where, written down before anything is moved.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::PLACE;
use crate::error::{Error, Result};

/// It has this name when all of it is on disk.
const NAME: &str = "journal";
const PART: &str = "journal.part";

/// Most bytes of it: a million changes, of paths of some hundred bytes.
const LENGTH_MAX: u64 = 1 << 30;

/// A move. Paths are from the directory's top; `n` names a file of the place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// What is at the path goes into the place.
    Take { path: Vec<u8>, n: u32, old: Identity },
    /// An empty directory goes into the place.
    TakeDirectory { path: Vec<u8>, n: u32, ino: u64 },
    /// What is in the place goes to the path, where nothing is.
    Put { path: Vec<u8>, n: u32, ino: u64 },
    /// What is in the place and what is at the path change places.
    Swap { path: Vec<u8>, n: u32, ino: u64, old: Identity },
    /// A directory gets another mode and owner.
    Mode { path: Vec<u8>, old: Rights, new: Rights },
    /// A directory that was put gets the time that it has in the sandbox.
    Time { path: Vec<u8>, modified: (i64, i64) },
}

/// Mode and owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What a file is known by, that a rename does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) ino: u64,
    size: i64,
    modified: (i64, i64),
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        let modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
        Self { ino: stat.st_ino, size: stat.st_size, modified }
    }
}

impl Step {
    pub(crate) fn path(&self) -> &[u8] {
        match self {
            Self::Take { path, .. }
            | Self::TakeDirectory { path, .. }
            | Self::Put { path, .. }
            | Self::Swap { path, .. }
            | Self::Mode { path, .. }
            | Self::Time { path, .. } => path,
        }
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |e| Error::system(call, PLACE.as_bytes(), e)
}

/// Writes the steps down, for good: from here on they are made.
pub(crate) fn write(top: &OwnedFd, place: &OwnedFd, steps: &[Step]) -> Result<()> {
    let steps = postcard::to_stdvec(steps).map_err(|e| Error::Write(e.to_string()))?;
    let sum = Sha256::digest(&steps);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(place, PART, flags, Mode::RUSR | Mode::WUSR).map_err(failed("open"))?;
    for bytes in [sum.as_slice(), &steps] {
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest));
            rest = rest.get(written.map_err(failed("write"))?..).unwrap_or_default();
        }
    }
    fsync(&file).map_err(failed("fsync"))?;
    renameat(place, PART, place, NAME).map_err(failed("rename"))?;
    fsync(place).map_err(failed("fsync"))?;
    fsync(top).map_err(failed("fsync"))
}

/// The steps that were written down; nothing where they were not, or are all done.
pub(crate) fn read(place: &OwnedFd) -> Result<Option<Vec<Step>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(place, NAME, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed("open")(e)),
    };
    let damaged = || failed("read")(Errno::BADMSG);
    let length = rustix::fs::fstat(&file).map_err(failed("stat"))?.st_size as u64;
    if length > LENGTH_MAX {
        return Err(damaged());
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)
        .map_err(|_| failed("read")(Errno::IO))?;
    let (sum, steps) = bytes.split_at_checked(32).ok_or_else(damaged)?;
    if Sha256::digest(steps).as_slice() != sum {
        return Err(damaged());
    }
    postcard::from_bytes(steps).map(Some).map_err(|_| damaged())
}

/// Says that all is done, and on disk.
pub(crate) fn remove(place: impl AsFd) -> Result<()> {
    unlinkat(&place, NAME, AtFlags::empty()).map_err(failed("unlink"))?;
    fsync(&place).map_err(failed("fsync"))
}
