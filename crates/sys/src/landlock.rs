//! A second wall around the commands of a `host` image sandbox: nothing outside of its own root
//! directory, even for a command that got hold of a way around the mount namespace.
//!
//! Every file access that the kernel's Landlock knows is handled, and all of them are allowed
//! beneath the sandbox's `/`, and beneath the directory above it where its next root will be: what it
//! wrote may become a layer of another root while it runs. Paths are judged by where they lie, walking up over
//! mount points to the root of the mount namespace: what lies below the sandbox's root, its /proc,
//! /dev and volumes too, is allowed; a directory descriptor of the host's that leaked, or a path
//! of another mount namespace, is not. Pipes, sockets and memfds have no path and are not judged;
//! neither are reads and writes of descriptors that were open before.
//!
//! A [`Wall`] is prepared once per root (again after a reset, which has a new root) and each
//! command pays one system call. Restricting needs `no_new_privs` (see [`crate::caps`]).
//!
//! # What guests notice
//!
//! - No mount may be changed inside; seccomp refuses that already.
//! - Each command is a domain of its own, its children included. `ptrace`, and what is guarded
//!   like it (`/proc/PID/{mem,environ,maps,fd,exe,cwd}`), reaches processes of the own domain and
//!   of those nested in it, not those of other commands: `gdb -p` works on what the same session
//!   started, and `ps` shows names and states of all. Signals are not restricted.
//! - With the host's network, abstract Unix sockets of other domains cannot be connected to: that
//!   shuts out the host's D-Bus and X servers, and also abstract sockets between two commands of
//!   one sandbox. The wall suits any image for that. In a network namespace of its own, a sandbox has none but its own anyway, and
//!   nothing is restricted.
//!
//! # Kernels
//!
//! | Landlock ABI | what it brings |
//! | --- | --- |
//! | 1 | not used: without the right to move files between directories it denies every such move |
//! | 2 (Linux 5.19) | the wall |
//! | 3, 5 | truncation, device ioctls are handled too |
//! | 6 (Linux 6.12) | the scope of abstract sockets |
//!
//! Source: landlock(7), <https://docs.kernel.org/userspace-api/landlock.html>.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ::landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest ABI whose rights have been weighed for this use; newer kernels offer more, which is
/// left unhandled.
const WEIGHED: ABI = ABI::V6;

/// The oldest that is of use.
const OLDEST: u32 = 2;

/// The first with scopes.
const SCOPES: u32 = 6;

/// A wall that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// landlock: the kernel refused the ruleset
    #[error("landlock: {0}")]
    Ruleset(#[from] RulesetError),
}

/// How much of the wall this kernel can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// All that was asked for.
    Full,
    /// Files, but abstract sockets of the host can be reached.
    FilesOnly,
    /// Nothing: the kernel has no Landlock, has it switched off, or has its first version.
    None,
}

/// A ruleset, ready for any number of commands.
#[derive(Debug)]
pub struct Wall {
    ruleset: Option<OwnedFd>,
    strength: Strength,
}

impl Wall {
    /// Prepares a wall that lets through what is beneath these directories. The one of all message
    /// queues is to be among them: `mq_open`(2) finds those of its IPC namespace by a mount that has
    /// no place anywhere, and so they lie beneath no other.
    ///
    /// With `host_network`, abstract sockets of others are shut out too. A kernel that cannot do
    /// it all is no error; see [`Wall::strength`].
    pub fn prepare(dirs: &[BorrowedFd<'_>], host_network: bool) -> Result<Self, WallError> {
        let abi = abi().unwrap_or(0);
        if abi < OLDEST {
            return Ok(Self { ruleset: None, strength: Strength::None });
        }
        let access = AccessFs::from_all(WEIGHED);
        let mut ruleset =
            Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(access)?;
        if host_network {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
        }
        let mut ruleset = ruleset.create()?;
        for dir in dirs {
            ruleset = ruleset.add_rule(PathBeneath::new(dir, access))?;
        }
        let strength =
            if host_network && abi < SCOPES { Strength::FilesOnly } else { Strength::Full };
        Ok(Self { ruleset: ruleset.into(), strength })
    }

    /// Puts the calling thread, and all it starts, behind the wall for good.
    ///
    /// One system call, no allocation; for a child between `fork` and `execve`. `EPERM` without
    /// `no_new_privs`, `E2BIG` in the 17th nested domain. Source: `landlock_restrict_self`(2).
    pub fn restrict(&self) -> io::Result<()> {
        let Some(ruleset) = &self.ruleset else { return Ok(()) };
        // SAFETY: the call takes a descriptor, which is open, and flags; it touches no memory.
        let result =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// How much of it there is.
    pub fn strength(&self) -> Strength {
        self.strength
    }
}

/// The kernel's Landlock ABI, 1 or more; an error (`ENOSYS`, `EOPNOTSUPP`) where there is none.
/// Source: `landlock_create_ruleset`(2), `LANDLOCK_CREATE_RULESET_VERSION`.
pub fn abi() -> io::Result<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with the version flag the kernel asks for a null pointer and a size of 0, and
    // touches no memory.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}
