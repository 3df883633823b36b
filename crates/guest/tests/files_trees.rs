//! Listing, removing, moving and copying trees that a hostile guest made.

mod files_support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use files_support::*;
use forkyard_guest::files::is_long;
use forkyard_guest::files::proto::{EntryKind, FileErrorKind, FileReply, FileRequest, LIMIT_MAX};
use forkyard_testkit::is_root;
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

#[test]
fn a_listing_goes_as_deep_as_asked_and_is_sorted() {
    let place = Place::new();
    place.dir("top/b/c/d");
    place.file("top/a", "1");
    place.link("nowhere", "top/z");
    let (entries, truncated) = place.list("/top", 1, 100);
    assert_eq!((paths(&entries), truncated), (vec!["a".into(), "b".into(), "z".into()], false));
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::File, EntryKind::Directory, EntryKind::Symlink]);
    assert_eq!(entries[2].target.as_ref().map(|target| target.as_slice()), Some(&b"nowhere"[..]));
    let (entries, _) = place.list("/top", 3, 100);
    assert_eq!(paths(&entries), ["a", "b", "b/c", "b/c/d", "z"]);
    assert!(matches!(place.error(list("/top", 0, 1)), FileErrorKind::Refused(_)));
}

#[test]
fn links_to_directories_are_listed_but_not_entered() {
    let place = Place::new();
    place.dir("top/dir");
    place.link("dir", "top/link");
    place.link("..", "top/up");
    place.file("top/dir/file", "1");
    let (entries, _) = place.list("/top", 9, 100);
    assert_eq!(paths(&entries), ["dir", "dir/file", "link", "up"]);
    // The directory that is asked for may be a link.
    assert_eq!(paths(&place.list("/top/link", 1, 100).0), ["file"]);
}

#[test]
fn a_listing_of_a_hundred_thousand_files_is_cut_at_its_limit() {
    let place = Place::new();
    place.dir("many");
    let dir =
        rustix::fs::open(place.at("many"), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            .expect("the directory");
    place.file("many/0", "");
    for number in 1..=LIMIT_MAX {
        rustix::fs::symlinkat(c"x", &dir, format!("{number}")).expect("a link");
    }
    let (entries, truncated) = place.list("/many", 1, 10);
    assert_eq!((entries.len(), truncated), (10, true));
    let (entries, truncated) = place.list("/many", 1, u32::MAX);
    assert_eq!((entries.len(), truncated), (LIMIT_MAX as usize, true));
    place.ask(remove("/many", true)).expect("removed");
    assert!(!place.at("many").exists());
}

#[test]
fn trees_deeper_than_any_path_are_listed_copied_and_removed() {
    const DEPTH: usize = 1500;
    let place = Place::new();
    deep_tree(&place.at("deep"), DEPTH);
    let (entries, _) = place.list("/deep", u32::MAX, u32::MAX);
    assert_eq!(entries.len(), DEPTH + 1);
    assert!(entries.last().is_some_and(|entry| entry.path.len() > 3 * 4096));
    let (reply, _) = place.ask(copy("/deep", "/copy", true)).expect("copied");
    assert_eq!(reply, FileReply::Moved { entries: DEPTH as u64 + 2, skipped: 0 });
    assert_eq!(measure_deep_tree(&place.at("copy")), (DEPTH, true));
    for path in ["/deep", "/copy"] {
        place.ask(remove(path, true)).expect("removed");
    }
    assert_eq!(place.list("/", 1, 10).0, []);
}

#[test]
fn removal_takes_links_themselves_and_never_what_they_lead_to() {
    let place = Place::new();
    let outside = tempfile::tempdir().expect("a directory outside");
    fs::write(outside.path().join("file"), "kept").expect("a file outside");
    place.dir("kept");
    place.file("kept/file", "kept");
    place.dir("tree/dir");
    place.link("/kept", "tree/inside");
    symlink(outside.path(), place.at("tree/dir/outside")).expect("a link");
    assert_eq!(place.error(remove("/tree", false)), FileErrorKind::NotEmpty);
    place.ask(remove("/tree", true)).expect("removed");
    assert!(!place.at("tree").exists());
    assert_eq!(place.text("kept/file"), "kept");
    assert!(outside.path().join("file").exists());
    place.link("/kept", "link");
    place.ask(remove("/link/", true)).expect("the link removed");
    assert_eq!(place.text("kept/file"), "kept");
    assert_eq!(place.error(remove("/link", true)), FileErrorKind::NotFound);
}

#[test]
fn a_directory_swapped_for_a_link_during_removal_protects_the_links_target() {
    let place = Place::new();
    let outside = tempfile::tempdir().expect("a directory outside");
    for number in 0..20 {
        fs::write(outside.path().join(format!("{number}")), "kept").expect("a file outside");
    }
    let done = AtomicBool::new(false);
    let (a, b) = (place.at("tree/a/b"), place.at("tree/link"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..60 {
            place.dir("tree/a");
            // The guest may have left a link of these names.
            let _ = fs::create_dir(&a);
            for number in 0..20 {
                let _ = fs::write(a.join(format!("in-{number}")), "x");
            }
            let _ = symlink(outside.path(), &b);
            let _ = place.ask(remove("/tree", true));
            for number in 0..20 {
                let _ = fs::remove_file(outside.path().join(format!("in-{number}")));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let kept = fs::read_dir(outside.path()).expect("the directory").count();
    assert_eq!(kept, 20);
    let _ = place.ask(remove("/tree", true));
    assert!(!place.at("tree").exists());
}

#[test]
fn removal_stops_at_a_mounted_file_system() {
    let place = Place::new();
    if let Some(output) = mount_namespace("removal_stops_at_a_mounted_file_system") {
        return passed(&output);
    }
    place.dir("volume");
    place.file("volume/file", "kept");
    place.dir("tree/mounted");
    let mounted = place.at("tree/mounted");
    // The same file system again: device numbers do not tell.
    rustix::mount::mount_bind(place.at("volume"), &mounted).expect("a bind mount");
    let why = place.refusal(remove("/tree", true));
    assert!(why.contains("mounted"), "{why}");
    assert_eq!(place.text("volume/file"), "kept");
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}

#[test]
fn a_copy_keeps_modes_times_links_attributes_and_holes() {
    let place = Place::new();
    place.dir("tree/dir");
    place.file("tree/one", "text");
    fs::hard_link(place.at("tree/one"), place.at("tree/dir/two")).expect("a hard link");
    place.link("../one", "tree/dir/link");
    let sparse = fs::File::create(place.at("tree/sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a size");
    sparse.write_all_at(b"middle", 32 << 20).expect("written");
    let dir = fs::File::open(place.at("tree")).expect("the tree");
    rustix::fs::mknodat(&dir, c"fifo", rustix::fs::FileType::Fifo, 0o640.into(), 0)
        .expect("a fifo");
    let _socket =
        std::os::unix::net::UnixListener::bind(place.at("tree/socket")).expect("a socket");
    for path in ["tree/one", "tree/dir"] {
        let file = fs::File::open(place.at(path)).expect("opened");
        rustix::fs::fsetxattr(&file, c"user.note", b"kept", XattrFlags::empty()).expect("xattr");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(86_400, 5))
            .expect("time");
    }
    fs::set_permissions(place.at("tree/one"), fs::Permissions::from_mode(0o4751)).expect("mode");
    fs::set_permissions(place.at("tree/dir"), fs::Permissions::from_mode(0o555)).expect("mode");

    assert_eq!(place.error(copy("/tree", "/copy", false)), FileErrorKind::IsADirectory);
    let (reply, _) = place.ask(copy("/tree", "/copy", true)).expect("copied");
    assert_eq!(reply, FileReply::Moved { entries: 7, skipped: 1 });

    let metadata = |path: &str| fs::symlink_metadata(place.at(path)).expect("metadata");
    for (path, want) in [("copy/one", 0o4751), ("copy/dir", 0o555), ("copy/fifo", 0o640)] {
        assert_eq!(metadata(path).mode() & 0o7777, want, "{path}");
    }
    for path in ["copy/one", "copy/dir"] {
        assert_eq!((metadata(path).mtime(), metadata(path).mtime_nsec()), (86_400, 5), "{path}");
        let mut value = [0; 16];
        let file = fs::File::open(place.at(path)).expect("opened");
        let length = rustix::fs::fgetxattr(&file, c"user.note", &mut value).expect("xattr");
        assert_eq!(&value[..length], b"kept");
    }
    assert_eq!(metadata("copy/one").ino(), metadata("copy/dir/two").ino());
    assert_ne!(metadata("copy/one").ino(), metadata("tree/one").ino());
    assert_eq!(fs::read_link(place.at("copy/dir/link")).expect("a link").to_str(), Some("../one"));
    let (old, new) = (metadata("tree/sparse"), metadata("copy/sparse"));
    assert_eq!(new.len(), old.len());
    assert!(new.blocks() <= old.blocks() + 64, "{} {}", new.blocks(), old.blocks());
    let mut middle = [0; 6];
    let file = fs::File::open(place.at("copy/sparse")).expect("opened");
    file.read_exact_at(&mut middle, 32 << 20).expect("read");
    assert_eq!(&middle, b"middle");
    // For the removal of what is read-only.
    for path in ["tree/dir", "copy/dir"] {
        fs::set_permissions(place.at(path), fs::Permissions::from_mode(0o755)).expect("mode");
    }
}

#[test]
fn a_copy_replaces_a_file_but_no_directory_and_not_itself() {
    let place = Place::new();
    place.file("a", "new");
    place.file("b", "old");
    place.dir("dir/sub");
    fs::hard_link(place.at("a"), place.at("same")).expect("a hard link");
    place.ask(copy("/a", "/b", false)).expect("copied");
    assert_eq!(place.text("b"), "new");
    assert_eq!(place.error(copy("/a", "/dir", false)), FileErrorKind::AlreadyExists);
    assert_eq!(place.error(copy("/dir", "/a", true)), FileErrorKind::AlreadyExists);
    assert!(place.refusal(copy("/a", "/same", false)).contains("same"));
    assert!(place.refusal(copy("/dir", "/dir/sub/copy", true)).contains("itself"));
    let left: Vec<_> = paths(&place.list("/", 3, 100).0);
    assert_eq!(left, ["a", "b", "dir", "dir/sub", "same"]);
}

#[test]
fn a_failed_copy_leaves_nothing_behind() {
    let place = Place::new();
    place.dir("tree/dir");
    place.file("tree/dir/file", "x");
    fs::set_permissions(place.at("tree/dir/file"), fs::Permissions::from_mode(0o000))
        .expect("mode");
    let answer = place.ask(copy("/tree", "/copy", true));
    assert_eq!(answer.is_ok(), is_root());
    let names = paths(&place.list("/", 1, 10).0);
    assert_eq!(names, if is_root() { vec!["copy", "tree"] } else { vec!["tree"] });
}

#[test]
fn a_move_replaces_only_where_it_may() {
    let place = Place::new();
    place.file("a", "a");
    place.file("b", "b");
    place.dir("full/x");
    assert_eq!(place.error(rename("/a", "/b", true)), FileErrorKind::AlreadyExists);
    place.ask(rename("/a", "/b", false)).expect("moved");
    assert_eq!(place.text("b"), "a");
    assert_eq!(place.error(rename("/a", "/c", false)), FileErrorKind::NotFound);
    place.dir("dir");
    assert_eq!(place.error(rename("/dir", "/full", false)), FileErrorKind::NotEmpty);
    assert!(place.refusal(rename("/full", "/full/x/y", false)).contains("itself"));
    place.link("b", "link");
    place.ask(rename("/link", "/moved", true)).expect("moved");
    assert!(place.at("moved").is_symlink());
}

#[test]
fn a_move_to_another_file_system_copies_and_removes() {
    let place = Place::new();
    if let Some(output) = mount_namespace("a_move_to_another_file_system_copies_and_removes") {
        return passed(&output);
    }
    place.dir("other");
    let (flags, none) = (rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>);
    rustix::mount::mount(c"tmpfs", place.at("other"), c"tmpfs", flags, none).expect("a tmpfs");
    place.dir("tree/dir");
    place.file("tree/dir/file", "text");
    place.file("other/there", "x");
    place.ask(rename("/tree", "/other/tree", false)).expect("moved");
    assert_eq!(place.text("other/tree/dir/file"), "text");
    assert!(!place.at("tree").exists());
    place.file("here", "y");
    assert_eq!(place.error(rename("/here", "/other/there", true)), FileErrorKind::AlreadyExists);
    place.ask(rename("/here", "/other/there", false)).expect("moved");
    assert_eq!(place.text("other/there"), "y");
    assert_eq!(paths(&place.list("/other", 1, 10).0), ["there", "tree"]);
    let flags = rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(place.at("other"), flags).expect("unmounted");
}

#[test]
fn files_of_an_overlays_lower_layer_are_written_moved_and_removed() {
    let place = Place::new();
    let test = "files_of_an_overlays_lower_layer_are_written_moved_and_removed";
    if let Some(output) = mount_namespace(test) {
        return passed(&output);
    }
    for dir in ["lower/tree/dir", "upper", "work", "merged"] {
        place.dir(dir);
    }
    place.file("lower/tree/dir/file", "lower");
    fs::hard_link(place.at("lower/tree/dir/file"), place.at("lower/tree/twin")).expect("a link");
    let path = |name: &str| place.at(name).display().to_string();
    let (lower, upper, work) = (path("lower"), path("upper"), path("work"));
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr");
    let layers = std::ffi::CString::new(layers).expect("options");
    let flags = rustix::mount::MountFlags::empty();
    let merged = place.at("merged");
    rustix::mount::mount(c"overlay", &merged, c"overlay", flags, &*layers).expect("an overlay");

    place.ask(copy("/merged/tree", "/merged/copy", true)).expect("copied");
    // The kernel says EXDEV to this rename.
    place.ask(rename("/merged/tree", "/merged/moved", true)).expect("moved");
    place.ask(write("/merged/moved/dir/file", "upper")).expect("written");
    assert_eq!(place.text("merged/moved/dir/file"), "upper");
    assert_eq!(place.text("merged/copy/twin"), "lower");
    let names = ["copy", "copy/dir", "copy/dir/file", "copy/twin"];
    assert_eq!(
        paths(&place.list("/merged", 9, 100).0).get(..4),
        Some(&names.map(String::from)[..])
    );
    place.ask(remove("/merged/moved", true)).expect("removed");
    place.ask(remove("/merged/copy", true)).expect("removed");
    assert_eq!(place.list("/merged", 9, 100).0, []);
    assert_eq!(place.text("lower/tree/twin"), "lower");
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    // The kernel makes this directory without any permission.
    fs::set_permissions(place.at("work/work"), fs::Permissions::from_mode(0o700)).expect("a mode");
}

#[test]
fn names_of_owners_come_from_the_sandboxs_own_files() {
    let place = Place::new();
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    place.dir("etc");
    place.file("etc/passwd", format!("first:x:{}:0::/:\nsecond:x:{}:0::/:\n", me.0, me.0));
    place.file("etc/group", format!("crew:x:{}:\n", me.1));
    let entry = entry(place.ask(stat("/etc")));
    assert_eq!((entry.owner.as_str(), entry.group.as_str()), ("first", "crew"));
    assert_eq!((entry.uid, entry.gid), me);
}

#[test]
fn what_may_take_long_is_said_beforehand() {
    let long = |op| is_long(&FileRequest { user: None, op });
    for op in [remove("/", true), copy("/", "/", false), rename("/", "/", false), list("/", 2, 1)] {
        assert!(long(op.clone()), "{op:?}");
    }
    for op in [remove("/", false), list("/", 1, 1000), read("/"), write("/", ""), stat("/")] {
        assert!(!long(op.clone()), "{op:?}");
    }
}
