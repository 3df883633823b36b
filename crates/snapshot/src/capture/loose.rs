//! Files that no path leads to, and memory that processes share: what each is, and what it holds.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use forkyard_sys::stub::Op;
use rustix::fs::{SealFlags, SeekFrom, Stat, seek};
use rustix::process::Pid;

use super::Capture;
use super::memory::Source;
use crate::error::{Context, Error, Result};
use crate::inject::Hand;
use crate::picture::{Loose, LooseKind};
use crate::proc::Mapping;

/// How the kernel marks the path of what was deleted.
pub(crate) const DELETED: &[u8] = b" (deleted)";

const PAGE: u64 = 4096;

/// Pages of shared memory that a process is asked about at once.
const PAGES_AT_ONCE: u64 = 64 * 1024;

/// Most that is taken into memory of files that were deleted from a disk: what a file system in
/// memory holds is bounded by itself.
const DISK_MOST: u64 = 256 * 1024 * 1024;

/// A file by what all who refer to it have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Shared anonymous memory: inode.
    Anonymous(u64),
    /// Memory of shmget(2): its id.
    SystemV(u64),
    /// Device and inode.
    File(u64, u64),
}

impl Key {
    /// Whether only those who have it mapped can say what it holds.
    fn is_read_by_mapping(self) -> bool {
        !matches!(self, Self::SystemV(_))
    }
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub(crate) struct LooseFiles {
    pub(crate) all: Vec<Loose>,
    by_key: HashMap<Key, usize>,
    /// What was read of each, by offsets; all of it where there was a descriptor.
    read: Vec<Vec<(u64, u64)>>,
    /// Where what is mapped of files on a disk can be read, when no descriptor comes up.
    sources: Vec<(usize, Pid, Mapping)>,
    /// How much was taken of files on a disk.
    from_disk: u64,
}

impl LooseFiles {
    /// The number of a file, which is added when it is new.
    pub(super) fn entry(&mut self, key: Key, kind: impl FnOnce() -> LooseKind) -> usize {
        if let Some(&known) = self.by_key.get(&key) {
            return known;
        }
        let index = self.all.len();
        self.all.push(Loose {
            kind: kind(),
            size: 0,
            owner: (0, 0),
            mode: 0o777,
            times: [(0, 0); 2],
            parts: Vec::new(),
        });
        self.read.push(Vec::new());
        self.by_key.insert(key, index);
        index
    }

    /// What is known by this key.
    pub(super) fn known(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// What a file is.
    pub(super) fn kind(&self, index: usize) -> Option<&LooseKind> {
        Some(&self.all.get(index)?.kind)
    }

    /// Says how large a file is, and where all that it holds is staged.
    pub(super) fn fill(&mut self, index: usize, size: u64, parts: Vec<(u64, u64, u64)>) {
        if let Some(loose) = self.all.get_mut(index) {
            (loose.size, loose.parts) = (size, parts);
        }
    }

    /// What of a range was not read yet; counts as read from now on.
    fn claim(&mut self, index: usize, start: u64, end: u64) -> Vec<(u64, u64)> {
        let Some(read) = self.read.get_mut(index) else { return Vec::new() };
        let mut missing = Vec::new();
        let mut at = start;
        for &(from, to) in read.iter() {
            if from > at && at < end {
                missing.push((at, from.min(end)));
            }
            at = at.max(to);
        }
        if at < end {
            missing.push((at, end));
        }
        read.push((start, end));
        read.sort_unstable();
        missing
    }
}

impl Capture<'_> {
    /// What a mapping shows, where that is not found by a path; `gone` tells whether the file of a
    /// path that looks deleted is.
    pub(super) fn loose_key(&self, mapping: &Mapping) -> Option<Key> {
        if mapping.device() == self.memory_device {
            let name = mapping.name.as_slice();
            if name.starts_with(b"/SYSV") {
                return Some(Key::SystemV(mapping.inode));
            }
            if name.starts_with(b"/memfd:") {
                return Some(Key::File(mapping.device(), mapping.inode));
            }
            return Some(Key::Anonymous(mapping.inode));
        }
        let gone = mapping.inode != 0
            && mapping.name.starts_with(b"/")
            && mapping.name.ends_with(DELETED)
            && !self.is_at(&mapping.name, mapping.device(), mapping.inode);
        let gone = gone
            || mapping.inode != 0
                && mapping.name.starts_with(b"/")
                && self.has_changed_since(mapping.device(), mapping.inode, &mapping.name);
        gone.then(|| Key::File(mapping.device(), mapping.inode))
    }

    /// Whether a mapping belongs to a file system in memory.
    pub(super) fn in_memory(&self, mapping: &Mapping) -> bool {
        mapping.device() == self.memory_device || self.memory_files.contains(&mapping.device())
    }

    /// Whether the sandbox has this file at this path.
    pub(super) fn is_at(&self, path: &[u8], device: u64, inode: u64) -> bool {
        self.stat_inside(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
    }

    pub(super) fn stat_inside(&self, path: &[u8]) -> rustix::io::Result<Stat> {
        let mut inside = self.subject.path.as_os_str().as_bytes().to_vec();
        inside.extend_from_slice(path);
        rustix::fs::lstat(inside.as_slice())
    }

    /// How many pages the shared memory has at most that a process must be asked about.
    pub(super) fn shared_pages(&self, mappings: &[Mapping]) -> u64 {
        let shared = mappings.iter().filter(|mapping| {
            mapping.inode != 0
                && self.in_memory(mapping)
                && self.loose_key(mapping).is_some_and(Key::is_read_by_mapping)
        });
        let longest = shared.map(|mapping| (mapping.end - mapping.start) / PAGE).max();
        longest.unwrap_or_default().min(PAGES_AT_ONCE)
    }

    /// Reads what a process has mapped of shared memory that nobody was seen to have a descriptor
    /// of. Only it can tell which pages there are: mincore(2).
    pub(super) fn read_shared(
        &mut self,
        hand: &mut Hand<'_>,
        pid: Pid,
        at: u64,
        mappings: &[Mapping],
    ) -> Result<()> {
        for mapping in mappings {
            if mapping.inode == 0 || !self.in_memory(mapping) {
                continue;
            }
            let key = self.loose_key(mapping).filter(|key| key.is_read_by_mapping());
            let Some(key) = key else { continue };
            let index = self.loose.entry(key, || kind_of(mapping));
            let last = mapping.offset.saturating_add(mapping.end - mapping.start);
            if let Some(loose) = self.loose.all.get_mut(index) {
                loose.size = loose.size.max(last);
            }
            for (from, to) in self.loose.claim(index, mapping.offset, last) {
                let start = mapping.start + (from - mapping.offset);
                let length = to - from;
                let parts = match mapping.swapped {
                    0 => resident(hand, pid, at, start, length)?,
                    // What is swapped out does not count as resident.
                    _ => vec![(start, start + length)],
                };
                self.stage_parts(index, &Source::of(pid, mapping)?, &parts, mapping)?;
            }
        }
        Ok(())
    }

    /// Copies parts of a mapping, as addresses there, to what is known of a loose file.
    fn stage_parts(
        &mut self,
        index: usize,
        source: &Source,
        parts: &[(u64, u64)],
        mapping: &Mapping,
    ) -> Result<()> {
        let length = parts.iter().map(|(start, end)| end - start).sum();
        if length == 0 {
            return Ok(());
        }
        let mut pages = self.stage.mirror(0, length, false)?;
        let mut next = pages.start();
        let mut placed = Vec::with_capacity(parts.len());
        for &(start, end) in parts {
            placed.push((start, next, end - start));
            next += end - start;
        }
        source.fill(&mut pages, &placed)?;
        if let Some(loose) = self.loose.all.get_mut(index) {
            let parts = placed.iter().map(|&(start, staged, length)| {
                (start - mapping.start + mapping.offset, length, staged)
            });
            loose.parts.extend(parts);
        }
        self.stage.keep(pages, length);
        Ok(())
    }

    /// Notes a mapping of a file that was deleted from a disk.
    pub(super) fn note_source(&mut self, index: usize, pid: Pid, mapping: &Mapping) {
        if !self.in_memory(mapping) {
            self.loose.sources.push((index, pid, mapping.clone()));
        }
    }

    /// Reads by mappings what no descriptor led to.
    pub(super) fn finish_loose(&mut self) -> Result<()> {
        for (index, pid, mapping) in std::mem::take(&mut self.loose.sources) {
            let last = mapping.offset.saturating_add(mapping.end - mapping.start);
            for (from, to) in self.loose.claim(index, mapping.offset, last) {
                self.count_from_disk(to - from, &mapping.name)?;
                let source = Source::of(pid, &mapping)?;
                let mut pages = self.stage.mirror(0, to - from, false)?;
                let start = pages.start();
                // It may be mapped beyond its end.
                let read = source.read(&mut pages, mapping.start + (from - mapping.offset))?;
                if let Some(loose) = self.loose.all.get_mut(index).filter(|_| read > 0) {
                    loose.size = loose.size.max(from + read);
                    loose.parts.push((from, read, start));
                }
                self.stage.keep(pages, read);
            }
        }
        Ok(())
    }

    /// Reads all of a file by a descriptor of this process that can be read from.
    pub(super) fn read_loose(
        &mut self,
        key: Key,
        stat: &Stat,
        kind: LooseKind,
        file: BorrowedFd<'_>,
    ) -> Result<usize> {
        let failed = || "reading a file without a name".to_owned();
        let on_disk =
            matches!(kind, LooseKind::Deleted { .. }) && !self.memory_files.contains(&stat.st_dev);
        let index = self.loose.entry(key, || kind.clone());
        let size = stat.st_size as u64;
        let read = self.loose.read.get_mut(index);
        let whole = read.is_some_and(|read| {
            let whole = read.contains(&(0, u64::MAX));
            *read = vec![(0, u64::MAX)];
            whole
        });
        if whole {
            return Ok(index);
        }
        let mut extents = Vec::new();
        let mut at = 0;
        while at < size {
            let Ok(start) = seek(file, SeekFrom::Data(at)) else { break };
            let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            if end <= start {
                break;
            }
            extents.push((start, end - start));
            at = end;
        }
        let length: u64 = extents.iter().map(|(_, length)| length).sum();
        if on_disk {
            self.count_from_disk(length, b"a file that was deleted")?;
        }
        let mut parts = Vec::with_capacity(extents.len());
        if length > 0 {
            let mut pages = self.stage.mirror(0, length.next_multiple_of(PAGE), false)?;
            let mut next = pages.start();
            for (offset, length) in extents {
                pages.read_from(next, length, file, offset).context(failed)?;
                parts.push((offset, length, next));
                next += length;
            }
            self.stage.keep(pages, length);
        }
        let owner = (self.users.inside(stat.st_uid), self.groups.inside(stat.st_gid));
        if let Some(loose) = self.loose.all.get_mut(index) {
            *loose = Loose {
                kind,
                size,
                owner,
                mode: stat.st_mode,
                times: [
                    (stat.st_atime, stat.st_atime_nsec as i64),
                    (stat.st_mtime, stat.st_mtime_nsec as i64),
                ],
                parts,
            };
        }
        Ok(index)
    }

    fn count_from_disk(&mut self, length: u64, name: &[u8]) -> Result<()> {
        self.loose.from_disk = self.loose.from_disk.saturating_add(length);
        if self.loose.from_disk <= DISK_MOST {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name).into_owned();
        Err(Error::Refused {
            pid: 1,
            name: "init".to_owned(),
            what: format!("{name}: more than {} MiB of deleted files are open", DISK_MOST >> 20),
        })
    }
}

/// What is known of a file by a mapping alone.
pub(super) fn kind_of(mapping: &Mapping) -> LooseKind {
    let name = mapping.name.strip_suffix(DELETED).unwrap_or(&mapping.name);
    match name.strip_prefix(b"/memfd:") {
        Some(name) => LooseKind::Memfd { name: name.to_vec(), seals: 0 },
        None => LooseKind::Deleted { path: name.to_vec(), nameable: false },
    }
}

/// What there is of a range of shared memory, as addresses.
fn resident(
    hand: &mut Hand<'_>,
    pid: Pid,
    at: u64,
    start: u64,
    length: u64,
) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut from = start;
    while from < start + length {
        let part = (start + length - from).min(PAGES_AT_ONCE * PAGE);
        let mut pages = vec![0; (part / PAGE) as usize];
        let to = hand.data_address(at, 1);
        let ask = Op::call(libc::SYS_mincore, [from, part, to, 0, 0, 0]).keep();
        let result = hand.ask(pid, at, &[ask], &mut pages)?.first().copied().unwrap_or(-1);
        if result < 0 {
            let error = std::io::Error::from_raw_os_error(-result as i32);
            return Err(error).context(|| "mincore in a process that is forked".to_owned());
        }
        for (page, there) in (from..).step_by(PAGE as usize).zip(pages) {
            match found.last_mut() {
                _ if there & 1 == 0 => {}
                Some((_, end)) if *end == page => *end += PAGE,
                _ => found.push((page, page + PAGE)),
            }
        }
        from += part;
    }
    Ok(found)
}

/// The seals of a file in memory.
pub(super) fn seals(file: impl AsFd) -> u32 {
    rustix::fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty()).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_file_is_read_once() {
        let mut files = LooseFiles::default();
        let kind = || LooseKind::Anonymous { at: 0 };
        let index = files.entry(Key::Anonymous(1), kind);
        assert_eq!(files.claim(index, 10, 20), [(10, 20)]);
        assert_eq!(files.claim(index, 30, 40), [(30, 40)]);
        assert_eq!(files.claim(index, 0, 50), [(0, 10), (20, 30), (40, 50)]);
        assert_eq!(files.claim(index, 5, 45), []);
        assert_eq!(files.entry(Key::Anonymous(1), kind), index);
    }
}
