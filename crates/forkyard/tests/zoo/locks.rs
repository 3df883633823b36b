//! Locks on files.

use super::survives;

#[test]
fn fork_keeps_locks_of_processes_and_of_descriptions() {
    survives("locks");
}
