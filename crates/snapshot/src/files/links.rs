//! Files of a directory that have several names, told without a look at each.
//!
//! A file whose names are all in one directory tree is listed there once for each name, under the
//! same inode number. So it takes a list of all directories, which is read while the sandbox goes
//! on; in the stop only those directories are read again that have changed since.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::ahead::TICK;
use super::following::DIRECTORY;
use crate::error::{Context, Result};

/// What is read of a directory at once, in bytes.
const AT_ONCE: usize = 64 * 1024;

/// Files in a directory tree, by their names.
#[derive(Debug)]
pub struct Names {
    root: OwnedFd,
    directories: HashMap<Vec<u8>, Listed>,
    /// Inodes of what is in them and no directory itself, as it was read first, in order.
    inodes: Vec<u64>,
    /// How many times each is listed more, or less, since then.
    more: HashMap<u64, i64>,
}

/// What was read of a directory.
#[derive(Debug)]
struct Listed {
    inode: u64,
    changed: (i64, u64),
    /// The time of its change tells whether it was changed since.
    settled: bool,
    /// Inodes of what is in it and no directory itself.
    files: Vec<u64>,
}

impl Names {
    /// Reads all names.
    ///
    /// # Errors
    /// When a directory cannot be read. One that goes away meanwhile is not missed.
    pub fn read(dir: &Path) -> Result<Self> {
        let failed = || format!("reading {}", dir.display());
        let root = openat(CWD, dir, DIRECTORY, Mode::empty()).context(failed)?;
        let mut directories = HashMap::new();
        list(&root, &mut directories, vec![b".".to_vec()]).context(failed)?;
        let all = directories.values().flat_map(|listed: &Listed| &listed.files);
        let mut inodes: Vec<u64> = all.copied().collect();
        inodes.sort_unstable();
        Ok(Self { root, directories, inodes, more: HashMap::new() })
    }

    /// How many there were that are not of directories.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// Reads again what has changed, while nothing changes any more: the names of all files that
    /// have several, in order; none where such files are more than `most`.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn linked(&mut self, most: usize) -> Result<Option<Vec<Vec<u8>>>> {
        let failed = || "reading names of files".to_owned();
        let several = self.update().context(failed)?;
        if several.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if several.len() > most {
            return Ok(None);
        }
        self.named(&several).context(failed).map(Some)
    }

    /// Brings all up to date, and gives inodes with several names.
    fn update(&mut self) -> io::Result<BTreeSet<u64>> {
        let is_known = |path: &[u8], listed: &Listed| {
            let stat = statat(&self.root, OsStr::from_bytes(path), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| listed.settled && listed.is_as(&stat))
        };
        let changed = self.directories.iter().filter(|(path, listed)| !is_known(path, listed));
        let changed: Vec<_> = changed.map(|(path, _)| path.clone()).collect();
        let gone = changed.iter().filter_map(|path| self.directories.remove(path));
        for inode in gone.flat_map(|listed| listed.files) {
            *self.more.entry(inode).or_default() -= 1;
        }
        // What went with the directory that it was in is not there to be read.
        for listed in list(&self.root, &mut self.directories, changed)? {
            let files = self.directories.get(&listed).map(|listed| listed.files.as_slice());
            for inode in files.unwrap_or_default() {
                *self.more.entry(*inode).or_default() += 1;
            }
        }
        let known = |inode: u64| {
            let start = self.inodes.partition_point(|known| *known < inode);
            let same = self.inodes.get(start..).unwrap_or_default().iter();
            same.take_while(|known| **known == inode).count() as i64
        };
        let changed = self.more.iter().filter(|(inode, count)| known(**inode) + **count > 1);
        let mut several: BTreeSet<u64> = changed.map(|(inode, _)| *inode).collect();
        let pairs = self.inodes.windows(2).filter_map(|pair| match pair {
            [one, other] if one == other => Some(*one),
            _ => None,
        });
        several.extend(pairs.filter(|inode| !self.more.contains_key(inode)));
        Ok(several)
    }

    /// The names of these inodes.
    fn named(&self, inodes: &BTreeSet<u64>) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut buffer = vec![MaybeUninit::uninit(); AT_ONCE];
        let has = |listed: &Listed| listed.files.iter().any(|inode| inodes.contains(inode));
        for (path, _) in self.directories.iter().filter(|(_, listed)| has(listed)) {
            let dir = open(&self.root, path)?;
            each(&dir, &mut buffer, |name, inode, kind| {
                if !kind.is_dir() && inodes.contains(&inode) {
                    names.push(join(path, name));
                }
            })?;
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Reads directories, and all below that are not known; gives those that were read.
fn list(
    root: &OwnedFd,
    known: &mut HashMap<Vec<u8>, Listed>,
    mut paths: Vec<Vec<u8>>,
) -> io::Result<Vec<Vec<u8>>> {
    let mut read = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); AT_ONCE];
    while let Some(path) = paths.pop() {
        if known.contains_key(&path) {
            continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = now.saturating_sub(TICK);
        let before = (before.as_secs() as i64, u64::from(before.subsec_nanos()));
        let dir = match open(root, &path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&dir)?;
        let (inode, changed) = (stat.st_ino, (stat.st_ctime, stat.st_ctime_nsec));
        let mut files = Vec::new();
        each(&dir, &mut buffer, |name, inode, kind| match kind {
            FileType::Directory => paths.push(join(&path, name)),
            // An overlay's mark of what is gone below, all of which may be one file.
            FileType::CharacterDevice => {}
            _ => files.push(inode),
        })?;
        let settled = changed < before;
        known.insert(path.clone(), Listed { inode, changed, settled, files });
        read.push(path);
    }
    Ok(read)
}

/// Opens a directory to be read: that it was is not noted, which may take a wait for the disk.
fn open(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = OsStr::from_bytes(path);
    match openat(root, path, DIRECTORY | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(root, path, DIRECTORY, Mode::empty()),
        opened => opened,
    }
}

/// Calls for each entry of a directory: its name, inode and kind.
fn each(
    dir: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    mut found: impl FnMut(&[u8], u64, FileType),
) -> io::Result<()> {
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        found(name, entry.ino(), kind);
    }
    Ok(())
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
        let linked = names.linked(usize::MAX).unwrap().unwrap().into_iter();
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
        fs::hard_link(at("c"), at("d")).unwrap();
        fs::hard_link(at("two"), at("e")).unwrap();
        assert_eq!(names.linked(1).unwrap(), None);
        assert_eq!(linked(&mut names), ["c", "d", "e", "two"]);
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
