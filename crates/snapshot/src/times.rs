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
    /// When the source stopped.
    #[serde(skip)]
    stop: Option<Instant>,
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
        self.last = Some(Instant::now());
    }

    /// A part is over.
    pub fn mark(&mut self, part: &str) {
        let now = Instant::now();
        let since = self.last.replace(now).unwrap_or(now);
        self.parts.push((part.to_owned(), now - since));
    }

    /// The source is being stopped.
    pub(crate) fn stop(&mut self) {
        self.stop = Some(Instant::now());
    }

    /// How long it has been stopped.
    pub(crate) fn since_stop(&self) -> Duration {
        self.stop.map(|stop| stop.elapsed()).unwrap_or_default()
    }

    /// It goes on, after it had stood still for some time before.
    pub(crate) fn stopped(&mut self, before: Duration) {
        self.mark("release");
        self.stopped = before + self.since_stop();
    }
}
