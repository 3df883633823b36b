//! Removing names and trees.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, ResolveFlags};
use rustix::io::Errno;

use super::dir::{Descent, read_names, rewind};
use super::proto::{FileError, FileReply};
use super::root::open_directory;
use super::{Answer, Context};

/// Names read of a directory at a time.
const BATCH: usize = 4096;

/// Times that a directory which is empty and then is not is looked through again.
const ROUNDS: u32 = 32;

/// Answers [`super::FileOp::Remove`].
pub(super) fn remove(cx: &Context<'_>, path: &[u8], recursive: bool) -> Answer {
    let path = cx.path(path)?;
    let (parent, name) = cx.root.parent("remove", &path)?;
    let fail = |action: &str, errno| FileError::sys(action, path.bytes(), errno);
    match fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => return Ok((FileReply::Done, None)),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(fail("unlink", errno)),
    }
    if recursive {
        tree(&parent, name, path.bytes())?;
    } else {
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(|errno| fail("rmdir", errno))?;
    }
    Ok((FileReply::Done, None))
}

/// A directory on the way down.
struct Level {
    name: CString,
    /// Names read and not yet removed.
    pending: Vec<CString>,
    rounds: u32,
}

/// Removes the directory `name` in `parent` with all that is in it.
///
/// Each directory is opened in the one above without following links and without crossing a
/// mount, then emptied by its descriptor: what the guest puts in its place meanwhile is not
/// touched, except that the name itself is removed if it is an empty directory then.
pub(super) fn tree(parent: impl AsFd, name: &[u8], path: &[u8]) -> Result<(), FileError> {
    let mut way = Descent::default();
    let mut levels: Vec<Level> = Vec::new();
    let first = CString::new(name).map_err(|_| FileError::sys("rmdir", path, Errno::INVAL))?;
    enter(&parent, &mut way, &mut levels, first, path)?;
    while let Some(level) = levels.last_mut() {
        let here = way.here().map_err(|errno| FileError::sys("open", path, errno))?;
        if level.pending.is_empty() {
            level.pending =
                read_names(here, BATCH).map_err(|errno| FileError::sys("getdents", path, errno))?;
        }
        let Some(name) = level.pending.pop() else {
            leave(&parent, &mut way, &mut levels, path)?;
            continue;
        };
        match fs::unlinkat(here, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => enter(&parent, &mut way, &mut levels, name, path)?,
            Err(errno) => return Err(FileError::sys("unlink", &at(path, &levels, &name), errno)),
        }
    }
    Ok(())
}

/// Goes down into `name`; what is gone or is a directory no more is left to the next look.
fn enter(
    parent: impl AsFd,
    way: &mut Descent,
    levels: &mut Vec<Level>,
    name: CString,
    path: &[u8],
) -> Result<(), FileError> {
    let flags = ResolveFlags::NO_XDEV;
    let opened = match way.here() {
        Ok(here) => open_directory(here, name.to_bytes(), flags),
        Err(_) => open_directory(parent, name.to_bytes(), flags),
    };
    match opened.and_then(|dir| way.enter(dir)) {
        Ok(_) => levels.push(Level { name, pending: Vec::new(), rounds: 0 }),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !levels.is_empty() => {}
        Err(Errno::XDEV) => {
            let why = "a file system is mounted there";
            return Err(FileError::refused("remove", &at(path, levels, &name), why));
        }
        Err(errno) => return Err(FileError::sys("open", &at(path, levels, &name), errno)),
    }
    Ok(())
}

/// Goes up and removes the directory left, or looks through it again if it is not empty.
fn leave(
    parent: impl AsFd,
    way: &mut Descent,
    levels: &mut Vec<Level>,
    path: &[u8],
) -> Result<(), FileError> {
    let fail = |action: &str, errno| Err(FileError::sys(action, path, errno));
    let dir = match way.leave() {
        Ok(dir) => dir,
        Err(errno) => return fail("open ..", errno),
    };
    let Some(mut level) = levels.pop() else { return Ok(()) };
    let removed = match way.here() {
        Ok(here) => fs::unlinkat(here, &level.name, AtFlags::REMOVEDIR),
        Err(_) => fs::unlinkat(parent, &level.name, AtFlags::REMOVEDIR),
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Exchanged for something else: the level above sees it again.
        Err(Errno::NOTDIR) if !levels.is_empty() => {
            revisit(levels, level.name);
            Ok(())
        }
        Err(Errno::NOTEMPTY | Errno::EXIST) if level.rounds < ROUNDS => {
            level.rounds += 1;
            match rewind(&dir).and_then(|()| way.enter(dir)) {
                Ok(_) => levels.push(level),
                Err(errno) => return fail("lseek", errno),
            }
            Ok(())
        }
        Err(errno) => Err(FileError::sys("rmdir", &at(path, levels, &level.name), errno)),
    }
}

fn revisit(levels: &mut [Level], name: CString) {
    if let Some(level) = levels.last_mut().filter(|level| level.rounds < ROUNDS) {
        level.rounds += 1;
        level.pending.push(name);
    }
}

/// Where in the tree, for messages.
fn at(path: &[u8], levels: &[Level], name: &CString) -> Vec<u8> {
    const MOST: usize = 4096;
    let mut at = path.to_vec();
    // The first level is `path` itself.
    let below = levels.iter().skip(1).map(|level| &level.name);
    for part in below.chain((!levels.is_empty()).then_some(name)) {
        if at.len() + part.count_bytes() > MOST {
            break;
        }
        at.push(b'/');
        at.extend_from_slice(part.to_bytes());
    }
    at
}
