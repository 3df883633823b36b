//! Timers.

use super::{survives, survives_with};

#[test]
fn fork_keeps_interval_and_posix_timers_with_their_ids_and_rest() {
    survives("timers");
}

#[test]
fn fork_keeps_a_timer_on_the_processor_time_of_the_only_thread() {
    survives_with("timers", &[], &["-e", "THREAD_CLOCK=1"]);
}
