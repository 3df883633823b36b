//! Copying one file's bytes and attributes between descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Errno};

use super::contents::write_all;
use super::root::mode_of;

/// Copies `size` bytes, holes as holes. A file that shrinks meanwhile ends in a hole; what it
/// grows by is not copied.
///
/// A reflink where the file system has them, else `copy_file_range(2)`, else read and write.
pub(super) fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> io::Result<()> {
    if size == 0 || fs::ioctl_ficlone(to, from).is_ok() {
        return fs::ftruncate(to, size);
    }
    let mut at = 0;
    while at < size {
        let start = match fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            // No notion of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno),
        };
        let end = fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        if start >= end {
            break;
        }
        copy_range(from, to, start, end)?;
        at = end;
    }
    fs::ftruncate(to, size)
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    const MOST: u64 = 64 * 1024 * 1024;
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = (end - read_at).min(MOST) as usize;
        match fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::BADF
                | Errno::IO,
            ) => return read_and_write(from, to, read_at, end),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read_and_write(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    fs::seek(to, SeekFrom::Start(at))?;
    while at < end {
        let most = buffer.len().min((end - at) as usize);
        let room = buffer.get_mut(..most).unwrap_or_default();
        let count = match io::pread(from, &mut *room, at) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        write_all(to, room.get(..count).unwrap_or_default())?;
        at += count as u64;
    }
    Ok(())
}

/// Gives the copy of a file or directory its original's owner (as root), extended attributes,
/// mode and times, in the order in which none of them undoes another.
pub(super) fn keep_attributes(
    from: &OwnedFd,
    to: &OwnedFd,
    stat: &Stat,
    root: bool,
) -> io::Result<()> {
    let same = |made: &Stat| (made.st_uid, made.st_gid) == (stat.st_uid, stat.st_gid);
    let owner_kept = same(&fs::fstat(to)?)
        || (root
            && fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
                .is_ok());
    copy_xattrs(from, to, root)?;
    // A set-id bit means nothing good with another owner.
    let bits = if owner_kept { stat.st_mode & 0o7777 } else { stat.st_mode & 0o777 };
    fs::fchmod(to, mode_of(bits))?;
    fs::futimens(to, &times(stat))
}

/// Owner (as root) and times of a symbolic link or fifo.
pub(super) fn link_attributes(
    dir: impl AsFd,
    name: &CStr,
    stat: &Stat,
    root: bool,
) -> io::Result<()> {
    if root {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        // An owner that this user namespace has no id for cannot be kept.
        let _ = fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
    }
    fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |sec, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies extended attributes: all that root may set, the user's own and access lists otherwise.
/// An attribute that the target refuses is left out; want of space is an error.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd, root: bool) -> io::Result<()> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX, include/uapi/linux/limits.h.
    const MOST: usize = 64 * 1024;
    if fs::flistxattr_query(from).unwrap_or(0) == 0 {
        return Ok(());
    }
    let mut list = vec![0; MOST];
    let Ok(length) = fs::flistxattr(from, &mut list[..]) else { return Ok(()) };
    let mut value = vec![0; MOST];
    for name in list.get(..length).unwrap_or_default().split(|&byte| byte == 0) {
        let own = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if name.is_empty() || !(root || own) {
            continue;
        }
        let Ok(length) = fs::fgetxattr(from, name, &mut value[..]) else { continue };
        let value = value.get(..length).unwrap_or_default();
        let set = fs::fsetxattr(to, name, value, XattrFlags::empty());
        if matches!(set, Err(Errno::NOSPC | Errno::DQUOT)) {
            return set;
        }
    }
    Ok(())
}
