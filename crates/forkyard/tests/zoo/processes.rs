//! Processes, their trees and their pipes.

use super::survives;

#[test]
fn fork_keeps_a_single_process_with_its_memory_and_files() {
    survives("process");
}

#[test]
fn fork_keeps_unread_bytes_of_pipes_and_fifos() {
    survives("pipes");
}

#[test]
fn fork_keeps_groups_sessions_zombies_orphans_and_stopped_processes() {
    survives("tree");
}

#[test]
fn fork_keeps_who_has_been_told_of_stopped_processes() {
    survives("stops");
}

#[test]
fn fork_of_hundreds_of_processes_ends_in_time() {
    survives("crowd");
}
