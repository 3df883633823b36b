//! Files of this machine as a tar stream.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{Builder, EntryType, Header};

use super::{CHUNK, Sender};
use crate::error::Error;

/// The name that `path` goes by: that of what it leads to where it ends in dots.
pub(super) fn name(path: &Path) -> Result<OsString, Error> {
    if let Some(name) = path.file_name() {
        return Ok(name.to_owned());
    }
    let full =
        fs::canonicalize(path).map_err(|e| Error::io(format!("resolve {}", path.display()), e))?;
    Ok(full.file_name().map_or_else(|| OsString::from("."), ToOwned::to_owned))
}

/// Sends `path`, and what is in it, as `name`; as `.`, what is in it alone. Files belong to the
/// sandbox's root, as with `docker cp`; sockets and the like are left out.
pub(super) fn archive(path: &Path, name: &Path, sender: &Sender) -> Result<(), Error> {
    let writer = BufWriter::with_capacity(CHUNK, ChunkWriter { sender });
    let mut builder = Builder::new(writer);
    // A path that ends in `/.` is no link itself.
    add(&mut builder, path, name)?;
    let finish = || builder.into_inner()?.flush();
    match finish() {
        // The upload has ended, and tells why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| Error::io("write an archive", e)),
    }
}

fn add(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> Result<(), Error> {
    let mut pending: Vec<(PathBuf, PathBuf)> = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = pending.pop() {
        let failed = |e| Error::io(format!("archive {}", path.display()), e);
        let found = fs::symlink_metadata(&path).map_err(failed)?;
        match entry(builder, &path, &name, &found) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(failed)?,
        }
        if found.is_dir() {
            for child in fs::read_dir(&path).map_err(failed)? {
                let child = child.map_err(failed)?;
                let inner = child.file_name();
                let name = if name == Path::new(".") { inner.into() } else { name.join(inner) };
                pending.push((child.path(), name));
            }
        }
    }
    Ok(())
}

fn entry(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    found: &Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(found);
    header.set_uid(0);
    header.set_gid(0);
    if found.is_dir() {
        if name == Path::new(".") {
            return Ok(());
        }
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())
    } else if found.is_symlink() {
        header.set_size(0);
        builder.append_link(&mut header, name, fs::read_link(path)?)
    } else if found.is_file() {
        let file = File::open(path)?;
        // It may grow or shrink meanwhile; an entry has the length that it said.
        let length = file.metadata()?.len();
        header.set_size(length);
        let padded = io::Read::chain(file, io::repeat(0));
        builder.append_data(&mut header, name, io::Read::take(padded, length))
    } else {
        Ok(())
    }
}

/// Hands chunks to an upload.
struct ChunkWriter<'a> {
    sender: &'a Sender,
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        match self.sender.blocking_send(Ok(chunk)) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
