//! Makes the moves of a commit, or takes them back. Either can be begun again at any time: whether a
//! move was made is told by what is in the place.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    Dir, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fsync, openat,
    renameat_with, syncfs,
};
use rustix::io::Errno;

use super::journal::{Identity, Rights, Step};
use super::stage::{SYNC_EACH, set_time};
use super::{Moment, changed_at, look};
use crate::error::{Error, Result};
use crate::layers::{open_below, open_parent};

/// Why a move cannot be made.
enum Stopped {
    /// Others were there before.
    Conflict,
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Moved = std::result::Result<(), Stopped>;

/// Makes all moves that were not made yet, in their order; the path of the first that others are in
/// the way of.
pub(crate) fn forward(top: &OwnedFd, place: &OwnedFd, steps: &[Step]) -> Result<Option<Vec<u8>>> {
    for step in steps {
        match make(top, place, step) {
            Ok(()) => {}
            Err(Stopped::Conflict) => return Ok(Some(step.path().to_vec())),
            Err(Stopped::Failed(error)) => return Err(error),
        }
    }
    Ok(None)
}

fn make(top: &OwnedFd, place: &OwnedFd, step: &Step) -> Moved {
    let at = At { place, path: step.path() };
    match step {
        Step::Take { n, old, .. } => {
            if at.staged(*n)?.is_none() {
                let (dir, name) = at.parent(top)?;
                check(at.found(&dir, name)?, *old)?;
                at.rename((&dir, name), *n, true)?;
            }
            // It may have been written to just before.
            check(at.staged(*n)?, *old)
        }
        Step::TakeDirectory { n, ino, .. } => {
            if at.staged(*n)?.is_none() {
                let (dir, name) = at.parent(top)?;
                if at.found(&dir, name)?.is_none_or(|stat| stat.st_ino != *ino) {
                    return Err(Stopped::Conflict);
                }
                at.rename((&dir, name), *n, true)?;
            }
            if at.is_empty(*n)? { Ok(()) } else { Err(Stopped::Conflict) }
        }
        Step::Put { n, .. } => {
            if at.staged(*n)?.is_none() {
                return Ok(());
            }
            let (dir, name) = at.parent(top)?;
            at.rename((&dir, name), *n, false)
        }
        Step::Swap { n, ino, old, .. } => {
            if at.staged(*n)?.is_some_and(|stat| stat.st_ino == *ino) {
                let (dir, name) = at.parent(top)?;
                check(at.found(&dir, name)?, *old)?;
                at.exchange((&dir, name), *n)?;
            }
            check(at.staged(*n)?, *old)
        }
        Step::Mode { new, .. } => at.set_rights(top, *new),
        Step::Time { path, modified } => {
            let (dir, name) = at.parent(top)?;
            let name = OsStr::from_bytes(name);
            set_time(dir, name, *modified)
                .map_err(|e| Stopped::Failed(Error::system("utimensat", path, e)))
        }
    }
}

/// Takes back all moves that were made. What others have put there meanwhile stays.
pub(crate) fn back(top: &OwnedFd, place: &OwnedFd, steps: &[Step]) -> Result<()> {
    for step in steps.iter().rev() {
        match take_back(top, place, step) {
            Ok(()) | Err(Stopped::Conflict) => {}
            Err(Stopped::Failed(error)) => return Err(error),
        }
    }
    Ok(())
}

fn take_back(top: &OwnedFd, place: &OwnedFd, step: &Step) -> Moved {
    let at = At { place, path: step.path() };
    match step {
        Step::Take { n, .. } | Step::TakeDirectory { n, .. } => {
            if at.staged(*n)?.is_none() {
                return Ok(());
            }
            let (dir, name) = at.parent(top)?;
            at.rename((&dir, name), *n, false)
        }
        Step::Put { n, ino, .. } => {
            if at.staged(*n)?.is_some() {
                return Ok(());
            }
            let (dir, name) = at.parent(top)?;
            let Some(found) = at.found(&dir, name)?.filter(|stat| stat.st_ino == *ino) else {
                return Ok(());
            };
            let is_dir = FileType::from_raw_mode(found.st_mode).is_dir();
            if is_dir && !at.is_empty_at(&dir, name)? {
                return Ok(());
            }
            at.rename((&dir, name), *n, true)
        }
        Step::Swap { n, ino, old, .. } => {
            if at.staged(*n)?.is_none_or(|stat| stat.st_ino != old.ino) {
                return Ok(());
            }
            let (dir, name) = at.parent(top)?;
            match at.found(&dir, name)? {
                Some(stat) if stat.st_ino == *ino => at.exchange((&dir, name), *n),
                _ => Ok(()),
            }
        }
        Step::Mode { old, .. } => at.set_rights(top, *old),
        Step::Time { .. } => Ok(()),
    }
}

/// Where a step is made.
struct At<'a> {
    place: &'a OwnedFd,
    path: &'a [u8],
}

impl<'a> At<'a> {
    fn failed(&self, call: &'static str) -> impl Fn(Errno) -> Stopped {
        move |e| Stopped::Failed(Error::system(call, self.path, e))
    }

    fn parent(&self, top: &OwnedFd) -> std::result::Result<(OwnedFd, &'a [u8]), Stopped> {
        open_parent(top, self.path)?.ok_or(Stopped::Conflict)
    }

    fn staged(&self, n: u32) -> std::result::Result<Option<Stat>, Stopped> {
        look(self.place, OsStr::new(&n.to_string())).map_err(self.failed("stat"))
    }

    fn found(&self, dir: &OwnedFd, name: &[u8]) -> std::result::Result<Option<Stat>, Stopped> {
        look(dir, OsStr::from_bytes(name)).map_err(self.failed("stat"))
    }

    /// Moves what is at a name into the place, or the other way round.
    fn rename(&self, (dir, name): (&OwnedFd, &[u8]), n: u32, into_place: bool) -> Moved {
        let (name, number) = (OsStr::from_bytes(name), n.to_string());
        let renamed = if into_place {
            renameat_with(dir, name, self.place, &number, RenameFlags::NOREPLACE)
        } else {
            renameat_with(self.place, &number, dir, name, RenameFlags::NOREPLACE)
        };
        self.moved(renamed)
    }

    fn exchange(&self, (dir, name): (&OwnedFd, &[u8]), n: u32) -> Moved {
        let number = n.to_string();
        let name = OsStr::from_bytes(name);
        self.moved(renameat_with(self.place, &number, dir, name, RenameFlags::EXCHANGE))
    }

    fn moved(&self, renamed: rustix::io::Result<()>) -> Moved {
        match renamed {
            Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Err(Stopped::Conflict),
            renamed => renamed.map_err(self.failed("rename")),
        }
    }

    fn is_empty(&self, n: u32) -> std::result::Result<bool, Stopped> {
        self.is_empty_at(self.place, n.to_string().as_bytes())
    }

    fn is_empty_at(&self, dir: impl AsFd, name: &[u8]) -> std::result::Result<bool, Stopped> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(dir, OsStr::from_bytes(name), flags, Mode::empty());
        let mut names = Dir::new(dir.map_err(self.failed("open"))?).map_err(self.failed("open"))?;
        let is_own = |name: &[u8]| matches!(name, b"." | b"..");
        Ok(names.all(|entry| entry.is_ok_and(|entry| is_own(entry.file_name().to_bytes()))))
    }

    fn set_rights(&self, top: &OwnedFd, rights: Rights) -> Moved {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open_below(top, self.path, flags)?.ok_or(Stopped::Conflict)?;
        let (uid, gid) = (Uid::from_raw(rights.uid), Gid::from_raw(rights.gid));
        fchown(&dir, Some(uid), Some(gid)).map_err(self.failed("chown"))?;
        fchmod(&dir, Mode::from_raw_mode(rights.mode)).map_err(self.failed("chmod"))
    }
}

/// Whether a file is the one that it was.
fn check(found: Option<Stat>, old: Identity) -> Moved {
    match found {
        Some(stat) if Identity::from(&stat) == old => Ok(()),
        _ => Err(Stopped::Conflict),
    }
}

/// Brings all moves to disk.
pub(crate) fn sync(top: &OwnedFd, place: &OwnedFd, steps: &[Step]) -> Result<()> {
    let parent = |path: &[u8]| {
        let at = path.iter().rposition(|&byte| byte == b'/');
        at.and_then(|at| path.get(..at)).unwrap_or_default().to_vec()
    };
    let dirs: BTreeSet<Vec<u8>> = steps.iter().map(|step| parent(step.path())).collect();
    let failed = |e| Error::system("fsync", b"", e);
    if dirs.len() > SYNC_EACH {
        return syncfs(top).map_err(failed);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for dir in dirs {
        // One that was moved is brought to disk with where it is now.
        if let Some(dir) = open_below(top, &dir, flags)? {
            fsync(dir).map_err(failed)?;
        }
    }
    fsync(place).map_err(failed)
}

/// What was written: inodes, and when each was changed last.
pub(crate) fn written(top: &OwnedFd, steps: &[Step]) -> Result<Vec<(u64, Moment)>> {
    let mut all = Vec::new();
    for step in steps {
        if let Step::Put { path, .. } | Step::Swap { path, .. } = step
            && let Some((dir, name)) = open_parent(top, path)?
            && let Ok(Some(stat)) = look(dir, OsStr::from_bytes(name))
        {
            all.push((stat.st_ino, changed_at(&stat)));
        }
    }
    Ok(all)
}
