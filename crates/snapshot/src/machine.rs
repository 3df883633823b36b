//! What is the same for all pictures that are taken on this machine.

use std::sync::OnceLock;

use forkyard_sys::{ptrace, userfault};

use crate::capture::memory_device;
use crate::error::Result;
use crate::filled::tells_guards;
use crate::inject::Tail;

/// Learned once, and inherited by forks.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) tail: Tail,
    /// The device of shared memory and memfds.
    pub(crate) memory_device: u64,
    /// The kernel marks by itself what is written.
    pub(crate) marks: bool,
    /// This process may use more processors than one.
    pub(crate) is_parallel: bool,
}

impl Machine {
    pub(crate) fn get() -> Result<&'static Self> {
        static MACHINE: OnceLock<Machine> = OnceLock::new();
        if let Some(known) = MACHINE.get() {
            return Ok(known);
        }
        let (tail, memory_device) = (Tail::find()?, memory_device()?);
        let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        let marks = userfault::is_offered();
        Ok(MACHINE.get_or_init(|| Self { tail, memory_device, marks, is_parallel: processors > 1 }))
    }
}

/// Learns what all pictures need that are taken by forks of this process, so that none of them does
/// while a sandbox stands still. To ask a virtual processor what it offers takes as long as ten
/// system calls, and memchr asks, too.
pub fn prepare() {
    // What cannot be known is asked again, and told, by who needs it.
    let _ = Machine::get();
    tells_guards();
    ptrace::part_ends();
    std::hint::black_box(memchr::memchr(b'\n', std::hint::black_box(&[0; 64])));
}
