//! Times, sizes and shares as people say them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A moment relative to `now`, both in milliseconds: `3 minutes ago`, `in 2 hours`.
pub(crate) fn age(now: u64, at: u64) -> String {
    if now.abs_diff(at) < 1000 {
        return "now".to_owned();
    }
    let span = duration(now.abs_diff(at));
    if at > now { format!("in {span}") } else { format!("{span} ago") }
}

/// A length of time in milliseconds, by its largest unit: `5 seconds`, `2 days`.
pub(crate) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (count, unit) = match seconds {
        0 => (milliseconds, "millisecond"),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        _ => (seconds / 604_800, "week"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

/// A moment in UTC: `2026-01-31 12:30:05Z`.
pub(crate) fn time(at: u64) -> String {
    let (days, rest) = (at / 86_400_000, at / 1000 % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar. Counted
/// from a 1 March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day - (153 * shifted + 2) / 5 + 1)
}

/// Bytes in powers of 1024: `512 MiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // What would be rounded to 1024 belongs to the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let tenths = (value * 10.0).round() / 10.0;
    let digits = usize::from(tenths < 10.0 && tenths.fract() > 0.0);
    format!("{value:.digits$} {unit}")
}

/// The first `width` characters of a text, the last of them an ellipsis where it is longer.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A share of one processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percent {
    /// Processor time spent, in microseconds.
    pub(crate) spent_us: u64,
    /// In this long, in milliseconds.
    pub(crate) over_ms: u64,
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = self.spent_us as f64 / 10.0 / self.over_ms.max(1) as f64;
        write!(f, "{share:.1}%")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ages_have_one_unit() {
        let now = 10_000_000_000;
        let cases = [
            (now, "now"),
            (now - 1000, "1 second ago"),
            (now - 59_999, "59 seconds ago"),
            (now - 60_000, "1 minute ago"),
            (now + 7_200_000, "in 2 hours"),
            (now - 3 * 86_400_000, "3 days ago"),
            (now - 20 * 86_400_000, "2 weeks ago"),
        ];
        for (at, text) in cases {
            assert_eq!(age(now, at), text);
        }
    }

    #[test]
    fn sizes_have_two_digits_at_least_where_it_matters() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (512 << 20, "512 MiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn moments_are_in_the_gregorian_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00Z");
        assert_eq!(time(951_827_696_000), "2000-02-29 12:34:56Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn a_cut_text_says_so() {
        assert_eq!(cut("äbc", 3), "äbc");
        assert_eq!(cut("äbcd", 3), "äb…");
    }

    #[test]
    fn half_a_processor_is_fifty_percent() {
        assert_eq!(Percent { spent_us: 500_000, over_ms: 1000 }.to_string(), "50.0%");
    }

    proptest! {
        #[test]
        fn sizes_keep_their_magnitude(bytes in 1024_u64..) {
            let text = size(bytes);
            let (number, _) = text.split_once(' ').unwrap();
            let number: f64 = number.parse().unwrap();
            prop_assert!((1.0..1024.0).contains(&number), "{}", text);
        }
    }
}
