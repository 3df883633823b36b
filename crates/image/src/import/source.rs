//! Where an import's files are: in a directory, or in an archive that is read by seeking.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::{Import, ImportError, docker, failed};
use crate::archive::{End, Kind, Reader};
use crate::compress::{Blob, BlobReader, Compression};
use crate::error::UnpackError;
use crate::oci::MAX_DOCUMENT;
use crate::store::failed as store_failed;
use crate::unpack::{next_entry, open_stream};

/// Most members of an archive that are looked at to see what it is. Archives of images have a few
/// per layer; root file systems have many, and none of theirs matters.
const MAX_MEMBERS: usize = 20_000;

/// Longest member name that an archive of an image can have.
const MAX_NAME: usize = 255;

/// Most symbolic links from one member to the next: old `docker save` links equal layers.
const MAX_LINKS: usize = 8;

/// Files by name.
pub(super) enum Source {
    Directory(PathBuf),
    Archive { file: File, members: HashMap<Vec<u8>, Member> },
}

/// What an archive turns out to be.
pub(super) enum Archive {
    Layout(Source),
    /// With its `manifest.json`.
    Docker(Source, Vec<docker::Listed>),
    RootFs(File),
}

/// A member of an archive.
pub(super) enum Member {
    File { offset: u64, length: u64 },
    Link(Vec<u8>),
}

/// A file of a source, open.
pub(super) struct Found {
    file: File,
    offset: u64,
    length: u64,
}

impl Found {
    pub(super) fn blob(&self) -> Blob<'_> {
        Blob { file: &self.file, offset: self.offset, length: self.length }
    }
}

impl Source {
    /// Opens a file by its name in the source.
    pub(super) fn find(&self, name: &str) -> Result<Found, ImportError> {
        let missing = || ImportError::Missing(crate::text::show(name.as_bytes()));
        match self {
            Self::Directory(root) => {
                let path = root.join(name);
                // Without O_NONBLOCK, a fifo in the directory would hold us up.
                let flags = OFlags::NONBLOCK.bits().cast_signed();
                let opened = File::options().read(true).custom_flags(flags).open(&path);
                let file = match opened {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
                    other => other.map_err(failed("open", &path))?,
                };
                let meta = file.metadata().map_err(failed("stat", &path))?;
                if !meta.is_file() {
                    return Err(missing());
                }
                Ok(Found { file, offset: 0, length: meta.len() })
            }
            Self::Archive { file, members } => {
                let mut name = name.as_bytes().to_vec();
                for _ in 0..MAX_LINKS {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::File { offset, length } => {
                            let file =
                                file.try_clone().map_err(failed("dup", "archive".as_ref()))?;
                            return Ok(Found { file, offset: *offset, length: *length });
                        }
                        Member::Link(target) => name = join(&name, target).ok_or_else(missing)?,
                    }
                }
                Err(missing())
            }
        }
    }

    /// Reads a small file.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let found = self.find(name)?;
        if found.length > MAX_DOCUMENT {
            let error = crate::oci::DocumentError::TooLarge(found.length);
            return Err(super::document(name)(error));
        }
        let mut bytes = Vec::new();
        found.blob().reader().read_to_end(&mut bytes).map_err(failed("read", name.as_ref()))?;
        Ok(bytes)
    }
}

/// Looks through an archive to see what it is.
pub(super) fn open(import: &Import<'_>) -> Result<Archive, ImportError> {
    let path = import.path;
    let fail = |error| ImportError::Archive { path: path.to_path_buf(), error };
    let file = File::open(path).map_err(failed("open", path))?;
    let blob = Blob::whole(&file).map_err(failed("stat", path))?;
    let plain = blob.compression().map_err(failed("read", path))? == Compression::None;
    let scan = if plain {
        scan(Reader::skipping_with(blob.reader(), BlobReader::skip))
    } else {
        let most = import.store.limits().bytes;
        open_stream(blob, most).and_then(|stream| scan(Reader::new(stream)))
    };
    let Scan { members, list } = scan.map_err(fail)?;
    let layout = [b"oci-layout".as_slice(), b"index.json"].iter().all(|n| members.contains_key(*n));
    if !layout && list.is_none() {
        return Ok(Archive::RootFs(file));
    }
    let file = if plain { file } else { expand(import, blob)? };
    let source = Source::Archive { file, members };
    Ok(match list {
        _ if layout => Archive::Layout(source),
        Some(list) => Archive::Docker(source, list),
        None => Archive::Layout(source),
    })
}

/// What looking through an archive has found.
struct Scan {
    members: HashMap<Vec<u8>, Member>,
    /// `manifest.json`, when it is what `docker save` writes.
    list: Option<Vec<docker::Listed>>,
}

fn scan<R: Read>(mut reader: Reader<R>) -> Result<Scan, UnpackError> {
    let mut found = Scan { members: HashMap::new(), list: None };
    while let Some(entry) = next_entry(&mut reader)? {
        let Ok(name) = crate::tree::clean(&entry.name) else { continue };
        let name = name.as_bytes().to_vec();
        if name == b"manifest.json" && entry.kind == Kind::File && entry.size <= MAX_DOCUMENT {
            let offset = reader.position();
            let bytes = read_entry(&mut reader)?;
            found.list = serde_json::from_slice(&bytes).ok();
            found.members.insert(name, Member::File { offset, length: entry.size });
            continue;
        }
        if name.len() > MAX_NAME || found.members.len() >= MAX_MEMBERS {
            continue;
        }
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                Member::File { offset: reader.position(), length: entry.size }
            }
            Kind::Symlink => Member::Link(entry.link),
            // The target counts from the archive's root, not from where the link is.
            Kind::HardLink => Member::Link([b"/".as_slice(), &entry.link].concat()),
            _ => continue,
        };
        found.members.insert(name, member);
    }
    if reader.end() == Some(End::Missing) {
        let what = "it is truncated: its end mark is missing".to_owned();
        return Err(UnpackError::Corrupt { what, at: reader.position() });
    }
    Ok(found)
}

fn read_entry<R: Read>(reader: &mut Reader<R>) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = reader.read_data(&mut buffer);
        match read.map_err(|e| UnpackError::tar(e, reader.position()))? {
            0 => return Ok(bytes),
            read => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// Uncompresses an archive into a file without a name, so that it can be read by seeking.
fn expand(import: &Import<'_>, blob: Blob<'_>) -> Result<File, ImportError> {
    let work = import.store.work_dir()?;
    let path = work.path.join("archive");
    let result = File::create_new(&path)
        .and_then(|_| File::options().read(true).write(true).open(&path))
        .map_err(store_failed("open", &path));
    work.discard(import.unpacker)?;
    let mut file = result?;
    let fail = |error| ImportError::Archive { path: import.path.to_path_buf(), error };
    let mut stream = open_stream(blob, import.store.limits().bytes).map_err(fail)?;
    io::copy(&mut stream, &mut file).map_err(|e| fail(UnpackError::read(&e, 0)))?;
    file.rewind().map_err(store_failed("lseek", &path))?;
    Ok(file)
}

/// The name that a link leads to, from where the link is.
fn join(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let dir = match link.iter().rposition(|b| *b == b'/') {
        Some(slash) if !target.starts_with(b"/") => link.get(..=slash)?,
        _ => b"",
    };
    let name = crate::tree::clean(&[dir, target].concat()).ok()?;
    Some(name.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_between_members_count_from_their_directory() {
        let joined = |link: &[u8], target: &[u8]| join(link, target);
        assert_eq!(joined(b"b/layer.tar", b"../a/layer.tar"), Some(b"a/layer.tar".to_vec()));
        assert_eq!(joined(b"layer.tar", b"other.tar"), Some(b"other.tar".to_vec()));
        assert_eq!(joined(b"b/layer.tar", b"/a/layer.tar"), Some(b"a/layer.tar".to_vec()));
        assert_eq!(joined(b"b/layer.tar", b"../../a"), None);
    }
}
