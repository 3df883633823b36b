//! Brings changes into a directory: all of them or none, whenever whoever does it is killed.
//!
//! What is new is made beside the directory's own files, in [`PLACE`], and put on disk; then it is
//! written down what is to be moved where, and only then is anything moved. Each move is one
//! rename(2), which gives the old file for the new one, so that all of it can be taken back; which
//! of them were made is told by where the files are. So [`recover`] can finish what was cut off, or
//! take it back where the directory was changed by others meanwhile.
//!
//! # What stays behind
//!
//! Set-id bits and capabilities of files, with which a guest's program would have the rights of a user
//! of the host; devices are refused, as is whatever has the name of [`PLACE`]. All else is kept: modes,
//! owners, times, links of both kinds, attributes, holes, names in any bytes, empty directories.
//!
//! # Conflicts
//!
//! A file that was changed since the branch began is not touched, and nothing is: a file's time of
//! change (`st_ctime`), which nobody can set, is compared with the file system's own clock at that
//! moment, see [`clock`]. What one commit wrote is no conflict to the next of the same branch, which
//! is told by [`Known`].

mod apply;
mod journal;
mod plan;
mod stage;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat, flock, mkdirat, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::error::{Error, Result};
use crate::layers::Layers;
use plan::Planned;

/// Directory at the top of the one that is changed, while it is.
pub const PLACE: &str = ".forkyard-commit";

/// A moment of a file system's clock: seconds since the epoch, and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub i64, pub i64);

/// What is known of files that a branch began with, or wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// What was changed before this is as it was when the branch began.
    pub since: Moment,
    /// Files that it wrote itself: numbers of inodes and times of change.
    pub written: BTreeMap<u64, Moment>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is there, and on disk.
    Done,
    /// Nothing was done: these paths were changed by others.
    Conflict(Vec<Vec<u8>>),
}

/// The clock of the file system that a directory is on, now: a file is made there for it and removed.
///
/// What is changed within the same tick of this clock, 4 ms on most machines, counts as changed
/// after.
///
/// # Errors
/// When nothing can be made there.
pub fn clock(dir: impl AsFd) -> Result<Moment> {
    let failed = |call| move |e| Error::system(call, PLACE.as_bytes(), e);
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(dir, ".", flags, Mode::RUSR).map_err(failed("open"))?;
    let stat = rustix::fs::fstat(&file).map_err(failed("stat"))?;
    Ok(changed_at(&stat))
}

/// Brings these changes into the directory `top`, which the lowest of the layers shows. What it
/// wrote is added to `known`.
///
/// # Errors
/// When something cannot be read or made; nothing was done then, or the next [`recover`] takes it
/// back.
pub fn commit(
    layers: &Layers,
    changes: &[Change],
    top: &OwnedFd,
    known: &mut Known,
) -> Result<Outcome> {
    let _alone = lock(top)?;
    recover_locked(top)?;
    let plan = match plan::plan(changes, top, known)? {
        Planned::Free(plan) if plan.is_empty() => return Ok(Outcome::Done),
        Planned::Free(plan) => plan,
        Planned::Conflict(paths) => return Ok(Outcome::Conflict(paths)),
    };
    let place = make_place(top)?;
    let staged = stage::stage(layers, plan, &place).and_then(|steps| {
        journal::write(top, &place, &steps)?;
        Ok(steps)
    });
    let steps = match staged {
        Ok(steps) => steps,
        Err(error) => {
            stage::remove(top, &place)?;
            return Err(error);
        }
    };
    finish(top, &place, &steps, Some(known))
}

/// Finishes or takes back what a commit that was killed has left in a directory.
///
/// # Errors
/// When something cannot be read or moved.
pub fn recover(top: &OwnedFd) -> Result<()> {
    let _alone = lock(top)?;
    recover_locked(top)
}

fn recover_locked(top: &OwnedFd) -> Result<()> {
    let Some(place) = open_place(top)? else { return Ok(()) };
    match journal::read(&place)? {
        Some(steps) => finish(top, &place, &steps, None).map(drop),
        // It had not begun to move anything, or was done with it.
        None => stage::remove(top, &place),
    }
}

/// Makes all moves, or takes back those that were made.
fn finish(
    top: &OwnedFd,
    place: &OwnedFd,
    steps: &[journal::Step],
    known: Option<&mut Known>,
) -> Result<Outcome> {
    let outcome = match apply::forward(top, place, steps) {
        Ok(None) => Ok(Outcome::Done),
        Ok(Some(path)) => {
            apply::back(top, place, steps)?;
            Ok(Outcome::Conflict(vec![path]))
        }
        Err(error) => {
            apply::back(top, place, steps)?;
            Err(error)
        }
    };
    apply::sync(top, place, steps)?;
    if let (Ok(Outcome::Done), Some(known)) = (&outcome, known) {
        known.written.extend(apply::written(top, steps)?);
    }
    journal::remove(place)?;
    stage::remove(top, place)?;
    outcome
}

/// One at a time works on a directory; this is let go of when the process ends.
fn lock(top: &OwnedFd) -> Result<OwnedFd> {
    let failed = |call| move |e| Error::system(call, b"", e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(top, ".", flags, Mode::empty()).map_err(failed("open"))?;
    flock(&own, FlockOperation::LockExclusive).map_err(failed("flock"))?;
    Ok(own)
}

fn make_place(top: &OwnedFd) -> Result<OwnedFd> {
    mkdirat(top, PLACE, Mode::RWXU).map_err(|e| Error::system("mkdir", PLACE.as_bytes(), e))?;
    let gone = || Error::system("open", PLACE.as_bytes(), Errno::NOENT);
    open_place(top)?.ok_or_else(gone)
}

fn open_place(top: &OwnedFd) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(top, PLACE, flags, Mode::empty()) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(Error::system("open", PLACE.as_bytes(), e)),
    }
}

/// When a file was changed last, in any way.
fn changed_at(stat: &Stat) -> Moment {
    Moment(stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// What is there, not following links; nothing where nothing is.
fn look(dir: impl AsFd, name: &std::ffi::OsStr) -> std::result::Result<Option<Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
