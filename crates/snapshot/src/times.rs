//! How long each part of a fork takes.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Parts of a fork, in order, each with its time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Times {
    /// How long the source could not run.
    pub stopped: Duration,
    /// What that went into.
    pub parts: Vec<(String, Duration)>,
    #[serde(skip)]
    begun: Option<Instant>,
    #[serde(skip)]
    last: Option<Instant>,
}

impl Times {
    /// Times that run.
    pub fn start() -> Self {
        let mut times = Self::default();
        times.begin();
        times
    }

    /// Names and microseconds.
    pub fn in_microseconds(&self) -> Vec<(String, u64)> {
        let part = |(name, time): &(String, Duration)| (name.clone(), time.as_micros() as u64);
        self.parts.iter().map(part).collect()
    }

    pub(crate) fn begin(&mut self) {
        let now = Instant::now();
        (self.begun, self.last) = (Some(now), Some(now));
    }

    /// A part is over.
    pub fn mark(&mut self, part: &str) {
        let now = Instant::now();
        let since = self.last.replace(now).unwrap_or(now);
        self.parts.push((part.to_owned(), now - since));
    }

    pub(crate) fn stopped(&mut self) {
        self.mark("release");
        self.stopped = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
    }
}
