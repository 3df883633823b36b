//! Telling about files: one of them, or what is in a directory.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use super::contents::write_all;
use super::dir::{Descent, read_names};
use super::proto::{ENTRIES_MAX, Entry, FileError, FileReply, INLINE_ENTRIES_MAX};
use super::root::{Access, kind, open_directory, pseudo, refuse_pseudo};
use super::{Answer, Context, link_target};

/// Bytes of an entry besides its texts, at most: five integers of ten bytes and tags.
const ENTRY_OVERHEAD: usize = 64;

/// Answers [`super::FileOp::Stat`]. A link on procfs is told without its target, which would be
/// about init.
pub(super) fn stat(cx: &Context<'_>, path: &[u8], follow: bool) -> Answer {
    let path = cx.path(path)?;
    let fail = |action: &str, errno| FileError::sys(action, path.bytes(), errno);
    let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let file = cx
        .root
        .resolve(path.bytes(), OFlags::PATH | nofollow, Mode::empty())
        .map_err(|errno| fail("stat", errno))?;
    let stat = fs::fstat(&file).map_err(|errno| fail("fstat", errno))?;
    let target = match kind(&stat) {
        FileType::Symlink if matches!(pseudo(&file), Ok(None)) => {
            Some(link_target(&file, c"").map_err(|errno| fail("readlink", errno))?)
        }
        _ => None,
    };
    Ok((FileReply::Entry(cx.entry(path.bytes().to_vec(), &stat, target)), None))
}

/// Answers [`super::FileOp::List`].
pub(super) fn list(cx: &Context<'_>, path: &[u8], depth: u32, limit: u32) -> Answer {
    let path = cx.path(path)?;
    if depth == 0 || limit == 0 {
        let why = "depth and limit are at least 1";
        return Err(FileError::refused("list", path.bytes(), why));
    }
    let fail = |action: &str, errno| FileError::sys(action, path.bytes(), errno);
    // The look before the open: see `Root::contents`.
    let probe = cx.root.directory("open", path.bytes())?;
    refuse_pseudo("list", path.bytes(), &probe, Access::Read)?;
    let top = open_directory(&probe, b".", ResolveFlags::empty()).map_err(|e| fail("open", e))?;
    let mut listing = Listing { cx, entries: Vec::new(), bytes: 0, limit, truncated: false };
    listing.tree(top, depth).map_err(|errno| fail("list", errno))?;
    let Listing { mut entries, truncated, .. } = listing;
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    reply(entries, truncated).map_err(|errno| fail("memfd_create", errno))
}

/// Entries within the reply, or in a memory file beside it.
fn reply(
    entries: Vec<Entry>,
    truncated: bool,
) -> rustix::io::Result<(FileReply, Option<std::os::fd::OwnedFd>)> {
    let encoded = postcard::to_stdvec(&entries).map_err(|_| Errno::NOMEM)?;
    if encoded.len() <= INLINE_ENTRIES_MAX {
        return Ok((FileReply::Entries { entries, truncated }, None));
    }
    let file = fs::memfd_create(c"entries", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| fs::memfd_create(c"entries", MemfdFlags::CLOEXEC))?;
    write_all(&file, &encoded)?;
    fs::seek(&file, SeekFrom::Start(0))?;
    Ok((FileReply::EntriesIn { length: encoded.len() as u64, truncated }, Some(file)))
}

struct Listing<'a, 'b> {
    cx: &'a Context<'b>,
    entries: Vec<Entry>,
    bytes: usize,
    limit: u32,
    truncated: bool,
}

impl Listing<'_, '_> {
    /// Lists a directory and, down to `depth`, its directories: each level before the next one
    /// down, so that a limit cuts off what is deepest.
    fn tree(&mut self, top: std::os::fd::OwnedFd, depth: u32) -> rustix::io::Result<()> {
        let mut way = Descent::default();
        way.enter(top)?;
        let mut prefix = Vec::new();
        // Of every directory on the way: its path's length, and its directories yet to list.
        let mut pending = vec![(0, self.directory(way.here()?, &prefix, depth > 1)?)];
        while let Some((length, directories)) = pending.last_mut() {
            prefix.truncate(*length);
            let next = if self.truncated { None } else { directories.pop() };
            let Some(name) = next else {
                pending.pop();
                if !pending.is_empty() {
                    way.leave()?;
                }
                continue;
            };
            // Gone, exchanged or not readable: its entry tells that it was there.
            let Ok(dir) = open_directory(way.here()?, &name, ResolveFlags::empty()) else {
                continue;
            };
            if !matches!(pseudo(&dir), Ok(None)) {
                continue;
            }
            way.enter(dir)?;
            if !prefix.is_empty() {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(&name);
            let deeper = (pending.len() as u64) + 1 < u64::from(depth);
            let directories = self.directory(way.here()?, &prefix, deeper)?;
            pending.push((prefix.len(), directories));
        }
        Ok(())
    }

    /// Adds the entries of one directory; gives the names of its directories if they are wanted.
    fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        prefix: &[u8],
        wanted: bool,
    ) -> rustix::io::Result<Vec<Vec<u8>>> {
        let mut directories = Vec::new();
        loop {
            let names = read_names(dir.as_fd(), 1)?;
            if names.is_empty() {
                break;
            }
            for name in names {
                let stat = match fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(errno),
                };
                let target = match kind(&stat) {
                    FileType::Symlink => link_target(dir, &name).ok(),
                    _ => None,
                };
                if kind(&stat) == FileType::Directory && wanted {
                    directories.push(name.to_bytes().to_vec());
                }
                let mut path = prefix.to_vec();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.to_bytes());
                let entry = self.cx.entry(path, &stat, target);
                self.bytes += ENTRY_OVERHEAD
                    + entry.path.len()
                    + entry.owner.len()
                    + entry.group.len()
                    + entry.target.as_ref().map_or(0, |target| target.len());
                if self.entries.len() >= self.limit as usize || self.bytes > ENTRIES_MAX {
                    self.truncated = true;
                    return Ok(Vec::new());
                }
                self.entries.push(entry);
            }
        }
        directories.sort_unstable_by(|a, b| b.cmp(a));
        Ok(directories)
    }
}
