//! Trees, made at random, and the layers that an overlay would leave of a change between two.

// Each test executable uses a part of this, and a helper that fails is a test that fails.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::missing_panics_doc)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

/// A file in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    Regular { bytes: Vec<u8>, executable: bool },
    Link(PathBuf),
    Directory,
}

/// Files by their paths, the directories that they are in included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, File>);

impl Tree {
    pub fn of(files: &[(&str, File)]) -> Self {
        let mut tree = Self::default();
        for (path, file) in files {
            tree.put(path.into(), file.clone());
        }
        tree
    }

    /// Puts a file there, whatever is in the way.
    pub fn put(&mut self, path: PathBuf, file: File) {
        for above in path.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            self.0.insert(above.to_owned(), File::Directory);
        }
        if file != File::Directory {
            self.0.retain(|other, _| !other.starts_with(&path));
        }
        // What is below a file that became a directory is there; what is below a link is not.
        self.0.insert(path, file);
    }

    /// This tree with some of its files taken away and others put there.
    pub fn changed(&self, change: &Self) -> Self {
        let mut new = self.clone();
        for (at, path) in self.0.keys().enumerate() {
            if at % 4 == 0 {
                new.0.retain(|other, _| !other.starts_with(path));
            }
        }
        for (path, file) in &change.0 {
            new.put(path.clone(), file.clone());
        }
        let is_file = |file: &File| matches!(file, File::Regular { .. });
        let kept =
            self.0.iter().find(|(path, file)| is_file(file) && new.0.get(*path) == Some(file));
        if let Some((path, file)) = kept {
            new.0.remove(path);
            new.put("moved".into(), file.clone());
        }
        new
    }

    /// Without what git does not keep.
    pub fn known_to_git(&self) -> Self {
        let kept = self.0.iter().filter(|(_, file)| **file != File::Directory);
        let mut tree = Self::default();
        for (path, file) in kept {
            tree.put(path.clone(), file.clone());
        }
        tree
    }

    pub fn write(&self, into: &Path) {
        fs::create_dir_all(into).unwrap();
        for (path, file) in &self.0 {
            file.write(&into.join(path));
        }
    }

    pub fn read(from: &Path) -> Self {
        let mut tree = Self::default();
        read_into(&mut tree, from, Path::new(""));
        tree
    }
}

fn read_into(tree: &mut Tree, top: &Path, path: &Path) {
    for entry in fs::read_dir(top.join(path)).unwrap().map(Result::unwrap) {
        let inner = path.join(entry.file_name());
        let meta = entry.metadata().unwrap();
        let file = if meta.is_dir() {
            read_into(tree, top, &inner);
            File::Directory
        } else if meta.is_symlink() {
            File::Link(fs::read_link(entry.path()).unwrap())
        } else {
            let executable = meta.permissions().mode() & 0o100 != 0;
            File::Regular { bytes: fs::read(entry.path()).unwrap(), executable }
        };
        tree.0.insert(inner, file);
    }
}

impl File {
    pub fn write(&self, path: &Path) {
        match self {
            Self::Directory => drop(fs::create_dir_all(path)),
            Self::Link(target) => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(target, path).unwrap();
            }
            Self::Regular { bytes, executable } => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

/// Writes what an overlay has above `old` when it shows `new`.
pub fn upper_of(old: &Tree, new: &Tree, upper: &Path) {
    fs::create_dir_all(upper).unwrap();
    for (path, file) in &new.0 {
        let place = upper.join(path);
        match old.0.get(path) {
            Some(before) if before == file && *file != File::Directory => {}
            Some(before) if *file == File::Directory => {
                fs::create_dir_all(&place).unwrap();
                if *before != File::Directory {
                    set_opaque(&place);
                }
            }
            _ => file.write(&place),
        }
    }
    for path in old.0.keys().filter(|path| !new.0.contains_key(*path)) {
        let parent = path.parent().unwrap();
        let is_dir =
            |tree: &Tree| parent == Path::new("") || tree.0.get(parent) == Some(&File::Directory);
        if is_dir(new) && is_dir(old) {
            white_out(&upper.join(path));
        }
    }
}

pub fn set_opaque(dir: &Path) {
    setxattr(dir, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}

pub fn white_out(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Allowed to everybody, unlike other devices.
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

pub fn open(dir: &Path) -> OwnedFd {
    fs::File::open(dir).unwrap().into()
}

/// A file with a text.
pub fn text(text: &str) -> File {
    File::Regular { bytes: text.into(), executable: false }
}

/// Makes a tree of files of some kinds below a directory; where it is.
pub fn lower(dir: &Path) -> PathBuf {
    let tree = Tree::of(&[
        ("a/b/c", text("c\n")),
        ("a/b/d", text("d\n")),
        ("a/one", text("1\n")),
        ("link", File::Link("a".into())),
        ("many/x", text("x\n")),
        ("many/y", text("y\n")),
        ("text", text("old\n")),
    ]);
    let lower = dir.join("lower");
    tree.write(&lower);
    lower
}

/// Names that are easy to get wrong.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-e]".prop_map(String::into_bytes),
        1 => prop::sample::select(vec![
            b"two words".to_vec(), b"trailing ".to_vec(), b"new\nline".to_vec(), b"tab\t".to_vec(),
            b"quo\"te".to_vec(), b"back\\slash".to_vec(), b"\xff\xfe".to_vec(), "\u{e4}".into(),
            b"b".to_vec(), b"-option".to_vec(), b"\x1b[31m".to_vec(),
        ]),
    ]
}

fn file() -> impl Strategy<Value = File> {
    let line = prop_oneof![4 => "[a-c]{0,2}\r?", 1 => "[ -~\u{e4}\u{1b}]{0,9}"];
    let text = (vec(line, 0..40), any::<bool>()).prop_map(|(lines, ends)| {
        let mut text = lines.join("\n");
        if ends && !text.is_empty() {
            text.push('\n');
        }
        text.into_bytes()
    });
    let bytes = prop_oneof![4 => text, 1 => vec(any::<u8>(), 0..300)];
    prop_oneof![
        6 => (bytes, any::<bool>())
            .prop_map(|(bytes, executable)| File::Regular { bytes, executable }),
        1 => vec(1_u8.., 1..20)
            .prop_map(|target| File::Link(std::ffi::OsString::from_vec(target).into())),
        1 => Just(File::Directory),
    ]
}

/// A tree.
pub fn entries() -> impl Strategy<Value = Tree> {
    btree_map(vec(name(), 1..4), file(), 0..10).prop_map(|files| {
        let mut tree = Tree::default();
        for (names, file) in files {
            let path: PathBuf = names.iter().map(|name| OsStr::from_bytes(name)).collect();
            tree.put(path, file);
        }
        tree
    })
}
