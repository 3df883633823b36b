//! What a process or thread was told by prctl(2) and its like.

use forkyard_sys::stub::Op;

use crate::picture::{Alive, ThreadAttributes};

/// Of a thread, while it has init's rights.
pub(super) fn thread(attributes: &ThreadAttributes, ops: &mut Vec<Op>) {
    /// `IOPRIO_WHO_PROCESS`
    const PROCESS: u64 = 1;
    if attributes.io_priority != 0 {
        let priority = u64::from(attributes.io_priority);
        ops.push(Op::call(libc::SYS_ioprio_set, [PROCESS, 0, priority, 0, 0, 0]));
    }
    if attributes.tsc == libc::PR_TSC_SIGSEGV as u32 {
        ops.push(prctl(libc::PR_SET_TSC, u64::from(attributes.tsc), 0).must());
    }
    for (which, control) in (0_u64..).zip(attributes.speculation) {
        if control != 0 {
            ops.push(prctl(libc::PR_SET_SPECULATION_CTRL, which, u64::from(control)));
        }
    }
}

/// Of a process, when its memory is in place.
pub(super) fn process(alive: &Alive, ops: &mut Vec<Op>) {
    ops.push(prctl(libc::PR_SET_DUMPABLE, u64::from(alive.dumpable), 0));
    if alive.subreaper {
        ops.push(prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0));
    }
}

fn prctl(what: i32, first: u64, second: u64) -> Op {
    Op::call(libc::SYS_prctl, [what as u64, first, second, 0, 0, 0])
}
