//! What a process or thread may have been told by prctl(2) and its like.

use forkyard_sys::schedule;
use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::picture::ThreadAttributes;
use crate::proc::Status;

/// What of a thread's attributes can be seen from outside; `tsc` is what it says itself.
pub(super) fn thread(tid: Pid, status: &Status, tsc: u32) -> Result<ThreadAttributes> {
    let io_priority = schedule::io_priority(tid).context(|| format!("ioprio_get of {tid}"))?;
    Ok(ThreadAttributes { io_priority, tsc, speculation: speculation(status) })
}

/// What it asked for that it would not have otherwise: `PR_SPEC_*`, by what the kernel calls it.
fn speculation(status: &Status) -> [u32; 2] {
    const DISABLE: u32 = 4;
    const FORCE_DISABLE: u32 = 8;
    ["Speculation_Store_Bypass", "SpeculationIndirectBranch"].map(|name| {
        let words: Vec<&str> = status.words(name).collect();
        match words.as_slice() {
            ["thread", "force", "mitigated"] | ["conditional", "force", "disabled"] => {
                FORCE_DISABLE
            }
            ["thread", "mitigated"] | ["conditional", "disabled"] => DISABLE,
            _ => 0,
        }
    })
}
