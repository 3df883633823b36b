//! What a mirror has of its area beside contents.

use forkyard_sys::memory::Pages;

use crate::error::{Context, Result};

/// Advice that a mapping keeps, by its flag in `VmFlags`.
pub(crate) const ADVICE: [(&[u8; 2], i32); 5] = [
    (b"mg", libc::MADV_MERGEABLE),
    (b"wf", libc::MADV_WIPEONFORK),
    (b"hg", libc::MADV_HUGEPAGE),
    (b"nh", libc::MADV_NOHUGEPAGE),
    (b"dd", libc::MADV_DONTDUMP),
];

/// Gives a mirror whose contents are there the advice and the protection of its area: `flags` as
/// `VmFlags` of /proc/PID/smaps has them.
pub(crate) fn dress(mirror: &mut Pages, flags: &[[u8; 2]], protection: u32) -> Result<()> {
    let (at, length) = (mirror.start(), mirror.length());
    for (flag, advice) in ADVICE {
        if flags.contains(flag) {
            mirror.advise(at, length, advice).context(|| "madvise".to_owned())?;
        }
    }
    mirror.protect(protection).context(|| "mprotect".to_owned())
}
