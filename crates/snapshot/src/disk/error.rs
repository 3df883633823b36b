//! Why a snapshot could not be written or read.

use std::io;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// It is whole, but cannot go on here.
    #[error("the snapshot cannot go on here: {0}")]
    Unfit(String),
    /// It was given up, since nobody waits for it any more.
    #[error("nobody waits for the snapshot any more")]
    Abandoned,
    /// A system call failed.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Failed { what, source } => Self::Failed { what, source },
            other => Self::Failed { what: other.to_string(), source: io::ErrorKind::Other.into() },
        }
    }
}

/// Says what was tried when an error comes.
pub(super) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Failed { what: what(), source: e.into() })
    }
}

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged(what.into())
}
