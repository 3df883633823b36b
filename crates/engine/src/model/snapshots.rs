//! Snapshots, and sandboxes that are paused.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Phase, Sandbox, SandboxId};

/// Identifies a snapshot for ever; of the form of a [`SandboxId`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub(crate) String);

impl SnapshotId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `snapshot` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotSpec {
    /// A name that no other snapshot has, of the form of a sandbox's.
    pub name: Option<String>,
    /// What the sandbox wrote, without processes and memory.
    pub files_only: bool,
    /// Answer when it has reached the disk, and not as soon as the sandbox goes on.
    pub wait: bool,
}

/// What a snapshot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Processes with their memory, and files.
    Memory,
    /// Files alone.
    Files,
}

/// Where a snapshot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// On its way to the disk. Gone if that fails, or if the server ends.
    Writing,
    /// On the disk for good.
    Ready,
}

/// A snapshot as `snapshots` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The sandbox that it was taken of.
    pub sandbox: SandboxId,
    /// The image that this was made from.
    pub image: String,
    /// What it has.
    pub kind: SnapshotKind,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// When it was taken.
    pub created_at: u64,
    /// When it had reached the disk.
    pub ready_at: Option<u64>,
    /// Bytes on disk, once it is there.
    pub size: Option<u64>,
}

/// What came of `snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How it went.
    pub report: SnapshotReport,
}

/// How a snapshot, or a pause, went. Times are microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// How long the sandbox's processes were stopped.
    pub stopped_us: u64,
    /// From the request until they went on.
    pub taken_us: u64,
    /// From the request until it had reached the disk; none where that was not waited for.
    pub durable_us: Option<u64>,
    /// What the stop went into.
    pub stop: Vec<Phase>,
    /// What writing went into.
    pub write: Vec<Phase>,
    /// Bytes of memory that were copied.
    pub memory: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Open file descriptions.
    pub files: u32,
}

/// How a sandbox went on from a disk. Times are microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// From the request until all was read and checked.
    pub read_us: u64,
    /// From the request until it ran.
    pub running_us: u64,
    /// What reading went into.
    pub read: Vec<Phase>,
    /// What building its processes went into.
    pub build: Vec<Phase>,
    /// Bytes of memory that were read.
    pub memory: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Open file descriptions.
    pub files: u32,
}

/// A new sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// The sandbox.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// How it went, where it was made from a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<RestoreReport>,
}

/// What came of `pause`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paused {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// How it went.
    pub report: SnapshotReport,
}

/// What came of `resume`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resumed {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// How it went.
    pub report: RestoreReport,
}
