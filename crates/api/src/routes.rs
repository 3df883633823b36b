//! Paths, bodies and errors of the HTTP API: what server and clients agree on.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/health` | | [`Health`] |
//! | `POST /v1/sandboxes` | `SandboxSpec` | 201 `Created` |
//! | `GET /v1/sandboxes` | | `[Sandbox]` |
//! | `GET /v1/sandboxes/{id}` | | `Sandbox` with usage |
//! | `DELETE /v1/sandboxes/{id}` | | 204 |
//! | `POST /v1/sandboxes/{id}/reset` | | `Sandbox` |
//! | `POST /v1/sandboxes/{id}/fork` | `ForkSpec` | 201 `Fork` |
//! | `POST /v1/sandboxes/{id}/snapshot` | `SnapshotSpec` | 201 `NewSnapshot` |
//! | `POST /v1/sandboxes/{id}/pause` | | `Paused` |
//! | `POST /v1/sandboxes/{id}/resume` | | `Resumed` |
//! | `POST /v1/sandboxes/{id}/timeout` | [`Timeout`] | `Sandbox` |
//! | `GET /v1/sandboxes/{id}/events` | | `[Event]` |
//! | `GET /v1/sandboxes/{id}/diff?path=P&path=Q&form=list\|stat` | | `[Change]` |
//! | `GET /v1/sandboxes/{id}/diff?path=P&path=Q&form=patch` | | a patch in git's form |
//! | `GET /v1/usage` | | `[Sandbox]` that run, with usage |
//! | `POST /v1/run` | [`Run`] | stream |
//! | `POST /v1/sandboxes/{id}/commands` | `CommandSpec` | stream when upgraded, else 201 `Command` |
//! | `GET /v1/sandboxes/{id}/commands` | | `[Command]` |
//! | `GET /v1/sandboxes/{id}/commands/{n}` | | `Command` |
//! | `DELETE /v1/sandboxes/{id}/commands/{n}` | | 204; forgets an ended command and its output |
//! | `GET /v1/sandboxes/{id}/commands/{n}/attach?stdout=N&stderr=N` | | stream from these offsets |
//! | `GET /v1/sandboxes/{id}/commands/{n}/output?stream=stdout\|stderr` | | bytes kept |
//! | `POST /v1/sandboxes/{id}/commands/{n}/wait` | | `Command` once it has ended |
//! | `POST /v1/sandboxes/{id}/commands/{n}/signal` | [`Signal`] | 204 |
//! | `POST /v1/sandboxes/{id}/session` | [`SessionRun`] | `SessionOutput` |
//! | `DELETE /v1/sandboxes/{id}/session` | | 204; the next line gets a new shell |
//! | `GET /v1/sandboxes/{id}/files?path=P` | | bytes of a file |
//! | `PUT /v1/sandboxes/{id}/files?path=P&mode=0644&append=true&parents=true` | bytes | 204 |
//! | `DELETE /v1/sandboxes/{id}/files?path=P&recursive=true` | | 204 |
//! | `GET /v1/sandboxes/{id}/stat?path=P` | | [`FileInfo`] |
//! | `GET /v1/sandboxes/{id}/list?path=P&depth=1` | | `[FileInfo]` |
//! | `POST /v1/sandboxes/{id}/mkdir?path=P&parents=true&mode=0755` | | 204 |
//! | `POST /v1/sandboxes/{id}/move?from=P&to=P` | | 204 |
//! | `POST /v1/sandboxes/{id}/copy?from=P&to=P&recursive=true` | | 204 |
//! | `GET /v1/sandboxes/{id}/archive?path=P` | | tar of a file or tree |
//! | `PUT /v1/sandboxes/{id}/archive?path=P` | tar | 204; unpacked below `P` |
//! | `GET /v1/snapshots` | | `[Snapshot]` |
//! | `GET /v1/snapshots/{id}` | | `Snapshot` |
//! | `DELETE /v1/snapshots/{id}` | | 204 |
//! | `GET /v1/images` | | `[ImageInfo]` |
//! | `POST /v1/images/pull` | [`Pull`] | lines of JSON [`Progress`] |
//! | `POST /v1/images/import` | [`Import`] | lines of JSON [`Progress`] |
//! | `POST /v1/images/prune` | | `Pruned`: layers and parts of downloads that nothing uses |
//! | `GET /v1/images/{name}` | | `ImageDetails` |
//! | `DELETE /v1/images/{name}` | | 204 |
//! | `POST /v1/keys` | `KeySpec` | 201 `NewKey` |
//! | `GET /v1/keys` | | `[Key]` |
//! | `DELETE /v1/keys/{id}` | | 204 |
//! | `POST /v1/shutdown` | | 204; refused while sandboxes run, unless `?force=true`, which removes all sandboxes, or `?keep=true`, which leaves them to the next server |
//!
//! `{id}` is an id or a name. File paths are absolute, or relative to the sandbox's working
//! directory; every file call takes `user=USER` to act as that user. A failure is a JSON
//! [`ErrorBody`] with the status it names.

use forkyard_engine::model::{CommandSpec, ImageInfo, SandboxSpec};
use serde::{Deserialize, Serialize};

/// An error as the API tells it, in E2B's shape with a hint added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status.
    pub code: u16,
    /// What failed: why.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code for a command line: 125, or 126 and 127 when a program could not be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// What a live server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its store.
    pub store: String,
    /// `root`, `subids` (rootless with subordinate ids) or `single` (rootless with one id).
    pub mode: String,
    /// Sandboxes that run.
    pub sandboxes: usize,
    /// URLs of its addresses for clients with keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
}

/// Body of `POST /v1/run`: make a sandbox, run a command, delete the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The sandbox.
    pub sandbox: SandboxSpec,
    /// The command; the image's own when it has neither `argv` nor `shell`.
    pub command: CommandSpec,
    /// Keep the sandbox afterwards.
    pub keep: bool,
}

/// Body of `POST .../timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeout {
    /// End the sandbox this many milliseconds from now; never when absent.
    pub timeout_ms: Option<u64>,
}

/// Body of `POST .../signal`, and of a signal frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The signal's number, 1 to 64.
    pub signal: i32,
}

/// Body of `POST .../session`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRun {
    /// One or more lines of shell.
    pub command: String,
    /// Interrupt them after this long, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// What kind of file a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or fifo.
    Other,
}

/// A file in a sandbox. Bytes of names that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Absolute path.
    pub path: String,
    /// Last part of the path.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the sandbox sees it.
    pub uid: u32,
    /// Group, as the sandbox sees it.
    pub gid: u32,
    /// Last change of contents, milliseconds since the epoch.
    pub modified_at: i64,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Body of `POST /v1/images/pull`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// As `docker pull` takes it: `[REGISTRY/]REPOSITORY[:TAG|@DIGEST]`.
    pub reference: String,
    /// `OS/ARCH[/VARIANT]`; the host's when absent.
    #[serde(default)]
    pub platform: Option<String>,
    /// Speak plain HTTP; loopback registries are spoken to so without it.
    #[serde(default)]
    pub plain_http: bool,
    /// Give up when the registry sends nothing for this long, in milliseconds; 30 seconds when
    /// absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// Body of `POST /v1/images/import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Absolute path on the host: a directory, an OCI layout, an archive of `docker save`, or a
    /// tar of a root file system.
    pub path: String,
    /// The image's name; from the archive, else from the path, when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// `OS/ARCH[/VARIANT]`; the host's when absent.
    #[serde(default)]
    pub platform: Option<String>,
}

/// A line of a pull's or an import's answer. The last is `Done` or `Error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Progress {
    /// A layer moved on.
    Layer {
        /// Its digest, or what else names it.
        id: String,
        /// `downloading`, `unpacking`, `done`, `present`.
        step: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// Something worth knowing: devices skipped, and the like.
    Note {
        /// For people.
        message: String,
    },
    /// The image is there.
    Done {
        /// The image.
        image: ImageInfo,
    },
    /// It failed.
    Error {
        /// Why.
        error: ErrorBody,
    },
}
