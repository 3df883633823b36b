//! A host directory that is worked on in a sandbox.

use serde::{Deserialize, Serialize};

/// A host directory that a sandbox sees as its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Absolute path of an existing directory on the host.
    pub source: String,
    /// Absolute path in the sandbox; made when it is not there. Commands start there, unless
    /// another directory is named.
    #[serde(default = "target")]
    pub target: String,
    /// What is written there becomes of what.
    #[serde(default)]
    pub mode: WorkspaceMode,
}

/// What becomes of what is written in a workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceMode {
    /// It stays in the sandbox, and the host's directory as it is.
    #[default]
    Cow,
    /// It is written to the host's directory at once.
    Rw,
    /// Nothing can be written.
    Ro,
}

/// Where a workspace is when nobody says where.
fn target() -> String {
    Workspace::TARGET.to_owned()
}

impl Workspace {
    /// Where a workspace is when nobody says where.
    pub const TARGET: &str = "/workspace";
}
