//! Children for the confinement tests: forked, made into somebody, confined, asked.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use forkyard_sys::{caps, seccomp::Filter};

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Uid 0 of a user namespace of its own, as in a sandbox.
    NamespaceRoot,
    /// A user without any privilege.
    Nobody,
}

/// Turns the calling process, a child with one thread, into `who`.
pub(crate) fn turn_into(who: Who) -> io::Result<()> {
    match who {
        Who::NamespaceRoot => {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            // SAFETY: the child has one thread, and no other memory or descriptors depend on its
            // user namespace.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }?;
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        }
        Who::Nobody if rustix::process::geteuid().is_root() => {
            // SAFETY: plain system calls on the calling process, which has one thread.
            let failed = unsafe {
                libc::setgroups(0, std::ptr::null()) != 0
                    || libc::setresgid(65534, 65534, 65534) != 0
                    || libc::setresuid(65534, 65534, 65534) != 0
            };
            if failed {
                return Err(io::Error::last_os_error());
            }
        }
        Who::Nobody => {}
    }
    Ok(())
}

/// All that is done to a command before `execve`, the Landlock wall apart.
pub(crate) fn confine(who: Who, filter: &Filter) -> io::Result<()> {
    turn_into(who)?;
    match who {
        Who::NamespaceRoot => {
            caps::limit_bounding_set()?;
            caps::keep_default()?;
        }
        Who::Nobody => caps::drop_all()?,
    }
    caps::set_no_new_privs()?;
    filter.install()
}

/// Forks, runs `body` in the child and returns what it says; panics if the child dies.
pub(crate) fn in_child(body: impl FnOnce() -> io::Result<Vec<i32>>) -> Vec<i32> {
    let (mut from, mut to) = io::pipe().expect("pipe");
    // SAFETY: the child runs `body`, writes to the pipe and ends without returning; the C library
    // keeps its allocator usable in a child forked from one of several threads.
    match unsafe { libc::fork() } {
        0 => {
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = match said {
                Ok(Ok(numbers)) => {
                    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
                    i32::from(to.write_all(&bytes).is_err())
                }
                Ok(Err(error)) => error.raw_os_error().unwrap_or(254),
                Err(_) => 255,
            };
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        child => {
            assert!(child > 0, "fork: {}", io::Error::last_os_error());
            drop(to);
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).expect("read the child's answer");
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!((waited, status), (child, 0), "status in the upper byte: an errno");
            bytes
                .chunks_exact(4)
                .map(|word| i32::from_ne_bytes(word.try_into().expect("4 bytes")))
                .collect()
        }
    }
}

/// Runs a program, confined as `who`.
pub(crate) fn run_confined(who: Who, program: &str, arguments: &[&str]) -> io::Result<Output> {
    let filter = Filter::compile().map_err(io::Error::other)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    // SAFETY: the closure makes system calls and small writes to /proc only; the C library keeps
    // its allocator usable in the child.
    unsafe { command.pre_exec(move || confine(who, &filter)) };
    command.output()
}
