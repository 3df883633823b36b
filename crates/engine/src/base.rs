//! Bases: layers between a sandbox's image and what it wrote itself, which it shares with others.
//!
//! What a sandbox wrote is copied for its clones. Where that is much, it is copied once: the copy is
//! a layer of each clone then; or what it wrote in its root becomes a layer itself, of its clones
//! and of the sandbox, which goes on above it. So are the files of a snapshot for what is made from
//! it. A base stays as long as a sandbox or a snapshot of one has it. A reset leaves it out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forkyard_guest::proto::{InitBody, MountSource, SEALED, Setup};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
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

    /// Gives what a sandbox wrote a place among bases, where that became a layer of it by a fork:
    /// the one that clones know, where there are any. Its record tells before it is done.
    pub(crate) async fn settle_seal(&self, live: &LiveSandbox, dir: Option<&Path>) -> Result<()> {
        let sealed = self.layout.sandbox(live.id()).join(SEALED);
        if !sealed.exists() {
            return Ok(());
        }
        // Init, which may have been about to move it back, has done so when it answers.
        live.ask(InitBody::List, &[]).await?;
        let internal = live.internal();
        let Some(root) = internal.overlays.first().map(|overlay| overlay.name.clone()) else {
            return Ok(());
        };
        if !sealed.exists() {
            return Ok(());
        }
        // It may be written down already.
        let known = internal.bases.first().filter(|base| !base.dir.exists());
        let known = known.map(|base| base.dir.clone());
        let place = || dir.map_or_else(|| self.layout.new_base(), Path::to_owned);
        let (dir, is_new) = known.map_or_else(|| (place(), true), |dir| (dir, false));
        if is_new {
            let base = Base { dir: dir.clone(), overlays: vec![root] };
            live.change("layer", &dir.display().to_string(), |_, internal| {
                internal.bases.insert(0, base);
            })?;
        }
        std::fs::rename(&sealed, &dir)
            .map_err(Error::io(format!("moving a layer to {}", dir.display())))
    }
}

/// Layers of the root's overlay that are of bases, the topmost first.
pub(crate) fn layers_of_root(internal: &Internal) -> Vec<String> {
    let Some(root) = internal.overlays.first() else { return Vec::new() };
    let bases = internal.bases.iter().filter(|base| base.overlays.contains(&root.name));
    bases.map(|base| base.dir.join(&root.name).to_string_lossy().into_owned()).collect()
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
