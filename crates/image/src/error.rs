//! Why an archive could not be unpacked.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::archive::TarError;
use crate::text::show;

/// Why an archive could not be unpacked; it can cross a process border as JSON or postcard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum UnpackError {
    /// An entry that would reach out of the tree, or that no tree can hold.
    #[error("refused: `{entry}`: {why}")]
    Refused {
        /// The entry's name, control characters replaced.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// A system call failed on an entry.
    #[error("{call} for `{entry}`: {}", Errno::from_raw_os_error(*errno))]
    System {
        /// The system call.
        call: String,
        /// The entry's name, control characters replaced.
        entry: String,
        /// Its `errno`.
        errno: i32,
    },
    /// The archive is damaged or cut off.
    #[error("corrupt archive: {what}, near byte {at} of its uncompressed form")]
    Corrupt {
        /// What is wrong.
        what: String,
        /// Where reading stopped.
        at: u64,
    },
    /// The blob could not be read.
    #[error("read of the archive: {0}")]
    Read(String),
    /// Compressed in a way that is not supported.
    #[error("archive compressed with {0}: only gzip and zstd are read")]
    Compression(String),
    /// Larger than [`Limits`](crate::Limits) allow.
    #[error("archive with more than {most} {what}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        most: u64,
    },
    /// The process that was to unpack could not be started or died.
    #[error("unpacking process: {0}")]
    Process(String),
}

impl UnpackError {
    pub(crate) fn refused(entry: &[u8], why: impl Into<String>) -> Self {
        Self::Refused { entry: show(entry), why: why.into() }
    }

    pub(crate) fn system(call: &str, entry: &[u8], errno: Errno) -> Self {
        Self::System { call: call.to_owned(), entry: show(entry), errno: errno.raw_os_error() }
    }

    pub(crate) fn tar(error: TarError, at: u64) -> Self {
        match error {
            TarError::Read(error) => Self::read(&error, at),
            other => Self::Corrupt { what: other.to_string(), at },
        }
    }

    /// An error of the stream: of the decoder, of our own limit, or of the disk.
    pub(crate) fn read(error: &std::io::Error, at: u64) -> Self {
        if let Some(limit) = error.get_ref().and_then(|e| e.downcast_ref::<Self>()) {
            return limit.clone();
        }
        match error.raw_os_error() {
            Some(errno) => Self::Read(Errno::from_raw_os_error(errno).to_string()),
            None => Self::Corrupt { what: error.to_string(), at },
        }
    }
}
