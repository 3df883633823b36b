//! The system calls that a guest's command may make.
//!
//! The profile is an allow-list as strict as Docker's default one for its default capabilities
//! (<https://docs.docker.com/engine/security/seccomp/>), on `x86_64` and `aarch64`. It differs
//! where a sandbox that is to be forked live, or that holds hostile code, gains by it:
//!
//! | call | verdict | why |
//! | --- | --- | --- |
//! | 32-bit (`int 0x80`) and x32 calls | `ENOSYS` | a 32-bit task cannot be forked live, and a second table of calls is a second surface |
//! | `io_uring_*` | `ENOSYS` | runtimes fall back to epoll; rings cannot be forked live |
//! | `io_setup` | `ENOSYS` | the host has a number of these (`fs.aio-max-nr`) for all users together: one guest could take them all; libaio's users fall back |
//! | `memfd_secret` | `ENOSYS` | its memory can be read by nobody else, so not be forked |
//! | `landlock_*` | `ENOSYS` | nobody can read what a process denies itself by them: its clone would have more rights than it |
//! | `modify_ldt` | `ENOSYS` | segments are for 32-bit programs, and not seen from outside either |
//! | `clone3` | `ENOSYS` | its flags lie in memory, where a filter cannot look; libc falls back to `clone` |
//! | `clone` with a namespace flag, `unshare`, `setns`, mounts, modules, keys, bpf, perf, ... | `EPERM` | as Docker |
//! | `socket`, `socketpair` of other families than Unix, IPv4, IPv6, netlink, packet | `EAFNOSUPPORT` | Docker stops only vsock and alg; the rest (tipc, rds, can, ...) load modules on demand and serve no guest |
//! | netlink of other protocols than route, `sock_diag`, `kobject_uevent`, generic | `EPROTONOSUPPORT` | `getaddrinfo`, `ip` and `ss` need these; netfilter, xfrm and audit need `CAP_NET_ADMIN` anyway |
//! | a number that no call has, [`crate::stub::TRAP_CALL`] | a stop for a tracer, else `ENOSYS` | live fork has processes make calls, and take up again what they did if it is killed meanwhile |
//! | `userfaultfd` with [`crate::userfault::FLAGS`] | the same | live fork marks what is written with it; the kernel reports no faults of its own to it |
//! | `prlimit64` of process 1 | `EPERM` | init runs as the sandbox's root: its limits would be the guest's to set |
//! | `ioctl` `TIOCSTI`, `TIOCLINUX` | `EPERM` | they type into the terminal of whoever reads it next |
//! | calls newer than the profile | `ENOSYS` | programs then take their older way, as with libseccomp |
//!
//! Packet sockets stay, as in Docker: they need `CAP_NET_RAW` over the network namespace, which
//! a guest has over its own only. `ptrace` and `process_vm_*` stay too (debuggers).
//!
//! A [`Filter`] is compiled once and installed in every command, so what installing costs counts.
//! The kernel checks and translates the program, then emulates it once for each call number, to
//! answer calls that are always allowed from a bitmap afterwards. Measured in one run on Linux
//! 6.18, `x86_64` (median of 1,500 children): this balanced tree of 103 instructions installs in
//! 38 µs, a chain of comparisons (1,569 instructions, by the `seccompiler` crate) in 839 µs, a
//! single `return` in 13 µs.
//!
//! Arguments are compared by their low 32 bits, for those checked are 32 bits wide to the kernel
//! (`clone` ignores the upper half of its flags): a value with a bit set above cannot slip by.
//!
//! # Example
//!
//! ```no_run
//! use forkyard_sys::{caps, seccomp::Filter};
//!
//! let filter = Filter::compile()?; // in the spawner, once
//! caps::set_no_new_privs()?; // in the child, before execve
//! filter.install()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod program;
mod table;

use std::io;

/// A profile that cannot be made into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// seccomp filter: {0} instructions, the kernel takes 4096
    #[error("seccomp filter: {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// The profile as the kernel takes it; see the module for what it says.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Box<[libc::sock_filter]>,
}

impl Filter {
    /// Compiles the profile for this processor; some 15 µs, done once.
    pub fn compile() -> Result<Self, CompileError> {
        let program = program::emit(&table::rules());
        if program.len() > usize::from(program::MAX_INSTRUCTIONS) {
            return Err(CompileError::TooLong(program.len()));
        }
        Ok(Self { program: program.into_boxed_slice() })
    }

    /// Puts the calling thread, and all it starts, under the filter for good.
    ///
    /// `no_new_privs` must be set or `CAP_SYS_ADMIN` be held (`EACCES` otherwise). It is the last
    /// thing to do before `execve`: the calls that set up the rest are refused afterwards. One
    /// system call, no allocation, so it may be called between `fork` and `execve`. Source:
    /// seccomp(2), `SECCOMP_SET_MODE_FILTER`.
    pub fn install(&self) -> io::Result<()> {
        let description = libc::sock_fprog {
            // At most 4096, by `compile`.
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: `description` points to `len` initialised instructions that live until the call
        // returns; the kernel copies them and writes nothing.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                std::ptr::from_ref(&description),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The instructions as seccomp(2) reads them, `struct sock_filter` each, for a call that is made
    /// by somebody else.
    pub fn to_bytes(&self) -> Vec<u8> {
        let instruction = |i: &libc::sock_filter| {
            let (code, value) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
            code.into_iter().chain([i.jt, i.jf]).chain(value)
        };
        self.program.iter().flat_map(instruction).collect()
    }

    /// Number of BPF instructions.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }
}
