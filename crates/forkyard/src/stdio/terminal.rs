//! The caller's terminal in raw mode, and back, whatever happens.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::Error;

/// stdin's terminal in raw mode for as long as this lives; panics unwind through it.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Raw mode for stdin; nothing when stdin is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>, Error> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        // A descriptor of its own, so that whatever becomes of stdin, this one leads back.
        let terminal = stdin.as_fd().try_clone_to_owned().map_err(|e| Error::io("dup stdin", e))?;
        let before = tcgetattr(&terminal).map_err(|e| Error::io("tcgetattr stdin", e.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        // Without a flush: what was typed ahead is meant for the command.
        tcsetattr(&terminal, OptionalActions::Drain, &raw)
            .map_err(|e| Error::io("tcsetattr stdin", e.into()))?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}
