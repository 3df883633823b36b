//! Copying a file or a tree, made under a temporary name and renamed when it is whole.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::copy_file::{copy_data, keep_attributes, link_attributes};
use super::dir::{Descent, FileId, all_names};
use super::links::Links;
use super::proto::{FileError, FileErrorKind, FileReply};
use super::root::{QUIET, kind, open_directory, open_plain, pseudo};
use super::{Answer, Context, link_target, remove};

/// What is copied: a name in a directory, and its path for messages.
pub(super) struct Source<'a> {
    pub(super) dir: &'a OwnedFd,
    pub(super) name: &'a [u8],
    pub(super) path: &'a [u8],
}

/// What went through, and what was left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) skipped: u64,
}

/// Answers [`super::FileOp::Copy`].
pub(super) fn copy(cx: &Context<'_>, from: &[u8], to: &[u8], recursive: bool) -> Answer {
    let (from, to) = (cx.path(from)?, cx.path(to)?);
    let (parent, name) = from.split("copy")?;
    let dir = cx.root.directory("copy", parent)?;
    let (to_dir, to_name) = cx.root.parent("copy", &to)?;
    let stat = fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| FileError::sys("copy", from.bytes(), errno))?;
    let is_directory = kind(&stat) == FileType::Directory;
    if is_directory && !recursive {
        return Err(FileError::new("copy", from.bytes(), FileErrorKind::IsADirectory));
    }
    let there = fs::statat(&to_dir, to_name, AtFlags::SYMLINK_NOFOLLOW);
    if let Ok(there) = &there {
        if FileId::of(there) == FileId::of(&stat) {
            return Err(FileError::refused("copy", to.bytes(), "it is the same file"));
        }
        if is_directory || kind(there) == FileType::Directory {
            return Err(FileError::new("copy", to.bytes(), FileErrorKind::AlreadyExists));
        }
    }
    let flags = if is_directory { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    let source = Source { dir: &dir, name, path: from.bytes() };
    let counts = place(cx, &source, (&to_dir, to_name, to.bytes()), flags)?;
    Ok((FileReply::Moved { entries: counts.entries, skipped: counts.skipped }, None))
}

/// Copies under a temporary name beside the target, then renames. What was copied is removed
/// again when something fails.
pub(super) fn place(
    cx: &Context<'_>,
    source: &Source<'_>,
    (to_dir, to_name, to_path): (&OwnedFd, &[u8], &[u8]),
    flags: RenameFlags,
) -> Result<Counts, FileError> {
    let stat = fs::statat(source.dir, source.name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| FileError::sys("stat", source.path, errno))?;
    let into_itself = kind(&stat) == FileType::Directory
        && lies_in(to_dir, FileId::of(&stat))
            .map_err(|errno| FileError::sys("open ..", to_path, errno))?;
    if into_itself {
        let why = "a directory cannot be copied or moved into itself";
        return Err(FileError::refused("copy", to_path, why));
    }
    let temporary = temporary_name(to_path)?;
    let mut copier = Copier::new(cx, source.path, to_dir);
    let result = copier.top(source, &temporary).and_then(|()| {
        if copier.work.counts.entries == 0 {
            let why = "a device, a socket or a pseudo file system is not copied";
            return Err(FileError::refused("copy", source.path, why));
        }
        fs::renameat_with(to_dir, &temporary, to_dir, to_name, flags)
            .map_err(|errno| FileError::sys("rename", to_path, errno))
    });
    if result.is_err() {
        // The first error is the one to tell.
        if fs::unlinkat(to_dir, &temporary, AtFlags::empty()) == Err(Errno::ISDIR) {
            let _ = remove::tree(to_dir, temporary.to_bytes(), to_path);
        }
    }
    result.map(|()| copier.work.counts)
}

/// A name that no one can guess, so that nothing waits there.
fn temporary_name(path: &[u8]) -> Result<CString, FileError> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK)
        .map_err(|errno| FileError::sys("getrandom", path, errno))?;
    CString::new(format!(".forkyard-{:016x}", u64::from_ne_bytes(random)))
        .map_err(|_| FileError::sys("copy", path, Errno::INVAL))
}

/// A directory that is being copied.
struct Level {
    pending: Vec<CString>,
    stat: Stat,
    /// Length of the path below the target's directory.
    length: usize,
}

/// A directory found: itself, its copy, and what to give the copy when it is done.
type Found = Option<(OwnedFd, OwnedFd, Stat)>;

struct Copier<'a> {
    path: &'a [u8],
    work: Work<'a>,
    from_way: Descent,
    to_way: Descent,
    levels: Vec<Level>,
    /// Path of the present directory's copy, below the target's directory.
    below: Vec<u8>,
}

impl<'a> Copier<'a> {
    fn new(cx: &Context<'_>, path: &'a [u8], to: &'a OwnedFd) -> Self {
        let work =
            Work { to, root: cx.is_root(), links: Links::default(), counts: Counts::default() };
        Self {
            path,
            work,
            from_way: Descent::default(),
            to_way: Descent::default(),
            levels: Vec::new(),
            below: Vec::new(),
        }
    }

    fn top(&mut self, source: &Source<'_>, temporary: &CString) -> Result<(), FileError> {
        let fail = |errno| FileError::sys("copy", source.path, errno);
        let name = CString::new(source.name).map_err(|_| fail(Errno::INVAL))?;
        let stat = fs::statat(source.dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let to = Place { dir: self.work.to.as_fd(), name: temporary, below: b"" };
        let found = self.work.one(source.dir.as_fd(), &name, &to, &stat).map_err(fail)?;
        self.enter(temporary, found).map_err(fail)?;
        while let Some(level) = self.levels.last_mut() {
            match level.pending.pop() {
                Some(name) => self.next(&name).map_err(|errno| self.failed(&name, errno))?,
                None => self.leave().map_err(|errno| self.failed(c"", errno))?,
            }
        }
        Ok(())
    }

    fn next(&mut self, name: &CString) -> rustix::io::Result<()> {
        let from = self.from_way.here()?;
        let to = Place { dir: self.to_way.here()?, name, below: &self.below };
        let stat = match fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let found = self.work.one(from, name, &to, &stat)?;
        self.enter(name, found)
    }

    fn enter(&mut self, name: &CStr, found: Found) -> rustix::io::Result<()> {
        let Some((from, to, stat)) = found else { return Ok(()) };
        let pending = all_names(&from)?;
        let length = self.below.len();
        join(&mut self.below, name);
        // The guest moved the copy into what is copied.
        if Some(self.from_way.enter(from)?) == self.to_way.first() {
            return Err(Errno::STALE);
        }
        self.to_way.enter(to)?;
        self.levels.push(Level { pending, stat, length });
        Ok(())
    }

    fn leave(&mut self) -> rustix::io::Result<()> {
        let (from, to) = (self.from_way.leave()?, self.to_way.leave()?);
        if let Some(level) = self.levels.pop() {
            self.below.truncate(level.length);
            keep_attributes(&from, &to, &level.stat, self.work.root)?;
        }
        Ok(())
    }

    /// The error, with the place in the tree: the copy's path less its temporary name.
    fn failed(&self, name: &CStr, errno: Errno) -> FileError {
        const MOST: usize = 4096;
        let mut path = self.path.to_vec();
        if let Some(slash) = self.below.iter().position(|&byte| byte == b'/') {
            path.extend(self.below.iter().skip(slash).take(MOST));
        }
        if !name.is_empty() {
            join(&mut path, name);
        }
        FileError::sys("copy", &path, errno)
    }
}

fn join(path: &mut Vec<u8>, name: &CStr) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
}

/// Where one copy goes: `name` in `dir`, which is `below` the target's directory.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    below: &'a [u8],
}

/// What stays the same for all files of a tree.
struct Work<'a> {
    to: &'a OwnedFd,
    root: bool,
    links: Links,
    counts: Counts,
}

impl Work<'_> {
    /// Copies one file, or makes the copy of a directory without what is in it.
    fn one(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        to: &Place<'_>,
        stat: &Stat,
    ) -> rustix::io::Result<Found> {
        let linked = stat.st_nlink > 1 && kind(stat) != FileType::Directory;
        if linked && self.link_again(to, stat) {
            self.counts.entries += 1;
            return Ok(None);
        }
        let found = match kind(stat) {
            FileType::Directory => match Self::directory(from, name, to)? {
                None => {
                    self.counts.skipped += 1;
                    return Ok(None);
                }
                found => found,
            },
            FileType::RegularFile => {
                self.file(from, name, to)?;
                None
            }
            FileType::Symlink => {
                let target = link_target(from, name)?;
                fs::symlinkat(&*target, to.dir, to.name)?;
                link_attributes(to.dir, to.name, stat, self.root)?;
                None
            }
            FileType::Fifo => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
                fs::mknodat(to.dir, to.name, FileType::Fifo, mode, 0)?;
                link_attributes(to.dir, to.name, stat, self.root)?;
                None
            }
            _ => {
                self.counts.skipped += 1;
                return Ok(None);
            }
        };
        self.counts.entries += 1;
        if linked {
            let made = fs::statat(to.dir, to.name, AtFlags::SYMLINK_NOFOLLOW)?;
            let mut path = to.below.to_vec();
            join(&mut path, to.name);
            self.links.remember(FileId::of(stat), path, FileId::of(&made));
        }
        Ok(found)
    }

    fn directory(from: BorrowedFd<'_>, name: &CStr, to: &Place<'_>) -> rustix::io::Result<Found> {
        let dir = open_directory(from, name.to_bytes(), ResolveFlags::empty())?;
        if pseudo(&dir)?.is_some() {
            return Ok(None);
        }
        let stat = fs::fstat(&dir)?;
        fs::mkdirat(to.dir, to.name, Mode::RWXU)?;
        let made = open_directory(to.dir, to.name.to_bytes(), ResolveFlags::NO_XDEV)?;
        Ok(Some((dir, made, stat)))
    }

    fn file(&self, from: BorrowedFd<'_>, name: &CStr, to: &Place<'_>) -> rustix::io::Result<()> {
        let (source, stat) = open_plain(from, name.to_bytes())?;
        if pseudo(&source)?.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | QUIET;
        let made = fs::openat(to.dir, to.name, flags, Mode::RUSR | Mode::WUSR)?;
        copy_data(&source, &made, stat.st_size as u64)?;
        keep_attributes(&source, &made, &stat, self.root)
    }

    /// Makes the copy another name of a copy made before; false where that is not to be had.
    ///
    /// The guest may have exchanged the earlier copy. What was linked is looked at, and a wrong
    /// link is taken away again.
    fn link_again(&self, to: &Place<'_>, stat: &Stat) -> bool {
        let Some((path, made)) = self.links.seen(FileId::of(stat)) else { return false };
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (path.get(..slash), path.get(slash + 1..)),
            None => (Some(&b"."[..]), Some(path)),
        };
        let (Some(parent), Some(name)) = (parent, name) else { return false };
        let Ok(parent) = open_directory(self.to, parent, ResolveFlags::NO_XDEV) else {
            return false;
        };
        if fs::linkat(&parent, name, to.dir, to.name, AtFlags::empty()).is_err() {
            return false;
        }
        let right = fs::statat(to.dir, to.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileId::of(&stat) == made);
        if !right {
            let _ = fs::unlinkat(to.dir, to.name, AtFlags::empty());
        }
        right
    }
}

/// Whether `dir` is `top` or lies below it.
fn lies_in(dir: &OwnedFd, top: FileId) -> rustix::io::Result<bool> {
    const DEEPEST: usize = 100_000;
    let mut last = FileId::of(&fs::fstat(dir)?);
    let mut here: Option<OwnedFd> = None;
    for _ in 0..DEEPEST {
        if last == top {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let up = fs::openat(here.as_ref().unwrap_or(dir), c"..", flags, Mode::empty())?;
        let id = FileId::of(&fs::fstat(&up)?);
        if id == last {
            return Ok(false);
        }
        last = id;
        here = Some(up);
    }
    Err(Errno::NAMETOOLONG)
}
