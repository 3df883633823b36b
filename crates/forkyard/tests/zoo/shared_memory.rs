//! Memory that processes share.

use super::survives;

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
