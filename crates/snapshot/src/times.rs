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
    pub(crate) fn begin(&mut self) {
        let now = Instant::now();
        (self.begun, self.last) = (Some(now), Some(now));
    }

    pub(crate) fn mark(&mut self, part: &str) {
        let now = Instant::now();
        let since = self.last.replace(now).unwrap_or(now);
        self.parts.push((part.to_owned(), now - since));
    }

    pub(crate) fn stopped(&mut self) {
        self.mark("release");
        self.stopped = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
    }
}
