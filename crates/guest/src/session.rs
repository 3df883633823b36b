//! The persistent shell of a sandbox.
//!
//! A line never travels over the shell's stdin, and its end is never a marker in its output:
//!
//! ```text
//! server                                shell
//!   | writes the line into a memfd        |
//!   | writes "N\n" into the trigger pipe  |
//!   |                                     | sources the memfd, so that the line runs in the
//!   |                                     | shell itself: no fork for a builtin
//!   | reads "N STATUS LAST\n" from the    |
//!   | done pipe: `$?` and `$!`            |
//! ```
//!
//! The server holds these descriptors itself, so init takes no part in a line. stdout and stderr
//! are pipes; what was written before the done message is in them when it comes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::proto::Failure;
use crate::streams::{self, Pipe};

/// The signal that interrupts a line: the traps below.
pub(crate) const INTERRUPT: i32 = 64;

/// Numbers of the descriptors that the shell finds the memfd and the pipes at: high, so that a
/// script's own `exec 9>file` does not meet them, and below bash's own 255.
const LINE: i32 = 250;
const TRIGGER: i32 = 251;
const DONE: i32 = 252;

/// Reads triggers and sources lines, for ever. `__forkyard_status` gives the line the `$?` of the
/// one before.
///
/// A line that the shell itself runs is interrupted by a trap: 64 is SIGRTMAX, by its number since
/// dash has no names for these. `return` from it ends one function or the sourced line. Above a
/// function that was called in a loop, the loop goes on: so the trap sets another, before each
/// command, that returns from whatever it finds itself in until nothing is left (`extdebug` in
/// bash(1)). When the trap is run too late, as the line ends by itself, there is nothing to return
/// from; `__forkyard_cut` tells of it all the same.
const BASH: &str = r#"shopt -s expand_aliases
__forkyard_status() { return "$1"; }
__forkyard_last=0
trap '__forkyard_cut=124
shopt -s extdebug
trap "if [[ -n \${FUNCNAME-} ]]; then __forkyard_status 2
else shopt -u extdebug; trap - DEBUG; fi" DEBUG
return 124 2>/dev/null' 64
while builtin read -r -u 251 __forkyard_line; do
__forkyard_cut=
__forkyard_status "$__forkyard_last"
. /proc/self/fd/250
__forkyard_last=${__forkyard_cut:-$?}
builtin printf '%s %s %s\n' "$__forkyard_line" "$__forkyard_last" "${!-0}" >&252
done"#;

/// The same for a POSIX shell, whose redirections know one digit only, and which has no way out of
/// functions in functions: after a while such a shell is ended. `command` keeps a syntax error in
/// the line from ending the shell.
const SH: &str = r#"__forkyard_status() { return "$1"; }
__forkyard_last=0
trap '__forkyard_cut=124; return 124' 64
while read -r __forkyard_line </proc/self/fd/251; do
__forkyard_cut=
__forkyard_status "$__forkyard_last"
command . /proc/self/fd/250
__forkyard_last=${__forkyard_cut:-$?}
printf '%s %s %s\n' "$__forkyard_line" "$__forkyard_last" "${!-0}" >/proc/self/fd/252
done"#;

/// What a session's shell and the server hold between them.
#[derive(Debug)]
pub(crate) struct Pipes {
    trigger: Pipe,
    done: Pipe,
    line: OwnedFd,
    stdout: Pipe,
    stderr: Pipe,
}

impl Pipes {
    /// Makes them, owned by the user that the shell will run as.
    pub(crate) fn new(uid: u32, gid: u32) -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::new("making the session's pipes", &e.into());
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| Pipe { read, write });
        let pipes = Self {
            trigger: pipe().map_err(failed)?,
            done: pipe().map_err(failed)?,
            line: rustix::fs::memfd_create("line", MemfdFlags::CLOEXEC).map_err(failed)?,
            stdout: pipe().map_err(failed)?,
            stderr: pipe().map_err(failed)?,
        };
        // The guest can fill the trigger too: the server never waits for it.
        let servers =
            [&pipes.trigger.write, &pipes.done.read, &pipes.stdout.read, &pipes.stderr.read];
        for fd in servers {
            rustix::io::ioctl_fionbio(fd, true).map_err(failed)?;
        }
        if (uid, gid) != (0, 0) {
            // The shell opens these again by their names in /proc/self/fd.
            let ours = [
                &pipes.trigger.read,
                &pipes.done.write,
                &pipes.line,
                &pipes.stdout.write,
                &pipes.stderr.write,
            ];
            for fd in ours {
                streams::give_to(fd, uid, gid)?;
            }
        }
        Ok(pipes)
    }

    /// What the shell gets, at which numbers.
    pub(crate) fn shell_fds(&self) -> Vec<(BorrowedFd<'_>, i32)> {
        vec![
            (self.stdout.write.as_fd(), 1),
            (self.stderr.write.as_fd(), 2),
            (self.line.as_fd(), LINE),
            (self.trigger.read.as_fd(), TRIGGER),
            (self.done.write.as_fd(), DONE),
        ]
    }

    /// What the shell has, in the order of [`Self::shell_fds`], to be told apart.
    pub(crate) fn into_shell_ends(self) -> (Vec<OwnedFd>, Self) {
        let copy = |fd: &OwnedFd| fd.try_clone().ok();
        let ends = [
            &self.stdout.write,
            &self.stderr.write,
            &self.line,
            &self.trigger.read,
            &self.done.write,
        ];
        (ends.into_iter().filter_map(copy).collect(), self)
    }

    /// The line that the shell runs, or ran last.
    pub(crate) fn line(&self) -> &OwnedFd {
        &self.line
    }

    /// Where a line is started.
    pub(crate) fn trigger(&self) -> &OwnedFd {
        &self.trigger.write
    }

    /// What the server gets, in the order of `InitOk::Session`.
    pub(crate) fn server_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![
            self.trigger.write.as_fd(),
            self.done.read.as_fd(),
            self.line.as_fd(),
            self.stdout.read.as_fd(),
            self.stderr.read.as_fd(),
        ]
    }
}

/// The shell's arguments, for the shell at this path.
pub(crate) fn shell_argv(shell: &str) -> Vec<String> {
    if shell.ends_with("/bash") {
        ["bash", "--norc", "--noprofile", "-c", BASH].map(str::to_owned).to_vec()
    } else {
        ["sh", "-c", SH].map(str::to_owned).to_vec()
    }
}
