//! The layers of an overlay, and what a name leads to in some of them.
//!
//! All of it may be changed by a guest while it is read. Every step goes by descriptor, from the
//! layer's own top, through directories alone: what was put in the way leads nowhere.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, fgetxattr, openat, openat2, statat,
};
use rustix::io::Errno;

use crate::change::Node;
use crate::error::{Error, Result};

const OPAQUE: &str = "user.overlay.opaque";
const WHITEOUT: &str = "user.overlay.whiteout";

/// Longest path that is given to the kernel at once; more is walked in parts.
const PATH_PART: usize = 3072;

/// Most names in one directory.
const NAMES_MAX: usize = crate::CHANGES_MAX;

/// The layers of one overlay.
#[derive(Debug)]
pub struct Layers {
    /// The topmost first.
    dirs: Vec<OwnedFd>,
    /// How many of them hold the changes.
    changed: usize,
}

/// A directory of a layer, open.
#[derive(Debug)]
pub(crate) struct OpenDir {
    pub(crate) layer: usize,
    pub(crate) fd: OwnedFd,
    /// Whiteouts in it may be files with an attribute.
    marked: bool,
}

/// What a name leads to.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) node: Node,
    /// Of a directory, all layers that have a part of it.
    pub(crate) layers: Vec<usize>,
}

impl Layers {
    /// `changed` are the layers with what is asked for, `base` those below that it is compared with;
    /// the topmost first in each. Whiteouts in the topmost of all are devices.
    pub fn new(changed: Vec<OwnedFd>, base: Vec<OwnedFd>) -> Self {
        let count = changed.len();
        Self { dirs: changed.into_iter().chain(base).collect(), changed: count }
    }

    pub(crate) fn count(&self) -> usize {
        self.dirs.len()
    }

    /// Whether a layer is one that holds changes.
    pub(crate) fn is_changed(&self, layer: usize) -> bool {
        layer < self.changed
    }

    /// Opens a directory of a layer; nothing where it is not there any more.
    pub(crate) fn open_dir(&self, layer: usize, path: &[u8]) -> Result<Option<OpenDir>> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match self.open(layer, path, flags | OFlags::RDONLY) {
            // Names in it may be known although they may not be listed.
            Err(error) if error.is_denied() => self.open(layer, path, flags | OFlags::PATH),
            opened => opened,
        };
        let Some(fd) = opened? else { return Ok(None) };
        let marked = attribute(&fd, OPAQUE) == Some(b'x');
        Ok(Some(OpenDir { layer, fd, marked }))
    }

    /// Opens a regular file of a layer; nothing where it is not there any more, or is something
    /// else.
    pub(crate) fn open_file(&self, layer: usize, path: &[u8]) -> Result<Option<OwnedFd>> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Some(fd) = self.open(layer, path, flags)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|e| Error::system("fstat", path, e))?;
        Ok(FileType::from_raw_mode(stat.st_mode).is_file().then_some(fd))
    }

    fn open(&self, layer: usize, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>> {
        self.dirs.get(layer).map_or(Ok(None), |top| open_below(top, path, flags))
    }
}

/// Opens what is at a path below a directory; nothing where it is not there, or the way to it leads
/// over links or other file systems.
pub(crate) fn open_below(top: &OwnedFd, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>> {
    let failed = |e| Error::system("open", path, e);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let (mut dir, mut rest): (Option<OwnedFd>, &[u8]) = (None, path);
    while rest.len() > PATH_PART {
        let Some(end) = rest.iter().take(PATH_PART).rposition(|&byte| byte == b'/') else {
            return Err(failed(Errno::NAMETOOLONG));
        };
        let (part, behind) = rest.split_at(end);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = dir.as_ref().unwrap_or(top);
        match openat2(from, OsStr::from_bytes(part), flags, Mode::empty(), resolve) {
            Ok(fd) => dir = Some(fd),
            Err(e) if is_gone(e) => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
        rest = behind.get(1..).unwrap_or_default();
    }
    let name = if rest.is_empty() { b"." } else { rest };
    let from = dir.as_ref().unwrap_or(top);
    match openat2(from, OsStr::from_bytes(name), flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if is_gone(e) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// The directory that a path leads to a name in, and that name.
pub(crate) fn open_parent<'a>(
    top: &OwnedFd,
    path: &'a [u8],
) -> Result<Option<(OwnedFd, &'a [u8])>> {
    let at = path.iter().rposition(|&byte| byte == b'/');
    let (parent, name) = match at {
        Some(at) => (path.get(..at), path.get(at + 1..)),
        None => (Some(&b""[..]), Some(path)),
    };
    let (parent, name) = (parent.unwrap_or_default(), name.unwrap_or_default());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open_below(top, parent, flags)?.map(|dir| (dir, name)))
}

/// Whether an error says that something is not there any more, or is something else by now.
fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::STALE
    )
}

/// The names in directories; `path` is theirs.
pub(crate) fn names<'a>(
    dirs: impl Iterator<Item = &'a OpenDir>,
    path: &[u8],
) -> Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for dir in dirs {
        // One of its own: what is read of a descriptor that was read before begins at its end.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |e| Error::system("getdents", path, e);
        let fd = openat(&dir.fd, ".", flags, Mode::empty()).map_err(failed)?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    let name = entry.file_name().to_bytes();
                    if !matches!(name, b"." | b"..") {
                        names.insert(name.to_vec());
                    }
                    if names.len() > NAMES_MAX {
                        return Err(Error::TooMany(NAMES_MAX));
                    }
                }
                Err(e) if is_gone(e) => break,
                Err(e) => return Err(failed(e)),
            }
        }
    }
    Ok(names)
}

/// What a name leads to in a directory that is made of these, the topmost first. `path` is the
/// name's.
pub(crate) fn look_up<'a>(
    dirs: impl Iterator<Item = &'a OpenDir>,
    name: &[u8],
    path: &[u8],
) -> Result<Option<Found>> {
    let mut found: Option<Found> = None;
    let name = OsStr::from_bytes(name);
    for dir in dirs {
        let stat = match statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(e) if is_gone(e) => continue,
            Err(e) => return Err(Error::system("stat", path, e)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_char_device() && stat.st_rdev == 0 {
            break;
        }
        if !kind.is_dir() {
            let marked = dir.marked && kind.is_file() && stat.st_size == 0;
            if found.is_none() && !(marked && is_marked(dir, name)) {
                found = Some(Found { node: Node::new(&stat, dir.layer), layers: Vec::new() });
            }
            break;
        }
        let node = Node::new(&stat, dir.layer);
        found.get_or_insert(Found { node, layers: Vec::new() }).layers.push(dir.layer);
        if is_opaque(dir, name) {
            break;
        }
    }
    Ok(found)
}

/// Whether a directory hides those below it. What cannot be read does not, as the kernel has it.
fn is_opaque(dir: &OpenDir, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(&dir.fd, name, flags, Mode::empty());
    fd.is_ok_and(|fd| attribute(fd, OPAQUE) == Some(b'y'))
}

/// Whether an empty file stands for one that was removed.
fn is_marked(dir: &OpenDir, name: &OsStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(&dir.fd, name, flags, Mode::empty());
    fd.is_ok_and(|fd| fgetxattr(&fd, WHITEOUT, &mut [0_u8; 1]).is_ok())
}

/// The value of an attribute that is one byte.
fn attribute(fd: impl AsFd, name: &str) -> Option<u8> {
    let mut value = [0_u8; 1];
    (fgetxattr(fd, name, &mut value) == Ok(1)).then_some(value[0])
}
