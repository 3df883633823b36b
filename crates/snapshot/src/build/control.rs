//! The page by which init and the processes being built know how far the others are.

use std::io;
use std::time::{Duration, Instant};

use forkyard_sys::memory::Pages;

use super::PATIENCE;
use crate::error::{Context, Error, Result};

/// How far all processes are, one after the other: each counts itself in at a step, and goes on
/// when init, who alone is woken by that, opens the next one. Woken by each other, a thousand would
/// wake a million times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// It has forked its children.
    Forked = 1,
    /// It is in its group, unless it leaves one that it led.
    Grouped,
    /// It is in its group, and the foreground is what it was.
    Settled,
}

impl Step {
    /// Where those who have come to it are counted.
    fn count(self) -> u64 {
        match self {
            Self::Forked => FORKED,
            Self::Grouped => GROUPED,
            Self::Settled => SETTLED,
        }
    }
}

/// Offsets of words in the control page.
const FORKED: u64 = 0;
const GROUPED: u64 = 4;
pub(super) const READY: u64 = 8;
pub(super) const GO: u64 = 12;
pub(super) const LEFT: u64 = 16;
const SETTLED: u64 = 20;
/// Who has seen that its children which are zombies have ended.
pub(super) const ENDED: u64 = 24;
pub(super) const STOP: u64 = 28;
/// The last [`Step`] that all have come to.
const OPEN: u64 = 32;
/// The stub's three words when a call fails.
pub(super) const FAILED_CALL: u64 = 64;
/// Length of a message, then the message.
const MESSAGE: u64 = 128;
const LENGTH: u64 = 4096;

/// A page that init and all processes being built share.
pub(super) struct Control {
    pages: Pages,
}

impl Control {
    pub(super) fn new(at: u64) -> Result<Self> {
        let pages = Pages::map_shared(at, LENGTH).context(|| "mapping a shared page".to_owned())?;
        Ok(Self { pages })
    }

    pub(super) fn address(&self, offset: u64) -> u64 {
        self.pages.start() + offset
    }

    /// Sets a word, and wakes all who wait for it.
    pub(super) fn open(&self, offset: u64) {
        self.pages.store_and_wake(offset, 1);
    }

    /// Counts this process in, and tells the others who wait for that.
    pub(super) fn count(&self, offset: u64) {
        self.pages.add_and_wake(offset, 1);
    }

    /// Counts this process in at a step, and waits until all have come to it.
    pub(super) fn arrive(&self, step: Step) -> Result<()> {
        self.count(step.count());
        self.await_count(OPEN, step as u32)
    }

    /// In init: lets all go on once so many have come to a step.
    pub(super) fn let_pass(&self, step: Step, all: u32) -> Result<()> {
        self.await_all(step.count(), all)?;
        self.pages.store_and_wake(OPEN, step as u32);
        Ok(())
    }

    /// Waits until so many have been counted.
    pub(super) fn await_count(&self, offset: u64, all: u32) -> Result<()> {
        /// Only who fails at this very moment is not told of by a change of the word.
        const LONG: Duration = Duration::from_secs(1);
        let end = Instant::now() + PATIENCE;
        loop {
            let here = self.pages.load(offset);
            if Instant::now() > end || self.pages.load(MESSAGE) != 0 {
                return Err(Error::Unsteady("another process was not built".to_owned()));
            }
            if here >= all {
                return Ok(());
            }
            self.pages.wait_while(offset, here, LONG);
        }
    }

    /// In init: waits until so many processes have counted themselves in.
    pub(super) fn await_all(&self, offset: u64, wanted: u32) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.failure() {
                return Err(Error::Failed { what: message, source: io::ErrorKind::Other.into() });
            }
            let here = self.pages.load(offset);
            if here == wanted {
                return Ok(());
            }
            if Instant::now() > end {
                let what = format!("building: {here} of {wanted} processes are there");
                return Err(Error::Failed { what, source: io::ErrorKind::TimedOut.into() });
            }
            self.pages.wait_while(offset, here, Duration::from_millis(5));
        }
    }

    /// Says why this process could not be built: the first to say so is heard.
    pub(super) fn fail(&self, message: &str) {
        let bytes: Vec<u8> = message.bytes().take((LENGTH - MESSAGE) as usize / 4 - 1).collect();
        if self.pages.load(MESSAGE) == 0 {
            for (n, byte) in bytes.iter().enumerate() {
                self.pages.store_and_wake(MESSAGE + 4 + 4 * n as u64, u32::from(*byte));
            }
            self.pages.store_and_wake(MESSAGE, bytes.len() as u32);
        }
        // All who wait see it now: init, and those who wait for it or each other.
        for word in [READY, OPEN, LEFT] {
            self.pages.add_and_wake(word, 1 << 30);
        }
    }

    /// What failed, if anything did.
    fn failure(&self) -> Option<String> {
        let word = |offset| u64::from(self.pages.load(offset));
        let length = word(MESSAGE);
        if length != 0 {
            let bytes = (0..length).map(|n| word(MESSAGE + 4 + 4 * n) as u8).collect();
            return String::from_utf8(bytes).ok();
        }
        let result = word(FAILED_CALL + 8) as u32;
        if result == 0 {
            return None;
        }
        let error = io::Error::from_raw_os_error(-result.cast_signed());
        let (call, pid) = (word(FAILED_CALL), word(FAILED_CALL + 16));
        Some(format!("building process {pid}: system call {call}: {error}"))
    }
}
