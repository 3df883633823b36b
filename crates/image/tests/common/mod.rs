//! What the tests of this crate share: images made here, and a store to put them into.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what is skipped is to be seen")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use forkyard_image::{Digest, InProcess, LayerStore, Limits, Ownership};
pub(crate) use forkyard_testkit::oci::{Layout, TestLayer, host_platform};

/// A store that ends with the test.
pub(crate) struct Store {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: LayerStore,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            LayerStore::open(dir.path(), Ownership::Squash, Limits::default(), &InProcess).unwrap();
        Self { dir, store }
    }

    /// Panics when anything but complete layers is there.
    pub(crate) fn assert_no_leftovers(&self) {
        assert_eq!(fs::read_dir(self.dir.path().join("tmp")).unwrap().count(), 0);
    }

    pub(crate) fn assert_empty(&self) {
        self.assert_no_leftovers();
        assert_eq!(fs::read_dir(self.dir.path().join("layers")).unwrap().count(), 0);
    }

    /// Bytes kept of a download that was cut off.
    pub(crate) fn partial(&self, blob: &Digest) -> Option<u64> {
        let name = format!("{}.partial", blob.file_name());
        Some(fs::metadata(self.dir.path().join("blobs").join(name)).ok()?.len())
    }
}

/// Everything below a directory, by path.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).unwrap_or_default());
            }
        }
    }
    found
}

/// The program's path, or a word on what is missing: the test counts as skipped.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}
