//! The nouns of forkyard as its users see them: what is asked for, and what exists.
//!
//! These types are the JSON of the HTTP API and of `--json`, one to one. Times are milliseconds
//! since the Unix epoch, sizes are bytes.

mod changes;
mod keys;
mod snapshots;
mod workspace;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use changes::{Change, ChangeKind, DiffForm, DiffSpec, Difference, FileName, Lines, Side};
pub use forkyard_branch::Kind as FileKind;
pub use forkyard_image::ImageConfig;
use serde::{Deserialize, Serialize};

pub use keys::{Key, KeySpec, NewKey};
pub use snapshots::{
    Created, NewSnapshot, Paused, RestoreReport, Resumed, Snapshot, SnapshotId, SnapshotKind,
    SnapshotReport, SnapshotSpec, SnapshotState,
};
pub use workspace::{Workspace, WorkspaceMode};

/// Identifies a sandbox for ever: 12 characters, `0-9a-z`, sorted by time of creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub(crate) String);

/// Numbers a command within its sandbox, from 1 up; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub u32);

/// Which network a sandbox has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// A network namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The host's network namespace.
    Host,
}

/// What a sandbox may use; `None` means no limit but the default of [`Limits::pids`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory and page cache, in bytes; at least 4 MiB.
    pub memory: Option<u64>,
    /// Processor time, in processors (0.5 is half of one).
    pub cpus: Option<f64>,
    /// Processes and threads at once.
    pub pids: Option<u32>,
}

/// A host directory shown in the sandbox as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Absolute path of an existing directory or file on the host.
    pub source: String,
    /// Absolute path in the sandbox; made when it is not there.
    pub target: String,
    /// Whether the sandbox may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// What `create` and `run` ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name of an image; `host` when absent.
    pub image: Option<String>,
    /// Id or name of a snapshot to go on from, in place of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// A unique name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
    pub name: Option<String>,
    /// Variables added to the image's.
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, names or numbers; the image's user when absent, else root.
    pub user: Option<String>,
    /// Absolute working directory; the image's when absent, else `/`.
    pub workdir: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// Ended this long after it was started, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Its network.
    pub net: Net,
    /// Host directories it sees.
    pub volumes: Vec<Volume>,
    /// The host directory that is worked on in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Workspace>,
    /// The user's own keys and values, kept as they are.
    pub metadata: BTreeMap<String, String>,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being made; not yet usable.
    Creating,
    /// Running.
    Running,
    /// Being thrown back to its first state.
    Resetting,
    /// On disk, with no process and no memory, to go on when it is resumed.
    Paused,
    /// About to go on from there.
    Resuming,
    /// Its processes are gone; its files are kept until it is removed.
    Ended,
    /// Being removed.
    Deleting,
}

/// A sandbox as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The image it was made from.
    pub image: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it ended: `deadline`, `out of memory`, `killed`, `host restarted` ...
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_at: u64,
    /// When it could first run commands.
    pub started_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
    /// When it will be ended.
    pub deadline: Option<u64>,
    /// The sandbox it was forked from.
    pub parent: Option<SandboxId>,
    /// Host process id of its init while it runs.
    pub pid: Option<u32>,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// What it uses now; absent in listings, and when it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Sandbox {
    /// One that is about to be made: its deadline begins now.
    pub(crate) fn creating(
        id: SandboxId,
        image: String,
        parent: Option<SandboxId>,
        spec: SandboxSpec,
    ) -> Self {
        let created_at = crate::clock::now();
        Self {
            id,
            name: spec.name.clone(),
            image,
            state: State::Creating,
            reason: None,
            created_at,
            started_at: None,
            ended_at: None,
            deadline: spec.timeout_ms.map(|ms| created_at.saturating_add(ms)),
            parent,
            pid: None,
            spec,
            usage: None,
        }
    }
}

/// What a sandbox uses at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory with page cache, in bytes.
    pub memory: Option<u64>,
    /// The most memory it ever had, in bytes.
    pub memory_peak: Option<u64>,
    /// Processor time so far, in microseconds.
    pub cpu_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// What `fork` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForkSpec {
    /// How many clones, 1 to 1000; one when absent.
    pub count: Option<u32>,
    /// Name of the clone; of several, what their names begin with: `NAME-1`, `NAME-2` ...
    pub name: Option<String>,
}

/// What came of a fork.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fork {
    /// The clones, running.
    pub clones: Vec<Sandbox>,
    /// How it went.
    pub report: ForkReport,
}

/// How a fork went. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkReport {
    /// How long the original's processes were stopped.
    pub stopped_us: u64,
    /// From the request to the picture of the original.
    pub taken_us: u64,
    /// From the request to the first clone running.
    pub running_us: u64,
    /// From the request to all clones running.
    pub total_us: u64,
    /// What the stop went into.
    pub stop: Vec<Phase>,
    /// What building the first clone went into, from its init being told what to be.
    pub build: Vec<Phase>,
    /// Bytes of memory that were copied.
    pub memory: u64,
    /// Processes of each clone.
    pub processes: u32,
    /// Threads of each clone.
    pub threads: u32,
    /// Open file descriptions of each clone.
    pub files: u32,
}

/// A part of a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// Microseconds.
    pub us: u64,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A command to be started in a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandSpec {
    /// Program and arguments. Exactly one of `argv` and `shell` is given; with neither, the
    /// image's entrypoint and command are run (only in `run`).
    pub argv: Vec<String>,
    /// Put before `argv`. In `run` the image's when absent, and when given the image's own command
    /// is left out, as Docker has it; elsewhere nothing when absent.
    pub entrypoint: Option<Vec<String>>,
    /// A line for the sandbox's shell.
    pub shell: Option<String>,
    /// Variables added to the sandbox's.
    pub env: BTreeMap<String, String>,
    /// Working directory; the sandbox's when absent.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`; the sandbox's when absent.
    pub user: Option<String>,
    /// Give it a terminal of this size.
    pub tty: Option<TerminalSize>,
    /// Whether stdin will be sent; `/dev/null` otherwise.
    pub stdin: bool,
    /// Keep it running when its client goes away; killed with its client otherwise.
    pub detach: bool,
    /// Kill it after this long, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code a shell would report: its own, 128 + signal, or 124 after a timeout.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because its time was up.
    pub timed_out: bool,
    /// The kernel killed a process of the sandbox for want of memory while it ran, and it died.
    pub oom: bool,
}

/// A command as `ps` of a sandbox shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its number in the sandbox.
    pub id: CommandId,
    /// Process id inside the sandbox.
    pub pid: u32,
    /// Program and arguments as started.
    pub argv: Vec<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it outlives its client.
    pub detach: bool,
    /// When it was started.
    pub started_at: u64,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
}

/// The result of a line run in a sandbox's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOutput {
    /// `$?` after the line.
    pub exit_code: i32,
    /// What was written to stdout; bytes that are not UTF-8 are replaced, see `stdout_base64`.
    pub stdout: String,
    /// What was written to stderr; likewise.
    pub stderr: String,
    /// stdout in base64, present when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// stderr in base64, present when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Output beyond the limit on a reply was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The line was interrupted because its time was up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The kernel killed a process of the sandbox for want of memory while the line ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// The shell itself ended (`exit`, a signal, out of memory); the next line gets a new one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shell_ended: bool,
}

/// An entry of a sandbox's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up over all sandboxes of a store.
    pub seq: u64,
    /// When.
    pub at: u64,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What happened: `create`, `start`, `reset`, `command`, `exit`, `end`, `delete` ...
    pub kind: String,
    /// More about it, for people.
    pub detail: String,
}

/// An image as `image ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Digest of its manifest, or of its contents where it has none.
    pub digest: String,
    /// Bytes of its layers on disk, unpacked.
    pub size: u64,
    /// Number of layers.
    pub layers: usize,
    /// When it was added.
    pub created_at: u64,
}

/// An image as `image inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// Its name.
    pub name: String,
    /// As in [`ImageInfo`].
    pub digest: String,
    /// `OS/ARCH[/VARIANT]` that it was built for; none where nothing says.
    pub platform: Option<String>,
    /// Bytes of its layers on disk, unpacked.
    pub size: u64,
    /// When it was added; never for `host`.
    pub created_at: Option<u64>,
    /// Its layers, the bottom one first: digests of their uncompressed archives, or paths of
    /// directories of the host that are used in place.
    pub layers: Vec<String>,
    /// How to run something in it.
    pub config: ImageConfig,
}

/// What was removed because nothing used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Layers.
    pub layers: usize,
    /// Bytes of layers, and of downloads that were cut off.
    pub bytes: u64,
}

/// A name that no sandbox can have, or text that is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a sandbox id: 12 characters of 0-9 and a-z")]
pub struct BadId(pub String);

impl State {
    /// Whether a sandbox in this state may have processes.
    pub fn has_processes(self) -> bool {
        !matches!(self, Self::Ended | Self::Paused)
    }
}

impl SandboxId {
    pub(crate) const LEN: usize = 12;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let alphabet = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
        if text.len() == Self::LEN && text.bytes().all(alphabet) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId(text.to_owned()))
        }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
