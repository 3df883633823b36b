//! POSIX timers, see `timer_create`(2).

use serde::{Deserialize, Serialize};

/// A timer of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// What the program calls it.
    pub id: u32,
    /// `CLOCK_*`, or a clock of a process or thread.
    pub clock: i32,
    /// `SIGEV_*`
    pub notify: i32,
    /// The signal.
    pub signal: i32,
    /// What the signal brings.
    pub value: u64,
    /// The thread that gets it, by its id inside, for `SIGEV_THREAD_ID`.
    pub thread: u32,
    /// Interval and rest, as `struct itimerspec`.
    pub time: [u64; 4],
}
