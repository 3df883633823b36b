//! Whose rights file access uses: `setfsuid(2)`, `setfsgid(2)`, and a guard around them.
//!
//! All of it is per thread: the system calls are made directly, without the C library's
//! broadcast to the other threads.

use std::io;

use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::{fs, process, thread};

/// Uses `uid` for this thread's file access from now on; returns the id used until now.
///
/// The kernel takes the file capabilities out of the effective set when this leaves 0 and puts
/// back those permitted when it returns there.
///
/// # Errors
///
/// The system call reports none; `EINVAL` here says that the id did not change: it is not mapped
/// in this user namespace, or this thread may not use it.
///
/// [setfsuid(2)](https://man7.org/linux/man-pages/man2/setfsuid.2.html)
pub fn setfsuid(uid: u32) -> io::Result<u32> {
    // SAFETY: takes a number, touches no memory of ours.
    let before = unsafe { libc::setfsuid(uid) } as u32;
    if fsuid() == uid { Ok(before) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// Uses `gid` for this thread's file access from now on; returns the id used until now.
///
/// # Errors
///
/// As [`setfsuid`].
///
/// [setfsgid(2)](https://man7.org/linux/man-pages/man2/setfsgid.2.html)
pub fn setfsgid(gid: u32) -> io::Result<u32> {
    // SAFETY: takes a number, touches no memory of ours.
    let before = unsafe { libc::setfsgid(gid) } as u32;
    if fsgid() == gid { Ok(before) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// The user id this thread's file access uses. The id -1 is never valid, so asking for it changes
/// nothing and returns the present one.
pub fn fsuid() -> u32 {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::setfsuid(u32::MAX) as u32 }
}

/// The group id this thread's file access uses.
pub fn fsgid() -> u32 {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::setfsgid(u32::MAX) as u32 }
}

/// While it lives, this thread's file access has another user's rights, and no capability unless
/// that user is 0.
///
/// Real and effective ids stay, so processes of that user can neither signal nor trace this one
/// meanwhile. A change of the file system ids makes the kernel clear the process's "dumpable"
/// attribute and its parent-death signal (see `prctl(2)`); both are restored at the end.
///
/// Dropping restores everything. A thread that cannot get its own identity back would answer the
/// next request with the wrong rights, so the process is aborted then; capabilities that remain
/// permitted throughout make that impossible in practice.
#[derive(Debug)]
pub struct FsIdentity {
    uid: u32,
    gid: u32,
    groups: Vec<fs::Gid>,
    capabilities: CapabilitySets,
    dumpable: DumpableBehavior,
    parent_death: Option<Signal>,
}

impl FsIdentity {
    /// Takes on `uid`, `gid` and the supplementary `groups`.
    ///
    /// # Errors
    ///
    /// `EINVAL` where an id is not mapped in this user namespace, `EPERM` without `CAP_SETUID` and
    /// `CAP_SETGID`. The identity is unchanged then.
    pub fn assume(uid: u32, gid: u32, groups: &[u32]) -> io::Result<Self> {
        let groups: Vec<fs::Gid> = groups.iter().map(|&raw| fs::Gid::from_raw(raw)).collect();
        let guard = Self {
            uid: fsuid(),
            gid: fsgid(),
            groups: process::getgroups()?,
            capabilities: thread::capabilities(None)?,
            dumpable: process::dumpable_behavior()?,
            parent_death: process::parent_process_death_signal()?,
        };
        // From here on an early return drops the guard, which puts back what was changed.
        thread::set_thread_groups(&groups)?;
        setfsgid(gid)?;
        setfsuid(uid)?;
        if uid != 0 {
            let none = CapabilitySets { effective: CapabilitySet::empty(), ..guard.capabilities };
            thread::set_capabilities(None, none)?;
        }
        Ok(guard)
    }

    fn restore(&self) -> io::Result<()> {
        // Capabilities first: the rest needs them.
        thread::set_capabilities(None, self.capabilities)?;
        setfsuid(self.uid)?;
        setfsgid(self.gid)?;
        if process::getgroups()? != self.groups {
            thread::set_thread_groups(&self.groups)?;
        }
        // Leaving 0 and coming back may have changed the effective set again.
        thread::set_capabilities(None, self.capabilities)?;
        if self.dumpable == DumpableBehavior::Dumpable {
            process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        }
        if self.parent_death.is_some() {
            process::set_parent_process_death_signal(self.parent_death)?;
        }
        Ok(())
    }
}

impl Drop for FsIdentity {
    fn drop(&mut self) {
        if self.restore().is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_in_use_is_reported_without_changing_it() {
        assert_eq!(fsuid(), process::geteuid().as_raw());
        assert_eq!(fsgid(), process::getegid().as_raw());
        assert_eq!(fsuid(), process::geteuid().as_raw());
    }

    #[test]
    fn a_guard_restores_ids_groups_and_capabilities() {
        let before = (fsuid(), fsgid(), process::getgroups().ok(), thread::capabilities(None).ok());
        match FsIdentity::assume(12_345, 23_456, &[7, 8]) {
            Ok(guard) => {
                assert_eq!((fsuid(), fsgid()), (12_345, 23_456));
                let inside = thread::capabilities(None).map(|sets| sets.effective);
                assert_eq!(inside, Ok(CapabilitySet::empty()));
                drop(guard);
            }
            Err(error) => assert_ne!(before.0, 0, "root could not change identity: {error}"),
        }
        let after = (fsuid(), fsgid(), process::getgroups().ok(), thread::capabilities(None).ok());
        assert_eq!(before, after);
    }
}
