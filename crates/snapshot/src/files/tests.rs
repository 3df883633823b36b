//! Copies that follow are the same as their originals, whatever happened meanwhile.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::following::{Following, Moment};

/// What happens to an original.
#[derive(Clone, Debug)]
enum Deed {
    Write(u8, u8),
    Append(u8),
    Directory(u8),
    Link(u8, u8),
    Symlink(u8),
    Rename(u8, u8),
    Remove(u8),
    Mode(u8),
    Attribute(u8, bool),
    /// A pass while all goes on, all of it settled or nothing.
    Pass(bool),
}

fn deed() -> impl Strategy<Value = Deed> {
    let name = 0..24_u8;
    prop_oneof![
        3 => (name.clone(), any::<u8>()).prop_map(|(at, byte)| Deed::Write(at, byte)),
        2 => name.clone().prop_map(Deed::Append),
        3 => name.clone().prop_map(Deed::Directory),
        3 => (name.clone(), name.clone()).prop_map(|(from, to)| Deed::Link(from, to)),
        1 => name.clone().prop_map(Deed::Symlink),
        3 => (name.clone(), name.clone()).prop_map(|(from, to)| Deed::Rename(from, to)),
        2 => name.clone().prop_map(Deed::Remove),
        1 => name.clone().prop_map(Deed::Mode),
        1 => (name, any::<bool>()).prop_map(|(at, set)| Deed::Attribute(at, set)),
        3 => any::<bool>().prop_map(Deed::Pass),
    ]
}

/// A place in a small tree, two levels deep.
fn place(dir: &Path, at: u8) -> PathBuf {
    match at {
        0..6 => dir.join(format!("d{at}")),
        6..12 => dir.join(format!("f{at}")),
        _ => dir.join(format!("d{}", at % 3)).join(format!("f{}", at % 5)),
    }
}

fn do_it(dir: &Path, deed: &Deed) {
    let at = |n: &u8| place(dir, *n);
    // Much of it cannot be done, as where a directory is not there.
    let _ = match deed {
        Deed::Write(n, byte) => fs::write(at(n), [*byte; 100]),
        Deed::Append(n) => fs::OpenOptions::new()
            .append(true)
            .open(at(n))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"more")),
        Deed::Directory(n) => fs::create_dir(at(n)),
        Deed::Link(from, to) => fs::hard_link(at(from), at(to)),
        Deed::Symlink(n) => symlink("somewhere", at(n)),
        Deed::Rename(from, to) => fs::rename(at(from), at(to)),
        Deed::Remove(n) => fs::remove_file(at(n)).or_else(|_| fs::remove_dir_all(at(n))),
        Deed::Mode(n) if at(n).is_symlink() => Ok(()),
        Deed::Mode(n) => fs::set_permissions(at(n), fs::Permissions::from_mode(0o711)),
        Deed::Attribute(n, set) => {
            let flags = rustix::fs::XattrFlags::empty();
            let done = if *set {
                rustix::fs::lsetxattr(at(n), "user.test", b"value", flags)
            } else {
                rustix::fs::lremovexattr(at(n), "user.test")
            };
            done.map_err(Into::into)
        }
        Deed::Pass(_) => Ok(()),
    };
}

/// All of a tree: kind, mode, time, contents, attribute, and which of the files it is.
fn shown(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut inodes = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    let mut paths = Vec::new();
    while let Some(next) = dirs.pop() {
        paths.push(next.clone());
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                dirs.push(path);
            } else {
                paths.push(path);
            }
        }
    }
    paths.sort();
    for path in paths {
        let stat = path.symlink_metadata().unwrap();
        let inode = inodes.iter().position(|inode| *inode == stat.ino()).unwrap_or_else(|| {
            inodes.push(stat.ino());
            inodes.len() - 1
        });
        let contents = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let mut value = Vec::with_capacity(64);
        let spare = rustix::buffer::spare_capacity(&mut value);
        let attribute = rustix::fs::lgetxattr(&path, "user.test", spare).is_ok();
        let time = (stat.mtime(), stat.mtime_nsec());
        let text = format!("{:o} {inode} {time:?} {attribute} {contents:?}", stat.mode());
        all.insert(path.strip_prefix(dir).unwrap().to_owned(), text);
    }
    all
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A directory of a file system that keeps fine times.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempdir()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_that_followed_is_the_same(deeds in prop::collection::vec(deed(), 1..60)) {
        let scratch = scratch();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir(&from).unwrap();
        let mut copy = Following::new(from.clone(), to.clone());
        for deed in &deeds {
            do_it(&from, deed);
            if let Deed::Pass(settled) = deed {
                if *settled {
                    // Longer than a tick, so that times tell.
                    std::thread::sleep(Duration::from_millis(12));
                }
                let since = if *settled { (i64::MAX, 0) } else { (0, 0) };
                copy.ahead(&Moment { since, ..Moment::default() }, later()).unwrap();
                if *settled {
                    std::thread::sleep(Duration::from_millis(12));
                }
            }
        }
        copy.finish(&Moment::default()).unwrap();
        prop_assert_eq!(shown(&from), shown(&to));
    }
}

#[test]
fn what_settled_is_not_copied_again_unless_it_is_mapped() {
    let scratch = scratch();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    for n in 0..10 {
        fs::write(from.join(n.to_string()), "text").unwrap();
    }
    let mut copy = Following::new(from.clone(), to.clone());
    let mut moment = Moment { since: (i64::MAX, 0), ..Moment::default() };
    let (done, again) = copy.ahead(&moment, later()).unwrap();
    assert_eq!((done.entries, again.entries), (10, 0));
    let stat = from.join("3").metadata().unwrap();
    moment.mapped.insert((stat.dev(), stat.ino()));
    let (done, again) = copy.ahead(&moment, later()).unwrap();
    assert_eq!((done.entries, again.entries), (1, 1));
    // It was mapped when it was copied, so nobody knows.
    moment.mapped.clear();
    assert_eq!(copy.ahead(&moment, later()).unwrap().0.entries, 1);
    assert_eq!(copy.ahead(&moment, later()).unwrap().0.entries, 0);
    moment.since = (0, 0);
    fs::write(from.join("5"), "other").unwrap();
    assert_eq!(copy.ahead(&moment, later()).unwrap().0.entries, 1);
    assert_eq!(copy.ahead(&moment, later()).unwrap().1.entries, 1, "it was changed just now");
}

#[test]
fn a_pass_that_is_out_of_time_leaves_what_there_is() {
    let scratch = scratch();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/b/file"), "text").unwrap();
    let mut copy = Following::new(from.clone(), to.clone());
    let moment = Moment { since: (i64::MAX, 0), ..Moment::default() };
    copy.ahead(&moment, later()).unwrap();
    copy.ahead(&moment, Instant::now()).unwrap();
    assert!(to.join("a/b/file").exists());
    fs::remove_dir_all(from.join("a")).unwrap();
    copy.finish(&moment).unwrap();
    assert_eq!(shown(&from), shown(&to));
}
