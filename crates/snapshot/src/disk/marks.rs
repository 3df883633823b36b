//! Files of an image that processes have mapped: whether they are still the same.
//!
//! A process goes on in the middle of its code. Were a library another one by now, as on a machine
//! whose own programs are the image and were upgraded, it would run into nonsense.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::picture::{AreaKind, Body, FileRef, Picture};

/// A file by its path in the sandbox, and what tells whether it is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    size: i64,
    modified: (i64, u64),
}

impl Mark {
    fn of(path: &[u8], stat: &Stat) -> Self {
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        Self { path: path.to_vec(), size: stat.st_size, modified }
    }
}

/// Marks what a picture's processes have mapped, below this root. What was changed since `taken`,
/// seconds since the epoch, is left out: it may be another one by now.
pub(super) fn mark(picture: &Picture, root: impl AsFd, taken: i64) -> Vec<Mark> {
    let look = |path: Vec<u8>| {
        let stat = look_at(&root, &path)?;
        (stat.st_ctime < taken).then(|| Mark::of(&path, &stat))
    };
    mapped(picture).into_iter().filter_map(look).collect()
}

/// Checks that the files below this root are those that were marked.
///
/// # Errors
/// [`Error::Unfit`] with the first that is another.
pub fn check_marks(marks: &[Mark], root: impl AsFd) -> Result<()> {
    for mark in marks {
        let now = look_at(&root, &mark.path).map(|stat| Mark::of(&mark.path, &stat));
        if now.as_ref() != Some(mark) {
            let path = String::from_utf8_lossy(&mark.path).into_owned();
            return Err(Error::Unfit(match now {
                Some(_) => format!("{path} of its image is another file than it was"),
                None => format!("{path} of its image is gone"),
            }));
        }
    }
    Ok(())
}

fn mapped(picture: &Picture) -> BTreeSet<Vec<u8>> {
    let mut paths = BTreeSet::new();
    let mut add = |file: &FileRef| {
        if let FileRef::Path(path) = file {
            paths.insert(path.clone());
        }
    };
    for process in &picture.processes {
        let Body::Alive(alive) = &process.body else { continue };
        add(&alive.memory.program);
        for area in &alive.memory.areas {
            if let AreaKind::File { file, .. } = &area.kind {
                add(file);
            }
        }
    }
    paths
}

/// Nothing is opened: a guest may have put anything there meanwhile.
fn look_at(root: impl AsFd, path: &[u8]) -> Option<Stat> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve).ok()?;
    fstat(file).ok()
}
