//! Layers on disk: unpacked once, named by their contents, shared by all images that have them.
//!
//! ```text
//! ROOT/layers/sha256-HEX/fs/          the tree, ready as a lower directory of an overlay
//!                       /layer.json   its facts
//! ROOT/layers/sha256-HEX-squash/      the same layer unpacked with Ownership::Squash
//! ROOT/blobs/sha256-HEX.partial       downloads under way, or waiting to be resumed
//! ROOT/locks/                         one lock a layer and a blob
//! ROOT/tmp/                           work under way; left-overs are swept away
//! ```
//!
//! A layer appears by one rename, after its bytes are on disk. ROOT is closed to other users: a
//! layer may hold setuid programs of its image.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::compress::Blob;
use crate::digest::Digest;
use crate::error::UnpackError;
use crate::unpack::{Limits, Ownership, Unpacker};

/// How long a download that was cut off waits to be resumed: over a weekend, not for ever.
const KEEP_DOWNLOADS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The layers of a user, or of the system.
#[derive(Clone, Debug)]
pub struct LayerStore {
    root: PathBuf,
    ownership: Ownership,
    limits: Limits,
}

/// What is known of a layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// SHA-256 of its uncompressed archive.
    pub diff_id: Digest,
    /// Bytes of files' contents.
    pub size: u64,
    /// Entries of its archive.
    pub entries: u64,
    /// Who owns its files.
    pub ownership: Ownership,
    /// What was left out when it was unpacked.
    pub notes: Vec<String>,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{call} of {}: {error}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// What on.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A layer's archive could not be unpacked.
    #[error("layer {layer}: {error}")]
    Unpack {
        /// What the layer is called where it comes from.
        layer: String,
        /// Why.
        error: UnpackError,
    },
    /// A layer's contents are not what the image says.
    #[error("layer {expected}: its contents have the digest {actual}")]
    WrongContents {
        /// What the image's configuration says.
        expected: Digest,
        /// What came out.
        actual: Digest,
    },
    /// An archive without digest that ends where an archive should not.
    #[error("layer {layer}: the archive is truncated: its end mark is missing")]
    Truncated {
        /// What the layer is called where it comes from.
        layer: String,
    },
    /// A layer that is being unpacked or taken up by an image.
    #[error("layer {0} is in use")]
    Busy(Digest),
}

/// Keeps a layer from being removed for as long as it lives. Made when an image is pulled or
/// imported, to be dropped when the image is recorded.
#[derive(Debug)]
pub struct Hold {
    facts: LayerFacts,
    /// Whether this call brought the layer in.
    fresh: bool,
    _lock: File,
}

impl Hold {
    /// The layer's facts.
    pub fn facts(&self) -> &LayerFacts {
        &self.facts
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }
}

/// What [`LayerStore::claim`] came to.
enum Claim {
    /// The layer is there.
    Held(Hold),
    /// It is not, and whoever has this lock brings it in.
    Ours(File),
}

impl LayerStore {
    /// Opens the store in a directory, which is made when missing; removes what work that was cut
    /// off has left there, with an [`Unpacker`] that may.
    pub fn open(
        root: &Path,
        ownership: Ownership,
        limits: Limits,
        unpacker: &dyn Unpacker,
    ) -> Result<Self, StoreError> {
        for dir in [root.to_path_buf(), root.join("layers"), root.join("blobs")]
            .into_iter()
            .chain([root.join("locks"), root.join("tmp")])
        {
            make_private(&dir)?;
        }
        let root = root.canonicalize().map_err(failed("realpath", root))?;
        let store = Self { root, ownership, limits };
        store.sweep(unpacker)?;
        Ok(store)
    }

    /// Who owns the files of layers that are added.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// How much a layer may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The directory of a layer's files, there or not.
    pub fn tree(&self, layer: &Digest) -> PathBuf {
        self.dir(layer).join("fs")
    }

    /// Whether a layer is there.
    pub fn has(&self, layer: &Digest) -> bool {
        self.tree(layer).is_dir()
    }

    /// A layer's facts; `None` when it is not there.
    pub fn facts(&self, layer: &Digest) -> Result<Option<LayerFacts>, StoreError> {
        let path = self.dir(layer).join("layer.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| failed("parse", &path)(io::Error::from(e))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }
    }

    /// All layers there, in no order.
    pub fn list(&self) -> Result<Vec<LayerFacts>, StoreError> {
        let dir = self.root.join("layers");
        let mut layers = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("readdir", &dir))? {
            let path = entry.map_err(failed("readdir", &dir))?.path().join("layer.json");
            let Ok(bytes) = fs::read(&path) else { continue };
            let facts: LayerFacts =
                serde_json::from_slice(&bytes).map_err(|e| failed("parse", &path)(e.into()))?;
            if facts.ownership == self.ownership {
                layers.push(facts);
            }
        }
        Ok(layers)
    }

    /// Takes hold of a layer that is there.
    pub fn hold(&self, layer: &Digest) -> Result<Option<Hold>, StoreError> {
        let lock = self.lock_file(&self.key(layer))?;
        flock(&lock, FlockOperation::LockShared, &self.dir(layer))?;
        Ok(self.facts(layer)?.map(|facts| Hold { facts, fresh: false, _lock: lock }))
    }

    /// Adds a layer from its archive: plain, gzip or zstd. Whoever else adds the same layer at
    /// the same time waits, and finds it there.
    ///
    /// `expected` is the digest of the uncompressed archive where an image names it; without it,
    /// the archive must end with its end mark. `label` names the layer in errors.
    pub fn add(
        &self,
        blob: Blob<'_>,
        expected: Option<&Digest>,
        label: &str,
        unpacker: &dyn Unpacker,
    ) -> Result<Hold, StoreError> {
        let Some(expected) = expected else { return self.add_unnamed(blob, label, unpacker) };
        loop {
            let lock = match self.claim(expected)? {
                Claim::Held(hold) => return Ok(hold),
                Claim::Ours(lock) => lock,
            };
            let work = self.unpack(blob, label, unpacker)?;
            if work.facts.diff_id != *expected {
                let (expected, actual) = (expected.clone(), work.facts.diff_id.clone());
                work.discard(unpacker)?;
                return Err(StoreError::WrongContents { expected, actual });
            }
            work.publish(self)?;
            // A change of lock lets go for a moment, in which the layer can be removed.
            flock(&lock, FlockOperation::LockShared, &self.dir(expected))?;
            if let Some(facts) = self.facts(expected)? {
                return Ok(Hold { facts, fresh: true, _lock: lock });
            }
        }
    }

    /// Takes hold of a layer that is there, or the sole right to bring it in. Waits for who is
    /// bringing it in, but for nobody who holds it: that may be for good.
    fn claim(&self, layer: &Digest) -> Result<Claim, StoreError> {
        loop {
            if let Some(hold) = self.hold(layer)? {
                return Ok(Claim::Held(hold));
            }
            let lock = self.lock_file(&self.key(layer))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.has(layer) => {}
                Ok(()) => return Ok(Claim::Ours(lock)),
                // Another one looks whether it is there, as we did, or brings it in.
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::yield_now(),
                Err(e) => return Err(failed("flock", &self.dir(layer))(e.into())),
            }
        }
    }

    fn add_unnamed(
        &self,
        blob: Blob<'_>,
        label: &str,
        unpacker: &dyn Unpacker,
    ) -> Result<Hold, StoreError> {
        let work = self.unpack(blob, label, unpacker)?;
        if !work.ended {
            work.discard(unpacker)?;
            return Err(StoreError::Truncated { layer: label.to_owned() });
        }
        let facts = work.facts.clone();
        let lock = match self.claim(&facts.diff_id)? {
            Claim::Held(hold) => {
                work.discard(unpacker)?;
                return Ok(hold);
            }
            Claim::Ours(lock) => lock,
        };
        work.publish(self)?;
        flock(&lock, FlockOperation::LockShared, &self.dir(&facts.diff_id))?;
        Ok(Hold { facts, fresh: true, _lock: lock })
    }

    fn unpack(
        &self,
        blob: Blob<'_>,
        label: &str,
        unpacker: &dyn Unpacker,
    ) -> Result<Work, StoreError> {
        let work = self.work_dir()?;
        let tree = work.path.join("fs");
        let fail = |call| failed(call, &tree);
        fs::DirBuilder::new().mode(0o755).create(&tree).map_err(fail("mkdir"))?;
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).map_err(fail("chmod"))?;
        let fd = open_dir(&tree)?;
        let unpacked = match unpacker.unpack(blob, fd.as_fd(), self.ownership, self.limits) {
            Ok(unpacked) => unpacked,
            Err(error) => {
                work.discard(unpacker)?;
                return Err(StoreError::Unpack { layer: label.to_owned(), error });
            }
        };
        let facts = LayerFacts {
            diff_id: unpacked.diff_id,
            size: unpacked.size,
            entries: unpacked.entries,
            ownership: self.ownership,
            notes: unpacked.notes,
        };
        let json = serde_json::to_vec(&facts).map_err(|e| fail("write")(e.into()))?;
        let path = work.path.join("layer.json");
        fs::write(&path, json).map_err(failed("write", &path))?;
        // One flush for all files: a layer that is there after a power cut is whole.
        rustix::fs::syncfs(&fd).map_err(|e| fail("syncfs")(e.into()))?;
        Ok(Work { dir: work, facts, ended: unpacked.ended })
    }

    /// Removes a layer. The caller knows that no image and no sandbox has it; one that is just
    /// being taken up is [`StoreError::Busy`]. One that is not there is no error.
    pub fn remove(&self, layer: &Digest, unpacker: &dyn Unpacker) -> Result<(), StoreError> {
        let lock = self.lock_file(&self.key(layer))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy(layer.clone())),
            Err(e) => return Err(failed("flock", &self.dir(layer))(e.into())),
        }
        let dir = self.dir(layer);
        if !dir.exists() {
            return Ok(());
        }
        // Out of sight by one rename, so that a crash leaves no half of a layer.
        let work = self.work_dir()?;
        let aside = work.path.join("removed");
        fs::rename(&dir, &aside).map_err(failed("rename", &dir))?;
        work.discard(unpacker)
    }

    /// Lets go of layers; those that this call brought in are removed again.
    pub(crate) fn undo(&self, holds: Vec<Hold>, unpacker: &dyn Unpacker) {
        let fresh: Vec<Digest> =
            holds.iter().filter(|h| h.fresh).map(|h| h.facts.diff_id.clone()).collect();
        drop(holds);
        for layer in fresh {
            if let Err(error) = self.remove(&layer, unpacker) {
                tracing::warn!(%layer, %error, "a layer that nothing needs stays");
            }
        }
    }

    /// Removes what work that was cut off has left; work under way is left alone.
    pub fn sweep(&self, unpacker: &dyn Unpacker) -> Result<(), StoreError> {
        let gate = self.lock_file("tmp")?;
        flock(&gate, FlockOperation::LockExclusive, &self.root)?;
        let dir = self.root.join("tmp");
        for entry in fs::read_dir(&dir).map_err(failed("readdir", &dir))? {
            let path = entry.map_err(failed("readdir", &dir))?.path();
            // A plain file is never made there; whatever it is, nobody works on it.
            if let Ok(fd) = open_dir(&path)
                && rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err()
            {
                continue;
            }
            // A killed server's job may still be at work there for a moment.
            if let Err(error) = unpacker.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "left for the next sweep");
            }
        }
        self.sweep_downloads()
    }

    /// Removes downloads that nobody has come back to.
    fn sweep_downloads(&self) -> Result<(), StoreError> {
        let dir = self.root.join("blobs");
        for entry in fs::read_dir(&dir).map_err(failed("readdir", &dir))? {
            let path = entry.map_err(failed("readdir", &dir))?.path();
            let changed = fs::metadata(&path).and_then(|meta| meta.modified());
            let age = changed.ok().and_then(|then| then.elapsed().ok());
            if age.is_some_and(|age| age > KEEP_DOWNLOADS) {
                fs::remove_file(&path).map_err(failed("unlink", &path))?;
            }
        }
        Ok(())
    }

    /// Removes all parts of downloads but those that are being gone on with; how many bytes.
    pub fn prune_downloads(&self) -> Result<u64, StoreError> {
        let dir = self.root.join("blobs");
        let mut bytes = 0;
        for entry in fs::read_dir(&dir).map_err(failed("readdir", &dir))? {
            let entry = entry.map_err(failed("readdir", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let blob = name.strip_suffix(".partial").unwrap_or(&name);
            let lock = self.lock_file(&format!("blob-{blob}"))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            bytes += entry.metadata().map_or(0, |meta| meta.len());
            fs::remove_file(entry.path()).map_err(failed("unlink", &entry.path()))?;
        }
        Ok(bytes)
    }

    /// A directory for work under way, which `sweep` leaves alone as long as it is held.
    pub(crate) fn work_dir(&self) -> Result<WorkDir, StoreError> {
        let gate = self.lock_file("tmp")?;
        flock(&gate, FlockOperation::LockShared, &self.root)?;
        loop {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .map_err(|e| failed("getrandom", &self.root)(e.into()))?;
            let path = self.root.join("tmp").join(format!("{:016x}", u64::from_ne_bytes(random)));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(failed("mkdir", &path))?,
            }
            let lock = open_dir(&path)?;
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                .map_err(|e| failed("flock", &path)(e.into()))?;
            return Ok(WorkDir { path, _lock: lock });
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a download is kept until it is whole.
    pub(crate) fn partial(&self, blob: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("{}.partial", blob.file_name()))
    }

    /// Waits for whoever else downloads a blob.
    pub(crate) fn lock_blob(&self, blob: &Digest) -> Result<File, StoreError> {
        let lock = self.lock_file(&format!("blob-{}", blob.file_name()))?;
        flock(&lock, FlockOperation::LockExclusive, &self.partial(blob))?;
        Ok(lock)
    }

    fn key(&self, layer: &Digest) -> String {
        match self.ownership {
            Ownership::Keep => layer.file_name(),
            Ownership::Squash => format!("{}-squash", layer.file_name()),
        }
    }

    fn dir(&self, layer: &Digest) -> PathBuf {
        self.root.join("layers").join(self.key(layer))
    }

    /// Lock files stay: removing one while another waits for it would split the lock in two.
    fn lock_file(&self, key: &str) -> Result<File, StoreError> {
        let path = self.root.join("locks").join(key);
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(&path).map_err(failed("open", &path))
    }
}

/// A layer unpacked but not yet in its place.
struct Work {
    dir: WorkDir,
    facts: LayerFacts,
    ended: bool,
}

impl Work {
    /// Puts the layer in its place. Its lock is held, and it is not there.
    fn publish(self, store: &LayerStore) -> Result<(), StoreError> {
        let place = store.dir(&self.facts.diff_id);
        fs::rename(&self.dir.path, &place).map_err(failed("rename", &place))?;
        let layers = store.root.join("layers");
        rustix::fs::fsync(open_dir(&layers)?).map_err(|e| failed("fsync", &layers)(e.into()))
    }

    fn discard(self, unpacker: &dyn Unpacker) -> Result<(), StoreError> {
        self.dir.discard(unpacker)
    }
}

/// A locked directory below `tmp`.
pub(crate) struct WorkDir {
    pub(crate) path: PathBuf,
    _lock: OwnedFd,
}

impl WorkDir {
    pub(crate) fn discard(self, unpacker: &dyn Unpacker) -> Result<(), StoreError> {
        unpacker.remove(&self.path).map_err(failed("unlink", &self.path))
    }
}

fn make_private(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("mkdir", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("chmod", path))
}

fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| failed("open", path)(e.into()))
}

fn flock(file: &File, operation: FlockOperation, what: &Path) -> Result<(), StoreError> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other.map_err(|e| failed("flock", what)(e.into())),
        }
    }
}

pub(crate) fn failed(call: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |error| StoreError::Io { call, path: path.to_path_buf(), error }
}

#[cfg(test)]
mod tests;
