//! What inotify watches: found again by its inode, for which the kernel tells no path.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};

use super::Capture;
use super::descriptors::Seen;
use super::waiting::Waiting;
use crate::error::{Context, Result, unreadable};
use crate::picture::events::Watch;
use crate::picture::{Body, DescriptionKind, FileRef};
use crate::proc;

/// Most directory entries that are looked at, some tens of milliseconds.
const ENTRIES_MAX: usize = 30_000;

/// A watch whose path is not known yet.
struct Wanted {
    number: i32,
    mask: u32,
    inode: u64,
    /// What tells the inode from all others, in the kernel's words.
    identity: String,
    path: Option<Vec<u8>>,
}

pub(super) fn watches(capture: &Capture<'_>, seen: &Seen<'_>) -> Result<Vec<Watch>> {
    let waiting = rustix::io::ioctl_fionread(&seen.copy).context(|| "FIONREAD".to_owned())?;
    if waiting != 0 {
        // They can be neither looked at nor made again.
        return Err(Waiting::of(seen, 0).not_yet("events of inotify wait to be read"));
    }
    let wanted = wanted(&seen.info.text).ok_or_else(|| unreadable("/proc/PID/fdinfo"))?;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let root = format!("/proc/{}/root", seen.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root.as_str(), flags, Mode::empty()).context(|| root.clone())?;
    let trial = inotify::init(inotify::CreateFlags::CLOEXEC);
    let trial = trial.context(|| "inotify_init1".to_owned())?;
    let mut search = Search { root, trial, wanted, visited: HashSet::new(), looked: 0 };
    search.run(&likely(capture, seen)?)?;
    let mut found = Vec::with_capacity(search.wanted.len());
    for watch in search.wanted {
        let Some(path) = watch.path else {
            return Err(seen.refuse(&format!(
                "what its watch {} is for was not found in the file system",
                watch.number
            )));
        };
        found.push(Watch { number: watch.number, mask: watch.mask, path });
    }
    found.sort_by_key(|watch| watch.number);
    Ok(found)
}

/// Lines as `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8
/// fhandle-type:1 f_handle:a7c4030000000000`; not every file system has handles.
fn wanted(text: &str) -> Option<Vec<Wanted>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("inotify "));
    let watch = |line: &str| {
        let mut words = line.split(' ');
        let mut number = |name: &str| {
            let word = words.next()?.strip_prefix(name)?.strip_prefix(':')?;
            u64::from_str_radix(word, 16).ok()
        };
        let (number, inode, device, mask) =
            (number("wd")?, number("ino")?, number("sdev")?, number("mask")?);
        let handle = line.split_once("fhandle").map_or("", |(_, handle)| handle);
        let identity = format!("{inode} {device} {handle}");
        let (number, mask) = (number as i32, mask as u32);
        Some(Wanted { number, mask, inode, identity, path: None })
    };
    lines.map(watch).collect()
}

/// For the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn read_all(info: &proc::FdInfo) {
    assert!(wanted(&info.text).is_none_or(|all| all.len() <= info.text.lines().count()));
}

/// Where programs mostly watch: below their working directories, and around what they have open.
fn likely(capture: &Capture<'_>, seen: &Seen<'_>) -> Result<Vec<Vec<u8>>> {
    let mut paths = vec![proc::link(seen.pid, "cwd")?];
    for process in &capture.picture.processes {
        if let Body::Alive(alive) = &process.body
            && let FileRef::Path(path) = &alive.directory
        {
            paths.push(path.clone());
        }
    }
    for description in &capture.descriptions.all {
        if let DescriptionKind::Path(path) = &description.kind {
            let parent = path.iter().rposition(|&b| b == b'/').unwrap_or_default();
            paths.push(path.get(..parent).unwrap_or_default().to_vec());
        }
    }
    paths.dedup();
    Ok(paths)
}

struct Search {
    root: OwnedFd,
    /// An inotify descriptor of our own, by which an inode is known for sure.
    trial: OwnedFd,
    wanted: Vec<Wanted>,
    visited: HashSet<(u64, u64)>,
    looked: usize,
}

impl Search {
    fn run(&mut self, likely: &[Vec<u8>]) -> Result<()> {
        let all = [b"/root".as_slice(), b"/home", b"/tmp", b"/"];
        for start in likely.iter().map(Vec::as_slice).chain(all) {
            // The directory itself, its ancestors, and then what is below.
            let mut above = start;
            loop {
                self.look(if above.is_empty() { b"/" } else { above })?;
                let Some(end) = above.iter().rposition(|&b| b == b'/') else { break };
                above = above.get(..end).unwrap_or_default();
            }
        }
        for start in likely.iter().map(Vec::as_slice).chain(all) {
            self.walk(start)?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.looked > ENTRIES_MAX || self.wanted.iter().all(|watch| watch.path.is_some())
    }

    fn walk(&mut self, start: &[u8]) -> Result<()> {
        let mut queue = VecDeque::from([start.to_vec()]);
        while let Some(path) = queue.pop_front() {
            if self.is_done() {
                return Ok(());
            }
            // What the kernel makes up is many, and is watched by nobody.
            if [b"/proc".as_slice(), b"/sys"].contains(&path.as_slice()) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
            let Some(dir) = self
                .open(&path, flags)
                .or_else(|| self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY))
            else {
                continue;
            };
            self.list(&path, &dir, &mut queue)?;
        }
        Ok(())
    }

    /// Looks at all entries of a directory.
    fn list(&mut self, path: &[u8], dir: &OwnedFd, queue: &mut VecDeque<Vec<u8>>) -> Result<()> {
        let Ok(stat) = rustix::fs::fstat(dir) else { return Ok(()) };
        if !self.visited.insert((stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let Ok(entries) = Dir::read_from(dir) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.looked += 1;
            if self.is_done() {
                return Ok(());
            }
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            let Ok(stat) = statat(dir, OsStr::from_bytes(name), nofollow) else { continue };
            let slash: &[u8] = if path.ends_with(b"/") { b"" } else { b"/" };
            let below = [path, slash, name].concat();
            if self.wanted.iter().any(|watch| watch.inode == stat.st_ino) {
                self.look(&below)?;
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                queue.push_back(below);
            }
        }
        Ok(())
    }

    /// Whether a path is one that is wanted.
    fn look(&mut self, path: &[u8]) -> Result<()> {
        let Some(file) = self.open(path, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(()) };
        let Ok(stat) = rustix::fs::fstat(&file) else { return Ok(()) };
        if !self.wanted.iter().any(|watch| watch.path.is_none() && watch.inode == stat.st_ino) {
            return Ok(());
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let Ok(number) = inotify::add_watch(&self.trial, link.as_str(), WatchFlags::DELETE_SELF)
        else {
            return Ok(());
        };
        let info = format!("/proc/self/fdinfo/{}", self.trial.as_raw_fd());
        let text = std::fs::read_to_string(&info).context(|| info.clone())?;
        let _ = inotify::remove_watch(&self.trial, number);
        let found = self::wanted(&text).ok_or_else(|| unreadable(&info))?;
        for watch in self.wanted.iter_mut().filter(|watch| watch.path.is_none()) {
            if found.iter().any(|found| found.identity == watch.identity) {
                watch.path = Some(path.to_vec());
            }
        }
        Ok(())
    }

    /// Opens a path of the sandbox, in which nothing can lead out.
    fn open(&self, path: &[u8], flags: OFlags) -> Option<OwnedFd> {
        let path = OsStr::from_bytes(path);
        let flags = flags | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, Mode::empty(), how).ok()
    }
}
