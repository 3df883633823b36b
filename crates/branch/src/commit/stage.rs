//! Makes what is to be put into a directory, beside what is in it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
    chownat, copy_file_range, fchmod, fsetxattr, fsync, ftruncate, linkat, mkdirat, mknodat,
    openat, seek, statat, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::journal::Step;
use super::plan::{Plan, Taken};
use super::{PLACE, look};
use crate::change::{Kind, Node};
use crate::compare::{CAPABILITY, attributes};
use crate::error::{Error, Result};
use crate::layers::Layers;

/// More files than this are brought to disk by one call for all that the file system has.
pub(crate) const SYNC_EACH: usize = 16;

/// Makes all that is to be put somewhere, and brings it to disk; the steps to be written down.
pub(crate) fn stage(layers: &Layers, plan: Plan<'_>, place: &OwnedFd) -> Result<Vec<Step>> {
    let mut stage = Stage { layers, place, next: 0, links: HashMap::new() };
    let count = plan.put.len() + plan.swapped.len();
    let mut steps = Vec::new();
    for (path, taken) in plan.taken {
        let n = stage.number();
        steps.push(match taken {
            Taken::File(old) => Step::Take { path, n, old },
            Taken::Directory(ino) => Step::TakeDirectory { path, n, ino },
        });
    }
    let mut times = Vec::new();
    for (path, node) in plan.put {
        let (n, ino) = stage.make(path, node, count)?;
        if node.kind == Kind::Directory {
            times.push(Step::Time { path: path.to_vec(), modified: node.modified });
        }
        steps.push(Step::Put { path: path.to_vec(), n, ino });
    }
    for (path, node, old) in plan.swapped {
        let (n, ino) = stage.make(path, node, count)?;
        steps.push(Step::Swap { path: path.to_vec(), n, ino, old });
    }
    let modes = plan.modes.into_iter();
    steps.extend(modes.map(|(path, old, new)| Step::Mode { path: path.to_vec(), old, new }));
    steps.extend(times.into_iter().rev());
    let synced = if count > SYNC_EACH { syncfs(place) } else { fsync(place) };
    synced.map_err(|e| Error::system("fsync", PLACE.as_bytes(), e))?;
    Ok(steps)
}

struct Stage<'a> {
    layers: &'a Layers,
    place: &'a OwnedFd,
    next: u32,
    /// Files with several names that are there: layer and inode, and the number of the first name.
    links: HashMap<(usize, u64), u32>,
}

impl Stage<'_> {
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Makes a file; its number and inode. `count`: how many are made in all.
    fn make(&mut self, path: &[u8], node: &Node, count: usize) -> Result<(u32, u64)> {
        let n = self.number();
        let name = n.to_string();
        let failed = |call: &'static str| move |e| Error::system(call, path, e);
        let first = node.linked.map(|ino| *self.links.entry((node.layer, ino)).or_insert(n));
        match first.filter(|first| *first != n) {
            Some(first) => {
                linkat(self.place, first.to_string(), self.place, &name, AtFlags::empty())
                    .map_err(failed("link"))?;
            }
            None => self.make_new(path, node, &name, count <= SYNC_EACH)?,
        }
        let stat = statat(self.place, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
        Ok((n, stat.st_ino))
    }

    fn make_new(&mut self, path: &[u8], node: &Node, name: &str, sync: bool) -> Result<()> {
        let failed = |call: &'static str| move |e| Error::system(call, path, e);
        let place = self.place;
        let mut made = None;
        match node.kind {
            Kind::File => made = Some(self.copy(path, node, name)?),
            Kind::Directory => {
                mkdirat(place, name, Mode::RWXU).map_err(failed("mkdir"))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let new = openat(place, name, flags, Mode::empty()).map_err(failed("open"))?;
                let from = self.layers.open_dir(node.layer, path)?.map(|dir| dir.fd);
                made = Some((from, new));
            }
            Kind::Symlink => {
                let target = node.target.as_deref().unwrap_or_default();
                symlinkat(OsStr::from_bytes(target), place, name).map_err(failed("symlink"))?;
            }
            Kind::Other => {
                let kind = FileType::from_raw_mode(node.special.0);
                if !kind.is_fifo() && !kind.is_socket() {
                    return Err(failed("mknod")(Errno::PERM));
                }
                mknodat(place, name, kind, Mode::RUSR, 0).map_err(failed("mknod"))?;
            }
        }
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(place, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("chown"))?;
        if let Some((from, new)) = &made {
            let all = from.as_ref().and_then(attributes).unwrap_or_default();
            for (name, value) in all.iter().filter(|(name, _)| name.as_slice() != CAPABILITY) {
                let name = OsStr::from_bytes(name);
                fsetxattr(new, name, value, XattrFlags::empty()).map_err(failed("setxattr"))?;
            }
            fchmod(new, Mode::from_raw_mode(harmless(node))).map_err(failed("chmod"))?;
        } else if node.kind == Kind::Other {
            rustix::fs::chmodat(place, name, Mode::from_raw_mode(node.mode), AtFlags::empty())
                .map_err(failed("chmod"))?;
        }
        set_time(place, name, node.modified).map_err(failed("utimensat"))?;
        if let Some((_, new)) = made.filter(|_| sync) {
            fsync(&new).map_err(failed("fsync"))?;
        }
        Ok(())
    }

    /// Copies a regular file with its holes; it, and the copy.
    fn copy(&mut self, path: &[u8], node: &Node, name: &str) -> Result<(Option<OwnedFd>, OwnedFd)> {
        let failed = |call: &'static str| move |e| Error::system(call, path, e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let from = self.layers.open_file(node.layer, path)?;
        let from = from.ok_or_else(|| failed("open")(Errno::NOENT))?;
        let to =
            openat(self.place, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("open"))?;
        let mut at = 0;
        loop {
            let begin = match seek(&from, SeekFrom::Data(at)) {
                Ok(begin) => begin,
                Err(Errno::NXIO) => break,
                Err(e) => return Err(failed("lseek")(e)),
            };
            let end = seek(&from, SeekFrom::Hole(begin)).map_err(failed("lseek"))?;
            copy_range(&from, &to, begin, end).map_err(failed("copy"))?;
            at = end;
        }
        let length = rustix::fs::fstat(&from).map_err(failed("stat"))?.st_size as u64;
        ftruncate(&to, length).map_err(failed("truncate"))?;
        Ok((Some(from), to))
    }
}

/// A file's mode without what would give whoever runs it the rights of its owner: in a sandbox these
/// are a guest's, and here they are not. The same is why capabilities are left out.
fn harmless(node: &Node) -> u32 {
    if node.kind == Kind::Directory { node.mode } else { node.mode & 0o1777 }
}

/// Copies bytes from one place to the same place.
fn copy_range(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> rustix::io::Result<()> {
    let (mut read, mut written) = (begin, begin);
    while read < end {
        let length = (end - read) as usize;
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
            // It was cut short.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_bytes(from, to, read, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = begin;
    while at < end {
        let most = buffer.len().min((end - at) as usize);
        let part = buffer.get_mut(..most).unwrap_or_default();
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut *part, at))?;
        let mut rest = part.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(to, rest, at))?;
            rest = rest.get(count..).unwrap_or_default();
            at += count as u64;
        }
    }
    Ok(())
}

/// Sets when something was changed last, and read last to the same.
pub(crate) fn set_time(
    dir: impl AsFd,
    name: impl rustix::path::Arg,
    (seconds, nanoseconds): (i64, i64),
) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes the place with all that is in it.
pub(crate) fn remove(top: &OwnedFd, place: &OwnedFd) -> Result<()> {
    let failed = |call: &'static str| move |e| Error::system(call, PLACE.as_bytes(), e);
    let entries = Dir::read_from(place).map_err(failed("getdents"))?;
    for entry in entries {
        let entry = entry.map_err(failed("getdents"))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = look(place, OsStr::from_bytes(name.to_bytes())).map_err(failed("stat"))?;
        let is_dir = stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(place, name, flags).map_err(failed("unlink"))?;
    }
    unlinkat(top, PLACE, AtFlags::REMOVEDIR).map_err(failed("rmdir"))
}
