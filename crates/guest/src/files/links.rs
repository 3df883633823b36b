//! Files with several names, as they are met in a tree.

use std::collections::HashMap;

use super::dir::FileId;

/// Most bytes of paths that are remembered. A file whose first name is forgotten is taken for
/// another file when its next name comes.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Of each file met: where its first name went, and as which file.
#[derive(Debug, Default)]
pub(super) struct Links {
    paths: HashMap<FileId, (Vec<u8>, FileId)>,
    bytes: usize,
}

impl Links {
    pub(super) fn seen(&self, id: FileId) -> Option<(&[u8], FileId)> {
        self.paths.get(&id).map(|(path, made)| (path.as_slice(), *made))
    }

    pub(super) fn remember(&mut self, id: FileId, path: Vec<u8>, made: FileId) {
        const OVERHEAD: usize = 128;
        let size = path.len() + OVERHEAD;
        if self.bytes + size <= BYTES_MAX {
            self.bytes += size;
            self.paths.insert(id, (path, made));
        }
    }
}
