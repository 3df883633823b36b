//! How far a directory was read.
//!
//! A position in a directory means something to its file system alone. In a copy of the directory
//! it may lead elsewhere, so what there is to read behind it is compared.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};

use crate::error::{Context, Error, Result};
use crate::picture::Rest;

/// How many entries are looked at.
const MOST: u64 = 1_000_000;

/// What there is to read of a directory from a position on, which `file` may or may not have.
pub(crate) fn rest(file: impl AsFd, position: u64) -> Result<Rest> {
    let failed = || "reading a directory".to_owned();
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = open(path.as_str(), flags, Mode::empty()).context(failed)?;
    seek(&own, SeekFrom::Start(position)).context(failed)?;
    read(&own)
}

/// Gives a directory the position behind which there is just this to read.
pub(crate) fn restore(file: &OwnedFd, position: u64, wanted: Rest, path: &[u8]) -> Result<()> {
    let failed = || "reading a directory".to_owned();
    if wanted.count == 0 {
        // To its end, wherever that is here.
        return read(file).map(drop);
    }
    if rest(file, position)? != wanted {
        let path = String::from_utf8_lossy(path);
        return Err(Error::Unsteady(format!("the directory {path} is being read")));
    }
    seek(file, SeekFrom::Start(position)).context(failed).map(drop)
}

fn read(file: &OwnedFd) -> Result<Rest> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut entries = RawDir::new(file, buffer.spare_capacity_mut());
    let mut rest = Rest::default();
    while let Some(entry) = entries.next() {
        let entry = entry.context(|| "reading a directory".to_owned())?;
        let mut hasher = DefaultHasher::new();
        entry.file_name().to_bytes().hash(&mut hasher);
        // Whatever their order.
        rest.sum = rest.sum.wrapping_add(hasher.finish());
        rest.count += 1;
        if rest.count > MOST {
            return Err(Error::Unsteady("a directory is too large to be looked at".to_owned()));
        }
    }
    Ok(rest)
}
