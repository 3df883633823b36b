//! Why changes could not be told.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::quote::shown;

/// Why changes could not be told; it can cross a process border.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// A system call failed.
    #[error("{call} of {}: {}", shown(path), Errno::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: String,
        /// What it was for, from the overlay's top.
        path: Vec<u8>,
        /// Its `errno`.
        errno: i32,
    },
    /// More than [`CHANGES_MAX`](crate::CHANGES_MAX).
    #[error("more than {0} changes: name a path to see those below it")]
    TooMany(usize),
    /// Deeper than [`DEPTH_MAX`](crate::DEPTH_MAX).
    #[error("more than {0} directories within one another")]
    TooDeep(usize),
    /// Whoever read what was written has gone, or is full.
    #[error("writing the changes: {0}")]
    Write(String),
}

/// What this crate gives.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn system(call: &str, path: &[u8], errno: Errno) -> Self {
        Self::System { call: call.to_owned(), path: path.to_vec(), errno: errno.raw_os_error() }
    }

    /// Whether what was asked for may not be done.
    pub(crate) fn is_denied(&self) -> bool {
        let denied = [Errno::ACCESS, Errno::PERM].map(Errno::raw_os_error);
        matches!(self, Self::System { errno, .. } if denied.contains(errno))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error.to_string())
    }
}
