//! What of stopped processes is in a root that they are to leave for another one, with the same
//! files, while they stand still: see [`crate::seal`].
//!
//! Common things are moved. What is rare, or cannot be moved without being noticed, is in the way.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxFlags, statx};
use rustix::process::Pid;

use super::Capture;
use super::descriptors::Seen;
use crate::error::{Context, Result};
use crate::picture::events::Event;
use crate::picture::{Alive, Description, DescriptionKind, FileRef, Picture, Process};
use crate::proc::{FdInfo, Mapping};
use crate::seal::Opening;
use crate::seize::Stopped;

/// Most bytes of open files that are copied while all stands still: what is open cannot be a
/// layer's file any more for some and the upper's for others.
const OPEN_MOST: u64 = 4 << 20;

/// Most files of a process that are moved: they travel in one message.
const FILES_MOST: usize = 100;

/// Flags that say how a file was opened once, or are of a description that is told by signals.
const OF_OPENING: u32 = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::TRUNC)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC)
    .bits();

/// `O_ASYNC` (`FASYNC`)
const ASYNC: u32 = 0o20_000;

/// The bit of `O_TMPFILE` that says so.
const UNNAMED: u32 = 0o20_000_000;

/// The root of a sandbox that is to be moved, where that is wanted.
#[derive(Clone, Debug)]
pub struct Movable {
    /// The id of the root's mount, as `/proc/PID/fdinfo/N` has it.
    pub mount: u64,
    /// What the sandbox wrote in it.
    pub upper: PathBuf,
}

/// A root that a sandbox had before: mappings may be of it, and programs.
#[derive(Clone, Debug)]
pub struct Gone {
    /// Its device.
    pub device: u64,
    /// What was written since, a layer each.
    pub since: Vec<PathBuf>,
}

/// A process that is to be moved.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) pid: Pid,
    pub(crate) inner: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) threads: Vec<Pid>,
    pub(crate) vdso: u64,
    /// Descriptors by number, whether they close on exec, and their descriptions.
    pub(crate) files: Vec<(u32, bool, usize)>,
    /// Its working directory, where that moves.
    pub(crate) directory: Option<Vec<u8>>,
}

/// What is to be moved, and what is in the way.
#[derive(Debug)]
pub(crate) struct Seats {
    movable: Movable,
    pub(crate) all: Vec<Seat>,
    /// Files by their descriptions.
    pub(crate) open: BTreeMap<usize, Opening>,
    copied: u64,
    why_not: Option<String>,
}

impl Seats {
    pub(super) fn new(movable: Movable) -> Self {
        let (all, open) = (Vec::new(), BTreeMap::new());
        Self { movable, all, open, copied: 0, why_not: None }
    }

    /// Why nothing can be moved.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.why_not.as_deref()
    }

    fn refuse(&mut self, what: impl Into<String>) {
        self.why_not.get_or_insert_with(|| what.into());
    }

    /// Takes in a description that was just seen.
    pub(super) fn describe(&mut self, seen: &Seen<'_>, description: &Description, index: usize) {
        if seen.info.value("mnt_id").and_then(|id| id.parse().ok()) != Some(self.movable.mount) {
            return;
        }
        let DescriptionKind::Path(path) = &description.kind else {
            return self.refuse(seen.place());
        };
        let flags = seen.info.flags;
        let kind = FileType::from_raw_mode(seen.stat.st_mode);
        let is_path = flags & OFlags::PATH.bits() != 0;
        let can_move = is_path || matches!(kind, FileType::RegularFile | FileType::Directory);
        let half_read = kind == FileType::Directory && seen.info.position != 0 && !is_path;
        if !can_move || half_read || description.owner.is_some() || flags & ASYNC != 0 {
            return self.refuse(seen.place());
        }
        if kind == FileType::RegularFile && !is_path && is_database(seen) {
            return self.refuse(format!("{} is a database of SQLite", seen.place()));
        }
        let is_in_upper = kind == FileType::RegularFile && !is_path && self.is_in_upper(path);
        if is_in_upper {
            self.copied = self.copied.saturating_add(seen.stat.st_blocks as u64 * 512);
            if self.copied > OPEN_MOST {
                return self.refuse(format!("{} and other open files are large", seen.place()));
            }
        }
        let opening = Opening {
            path: path.clone(),
            flags: flags & !(OF_OPENING | UNNAMED),
            position: if is_path { 0 } else { seen.info.position },
            copied: is_in_upper,
        };
        self.open.insert(index, opening);
    }

    /// Takes in a descriptor of a known description.
    pub(super) fn refer(&mut self, info: &FdInfo, index: usize) {
        if self.open.contains_key(&index) && info.text.lines().any(|line| line.starts_with("lock:"))
        {
            self.refuse("a lock on a file");
        }
    }

    /// Takes in what a process has mapped; `is_memory` tells of which file systems nothing moves.
    fn map(&mut self, mappings: &[Mapping], is_memory: impl Fn(&Mapping) -> bool) {
        let shared = mappings.iter().filter(|mapping| {
            mapping.permissions.last() == Some(&b's')
                && mapping.name.starts_with(b"/")
                && mapping.inode != 0
        });
        for mapping in shared.filter(|mapping| !is_memory(mapping)) {
            if mapping.flags.contains(b"mw") || self.is_in_upper(&mapping.name) {
                let name = String::from_utf8_lossy(&mapping.name).into_owned();
                return self.refuse(format!("{name} is mapped to be shared"));
            }
        }
    }

    fn is_in_upper(&self, path: &[u8]) -> bool {
        is_at(&self.movable.upper, path)
    }

    /// Looks for what is in the way in all of a picture.
    fn check(&mut self, picture: &Picture, descriptions: &[Description]) {
        // What is mounted in the root moves as it is.
        let stays = |path: &[u8]| {
            let below = |dir: &[u8]| {
                path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            };
            [b"/tmp".as_slice(), b"/dev", b"/proc", b"/sys"].into_iter().any(below)
        };
        for description in descriptions {
            match &description.kind {
                DescriptionKind::UnixSocket(socket)
                    if socket.place.as_ref().is_some_and(|place| !stays(place)) =>
                {
                    self.refuse("a Unix socket that has a name");
                }
                DescriptionKind::Event(Event::Watches(watches))
                    if watches.iter().any(|watch| !stays(&watch.path)) =>
                {
                    self.refuse("inotify watches files");
                }
                _ => {}
            }
        }
        // Who is on the way through a directory would not find the way on in one of more layers.
        let half_read = descriptions.iter().any(|description| {
            matches!(description.kind, DescriptionKind::Directory(..)) && description.position != 0
        });
        if half_read {
            self.refuse("a directory that is read in part");
        }
        if picture.processes.iter().any(Process::is_stopped) {
            self.refuse("a process is stopped for job control");
        }
    }
}

impl Capture<'_> {
    /// Notes what of a process is to be moved, where that is wanted.
    pub(super) fn note_seat(
        &mut self,
        stopped: &Stopped,
        (inner, name): (u32, &[u8]),
        vdso: u64,
        mappings: &[Mapping],
        alive: &Alive,
    ) -> Result<()> {
        let Some(mut seats) = self.seats.take() else { return Ok(()) };
        seats.map(mappings, |mapping| self.in_memory(mapping));
        let files: Vec<_> = alive
            .descriptors
            .iter()
            .filter(|file| seats.open.contains_key(&file.description))
            .map(|file| (file.number, file.close_on_exec, file.description))
            .collect();
        let limit = alive.limits.get(libc::RLIMIT_NOFILE as usize).map_or(0, |limit| limit.0);
        if files.len() > FILES_MOST || files.iter().any(|(number, ..)| u64::from(*number) >= limit)
        {
            seats.refuse("a process has too many files open");
        }
        let path = format!("/proc/{}/cwd", stopped.pid);
        let at = statx(CWD, path.as_str(), AtFlags::empty(), StatxFlags::MNT_ID)
            .context(|| format!("statx of {path}"))?;
        let directory = match &alive.directory {
            _ if at.stx_mnt_id != seats.movable.mount => None,
            FileRef::Path(path) => Some(path.clone()),
            FileRef::Loose(_) => {
                seats.refuse("a working directory that was removed");
                None
            }
        };
        let (pid, threads) = (stopped.pid, stopped.threads.clone());
        seats.all.push(Seat { pid, inner, name: name.to_vec(), threads, vdso, files, directory });
        self.seats = Some(seats);
        Ok(())
    }

    /// Looks for what is in the way, when the picture is complete.
    pub(super) fn check_seats(&mut self) {
        if let Some(seats) = &mut self.seats {
            seats.check(&self.picture, &self.descriptions.all);
        }
    }

    /// Whether a file of a device of which it is not known whether it is there yet, but for which a
    /// path says so, is that of the path no more.
    pub(super) fn has_changed_since(&self, device: u64, inode: u64, path: &[u8]) -> bool {
        let current = self.subject.root.0;
        let mut gone = self.subject.gone.iter();
        let Some(gone) = gone.find(|gone| gone.device == device).filter(|_| device != current)
        else {
            return false;
        };
        let key = (device, inode, path.to_vec());
        if let Some(&known) = self.changed.borrow().get(&key) {
            return known;
        }
        let is_there =
            self.stat_inside(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (current, inode));
        let changed = !is_there || gone.since.iter().any(|layer| is_at(layer, path));
        self.changed.borrow_mut().insert(key, changed);
        changed
    }
}

/// Files of roots that are gone, and whether they have changed since.
pub(super) type Changed = RefCell<HashMap<(u64, u64, Vec<u8>), bool>>;

/// Whether a file is a database of SQLite, which tells files from one another by device and inode: a
/// process that has one open, and opens it again with another device, takes it for another, and its
/// locks keep nobody out any more.
fn is_database(seen: &Seen<'_>) -> bool {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let mut start = [0; MAGIC.len()];
    matches!(rustix::io::pread(&seen.copy, &mut start, 0), Ok(count) if count == MAGIC.len())
        && start == MAGIC
}

/// Whether anything is at a path of a layer.
fn is_at(layer: &Path, path: &[u8]) -> bool {
    let mut inside = layer.as_os_str().as_bytes().to_vec();
    inside.extend_from_slice(path);
    rustix::fs::lstat(inside.as_slice()).is_ok()
}

/// The id of the mount that a directory is of.
///
/// # Errors
/// Of statx(2).
pub fn mount_id(dir: impl std::os::fd::AsFd) -> std::io::Result<u64> {
    Ok(statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
