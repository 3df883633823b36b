//! Unpacking a tar stream below a directory.

use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;
use tar::EntryType;

use super::archive::Pipe;
use super::contents::write_all;
use super::copy::Counts;
use super::proto::{FileError, FileReply};
use super::root::{Access, QUIET, mode_of, open_beneath, refuse_pseudo};
use super::tar_read::{Member, TarReader};
use super::{Answer, Context};

/// Most bytes of paths of directories whose modes and times are set at the end.
const LATER_MAX: usize = 64 * 1024 * 1024;

/// Tries at a name that the guest makes again each time it is removed.
const TRIES: u32 = 8;

/// Answers [`super::FileOp::Extract`].
pub(super) fn extract(cx: &Context<'_>, path: &[u8], keep_owners: bool, pipe: OwnedFd) -> Answer {
    let path = cx.path(path)?;
    if keep_owners && !cx.is_root() {
        let why = "only root gives files to other users";
        return Err(FileError::refused("extract", path.bytes(), why));
    }
    let base = cx.root.directory("extract", path.bytes())?;
    refuse_pseudo("extract", path.bytes(), &base, Access::Write)?;
    let mut reader = TarReader::new(Pipe(pipe));
    let mut unpacker =
        Unpacker { base, keep_owners, counts: Counts::default(), later: Vec::new(), bytes: 0 };
    let broken = |error: &io::Error| match Errno::from_io_error(error) {
        Some(errno) => FileError::sys("read archive for", path.bytes(), errno),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            FileError::refused("extract", path.bytes(), "the archive ends too early")
        }
        None => FileError::refused("extract", path.bytes(), &format!("the archive: {error}")),
    };
    while let Some(member) = reader.next().map_err(|error| broken(&error))? {
        unpacker.member(&member, &mut reader).map_err(|failure| match failure {
            Failure::Archive(error) => broken(&error),
            Failure::System(errno) => FileError::sys("extract", &member.path, errno),
            Failure::Refused(error) => error,
        })?;
    }
    unpacker.finish();
    reader.drain().map_err(|error| broken(&error))?;
    let Counts { entries, skipped } = unpacker.counts;
    Ok((FileReply::Moved { entries, skipped }, None))
}

enum Failure {
    Archive(io::Error),
    System(Errno),
    Refused(FileError),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

struct Unpacker {
    base: OwnedFd,
    keep_owners: bool,
    counts: Counts,
    /// New directories, with what they get when nothing more is put into them.
    later: Vec<(Vec<u8>, Member)>,
    bytes: usize,
}

impl Unpacker {
    fn member(&mut self, member: &Member, contents: &mut impl Read) -> Result<(), Failure> {
        let path = inside(&member.path, &member.path)?;
        // The directory itself stays as it is.
        let Some((parent, name)) = split(&path) else { return Ok(()) };
        let dir = self.parent(member, parent)?;
        match member.kind {
            EntryType::Directory => self.directory(&dir, name, &path, member)?,
            EntryType::Regular | EntryType::Continuous => {
                self.file(&dir, name, member, contents)?;
            }
            EntryType::Symlink => {
                if member.target.is_empty() || member.target.contains(&0) {
                    return refuse(member, "it is a symbolic link to nothing");
                }
                replace(&dir, name, || fs::symlinkat(&*member.target, &dir, name))?;
                self.link_attributes(&dir, name, member)?;
            }
            EntryType::Link => {
                let target = inside(&member.target, &member.path)?;
                let Some((from, from_name)) = split(&target) else {
                    return refuse(member, "it is a hard link to a directory");
                };
                let from = self.beneath(member, from)?;
                let same = target == path;
                if !same {
                    replace(&dir, name, || {
                        fs::linkat(&from, from_name, &dir, name, AtFlags::empty())
                    })?;
                }
            }
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(member.mode & 0o777);
                replace(&dir, name, || fs::mknodat(&dir, name, FileType::Fifo, mode, 0))?;
                self.link_attributes(&dir, name, member)?;
            }
            _ => {
                self.counts.skipped += 1;
                return Ok(());
            }
        }
        self.counts.entries += 1;
        Ok(())
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        member: &Member,
    ) -> Result<(), Failure> {
        for _ in 0..TRIES {
            match fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) => {
                    self.bytes += path.len() + size_of::<Member>();
                    if self.bytes > LATER_MAX {
                        return refuse(member, "the archive has too many directories");
                    }
                    let attributes =
                        Member { path: Vec::new(), target: Vec::new(), ..member.clone() };
                    self.later.push((path.to_vec(), attributes));
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            match open_beneath(&self.base, path, flags, Mode::empty(), ResolveFlags::BENEATH) {
                // A directory, or a link to one that is inside too.
                Ok(_) => return Ok(()),
                Err(_) => match fs::unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                },
            }
        }
        Err(Errno::EXIST.into())
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        member: &Member,
        contents: &mut impl Read,
    ) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | QUIET;
        let file = replace(dir, name, || fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match contents.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => write_all(&file, buffer.get(..count).unwrap_or_default())?,
                Err(error) => return Err(Failure::Archive(error)),
            }
        }
        self.attributes(&file, member).map_err(Failure::System)
    }

    /// Owner, mode and time of a file or directory.
    fn attributes(&self, file: &OwnedFd, member: &Member) -> rustix::io::Result<()> {
        if self.keep_owners {
            let (uid, gid) = owner(member)?;
            fs::fchown(file, Some(uid), Some(gid))?;
        }
        fs::fchmod(file, mode_of(member.mode & self.bits()))?;
        fs::futimens(file, &times(member))
    }

    fn link_attributes(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        member: &Member,
    ) -> rustix::io::Result<()> {
        if self.keep_owners {
            let (uid, gid) = owner(member)?;
            fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        fs::utimensat(dir, name, &times(member), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A set-id bit was meant for the archive's owner, not for another.
    fn bits(&self) -> u32 {
        if self.keep_owners { 0o7777 } else { 0o1777 }
    }

    /// Gives new directories their attributes, the innermost first. One that is there no more, or
    /// refuses, is left as it is: the contents are whole.
    fn finish(&mut self) {
        for (path, member) in std::mem::take(&mut self.later).iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | QUIET;
            let dir = open_beneath(&self.base, path, flags, Mode::empty(), ResolveFlags::BENEATH);
            if let Ok(dir) = dir {
                let _ = self.attributes(&dir, member);
            }
        }
    }

    /// The directory `path` below the base, made where it is missing.
    ///
    /// Symbolic links on the way are followed as long as they stay below the base.
    fn parent(&self, member: &Member, path: &[u8]) -> Result<OwnedFd, Failure> {
        let dir = match self.beneath(member, path) {
            Err(Failure::System(Errno::NOENT)) => {
                let mut done = 0;
                for part in path.split(|&byte| byte == b'/') {
                    let above = path.get(..done).unwrap_or_default();
                    let above = above.strip_suffix(b"/").unwrap_or(above);
                    done += part.len() + 1;
                    let here = self.beneath(member, above)?;
                    match fs::statat(&here, part, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(_) => continue,
                        Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    refuse_pseudo("extract", &member.path, &here, Access::Write)
                        .map_err(Failure::Refused)?;
                    match fs::mkdirat(&here, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                self.beneath(member, path)?
            }
            result => result?,
        };
        refuse_pseudo("extract", &member.path, &dir, Access::Write).map_err(Failure::Refused)?;
        Ok(dir)
    }

    fn beneath(&self, member: &Member, path: &[u8]) -> Result<OwnedFd, Failure> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match open_beneath(&self.base, path, flags, Mode::empty(), ResolveFlags::BENEATH) {
            Err(Errno::XDEV) => {
                refuse(member, "a symbolic link on its way leads out of the directory")
            }
            result => result.map_err(Failure::System),
        }
    }
}

/// Makes `name`, taking away what is there already unless it is a directory.
fn replace<T>(
    dir: &OwnedFd,
    name: &[u8],
    make: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    for _ in 0..TRIES {
        match make() {
            Err(Errno::EXIST) => match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            },
            result => return result,
        }
    }
    Err(Errno::EXIST)
}

/// The archive's name for something as a path below the base: no slash in front, no `.`.
fn inside(path: &[u8], member: &[u8]) -> Result<Vec<u8>, Failure> {
    let refuse = |why| Err(Failure::Refused(FileError::refused("extract", member, why)));
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return refuse("a name in the archive contains `..`"),
            _ if part.contains(&0) => return refuse("a name in the archive contains NUL"),
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    Ok(clean)
}

/// Directory and name; none for the base itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((path.get(..slash)?, path.get(slash + 1..)?)),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

fn refuse<T>(member: &Member, why: &str) -> Result<T, Failure> {
    Err(Failure::Refused(FileError::refused("extract", &member.path, why)))
}

/// `EINVAL` for ids that no user namespace has.
fn owner(member: &Member) -> rustix::io::Result<(Uid, Gid)> {
    let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(Errno::INVAL);
    Ok((Uid::from_raw(id(member.uid)?), Gid::from_raw(id(member.gid)?)))
}

fn times(member: &Member) -> Timestamps {
    let time = Timespec { tv_sec: member.mtime, tv_nsec: member.mtime_nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}
