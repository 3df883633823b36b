//! Signals: what they do, which wait, and those that come at the moment of the fork.

use super::survives;

#[test]
fn fork_keeps_signal_actions_and_signals_that_wait_with_values_and_order() {
    survives("signals");
}

#[test]
fn fork_keeps_threads_within_handlers_and_robust_futexes() {
    survives("handlers");
}

#[test]
fn signals_at_the_moment_of_a_fork_interrupt_whom_they_should() {
    survives("storm");
}
