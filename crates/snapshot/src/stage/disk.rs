//! A stage on its way to disk and back.
//!
//! Another process finds other addresses free. All mirrors keep their distances to each other, so
//! that one number moves all that a picture says of them.

use std::fs::File;
use std::io;

use forkyard_sys::memory::{HUGE, Pages};
use forkyard_sys::remote::{PageScan, page, scan_pages};
use serde::{Deserialize, Serialize};

use super::{Stage, no_room};
use crate::error::{Context, Result};
use crate::picture::{AreaKind, Body, Picture};

/// Where mirrors were, and which of their pages hold something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The first address of all mirrors, a multiple of 2 MiB.
    pub(crate) first: u64,
    /// Behind the last.
    pub(crate) last: u64,
    /// The first address of the room for memory that processes share.
    pub(crate) shared: u64,
    /// Its length.
    pub(crate) shared_length: u64,
    /// The mirrors.
    pub(crate) mirrors: Vec<Mirror>,
}

/// A mirror, see [`Stage`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mirror {
    /// First address.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// Ranges that hold something: first address and length, in the order in which they lie on
    /// disk.
    pub(crate) filled: Vec<(u64, u64)>,
}

/// How far addresses have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    /// Of mirrors.
    pub(crate) mirrors: u64,
    /// Of shared memory.
    pub(crate) shared: u64,
}

impl Stage {
    /// Looks which pages hold something. What was marked with `MADV_WIPEONFORK` has none: no clone
    /// would see it.
    pub(crate) fn plan(&self, picture: &Picture) -> Result<Plan> {
        let pagemap = File::open("/proc/self/pagemap").context(|| "opening pagemap".to_owned())?;
        let wiped = wiped(picture);
        let mut mirrors = Vec::new();
        for pages in self.kept.borrow().iter() {
            let (start, length) = (pages.start(), pages.length());
            let filled = if wiped.contains(&start) {
                Vec::new()
            } else {
                let scan = PageScan {
                    inverted: page::ZERO,
                    all_of: page::ZERO,
                    any_of: page::PRESENT | page::SWAPPED,
                    ..PageScan::default()
                };
                let ranges = scan_pages(&pagemap, start, start + length, scan);
                let ranges = ranges.context(|| "PAGEMAP_SCAN".to_owned())?;
                ranges.into_iter().map(|range| (range.start, range.end - range.start)).collect()
            };
            mirrors.push(Mirror { start, length, filled });
        }
        let starts = mirrors.iter().map(|mirror| mirror.start);
        let first = starts.chain(firsts(picture)).min().unwrap_or(self.next);
        let first = first - first % HUGE;
        Ok(Plan {
            first,
            last: self.next,
            shared: self.end,
            shared_length: self.work - self.end,
            mirrors,
        })
    }

    /// Writes a range of the mirror of this number in what [`Self::plan`] gave to a file.
    pub(crate) fn write_range(
        &self,
        mirror: usize,
        (at, length): (u64, u64),
        file: &File,
        offset: u64,
    ) -> io::Result<()> {
        let kept = self.kept.borrow();
        let pages = kept.get(mirror).ok_or(io::ErrorKind::NotFound)?;
        pages.write_to(at, length, file, offset)
    }

    /// Lets every mirror be read, whatever protection it had: no clone is to be made from this
    /// stage any more.
    pub(crate) fn open(&self) -> io::Result<()> {
        self.kept.borrow().iter().try_for_each(|pages| pages.protect(libc::PROT_READ as u32))
    }

    /// Finds room for what was planned elsewhere, where neither this process nor the picture's has
    /// anything.
    pub(crate) fn again(plan: &Plan, mut used: Vec<(u64, u64)>, picture: &Picture) -> Result<Self> {
        for process in &picture.processes {
            if let Body::Alive(alive) = &process.body {
                used.extend(alive.memory.areas.iter().map(|area| (area.start, area.end)));
            }
        }
        let mut stage = Self::find(used)?;
        stage.set_aside(plan.shared_length)?;
        let span = plan.last - plan.first;
        if stage.end - stage.next < span {
            return Err(no_room(span));
        }
        Ok(stage)
    }

    /// How far this one is from where it was planned.
    pub(crate) fn shift(&self, plan: &Plan) -> Shift {
        Shift {
            mirrors: self.next.wrapping_sub(plan.first),
            shared: self.end.wrapping_sub(plan.shared),
        }
    }

    /// Maps a planned mirror.
    pub(crate) fn map_again(start: u64, length: u64, grows_down: bool) -> Result<Pages> {
        Pages::map(start, length, grows_down).context(|| format!("mapping {length} bytes"))
    }

    /// All mirrors are mapped.
    pub(crate) fn close(&mut self, plan: &Plan) {
        self.next = self.next.wrapping_add(plan.last.wrapping_sub(plan.first));
    }
}

/// Where mirrors of areas begin that no clone sees the contents of.
fn wiped(picture: &Picture) -> Vec<u64> {
    let alive = picture.processes.iter().filter_map(|process| match &process.body {
        Body::Alive(alive) => Some(alive),
        Body::Zombie(_) => None,
    });
    let areas = alive.flat_map(|alive| &alive.memory.areas);
    let staged = areas.filter_map(|area| match area.kind {
        AreaKind::Anonymous { staged } if area.flags.contains(b"wf") => staged,
        _ => None,
    });
    staged.collect()
}

/// Where the mirrors of each process begin.
fn firsts(picture: &Picture) -> impl Iterator<Item = u64> {
    picture.processes.iter().filter_map(|process| match &process.body {
        Body::Alive(alive) => Some(alive.memory.staged.0),
        Body::Zombie(_) => None,
    })
}
