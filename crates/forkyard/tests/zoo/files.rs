//! Open files, directories and devices.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::{refused_with, survives, survives_with};

#[test]
fn fork_keeps_open_files_directories_and_devices() {
    survives("files");
}

#[test]
fn fork_keeps_files_and_directories_that_were_deleted() {
    for dir in ["/root", "/tmp", "/dev/shm"] {
        survives_with("deleted_files", &[], &["-e", &format!("ZOO={dir}")]);
    }
}

#[test]
fn fork_keeps_how_far_directories_were_read() {
    survives("directories");
    let text = "the directory /tmp/many is being read";
    refused_with("directories", text, &[], &["-e", "ZOO=in memory too"]);
}

#[test]
fn fork_keeps_posix_message_queues_and_what_is_in_them() {
    survives("message_queues");
}

#[test]
fn fork_keeps_files_that_tell_of_processes() {
    survives("proc_files");
}

#[test]
fn fork_keeps_who_is_told_of_descriptors_by_signals() {
    survives("signal_owners");
}

#[test]
fn fork_shares_files_of_volumes_with_the_original() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let volume = format!("{}:/volume", dir.path().display());
    survives_with("volume", &["-v", &volume], &[]);
}

#[test]
fn fork_refuses_locks_on_files_that_clones_would_share() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let volume = format!("{}:/volume", dir.path().display());
    refused_with(
        "refused_file",
        "(/volume/file): a lock on a file that clones share with the original",
        &["-v", &volume],
        &["-e", "ZOO=volume"],
    );
}

#[test]
fn fork_refuses_what_files_cannot_be_opened_again() {
    for (kind, text) in [
        ("lease", "(/tmp/leased): a file lease"),
        ("proc", "a file of a process in /proc"),
        ("queue", "(/queue (deleted)): a deleted POSIX message queue"),
        (
            "awaited queue",
            "/dev/mqueue/queue: a POSIX message queue that somebody waits to be told of",
        ),
        ("directory", "a directory of a process in /proc"),
    ] {
        refused_with("refused_file", text, &[], &["-e", &format!("ZOO={kind}")]);
    }
}
