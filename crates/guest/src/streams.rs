//! The standard streams of a command: its ends, the server's ends, and the spools between.
//!
//! Output goes from the command's pipe into a spool, a memfd, by splice(2), and from there to
//! whoever follows it. The spool's length is therefore the count of bytes taken so far, kept by
//! the kernel: a server that is killed between any two calls has lost nothing and repeats nothing,
//! and the next one goes on from there. init holds a copy of every descriptor for that next one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::proto::{Failure, Start, Streams};

/// Both ends of a pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
}

/// The ends that a command gets as 0, 1 and 2.
#[derive(Debug)]
pub(crate) struct CommandEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The ends that the server gets, and init keeps.
#[derive(Debug)]
pub(crate) struct ServerEnds {
    fds: Vec<OwnedFd>,
    pub(crate) streams: Streams,
}

impl ServerEnds {
    /// Lets go of stdin's write end; a terminal has no such end.
    pub(crate) fn close_stdin(&mut self) {
        if self.streams.stdin && !self.streams.tty {
            self.fds.remove(0);
            self.streams.stdin = false;
        }
    }

    /// The pipes of stdin, stdout and stderr: where this is a terminal, none.
    pub(crate) fn pipes(&self) -> [Option<&OwnedFd>; 3] {
        if self.streams.tty {
            return [None; 3];
        }
        let first = usize::from(self.streams.stdin);
        let stdin = self.fds.first().filter(|_| self.streams.stdin);
        [stdin, self.fds.get(first), self.fds.get(first + 1)]
    }

    /// The master, where this is a terminal.
    pub(crate) fn master(&self) -> Option<&OwnedFd> {
        self.fds.first().filter(|_| self.streams.tty)
    }

    /// In the order that [`Streams`] documents.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// Makes the streams of a command that will run as this user.
pub(crate) fn make(
    start: &Start,
    uid: u32,
    gid: u32,
) -> Result<(CommandEnds, ServerEnds), Failure> {
    match start.tty {
        Some((rows, cols)) => terminal(rows, cols, uid, gid),
        None => pipes(start.stdin, uid, gid),
    }
}

fn terminal(
    rows: u16,
    cols: u16,
    uid: u32,
    gid: u32,
) -> Result<(CommandEnds, ServerEnds), Failure> {
    let failed = |e: rustix::io::Errno| Failure::new("making a terminal", &e.into());
    // Without O_CLOEXEC: here it becomes a flag of the open file, which whoever has it sees.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = openat(
        CWD,
        "/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    rustix::pty::unlockpt(&master).map_err(failed)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC).map_err(failed)?;
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).map_err(failed)?;
    if uid != 0 {
        // The group stays `tty`, as login(1) leaves it.
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None).map_err(failed)?;
    }
    let _ = gid;
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(failed);
    let ends = CommandEnds { stdin: copy(&slave)?, stdout: copy(&slave)?, stderr: slave };
    Ok((ends, terminal_ends(master)?))
}

/// What the server gets of a terminal, by its master.
pub(crate) fn terminal_ends(master: OwnedFd) -> Result<ServerEnds, Failure> {
    let failed = |e: rustix::io::Errno| Failure::new("making a terminal", &e.into());
    rustix::io::ioctl_fionbio(&master, true).map_err(failed)?;
    // Output leaves a terminal for a memfd by way of a pipe: splice(2) wants one on one side.
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(failed)?;
    let fds = vec![master, read, write, spool()?];
    Ok(ServerEnds { fds, streams: Streams { stdin: true, tty: true, spools: 1 } })
}

fn pipes(has_stdin: bool, uid: u32, gid: u32) -> Result<(CommandEnds, ServerEnds), Failure> {
    let failed = |e: rustix::io::Errno| Failure::new("making pipes", &e.into());
    let mut fds = Vec::with_capacity(5);
    let stdin = if has_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        rustix::io::ioctl_fionbio(&write, true).map_err(failed)?;
        fds.push(write);
        read
    } else {
        openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?
    };
    let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    for fd in [&out_read, &err_read] {
        rustix::io::ioctl_fionbio(fd, true).map_err(failed)?;
    }
    if (uid, gid) != (0, 0) {
        // So that `echo >/dev/stderr` works for a user that is not root.
        give_to(&stdout, uid, gid)?;
        give_to(&stderr, uid, gid)?;
        if has_stdin {
            give_to(&stdin, uid, gid)?;
        }
    }
    fds.extend([out_read, err_read, spool()?, spool()?]);
    let streams = Streams { stdin: has_stdin, tty: false, spools: 2 };
    Ok((CommandEnds { stdin, stdout, stderr }, ServerEnds { fds, streams }))
}

/// Makes the memfd that a stream's output is moved into.
pub(crate) fn spool() -> Result<OwnedFd, Failure> {
    rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)
        .map_err(|e| Failure::new("memfd_create", &e.into()))
}

/// Makes a user the owner of a pipe or memfd.
pub(crate) fn give_to(fd: &OwnedFd, uid: u32, gid: u32) -> Result<(), Failure> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|e| Failure::new("fchown of a stream", &e.into()))
}
