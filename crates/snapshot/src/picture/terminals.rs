//! Pseudoterminals.

use forkyard_sys::terminal::Settings;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A pseudoterminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// N of `/dev/pts/N`; none where nobody can tell, of one that was hung up.
    pub number: Option<u32>,
    /// Who outside of the picture holds its master: the number in [`crate::Subject::terminals`].
    pub keeper: Option<u64>,
    /// What it is; none of one that was hung up, because its master is closed.
    pub look: Option<Box<Look>>,
}

/// A side of a terminal, as it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// `/dev/ptmx`
    Master,
    /// `/dev/pts/N`
    Slave,
    /// `/dev/tty`
    Current,
}

/// What a terminal is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// User and group of `/dev/pts/N`.
    pub owner: (u32, u32),
    /// Its permissions.
    pub mode: u32,
    /// termios(3)
    pub settings: Settings,
    /// Rows, columns, and their size in pixels.
    pub size: [u16; 4],
    /// The slave cannot be opened.
    pub locked: bool,
    /// The master is in packet mode.
    pub packet: bool,
    /// Nobody else may open the slave.
    pub exclusive: bool,
    /// What has been done with the slave.
    pub slave: Slave,
    /// Output has been stopped.
    pub stopped: Option<Stop>,
    /// The session whose controlling terminal it is, or 0.
    pub session: u32,
    /// The process group in the foreground, or 0.
    pub foreground: u32,
    /// What nobody has read.
    pub unread: Unread,
}

/// Whether a slave is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slave {
    /// It never was: the master waits for it.
    Fresh,
    /// It is.
    #[default]
    Open,
    /// It was: the master is told.
    Closed,
}

/// What stopped output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// `VSTOP`, Ctrl-S.
    Character,
    /// tcflow(3)
    Call,
}

/// What nobody has read of a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Lines as they are read, where the terminal reads line by line: one that does not end with
    /// a line end was ended by Ctrl-D.
    pub lines: Vec<ByteBuf>,
    /// The last line as far as it is typed; without lines, all that was typed.
    pub rest: ByteBuf,
    /// `VLNEXT`, Ctrl-V, was typed last.
    pub literal_next: bool,
    /// What waits for the master's holder.
    pub output: ByteBuf,
}

/// Why a terminal was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LookError {
    /// It cannot be copied.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error("{0}")]
    Failed(String),
}
