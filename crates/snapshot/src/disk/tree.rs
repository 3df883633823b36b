//! A checksum over a directory: names, attributes and contents.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32fast::Hasher;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, lgetxattr, llistxattr, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::header::TreePart;

/// Bytes of contents that are read at once. Names and values of attributes have 64 KiB at most: see
/// xattr(7).
const CHUNK: usize = 1024 * 1024;

/// Bytes of contents that are left out together where they are zero; divides [`CHUNK`].
const BLOCK: usize = 4096;

/// What was read of something in a directory.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) part: TreePart,
    /// Names of files that have several, from its top.
    pub(super) linked: Vec<Vec<u8>>,
}

/// The names in a directory, in order.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names
        .map(|name| name?.into_string().map_err(|_| io::ErrorKind::InvalidData.into()))
        .collect::<io::Result<Vec<String>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Reads all of what has this name in a directory.
pub(super) fn sum(dir: &Path, name: &str, go_on: &dyn Fn() -> bool) -> io::Result<Read> {
    let mut sum = Sum {
        hasher: Hasher::new(),
        read: Read::default(),
        path: Vec::new(),
        buffer: vec![0; CHUNK],
        go_on,
    };
    let dir = openat(CWD, dir, DIRECTORY, Mode::empty())?;
    sum.entry(&dir, name.as_bytes())?;
    sum.read.part.checksum = sum.hasher.finalize();
    Ok(sum.read)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Sum<'a> {
    hasher: Hasher,
    read: Read,
    /// Where in it this is: each name with a slash before it.
    path: Vec<u8>,
    buffer: Vec<u8>,
    go_on: &'a dyn Fn() -> bool,
}

impl Sum<'_> {
    fn directory(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let mut names: Vec<CString> = Dir::read_from(dir)?
            .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
            .collect::<Result<_, _>>()?;
        names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
        names.sort_unstable();
        for name in &names {
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name.to_bytes());
            self.entry(dir, name.to_bytes())?;
            self.path.truncate(length);
        }
        // The end of one directory is not the beginning of what follows it.
        self.hasher.update(b"/");
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let path = OsStr::from_bytes(name);
        let stat = statat(dir, path, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if let Some(path) = self.path.get(1..).filter(|_| !is_directory && stat.st_nlink > 1) {
            self.read.linked.push(path.to_vec());
        }
        self.read.part.entries += 1;
        self.text(name);
        self.attributes(dir, name, &stat)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = openat(dir, path, DIRECTORY, Mode::empty())?;
                self.directory(&dir)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(dir, path, flags, Mode::empty())?.into();
                self.contents(&file, stat.st_size.cast_unsigned())
            }
            FileType::Symlink => {
                let target = readlinkat(dir, path, Vec::new())?;
                self.text(target.as_bytes());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.hasher.update(&(text.len() as u64).to_le_bytes());
        self.hasher.update(text);
    }

    fn attributes(&mut self, dir: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // Sizes and links of directories are their file system's business.
        let size = if is_directory { 0 } else { stat.st_size };
        let links = if is_directory { 0 } else { stat.st_nlink };
        for number in [
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            size.cast_unsigned(),
            links,
            stat.st_rdev,
            stat.st_mtime.cast_unsigned(),
            stat.st_mtime_nsec,
        ] {
            self.hasher.update(&number.to_le_bytes());
        }
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        let path = OsStr::from_bytes(&path);
        let length = match llistxattr(path, &mut self.buffer[..]) {
            Err(Errno::OPNOTSUPP) => return Ok(()),
            length => length?,
        };
        let list = self.buffer.get(..length).unwrap_or_default().to_vec();
        let mut keys: Vec<&[u8]> = list.split(|&byte| byte == 0).collect();
        keys.retain(|key| !key.is_empty());
        keys.sort_unstable();
        for key in keys {
            let length = lgetxattr(path, OsStr::from_bytes(key), &mut self.buffer[..])?;
            let value = self.buffer.get(..length).unwrap_or_default().to_vec();
            self.text(key);
            self.text(&value);
        }
        Ok(())
    }

    /// Reads what is not zero, wherever the file system has holes: that may change by itself.
    fn contents(&mut self, file: &File, length: u64) -> io::Result<()> {
        let mut at = 0;
        while let Some((start, end)) = data(file, at, length)? {
            at = start;
            while at < end {
                if !(self.go_on)() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let count = self.blocks(file, at)?;
                if count == 0 {
                    return Ok(());
                }
                at += count;
            }
        }
        Ok(())
    }

    /// Reads some blocks from here on; how many bytes these are.
    fn blocks(&mut self, file: &File, at: u64) -> io::Result<u64> {
        let mut count = 0;
        while let Some(rest) = self.buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + count as u64)? {
                0 => break,
                more => count += more,
            }
        }
        let bytes = self.buffer.get(..count).unwrap_or_default();
        for (n, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                self.hasher.update(&(at + (n * BLOCK) as u64).to_le_bytes());
                self.hasher.update(block);
                self.read.part.length += block.len() as u64;
            }
        }
        Ok(count as u64)
    }
}

/// Where the next bytes of a file lie that are no hole, in whole blocks.
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        // Who knows of no holes has none.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        start => start?,
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    let block = BLOCK as u64;
    // What was read already is not read again.
    Ok(Some(((start / block * block).max(at), end.next_multiple_of(block))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn sum_of(dir: &Path) -> TreePart {
        sum(dir.parent().unwrap(), dir.file_name().unwrap().to_str().unwrap(), &|| true)
            .unwrap()
            .part
    }

    #[test]
    fn files_with_several_names_are_told_by_all_of_them() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("tree/a/b")).unwrap();
        std::fs::write(temp.path().join("tree/one"), "").unwrap();
        std::fs::write(temp.path().join("tree/a/alone"), "").unwrap();
        std::fs::hard_link(temp.path().join("tree/one"), temp.path().join("tree/a/b/two")).unwrap();
        let read = sum(temp.path(), "tree", &|| true).unwrap();
        assert_eq!(read.linked, [b"a/b/two".to_vec(), b"one".to_vec()]);
        assert_eq!(names(temp.path()).unwrap(), ["tree"]);
    }

    #[test]
    fn holes_are_zeros_and_cost_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let sum_of = |_: &Path| sum(temp.path(), "file", &|| true).unwrap().part;
        let write = |holes: u64, text: &str| {
            let _ = std::fs::remove_file(&path);
            let file = File::create(&path).unwrap();
            file.write_all_at(text.as_bytes(), holes).unwrap();
            file.set_len(holes + (1 << 40)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            file
        };
        write(CHUNK as u64 * 3 + 5000, "text");
        let first = sum_of(temp.path());
        assert_eq!(first.length, BLOCK as u64);
        // The same, with blocks of its own for zeros.
        let file = write(CHUNK as u64 * 3 + 5000, "text");
        file.write_all_at(&vec![0; CHUNK + 100], 4000).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(sum_of(temp.path()), first);
        write(CHUNK as u64 * 3 + 5001, "text")
            .set_len((1 << 40) + CHUNK as u64 * 3 + 5000)
            .unwrap();
        assert_ne!(sum_of(temp.path()).checksum, first.checksum, "at another place");
    }

    #[test]
    fn every_kind_of_change_changes_the_sum() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("tree");
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("a/file"), "contents").unwrap();
        symlink("target", dir.join("a/link")).unwrap();
        let first = sum_of(&dir);
        assert_eq!((first.entries, first.length), (5, 8));
        let file = dir.join("a/file");
        let time = std::fs::metadata(&file).unwrap().modified().unwrap();
        let mut sums = vec![first];
        let mut changed = |what: &str| {
            let sum = sum_of(&dir);
            assert!(!sums.contains(&sum), "{what}");
            sums.push(sum);
        };
        std::fs::write(&file, "cOntents").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        changed("a byte, with the time as it was");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        changed("a mode");
        std::fs::rename(dir.join("a/link"), dir.join("a/link2")).unwrap();
        changed("a name");
        std::fs::create_dir(dir.join("a/b/c")).unwrap();
        changed("a directory");
        std::fs::remove_file(&file).unwrap();
        changed("a file less");
    }
}
