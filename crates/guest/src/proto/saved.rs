//! Snapshots on disk: what server and template say to each other of them.

pub use forkyard_snapshot::disk::Layer;
use serde::{Deserialize, Serialize};

use super::{Failure, Ids, Setup, TakeReport};

/// Whose picture is taken, and where its files go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Host process id of its init.
    pub init: u32,
    /// The sandbox's ids.
    pub ids: Ids,
    /// Directory that holds its uppers, absolute.
    pub uppers: String,
    /// Directory that copies of its files go to, absolute and there.
    pub into: String,
    /// Directory to be made, absolute, for copies of large uppers, a layer for all clones each; none
    /// where each sandbox shall have its own.
    pub base: Option<String>,
    /// Where the directory [`SEALED`](super::SEALED) will be, if the upper of the root may become a
    /// layer of the sandbox itself, too.
    pub seal: Option<String>,
    /// Layers of the root's overlay that belong to bases of the sandbox, the topmost first, absolute.
    pub layers: Vec<String>,
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The image that the sandbox was made from.
    pub image: String,
    /// How this server makes sandboxes: only one that does so too can read it.
    pub ids: String,
}

/// How writing a snapshot went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteReport {
    /// Bytes on disk.
    pub length: u64,
    /// Names of parts, microseconds each.
    pub parts: Vec<(String, u64)>,
}

/// A sandbox that is on disk, and stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// How it was taken.
    pub taken: TakeReport,
    /// How it was written.
    pub written: WriteReport,
}

/// What was read of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// How the sandbox was set up; none where there are files alone.
    pub setup: Option<Box<Setup>>,
    /// Names of parts, microseconds each.
    pub parts: Vec<(String, u64)>,
    /// Bytes of memory that were read.
    pub memory: u64,
    /// Processes, threads, and open file descriptions.
    pub counts: [u32; 3],
    /// What new sandboxes share of its files, as layers in its directory of files.
    pub layers: Vec<Layer>,
}

/// Why a snapshot cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RestoreError {
    /// It is not what was written, or not for this host.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error(transparent)]
    Failed(Failure),
}
