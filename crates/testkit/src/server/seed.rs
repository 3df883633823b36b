//! The layer of the `host` image, made once for many stores.
//!
//! Each test has a store of its own, whose first sandbox makes a layer of some 900 files. ext4 is
//! slow at that where it has removed as many a moment ago, which is what tests do. Where
//! `FORKYARD_TEST_SEED` names a directory, the layer of the first store is kept there, and later
//! stores begin with links to it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Gives a store that is to be made the layer that is kept.
pub(super) fn plant(store: &Path) {
    if let Some(seed) = place().filter(|seed| seed.is_dir()) {
        // As a server makes it.
        if fs::DirBuilder::new().mode(0o700).create(store).is_ok() {
            link(&seed, &store.join("images"));
        }
    }
}

/// Keeps the layer of a store for those that come, if none is kept.
pub(super) fn keep(store: &Path) {
    let Some(seed) = place().filter(|seed| !seed.exists()) else { return };
    let Some(dir) = seed.parent() else { return };
    let known = ["host.json", "squash-host.json"].map(|name| store.join("images").join(name));
    let one_layer = || fs::read_dir(store.join("images/layers")).is_ok_and(|all| all.count() == 1);
    if !known.iter().any(|file| file.is_file()) || !one_layer() {
        return;
    }
    let Ok(part) = tempfile::Builder::new().prefix("seed-").tempdir_in(dir) else { return };
    let images = part.path().join("images");
    // Another test may have been first.
    if link(&store.join("images"), &images) && fs::rename(&images, &seed).is_err() {
        let _ = fs::remove_dir_all(&images);
    }
}

fn place() -> Option<PathBuf> {
    std::env::var_os("FORKYARD_TEST_SEED").map(PathBuf::from)
}

/// Copies a tree by links to its files; all of it or nothing.
fn link(from: &Path, to: &Path) -> bool {
    // Directories keep their owners, which may be subordinate ids.
    let mut copy = Command::new("unshare");
    if crate::is_root() || crate::is_single_id() {
        copy = Command::new("cp");
    } else {
        copy.args(["--map-root-user", "--map-auto", "cp"]);
    }
    copy.arg("-al").arg(from).arg(to);
    let done = copy.output().is_ok_and(|out| out.status.success());
    if !done {
        let _ = fs::remove_dir_all(to);
    }
    done
}
