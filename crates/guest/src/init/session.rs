//! The session: its shell, started when it is asked for, and the interruption of a line.

use std::fs::File;
use std::os::fd::AsFd;

use forkyard_sys::process;
use rustix::fs::CWD;

use super::{Init, Session};
use crate::launch::{Launch, hear, shell_path};
use crate::proto::{Ended, Failure, InitMessage, InitOk, StartError};
use crate::session::{self, Pipes};

impl Init<'_> {
    pub(super) fn give_session(&mut self, seq: u64) {
        if self.session.is_none()
            && let Err(error) = self.start_session()
        {
            return self.reply(seq, Err(error.into()), &[]);
        }
        if let Some(session) = &self.session {
            let ok = InitOk::Session { generation: session.generation };
            self.reply(seq, Ok(ok), &session.pipes.server_fds());
        }
    }

    pub(super) fn start_session(&mut self) -> Result<(), StartError> {
        let shell = shell_path().ok_or(StartError::NoShell)?;
        let argv = session::shell_argv(shell);
        let launch = Launch::shell(&self.root, &self.setup, &argv, shell, self.single_id)?;
        let pipes = Pipes::new(launch.user.uid, launch.user.gid)?;
        let null = rustix::fs::openat(
            CWD,
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| Failure::new("opening /dev/null", &e.into()))?;
        let mut fds = vec![(null.as_fd(), 0)];
        fds.extend(pipes.shell_fds());
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new("pipe", &e.into()))?;
        let child = launch.fork(&self.proof, &self.confinement, &fds, Some(&write))?;
        self.sessions += 1;
        let (generation, starting) = (self.sessions, Some(File::from(read)));
        self.session = Some(Session { pid: child.pid, generation, pipes, starting });
        Ok(())
    }

    /// Waits until the session's shell has replaced the fork that becomes it, which nobody may see.
    pub(super) fn await_shell(&mut self) {
        if let Some(session) = &mut self.session
            && let Some(report) = session.starting.take()
        {
            // Its end, if it came to one, is told by others.
            let _ = hear(report, session.pid);
        }
    }

    /// Ends the shell and its group. Told now and not when it is reaped: whoever runs a line is
    /// not to wait for a shell that this session is no more.
    pub(super) fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = process::kill(-session.pid.as_raw_nonzero().get(), 9);
            let ended = Ended { code: None, signal: Some(9), timed_out: false };
            self.tell(&InitMessage::SessionEnded { generation: session.generation, ended });
        }
    }

    /// Ends what the current line of the session started, and the line itself.
    pub(super) fn interrupt(&self, after: u32, force: bool) {
        let Some(session) = &self.session else { return };
        let shell = session.pid.as_raw_nonzero().get();
        // The shell first: it runs the trap as soon as the child that it waits for is gone.
        let _ = process::kill(shell, session::INTERRUPT);
        let signal = if force { 9 } else { 15 };
        for pid in crate::tree::descendants(shell.cast_unsigned(), after) {
            let _ = process::kill(pid as i32, signal);
        }
    }
}
