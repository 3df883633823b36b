//! Reading and writing contents, and whose rights that takes.

mod files_support;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use files_support::*;
use forkyard_guest::files::proto::{FileErrorKind, FileOp, FileReply, INLINE_MAX, WriteTarget};
use forkyard_guest::users::{group_is_mapped, id_is_mapped};
use forkyard_testkit::{is_root, skip};

fn target(path: &str) -> WriteTarget {
    WriteTarget { path: bytes(path), ..WriteTarget::default() }
}

fn mode(place: &Place, path: &str) -> u32 {
    fs::symlink_metadata(place.at(path)).expect("metadata").mode() & 0o7777
}

#[test]
fn a_range_of_a_small_file_comes_with_the_reply() {
    let place = Place::new();
    place.file("file", "0123456789");
    for (offset, length, want) in [
        (0, None, "0123456789"),
        (3, Some(4), "3456"),
        (8, Some(99), "89"),
        (10, None, ""),
        (u64::MAX, None, ""),
        (0, Some(0), ""),
    ] {
        let op = FileOp::Read { path: bytes("/file"), offset, length };
        assert_eq!(contents(place.ask(op)), want.as_bytes(), "{offset} {length:?}");
    }
}

#[test]
fn a_large_file_comes_as_a_descriptor_that_can_only_be_read() {
    let place = Place::new();
    let data: Vec<u8> = (0..=INLINE_MAX).map(|index| index as u8).collect();
    place.file("file", &data);
    let op = FileOp::Read { path: bytes("/file"), offset: 0, length: None };
    let (reply, fd) = place.ask(op).expect("opened");
    assert!(matches!(reply, FileReply::Opened { entry } if entry.size == data.len() as u64));
    let mut file = fs::File::from(fd.expect("a descriptor"));
    let mut got = Vec::new();
    file.read_to_end(&mut got).expect("read");
    assert_eq!(got, data);
    assert!(file.write(b"x").is_err());
    // One byte less fits.
    fs::File::options()
        .write(true)
        .open(place.at("file"))
        .and_then(|file| file.set_len(INLINE_MAX as u64))
        .expect("cut");
    assert_eq!(contents(place.ask(read("/file"))).len(), INLINE_MAX);
}

#[test]
fn a_descriptor_stands_at_the_offset_asked_for() {
    let place = Place::new();
    place.file("file", vec![7; INLINE_MAX * 2]);
    let op = FileOp::Read { path: bytes("/file"), offset: 5, length: None };
    let (_, fd) = place.ask(op).expect("opened");
    let mut file = fs::File::from(fd.expect("a descriptor"));
    assert_eq!(file.stream_position().expect("a position"), 5);
}

#[test]
fn writing_keeps_owner_mode_and_links_of_an_existing_file() {
    let place = Place::new();
    place.file("file", "old and longer");
    fs::set_permissions(place.at("file"), fs::Permissions::from_mode(0o640)).expect("a mode");
    fs::hard_link(place.at("file"), place.at("other")).expect("a hard link");
    let before = fs::metadata(place.at("file")).expect("metadata").ino();
    place.ask(write("/file", "new")).expect("written");
    assert_eq!(place.text("other"), "new");
    assert_eq!(mode(&place, "file"), 0o640);
    assert_eq!(fs::metadata(place.at("file")).expect("metadata").ino(), before);
}

#[test]
fn nothing_of_a_longer_file_is_left_by_a_shorter_one_or_by_none() {
    let place = Place::new();
    place.file("file", "x".repeat(3 * INLINE_MAX));
    for contents in ["y".repeat(INLINE_MAX), "new".to_owned(), "longer".to_owned(), String::new()] {
        place.ask(write("/file", &contents)).expect("written");
        assert_eq!(place.text("file"), contents);
    }
}

#[test]
fn a_write_by_another_user_takes_set_id_bits_off() {
    if !is_root() || !id_is_mapped(1234) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    for (name, contents) in [("tool", "x"), ("emptied", "")] {
        place.file(name, "old");
        fs::set_permissions(place.at(name), fs::Permissions::from_mode(0o4777)).expect("a mode");
        place.ask_as("1234", write(&format!("/{name}"), contents)).expect("written");
        assert_eq!(mode(&place, name), 0o777, "{name}");
    }
}

#[test]
fn modes_are_exact_whatever_the_umask() {
    let place = Place::new();
    let modes = [(None, 0o644), (Some(0o666), 0o666), (Some(0o400), 0o400), (Some(0o777), 0o777)];
    for (number, (asked, want)) in modes.into_iter().enumerate() {
        let path = format!("/file-{number}");
        place.ask(write_to(WriteTarget { mode: asked, ..target(&path) }, "x")).expect("written");
        assert_eq!(mode(&place, &path), want);
    }
    place
        .ask(write_to(WriteTarget { mode: Some(0o600), ..target("/file-0") }, "x"))
        .expect("again");
    assert_eq!(mode(&place, "file-0"), 0o600);
    place.ask(make_dir("/dir", false, 0o1777)).expect("made");
    assert_eq!(mode(&place, "dir"), 0o1777);
}

#[test]
fn appending_adds_to_the_end_also_through_a_descriptor() {
    let place = Place::new();
    let append = WriteTarget { append: true, ..target("/log") };
    for line in ["one ", "two "] {
        place.ask(write_to(append.clone(), line)).expect("written");
    }
    let (_, fd) = place.ask(FileOp::OpenWrite { target: append }).expect("opened");
    fs::File::from(fd.expect("a descriptor")).write_all(b"three").expect("written");
    assert_eq!(place.text("log"), "one two three");
}

#[test]
fn exclusive_writes_refuse_what_exists_even_a_dangling_link() {
    let place = Place::new();
    let exclusive = |path: &str| WriteTarget { exclusive: true, ..target(path) };
    place.link("nowhere", "dangling");
    place.ask(write_to(exclusive("/file"), "first")).expect("written");
    for path in ["/file", "/dangling"] {
        assert_eq!(place.error(write_to(exclusive(path), "second")), FileErrorKind::AlreadyExists);
    }
    assert_eq!(place.text("file"), "first");
    assert!(!place.at("nowhere").exists());
}

#[test]
fn a_write_through_a_dangling_link_makes_the_file_it_names() {
    let place = Place::new();
    place.dir("dir");
    place.link("/dir/file", "link");
    place.ask(write("/link", "text")).expect("written");
    assert_eq!(place.text("dir/file"), "text");
    assert!(place.at("link").is_symlink());
}

#[test]
fn parents_are_made_on_request_and_through_links() {
    let place = Place::new();
    place.dir("real");
    place.link("/real", "link");
    assert_eq!(place.error(write("/link/a/b", "x")), FileErrorKind::NotFound);
    let parents = WriteTarget { create_parents: true, ..target("/link/a/../c/file") };
    place.ask(write_to(parents, "text")).expect("written");
    assert_eq!(place.text("real/c/file"), "text");
    assert_eq!(mode(&place, "real/c"), 0o755);
}

#[test]
fn a_large_write_goes_through_a_descriptor_and_empties_the_file_first() {
    let place = Place::new();
    place.file("file", "old");
    let too_large = FileOp::Write { target: target("/file"), contents: vec![0; INLINE_MAX + 1] };
    assert!(matches!(place.error(too_large), FileErrorKind::TooLarge(_)));
    assert_eq!(place.text("file"), "old");
    let (reply, fd) = place.ask(FileOp::OpenWrite { target: target("/file") }).expect("opened");
    assert!(matches!(reply, FileReply::Opened { entry } if entry.size == 0));
    let mut file = fs::File::from(fd.expect("a descriptor"));
    file.write_all(&vec![b'x'; 1 << 20]).expect("written");
    assert!(file.read(&mut [0; 1]).is_err());
    assert_eq!(fs::metadata(place.at("file")).expect("metadata").len(), 1 << 20);
}

#[test]
fn directories_and_trailing_slashes_are_no_files() {
    let place = Place::new();
    place.dir("dir");
    place.file("file", "x");
    assert_eq!(place.error(read("/dir")), FileErrorKind::IsADirectory);
    assert_eq!(place.error(write("/dir", "x")), FileErrorKind::IsADirectory);
    assert_eq!(place.error(write("/new/", "x")), FileErrorKind::IsADirectory);
    assert_eq!(place.error(read("/file/below")), FileErrorKind::NotADirectory);
    assert_eq!(place.error(list("/file", 1, 1)), FileErrorKind::NotADirectory);
    assert_eq!(place.error(read("/missing")), FileErrorKind::NotFound);
    assert_eq!(place.error(make_dir("/file", true, 0o755)), FileErrorKind::AlreadyExists);
    assert_eq!(place.error(make_dir("/dir", false, 0o755)), FileErrorKind::AlreadyExists);
    place.ask(make_dir("/dir", true, 0o755)).expect("it is there");
}

#[test]
fn another_user_has_that_users_rights_and_its_files_are_its_own() {
    if !is_root() || !id_is_mapped(1234) || !group_is_mapped(2345) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    place.file("secret", "x");
    fs::set_permissions(place.at("secret"), fs::Permissions::from_mode(0o600)).expect("a mode");
    place.dir("open");
    fs::set_permissions(place.at("open"), fs::Permissions::from_mode(0o777)).expect("a mode");
    for op in [
        read("/secret"),
        write("/secret", "y"),
        write("/new", "y"),
        make_dir("/dir", false, 0o755),
        rename("/secret", "/open/secret", false),
        copy("/secret", "/open/secret", false),
        remove("/secret", false),
        remove("/open", true),
    ] {
        let error = place.ask_as("1234:2345", op.clone()).expect_err("refused");
        assert_eq!(error.kind, FileErrorKind::PermissionDenied, "{op:?}");
    }
    place.dir("open");
    place.ask_as("1234:2345", write("/open/file", "mine")).expect("written");
    place.ask_as("1234:2345", make_dir("/open/a/b", true, 0o700)).expect("made");
    for path in ["open/file", "open/a", "open/a/b"] {
        let metadata = fs::metadata(place.at(path)).expect("metadata");
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345), "{path}");
    }
    // The identity is this thread's own again.
    place.ask(write("/secret", "mine again")).expect("written");
}

#[test]
fn a_users_groups_open_files_but_a_named_group_stands_alone() {
    if !is_root() || !id_is_mapped(1234) || !group_is_mapped(777) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    place.dir("etc");
    place.file("etc/passwd", "agent:x:1234:2345::/:/bin/sh\n");
    place.file("etc/group", "staff:x:777:other,agent\n");
    place.file("shared", "text");
    fs::set_permissions(place.at("shared"), fs::Permissions::from_mode(0o040)).expect("a mode");
    std::os::unix::fs::chown(place.at("shared"), Some(1), Some(777)).expect("a group");
    assert_eq!(contents(place.ask_as("agent", read("/shared"))), b"text");
    assert_eq!(contents(place.ask_as("agent:staff", read("/shared"))), b"text");
    let error = place.ask_as("agent:2345", read("/shared")).expect_err("refused");
    assert_eq!(error.kind, FileErrorKind::PermissionDenied);
}

#[test]
fn root_with_another_group_is_still_root() {
    if !is_root() || !id_is_mapped(1234) || !group_is_mapped(777) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    place.file("secret", "text");
    std::os::unix::fs::chown(place.at("secret"), Some(1234), Some(1)).expect("an owner");
    fs::set_permissions(place.at("secret"), fs::Permissions::from_mode(0o600)).expect("a mode");
    assert_eq!(contents(place.ask_as("0:777", read("/secret"))), b"text");
    place.ask_as("0:777", write("/new", "x")).expect("written");
    let metadata = fs::metadata(place.at("new")).expect("metadata");
    assert_eq!((metadata.uid(), metadata.gid()), (0, 777));
}

#[test]
fn a_mode_that_may_not_be_set_costs_no_contents() {
    if !is_root() || !id_is_mapped(1234) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    place.file("shared", "text");
    fs::set_permissions(place.at("shared"), fs::Permissions::from_mode(0o666)).expect("a mode");
    let with_mode = WriteTarget { mode: Some(0o600), ..target("/shared") };
    let error = place.ask_as("1234", write_to(with_mode, "x")).expect_err("refused");
    assert_eq!(error.kind, FileErrorKind::PermissionDenied);
    assert_eq!(place.text("shared"), "text");
}

#[test]
fn a_set_id_file_is_not_handed_to_another_user_for_appending() {
    if !is_root() || !id_is_mapped(1234) {
        skip!("root with more than one id");
    }
    let place = Place::new();
    place.file("tool", "program");
    fs::set_permissions(place.at("tool"), fs::Permissions::from_mode(0o4777)).expect("a mode");
    let append = WriteTarget { append: true, ..target("/tool") };
    let op = FileOp::OpenWrite { target: append.clone() };
    let error = place.ask_as("1234", op).expect_err("refused");
    assert!(error.to_string().contains("set-id"), "{error}");
    // A write of our own takes the bit off, as for that user itself.
    place.ask_as("1234", write_to(append, "more")).expect("written");
    assert_eq!(mode(&place, "tool"), 0o777);
}

#[test]
fn an_unknown_user_is_told_by_name() {
    let place = Place::new();
    let error = place.ask_as("nobody-here", read("/x")).expect_err("refused");
    assert!(matches!(&error.kind, FileErrorKind::NoSuchUser(why) if why.contains("nobody-here")));
}

#[test]
fn a_request_without_its_rights_changes_nothing() {
    let place = Place::new();
    place.dir("closed");
    place.file("closed/file", "x");
    fs::set_permissions(place.at("closed"), fs::Permissions::from_mode(0o500)).expect("a mode");
    let answer = place.ask(write("/closed/new", "x"));
    // Root has the right; everybody else learns that it is missing.
    assert_eq!(answer.is_ok(), is_root());
    assert_eq!(answer.is_ok(), place.at("closed/new").exists());
    fs::set_permissions(place.at("closed"), fs::Permissions::from_mode(0o700)).expect("a mode");
}

#[test]
fn a_full_file_system_is_told_as_such() {
    let place = Place::new();
    if let Some(output) = mount_namespace("a_full_file_system_is_told_as_such") {
        return passed(&output);
    }
    place.dir("small");
    rustix::mount::mount(
        c"tmpfs",
        place.at("small"),
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=64k"),
    )
    .expect("a small tmpfs");
    place.file("large", vec![1; 1 << 20]);
    let full = FileOp::Write { target: target("/small/file"), contents: vec![1; INLINE_MAX] };
    place.ask(full.clone()).expect("it just fits");
    let more = FileOp::Write { target: target("/small/more"), contents: vec![1; 8192] };
    assert_eq!(place.error(more), FileErrorKind::NoSpace);
    place.ask(remove("/small/file", false)).expect("removed");
    assert_eq!(place.error(copy("/large", "/small/copy", false)), FileErrorKind::NoSpace);
    // The broken copy is gone with its temporary name.
    place.ask(remove("/small/more", false)).expect("removed");
    place.ask(full).expect("there is space again");
    assert_eq!(place.list("/small", 1, 10).0.len(), 1);
    // The old contents, which lie elsewhere in the file, make room for the new ones.
    let file = fs::File::options().write(true).truncate(true).open(place.at("small/file"));
    file.expect("emptied").write_all_at(&vec![1; 60 << 10], 1 << 20).expect("all but a page");
    let over = FileOp::Write { target: target("/small/file"), contents: vec![2; 16 << 10] };
    place.ask(over).expect("written over it");
    assert_eq!(fs::read(place.at("small/file")).expect("read"), [2; 16 << 10]);
    rustix::mount::unmount(place.at("small"), rustix::mount::UnmountFlags::DETACH)
        .expect("unmounted");
}

#[test]
fn a_link_cannot_be_swapped_in_below_a_checked_name() {
    let place = Place::new();
    let outside = tempfile::tempdir().expect("a directory outside");
    fs::write(outside.path().join("file"), "untouched").expect("a file outside");
    place.dir("dir");
    place.file("dir/file", "inside");
    symlink(outside.path(), place.at("link")).expect("a link");
    let (a, b) = (place.at("dir"), place.at("link"));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..2000 {
            let _ = place.ask(write("/dir/file", "x"));
            let _ = place.ask(copy("/dir/file", "/dir/copy", false));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(fs::read_to_string(outside.path().join("file")).expect("the file"), "untouched");
    assert!(!outside.path().join("copy").exists());
}
