//! Waiting for what no event announces.

use std::time::{Duration, Instant};

/// First and longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(20));

/// Waits until `condition` holds; panics with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_some(what, limit, || condition().then_some(()));
}

/// Waits until `look` gives a value; panics with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_some<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    poll(limit, look).unwrap_or_else(|| panic!("waited {limit:?} in vain for {what}"))
}

/// Waits until `look` gives a value, `None` when it does not within `limit`; looks at least once,
/// and once more after the time is up.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let (mut pause, longest) = PAUSES;
    loop {
        let last = Instant::now() >= end;
        if let Some(value) = look() {
            return Some(value);
        }
        if last {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_until_the_condition_holds() {
        let mut looks = 0;
        let got = wait_some("five looks", Duration::from_secs(10), || {
            looks += 1;
            (looks == 5).then_some("there")
        });
        assert_eq!((got, looks), ("there", 5));
    }

    #[test]
    #[should_panic(expected = "in vain for the impossible")]
    fn says_what_was_waited_for() {
        wait_for("the impossible", Duration::from_millis(2), || false);
    }

    #[test]
    fn no_time_is_enough_for_one_look() {
        assert_eq!(poll(Duration::ZERO, || Some(7)), Some(7));
        assert_eq!(poll(Duration::ZERO, || None::<u8>), None);
    }
}
