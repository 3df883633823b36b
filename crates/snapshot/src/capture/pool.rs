//! What small areas hold, read at once into one mirror.
//!
//! A process has a hundred areas with some pages each. Each fork on a clone's way would copy a
//! mirror of every one; and it is the calls, not the bytes, that take the time to read them.

use forkyard_sys::memory::Pages;
use rustix::process::Pid;

use super::reader::{Parts, Reader};
use crate::ahead::is_plain;
use crate::error::{Context, Result};
use crate::filled::Own;
use crate::proc::Mapping;
use crate::stage::{Small, Stage};

/// Areas with more than this, in KiB, have a mirror of their own: it may get huge pages.
const MOST: u64 = 2048;

/// A mirror that is planned: what is read where.
pub(super) struct Pool {
    start: u64,
    next: u64,
    parts: Parts,
}

impl Pool {
    /// Sets room aside for all of a process's areas that may be in it.
    pub(super) fn plan(stage: &mut Stage, mappings: &[Mapping], own: &Own) -> Result<Self> {
        let length = |mapping: &Mapping| match mapping {
            area if takes_area(area) => area.end - area.start,
            file if takes_changes(file) => {
                own.pages(file).iter().map(|range| range.end - range.start).sum::<u64>()
            }
            _ => 0,
        };
        let most = mappings.iter().map(length).fold(0, u64::saturating_add);
        let start = if most > 0 { stage.beside(Small::Pool, most)? } else { 0 };
        Ok(Self { start, next: start, parts: Vec::new() })
    }

    /// Has a whole area read, and gives where it will be.
    pub(super) fn area(&mut self, mapping: &Mapping, filled: &[(u64, u64)]) -> u64 {
        let at = self.next;
        self.next += mapping.end - mapping.start;
        let part = |&(start, end): &(u64, u64)| (start, start - mapping.start + at, end - start);
        self.parts.extend(filled.iter().map(part));
        at
    }

    /// Has some pages of an area read, one behind the other; gives where each range will be.
    pub(super) fn changes(&mut self, ranges: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let place = |&(start, end): &(u64, u64)| {
            let at = self.next;
            self.next += end - start;
            self.parts.push((start, at, end - start));
            (start, end - start, at)
        };
        ranges.iter().map(place).collect()
    }

    /// Has all of it read.
    pub(super) fn read(self, pid: Pid, stage: &mut Stage, reader: &mut Reader) -> Result<()> {
        if self.next == self.start {
            return Ok(());
        }
        let pages = Pages::map(self.start, self.next - self.start, false)
            .context(|| format!("mapping {} bytes", self.next - self.start))?;
        stage.use_up(Small::Pool, self.next);
        stage.count(self.parts.iter().map(|(.., length)| length).sum());
        reader.fill(pid, pages, self.parts);
        Ok(())
    }
}

/// Whether an area of anonymous memory goes into the pool: one that is as the pool's memory is, and
/// is read as that is.
pub(super) fn takes_area(mapping: &Mapping) -> bool {
    is_plain(mapping) && mapping.own() < MOST && !mapping.is_in_common()
}

/// Whether what was changed of a mapped file does.
pub(super) fn takes_changes(mapping: &Mapping) -> bool {
    mapping.permissions.first() == Some(&b'r') && mapping.inode != 0 && mapping.own() < MOST
}
