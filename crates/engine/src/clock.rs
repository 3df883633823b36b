//! Times and the ids made from them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::SandboxId;

/// Milliseconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A number that this process has not given before, and another has hardly.
pub(crate) fn unique() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let next = |last: u64| Some(now.max(last + 1));
    match LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
        Ok(last) | Err(last) => now.max(last + 1),
    }
}

impl SandboxId {
    /// A new id, after all that this process has made: the time in units of 2^14 ns in base 36,
    /// which lasts to the year 4400, so that ids sort by age.
    pub(crate) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = unique() >> 14;
        let next = |last: u64| Some(now.max(last + 1));
        let mut rest = match LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        };
        let mut text = [b'0'; Self::LEN];
        for place in text.iter_mut().rev() {
            let digit = (rest % 36) as u8;
            *place = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
            rest /= 36;
        }
        Self(text.iter().map(|&b| char::from(b)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_valid_unique_and_sorted_by_age() {
        let ids: Vec<_> = (0..1000).map(|_| SandboxId::new()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        for id in ids {
            assert_eq!(id.as_str().parse(), Ok(id.clone()));
        }
    }
}
