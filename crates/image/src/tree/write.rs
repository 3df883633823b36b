//! Creates what entries describe, each in a place that the walk has found.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Place, Tree, remove_tree};
use crate::UnpackError;
use crate::archive::{Entry, Reader, TarError};

/// Highest id of a sandbox's range; see [`NOBODY`].
const MAX_ID: u64 = 65_535;

/// Who gets the files of ids beyond the 65,536 that a sandbox has. Such ids come from the machine
/// that built the image (directory services, archives unpacked as root) and mean nothing here.
const NOBODY: u32 = 65_534;

/// Longest value of an xattr, as Linux has it (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 65_536;

/// What can only be set on a directory when nothing is written into it any more.
pub(crate) struct Later {
    mode: Option<u32>,
    mtime: (i64, u32),
}

impl Tree<'_> {
    /// Makes a directory, or gives the one that is there the entry's metadata.
    pub(crate) fn directory(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let path = place.path();
        let fail = |call| move |e| UnpackError::system(call, &entry.name, e);
        let found = place.current()?;
        let is_dir = found.as_ref().is_some_and(|stat| kind_of(stat) == FileType::Directory);
        if is_dir && !self.policy.exact_modes() {
            return Ok(());
        }
        let hides = found.as_ref().is_some_and(is_whiteout);
        if !is_dir {
            self.clear(place, entry)?;
            let mode = if self.policy.exact_modes() { 0o700 } else { entry.mode & 0o777 | 0o700 };
            rustix::fs::mkdirat(&place.dir, place.name.as_slice(), Mode::from_raw_mode(mode))
                .map_err(fail("mkdirat"))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&place.dir, place.name.as_slice(), flags, Mode::empty())
            .map_err(fail("openat"))?;
        self.describe_directory(dir.as_fd(), path, entry)?;
        if hides {
            // The archive removes what lower layers have here, and then puts a directory there.
            make_opaque(dir.as_fd(), &entry.name)?;
        }
        Ok(())
    }

    /// Gives the root the entry's metadata.
    pub(crate) fn root_directory(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if !self.policy.exact_modes() {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(self.root, c".", flags, Mode::empty())
            .map_err(|e| UnpackError::system("openat", &entry.name, e))?;
        self.describe_directory(dir.as_fd(), Vec::new(), entry)
    }

    fn describe_directory(
        &mut self,
        dir: BorrowedFd<'_>,
        path: Vec<u8>,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let mode = self.mode(entry, self.policy.directory_floor());
        if self.policy.exact_modes() {
            self.own(dir, entry)?;
            chmod(dir, mode, entry)?;
        }
        self.xattrs(dir, entry)?;
        let mode = (!self.policy.exact_modes() && mode & 0o700 != 0o700).then_some(mode);
        self.set_later(path, Later { mode, mtime: entry.mtime });
        Ok(())
    }

    /// Makes a regular file with the contents that the reader stands at.
    pub(crate) fn file<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        self.clear(place, entry)?;
        let mode = self.mode(entry, self.policy.file_floor());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = if self.policy.exact_modes() { 0o600 } else { mode & 0o777 };
        let made = rustix::fs::openat(
            &place.dir,
            place.name.as_slice(),
            flags,
            Mode::from_raw_mode(create),
        );
        let file = File::from(made.map_err(|e| UnpackError::system("openat", &entry.name, e))?);
        self.fill(&file, entry, reader)?;
        if self.policy.exact_modes() {
            self.own(file.as_fd(), entry)?;
            chmod(file.as_fd(), mode, entry)?;
        }
        self.xattrs(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|e| UnpackError::system("utimensat", &entry.name, e))
    }

    fn fill<R: Read>(
        &mut self,
        file: &File,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let whole = [(0, entry.size)];
        let segments = entry.sparse.as_ref().map_or(whole.as_slice(), |s| &s.segments);
        let failed = |call: &str, e: &io::Error| {
            UnpackError::system(call, &entry.name, Errno::from_io_error(e).unwrap_or(Errno::IO))
        };
        for &(start, length) in segments {
            let (mut at, end) = (start, start.saturating_add(length));
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
                let buffer = self.buffer.get_mut(..want).unwrap_or_default();
                let read =
                    reader.read_data(buffer).map_err(|e| UnpackError::tar(e, reader.position()))?;
                if read == 0 {
                    return Err(UnpackError::tar(TarError::Truncated, reader.position()));
                }
                let data = buffer.get(..read).unwrap_or_default();
                file.write_all_at(data, at).map_err(|e| failed("pwrite", &e))?;
                at += read as u64;
            }
        }
        if let Some(sparse) = &entry.sparse {
            file.set_len(sparse.real_size).map_err(|e| failed("ftruncate", &e))?;
        }
        Ok(())
    }

    /// Makes a symbolic link; where it leads is its reader's business.
    pub(crate) fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |call| move |e| UnpackError::system(call, &entry.name, e);
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(UnpackError::refused(&entry.name, "it links to an impossible name"));
        }
        self.clear(place, entry)?;
        rustix::fs::symlinkat(entry.link.as_slice(), &place.dir, place.name.as_slice())
            .map_err(fail("symlinkat"))?;
        self.describe_by_name(place, entry)
    }

    /// Makes a fifo.
    pub(crate) fn fifo(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |call| move |e| UnpackError::system(call, &entry.name, e);
        self.clear(place, entry)?;
        let mode = Mode::from_raw_mode(self.mode(entry, self.policy.file_floor()));
        let name = place.name.as_slice();
        rustix::fs::mknodat(&place.dir, name, FileType::Fifo, mode, 0).map_err(fail("mknodat"))?;
        self.describe_by_name(place, entry)?;
        if self.policy.exact_modes() {
            // Made a moment ago in a directory that nobody else writes to, so it is no link.
            rustix::fs::chmodat(&place.dir, name, mode, AtFlags::empty())
                .map_err(fail("fchmodat"))?;
        }
        Ok(())
    }

    /// Makes another name of a file of the same archive.
    pub(crate) fn hard_link(
        &mut self,
        place: &Place,
        target: &Place,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let Some(found) = target.current()? else {
            return Err(UnpackError::refused(&entry.name, "it links to a file that is not there"));
        };
        if kind_of(&found) == FileType::Directory || is_whiteout(&found) {
            return Err(UnpackError::refused(&entry.name, "it links to what is not a file"));
        }
        let there = place.current()?;
        if there.is_some_and(|stat| (stat.st_dev, stat.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        self.clear(place, entry)?;
        rustix::fs::linkat(
            &target.dir,
            target.name.as_slice(),
            &place.dir,
            place.name.as_slice(),
            AtFlags::empty(),
        )
        .map_err(|e| UnpackError::system("linkat", &entry.name, e))
    }

    /// Makes room for an entry.
    fn clear(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let Some(found) = place.current()? else { return Ok(()) };
        if kind_of(&found) == FileType::Directory {
            if !self.policy.replaces_other_kinds() {
                return Err(UnpackError::refused(&entry.name, "a directory is in its place"));
            }
        } else if entry.kind == crate::archive::Kind::Directory
            && !self.policy.replaces_other_kinds()
        {
            return Err(UnpackError::refused(&entry.name, "a file is in its place"));
        }
        self.last = None;
        remove_tree(place.directory(), &place.name)
            .map_err(|e| UnpackError::system("unlinkat", &entry.name, e))
    }

    fn describe_by_name(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |call| move |e| UnpackError::system(call, &entry.name, e);
        let name = place.name.as_slice();
        if self.policy.keeps_owners() {
            let (uid, gid) = self.ids(entry);
            rustix::fs::chownat(&place.dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(fail("fchownat"))?;
        }
        if self.policy.keeps_xattrs() && !entry.xattrs.is_empty() {
            self.notes.add("xattrs of links and fifos dropped", &entry.name);
        }
        let times = times(entry.mtime);
        rustix::fs::utimensat(&place.dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("utimensat"))
    }

    fn mode(&mut self, entry: &Entry, floor: u32) -> u32 {
        let set_ids = entry.mode & 0o6000;
        if set_ids != 0 && !self.policy.keeps_owners() {
            self.notes.add("setuid and setgid bits dropped", &entry.name);
            return entry.mode & 0o1777 | floor;
        }
        entry.mode & 0o7777 | floor
    }

    /// Gives an open file to its owner. Called before modes and xattrs: a change of owner drops
    /// setuid bits and capabilities.
    fn own(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
        if !self.policy.keeps_owners() {
            return Ok(());
        }
        let (uid, gid) = self.ids(entry);
        rustix::fs::fchown(file, uid, gid)
            .map_err(|e| UnpackError::system("fchown", &entry.name, e))
    }

    fn ids(&mut self, entry: &Entry) -> (Option<Uid>, Option<Gid>) {
        if entry.uid > MAX_ID || entry.gid > MAX_ID {
            self.notes.add("ids above 65535 given to nobody", &entry.name);
        }
        let id = |id: u64| u32::try_from(id).ok().filter(|_| id <= MAX_ID).unwrap_or(NOBODY);
        (Some(Uid::from_raw(id(entry.uid))), Some(Gid::from_raw(id(entry.gid))))
    }

    fn xattrs(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
        if !self.policy.keeps_xattrs() {
            return Ok(());
        }
        for (name, value) in &entry.xattrs {
            if name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.") {
                self.notes.add("xattrs of overlayfs dropped", &entry.name);
                continue;
            }
            let capability = name == b"security.capability";
            if capability && !self.policy.keeps_owners() {
                self.notes.add("file capabilities dropped", &entry.name);
                continue;
            }
            if !capability && !name.starts_with(b"user.") {
                self.notes.add("xattrs other than user.* dropped", &entry.name);
                continue;
            }
            if name.len() > 255 || name.contains(&0) || value.len() > MAX_XATTR {
                return Err(UnpackError::refused(&entry.name, "an xattr of it is too large"));
            }
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // ext4 keeps all xattrs of a file in one block.
                Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                    self.notes.add("xattrs that the file system cannot hold dropped", &entry.name);
                }
                Err(e) => return Err(UnpackError::system("fsetxattr", &entry.name, e)),
            }
        }
        Ok(())
    }
}

impl Place {
    /// Hides a name of the layers below: a character device 0:0, as overlayfs has it. What this
    /// layer has there stays; a directory of it hides the one below.
    pub(crate) fn whiteout(&self, entry: &Entry) -> Result<(), UnpackError> {
        let name = self.name.as_slice();
        match self.current()? {
            None => rustix::fs::mknodat(
                &self.dir,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                rustix::fs::makedev(0, 0),
            )
            .map_err(|e| UnpackError::system("mknodat", &entry.name, e)),
            Some(stat) if kind_of(&stat) == FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&self.dir, name, flags, Mode::empty())
                    .map_err(|e| UnpackError::system("openat", &entry.name, e))?;
                make_opaque(dir.as_fd(), &entry.name)
            }
            Some(_) => Ok(()),
        }
    }

    /// Hides all that the layers below have in the directory of this self.
    pub(crate) fn opaque(&self, entry: &Entry) -> Result<(), UnpackError> {
        make_opaque(self.directory(), &entry.name)
    }
}

impl Later {
    pub(super) fn apply(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        // The descriptor is O_PATH: "." of it is the same directory.
        let fail = |call| move |e| UnpackError::system(call, path, e);
        let times = times(self.mtime);
        rustix::fs::utimensat(dir, c".", &times, AtFlags::empty()).map_err(fail("utimensat"))?;
        let Some(mode) = self.mode else { return Ok(()) };
        let now = rustix::fs::statat(dir, c".", AtFlags::empty()).map_err(fail("fstatat"))?.st_mode;
        let mode = Mode::from_raw_mode(now & 0o7777 & mode);
        rustix::fs::chmodat(dir, c".", mode, AtFlags::empty()).map_err(fail("fchmodat"))
    }
}

fn chmod(file: BorrowedFd<'_>, mode: u32, entry: &Entry) -> Result<(), UnpackError> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
        .map_err(|e| UnpackError::system("fchmod", &entry.name, e))
}

/// Hides what lower layers have in a directory. Overlays are mounted with `userxattr`, so the
/// kernel reads this name, never `trusted.*`.
pub(super) fn make_opaque(dir: BorrowedFd<'_>, entry: &[u8]) -> Result<(), UnpackError> {
    // The walk's descriptors are O_PATH, which takes no xattrs.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, c".", flags, Mode::empty())
        .map_err(|e| UnpackError::system("openat", entry, e))?;
    rustix::fs::fsetxattr(&dir, c"user.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|e| UnpackError::system("fsetxattr", entry, e))
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether overlayfs takes it for a deleted name.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
