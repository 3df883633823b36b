//! What a mirror has of its area beside contents.

use forkyard_sys::memory::Pages;

use crate::error::{Context, Result};
use crate::picture::Area;

impl Area {
    /// Gives a mirror of it, whose contents are there, advice and protection.
    pub(crate) fn dress(&self, mirror: &mut Pages) -> Result<()> {
        let (at, length) = (mirror.start(), mirror.length());
        for (flag, advice) in [
            (b"mg", libc::MADV_MERGEABLE),
            (b"wf", libc::MADV_WIPEONFORK),
            (b"hg", libc::MADV_HUGEPAGE),
            (b"nh", libc::MADV_NOHUGEPAGE),
            (b"dd", libc::MADV_DONTDUMP),
        ] {
            if self.flags.contains(flag) {
                mirror.advise(at, length, advice).context(|| "madvise".to_owned())?;
            }
        }
        mirror.protect(self.protection).context(|| "mprotect".to_owned())
    }
}
