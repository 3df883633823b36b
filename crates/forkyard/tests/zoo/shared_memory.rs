//! Memory that processes share.

use super::{refused, survives};

#[test]
fn fork_keeps_shared_anonymous_memory_shared_within_each_clone() {
    survives("shared_anonymous");
}

#[test]
fn fork_keeps_memfds_with_contents_seals_and_positions() {
    survives("memfd");
}

#[test]
fn fork_keeps_posix_shared_memory_also_when_it_is_unlinked() {
    survives("posix_shm");
}

#[test]
fn fork_keeps_system_v_memory_semaphores_and_messages_with_their_ids() {
    survives("system_v");
}

#[test]
fn fork_refuses_semaphores_that_a_process_would_give_back_at_its_end() {
    refused("system_v_undo", "System V semaphores to give back (SEM_UNDO)");
}
