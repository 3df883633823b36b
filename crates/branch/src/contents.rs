//! Contents of files on the two sides, and how they differ line by line.

use std::fs::File;
use std::io::Read;

use imara_diff::{Algorithm, Diff, InternedInput};

use crate::change::{Change, ChangeKind, Kind, Node};
use crate::error::{Error, Result};
use crate::layers::Layers;

/// Most bytes of contents that are shown: two such files, and what they are taken apart into, are
/// in memory at once.
pub const CONTENTS_MAX: usize = 32 << 20;

/// How much of a file is looked at to tell whether it is text, as git does.
const HEAD: usize = 8000;

/// How many lines were added and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Lines that are there now.
    pub added: u64,
    /// Lines that are not there any more.
    pub removed: u64,
}

/// What is in a file or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// This.
    Bytes(Vec<u8>),
    /// More than [`CONTENTS_MAX`], or nothing that may be read.
    Unknown,
}

impl Contents {
    pub(crate) fn is_binary(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.iter().take(HEAD).any(|&byte| byte == 0),
            Self::Unknown => true,
        }
    }
}

impl Change {
    /// The path that its old side is at.
    pub(crate) fn old_path(&self) -> &[u8] {
        match &self.kind {
            ChangeKind::Renamed { from } => from,
            _ => &self.path,
        }
    }

    /// Whether git would call it binary: a NUL byte near the beginning of either side. Of what is
    /// no regular file, no.
    ///
    /// # Errors
    /// When something that is there cannot be read.
    pub fn is_binary(&self, layers: &Layers) -> Result<bool> {
        if !self.is_told_by_contents() {
            return Ok(false);
        }
        for (node, path) in [(&self.old, self.old_path()), (&self.new, &self.path)] {
            let Some(node) = node.as_ref().filter(|node| node.kind == Kind::File) else { continue };
            if node.size > 0 && read(layers, node, path, HEAD)?.is_binary() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many lines were added and removed; nothing for what is binary, too large, or no file.
    ///
    /// # Errors
    /// When something that is there cannot be read.
    pub fn lines(&self, layers: &Layers) -> Result<Option<Lines>> {
        if !self.is_told_by_contents() {
            return Ok(None);
        }
        let (old, new) = (self.old_contents(layers)?, self.new_contents(layers)?);
        match (&old, &new) {
            (Contents::Bytes(before), Contents::Bytes(after))
                if !old.is_binary() && !new.is_binary() =>
            {
                let diff = compare(&InternedInput::new(before.as_slice(), after.as_slice()));
                let added = u64::from(diff.count_additions());
                Ok(Some(Lines { added, removed: u64::from(diff.count_removals()) }))
            }
            _ => Ok(None),
        }
    }

    /// Whether what is in it is different, and not only what is known of it.
    fn is_told_by_contents(&self) -> bool {
        let has = |node: &Option<Node>| {
            node.as_ref().is_some_and(|node| matches!(node.kind, Kind::File | Kind::Symlink))
        };
        let differs = match self.kind {
            ChangeKind::Changed => self.aspects.contents || self.aspects.kind,
            ChangeKind::Added | ChangeKind::Removed => true,
            ChangeKind::Renamed { .. } => false,
        };
        differs && (has(&self.old) || has(&self.new))
    }

    pub(crate) fn old_contents(&self, layers: &Layers) -> Result<Contents> {
        contents(layers, self.old.as_ref(), self.old_path())
    }

    pub(crate) fn new_contents(&self, layers: &Layers) -> Result<Contents> {
        contents(layers, self.new.as_ref(), &self.path)
    }
}

/// How texts differ.
pub(crate) fn compare(input: &InternedInput<&[u8]>) -> Diff {
    let mut diff = Diff::compute(Algorithm::Histogram, input);
    diff.postprocess_lines(input);
    diff
}

/// What is in a file, or where a link leads; nothing of what is neither.
fn contents(layers: &Layers, node: Option<&Node>, path: &[u8]) -> Result<Contents> {
    match node {
        Some(node) if node.kind == Kind::File => read(layers, node, path, CONTENTS_MAX + 1),
        Some(node) => Ok(Contents::Bytes(node.target.clone().unwrap_or_default())),
        None => Ok(Contents::Bytes(Vec::new())),
    }
}

/// The first bytes of a file; unknown where more than [`CONTENTS_MAX`] come.
fn read(layers: &Layers, node: &Node, path: &[u8], most: usize) -> Result<Contents> {
    let file = match layers.open_file(node.layer, path) {
        Err(error) if error.is_denied() => return Ok(Contents::Unknown),
        opened => opened?,
    };
    let Some(file) = file else { return Ok(Contents::Bytes(Vec::new())) };
    if most > CONTENTS_MAX && node.size > CONTENTS_MAX as u64 {
        return Ok(Contents::Unknown);
    }
    let mut bytes = Vec::new();
    let read = File::from(file).take(most as u64).read_to_end(&mut bytes);
    read.map_err(|e| Error::System {
        call: "read".to_owned(),
        path: path.to_vec(),
        errno: e.raw_os_error().unwrap_or(5),
    })?;
    // It may have grown.
    Ok(if bytes.len() > CONTENTS_MAX { Contents::Unknown } else { Contents::Bytes(bytes) })
}
