//! A copy of a directory that is made while it changes, and brought up to date when nothing does.
//!
//! Each pass goes through all of the original and copies what is not what it was when it was copied
//! last: another file, size or mode, or another time of change, which nobody can set. That time
//! does not tell everything:
//!
//! - It may be as coarse as a tick of the clock: what was changed just before it was copied may be
//!   changed once more and look the same.
//! - It is that of the beginning of a write, and a write can take long.
//! - Of what is written to a shared mapping, it tells the first write to each page only.
//!
//! So a copy counts only if its original had last been changed before a moment at which every
//! process stood still, and no process had it mapped then. The file system must mark pages of
//! shared mappings, which those in memory do not: see [`can_follow`].

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, linkat, mkdirat, openat, statat,
    statfs, unlinkat,
};
use rustix::io::Errno;

use super::{Copy, attributes, contents, special, unset_extended};
use crate::error::{Context, Result};

/// Kinds of file systems, `linux/magic.h`, that can be followed: ext4, xfs, btrfs, f2fs.
const FOLLOWED: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Most files of which it is known what they were: beyond, they are copied when nothing changes.
const KNOWN_MAX: usize = 1 << 20;

/// Directories within directories beyond which nothing is known.
const DEEP: usize = 500;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether changes to what is in this directory can be told by times.
pub(crate) fn can_follow(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|stat| FOLLOWED.contains(&(stat.f_type as u64)))
}

/// Files by device and inode.
pub(crate) type Inodes = HashSet<(u64, u64)>;

/// When every process stood still, and what was mapped then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moment {
    /// What was changed before this, in seconds and nanoseconds since the epoch, was changed by
    /// then.
    pub(crate) since: (i64, u64),
    /// Files of shared mappings.
    pub(crate) mapped: Inodes,
    /// There is one that has lost the name by which it was mapped.
    pub(crate) unnamed: bool,
}

/// What a pass had to do, or what would have to be done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Work {
    fn add(&mut self, stat: &Stat) {
        self.entries += 1;
        self.bytes += (stat.st_blocks as u64).saturating_mul(512);
    }
}

/// A copy that follows its original.
#[derive(Debug)]
pub(crate) struct Following {
    from: PathBuf,
    to: PathBuf,
    known: Listing,
    passes: u32,
    seen: Seen,
}

/// What a pass has seen of an original.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// All there is.
    pub(crate) all: Work,
    /// Names of files that have several, from the top.
    pub(crate) linked: Vec<Vec<u8>>,
    /// Of some of it nothing is known: it lies too deep.
    pub(crate) deep: bool,
}

/// What is known of what is in a directory, by name.
type Listing = HashMap<Vec<u8>, Known>;

/// What was copied.
#[derive(Debug)]
struct Known {
    mark: Mark,
    /// Its mark tells whether it was changed since.
    settled: bool,
    /// The pass that saw it last.
    seen: u32,
    below: Option<Listing>,
}

/// What a file was just before it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: (u64, u64),
    mode: u32,
    size: i64,
    changed: (i64, u64),
}

impl Mark {
    fn of(stat: &Stat) -> Self {
        Self {
            inode: (stat.st_dev, stat.st_ino),
            mode: stat.st_mode,
            size: stat.st_size,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }
}

impl Following {
    /// A copy at `to`, which is not there yet.
    pub(crate) fn new(from: PathBuf, to: PathBuf) -> Self {
        Self { from, to, known: Listing::new(), passes: 0, seen: Seen::default() }
    }

    /// Where its copy is.
    pub(crate) fn to(&self) -> &Path {
        &self.to
    }

    /// What the last pass has seen.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Where the original is.
    pub(crate) fn from(&self) -> &Path {
        &self.from
    }

    /// Copies what changed while all goes on, at most until `end`. Gives what was to be copied, and
    /// what of it must be copied again in any case.
    pub(crate) fn ahead(&mut self, moment: &Moment, end: Instant) -> Result<(Work, Work)> {
        self.pass(moment, Some(end))
    }

    /// Copies what changed while nothing does: the copy is the same as the original.
    pub(crate) fn finish(&mut self, moment: &Moment) -> Result<()> {
        self.pass(moment, None).map(|_| ())
    }

    fn pass(&mut self, moment: &Moment, end: Option<Instant>) -> Result<(Work, Work)> {
        let Self { from, to, known, passes, seen } = self;
        *passes += 1;
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move || format!("copying {path}")
        };
        let from_dir =
            openat(CWD, from.as_path(), DIRECTORY, Mode::empty()).context(failed(from))?;
        match mkdirat(CWD, to.as_path(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(failed(to)),
        }
        let top = openat(CWD, to.as_path(), DIRECTORY, Mode::empty()).context(failed(to))?;
        let mut pass = Pass {
            number: *passes,
            moment,
            end,
            top: &top,
            path: Vec::new(),
            depth: 0,
            links: HashMap::new(),
            left: KNOWN_MAX,
            done: Work::default(),
            again: Work::default(),
            seen: Seen::default(),
        };
        pass.directory(&from_dir, &top, known).context(failed(from))?;
        unset_extended(&from_dir, &top).context(failed(from))?;
        let stat = fstat(&from_dir).context(failed(from))?;
        attributes(&from_dir, &top, b".", &stat, 0).context(failed(from))?;
        *seen = pass.seen;
        Ok((pass.done, pass.again))
    }
}

/// A copy of a file with several names.
struct Linked {
    /// Where it is, from the top.
    path: Vec<u8>,
    mark: Mark,
    settled: bool,
    /// It was copied in this pass.
    fresh: bool,
}

struct Pass<'a> {
    number: u32,
    moment: &'a Moment,
    /// None while nothing changes.
    end: Option<Instant>,
    top: &'a OwnedFd,
    /// Where in the copy this is, from the top.
    path: Vec<u8>,
    depth: usize,
    links: HashMap<(u64, u64), Linked>,
    /// How many files may still become known.
    left: usize,
    done: Work,
    again: Work,
    seen: Seen,
}

impl Pass<'_> {
    /// Brings a directory up to date, its own attributes left out; whether there was anything to
    /// do.
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, known: &mut Listing) -> io::Result<bool> {
        let mut changed = false;
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if self.is_over() {
                // What was not looked at is what it was.
                return Ok(true);
            }
            match self.entry(from, to, name, known) {
                Ok(touched) => changed |= touched,
                // What is on the move is looked at again.
                Err(_) if self.end.is_some() => {
                    changed = true;
                    known.remove(name);
                    remove(to, name)?;
                }
                Err(error) => return Err(error),
            }
        }
        if self.is_over() {
            return Ok(true);
        }
        let number = self.number;
        let gone: Vec<Vec<u8>> =
            known.extract_if(|_, known| known.seen != number).map(|(name, _)| name).collect();
        for name in &gone {
            remove(to, name)?;
        }
        Ok(changed || !gone.is_empty())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        listing: &mut Listing,
    ) -> io::Result<bool> {
        let stat = match statat(from, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            // It is gone, and so is its copy at the end of this.
            Err(Errno::NOENT) if self.end.is_some() => return Ok(false),
            stat => stat?,
        };
        let mark = Mark::of(&stat);
        self.seen.all.add(&stat);
        if mark.is_directory() {
            return self.below(from, to, name, &stat, listing);
        }
        let linked = stat.st_nlink > 1;
        if linked {
            let path = self.path_to(name);
            self.seen.linked.push(path);
        }
        let moves = self.moment.mapped.contains(&mark.inode) || linked && self.moment.unnamed;
        if let Some(known) = listing.get_mut(name) {
            known.seen = self.number;
            if known.mark == mark && known.settled && !moves {
                self.left = self.left.saturating_sub(1);
                return if linked { self.keep(to, name, mark) } else { Ok(false) };
            }
        }
        if listing.remove(name).is_some() {
            remove(to, name)?;
        }
        let settled = mark.changed < self.moment.since && mark.changed.1 != 0 && !moves;
        let other = self.links.get(&mark.inode).filter(|_| linked);
        let (mark, settled) = if let Some(other) = other {
            self.link(&other.path, to, name)?;
            // It may have changed since the other name was looked at.
            (other.mark, other.settled)
        } else {
            copy(from, to, name, &stat)?;
            if linked {
                let path = self.path_to(name);
                self.links.insert(mark.inode, Linked { path, mark, settled, fresh: true });
            }
            (mark, settled)
        };
        self.done.add(&stat);
        if !settled {
            self.again.add(&stat);
        }
        self.know(listing, name, mark, settled, None);
        Ok(true)
    }

    /// Brings a directory in a directory up to date.
    fn below(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        stat: &Stat,
        listing: &mut Listing,
    ) -> io::Result<bool> {
        let path = OsStr::from_bytes(name);
        let mark = Mark::of(stat);
        let same = |known: &Known| known.below.is_some() && known.mark.inode == mark.inode;
        let before = match listing.remove(name) {
            Some(known) if same(&known) => Some(known),
            Some(_) => {
                remove(to, name)?;
                None
            }
            None => None,
        };
        if before.is_none() {
            afresh(to, name, || Ok(mkdirat(to, path, Mode::RWXU)?))?;
        }
        let (inner_from, inner_to) = (
            openat(from, path, DIRECTORY, Mode::empty())?,
            openat(to, path, DIRECTORY, Mode::empty())?,
        );
        if self.depth >= DEEP {
            return self.deep(from, to, name, stat, (&inner_from, &inner_to));
        }
        let settled = mark.changed < self.moment.since && mark.changed.1 != 0;
        let unchanged = before.as_ref().is_some_and(|known| known.settled && known.mark == mark);
        let mut known = before.and_then(|known| known.below).unwrap_or_default();
        let length = self.path.len();
        self.path = self.path_to(name);
        self.depth += 1;
        let touched = self.directory(&inner_from, &inner_to, &mut known);
        self.depth -= 1;
        self.path.truncate(length);
        let touched = touched? || !unchanged;
        if !unchanged {
            unset_extended(&inner_from, &inner_to)?;
        }
        if touched {
            attributes(from, to, name, stat, 0)?;
        }
        if !unchanged {
            self.done.add(stat);
        }
        if !settled {
            self.again.add(stat);
        }
        self.know(listing, name, mark, settled, Some(known));
        Ok(touched)
    }

    /// Copies what is too far down to know anything of it, once nothing changes.
    fn deep(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        stat: &Stat,
        inner: (&OwnedFd, &OwnedFd),
    ) -> io::Result<bool> {
        self.again.add(stat);
        self.seen.deep = true;
        if self.end.is_none() {
            Copy::new(0).directory(inner.0, inner.1)?;
            attributes(from, to, name, stat, 0)?;
        }
        Ok(true)
    }

    fn know(
        &mut self,
        listing: &mut Listing,
        name: &[u8],
        mark: Mark,
        settled: bool,
        below: Option<Listing>,
    ) {
        if self.left > 0 {
            self.left -= 1;
            let known = Known { mark, settled, seen: self.number, below };
            listing.insert(name.to_vec(), known);
        }
    }

    /// The name of a file with several stays what it is, unless there is a newer copy.
    fn keep(&mut self, to: &OwnedFd, name: &[u8], mark: Mark) -> io::Result<bool> {
        match self.links.get(&mark.inode) {
            Some(other) if other.fresh => {
                let path = other.path.clone();
                remove(to, name)?;
                self.link(&path, to, name)?;
                Ok(true)
            }
            Some(_) => Ok(false),
            None => {
                let path = self.path_to(name);
                self.links.insert(mark.inode, Linked { path, mark, settled: true, fresh: false });
                Ok(false)
            }
        }
    }

    fn link(&self, path: &[u8], to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        afresh(to, name, || {
            let (path, name) = (OsStr::from_bytes(path), OsStr::from_bytes(name));
            Ok(linkat(self.top, path, to, name, AtFlags::empty())?)
        })
    }

    /// Whether enough was done while all goes on. What comes to be known no more is not copied
    /// before nothing changes: nobody would know when it is gone.
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| self.left == 0 || Instant::now() > end)
    }

    fn path_to(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}

/// Makes something in the place of what is there.
fn afresh(to: &OwnedFd, name: &[u8], make: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match make() {
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
            remove(to, name)?;
            make()
        }
        made => made,
    }
}

/// Removes whatever has this name.
fn remove(dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
            std::fs::remove_dir_all(path.join(OsStr::from_bytes(name)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies what is no directory.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
    let path = OsStr::from_bytes(name);
    afresh(to, name, || match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => contents(from, to, path, stat),
        kind => special(from, to, path, kind, stat),
    })?;
    attributes(from, to, name, stat, 0)
}
