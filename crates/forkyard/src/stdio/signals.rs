//! Signals that are meant for the command rather than for us.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

const SIGINT: i32 = 2;

/// A second Ctrl-C within this time of the first ends the client.
const TWICE: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Send this one to the command.
    Pass(i32),
    /// Let go of the command.
    Leave,
    /// Tell the command the terminal's new size.
    Resize,
}

/// The signals that are waited for.
#[derive(Debug)]
pub(crate) struct Signals {
    passed: Vec<(i32, Signal)>,
    resized: Option<Signal>,
    interrupts: Interrupts,
}

impl Signals {
    /// Takes over SIGHUP, SIGINT, SIGQUIT and SIGTERM, and SIGWINCH for a command with a
    /// terminal. Those that our caller had ignored (`nohup`, `&` in a script) stay ignored.
    pub(crate) fn take(tty: bool) -> Result<Self, Error> {
        let ignored = ignored();
        let listen = |kind| signal(kind).map_err(|e| Error::io("sigaction", e));
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
        ];
        let mut passed = Vec::new();
        for kind in kinds {
            let number = kind.as_raw_value();
            if ignored & (1 << (number - 1)) == 0 {
                passed.push((number, listen(kind)?));
            }
        }
        let resized = if tty { Some(listen(SignalKind::window_change())?) } else { None };
        Ok(Self { passed, resized, interrupts: Interrupts::default() })
    }

    /// Waits for the next one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Asked {
        let number = poll_fn(|context| {
            if let Some(resized) = &mut self.resized
                && resized.poll_recv(context).is_ready()
            {
                return Poll::Ready(None);
            }
            for (number, signal) in &mut self.passed {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(Some(*number));
                }
            }
            Poll::Pending
        });
        match number.await {
            None => Asked::Resize,
            Some(SIGINT) if self.interrupts.is_second(Instant::now()) => Asked::Leave,
            Some(number) => Asked::Pass(number),
        }
    }
}

/// Tells one Ctrl-C from two.
#[derive(Debug, Default)]
struct Interrupts {
    last: Option<Instant>,
}

impl Interrupts {
    fn is_second(&mut self, now: Instant) -> bool {
        let before = self.last.replace(now);
        before.is_some_and(|before| now.duration_since(before) < TWICE)
    }
}

/// The set of signals that this process was started ignoring, as in `proc_pid_status(5)`.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quick_second_interrupt_leaves() {
        let start = Instant::now();
        let mut interrupts = Interrupts::default();
        assert!(!interrupts.is_second(start));
        assert!(!interrupts.is_second(start + Duration::from_millis(1001)));
        assert!(interrupts.is_second(start + Duration::from_millis(1500)));
    }

    #[test]
    fn sigpipe_is_seen_to_be_ignored() {
        // Rust's runtime ignores it before main.
        assert_ne!(ignored() & (1 << 12), 0);
    }
}
