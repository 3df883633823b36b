//! Threads: what each has for itself, and what it was doing.

use super::{survives, survives_with};

#[test]
fn fork_keeps_threads_with_names_masks_and_local_storage() {
    for count in ["1", "5", "20", "64"] {
        survives_with("threads", &[], &["-e", &format!("THREADS={count}")]);
    }
}

#[test]
fn fork_keeps_vector_and_floating_point_registers() {
    survives("registers");
}

#[test]
fn blocked_threads_do_not_notice_a_fork() {
    survives("blocked");
}
