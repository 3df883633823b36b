//! Files and directories that have a path, or had one.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, Stat, fstat, fstatfs, memfd_create, open};
use rustix::process::Pid;

use super::descriptors::Seen;
use super::loose::{DELETED, Key, seals};
use super::{Capture, Subject};
use crate::error::{Context, Result};
use crate::listing;
use crate::picture::{DescriptionKind, FileRef, LooseKind};
use crate::proc;

/// Kinds of file systems, `linux/magic.h`, whose files cannot be opened again.
const REFUSED: [(u64, &str); 2] =
    [(0x9584_58f6, "huge pages of hugetlbfs"), (0x5345_434d, "secret memory")];

/// How many names are looked at in search of a file.
const SEARCHED: u32 = 100_000;

/// `MQUEUE_MAGIC` of the kernel's ipc/mqueue.c.
const QUEUES: u64 = 0x1980_0202;

/// `PROC_SUPER_MAGIC`
const PROC: u64 = 0x9fa0;

/// Files and directories of a process that any other can open; the first is the process's own.
const TOLD_TO_ALL: [&str; 11] = [
    "",
    "cgroup",
    "cmdline",
    "comm",
    "limits",
    "oom_score",
    "oom_score_adj",
    "stat",
    "statm",
    "status",
    "task",
];

/// Those that it can always open itself.
const TOLD_TO_ITSELF: [&str; 8] =
    ["auxv", "environ", "fd", "fdinfo", "io", "maps", "smaps", "smaps_rollup"];

/// `__O_TMPFILE`
const NEVER_NAMED: u32 = 0o20_000_000;

/// The device of memfds and shared memory, which is the same for all of this kernel.
pub(crate) fn memory_device() -> Result<u64> {
    let file = memfd_create("forkyard", MemfdFlags::CLOEXEC);
    let stat = file.and_then(|file| fstat(&file));
    stat.map(|stat| stat.st_dev).context(|| "memfd_create".to_owned())
}

/// Devices of a sandbox's file systems in memory.
pub(super) fn memory_files(subject: &Subject) -> Vec<u64> {
    let device = |place| rustix::fs::stat(subject.path.join(place));
    ["tmp", "dev/shm"].iter().filter_map(|place| Some(device(place).ok()?.st_dev)).collect()
}

impl Capture<'_> {
    pub(super) fn named(&mut self, seen: &Seen<'_>) -> Result<DescriptionKind> {
        if !seen.link.starts_with(b"/") {
            return Err(seen.refuse("a kernel object that cannot be copied"));
        }
        let system = fstatfs(&seen.copy).context(|| "fstatfs".to_owned())?.f_type as u64;
        self.check_locks(seen, system)?;
        if let Some((_, what)) = REFUSED.iter().find(|(magic, _)| *magic == system) {
            return Err(seen.refuse(what));
        }
        if system == QUEUES {
            return self.queue(seen);
        }
        if system == PROC && of_a_process(&seen.link) {
            return if self.can_be_opened_again(seen) {
                Ok(DescriptionKind::OfProcess(seen.link.clone()))
            } else {
                Err(seen.refuse("a file of a process in /proc"))
            };
        }
        let stat = &seen.stat;
        let key = Key::File(stat.st_dev, stat.st_ino);
        if stat.st_dev == self.memory_device {
            let name = seen.link.strip_suffix(DELETED).unwrap_or(&seen.link);
            let Some(name) = name.strip_prefix(b"/memfd:") else {
                return Err(seen.refuse("shared memory of another process"));
            };
            let kind = LooseKind::Memfd { name: name.to_vec(), seals: seals(&seen.copy) };
            let file = readable(seen)?;
            let index = self.read_loose(key, stat, kind, file.as_fd())?;
            return Ok(DescriptionKind::Loose(index));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let gone = seen.link.strip_suffix(DELETED);
        let Some(path) = gone.filter(|_| !self.is_at(&seen.link, stat.st_dev, stat.st_ino)) else {
            if stat.st_nlink == 0 {
                return Err(seen.refuse("a deleted file"));
            }
            let path = seen.info.flags & OFlags::PATH.bits() != 0;
            if kind == FileType::Directory && seen.info.position != 0 && !path {
                let rest = listing::rest(&seen.copy, seen.info.position)?;
                return Ok(DescriptionKind::Directory(seen.link.clone(), rest));
            }
            return Ok(DescriptionKind::Path(seen.link.clone()));
        };
        match kind {
            FileType::Directory => {
                let index = self.removed(key, path);
                Ok(DescriptionKind::Loose(index))
            }
            FileType::RegularFile => {
                if let Some(other) = self.other_name(seen)? {
                    return Ok(DescriptionKind::Path(other));
                }
                let nameable = seen.info.flags & NEVER_NAMED != 0;
                let kind = LooseKind::Deleted { path: path.to_vec(), nameable };
                let file = readable(seen)?;
                let index = self.read_loose(key, stat, kind, file.as_fd())?;
                Ok(DescriptionKind::Loose(index))
            }
            _ => Err(seen.refuse("a deleted file that is none of bytes")),
        }
    }

    /// Whether a file of a process in /proc says the same when it is opened again by who has it,
    /// before the process that it tells of is what it was.
    fn can_be_opened_again(&self, seen: &Seen<'_>) -> bool {
        let Ok(path) = std::str::from_utf8(&seen.link) else { return false };
        let mut parts = path.split('/').skip(2);
        let process: Option<u32> = parts.next().and_then(|part| part.parse().ok());
        let name = parts.next().unwrap_or_default();
        let told = TOLD_TO_ALL.contains(&name)
            || process == Some(seen.inner) && TOLD_TO_ITSELF.contains(&name);
        let is_there = |process| self.inner_ids.values().any(|inner| *inner == process);
        let flags = OFlags::from_bits_retain(seen.info.flags);
        told && parts.next().is_none()
            && flags & OFlags::RWMODE == OFlags::RDONLY
            && process.is_some_and(is_there)
    }

    /// Another name of a file that was deleted under the one by which it was opened.
    fn other_name(&self, seen: &Seen<'_>) -> Result<Option<Vec<u8>>> {
        if seen.stat.st_nlink == 0 {
            return Ok(None);
        }
        let wanted = (seen.stat.st_dev, seen.stat.st_ino);
        let found = search(&self.subject.written, |path| {
            self.stat_inside(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == wanted)
        });
        let flags = OFlags::from_bits_retain(seen.info.flags);
        match found {
            Found::At(path) => Ok(Some(path)),
            // A file of the image that nobody wrote to keeps the links that it has there.
            Found::Nowhere if flags & OFlags::RWMODE == OFlags::RDONLY => Ok(None),
            _ => Err(seen.refuse("a deleted file whose other name is not found")),
        }
    }

    fn removed(&mut self, key: Key, path: &[u8]) -> usize {
        self.loose.entry(key, || LooseKind::Removed { path: path.to_vec() })
    }

    /// The working directory of a process.
    pub(super) fn read_directory(&mut self, pid: Pid, inner: u32, name: &[u8]) -> Result<FileRef> {
        let path = proc::link(pid, "cwd")?;
        let refuse = |what: &str| {
            let path = String::from_utf8_lossy(&path).into_owned();
            proc::refuse(inner, name, format!("its working directory {path}: {what}"))
        };
        if of_a_process(&path) {
            return Err(refuse("a directory of a process in /proc"));
        }
        let Some(gone) = path.strip_suffix(DELETED) else {
            if !path.starts_with(b"/") {
                return Err(refuse("it is out of reach"));
            }
            return Ok(FileRef::Path(path));
        };
        let stat = follow(pid, "cwd")?;
        if self.is_at(&path, stat.st_dev, stat.st_ino) {
            return Ok(FileRef::Path(path));
        }
        Ok(FileRef::Loose(self.removed(Key::File(stat.st_dev, stat.st_ino), gone)))
    }

    /// The program of a process.
    pub(super) fn read_program(&mut self, pid: Pid) -> Result<FileRef> {
        let path = proc::link(pid, "exe")?;
        let stat = follow(pid, "exe")?;
        let gone = path.strip_suffix(DELETED);
        if gone.is_none() && !self.has_changed_since(stat.st_dev, stat.st_ino, &path) {
            return Ok(FileRef::Path(path));
        }
        let gone = gone.unwrap_or(&path);
        let file = format!("/proc/{pid}/exe");
        let program = open(file.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let program = program.context(|| format!("opening {file}"))?;
        let stat = fstat(&program).context(|| "fstat".to_owned())?;
        if self.is_at(&path, stat.st_dev, stat.st_ino) {
            return Ok(FileRef::Path(path));
        }
        let name = gone.strip_prefix(b"/memfd:");
        let kind = match name.filter(|_| stat.st_dev == self.memory_device) {
            Some(name) => LooseKind::Memfd { name: name.to_vec(), seals: seals(&program) },
            None => LooseKind::Deleted { path: gone.to_vec(), nameable: false },
        };
        let key = Key::File(stat.st_dev, stat.st_ino);
        self.read_loose(key, &stat, kind, program.as_fd()).map(FileRef::Loose)
    }
}

/// A description of this process's own of the same file: looking for what it holds moves the
/// position.
fn readable(seen: &Seen<'_>) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", seen.copy.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = open(path.as_str(), flags, Mode::empty());
    opened.map_err(|_| seen.refuse("a deleted file that cannot be read"))
}

/// What came of a search.
enum Found {
    At(Vec<u8>),
    Nowhere,
    /// There are too many files to look at.
    Unknown,
}

/// Looks for a file among all that was written, by its path in the sandbox.
fn search(written: &[(PathBuf, String)], is: impl Fn(&[u8]) -> bool) -> Found {
    let mut left = SEARCHED;
    let mut dirs: Vec<(PathBuf, Vec<u8>)> =
        written.iter().map(|(dir, path)| (dir.clone(), path.clone().into_bytes())).collect();
    while let Some((dir, inside)) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if left == 0 {
                return Found::Unknown;
            }
            left -= 1;
            let mut path = inside.clone();
            path.push(b'/');
            path.extend_from_slice(entry.file_name().as_bytes());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push((entry.path(), path)),
                Ok(kind) if kind.is_file() && is(&path) => return Found::At(path),
                _ => {}
            }
        }
    }
    Found::Nowhere
}

fn follow(pid: Pid, file: &str) -> Result<Stat> {
    let path = format!("/proc/{pid}/{file}");
    rustix::fs::stat(path.as_str()).context(|| format!("stat of {path}"))
}

/// Whether a path leads to what /proc tells of one process.
fn of_a_process(path: &[u8]) -> bool {
    let name = path.strip_prefix(b"/proc/").unwrap_or_default();
    let first = name.split(|&byte| byte == b'/').next().unwrap_or_default();
    first.first().is_some_and(u8::is_ascii_digit)
}
