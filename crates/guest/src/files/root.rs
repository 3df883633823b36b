//! The directory that paths start from, and how they are resolved: by the kernel, within it,
//! without the magic links of procfs.
//!
//! init has an identity of its own, and `/proc/self` is init's when init follows it. A link that
//! the guest made to `/proc/self/fd/3` or `/proc/1/mem` must not be read or written with that
//! identity, so `RESOLVE_NO_MAGICLINKS` is in every resolution, and contents that lie on procfs
//! are refused whatever way led there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::{fs, io};

use super::path::GuestPath;
use super::proto::{FileError, FileErrorKind};

/// The directory that is `/` to requests.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What contents are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Tries at a resolution that renames elsewhere disturb (EAGAIN, openat2(2)), and at a file that
/// is replaced meanwhile.
const TRIES: u32 = 32;

impl Root {
    /// Opens the directory: `/` in a sandbox.
    ///
    /// # Errors
    ///
    /// What `open(2)` gives.
    pub fn open(path: impl AsRef<Path>) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(fs::open(path.as_ref(), flags, Mode::empty())?))
    }

    /// openat2(2) within the root.
    pub(crate) fn resolve(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        open_beneath(&self.0, path, flags, mode, ResolveFlags::IN_ROOT)
    }

    /// A directory as a place to make, change and remove names in.
    pub(crate) fn directory(&self, action: &str, path: &[u8]) -> Result<OwnedFd, FileError> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(|errno| FileError::sys(action, path, errno))
    }

    /// The directory that holds the last part of `path`, fit for changes, and that part.
    pub(crate) fn parent<'p>(
        &self,
        action: &str,
        path: &'p GuestPath,
    ) -> Result<(OwnedFd, &'p [u8]), FileError> {
        let (parent, name) = path.split(action)?;
        let parent = self.directory(action, parent)?;
        refuse_pseudo(action, path.bytes(), &parent, Access::Write)?;
        Ok((parent, name))
    }

    /// As [`Root::parent`], making what is missing above (0755).
    pub(crate) fn parent_made<'p>(
        &self,
        action: &str,
        path: &'p GuestPath,
    ) -> Result<(OwnedFd, &'p [u8]), FileError> {
        match self.parent(action, path) {
            Err(FileError { kind: FileErrorKind::NotFound, .. }) => {
                let (parent, name) = path.split(action)?;
                Ok((self.make_directories(parent)?, name))
            }
            other => other,
        }
    }

    /// Walks down `path`, making the directories that are missing; symbolic links are followed.
    fn make_directories(&self, path: &[u8]) -> Result<OwnedFd, FileError> {
        let fail = |action: &str, done: &[u8], errno| FileError::sys(action, done, errno);
        let plain = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = self.directory("open", b"/")?;
        let mut done = Vec::with_capacity(path.len());
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            done.push(b'/');
            done.extend_from_slice(part);
            let step = if part == b".." {
                Err(Errno::NOTDIR)
            } else {
                fs::openat(&here, part, plain, Mode::empty())
            };
            here = match step {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    refuse_pseudo("mkdir", &done, &here, Access::Write)?;
                    match fs::mkdirat(&here, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(fail("mkdir", &done, errno)),
                    }
                    fs::openat(&here, part, plain, Mode::empty())
                        .map_err(|errno| fail("open", &done, errno))?
                }
                // A symbolic link, or `..`: the kernel resolves it from the root.
                Err(Errno::NOTDIR) => self.directory("open", &done)?,
                Err(errno) => return Err(fail("open", &done, errno)),
            };
        }
        refuse_pseudo("create", path, &here, Access::Write)?;
        Ok(here)
    }

    /// Opens the contents of a regular file, and nothing else.
    ///
    /// The file is looked at before it is opened, since opening a fifo or a device already has
    /// effects, and again afterwards, since the guest may have replaced it in between.
    /// `O_NONBLOCK` keeps a fifo or a lease from holding init up.
    pub(crate) fn contents(
        &self,
        path: &[u8],
        access: Access,
        extra: OFlags,
    ) -> Result<(OwnedFd, Stat), FileError> {
        let fail = |errno| FileError::sys("open", path, errno);
        let probe = self.resolve(path, OFlags::PATH, Mode::empty()).map_err(fail)?;
        check_regular(path, &probe, access)?;
        let way = if access == Access::Write { OFlags::WRONLY } else { OFlags::RDONLY };
        let file = self.resolve(path, way | extra | QUIET, Mode::empty()).map_err(fail)?;
        let stat = check_regular(path, &file, access)?;
        Ok((file, stat))
    }
}

/// Flags that keep an open from waiting for anybody, and from taking a terminal.
pub(crate) const QUIET: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// openat2(2) relative to a directory, again when a rename got in its way. Magic links are never
/// followed.
pub(crate) fn open_beneath(
    dir: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let how = how | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match fs::openat2(&dir, path, flags | OFlags::CLOEXEC, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

/// Opens the directory `name` in `dir` for reading; never through a symbolic link.
pub(crate) fn open_directory(
    dir: impl AsFd,
    name: &[u8],
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | QUIET;
    let how = how | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    open_beneath(dir, name, flags, Mode::empty(), how)
}

/// Opens the regular file `name` in `dir` for reading; never through a symbolic link.
/// `ESTALE` when it is no regular file: it was one a moment ago.
pub(crate) fn open_plain(dir: impl AsFd, name: &[u8]) -> io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | QUIET;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = open_beneath(dir, name, flags, Mode::empty(), how)?;
    let stat = fs::fstat(&file)?;
    if kind(&stat) == FileType::RegularFile { Ok((file, stat)) } else { Err(Errno::STALE) }
}

/// The kind that a stat tells.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Permission, set-id and sticky bits as a mode to make a file with.
pub(crate) fn mode_of(bits: u32) -> Mode {
    Mode::from_raw_mode((bits & 0o7777) as RawMode)
}

pub(crate) fn check_regular(
    path: &[u8],
    file: impl AsFd,
    access: Access,
) -> Result<Stat, FileError> {
    let stat = fs::fstat(&file).map_err(|errno| FileError::sys("fstat", path, errno))?;
    let what = match kind(&stat) {
        FileType::RegularFile => {
            refuse_pseudo("open", path, file, access)?;
            return Ok(stat);
        }
        FileType::Directory => {
            return Err(FileError::new("open", path, FileErrorKind::IsADirectory));
        }
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "not a regular file",
    };
    Err(FileError::refused("open", path, &format!("it is {what}; run a command for that")))
}

/// Refuses what lies on a file system whose files are the kernel's answers, not stored bytes.
pub(crate) fn refuse_pseudo(
    action: &str,
    path: &[u8],
    file: impl AsFd,
    access: Access,
) -> Result<(), FileError> {
    match pseudo(file) {
        Ok(Some((name, readable))) if access == Access::Write || !readable => {
            let why = format!("it lies on {name}; run a command for that");
            Err(FileError::refused(action, path, &why))
        }
        Ok(_) => Ok(()),
        Err(errno) => Err(FileError::sys("statfs", path, errno)),
    }
}

/// Name of the pseudo file system that `file` lies on, and whether reading there is harmless:
/// not where it answers about the process that asks (procfs) or may wait (tracefs).
pub(crate) fn pseudo(file: impl AsFd) -> io::Result<Option<(&'static str, bool)>> {
    let magic = fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    // Numbers from include/uapi/linux/magic.h, and kernfs users' own headers.
    Ok(match magic {
        0x9fa0 => Some(("procfs", false)),
        0x7472_6163 => Some(("tracefs", false)),
        0x6462_6720 => Some(("debugfs", false)),
        0x6e73_6673 => Some(("nsfs", false)),
        0xcafe_4a11 => Some(("bpf", false)),
        0x1980_0202 => Some(("mqueue", false)),
        0x6573_5543 => Some(("fusectl", false)),
        0x6265_6572 => Some(("sysfs", true)),
        0x0027_e0eb | 0x6367_7270 => Some(("a cgroup file system", true)),
        0x1cd1 => Some(("devpts", true)),
        0x7363_6673 => Some(("securityfs", true)),
        0x6265_6570 => Some(("configfs", true)),
        0x4249_4e4d => Some(("binfmt_misc", true)),
        0xde5e_81e4 => Some(("efivarfs", true)),
        0x6165_676c => Some(("pstore", true)),
        0xf97c_ff8c => Some(("selinuxfs", true)),
        0x4341_5d53 => Some(("smackfs", true)),
        0x0765_5821 => Some(("resctrl", true)),
        _ => None,
    })
}
