//! Locks on files, and who is told by signals: what descriptors have beside their position.

use std::os::fd::AsFd;

use forkyard_sys::remote;
use rustix::process::Pid;

use super::Capture;
use super::descriptors::Seen;
use crate::error::{Context, Result};
use crate::picture::{Lock, LockKind, SignalOwner};
use crate::proc::{FdInfo, Status};

/// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
const OVERLAY: u64 = 0x794c_7630;

/// A `lock:` line of `/proc/PID/fdinfo/N`; nothing for what is no lock of these kinds, a lease.
///
/// `1: POSIX  ADVISORY  WRITE 42 00:2b:99 0 EOF`: see `proc_locks`(5).
fn parse(line: &str) -> Option<Lock> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = match words.next()? {
        "FLOCK" => LockKind::Whole,
        "OFDLCK" => LockKind::Description,
        "POSIX" => LockKind::Process,
        _ => return None,
    };
    let exclusive = match words.nth(1)? {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let start = words.nth(2)?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        end => Some(end.parse().ok()?),
    };
    Some(Lock { kind, exclusive, start, end })
}

/// The locks that a descriptor has; nothing where one of them is no lock, but a lease.
pub(super) fn of(info: &FdInfo) -> Option<Vec<Lock>> {
    info.text.lines().filter_map(|line| line.strip_prefix("lock:")).map(parse).collect()
}

impl Capture<'_> {
    /// Refuses what a clone could not take while the original has it.
    pub(super) fn check_locks(&self, seen: &Seen<'_>, system: u64) -> Result<()> {
        let Some(locks) = of(&seen.info) else { return Err(seen.refuse("a file lease")) };
        let device = seen.stat.st_dev;
        let own = system == OVERLAY
            || device == self.memory_device
            || self.memory_files.contains(&device);
        if !own && locks.iter().any(|lock| lock.exclusive) {
            return Err(seen.refuse("a lock on a file that clones share with the original"));
        }
        Ok(())
    }

    /// Who is told of a description by signals.
    pub(super) fn signal_owner(&self, copy: impl AsFd) -> Result<Option<SignalOwner>> {
        let owner = remote::signal_owner(copy).context(|| "fcntl F_GETOWN_EX".to_owned())?;
        let Some((kind, id, signal)) = owner else { return Ok(None) };
        // Who is gone is told nothing, here as there.
        let pid = Pid::from_raw(id);
        let inner = pid.and_then(|pid| match self.inner_ids.get(&pid) {
            Some(&inner) => Some(inner),
            None => Status::read(pid).ok().map(|status| status.inner_id("NSpid")),
        });
        Ok(Some(SignalOwner { kind, id: inner.unwrap_or_default(), signal }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_locks_are_read() {
        let lock = |kind, exclusive, start, end| Some(Lock { kind, exclusive, start, end });
        for (line, wanted) in [
            ("1: FLOCK  ADVISORY  WRITE 7 00:2b:99 0 EOF", lock(LockKind::Whole, true, 0, None)),
            (
                "2: OFDLCK ADVISORY  READ -1 00:2b:99 5 9",
                lock(LockKind::Description, false, 5, Some(9)),
            ),
            ("1: POSIX  ADVISORY  WRITE 0 00:2b:9 1 EOF", lock(LockKind::Process, true, 1, None)),
            ("1: LEASE  ACTIVE    WRITE 7 00:2b:99 0 EOF", None),
            ("1: POSIX  ADVISORY", None),
        ] {
            assert_eq!(parse(line), wanted, "{line}");
        }
    }
}
