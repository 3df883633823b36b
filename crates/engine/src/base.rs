//! Bases: layers between a sandbox's image and what it wrote itself, which it shares with others.
//!
//! What a sandbox wrote is copied for its clones. Where that is much, it is copied once: the copy is
//! a layer of each clone then. So are the files of a snapshot for what is made from it. A base stays
//! as long as a sandbox or a snapshot of one has it. A reset leaves it out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forkyard_guest::proto::{MountSource, Setup};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::model::SnapshotId;
use crate::sandbox::{Internal, LiveSandbox};

/// Most bases that a sandbox has above one another: overlayfs(5) takes 500 layers, whose names must
/// fit into a page.
pub(crate) const BASES_MAX: usize = 32;

/// A base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The overlays that it has a layer for, each a directory of that name.
    pub(crate) overlays: Vec<String>,
}

/// Bases that are needed by what is not written down yet.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<Vec<PathBuf>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps bases until it is dropped.
pub(crate) struct Hold {
    engine: Arc<Engine>,
    dirs: Vec<PathBuf>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.engine.holds.lock();
        for dir in &self.dirs {
            if let Some(at) = holds.iter().position(|held| held == dir) {
                holds.swap_remove(at);
            }
        }
        drop(holds);
        self.engine.release_bases(self.dirs.iter());
    }
}

impl Engine {
    /// Keeps bases from being removed.
    pub(crate) fn hold_bases(self: &Arc<Self>, dirs: Vec<PathBuf>) -> Hold {
        self.holds.lock().extend(dirs.iter().cloned());
        Hold { engine: Arc::clone(self), dirs }
    }

    /// Removes those of these bases that nobody needs any more.
    pub(crate) fn release_bases<'a>(&self, dirs: impl Iterator<Item = &'a PathBuf>) {
        for dir in dirs.filter(|dir| !self.is_needed(dir)) {
            // Of a snapshot that was removed, all of it goes.
            let of_snapshot = dir.parent().filter(|dir| self.is_snapshot(dir));
            if let Err(error) = self.layout.discard(of_snapshot.unwrap_or(dir)) {
                tracing::error!(%error, "the next start removes it");
            }
        }
    }

    fn is_snapshot(&self, dir: &Path) -> bool {
        dir.parent() == Some(&self.layout.snapshots())
    }

    /// Whether a sandbox, a snapshot, or one that is about to be there has this base.
    pub(crate) fn is_needed(&self, dir: &Path) -> bool {
        let has = |internal: &Internal| internal.bases.iter().any(|base| base.dir == dir);
        let is_of = |id: &SnapshotId| dir.parent() == Some(&self.layout.snapshot(id));
        self.snapshots.list().iter().any(|entry| is_of(entry.id()))
            || self.holds.lock().iter().any(|held| held == dir)
            || self.list().iter().any(|live: &Arc<LiveSandbox>| has(&live.record().1))
            || self.snapshots.list().iter().any(|entry| has(&entry.kept().internal))
    }

    /// Removes bases that a server which was killed has left to nobody.
    pub(crate) fn sweep_bases(&self) -> Result<()> {
        self.release_bases(self.layout.all_bases()?.iter());
        Ok(())
    }
}

/// What a sandbox's mounts are made of, its bases included, of which the setup is told.
pub(crate) fn sources(internal: &Internal, setup: &mut Setup) -> Vec<MountSource> {
    let mut sources = internal.sources.clone();
    for overlay in &mut setup.overlays {
        overlay.base.clear();
        for base in internal.bases.iter().filter(|base| base.overlays.contains(&overlay.name)) {
            overlay.base.push(sources.len());
            let path = base.dir.join(&overlay.name).to_string_lossy().into_owned();
            sources.push(MountSource { path, read_only: true, recursive: false });
        }
    }
    sources
}
