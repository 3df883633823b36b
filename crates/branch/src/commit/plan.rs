//! What is to be done for changes, and whether others were there before.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::journal::{Identity, Rights};
use super::{Known, PLACE, changed_at, look};
use crate::change::{Change, ChangeKind, Kind, Node};
use crate::error::{Error, Result};
use crate::layers::open_parent;

/// What is to be done, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    /// Files that go, and directories once these have gone.
    pub(crate) taken: Vec<(Vec<u8>, Taken)>,
    /// What comes, each directory before what is in it.
    pub(crate) put: Vec<(&'a [u8], &'a Node)>,
    /// What takes the place of another.
    pub(crate) swapped: Vec<(&'a [u8], &'a Node, Identity)>,
    /// Directories that get another mode or owner.
    pub(crate) modes: Vec<(&'a [u8], Rights, Rights)>,
}

/// Whether it can be done.
#[derive(Debug)]
pub(crate) enum Planned<'a> {
    /// Nobody else has changed any of it.
    Free(Plan<'a>),
    /// Others have changed these paths.
    Conflict(Vec<Vec<u8>>),
}

/// Something that goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taken {
    File(Identity),
    Directory(u64),
}

impl Plan<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
            && self.put.is_empty()
            && self.swapped.is_empty()
            && self.modes.is_empty()
    }
}

/// What these changes, in the order of paths, come to; or the paths that others have changed.
pub(crate) fn plan<'a>(changes: &'a [Change], top: &OwnedFd, known: &Known) -> Result<Planned<'a>> {
    let mut plan = Plan::default();
    let mut conflicts = Vec::new();
    for change in changes {
        if is_ours(&change.path) {
            return Err(Error::system("commit", &change.path, Errno::PERM));
        }
        let path = change.path.as_slice();
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let from = change.old_path();
        let found = stat(top, if old.is_some() { from } else { path })?;
        let same = match (old, &found) {
            (Some(old), Some(stat)) => {
                let kind = Node::new(stat, 0).kind;
                // Names come and go in a directory that nobody changed.
                kind == old.kind && (kind == Kind::Directory || is_known(stat, known))
            }
            (None, None) => true,
            _ => false,
        };
        let taken_by_others =
            matches!(change.kind, ChangeKind::Renamed { .. }) && stat(top, path)?.is_some();
        let Some(found) = found.filter(|_| same && !taken_by_others) else {
            if same && !taken_by_others {
                if let Some(new) = new {
                    plan.put.push((path, new));
                }
            } else {
                conflicts.push(if same { path.to_vec() } else { from.to_vec() });
            }
            continue;
        };
        let is_dir = |node: Option<&Node>| node.is_some_and(|node| node.kind == Kind::Directory);
        let taken = if is_dir(old) {
            Taken::Directory(found.st_ino)
        } else {
            Taken::File(Identity::from(&found))
        };
        match new {
            None => plan.taken.push((from.to_vec(), taken)),
            Some(new) if is_dir(old) && is_dir(Some(new)) => {
                let rights = |node: &Node| Rights { mode: node.mode, uid: node.uid, gid: node.gid };
                let before =
                    Rights { mode: found.st_mode & 0o7777, uid: found.st_uid, gid: found.st_gid };
                plan.modes.push((path, before, rights(new)));
            }
            Some(new)
                if is_dir(old)
                    || is_dir(Some(new))
                    || matches!(change.kind, ChangeKind::Renamed { .. }) =>
            {
                plan.taken.push((from.to_vec(), taken));
                plan.put.push((path, new));
            }
            Some(new) => plan.swapped.push((path, new, Identity::from(&found))),
        }
    }
    // What is in a directory before the directory.
    plan.taken.sort_by(|a, b| b.0.cmp(&a.0));
    plan.put.sort_by_key(|(path, _)| *path);
    Ok(if conflicts.is_empty() { Planned::Free(plan) } else { Planned::Conflict(conflicts) })
}

/// Whether a path is of what only forkyard writes: a guest that could would have it do anything.
fn is_ours(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').next() == Some(PLACE.as_bytes())
}

/// Whether a file is as the branch knows it.
fn is_known(stat: &Stat, known: &Known) -> bool {
    let at = changed_at(stat);
    at < known.since || known.written.get(&stat.st_ino) == Some(&at)
}

/// What is at a path; nothing where it or a directory on the way is not there.
fn stat(top: &OwnedFd, path: &[u8]) -> Result<Option<Stat>> {
    if path.is_empty() {
        return rustix::fs::fstat(top).map(Some).map_err(|e| Error::system("stat", path, e));
    }
    let Some((dir, name)) = open_parent(top, path)? else { return Ok(None) };
    let found = look(&dir, OsStr::from_bytes(name)).map_err(|e| Error::system("stat", path, e))?;
    let is_whiteout =
        |stat: &Stat| FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0;
    Ok(found.filter(|stat| !is_whiteout(stat)))
}
