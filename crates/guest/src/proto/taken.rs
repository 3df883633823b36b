//! What is told when a picture of a sandbox is taken.

use forkyard_snapshot::Opening;
#[cfg(doc)]
use forkyard_snapshot::SealError;
use serde::{Deserialize, Serialize};

use super::{CommandState, Setup};

/// How the taking of a picture went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeReport {
    /// How long the sandbox's processes were stopped, in microseconds.
    pub stopped_us: u64,
    /// What that went into: names of parts, microseconds each.
    pub parts: Vec<(String, u64)>,
    /// Bytes of memory that were copied.
    pub memory: u64,
    /// Processes, threads, and open file descriptions.
    pub counts: [u32; 3],
    /// Bytes of memory whose copies the template has for the next picture, see
    /// [`SpawnerRequest::Keep`](super::SpawnerRequest::Keep).
    pub lasting: u64,
    /// Names of the overlays whose uppers are in [`Source::base`](super::Source::base).
    pub shared: Vec<String>,
    /// The overlay whose upper was moved to [`SEALED`], a layer of the sandbox itself by now.
    pub sealed: Option<String>,
}

/// The directory beside a sandbox's generations where an upper is that became a layer, with its
/// overlay's name, until the server gives it another place.
pub const SEALED: &str = "sealed";

/// Why no picture was taken. The sandbox goes on as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TakeError {
    /// A process has something that cannot be copied.
    #[error("{0}")]
    Refused(String),
    /// Processes came and went too fast.
    #[error("{0}")]
    Unsteady(String),
    /// A system call failed.
    #[error("{0}")]
    Failed(String),
}

/// What an init tells of its sandbox when it holds still for a picture. With it: its root, and
/// a descriptor that tells of its sockets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Records {
    /// How it was set up.
    pub setup: Setup,
    /// Commands that run.
    pub commands: Vec<CommandRecord>,
    /// The number of the next command.
    pub next_command: u32,
    /// The session's shell.
    pub session: Option<SessionRecord>,
    /// Process ids, inside, of init's own children.
    pub workers: Vec<u32>,
    /// Names of its namespaces and what their links say.
    pub namespaces: Vec<(String, String)>,
    /// Its root directory.
    pub root: Option<StreamRecord>,
    /// Terminals that init holds the masters of: their commands', ended ones' too, and those that
    /// have no command any more.
    pub terminals: Vec<TerminalRecord>,
    /// Device of `/dev/pts`.
    pub terminal_device: u64,
    /// The process id that was given last: programs count on one that ended not to come again soon.
    pub last_pid: u32,
    /// Where its processes keep the programs that they were built by, where it is a clone.
    pub program: Option<u64>,
    /// Devices of the roots that it had before, the oldest first: one for each upper that became a
    /// layer since it was made or reset.
    pub gone: Vec<u64>,
}

/// A command that runs, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandRecord {
    /// What it is.
    pub state: CommandState,
    /// Its standard input, output and error, as far as they are pipes.
    pub streams: [Option<StreamRecord>; 3],
    /// The owner of its streams.
    pub owner: (u32, u32),
    /// What is left of its time, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A terminal whose master init holds, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// N of `/dev/pts/N`.
    pub number: u32,
    /// The command whose streams it is, where that runs.
    pub command: Option<u32>,
}

/// What a template asks of an init that holds still, once all else is stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HoldRequest {
    /// Look at the terminal of this number that init holds the master of, or at the one whose
    /// master comes along; then a slave, where any is open. Answered by a result of
    /// [`forkyard_snapshot::picture::Look`].
    Terminal(Option<u32>),
    /// Look into the sockets that come along; answered by a [`forkyard_snapshot::Answer`].
    Sockets(forkyard_snapshot::Request),
    /// Make another root: the upper of this one becomes a layer of it, and the files in it that
    /// have these names, from its top, are copied above. Answered, as the two that follow, by
    /// nothing or by what went wrong.
    Seal(Vec<Vec<u8>>),
    /// Open files there. With the answer: the descriptors.
    Open(Vec<Opening>),
    /// Processes wait for these addresses at the sockets that come along.
    WaitAt(Vec<u64>),
    /// Make it the root, and tell all processes so. Answered by nothing or a [`SealError`].
    Commit,
    /// Forget it.
    Unseal,
}

/// The session's shell, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its process id inside.
    pub pid: u32,
    /// Its pipes, in the order in which the shell has them.
    pub streams: Vec<StreamRecord>,
    /// The owner of its pipes.
    pub owner: (u32, u32),
    /// The line that it runs, or ran last.
    #[serde(with = "serde_bytes")]
    pub line: Vec<u8>,
}

/// A pipe or file, by device and inode.
pub type StreamRecord = (u64, u64);
