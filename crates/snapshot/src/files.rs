//! Copies of directories as they are: the files that a sandbox wrote.

mod ahead;
mod following;
mod links;
mod overlaid;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, copy_file_range, fstat, ioctl_ficlone, lgetxattr, linkat, llistxattr,
    lsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};

use crate::error::{Context, Result};

pub(crate) use ahead::is_shareable;
pub use ahead::{FilesAhead, Shareable, is_large, is_much};
pub use links::Names;
pub use overlaid::copy_above;

/// Copies a directory to a place where there is none, with owners, modes, times, attributes, hard
/// links and holes; all ids are less by `shift` in the copy. Nothing there where there is nothing.
pub fn copy_tree(from: &Path, to: &Path, shift: u32) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move || format!("copying {path}")
    };
    let from_dir = openat(CWD, from, flags, Mode::empty()).context(failed(from))?;
    match mkdirat(CWD, to, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).context(failed(to)),
    }
    let to_dir = openat(CWD, to, flags, Mode::empty()).context(failed(to))?;
    Copy::new(shift).directory(&from_dir, &to_dir).context(failed(from))
}

struct Copy {
    shift: u32,
    /// Copies of files with several names, by device and inode of the original.
    links: HashMap<(u64, u64), (OwnedFd, Vec<u8>)>,
}

impl Copy {
    fn new(shift: u32) -> Self {
        Self { shift, links: HashMap::new() }
    }

    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.entry(from, to, name)?;
            }
        }
        attributes(from, to, b".", &fstat(from)?, self.shift)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let path = OsStr::from_bytes(name);
        let stat = statat(from, path, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some((dir, other)) = self.links.get(&key) {
                linkat(dir, OsStr::from_bytes(other), to, path, AtFlags::empty())?;
                return Ok(());
            }
            self.links.insert(key, (to.try_clone()?, name.to_vec()));
        }
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                mkdirat(to, path, Mode::RWXU)?;
                let (from, to) = (
                    openat(from, path, flags, Mode::empty())?,
                    openat(to, path, flags, Mode::empty())?,
                );
                return self.directory(&from, &to);
            }
            FileType::RegularFile => contents(from, to, path, &stat)?,
            kind => special(from, to, path, kind, &stat)?,
        }
        attributes(from, to, name, &stat, self.shift)
    }
}

/// Copies what is neither a directory nor a file of bytes.
fn special(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &OsStr,
    kind: FileType,
    stat: &Stat,
) -> io::Result<()> {
    if kind == FileType::Symlink {
        let target = readlinkat(from, name, Vec::new())?;
        return Ok(symlinkat(target.as_c_str(), to, name)?);
    }
    Ok(mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?)
}

/// Gives a copy owners, less by `shift`, mode, attributes and times.
fn attributes(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    stat: &Stat,
    shift: u32,
) -> io::Result<()> {
    let path = OsStr::from_bytes(name);
    let id = |id: u32| id.saturating_sub(shift);
    let (uid, gid) = (Uid::from_raw(id(stat.st_uid)), Gid::from_raw(id(stat.st_gid)));
    chownat(to, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Symlink {
        chmodat(to, path, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    extended(from, to, name, |_| true)?;
    times(to, path, stat)
}

/// Gives a directory of an upper what the one that it covers in the layer below has, but for marks
/// of the overlay that this came from: where the layer's own hides what is below it, this one need
/// not, and must not hide the layer's.
fn attributes_of_layer(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    extended(from, to, b".", |name| !name.starts_with(b"user.overlay."))?;
    times(to, OsStr::new("."), stat)
}

fn times(to: &OwnedFd, path: &OsStr, stat: &Stat) -> io::Result<()> {
    let time = |seconds: i64, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(utimensat(to, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What is read and written at once, in bytes: fewer calls than it takes to share it.
const SMALL: u64 = 64 * 1024;

/// Copies a small file that has no holes.
fn whole(source: &OwnedFd, target: &OwnedFd, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; length as usize];
    let mut at = 0;
    while at < length {
        let count = rustix::io::pread(source, buffer.as_mut_slice(), at)?;
        let Some(mut bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        while !bytes.is_empty() {
            let written = rustix::io::pwrite(target, bytes, at)?;
            at += written as u64;
            bytes = bytes.get(written..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Copies a file's contents: shared with the original where the file system can.
fn contents(from: &OwnedFd, to: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let length = stat.st_size as u64;
    if length <= SMALL && length <= (stat.st_blocks as u64).saturating_mul(512) {
        return whole(&source, &target, length);
    }
    if length == 0 || ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(&target, length)?;
    let mut at = 0;
    while at < length {
        // Holes stay holes.
        let Ok(start) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start)).unwrap_or(length);
        part(&source, &target, start, end)?;
        at = end;
    }
    Ok(())
}

fn part(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = (end - from) as usize;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            Ok(0) => break,
            Ok(_) => {}
            // Between file systems, or from one that cannot: by hand.
            Err(
                rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL,
            ) => {
                let mut buffer = vec![0; wanted.min(1 << 20)];
                let count = rustix::io::pread(source, buffer.as_mut_slice(), from)?;
                let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                    break;
                };
                let written = rustix::io::pwrite(target, bytes, to)? as u64;
                from += written;
                to += written;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes extended attributes of a copy that the original has no more.
fn unset_extended(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let names = |dir: &OwnedFd| {
        let mut names = Vec::with_capacity(64 * 1024);
        match rustix::fs::flistxattr(dir, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(names),
            Err(error) => Err(error),
        }
    };
    let (wanted, found) = (names(from)?, names(to)?);
    let wanted: Vec<&[u8]> = wanted.split(|&byte| byte == 0).collect();
    for name in found.split(|&byte| byte == 0).filter(|name| !wanted.contains(name)) {
        rustix::fs::fremovexattr(to, name)?;
    }
    Ok(())
}

/// Copies those extended attributes that are wanted; some mark what is an overlay's own.
fn extended(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    is_wanted: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let path = |dir: &OwnedFd| {
        let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        path
    };
    let (from, to) = (path(from), path(to));
    let mut names = Vec::with_capacity(64 * 1024);
    match llistxattr(from.as_slice(), rustix::buffer::spare_capacity(&mut names)) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    for attribute in
        names.split(|&byte| byte == 0).filter(|name| !name.is_empty() && is_wanted(name))
    {
        let mut value = Vec::with_capacity(64 * 1024);
        lgetxattr(from.as_slice(), attribute, rustix::buffer::spare_capacity(&mut value))?;
        lsetxattr(to.as_slice(), attribute, &value, XattrFlags::empty())?;
    }
    Ok(())
}
