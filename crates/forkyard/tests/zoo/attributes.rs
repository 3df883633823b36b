//! What processes were told about themselves, and how they are scheduled.

use super::survives;

#[test]
fn fork_keeps_limits_scheduling_names_and_what_prctl_keeps() {
    survives("attributes");
}
