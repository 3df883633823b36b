//! Directories of a hostile tree: their names, and a way down and up again that holds few
//! descriptors and can be led nowhere else.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::{fs, io};

/// Descriptors that a way down holds at most, from the bottom up.
const OPEN_MAX: usize = 64;

/// Most names that are read of one directory.
pub(super) const NAMES_MAX: usize = 2_000_000;

/// Reads names from where the directory's descriptor stands: at least `least` of them unless the
/// directory ends before, a buffer more at most. None at its end.
pub(super) fn read_names(dir: impl AsFd, least: usize) -> io::Result<Vec<CString>> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut reader = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while !(names.len() >= least && reader.is_buffer_empty()) {
        match reader.next() {
            Some(Ok(entry)) => {
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    names.push(name.to_owned());
                }
            }
            Some(Err(Errno::INTR)) => {}
            // A directory that was removed while open.
            Some(Err(Errno::NOENT)) | None => break,
            Some(Err(errno)) => return Err(errno),
        }
    }
    Ok(names)
}

/// Reads all names, sorted from last to first for popping; `EFBIG` for a directory with more than [`NAMES_MAX`].
pub(super) fn all_names(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = read_names(dir, NAMES_MAX + 1)?;
    if names.len() > NAMES_MAX {
        return Err(Errno::FBIG);
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Starts reading names again.
pub(super) fn rewind(dir: impl AsFd) -> io::Result<()> {
    fs::seek(dir, SeekFrom::Start(0)).map(drop)
}

/// The same file, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// A way down from one directory. Only the lowest [`OPEN_MAX`] directories are held open, so a
/// tree can be deeper than there are descriptors and longer than `PATH_MAX`; going up opens `..`
/// and checks that it is the directory that the way came through.
#[derive(Debug, Default)]
pub(super) struct Descent {
    levels: Vec<(FileId, Option<OwnedFd>)>,
}

impl Descent {
    /// Goes down into a directory that was opened in the present one.
    pub(super) fn enter(&mut self, dir: OwnedFd) -> io::Result<FileId> {
        let id = FileId::of(&fs::fstat(&dir)?);
        self.levels.push((id, Some(dir)));
        if let Some(index) = self.levels.len().checked_sub(OPEN_MAX + 1)
            && let Some((_, fd)) = self.levels.get_mut(index)
        {
            *fd = None;
        }
        Ok(id)
    }

    /// Goes up; gives the directory left. `ESTALE` when its parent is another than before.
    pub(super) fn leave(&mut self) -> io::Result<OwnedFd> {
        let (_, left) = self.levels.pop().ok_or(Errno::NOENT)?;
        let left = left.ok_or(Errno::BADF)?;
        if let Some((id, fd @ None)) = self.levels.last_mut() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let up = fs::openat(&left, c"..", flags, Mode::empty())?;
            if FileId::of(&fs::fstat(&up)?) != *id {
                return Err(Errno::STALE);
            }
            *fd = Some(up);
        }
        Ok(left)
    }

    /// The present directory.
    pub(super) fn here(&self) -> io::Result<BorrowedFd<'_>> {
        match self.levels.last() {
            Some((_, Some(fd))) => Ok(fd.as_fd()),
            _ => Err(Errno::BADF),
        }
    }

    /// The directory that the way began in.
    pub(super) fn first(&self) -> Option<FileId> {
        self.levels.first().map(|(id, _)| *id)
    }
}
