//! Which pages of a process hold something.

use std::fs::File;
use std::sync::OnceLock;

use forkyard_sys::memory::ADDRESSES_END;
use forkyard_sys::remote::{PageRange, PageScan, page, scan_pages};
use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::proc::Mapping;

/// What to look for among pages that hold something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    /// They are none of these.
    pub(crate) not: u64,
    /// They are all of these.
    pub(crate) only: u64,
    /// These are told.
    pub(crate) report: u64,
    /// Their next write is marked again.
    pub(crate) protect: bool,
}

/// Ranges of pages that hold something: neither zero pages nor guards.
pub(crate) fn filled(
    pagemap: &File,
    (start, end): (u64, u64),
    search: Filled,
) -> Result<Vec<PageRange>> {
    let not = page::ZERO | if tells_guards() { page::GUARD } else { 0 } | search.not;
    let scan = PageScan {
        inverted: not,
        all_of: not | search.only,
        any_of: page::PRESENT | page::SWAPPED,
        report: search.report,
        protect: search.protect,
    };
    scan_pages(pagemap, start, end, scan).context(|| "PAGEMAP_SCAN".to_owned())
}

/// What a stopped process has of its own, of all its memory at once: private pages that are no
/// file's, and guards.
#[derive(Debug)]
pub(crate) struct Own {
    pages: Vec<PageRange>,
    guards: Vec<PageRange>,
}

impl Own {
    /// Pages are told whether they were written.
    pub(crate) fn read(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(&path).context(|| format!("opening {path}"))?;
        let all = (0, ADDRESSES_END);
        let search = Filled { not: page::FILE, report: page::WRITTEN, ..Filled::default() };
        let pages = filled(&pagemap, all, search)?;
        let guards = if tells_guards() {
            let scan = PageScan { all_of: page::GUARD, ..PageScan::default() };
            scan_pages(&pagemap, all.0, all.1, scan).context(|| "PAGEMAP_SCAN".to_owned())?
        } else {
            Vec::new()
        };
        Ok(Self { pages, guards })
    }

    /// The pages of a mapping.
    pub(crate) fn pages(&self, mapping: &Mapping) -> Vec<PageRange> {
        within(&self.pages, mapping)
    }

    /// Its guards. They have page tables, and so does what was ever used.
    pub(crate) fn guards(&self, mapping: &Mapping) -> Vec<PageRange> {
        within(&self.guards, mapping)
    }
}

fn within(ranges: &[PageRange], mapping: &Mapping) -> Vec<PageRange> {
    let first = ranges.partition_point(|range| range.end <= mapping.start);
    let inside = ranges.iter().skip(first).take_while(|range| range.start < mapping.end);
    let cut = |range: &PageRange| PageRange {
        start: range.start.max(mapping.start),
        end: range.end.min(mapping.end),
        ..*range
    };
    inside.map(cut).collect()
}

/// Whether this kernel tells where guard pages are.
pub(crate) fn tells_guards() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    let ask = || {
        let scan = PageScan { all_of: page::GUARD, ..PageScan::default() };
        File::open("/proc/self/pagemap")
            .is_ok_and(|pagemap| scan_pages(&pagemap, 0x1000, 0x2000, scan).is_ok())
    };
    *TELLS.get_or_init(ask)
}
