//! Measured values and what is said of them.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Median and 95th percentile of a measurement, in its own unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) p95: f64,
    pub(super) count: usize,
}

impl Summary {
    /// Sums up values, in any order; nothing of none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = match (sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2))
        {
            (Some(low), Some(high)) => f64::midpoint(*low, *high),
            _ => return None,
        };
        // Nearest rank: the smallest value that 95 of 100 do not exceed.
        let rank = (sorted.len() * 95).div_ceil(100).max(1);
        let p95 = *sorted.get(rank - 1)?;
        Some(Self { median, p95, count: sorted.len() })
    }
}

/// Milliseconds of a time.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Does something and adds the milliseconds that it took.
pub(super) fn timed<T>(into: &mut Vec<f64>, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    into.push(milliseconds(start.elapsed()));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_count_has_its_median_between_the_middle_two() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.p95, summary.count), (2.5, 4.0, 4));
    }

    #[test]
    fn the_p95_of_a_hundred_is_the_ninety_fifth() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let p95 = |values: &[f64]| Summary::of(values).map(|summary| summary.p95);
        assert_eq!(p95(&values), Some(95.0));
        assert_eq!(p95(&[7.0]), Some(7.0));
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }
}
