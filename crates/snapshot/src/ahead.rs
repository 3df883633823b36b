//! Memory that is copied before its process is stopped.
//!
//! To read memory takes longer than all else together, and most of it does not change meanwhile.
//! So large processes are stopped for a moment first, to make a userfaultfd(2) each, by which the
//! kernel marks what they write from then on. Their memory is copied while they run; when all are
//! stopped, only what was written since, and what is new, is read again. What was copied stays
//! valid as long as the marks are kept: for the next picture, too.
//!
//! All of this is in vain at worst: what does not work out is read when its process is stopped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use forkyard_sys::memory::{HUGE, Pages};
use forkyard_sys::remote::{PageRange, page};
use forkyard_sys::stub::Op;
use forkyard_sys::userfault::{self, Marks};
use rustix::fs::OFlags;
use rustix::process::Pid;

use crate::capture::Subject;
use crate::error::{Context, Error, Result};
use crate::filled::{Filled, filled};
use crate::inject::{Hand, Tail};
use crate::machine::Machine;
use crate::proc::{self, FdInfo, Mapping, Stat, Status};
use crate::seize::{Scope, Tree};
use crate::stage::Stage;

/// A process with less of its own than this, in KiB, is read faster than it is stopped twice.
const LARGE: u64 = 2 * 1024;

/// Areas with less than this, in KiB, are not worth a mark.
const WORTH: u64 = 128;

/// What is copied again before the stop when more than this was written since, in bytes.
const STILL_MUCH: u64 = 1 << 20;

/// How often that is done.
const AGAIN: u32 = 3;

/// What all eligible areas are: readable and writable, private.
const PLAIN: [u8; 4] = *b"rw-p";

/// Flags of `smaps` that keep an area from being copied ahead.
const UNFIT: [&[u8; 2]; 10] =
    [b"gd", b"mg", b"wf", b"dd", b"dp", b"ht", b"io", b"pf", b"um", b"ui"];

/// Flags that its mirror has, too.
const MIRRORED: [(&[u8; 2], i32); 2] =
    [(b"hg", libc::MADV_HUGEPAGE), (b"nh", libc::MADV_NOHUGEPAGE)];

/// Flag of `smaps` of areas in which writes are marked.
pub(crate) const MARKED: &[u8; 2] = b"uw";

/// Copies of memory of running processes.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    processes: HashMap<Pid, Marked>,
    /// How long processes stood still for it, the longest.
    pub(crate) stopped: Duration,
}

/// A process whose writes are marked.
#[derive(Debug)]
struct Marked {
    /// When it began to run: ids come again.
    begun: u64,
    marks: Marks,
    pagemap: File,
    areas: Vec<Copied>,
}

/// An area that has a mirror.
#[derive(Debug)]
struct Copied {
    start: u64,
    end: u64,
    /// Which of [`MIRRORED`] it has.
    mirrored: [bool; MIRRORED.len()],
    /// Whether the process has much of it in common with others.
    in_common: bool,
    /// Where its mirror begins.
    at: u64,
    /// Ranges that the mirror holds, in order.
    ranges: Vec<(u64, u64)>,
    /// Those that the picture being taken uses.
    taken: Vec<(u64, u64)>,
}

impl Ahead {
    /// Copies the memory of all large processes, or what they wrote since the last time. Tells
    /// whether there is so much to read that two threads are faster than one.
    pub(crate) fn copy(
        &mut self,
        subject: &Subject,
        machine: &Machine,
        stage: &mut Stage,
    ) -> Result<bool> {
        self.stopped = Duration::ZERO;
        self.processes.values_mut().flat_map(|marked| &mut marked.areas).for_each(|copied| {
            // Of a try that failed.
            copied.taken.clear();
        });
        if self.processes.is_empty() {
            // Of a try that failed, too, where nothing was copied ahead.
            stage.keep_only(&BTreeSet::new())?;
            *stage = Stage::default();
        }
        let all = Scope::Below(subject.init, subject.leave.clone()).walk();
        if !machine.marks {
            return Ok(all.len() > 1);
        }
        let large: Vec<(Pid, u64)> =
            all.iter().filter_map(|&pid| Some((pid, large(pid)?))).collect();
        self.processes.retain(|pid, marked| large.contains(&(*pid, marked.begun)));
        if !large.is_empty() && !stage.is_found() {
            let own = rustix::process::getpid();
            let mappings = all.iter().chain([&own]).filter_map(|pid| proc::places(*pid).ok());
            *stage = Stage::find(mappings.flatten().map(|area| (area.start, area.end)).collect())?;
        }
        let is_much = all.len() > 1 || !large.is_empty();
        for (pid, begun) in large {
            // Whatever fails is done when the process is stopped.
            let _ = self.copy_process(pid, begun, &machine.tail, stage);
            // Looked for when pages were marked: until then, it may have had some filled so.
            if fills_by_device(pid) {
                self.processes.remove(&pid);
            }
        }
        stage.keep_only(&self.mirrors())?;
        Ok(is_much)
    }

    /// How many bytes were copied that the next picture may use again.
    pub(crate) fn lasting(&self) -> u64 {
        let areas = self.processes.values().flat_map(|marked| &marked.areas);
        areas.flat_map(|copied| &copied.ranges).map(|(start, end)| end - start).sum()
    }

    /// Where the mirrors of copies begin.
    pub(crate) fn mirrors(&self) -> BTreeSet<u64> {
        let areas = self.processes.values().flat_map(|marked| &marked.areas);
        areas.map(|copied| copied.at).collect()
    }

    fn copy_process(&mut self, pid: Pid, begun: u64, tail: &Tail, stage: &mut Stage) -> Result<()> {
        // A program that was executed has other memory.
        self.processes.retain(|other, marked| *other != pid || marked.has_memory());
        if !self.processes.contains_key(&pid) {
            let start = Instant::now();
            let marks = mark(pid, tail);
            self.stopped = self.stopped.max(start.elapsed());
            let path = format!("/proc/{pid}/pagemap");
            let pagemap = File::open(&path).context(|| format!("opening {path}"))?;
            let marked = Marked { begun, marks: marks?, pagemap, areas: Vec::new() };
            self.processes.insert(pid, marked);
        }
        let Some(marked) = self.processes.get_mut(&pid) else { return Ok(()) };
        for mapping in proc::mappings(pid)?.iter().filter(|mapping| is_eligible(mapping)) {
            // Another may have come to the place of one that was.
            let is_marked = mapping.flags.contains(MARKED);
            match marked.areas.iter_mut().find(|copied| is_marked && copied.is_of(mapping)) {
                Some(copied) => copied.in_common = mapping.is_in_common(),
                None => marked.begin(pid, mapping, stage)?,
            }
        }
        for _ in 0..AGAIN {
            let mut most = 0;
            for copied in &mut marked.areas {
                most = most.max(copied.refresh(pid, &marked.pagemap, stage).unwrap_or(u64::MAX));
            }
            if most < STILL_MUCH {
                break;
            }
        }
        Ok(())
    }

    /// Brings the mirror of a stopped process's area up to date, where there is one, by what it was
    /// found to hold, and gives where the area is in it.
    pub(crate) fn finish(
        &mut self,
        pid: Pid,
        mapping: &Mapping,
        found: &[PageRange],
        stage: &Stage,
    ) -> Result<Option<u64>> {
        let Some(marked) = self.processes.get_mut(&pid) else { return Ok(None) };
        let Some(copied) = marked.areas.iter_mut().find(|copied| copied.is_of(mapping)) else {
            return Ok(None);
        };
        // Kernels before 6.14 leave marks on pages that were moved to where nothing is marked.
        let is_marked = mapping.flags.contains(MARKED);
        if !is_marked || !is_eligible(mapping) || mirrored(mapping) != copied.mirrored {
            return Ok(None);
        }
        copied.in_common = mapping.is_in_common();
        let written = found.iter().filter(|range| range.categories & page::WRITTEN != 0);
        let written: Vec<_> = written.map(ends).collect();
        copied.read(pid, &written, stage)?;
        // If this try fails, the next one has to know what the mirror holds.
        copied.ranges.extend(written);
        let now: Vec<(u64, u64)> = found.iter().map(ends).collect();
        let gone = without(copied.ranges.iter().copied(), &now);
        stage.change(copied.at, |pages| {
            gone.iter().try_for_each(|&(start, end)| {
                let at = start - copied.start + copied.at;
                pages.advise(at, end - start, libc::MADV_DONTNEED).context(|| "madvise".to_owned())
            })
        })?;
        copied.taken.extend(now);
        Ok(Some(copied.at))
    }

    /// Whether a process's writes are marked.
    pub(crate) fn marks(&self, pid: Pid) -> bool {
        self.processes.contains_key(&pid)
    }

    /// The picture is all there: what it does not use is of no use any more.
    pub(crate) fn settle(&mut self, stage: &Stage) {
        for marked in self.processes.values_mut() {
            for copied in &mut marked.areas {
                copied.ranges = std::mem::take(&mut copied.taken);
                copied.ranges.sort_unstable();
            }
            for unused in marked.areas.extract_if(.., |copied| copied.ranges.is_empty()) {
                stage.remove(unused.at);
            }
        }
    }
}

impl Marked {
    /// Whether the memory that is marked is anybody's.
    fn has_memory(&self) -> bool {
        matches!(self.pagemap.read_at(&mut [0; 8], 0), Ok(1..))
    }

    /// Marks writes to an area from now on, and makes it a mirror, which is empty yet.
    fn begin(&mut self, pid: Pid, mapping: &Mapping, stage: &mut Stage) -> Result<()> {
        let (start, end) = (mapping.start, mapping.end);
        let failed = || format!("marking what process {pid} writes");
        self.marks.track(start, end - start).context(failed)?;
        let mut mirror = stage.mirror(start, end - start, false)?;
        let (at, length) = (mirror.start(), mirror.length());
        let mirrored = mirrored(mapping);
        for ((_, advice), has) in MIRRORED.iter().zip(mirrored) {
            if has {
                mirror.advise(at, length, *advice).context(|| "madvise".to_owned())?;
            }
        }
        stage.keep(mirror, 0);
        // What it had from an area that was there before is another's.
        self.areas.retain(|copied| copied.end <= start || end <= copied.start);
        let (ranges, taken) = (Vec::new(), Vec::new());
        let in_common = mapping.is_in_common();
        self.areas.push(Copied { start, end, mirrored, in_common, at, ranges, taken });
        Ok(())
    }
}

impl Copied {
    fn is_of(&self, mapping: &Mapping) -> bool {
        (self.start, self.end) == (mapping.start, mapping.end)
    }

    /// Copies what was written since the last time; gives how many bytes that was.
    fn refresh(&mut self, pid: Pid, pagemap: &File, stage: &mut Stage) -> Result<u64> {
        // At first whatever there is: pages may carry marks already, of a try that failed when the
        // area had another end, or of where they were before.
        let only = if self.ranges.is_empty() { 0 } else { page::WRITTEN };
        let search = Filled { only, protect: true, ..Filled::default() };
        let found = filled(pagemap, (self.start, self.end), search)?;
        let written: Vec<_> = found.iter().map(ends).collect();
        // Marked as not written from here on, it must be read, or be forgotten.
        let read =
            self.read_huge(pid, &written, stage).and_then(|rest| self.read(pid, &rest, stage));
        self.ranges.extend(&written);
        self.ranges.sort_unstable();
        self.ranges.dedup();
        match read {
            Ok(()) => Ok(written.iter().map(|(start, end)| end - start).sum()),
            Err(error) => {
                // Nothing is in it: it is no mirror of anything any more.
                self.end = self.start;
                Err(error)
            }
        }
    }

    /// Reads whole huge pages into a mirror that is empty yet; gives what is left to be read.
    fn read_huge(
        &self,
        pid: Pid,
        ranges: &[(u64, u64)],
        stage: &mut Stage,
    ) -> Result<Vec<(u64, u64)>> {
        if !self.ranges.is_empty() || self.mirrored.contains(&true) {
            return Ok(ranges.to_vec());
        }
        let mut rest = Vec::new();
        for &(start, end) in ranges {
            let (first, last) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
            if first >= last {
                rest.push((start, end));
                continue;
            }
            rest.extend([(start, first), (last, end)].iter().filter(|part| part.0 < part.1));
            let length = last - first;
            let scratch = stage.room(length)?;
            stage.count(length);
            let part = (first, first - self.start + self.at, length);
            stage.change(self.at, |pages| {
                let fill = |pages: &mut Pages, parts: &[_]| self.fill(pid, pages, parts);
                let filled = pages.fill_huge(part, scratch, fill);
                filled.context(|| format!("reading memory of process {pid}"))
            })?;
        }
        Ok(rest)
    }

    fn read(&self, pid: Pid, ranges: &[(u64, u64)], stage: &Stage) -> Result<()> {
        let place = |&(start, end): &(u64, u64)| (start, start - self.start + self.at, end - start);
        let parts: Vec<_> = ranges.iter().map(place).collect();
        stage.count(parts.iter().map(|(.., length)| length).sum());
        stage.change(self.at, |pages| {
            self.fill(pid, pages, &parts).context(|| format!("reading memory of process {pid}"))
        })
    }

    fn fill(&self, pid: Pid, pages: &mut Pages, parts: &[(u64, u64, u64)]) -> io::Result<()> {
        if !self.in_common {
            return pages.fill(pid, parts);
        }
        if parts.is_empty() {
            return Ok(());
        }
        pages.fill_from(File::open(format!("/proc/{pid}/mem"))?, parts)
    }
}

/// Whether devices may write to a process's memory, as they do for files that are open with
/// `O_DIRECT`. Pages that are lent to a device when they are marked are filled without a mark.
fn fills_by_device(pid: Pid) -> bool {
    let direct = |number| {
        FdInfo::read(pid, number).is_ok_and(|info| info.flags & OFlags::DIRECT.bits() != 0)
    };
    proc::numbers(pid, "fd").is_ok_and(|numbers| numbers.into_iter().any(direct))
}

/// When a process began, if it has much memory of its own.
fn large(pid: Pid) -> Option<u64> {
    let status = Status::read(pid).ok()?;
    (status.number("RssAnon") >= LARGE).then(|| Stat::read(pid).ok().map(|stat| stat.field(22)))?
}

fn is_eligible(mapping: &Mapping) -> bool {
    is_ordinary(mapping) && mapping.own() >= WORTH
}

/// Whether an area is as private memory is when nothing special was asked for.
pub(crate) fn is_plain(mapping: &Mapping) -> bool {
    is_ordinary(mapping) && !mirrored(mapping).contains(&true)
}

fn is_ordinary(mapping: &Mapping) -> bool {
    mapping.shows_anonymous()
        && mapping.permissions == PLAIN
        && mapping.protection_key == 0
        && !UNFIT.iter().any(|flag| mapping.flags.contains(flag))
}

fn mirrored(mapping: &Mapping) -> [bool; MIRRORED.len()] {
    MIRRORED.map(|(flag, _)| mapping.flags.contains(flag))
}

/// Has a process make what its writes are marked by.
fn mark(pid: Pid, tail: &Tail) -> Result<Marks> {
    let tree = Tree::stop(Scope::One(pid))?;
    let stopped = tree.processes().into_iter().next().filter(|stopped| !stopped.threads.is_empty());
    let stopped = stopped.ok_or_else(|| Error::Unsteady("a process is gone".to_owned()))?;
    let no_vdso = || Error::Unsteady("a process has no vDSO".to_owned());
    let vdso = tail.vdso(&proc::places(pid)?).ok_or_else(no_vdso)?;
    tail.check_unused(vdso, &stopped.threads)?;
    let mut hand = Hand::new(&tree, tail, pid, vdso, 4096, (0, b""))?;
    let call = Op::call(libc::SYS_userfaultfd, [u64::from(userfault::FLAGS), 0, 0, 0, 0, 0]);
    let made = hand.ask_for_descriptor(pid, call);
    let closed = hand.close();
    drop(tree);
    closed?;
    Marks::new(made?).context(|| "UFFDIO_API".to_owned())
}

fn ends(range: &PageRange) -> (u64, u64) {
    (range.start, range.end)
}

/// What of these ranges is in none of `others`, which are in order.
fn without(ranges: impl Iterator<Item = (u64, u64)>, others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for (mut start, end) in ranges {
        let first = others.partition_point(|other| other.1 <= start);
        for other in others.iter().skip(first).take_while(|other| other.0 < end) {
            if start < other.0 {
                left.push((start, other.0));
            }
            start = start.max(other.1);
        }
        if start < end {
            left.push((start, end));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn without_leaves_what_is_in_none_of_the_others(
            ranges in ranges(), others in ranges(),
        ) {
            let points = |ranges: &[(u64, u64)]| -> BTreeSet<u64> {
                ranges.iter().flat_map(|&(start, end)| start..end).collect()
            };
            let left = without(ranges.iter().copied(), &others);
            let wanted: BTreeSet<u64> =
                points(&ranges).difference(&points(&others)).copied().collect();
            prop_assert_eq!(points(&left), wanted);
            prop_assert!(left.iter().all(|(start, end)| start < end));
        }
    }

    /// Ranges in order that do not touch.
    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((1_u64..20, 1_u64..20), 0..20).prop_map(|steps| {
            let mut at = 0;
            let range = |(gap, length)| {
                let start = at + gap;
                at = start + length;
                (start, at)
            };
            steps.into_iter().map(range).collect()
        })
    }
}
