//! What a process or thread was told by prctl(2) and its like.

use forkyard_sys::stub::Op;
use forkyard_sys::{process, ptrace};

use crate::error::{Context, Result};
use crate::picture::{Alive, ProcessAttributes, ThreadAttributes};

/// `ARCH_REQ_XCOMP_PERM` of asm/prctl.h.
const ASK_FOR_STATE: u64 = 0x1023;

const CORE_FILTER: &str = "/proc/self/coredump_filter";
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What files say of init, and so of all its forks at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited {
    core_filter: u32,
    oom_score: i32,
}

impl Inherited {
    /// Of this process.
    pub(super) fn read() -> Result<Self> {
        let read = |file: &str| {
            let text = std::fs::read_to_string(file).context(|| format!("reading {file}"))?;
            Ok(text.trim().to_owned())
        };
        Ok(Self {
            core_filter: u32::from_str_radix(&read(CORE_FILTER)?, 16).unwrap_or_default(),
            oom_score: read(OOM_SCORE)?.parse().unwrap_or_default(),
        })
    }
}

/// Of a process, what is told by files: by itself.
pub(super) fn write(alive: &Alive, inherited: Inherited) -> Result<()> {
    let core = alive.attributes.core_filter;
    let (core_differs, score_differs) =
        (core != inherited.core_filter, alive.oom_score != inherited.oom_score);
    if !core_differs && !score_differs {
        return Ok(());
    }
    // These files are nobody's in a sandbox as long as the process may not be looked at; and there
    // is nobody yet who could look.
    process::set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE".to_owned())?;
    if score_differs {
        // Without a right over the host it can only be raised.
        let _ = std::fs::write(OOM_SCORE, alive.oom_score.to_string());
    }
    if core_differs {
        std::fs::write(CORE_FILTER, format!("{core:#x}"))
            .context(|| format!("writing {CORE_FILTER}"))?;
    }
    process::set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE".to_owned())
}

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
pub(super) fn settle(alive: &Alive, ops: &mut Vec<Op>) {
    ops.push(prctl(libc::PR_SET_DUMPABLE, u64::from(alive.dumpable), 0));
    if alive.subreaper {
        ops.push(prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0));
    }
}

/// Of a process, before it has threads.
pub(super) fn begin(attributes: &ProcessAttributes, ops: &mut Vec<Op>) {
    for barrier in (0..32).map(|bit| 1 << bit).filter(|bit| attributes.barriers & bit != 0) {
        ops.push(Op::call(libc::SYS_membarrier, [barrier.into(), 0, 0, 0, 0, 0]).must());
    }
    // The one part that a process has to ask for.
    if attributes.processor_state & ptrace::TILES != 0 {
        let part = ptrace::TILES.trailing_zeros().into();
        ops.push(Op::call(libc::SYS_arch_prctl, [ASK_FOR_STATE, part, 0, 0, 0, 0]).must());
    }
}

fn prctl(what: i32, first: u64, second: u64) -> Op {
    Op::call(libc::SYS_prctl, [what as u64, first, second, 0, 0, 0])
}
