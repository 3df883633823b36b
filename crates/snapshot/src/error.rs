//! Why a picture could not be taken, or nothing be built from one.

use std::io;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process has something that cannot be copied.
    #[error("process {pid} ({name}) cannot be forked live: {what}")]
    Refused {
        /// Its id inside.
        pid: u32,
        /// Its name.
        name: String,
        /// What, with the descriptor where it is one.
        what: String,
    },
    /// Processes came and went too fast. Trying again may help.
    #[error("the processes did not hold still: {0}")]
    Unsteady(String),
    /// The sandbox's processes cannot be moved to another root. They are where they were.
    #[error("its files cannot be made a layer while it runs: {why}")]
    NotSealed {
        /// What is in the way.
        why: String,
        /// How long they stood still.
        stopped: std::time::Duration,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Says that something is in the way of moving processes.
    pub fn not_sealed(why: impl Into<String>) -> Self {
        Self::NotSealed { why: why.into(), stopped: std::time::Duration::ZERO }
    }

    /// Says how long processes stood still in vain.
    pub(crate) fn after(self, stopped: std::time::Duration) -> Self {
        match self {
            Self::NotSealed { why, .. } => Self::NotSealed { why, stopped },
            other => other,
        }
    }
}

/// The result of this crate's functions.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was tried when an error comes.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Failed { what: what(), source: e.into() })
    }
}

/// What /proc says is not what this program knows how to read.
pub(crate) fn unreadable(what: &str) -> Error {
    Error::Failed { what: format!("reading {what}"), source: io::ErrorKind::InvalidData.into() }
}
