//! What a process or thread may have been told by prctl(2) and its like.

use serde::{Deserialize, Serialize};

/// Of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessAttributes {
    /// `/proc/PID/coredump_filter`
    pub core_filter: u32,
    /// What it registered for with membarrier(2), `MEMBARRIER_CMD_REGISTER_*`.
    pub barriers: u32,
    /// What of the processor's state it may use, a bit for each part: `ARCH_GET_XCOMP_PERM`.
    pub processor_state: u64,
}

/// Of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadAttributes {
    /// `ioprio_get`(2): 0 where it follows the nice value.
    pub io_priority: u32,
    /// `PR_GET_TSC`: 2 where reading the processor's clock is a fault.
    pub tsc: u32,
    /// `PR_SET_SPECULATION_CTRL` for store bypass and indirect branches: 0 where it is as the
    /// machine has it.
    pub speculation: [u32; 2],
}
