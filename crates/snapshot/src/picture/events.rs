//! What has no path and tells of events.

use serde::{Deserialize, Serialize};

/// An object behind a descriptor that something is waited for with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// eventfd(2)
    Counter {
        /// What it has counted.
        count: u64,
        /// `EFD_SEMAPHORE`
        semaphore: bool,
    },
    /// `timerfd_create`(2)
    Timer(Timer),
    /// signalfd(2): its mask.
    Signals(u64),
    /// `pidfd_open`(2): the process, or none where it is gone.
    Process(Option<u32>),
    /// inotify(7)
    Watches(Vec<Watch>),
    /// epoll(7)
    Poll(Vec<Entry>),
}

/// A timer that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// `CLOCK_*`
    pub clock: u32,
    /// Expirations that nobody has read.
    pub ticks: u64,
    /// `TFD_TIMER_*`, as it was set.
    pub flags: u32,
    /// What is left until it expires, or when it does with `TFD_TIMER_ABSTIME`: seconds and
    /// nanoseconds. Zero where it is not armed.
    pub value: (i64, i64),
    /// How often it expires from then on.
    pub interval: (i64, i64),
}

/// A watch of inotify's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its watch descriptor.
    pub number: i32,
    /// `IN_*`
    pub mask: u32,
    /// What is watched.
    pub path: Vec<u8>,
}

/// What an epoll descriptor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The descriptor's number when it was added. It may refer to something else by now.
    pub number: u32,
    /// Index into the picture's descriptions.
    pub description: usize,
    /// `EPOLL*`
    pub events: u32,
    /// What is told with an event.
    pub data: u64,
}
