//! What a sandbox changed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use forkyard_branch::{Aspects, Kind, Node};
use serde::{Deserialize, Serialize};

/// What `diff` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffSpec {
    /// Absolute paths in the sandbox: changes to these and to all below them. Everything where
    /// there are none.
    pub paths: Vec<String>,
    /// How it is told.
    pub form: DiffForm,
}

/// How changes are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiffForm {
    /// An array of [`Change`]s in JSON, in the order of paths.
    #[default]
    List,
    /// The same with the number of lines that were added and removed.
    Stat,
    /// A patch in git's form, which `git apply` takes. Paths in it begin at the sandbox's root;
    /// those in a workspace at its top, and without paths it has these alone.
    Patch,
}

/// A change to a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its absolute path in the sandbox.
    #[serde(flatten)]
    pub path: FileName,
    /// What was done.
    pub change: ChangeKind,
    /// Where it was, of what was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<FileName>,
    /// What of it is different, of what was changed or renamed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<Difference>,
    /// What it was; nothing where it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Side>,
    /// What it is; nothing where it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Side>,
    /// Its contents are no text, or were none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub binary: bool,
    /// How many lines were added and removed, where that was asked for and it is text of at most
    /// 32 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<Lines>,
}

/// What was done to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is there and was not.
    Added,
    /// It is different.
    Changed,
    /// It is not there any more.
    Removed,
    /// A file of the same contents, which is not there any more, was at another path.
    Renamed,
}

/// What of a file is different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// What kind of file it is.
    Kind,
    /// Its bytes, or where a link leads.
    Contents,
    /// Its permission bits.
    Mode,
    /// Its owner or group.
    Owner,
    /// Its extended attributes.
    Attributes,
}

/// A name in any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName {
    /// It as text; bytes that are not UTF-8 are replaced, see `path_base64`.
    pub path: String,
    /// It in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
}

/// A file as it was or is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the sandbox sees it.
    pub uid: u32,
    /// Group, as the sandbox sees it.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<FileName>,
}

/// How many lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// That are there now.
    pub added: u64,
    /// That are not there any more.
    pub removed: u64,
}

impl FileName {
    /// A name of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let is_text = std::str::from_utf8(bytes).is_ok();
        Self {
            path: String::from_utf8_lossy(bytes).into_owned(),
            path_base64: (!is_text).then(|| BASE64_STANDARD.encode(bytes)),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let encoded = self.path_base64.as_ref().and_then(|text| BASE64_STANDARD.decode(text).ok());
        encoded.unwrap_or_else(|| self.path.clone().into_bytes())
    }
}

impl From<&Node> for Side {
    fn from(node: &Node) -> Self {
        Self {
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            target: node.target.as_deref().map(FileName::new),
        }
    }
}

impl Difference {
    pub(crate) fn all(aspects: Aspects) -> Vec<Self> {
        let all = [
            (aspects.kind, Self::Kind),
            (aspects.contents, Self::Contents),
            (aspects.mode, Self::Mode),
            (aspects.owner, Self::Owner),
            (aspects.attributes, Self::Attributes),
        ];
        all.into_iter().filter_map(|(is, difference)| is.then_some(difference)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_bytes_in_json() {
        for bytes in [&b"/a b"[..], "/\u{e4}".as_bytes(), b"/\xff\xfe", b"/new\nline"] {
            let json = serde_json::to_string(&FileName::new(bytes)).unwrap();
            assert_eq!(serde_json::from_str::<FileName>(&json).unwrap().bytes(), bytes, "{json}");
        }
    }
}
