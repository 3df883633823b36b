//! Which pages of a process hold something.

use std::fs::File;
use std::sync::OnceLock;

use forkyard_sys::remote::{PageRange, PageScan, page, scan_pages};

use crate::error::{Context, Result};

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
