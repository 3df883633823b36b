//! Making a directory, and giving a file another name.

use rustix::fs::{self, AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::proto::{FileError, FileErrorKind, FileReply};
use super::root::mode_of;
use super::{Answer, Context, copy, remove};

/// Answers [`super::FileOp::MakeDir`].
pub(super) fn make_dir(cx: &Context<'_>, path: &[u8], parents: bool, mode: u32) -> Answer {
    let path = cx.path(path)?;
    if parents && path.last().is_none_or(|last| last == b"..") {
        // Nothing to make: it is there, or its parents are not.
        return cx.root.directory("mkdir", path.bytes()).map(|_| (FileReply::Done, None));
    }
    let (parent, name) = if parents {
        cx.root.parent_made("mkdir", &path)?
    } else {
        cx.root.parent("mkdir", &path)?
    };
    match fs::mkdirat(&parent, name, mode_of(mode)) {
        Ok(()) => Ok((FileReply::Done, None)),
        // There already, be it by way of a symbolic link, is what `mkdir -p` accepts.
        Err(Errno::EXIST) if parents => match cx.root.directory("mkdir", path.bytes()) {
            Ok(_) => Ok((FileReply::Done, None)),
            Err(_) => Err(FileError::new("mkdir", path.bytes(), FileErrorKind::AlreadyExists)),
        },
        Err(errno) => Err(FileError::sys("mkdir", path.bytes(), errno)),
    }
}

/// Answers [`super::FileOp::Move`].
pub(super) fn rename(cx: &Context<'_>, from: &[u8], to: &[u8], no_replace: bool) -> Answer {
    let (from, to) = (cx.path(from)?, cx.path(to)?);
    let (from_dir, from_name) = cx.root.parent("rename", &from)?;
    let (to_dir, to_name) = cx.root.parent("rename", &to)?;
    let flags = if no_replace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    match fs::renameat_with(&from_dir, from_name, &to_dir, to_name, flags) {
        Ok(()) => return Ok((FileReply::Done, None)),
        // Another file system, or a directory that an overlay keeps in a lower layer.
        Err(Errno::XDEV) => {}
        Err(Errno::NOENT) => {
            // Which of both is missing: the parents are there, so it is `from`.
            return Err(FileError::sys("rename", from.bytes(), Errno::NOENT));
        }
        Err(Errno::INVAL) => {
            let why = "a directory cannot be moved into itself";
            return Err(FileError::refused("rename", to.bytes(), why));
        }
        Err(errno) => {
            let there = matches!(errno, Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR);
            let path = if there { to.bytes() } else { from.bytes() };
            return Err(FileError::sys("rename", path, errno));
        }
    }
    let stat = fs::statat(&from_dir, from_name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| FileError::sys("stat", from.bytes(), errno))?;
    let source = copy::Source { dir: &from_dir, name: from_name, path: from.bytes() };
    let counts = copy::place(cx, &source, (&to_dir, to_name, to.bytes()), flags)?;
    if counts.skipped > 0 {
        let why = "the copy to the other file system left out devices or sockets; \
                   the original is kept";
        return Err(FileError::refused("rename", from.bytes(), why));
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        remove::tree(&from_dir, from_name, from.bytes())?;
    } else {
        fs::unlinkat(&from_dir, from_name, AtFlags::empty())
            .map_err(|errno| FileError::sys("unlink", from.bytes(), errno))?;
    }
    Ok((FileReply::Done, None))
}
