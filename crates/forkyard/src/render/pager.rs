//! Long texts for people: through a pager where stdout is a terminal.

use std::io::{IsTerminal, Write};
use std::process::{Child, Command, Stdio};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// What is shown where `PAGER` does not say by what. It ends by itself where the text fits the
/// screen, shows colours, and leaves the text there.
const PAGER: (&str, &str) = ("less", "FRX");

/// Stdout, with a pager before it where a person sits there.
#[derive(Debug)]
pub(crate) struct Paged {
    pager: Option<Child>,
    /// Ctrl-C is the pager's meanwhile.
    _interrupts: Option<Signal>,
    people: bool,
    coloured: bool,
}

impl Paged {
    /// Starts the pager.
    pub(crate) fn open() -> Result<Self, Error> {
        let people = std::io::stdout().is_terminal();
        let coloured = super::coloured(people);
        let pager = if people { start() } else { None };
        let interrupts = match &pager {
            Some(_) => {
                let taken = signal(SignalKind::interrupt());
                Some(taken.map_err(|e| Error::io("take up signals", e))?)
            }
            None => None,
        };
        Ok(Self { pager, _interrupts: interrupts, people, coloured })
    }

    /// Whether colours may be used.
    pub(crate) fn coloured(&self) -> bool {
        self.coloured
    }

    /// Whether a person reads it, and not a program.
    pub(crate) fn is_for_people(&self) -> bool {
        self.people
    }

    /// Writes some of the text.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self.pager.as_mut().and_then(|pager| pager.stdin.as_mut()) {
            Some(stdin) => stdin.write_all(bytes).map_err(Error::stdout),
            None => super::data(bytes),
        }
    }

    /// Waits until all has been read.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), Error> {
        let Some(mut pager) = self.pager.take() else { return Ok(()) };
        drop(pager.stdin.take());
        pager.wait().map(drop).map_err(|e| Error::io("wait for the pager", e))
    }
}

impl Drop for Paged {
    fn drop(&mut self) {
        // It has the terminal until it ends, after an error too.
        let _ = self.wait();
    }
}

/// The pager that is asked for, or the usual one where it is installed.
fn start() -> Option<Child> {
    let mut command = match std::env::var("PAGER") {
        Ok(pager) if matches!(pager.trim(), "" | "cat") => return None,
        Ok(pager) => {
            let mut command = Command::new("sh");
            command.arg("-c").arg(pager);
            command
        }
        Err(_) => Command::new(PAGER.0),
    };
    if std::env::var_os("LESS").is_none() {
        command.env("LESS", PAGER.1);
    }
    command.stdin(Stdio::piped()).spawn().ok()
}
