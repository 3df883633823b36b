//! POSIX timers of other processes' making.

/// `PR_TIMER_CREATE_RESTORE_IDS` of prctl(2), Linux 6.15: with 1, `timer_create`(2) takes the id
/// from where it would put it.
pub const RESTORE_IDS: libc::c_int = 77;

/// Whether this kernel has [`RESTORE_IDS`].
pub fn can_restore_ids() -> bool {
    const GET: libc::c_ulong = 2;
    // SAFETY: no memory is passed, and nothing is changed.
    unsafe { libc::prctl(RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}
