//! Files of a directory that have several names, told without a look at each.
//!
//! A file whose names are all in one directory tree is listed there once for each name, under the
//! same inode number. So it takes a list of all directories, which is read while the sandbox goes
//! on; in the stop only those directories are read again that have changed since.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, Stat, fstat, openat, statat};

use super::ahead::TICK;
use super::following::DIRECTORY;
use crate::error::{Context, Result};

/// Names of files in a directory tree.
#[derive(Debug)]
pub struct Names {
    root: OwnedFd,
    directories: HashMap<Vec<u8>, Listed>,
    /// How many names each inode has that is no directory's.
    counts: HashMap<u64, u32>,
}

/// What was read of a directory.
#[derive(Debug)]
struct Listed {
    inode: u64,
    changed: (i64, u64),
    /// The time of its change tells whether it was changed since.
    settled: bool,
    files: Vec<(u64, Vec<u8>)>,
    below: Vec<Vec<u8>>,
}

impl Names {
    /// Reads all names.
    ///
    /// # Errors
    /// When a directory cannot be read. One that goes away meanwhile is not missed.
    pub fn read(dir: &Path) -> Result<Self> {
        let failed = || format!("reading {}", dir.display());
        let root = openat(CWD, dir, DIRECTORY, Mode::empty()).context(failed)?;
        let (directories, counts) = (HashMap::new(), HashMap::new());
        let mut names = Self { root, directories, counts };
        names.list(vec![b".".to_vec()]).context(failed)?;
        Ok(names)
    }

    /// How many there are that are not of directories, as far as is known.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.values().map(|count| u64::from(*count)).sum()
    }

    /// Reads again what has changed, while nothing changes any more: the names of all files that
    /// have several, in order.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn linked(&mut self) -> Result<Vec<Vec<u8>>> {
        self.update().context(|| "reading names of files".to_owned())?;
        let several: HashSet<u64> =
            self.counts.iter().filter(|(_, count)| **count > 1).map(|(inode, _)| *inode).collect();
        let mut names = Vec::new();
        if several.is_empty() {
            return Ok(names);
        }
        for (path, listed) in &self.directories {
            let linked = listed.files.iter().filter(|(inode, _)| several.contains(inode));
            names.extend(linked.map(|(_, name)| join(path, name)));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn update(&mut self) -> io::Result<()> {
        let mut again = Vec::new();
        for (path, listed) in &self.directories {
            let stat = statat(&self.root, OsStr::from_bytes(path), AtFlags::SYMLINK_NOFOLLOW);
            if !stat.is_ok_and(|stat| listed.settled && listed.is_as(&stat)) {
                again.push(path.clone());
            }
        }
        for path in &again {
            self.forget(path);
        }
        // One that went with the directory that it was in has nothing to be read.
        self.list(again)
    }

    fn forget(&mut self, path: &[u8]) {
        let Some(listed) = self.directories.remove(path) else { return };
        for (inode, _) in listed.files {
            if let Some(count) = self.counts.get_mut(&inode) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Reads directories, and all below that are not known.
    fn list(&mut self, mut paths: Vec<Vec<u8>>) -> io::Result<()> {
        while let Some(path) = paths.pop() {
            if self.directories.contains_key(&path) {
                continue;
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let before = now.saturating_sub(TICK);
            let before = (before.as_secs() as i64, u64::from(before.subsec_nanos()));
            let dir = match openat(&self.root, OsStr::from_bytes(&path), DIRECTORY, Mode::empty()) {
                Ok(dir) => dir,
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            let stat = fstat(&dir)?;
            let (inode, changed) = (stat.st_ino, (stat.st_ctime, stat.st_ctime_nsec));
            let settled = changed < before;
            let mut listed =
                Listed { inode, changed, settled, files: Vec::new(), below: Vec::new() };
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let kind = match entry.file_type() {
                    FileType::Unknown => {
                        let stat =
                            statat(&dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
                        FileType::from_raw_mode(stat.st_mode)
                    }
                    kind => kind,
                };
                match kind {
                    FileType::Directory => listed.below.push(join(&path, name)),
                    // An overlay's mark of what is gone below, all of which may be one file.
                    FileType::CharacterDevice => {}
                    _ => {
                        *self.counts.entry(entry.ino()).or_default() += 1;
                        listed.files.push((entry.ino(), name.to_vec()));
                    }
                }
            }
            paths.extend(listed.below.iter().cloned());
            self.directories.insert(path, listed);
        }
        Ok(())
    }
}

impl Listed {
    fn is_as(&self, stat: &Stat) -> bool {
        (stat.st_ino, (stat.st_ctime, stat.st_ctime_nsec)) == (self.inode, self.changed)
    }
}

/// The path of a name in a directory, from the top.
fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir == b"." { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory of a file system that keeps fine times.
    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn linked(names: &mut Names) -> Vec<String> {
        let linked = names.linked().unwrap().into_iter();
        linked.map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn files_with_several_names_are_told_with_all_of_them() {
        let scratch = scratch();
        let at = |path: &str| scratch.path().join(path);
        fs::create_dir_all(at("a/b")).unwrap();
        for path in ["one", "two", "a/three", "a/b/four"] {
            fs::write(at(path), path).unwrap();
        }
        fs::hard_link(at("one"), at("a/b/uno")).unwrap();
        let mut names = Names::read(scratch.path()).unwrap();
        assert_eq!(linked(&mut names), ["a/b/uno", "one"]);
        // Whatever comes and goes after it was read is seen, in old and new directories.
        fs::hard_link(at("a/three"), at("a/tres")).unwrap();
        fs::create_dir(at("new")).unwrap();
        fs::hard_link(at("two"), at("new/due")).unwrap();
        fs::remove_file(at("one")).unwrap();
        assert_eq!(linked(&mut names), ["a/three", "a/tres", "new/due", "two"]);
        fs::remove_dir_all(at("new")).unwrap();
        fs::rename(at("a"), at("c")).unwrap();
        assert_eq!(linked(&mut names), ["c/three", "c/tres"]);
        fs::remove_dir_all(at("c")).unwrap();
        fs::write(at("c"), "a file").unwrap();
        assert_eq!(linked(&mut names), [""; 0]);
    }

    #[test]
    fn a_link_made_at_once_after_the_directory_was_read_is_seen() {
        for _ in 0..50 {
            let scratch = scratch();
            let at = |path: &str| scratch.path().join(path);
            fs::write(at("one"), "").unwrap();
            let mut names = Names::read(scratch.path()).unwrap();
            fs::hard_link(at("one"), at("two")).unwrap();
            assert_eq!(linked(&mut names), ["one", "two"]);
        }
    }
}
