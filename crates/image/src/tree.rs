//! A directory tree below a descriptor, written to by names that may lie.
//!
//! Every name is taken apart and walked one component at a time with `O_NOFOLLOW`; symbolic links
//! on the way are read and followed by this code, not by the kernel, or refused. So nothing is
//! ever created, changed or removed outside the root, whatever links the archive itself has made.

mod name;
mod policy;
mod write;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use name::{Name, clean};
pub(crate) use policy::{Links, Notes, Policy};

use crate::UnpackError;
use write::Later;

/// Most links followed for one name, as the kernel has it (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Most components walked for one name, those of links included.
const MAX_STEPS: usize = 1024;

/// Most memory for the times of directories, which are set last. Paths beyond it keep the time at
/// which they were written; half a million ordinary directories fit.
const MAX_LATER: usize = 64 << 20;

/// Bytes of contents moved at a time.
const BUFFER: usize = 256 * 1024;

/// What happens where a directory on the way is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

/// Where one component of a name leads.
enum Step {
    Into(OwnedFd),
    /// To where this link says.
    Link(Vec<u8>),
}

/// The place of an entry: an open directory and a name in it.
pub(crate) struct Place {
    dir: Rc<OwnedFd>,
    /// Path of the directory from the root, no links in it.
    real: Vec<u8>,
    name: Vec<u8>,
}

/// The tree being written.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    policy: Policy,
    notes: Notes,
    /// The parent used last, as named and as opened; most entries share it with the one before.
    last: Option<(Vec<u8>, Rc<OwnedFd>, Vec<u8>)>,
    /// Times and modes of directories, set when nothing is written into them any more.
    later: BTreeMap<Vec<u8>, Later>,
    later_bytes: usize,
    /// Contents on their way.
    buffer: Vec<u8>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>, policy: Policy) -> Self {
        let (later, notes) = (BTreeMap::new(), Notes::default());
        let buffer = vec![0; BUFFER];
        Self { root, policy, notes, last: None, later, later_bytes: 0, buffer }
    }

    /// Where it is written down what was left out.
    pub(crate) fn notes(&mut self) -> &mut Notes {
        &mut self.notes
    }

    /// Finds the place of an entry, making the directories above it; `None` is the root itself.
    pub(crate) fn place(&mut self, name: &Name) -> Result<Option<Place>, UnpackError> {
        self.place_with(name, Missing::Make)
    }

    /// Finds the place of an entry that should exist.
    pub(crate) fn existing(&mut self, name: &Name) -> Result<Option<Place>, UnpackError> {
        self.place_with(name, Missing::Fail)
    }

    fn place_with(&mut self, name: &Name, missing: Missing) -> Result<Option<Place>, UnpackError> {
        let Some((last, parents)) = name.parts().split_last() else { return Ok(None) };
        let key = parents.join(&b'/');
        if let Some((known, dir, real)) = &self.last
            && *known == key
        {
            return Ok(Some(Place { dir: dir.clone(), real: real.clone(), name: last.clone() }));
        }
        let (dir, real) = self.walk(name, parents, missing)?;
        let dir = Rc::new(dir);
        self.last = Some((key, dir.clone(), real.clone()));
        Ok(Some(Place { dir, real, name: last.clone() }))
    }

    /// Opens the directory that these components lead to; returns its real path too.
    fn walk(
        &self,
        whole: &Name,
        parents: &[Vec<u8>],
        missing: Missing,
    ) -> Result<(OwnedFd, Vec<u8>), UnpackError> {
        let refuse = |why: &str| UnpackError::refused(whole.as_bytes(), why);
        let mut pending: Vec<Vec<u8>> = parents.iter().rev().cloned().collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut dir = self.reopen(&real, whole)?;
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(refuse("links on its way lead too far about"));
            }
            if part == b".." {
                real.pop().ok_or_else(|| refuse("a link on its way leads out"))?;
                dir = self.reopen(&real, whole)?;
                continue;
            }
            match self.step(dir.as_fd(), &part, whole, missing)? {
                Step::Into(next) => {
                    dir = next;
                    real.push(part);
                    if real.len() > name::MAX_DEPTH {
                        return Err(refuse("links on its way lead too deep"));
                    }
                }
                Step::Link(target) => {
                    if self.policy.links() == Links::Refuse {
                        return Err(refuse("a symbolic link is on its way"));
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refuse("too many links are on its way"));
                    }
                    if target.starts_with(b"/") {
                        real.clear();
                        dir = self.reopen(&real, whole)?;
                    }
                    let parts = target.split(|b| *b == b'/').rev();
                    pending
                        .extend(parts.filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec));
                }
            }
        }
        Ok((dir, real.join(&b'/')))
    }

    /// Goes one component on; makes a directory where there is none.
    fn step(
        &self,
        dir: BorrowedFd<'_>,
        part: &[u8],
        whole: &Name,
        missing: Missing,
    ) -> Result<Step, UnpackError> {
        let fail = |call| move |e| UnpackError::system(call, whole.as_bytes(), e);
        let hidden = match open_dir(dir, part) {
            Ok(next) => return Ok(Step::Into(next)),
            Err(Errno::NOENT) if missing == Missing::Make => false,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                if let Ok(target) = rustix::fs::readlinkat(dir, part, Vec::new()) {
                    return Ok(Step::Link(target.into_bytes()));
                }
                let stat = rustix::fs::statat(dir, part, AtFlags::SYMLINK_NOFOLLOW);
                if missing == Missing::Fail || !write::is_whiteout(&stat.map_err(fail("fstatat"))?)
                {
                    let why = "a file stands where its directory should be";
                    return Err(UnpackError::refused(whole.as_bytes(), why));
                }
                // The archive hides what lower layers have here, and now puts a directory there.
                rustix::fs::unlinkat(dir, part, AtFlags::empty()).map_err(fail("unlinkat"))?;
                true
            }
            Err(e) => return Err(fail("openat")(e)),
        };
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(dir, part, mode).map_err(fail("mkdirat"))?;
        if self.policy.exact_modes() {
            // The umask may have taken bits away. What was made a moment ago is no link.
            rustix::fs::chmodat(dir, part, mode, AtFlags::empty()).map_err(fail("fchmodat"))?;
        }
        let next = open_dir(dir, part).map_err(fail("openat"))?;
        if hidden {
            write::make_opaque(next.as_fd(), whole.as_bytes())?;
        }
        Ok(Step::Into(next))
    }

    /// Opens a directory by a path that is known to hold no links.
    fn reopen(&self, real: &[Vec<u8>], whole: &Name) -> Result<OwnedFd, UnpackError> {
        let fail = |e| UnpackError::system("openat", whole.as_bytes(), e);
        let mut dir = open_dir(self.root, b".").map_err(fail)?;
        for part in real {
            dir = open_dir(dir.as_fd(), part).map_err(fail)?;
        }
        Ok(dir)
    }

    /// Sets what had to wait: times and modes of directories, deepest first. Returns the notes.
    pub(crate) fn finish(mut self) -> Result<Notes, UnpackError> {
        for (path, later) in std::mem::take(&mut self.later).into_iter().rev() {
            let parts: Vec<Vec<u8>> =
                path.split(|b| *b == b'/').filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect();
            // A later entry may have put something else in its place.
            let Ok(dir) = self.reopen(&parts, &Name::empty()) else { continue };
            later.apply(dir.as_fd(), &path)?;
        }
        Ok(self.notes)
    }

    /// Remembers what is to be set on a directory at the end.
    fn set_later(&mut self, path: Vec<u8>, later: Later) {
        let cost = path.len() + size_of::<Later>() + 64;
        if self.later_bytes + cost > MAX_LATER {
            self.notes.add("times of directories not set, there are too many", &path);
        } else {
            self.later_bytes += cost;
            self.later.insert(path, later);
        }
    }
}

impl Place {
    /// Another name in the same directory.
    pub(crate) fn sibling(&self, name: &[u8]) -> Self {
        Self { dir: self.dir.clone(), real: self.real.clone(), name: name.to_vec() }
    }

    /// The directory that this place is in.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        AsFd::as_fd(&*self.dir)
    }

    /// What is there now.
    pub(crate) fn current(&self) -> Result<Option<rustix::fs::Stat>, UnpackError> {
        match rustix::fs::statat(&self.dir, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(UnpackError::system("fstatat", &self.path(), e)),
        }
    }

    /// Path from the root, without links.
    pub(crate) fn path(&self) -> Vec<u8> {
        if self.real.is_empty() {
            self.name.clone()
        } else {
            [self.real.as_slice(), &self.name].join(&b'/')
        }
    }
}

/// Opens a directory by one component, never through a link.
fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Removes a file or a whole tree by its name in a directory; links are removed, not followed.
///
/// Works on directories whose own modes forbid it, as far as the owner may change them.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, name, flags, Mode::empty());
    let inner = match open() {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    // Needed only where the mode forbids writing; for others' directories it fails, as does the
    // removal then, with the better error.
    let _ = rustix::fs::fchmod(&inner, Mode::RWXU);
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_tree(inner.as_fd(), child)?;
        } else {
            match rustix::fs::unlinkat(&inner, child, AtFlags::empty()) {
                Err(Errno::ISDIR) => remove_tree(inner.as_fd(), child)?,
                other => other?,
            }
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Removes a file or a whole tree by path; one that is not there is no error.
pub(crate) fn remove_path(path: &std::path::Path) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    match remove_tree(CWD, path.as_os_str().as_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
