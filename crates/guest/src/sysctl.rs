//! What of the kernel's settings is a sandbox's own, and set for it.
//!
//! By the sandbox's own /proc, and not by the host's: there, the directories of all sandboxes have
//! the same names, and finding one among hundreds takes long. A host that does not let us is no
//! reason to fail.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};

/// A user of a sandbox gets this part of what the server's user may watch.
const WATCHES_PART: u64 = 4;

/// Sets them, below this /proc.
pub(crate) fn set(proc: &OwnedFd, own_network: bool) {
    limit_watches(proc);
    if own_network {
        keep_no_connections(proc);
    }
}

/// Leaves each user of the sandbox a part of the inotify instances and watches that the server's
/// user has on the host: one process cannot take all of them from other sandboxes.
fn limit_watches(proc: &OwnedFd) {
    for what in ["instances", "watches"] {
        let all = read(proc, &format!("sys/fs/inotify/max_user_{what}"));
        if let Some(all) = all.and_then(|text| text.trim().parse::<u64>().ok()) {
            // It speaks of the user namespace of who opens it (namespaces(7)).
            let part = (all / WATCHES_PART).max(1).to_string();
            write(proc, &format!("sys/user/max_inotify_{what}"), &part);
        }
    }
}

/// Has the network forget connections as they end: the namespace stays over a reset, and what it
/// remembers would keep ports from whoever comes next, and tell of who was there before. Nothing
/// is lost on a loopback.
fn keep_no_connections(proc: &OwnedFd) {
    for (what, value) in [("tcp_max_tw_buckets", "0"), ("tcp_no_metrics_save", "1")] {
        write(proc, &format!("sys/net/ipv4/{what}"), value);
    }
}

/// A directory of settings, which can be written as long as this is open.
pub(crate) fn open_dir(proc: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(proc, path, flags, Mode::empty())?)
}

/// Says which id the next System V object of a kind gets, `shm`, `sem` or `msg`: in
/// `/proc/sys/kernel`, see "Checkpoint/restore" in the kernel's documents.
pub(crate) fn next_id(kernel: &OwnedFd, kind: &str, id: i32) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(kernel, format!("{kind}_next_id"), flags, Mode::empty())?;
    File::from(file).write_all(id.to_string().as_bytes())
}

/// The process id that was given last in this namespace, 0 where nobody tells.
pub(crate) fn last_pid() -> u32 {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{LAST_PID}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Has the next process get the id behind this one, or the next that is free.
pub(crate) fn set_last_pid(kernel: &OwnedFd, pid: u32) -> io::Result<()> {
    let file = openat(kernel, LAST_PID, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).write_all(pid.to_string().as_bytes())
}

/// Of `/proc/sys/kernel`, for processes with `CAP_CHECKPOINT_RESTORE` over the namespace.
const LAST_PID: &str = "ns_last_pid";

fn read(proc: &OwnedFd, path: &str) -> Option<String> {
    let mut text = String::new();
    open(proc, path, OFlags::RDONLY)?.read_to_string(&mut text).ok()?;
    Some(text)
}

fn write(proc: &OwnedFd, path: &str, value: &str) {
    if let Some(mut file) = open(proc, path, OFlags::WRONLY) {
        let _ = file.write_all(value.as_bytes());
    }
}

fn open(proc: &OwnedFd, path: &str, flags: OFlags) -> Option<File> {
    openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty()).ok().map(File::from)
}
