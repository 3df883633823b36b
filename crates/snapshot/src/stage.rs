//! Where the memory of a picture waits: in this process, at addresses that are free in all.
//!
//! Each area with contents has a mirror of the same length, with the same protection; that of a
//! large one is congruent with it modulo 2 MiB. Small ones lie side by side, so that the kernel
//! takes them for one mapping: each fork on a clone's way would copy every single one. A clone
//! inherits the mirrors by fork and moves them to where they belong, so that all clones share their
//! pages until they write to them.

mod disk;
mod dress;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use forkyard_sys::memory::{ADDRESSES_END, HUGE, Pages};

use crate::error::{Context, Error, Result, unreadable};

pub(crate) use disk::{Plan, Shift};
pub(crate) use dress::{ADVICE, dress};

/// The lowest address that is used: programs at fixed addresses begin below.
const LOWEST: u64 = 0x1_0000_0000;

/// Room that is left free at the end, for what builds the clones.
const WORK_ROOM: u64 = 1 << 30;

/// Room for small mirrors of a kind.
const BLOCK: u64 = 32 * 1024 * 1024;

/// Small mirrors that lie side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Small {
    /// Of several areas of a process each.
    Pool,
    /// Of one area each.
    Area,
    /// Of one stack each.
    Stack,
}

/// From the room for building to where each process keeps its program.
const PROGRAM: u64 = 1024 * 1024;

/// A range of addresses that no process of the picture uses.
#[derive(Debug, Default)]
pub struct Stage {
    start: u64,
    next: u64,
    end: u64,
    work: u64,
    /// What is left of a block for small mirrors of each kind.
    blocks: [(u64, u64); 3],
    /// What is mapped, until it is let go.
    kept: RefCell<Vec<Pages>>,
    filled: Cell<u64>,
}

impl Stage {
    /// Takes the inner half of the largest gap between these ranges: what grows meanwhile does so
    /// at their ends.
    pub(crate) fn find(mut used: Vec<(u64, u64)>) -> Result<Self> {
        used.push((0, LOWEST));
        used.push((ADDRESSES_END, u64::MAX));
        used.sort_unstable();
        let mut behind = 0;
        let mut best = (0, 0);
        for (start, end) in used {
            if start > behind && start - behind > best.1 - best.0 {
                best = (behind, start);
            }
            behind = behind.max(end);
        }
        let margin = (best.1 - best.0) / 4;
        let start = (best.0 + margin).next_multiple_of(HUGE);
        let end = (best.1 - margin) / HUGE * HUGE;
        if end.saturating_sub(start) < 2 * WORK_ROOM {
            return Err(no_room(2 * WORK_ROOM));
        }
        let work = end - WORK_ROOM;
        Ok(Self { start, next: start, end: work, work, ..Self::default() })
    }

    /// Whether a range was found.
    pub(crate) fn is_found(&self) -> bool {
        self.start != 0
    }

    /// Whether none of these ranges is in it.
    pub(crate) fn is_clear_of(&self, used: &[(u64, u64)]) -> bool {
        let end = self.work + WORK_ROOM;
        used.iter().all(|&(first, behind)| behind <= self.start || end <= first)
    }

    /// Sets room aside for memory that the processes of a clone share: a multiple of 2 MiB.
    pub(crate) fn set_aside(&mut self, shared: u64) -> Result<()> {
        match self.work.checked_sub(shared).filter(|end| *end >= self.next) {
            Some(end) => self.end = end,
            None => return Err(no_room(shared)),
        }
        Ok(())
    }

    /// Finds room for a small mirror, beside those before it. As much of it is used as
    /// [`Self::use_up`] is told.
    pub(crate) fn beside(&mut self, kind: Small, length: u64) -> Result<u64> {
        let (next, end) = *self.block(kind);
        if end - next >= length {
            return Ok(next);
        }
        let length = length.max(BLOCK);
        let start = self.reserve(length)?;
        *self.block(kind) = (start, start + length);
        Ok(start)
    }

    /// Uses what was found by [`Self::beside`] up to here.
    pub(crate) fn use_up(&mut self, kind: Small, end: u64) {
        self.block(kind).0 = end;
    }

    fn block(&mut self, kind: Small) -> &mut (u64, u64) {
        let [pools, areas, stacks] = &mut self.blocks;
        match kind {
            Small::Pool => pools,
            Small::Area => areas,
            Small::Stack => stacks,
        }
    }

    /// Sets room aside for a mirror that is mapped later.
    fn reserve(&mut self, length: u64) -> Result<u64> {
        let at = self.next.next_multiple_of(HUGE);
        let end = at.checked_add(length).and_then(|end| end.checked_next_multiple_of(HUGE));
        match end.filter(|end| end + HUGE <= self.end) {
            Some(end) => self.next = end + HUGE,
            None => return Err(no_room(length)),
        }
        Ok(at)
    }

    /// Makes a mirror of an area.
    pub(crate) fn mirror(&mut self, start: u64, length: u64, grows_down: bool) -> Result<Pages> {
        if length < HUGE {
            let kind = if grows_down { Small::Stack } else { Small::Area };
            let at = self.beside(kind, length)?;
            self.use_up(kind, at + length);
            return map(at, length, grows_down);
        }
        let at = self.next.next_multiple_of(HUGE) + start % HUGE;
        // A stack keeps its distance from what lies below.
        let end = (at + length).next_multiple_of(HUGE) + HUGE;
        if end > self.end {
            return Err(no_room(length));
        }
        self.next = end;
        map(at, length, grows_down)
    }

    /// Finds room for something that is unmapped again before the next mirror is made.
    pub(crate) fn room(&self, length: u64) -> Result<u64> {
        let at = self.next.next_multiple_of(HUGE) + HUGE;
        if at + length > self.end { Err(no_room(length)) } else { Ok(at) }
    }

    /// Keeps a mirror that holds this many bytes.
    pub(crate) fn keep(&self, pages: Pages, filled: u64) {
        self.kept.borrow_mut().push(pages);
        self.count(filled);
    }

    /// How many bytes were copied.
    pub fn filled(&self) -> u64 {
        self.filled.get()
    }

    /// Lets go of all memory, in a process that needs it no more.
    pub fn release(&self) -> io::Result<()> {
        self.kept.borrow_mut().drain(..).try_for_each(Pages::unmap)
    }

    /// From the first mirror to where the next will be, at least.
    pub(crate) fn mirrors(&self) -> (u64, u64) {
        (self.start, self.next)
    }

    /// The first address of the room for memory that processes share: up to [`Self::work`].
    pub(crate) fn shared(&self) -> u64 {
        self.end
    }

    /// Copies what is staged to other pages.
    pub(crate) fn copy_to(&self, pages: &mut Pages, at: u64, part: (u64, u64)) -> Result<()> {
        let (staged, length) = part;
        self.with(part, |from| pages.copy_from(at, from, staged, length))
    }

    /// Writes what is staged to a file.
    pub(crate) fn write_to(&self, file: impl AsFd, at: u64, part: (u64, u64)) -> Result<()> {
        let (staged, length) = part;
        self.with(part, |from| from.write_to(staged, length, file, at))
    }

    /// Changes the mirror that begins at an address.
    pub(crate) fn change<T>(
        &self,
        start: u64,
        work: impl FnOnce(&mut Pages) -> Result<T>,
    ) -> Result<T> {
        let mut kept = self.kept.borrow_mut();
        let pages = kept.iter_mut().find(|pages| pages.start() == start);
        work(pages.ok_or_else(|| unreadable("a picture: what is not staged"))?)
    }

    /// Lets go of all that the next picture does not use, and counts from nothing.
    pub(crate) fn resume(&self, starts: &BTreeSet<u64>) -> Result<()> {
        self.filled.set(0);
        self.keep_only(starts)
    }

    /// Lets go of all mirrors but those that begin at these addresses.
    pub(crate) fn keep_only(&self, starts: &BTreeSet<u64>) -> Result<()> {
        let mut kept = self.kept.borrow_mut();
        let mut gone = kept.extract_if(.., |pages| !starts.contains(&pages.start()));
        gone.try_for_each(Pages::unmap).context(|| "munmap".to_owned())
    }

    /// Lets go of the mirror that begins at an address.
    pub(crate) fn remove(&self, start: u64) {
        let mut kept = self.kept.borrow_mut();
        if let Some(at) = kept.iter().position(|pages| pages.start() == start) {
            // What cannot be unmapped is in nobody's way.
            let _ = kept.swap_remove(at).unmap();
        }
    }

    /// Counts bytes that were copied.
    pub(crate) fn count(&self, bytes: u64) {
        self.filled.set(self.filled.get() + bytes);
    }

    /// Where each process keeps the program that it is built by, which it cannot take away itself.
    pub fn program(&self) -> u64 {
        self.work + PROGRAM
    }

    fn with(
        &self,
        (staged, length): (u64, u64),
        work: impl FnOnce(&Pages) -> io::Result<()>,
    ) -> Result<()> {
        let kept = self.kept.borrow();
        let from = kept.iter().find(|pages| pages.holds(staged, length));
        let from = from.ok_or_else(|| unreadable("a picture: what is not staged"))?;
        work(from).context(|| "copying shared memory and files".to_owned())
    }

    /// The first address of the room that is left for building.
    pub(crate) fn work(&self) -> u64 {
        self.work
    }
}

fn map(at: u64, length: u64, grows_down: bool) -> Result<Pages> {
    Pages::map(at, length, grows_down).context(|| format!("mapping {length} bytes"))
}

fn no_room(length: u64) -> Error {
    let what = format!("looking for {length} free bytes of address space");
    Error::Failed { what, source: io::ErrorKind::OutOfMemory.into() }
}
