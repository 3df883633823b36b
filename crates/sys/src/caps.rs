//! What root in a sandbox may do: the capabilities of its commands.
//!
//! Commands of uid 0 hold the set that OCI runtimes give by default, over the sandbox's own user
//! namespace; commands of other users hold none. The bounding set limits only what `execve` can
//! give, so a sandbox's init, which never executes anything, gives it up once and keeps its own
//! capabilities; the commands it forks inherit the limit, and one `capset` is all that each costs.
//!
//! Order in a child: groups, gid and uid first, then [`keep_default`] or [`drop_all`], then
//! [`set_no_new_privs`], Landlock, seccomp. Nothing here allocates. Sources: capabilities(7),
//! capset(2), `PR_CAPBSET_DROP` and `PR_SET_NO_NEW_PRIVS` in prctl(2).

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// The set of the OCI runtimes: what Docker gives a container by default.
pub const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Removes all but [`DEFAULT`] from the calling thread's bounding set: for init, once.
///
/// Takes one call per capability of the kernel (27 of 41 on Linux 6.18). Needs `CAP_SETPCAP`
/// (`EPERM`); init keeps what it holds.
pub fn limit_bounding_set() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if DEFAULT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel has no capability for.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Leaves the calling thread with [`DEFAULT`], permitted and effective: for a command of uid 0.
///
/// Nothing stays inheritable, by which the kernel empties the ambient set as well. `EPERM` when
/// the thread does not hold all of them.
pub fn keep_default() -> io::Result<()> {
    set(DEFAULT)
}

/// Leaves the calling thread with no capability at all: for a command of another user, after it
/// has become that user. Needs no privilege.
pub fn drop_all() -> io::Result<()> {
    set(CapabilitySet::empty())
}

/// From now on no `execve` gives the calling thread, or any child of it, more than it has: set-id
/// bits and file capabilities count for nothing. Landlock and seccomp ask for it.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

fn set(held: CapabilitySet) -> io::Result<()> {
    let sets =
        CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_set_is_the_one_of_the_oci_runtimes() {
        // `CapBnd` in /proc/self/status of a container that Docker started with its defaults.
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
    }
}
