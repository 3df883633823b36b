//! The `host` image: a sandbox with this machine's own toolchain, without a download.
//!
//! `/usr` and what belongs to it are used in place, as lower directories. Everything else comes
//! from a skeleton, a small layer of the store: empty directories, and of `/etc` only what an
//! allow-list holds harmless. Nothing of `/home`, `/root`, `/var` and `/run` is in it.

mod accounts;
mod etc;

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compress::Blob;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::store::{Hold, LayerStore, StoreError, failed as store_failed};
use crate::unpack::Unpacker;
use etc::Item;

/// Changes when the skeleton is made in another way, so that old ones are not used any more.
const FORMAT: &[u8] = b"forkyard host skeleton 1\n";

/// Directories that a distribution without merged `/usr` has beside it (file-hierarchy(7)).
const BESIDE_USR: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What the `host` image is made of.
#[derive(Debug)]
pub struct HostImage {
    /// The lower directory of `/`. It has an empty directory for each of `trees`.
    pub skeleton: PathBuf,
    /// Directories of the host that show at the same path in the sandbox, read-only below.
    pub trees: Vec<PathBuf>,
    /// The skeleton's layer in the store; older ones are in [`LayerStore::list`] and can be
    /// removed when nothing uses them.
    pub layer: Digest,
    /// Keeps the skeleton from being removed until this is dropped.
    pub hold: Hold,
}

/// Why the `host` image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call on a file of the host failed.
    #[error("{call} of {}: {error}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// What on.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The skeleton could not be added to the store.
    #[error("skeleton of the host image: {0}")]
    Store(#[from] StoreError),
}

/// Which skeleton belongs to the host as it was seen last.
#[derive(Serialize, Deserialize)]
struct Known {
    fingerprint: Digest,
    layer: Digest,
}

/// Prepares the `host` image: finds the skeleton, or builds it anew when a file of the host that
/// goes into it has changed. Takes a few milliseconds when nothing has.
pub fn prepare(store: &LayerStore, unpacker: &dyn Unpacker) -> Result<HostImage, HostError> {
    prepare_from(Path::new("/"), store, unpacker)
}

fn prepare_from(
    root: &Path,
    store: &LayerStore,
    unpacker: &dyn Unpacker,
) -> Result<HostImage, HostError> {
    let (trees, links) = trees(root)?;
    let mut items = frame(&trees);
    items.extend(links);
    items.extend(etc::items(root)?);
    let fingerprint = fingerprint(root, &items)?;
    let memory = store.memory("host.json", store.ownership());
    let known: Option<Known> =
        fs::read(&memory).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let held = match known.filter(|known| known.fingerprint == fingerprint) {
        Some(known) => store.hold(&known.layer)?,
        None => None,
    };
    let hold = if let Some(hold) = held {
        hold
    } else {
        let hold = build(root, &items, store, unpacker)?;
        let layer = hold.facts().diff_id.clone();
        store.remember(&memory, &Known { fingerprint, layer })?;
        hold
    };
    let layer = hold.facts().diff_id.clone();
    Ok(HostImage { skeleton: store.tree(&layer), trees, layer, hold })
}

/// The directories used in place, and the links beside `/usr`.
fn trees(root: &Path) -> Result<(Vec<PathBuf>, Vec<Item>), HostError> {
    let mut trees = vec![PathBuf::from("/usr")];
    let mut links = Vec::new();
    for name in BESIDE_USR {
        let path = root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(&path).map_err(failed("readlink", &path))?;
                links.push(Item::link(name, target.as_os_str().as_bytes()));
            }
            Ok(meta) if meta.is_dir() => trees.push(Path::new("/").join(name)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("lstat", &path)(e)),
        }
    }
    let opt = root.join("opt");
    if fs::read_dir(&opt).is_ok_and(|mut entries| entries.next().is_some()) {
        trees.push(PathBuf::from("/opt"));
    }
    Ok((trees, links))
}

/// The directories of every sandbox, whatever the host has in its own.
fn frame(trees: &[PathBuf]) -> Vec<Item> {
    let mut items = vec![Item::directory("", 0o755)];
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("run/lock", 0o1777),
        ("tmp", 0o1777),
        ("root", 0o700),
        ("home", 0o755),
        ("media", 0o755),
        ("mnt", 0o755),
        ("srv", 0o755),
        ("var", 0o755),
        ("var/tmp", 0o1777),
        ("var/log", 0o755),
        ("var/cache", 0o755),
        ("var/lib", 0o755),
        ("var/spool", 0o755),
        ("var/mail", 0o755),
        ("etc", 0o755),
    ] {
        items.push(Item::directory(path, mode));
    }
    items.push(Item::link("var/run", b"/run"));
    items.push(Item::link("var/lock", b"/run/lock"));
    items.push(Item::directory("home/user", 0o755).owned_by_user());
    items.push(Item::directory("workspace", 0o755).owned_by_user());
    let mounts = trees.iter().filter_map(|tree| tree.strip_prefix("/").ok());
    items.extend(mounts.map(|tree| Item::directory(&tree.to_string_lossy(), 0o755)));
    if !trees.iter().any(|tree| tree == Path::new("/opt")) {
        items.push(Item::directory("opt", 0o755));
    }
    items
}

/// Changes whenever the skeleton built from these items would.
fn fingerprint(root: &Path, items: &[Item]) -> Result<Digest, HostError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(FORMAT);
    for item in items {
        hasher.update(format!("{:?}", item.header()).as_bytes());
        if let Some(path) = item.source(root) {
            let meta = fs::metadata(&path).map_err(failed("stat", &path))?;
            let facts = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime());
            hasher.update(format!("{facts:?}").as_bytes());
        }
    }
    Ok(hasher.finish())
}

/// Writes the skeleton as an archive and adds it to the store like any other layer, so that it is
/// unpacked with the same care, by whoever has the ids for it.
fn build(
    root: &Path,
    items: &[Item],
    store: &LayerStore,
    unpacker: &dyn Unpacker,
) -> Result<Hold, HostError> {
    let work = store.work_dir()?;
    let path = work.path.join("skeleton.tar");
    let written = File::create_new(&path).map_err(failed("open", &path)).and_then(|file| {
        let mut archive = tar::Builder::new(io::BufWriter::new(file));
        for item in items {
            item.append(root, &mut archive)?;
        }
        let file = archive.into_inner().and_then(|buffer| Ok(buffer.into_inner()?));
        file.map_err(failed("write", &path))
    });
    let added = written.and_then(|_| {
        let file = File::open(&path).map_err(failed("open", &path))?;
        let blob = Blob::whole(&file).map_err(failed("stat", &path))?;
        Ok(store.add(blob, None, "host", unpacker)?)
    });
    let discarded = work.discard(unpacker);
    let hold = added?;
    discarded?;
    Ok(hold)
}

fn failed(call: &'static str, path: &Path) -> impl Fn(io::Error) -> HostError {
    move |error| HostError::Io { call, path: path.to_path_buf(), error }
}

impl LayerStore {
    /// A small file of the store that remembers something between runs.
    fn memory(&self, name: &str, ownership: crate::Ownership) -> PathBuf {
        let name = match ownership {
            crate::Ownership::Keep => name.to_owned(),
            crate::Ownership::Squash => format!("squash-{name}"),
        };
        self.root().join(name)
    }

    /// Writes such a file, whole or not at all. Losing it costs time only: no fsync.
    fn remember(&self, path: &Path, what: &impl Serialize) -> Result<(), StoreError> {
        let work = self.work_dir()?;
        let new = work.path.join("new");
        let written = serde_json::to_vec(what)
            .map_err(io::Error::from)
            .and_then(|json| fs::write(&new, json))
            .and_then(|()| fs::rename(&new, path));
        let _ = fs::remove_dir_all(&work.path);
        written.map_err(store_failed("write", path))
    }
}

#[cfg(test)]
mod tests;
