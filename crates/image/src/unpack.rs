//! Unpacks the archive of a layer into a directory, as overlayfs wants to find it.
//!
//! Deletions become what overlayfs reads: `.wh.NAME` a character device 0:0 called `NAME`,
//! `.wh..wh..opq` the xattr `user.overlay.opaque`
//! ([OCI layers](https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts),
//! [overlayfs](https://docs.kernel.org/filesystems/overlayfs.html#whiteouts-and-opaque-directories)).
//! Links on the way to an entry are followed as inside a sandbox. Each layer is unpacked by
//! itself: links of the layers below are not seen, which is what Docker does as well.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::archive::{End, Entry, Kind, Reader};
use crate::compress::Blob;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::UnpackError;
use crate::tree::{Policy, Tree, clean, remove_path};

/// Who owns unpacked files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// The ids that the archive names, 0 to 65535; higher ones are clamped to nobody (65534) with
    /// a note. Needs root, or root of a user namespace with 65,536 ids.
    Keep,
    /// The one id that unpacks: nothing is chowned, directories get `u+rwx` and files `u+rw`,
    /// setuid, setgid and file capabilities are dropped with a note.
    Squash,
}

/// How much one layer may hold. The defaults are far above real images (the largest published
/// ones, with models in them, are near 30 GiB and 500,000 files) and stop decompression bombs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the uncompressed archive, and of all files with their holes.
    pub bytes: u64,
    /// Entries. Each costs an inode, and a directory a block beside it.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// SHA-256 of the uncompressed archive, all of it.
    pub diff_id: Digest,
    /// Bytes of files' contents, holes counted.
    pub size: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Whether the archive ended as the format demands. Without the mark it may have been cut
    /// between two entries, which only its digest can tell.
    pub ended: bool,
    /// What was left out or changed, a line for each kind.
    pub notes: Vec<String>,
}

/// All that [`unpack`] needs, ready to be sent to another process.
#[derive(Debug)]
pub struct UnpackJob {
    /// The file that holds the archive: plain, gzip or zstd.
    pub blob: File,
    /// Where in it the archive begins, in bytes.
    pub offset: u64,
    /// How long the archive is, in bytes.
    pub length: u64,
    /// An empty directory; it becomes the root of the tree.
    pub destination: OwnedFd,
    /// Who owns the files.
    pub ownership: Ownership,
    /// How much it may hold.
    pub limits: Limits,
}

/// Unpacks layers and removes them: in this process, or in one that has the ids for it.
pub trait Unpacker: Send + Sync {
    /// Unpacks an archive into an empty directory. On an error the directory holds a part of it.
    fn unpack(
        &self,
        blob: Blob<'_>,
        destination: BorrowedFd<'_>,
        ownership: Ownership,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError>;

    /// Removes a tree that `unpack` made, or a part of one; the path is the store's own, and it
    /// is no error when it is not there.
    fn remove(&self, tree: &Path) -> io::Result<()> {
        Ok(remove_path(tree)?)
    }
}

/// Unpacks in the calling process and thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Unpacker for InProcess {
    fn unpack(
        &self,
        blob: Blob<'_>,
        destination: BorrowedFd<'_>,
        ownership: Ownership,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError> {
        unpack_layer(blob, destination, ownership, limits)
    }
}

/// Unpacks a layer into a directory; nothing outside of it is ever touched.
pub fn unpack(job: &UnpackJob) -> Result<Unpacked, UnpackError> {
    let blob = Blob { file: &job.blob, offset: job.offset, length: job.length };
    unpack_layer(blob, job.destination.as_fd(), job.ownership, job.limits)
}

fn unpack_layer(
    blob: Blob<'_>,
    destination: BorrowedFd<'_>,
    ownership: Ownership,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    let stream = open_stream(blob, limits.bytes)?;
    let mut reader = Reader::new(Hashing { inner: stream, hasher: Hasher::new(Algorithm::Sha256) });
    let mut tree = Tree::new(destination, Policy::Layer(ownership));
    let mut tally = Tally::new(limits);
    while let Some(entry) = next_entry(&mut reader)? {
        tally.count(&entry)?;
        add(&mut tree, &entry, &mut reader)?;
    }
    let ended = reader.end() == Some(End::Marker);
    let at = reader.position();
    let mut rest = reader.into_inner();
    // What follows the archive belongs to the digest, and a damaged end shows itself here.
    io::copy(&mut rest, &mut io::sink()).map_err(|e| UnpackError::read(&e, at))?;
    let notes = tree.finish()?.lines();
    let diff_id = rest.hasher.finish();
    Ok(Unpacked { diff_id, size: tally.bytes, entries: tally.entries, ended, notes })
}

/// The uncompressed archive, cut off with an error at the limit.
pub(crate) fn open_stream(blob: Blob<'_>, most: u64) -> Result<Limited<'_>, UnpackError> {
    match blob.uncompressed().map_err(|e| UnpackError::read(&e, 0))? {
        Ok(inner) => Ok(Limited { inner, left: most, most }),
        Err(name) => Err(UnpackError::Compression(name.to_owned())),
    }
}

pub(crate) fn next_entry<R: Read>(reader: &mut Reader<R>) -> Result<Option<Entry>, UnpackError> {
    reader.next().map_err(|e| UnpackError::tar(e, reader.position()))
}

/// Adds an entry to the tree of a layer.
fn add<R: Read>(
    tree: &mut Tree<'_>,
    entry: &Entry,
    reader: &mut Reader<R>,
) -> Result<(), UnpackError> {
    let name = clean(&entry.name)?;
    let Some(place) = tree.place(&name)? else {
        return match entry.kind {
            Kind::Directory => tree.root_directory(entry),
            _ => Err(UnpackError::refused(&entry.name, "the root is a directory")),
        };
    };
    if let Some(hidden) = name.last().and_then(|last| last.strip_prefix(b".wh.")) {
        return match hidden {
            b".wh..opq" => place.opaque(entry),
            b"" | b"." | b".." => Err(UnpackError::refused(&entry.name, "it hides no name")),
            _ if hidden.starts_with(b".wh.") => {
                tree.notes().add("records of aufs left out", &entry.name);
                Ok(())
            }
            _ => place.sibling(hidden).whiteout(entry),
        };
    }
    match entry.kind {
        Kind::Directory => tree.directory(&place, entry),
        Kind::File => tree.file(&place, entry, reader),
        Kind::Symlink => tree.symlink(&place, entry),
        Kind::Fifo => tree.fifo(&place, entry),
        Kind::HardLink => hard_link(tree, &place, entry),
        Kind::Device => {
            tree.notes().add("device nodes left out", &entry.name);
            Ok(())
        }
        Kind::Other(_) => {
            tree.notes().add("entries of unknown kinds left out", &entry.name);
            Ok(())
        }
    }
}

/// Makes a hard link; its target is a name in the same archive.
pub(crate) fn hard_link(
    tree: &mut Tree<'_>,
    place: &crate::tree::Place,
    entry: &Entry,
) -> Result<(), UnpackError> {
    let refuse = |why: &str| Err(UnpackError::refused(&entry.name, why));
    let Ok(target) = clean(&entry.link) else {
        return refuse("it links to a name that leads out of the tree");
    };
    match tree.existing(&target) {
        Ok(Some(target)) => tree.hard_link(place, &target, entry),
        Ok(None) => refuse("it links to what is not a file"),
        Err(UnpackError::System { .. }) => refuse("it links to a file that is not there"),
        Err(other) => Err(other),
    }
}

/// Counts what an archive holds, up to its limits.
pub(crate) struct Tally {
    limits: Limits,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Tally {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, bytes: 0 }
    }

    pub(crate) fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let over = |what: &str, most| Err(UnpackError::Limit { what: what.to_owned(), most });
        self.entries += 1;
        if self.entries > self.limits.entries {
            return over("entries", self.limits.entries);
        }
        let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.real_size);
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return over("bytes", self.limits.bytes);
        }
        Ok(())
    }
}

/// A stream that fails when it yields more than it may.
pub(crate) struct Limited<'a> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    most: u64,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let Some(left) = self.left.checked_sub(read as u64) else {
            let what = "bytes".to_owned();
            return Err(io::Error::other(UnpackError::Limit { what, most: self.most }));
        };
        self.left = left;
        Ok(read)
    }
}

/// A stream that is hashed on its way.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
