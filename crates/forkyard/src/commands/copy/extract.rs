//! Files of a sandbox put into a directory of this machine, under another name.
//!
//! The archive comes from inside a sandbox and may be made to harm. What may be written where is
//! for `forkyard_image::extract` to say; here entries only change the first part of their names.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use forkyard_image::Limits;
use tar::{Archive, Builder, EntryType};
use tokio::sync::mpsc;

use crate::error::Error;

/// Chunks of an archive; an error where it broke off.
type Chunks = mpsc::Receiver<Result<Bytes, ()>>;

/// Extracts an archive whose entries all lie at or below one name, as `name` in `directory`;
/// below `.`, in `directory` itself. What was left out, a line for each kind.
pub(super) fn extract(chunks: Chunks, directory: &Path, name: &[u8]) -> Result<Vec<String>, Error> {
    let shown = directory.display();
    let root = File::open(directory).map_err(|e| Error::io(format!("open {shown}"), e))?;
    let (reader, writer) = io::pipe().map_err(|e| Error::io("pipe2", e))?;
    let name = name.to_vec();
    std::thread::scope(|scope| {
        let renaming = scope.spawn(move || rename(ChunkReader::new(chunks), writer, &name));
        let extracted = forkyard_image::extract(reader, root.as_fd(), Limits::default());
        let renamed = renaming.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        match (extracted, renamed) {
            (Err(error), _) => {
                Err(Error::Usage { what: format!("extract into {shown}: {error}"), hint: None })
            }
            (Ok(_), Err(error)) => Err(Error::io("read the archive", error)),
            (Ok(extracted), Ok(())) => Ok(extracted.notes),
        }
    })
}

/// Copies an archive, with `name` in place of the first part of each entry's name.
fn rename(source: impl Read, sink: impl Write, name: &[u8]) -> io::Result<()> {
    let mut archive = Archive::new(source);
    let mut builder = Builder::new(io::BufWriter::with_capacity(64 << 10, sink));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = renamed(&entry.path_bytes(), name);
        let mut header = entry.header().clone();
        match header.entry_type() {
            EntryType::Link | EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = match header.entry_type() {
                    EntryType::Link => renamed(&target, name),
                    _ => PathBuf::from(std::ffi::OsString::from_vec(target)),
                };
                builder.append_link(&mut header, path, target)?;
            }
            EntryType::Directory if path == Path::new(".") => {}
            EntryType::Directory => builder.append_data(&mut header, path, io::empty())?,
            kind => {
                let length = entry.size();
                header.set_size(length);
                if kind == EntryType::GNUSparse {
                    header.set_entry_type(EntryType::Regular);
                }
                builder.append_data(&mut header, path, &mut entry)?;
            }
        }
    }
    builder.into_inner()?.flush()
}

fn renamed(path: &[u8], name: &[u8]) -> PathBuf {
    let mut parts = path.splitn(2, |byte| *byte == b'/');
    let below = parts.nth(1).unwrap_or_default();
    let new = Path::new(std::ffi::OsStr::from_bytes(name));
    let below = Path::new(std::ffi::OsStr::from_bytes(below));
    match (name, below.as_os_str().is_empty()) {
        (_, true) => new.to_owned(),
        (b".", false) => below.to_owned(),
        _ => new.join(below),
    }
}

/// Chunks as a reader.
struct ChunkReader {
    chunks: Chunks,
    current: Bytes,
}

impl ChunkReader {
    fn new(chunks: Chunks) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(())) => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            // As hostile as the format allows, which `append_data` is not.
            let name = header.as_gnu_mut().unwrap();
            name.name[..path.len()].copy_from_slice(path.as_bytes());
            if kind.is_symlink() || kind.is_hard_link() {
                name.linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn run(archive: &[u8], directory: &Path, name: &str) -> Result<Vec<String>, Error> {
        let (sender, receiver) = mpsc::channel(1 + archive.len() / 100);
        for chunk in archive.chunks(100) {
            sender.try_send(Ok(Bytes::copy_from_slice(chunk))).unwrap();
        }
        drop(sender);
        extract(receiver, directory, name.as_bytes())
    }

    const TREE: [(&str, EntryType, &str); 4] = [
        ("old/", EntryType::Directory, ""),
        ("old/f", EntryType::Regular, "text"),
        ("old/hard", EntryType::Link, "old/f"),
        ("old/soft", EntryType::Symlink, "old/f"),
    ];

    #[test]
    fn a_tree_gets_its_new_name_and_its_links_follow() {
        let directory = tempfile::tempdir().unwrap();
        run(&archive(&TREE), directory.path(), "new").unwrap();
        let new = directory.path().join("new");
        assert_eq!(std::fs::read_to_string(new.join("f")).unwrap(), "text");
        assert_eq!(std::fs::read_to_string(new.join("hard")).unwrap(), "text");
        assert_eq!(std::fs::read_link(new.join("soft")).unwrap(), Path::new("old/f"));
        assert!(!directory.path().join("old").exists());
    }

    #[test]
    fn contents_alone_go_into_the_directory_itself() {
        let directory = tempfile::tempdir().unwrap();
        run(&archive(&TREE), directory.path(), ".").unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join("f")).unwrap(), "text");
    }

    #[test]
    fn nothing_is_written_outside() {
        let parent = tempfile::tempdir().unwrap();
        let inside = parent.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        symlink("..", inside.join("way")).unwrap();
        let hostile = [
            vec![("x/../../../escaped", EntryType::Regular, "")],
            vec![("x/../escaped", EntryType::Regular, "")],
            vec![("x", EntryType::Symlink, ".."), ("x/escaped", EntryType::Regular, "")],
            vec![("x/way/escaped", EntryType::Regular, "")],
            vec![("/x/escaped", EntryType::Regular, "")],
        ];
        for (index, entries) in hostile.iter().enumerate() {
            let name = if index == 3 { "." } else { "x" };
            let _ = run(&archive(entries), &inside, name);
            assert!(!parent.path().join("escaped").exists(), "{entries:?}");
        }
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, receiver) = mpsc::channel(2);
        sender.try_send(Ok(Bytes::from(archive(&TREE)).slice(..1024))).unwrap();
        sender.try_send(Err(())).unwrap();
        assert!(extract(receiver, directory.path(), b"x").is_err());
    }
}
