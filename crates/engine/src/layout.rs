//! Where things are in a store.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::{SandboxId, SnapshotId};

/// A store's directories.
///
/// ```text
/// STORE/lock                      held by the server
///      /store.sqlite              what must be consistent
///      /images/                   layers, see forkyard-image
///      /sandboxes/ID/identity/    layer with the files that carry its name
///      /sandboxes/ID/GENERATION/  uppers of a sandbox since its last reset
///      /sandboxes/ID/sealed/      one that became a layer, on its way to /bases/
///      /run/ID                    socket of a sandbox's init
///      /sandboxes/ID/paused/      a sandbox while it is paused, of the form of a snapshot
///      /snapshots/ID/             snapshots; with `.part` behind the name until all is there; one
///                                 that was removed stays while its files are a base
///      /bases/N/                  layers that sandboxes share, see [`crate::base`]
///      /templates/N/              copies of a sandbox's files, while it is forked
///      /trash/                    being removed
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes what is missing, readable by its owner alone.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let layout = Self { root: root.to_owned() };
        let root = layout.root.clone();
        let (bases, templates) = (layout.bases(), layout.templates());
        let (snapshots, trash) = (layout.snapshots(), layout.trash());
        for dir in [root, layout.sandboxes(), layout.run(), bases, templates, snapshots, trash] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(Error::io(format!("making {}", dir.display())))?;
        }
        Ok(layout)
    }

    /// The store itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("store.sqlite")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn socket(&self, id: &SandboxId) -> PathBuf {
        self.run().join(id.as_str())
    }

    fn bases(&self) -> PathBuf {
        self.root.join("bases")
    }

    pub(crate) fn all_bases(&self) -> Result<Vec<PathBuf>> {
        let dir = self.bases();
        let all = std::fs::read_dir(&dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        all.map_err(Error::io(format!("reading {}", dir.display())))
    }

    /// A place for layers that sandboxes share, where nothing is yet.
    pub(crate) fn new_base(&self) -> PathBuf {
        self.bases().join(crate::clock::unique().to_string())
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// Makes a directory for the files of a sandbox that is being forked.
    pub(crate) fn new_template(&self) -> Result<PathBuf> {
        let path = self.templates().join(crate::clock::unique().to_string());
        std::fs::create_dir(&path).map_err(Error::io(format!("making {}", path.display())))?;
        Ok(path)
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshot(&self, id: &SnapshotId) -> PathBuf {
        self.snapshots().join(id.as_str())
    }

    /// A snapshot that is being written.
    pub(crate) fn snapshot_part(&self, id: &SnapshotId) -> PathBuf {
        self.snapshots().join(format!("{id}.part"))
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Makes a sandbox's directory, where it has none; its init makes what is in it.
    pub(crate) fn make_sandbox(&self, id: &SandboxId) -> Result<()> {
        let path = self.sandbox(id);
        match std::fs::create_dir(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(Error::io(format!("making {}", path.display()))),
        }
    }

    /// Moves a directory of the store out of the way, to be removed behind everybody's back.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
        let name = format!("{}-{name}-{}", parent.to_string_lossy(), crate::clock::unique());
        match std::fs::rename(path, self.trash().join(name)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("discarding {}", path.display()))(e)),
        }
    }
}
