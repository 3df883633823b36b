//! Unpacks files that leave a sandbox into a directory of the host.
//!
//! The archive comes from inside and may be made to harm: it gets no device, no setuid bit, no
//! owner and no xattr through; links are kept as they are, but no entry is written through one,
//! neither through the archive's own nor through one that was in the directory before.

use std::io::Read;
use std::os::fd::BorrowedFd;

use crate::archive::{Kind, Reader};
use crate::error::UnpackError;
use crate::tree::{Policy, Tree, clean};
use crate::unpack::{Limits, Tally, hard_link, next_entry};

/// What was extracted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of files' contents, holes counted.
    pub size: u64,
    /// What was left out or changed, a line for each kind.
    pub notes: Vec<String>,
}

/// Extracts an uncompressed tar stream into an existing directory of the host.
///
/// Files of the same name are replaced; a directory is never replaced by a file nor a file by a
/// directory. Absolute names and names that lead out are refused. Modes pass through the umask.
/// What was extracted before an error stays.
///
/// ```
/// # use std::os::fd::AsFd;
/// let dir = tempfile::tempdir()?;
/// let mut archive = tar::Builder::new(Vec::new());
/// let mut header = tar::Header::new_gnu();
/// header.set_size(2);
/// archive.append_data(&mut header, "note.txt", b"hi".as_slice())?;
/// let stream = archive.into_inner()?;
///
/// let root = std::fs::File::open(dir.path())?;
/// forkyard_image::extract(&stream[..], root.as_fd(), forkyard_image::Limits::default())?;
/// assert_eq!(std::fs::read(dir.path().join("note.txt"))?, b"hi");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn extract(
    stream: impl Read,
    destination: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Extracted, UnpackError> {
    let mut reader = Reader::new(stream);
    let mut tree = Tree::new(destination, Policy::CopyOut);
    let mut tally = Tally::new(limits);
    while let Some(entry) = next_entry(&mut reader)? {
        tally.count(&entry)?;
        if entry.name.starts_with(b"/") {
            return Err(UnpackError::refused(&entry.name, "its name is absolute"));
        }
        let name = clean(&entry.name)?;
        let Some(place) = tree.place(&name)? else {
            if entry.kind == Kind::Directory {
                continue;
            }
            return Err(UnpackError::refused(&entry.name, "the root is a directory"));
        };
        match entry.kind {
            Kind::Directory => tree.directory(&place, &entry)?,
            Kind::File => tree.file(&place, &entry, &mut reader)?,
            Kind::Symlink => tree.symlink(&place, &entry)?,
            Kind::HardLink => hard_link(&mut tree, &place, &entry)?,
            Kind::Device | Kind::Fifo => {
                tree.notes().add("devices and fifos left out", &entry.name);
            }
            Kind::Other(_) => tree.notes().add("entries of unknown kinds left out", &entry.name),
        }
    }
    let notes = tree.finish()?.lines();
    Ok(Extracted { entries: tally.entries, size: tally.bytes, notes })
}

#[cfg(test)]
mod tests;
