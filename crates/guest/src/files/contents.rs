//! Reading and writing the contents of one file.

use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use rustix::{fs, io};

use super::path::GuestPath;
use super::proto::{FileError, FileErrorKind, FileReply, INLINE_MAX, WriteTarget};
use super::root::{Access, QUIET, check_regular, kind, mode_of};
use super::{Answer, Context};

/// Tries at opening a file that appears and disappears between looking and making.
const TRIES: u32 = 8;

/// Answers [`super::FileOp::Read`].
pub(super) fn read(cx: &Context<'_>, path: &[u8], offset: u64, length: Option<u64>) -> Answer {
    let path = cx.path(path)?;
    let (file, stat) = cx.root.contents(path.bytes(), Access::Read, OFlags::empty())?;
    let fail = |action: &str, errno| FileError::sys(action, path.bytes(), errno);
    let entry = cx.entry(path.bytes().to_vec(), &stat, None);
    let left = (stat.st_size as u64).saturating_sub(offset);
    // One byte more tells whether a file whose size says nothing (sysfs) or that has grown fits.
    if length.unwrap_or(left).min(left) <= INLINE_MAX as u64 {
        let most = length.unwrap_or(u64::MAX).min(INLINE_MAX as u64 + 1) as usize;
        let contents = read_up_to(&file, offset, most).map_err(|errno| fail("pread", errno))?;
        if contents.len() <= INLINE_MAX {
            return Ok((FileReply::Contents { entry, contents }, None));
        }
    }
    if i64::try_from(offset).is_err() {
        return Err(FileError::refused("read", path.bytes(), "the offset is too large"));
    }
    fs::seek(&file, SeekFrom::Start(offset)).map_err(|errno| fail("lseek", errno))?;
    Ok((FileReply::Opened { entry }, Some(file)))
}

/// At most `most` bytes from `offset` on, fewer at the end of the file.
pub(crate) fn read_up_to(file: impl AsFd, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    const CHUNK: usize = 64 * 1024;
    // Files of the kernel's have no size, or a page's.
    const LEAST: usize = 4096;
    // Room for one byte more than the file should have: its end then shows itself without more.
    // Memory that is not needed is not asked for, since each page of it costs a fault.
    let size = fs::fstat(&file)?.st_size as u64;
    let expected = usize::try_from(size.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK) + 1;
    let mut bytes = Vec::with_capacity(expected.max(LEAST).min(most));
    while bytes.len() < most {
        let have = bytes.len();
        bytes.reserve(if have < bytes.capacity() { 0 } else { CHUNK.min(most - have) });
        let Some(at) = offset.checked_add(have as u64).filter(|&at| i64::try_from(at).is_ok())
        else {
            break;
        };
        if retry_on_intr(|| io::pread(&file, spare_capacity(&mut bytes), at))? == 0 {
            break;
        }
    }
    // The allocator may have given more room.
    bytes.truncate(most);
    Ok(bytes)
}

/// Answers [`super::FileOp::Write`]. A write that fails half way, for want of space say, leaves
/// what was written, as a shell's `>` does.
pub(super) fn write(cx: &Context<'_>, target: &WriteTarget, contents: &[u8]) -> Answer {
    if contents.len() > INLINE_MAX {
        let why = FileErrorKind::TooLarge(format!("more than {INLINE_MAX} bytes in a request"));
        return Err(FileError::new("write", &target.path, why));
    }
    let path = cx.path(&target.path)?;
    // Writing takes set-id bits off, as emptying does; writing nothing does not.
    let replaced = !target.append && !contents.is_empty();
    let file = open_target(cx, &path, target, target.append || replaced)?;
    let written = if replaced { replace(&file, contents) } else { write_all(&file, contents) };
    written.map_err(|errno| FileError::sys("write", path.bytes(), errno))?;
    Ok((FileReply::Done, None))
}

/// Writes over what is in a file, and then cuts off what is left of it.
///
/// Not the other way round: ext4 writes a file that was emptied to disk when it is closed, lest a
/// crash leave it empty (`auto_da_alloc`), which takes milliseconds.
fn replace(file: &OwnedFd, contents: &[u8]) -> io::Result<()> {
    if write_all(file, contents).is_err() {
        // The room that the old contents take may be what is lacking.
        retry_on_intr(|| fs::ftruncate(file, 0))?;
        fs::seek(file, SeekFrom::Start(0))?;
        return write_all(file, contents);
    }
    let length = contents.len() as u64;
    if fs::fstat(file)?.st_size as u64 > length {
        retry_on_intr(|| fs::ftruncate(file, length))?;
    }
    Ok(())
}

/// Writes all of `bytes` at the descriptor's position.
pub(super) fn write_all(file: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match retry_on_intr(|| io::write(&file, bytes))? {
            0 => return Err(Errno::IO),
            count => bytes = bytes.get(count..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Answers [`super::FileOp::OpenWrite`].
pub(super) fn open_write(cx: &Context<'_>, target: &WriteTarget) -> Answer {
    let path = cx.path(&target.path)?;
    let file = open_target(cx, &path, target, target.append)?;
    let stat = fs::fstat(&file).map_err(|errno| FileError::sys("fstat", path.bytes(), errno))?;
    // The receiver writes with its own rights, which may include CAP_FSETID: the kernel would not
    // take the set-id bits off then. Truncating took them off; appending did not.
    if !cx.is_root() && stat.st_mode & 0o6000 != 0 && target.mode.is_none() {
        let why = "a set-id file is not handed out for writing";
        return Err(FileError::refused("open", path.bytes(), why));
    }
    Ok((FileReply::Opened { entry: cx.entry(path.bytes().to_vec(), &stat, None) }, Some(file)))
}

/// Opens the file to write, makes it where it is missing, empties it unless that is to be kept
/// which is in it.
fn open_target(
    cx: &Context<'_>,
    path: &GuestPath,
    target: &WriteTarget,
    keep: bool,
) -> Result<OwnedFd, FileError> {
    if path.slash {
        return Err(FileError::new("open", path.bytes(), FileErrorKind::IsADirectory));
    }
    let append = if target.append { OFlags::APPEND } else { OFlags::empty() };
    for _ in 0..TRIES {
        if !target.exclusive {
            match cx.root.contents(path.bytes(), Access::Write, append) {
                Ok((file, _)) => return prepare(path, target, file, keep),
                Err(FileError { kind: FileErrorKind::NotFound, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match create(cx, path, target, append) {
            Err(FileError { kind: FileErrorKind::AlreadyExists, .. }) if !target.exclusive => {}
            result => return result,
        }
    }
    Err(FileError::sys("open", path.bytes(), Errno::AGAIN))
}

/// Gives an existing file the mode asked for, and empties it unless `keep` is set. The mode first:
/// whoever may not change it is to lose no contents. Emptying takes set-id bits off.
fn prepare(
    path: &GuestPath,
    target: &WriteTarget,
    file: OwnedFd,
    keep: bool,
) -> Result<OwnedFd, FileError> {
    let fail = |action: &str, errno| FileError::sys(action, path.bytes(), errno);
    let set_mode = |mode| fs::fchmod(&file, mode_of(mode)).map_err(|errno| fail("fchmod", errno));
    target.mode.map_or(Ok(()), set_mode)?;
    if !keep {
        retry_on_intr(|| fs::ftruncate(&file, 0)).map_err(|errno| fail("ftruncate", errno))?;
        target.mode.filter(|mode| mode & 0o6000 != 0).map_or(Ok(()), set_mode)?;
    }
    Ok(file)
}

fn create(
    cx: &Context<'_>,
    path: &GuestPath,
    target: &WriteTarget,
    append: OFlags,
) -> Result<OwnedFd, FileError> {
    let mode = mode_of(target.mode.unwrap_or(0o644));
    let (parent, name) = if target.create_parents {
        cx.root.parent_made("open", path)?
    } else {
        cx.root.parent("open", path)?
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | append | QUIET;
    match fs::openat(&parent, name, flags | OFlags::EXCL | OFlags::NOFOLLOW, mode) {
        // Either it appeared just now, or it is a symbolic link to a file that is not there: that
        // file is made, as any open(O_CREAT) does, if its directory can be found.
        Err(Errno::EXIST) if !target.exclusive && leads_nowhere(cx, path, &parent, name) => {
            let file = cx
                .root
                .resolve(path.bytes(), flags, mode)
                .map_err(|errno| FileError::sys("open", path.bytes(), errno))?;
            check_regular(path.bytes(), &file, Access::Write)?;
            Ok(file)
        }
        result => result.map_err(|errno| FileError::sys("open", path.bytes(), errno)),
    }
}

/// Whether `name` is a symbolic link to something that does not exist.
fn leads_nowhere(cx: &Context<'_>, path: &GuestPath, parent: impl AsFd, name: &[u8]) -> bool {
    let link = fs::statat(parent, name, fs::AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| kind(&stat) == fs::FileType::Symlink);
    link && cx.root.resolve(path.bytes(), OFlags::PATH, Mode::empty()).err() == Some(Errno::NOENT)
}
