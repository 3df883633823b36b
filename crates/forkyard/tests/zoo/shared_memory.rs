//! Memory that processes share.

use super::{refused_with, survives};

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
fn fork_refuses_system_v_objects() {
    for (kind, text) in [
        ("attached", "(deleted) mapped"),
        ("shm", "System V shared memory (id "),
        ("sem", "System V semaphores (id "),
        ("msg", "System V messages (id "),
    ] {
        refused_with("system_v", text, &[], &["-e", &format!("ZOO={kind}")]);
    }
}
