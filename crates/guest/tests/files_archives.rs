//! Trees as tar streams, out of a sandbox and into it.

mod files_support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use files_support::*;
use forkyard_guest::files::proto::{FileErrorKind, FileOp, FileReply};
use forkyard_guest::users::{group_is_mapped, id_is_mapped};
use forkyard_testkit::{find_program, is_root, skip};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe, pipe_with};
use tar::{EntryType, Header};

/// Asks for an archive and reads it.
fn archive(place: &Place, path: &str) -> (Answer, Vec<u8>) {
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut file = fs::File::from(reader);
        loop {
            match file.read_to_end(&mut bytes) {
                Ok(_) => return bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    });
    let answer = place.ask_with(FileOp::Archive { path: bytes(path) }, writer);
    (answer, reading.join().expect("the reader"))
}

fn extract_as(place: &Place, user: &str, path: &str, keep_owners: bool, tar: &[u8]) -> Answer {
    let (reader, writer) = pipe().expect("a pipe");
    let tar = tar.to_vec();
    let writing = thread::spawn(move || fs::File::from(writer).write_all(&tar));
    let op = FileOp::Extract { path: bytes(path), keep_owners };
    let answer = ask_in(place.root(), user, op, Some(reader));
    // A refusal in the middle breaks the pipe.
    let _ = writing.join().expect("the writer");
    answer
}

fn extract(place: &Place, path: &str, tar: &[u8]) -> Answer {
    extract_as(place, &own_user(), path, false, tar)
}

/// A member as a hostile archive has it: any name, any target.
fn member(kind: EntryType, name: &[u8], target: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o4755);
    header.set_uid(4321);
    header.set_gid(5432);
    header.set_mtime(1_000_000);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    let padding = data.len().next_multiple_of(512) - data.len();
    [header.as_bytes(), data, &vec![0; padding]].concat()
}

fn file(name: &str, data: &str) -> Vec<u8> {
    member(EntryType::Regular, name.as_bytes(), b"", data.as_bytes())
}

fn link(name: &str, target: &str) -> Vec<u8> {
    member(EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"")
}

#[test]
fn a_tree_of_odd_names_survives_the_round_trip() {
    let place = Place::new();
    place.dir("tree/sub");
    let names: [Vec<u8>; 6] = [
        b"plain".to_vec(),
        b"bytes \xff\xfe \n = 1".to_vec(),
        vec![b'n'; 255],
        vec![0xff; 200],
        b" leading and trailing ".to_vec(),
        b"..dots..".to_vec(),
    ];
    for (number, name) in names.iter().enumerate() {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name);
        fs::write(place.at("tree/sub").join(name), vec![number as u8; number * 700])
            .expect("a file");
    }
    symlink("x/".repeat(120), place.at("tree/long-link")).expect("a link");
    fs::hard_link(place.at("tree/sub/plain"), place.at("tree/other-name")).expect("a hard link");
    fs::set_permissions(place.at("tree/sub"), fs::Permissions::from_mode(0o550)).expect("a mode");
    let _socket =
        std::os::unix::net::UnixListener::bind(place.at("tree/socket")).expect("a socket");

    let (answer, tar) = archive(&place, "/tree");
    let moved = FileReply::Moved { entries: 10, skipped: 1 };
    assert_eq!(answer.expect("archived").0, moved);
    place.dir("there");
    let (reply, _) = extract(&place, "/there", &tar).expect("extracted");
    assert_eq!(reply, FileReply::Moved { entries: 10, skipped: 0 });

    let strip = |top: &str| {
        let mut entries = place.list(top, 9, 100).0;
        entries.retain(|entry| entry.path != b"socket");
        for entry in &mut entries {
            entry.mtime_nsec = 0;
            entry.size = if entry.kind == forkyard_guest::files::proto::EntryKind::Directory {
                0
            } else {
                entry.size
            };
        }
        entries
    };
    assert_eq!(strip("/tree"), strip("/there/tree"));
    let inode = |path: &str| fs::metadata(place.at(path)).expect("metadata").ino();
    assert_eq!(inode("there/tree/other-name"), inode("there/tree/sub/plain"));
    for name in &names {
        let path = |top: &str| [top.as_bytes(), b"/tree/sub/", name].concat();
        let read = |path| contents(place.ask(FileOp::Read { path, offset: 0, length: None }));
        assert_eq!(read(path("")), read(path("/there")));
    }
    for path in ["tree/sub", "there/tree/sub"] {
        fs::set_permissions(place.at(path), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
}

#[test]
fn gnu_tar_reads_our_archives_and_we_read_its() {
    let Some(program) = find_program("tar") else { skip!("tar") };
    let place = Place::new();
    place.dir("tree");
    place.file(&format!("tree/{}", "é".repeat(90)), "text");
    place.link("y".repeat(150), "tree/link");
    place.dir("out");
    let (answer, tar) = archive(&place, "/tree");
    answer.expect("archived");
    let mut unpack = Command::new(&program)
        .args(["-x", "-C"])
        .arg(place.at("out"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("tar");
    unpack.stdin.take().expect("its input").write_all(&tar).expect("written");
    assert!(unpack.wait().expect("its end").success());
    for format in ["gnu", "pax", "ustar"] {
        let packed = Command::new(&program)
            .args(["-c", &format!("--format={format}"), "-C"])
            .arg(place.at("out"))
            .arg(if format == "ustar" { "tree/link" } else { "tree" })
            .output()
            .expect("tar");
        // ustar has no room for the link: an empty archive is an archive as well.
        let to = format!("/again-{format}");
        place.ask(make_dir(&to, false, 0o755)).expect("made");
        extract(&place, &to, &packed.stdout).expect("extracted");
        if format != "ustar" {
            let wanted = paths(&place.list("/tree", 1, 10).0);
            assert_eq!(paths(&place.list(&format!("{to}/tree"), 1, 10).0), wanted, "{format}");
            assert_eq!(
                fs::read_link(place.at(&format!("{to}/tree/link"))).expect("a link"),
                Path::new(&"y".repeat(150))
            );
        }
    }
}

#[test]
fn a_single_file_and_a_link_are_archives_too() {
    let place = Place::new();
    place.dir("dir");
    place.file("dir/file", "text");
    place.link("file", "dir/link");
    for (path, name, size) in [("/dir/file", "file", 4), ("/dir/link", "link", 0)] {
        let (answer, tar) = archive(&place, path);
        assert_eq!(answer.expect("archived").0, FileReply::Moved { entries: 1, skipped: 0 });
        let header = Header::from_byte_slice(&tar[..512]);
        assert_eq!(&*header.path_bytes(), name.as_bytes());
        assert_eq!(header.size().expect("a size"), size);
    }
}

#[test]
fn an_archive_that_fails_has_no_end_mark() {
    let place = Place::new();
    let (answer, tar) = archive(&place, "/missing");
    assert_eq!(answer.expect_err("an error").kind, FileErrorKind::NotFound);
    assert!(tar.is_empty());
}

#[test]
fn a_reader_that_goes_away_ends_an_archive() {
    let place = Place::new();
    place.file("large", vec![1; 4 << 20]);
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let op = FileOp::Archive { path: bytes("/large") };
    let error = place.ask_with(op, writer).expect_err("an error");
    assert_eq!(error.kind, FileErrorKind::Other { errno: Errno::PIPE.raw_os_error() });
}

#[test]
fn a_request_without_its_pipe_is_refused() {
    let place = Place::new();
    for op in [
        FileOp::Archive { path: bytes("/") },
        FileOp::Extract { path: bytes("/"), keep_owners: false },
    ] {
        assert!(place.refusal(op).contains("pipe"));
    }
}

#[test]
fn a_hostile_archive_stays_inside_or_is_refused() {
    let outside = tempfile::tempdir().expect("a directory outside");
    let out = outside.path().to_str().expect("a path").to_owned();
    let cases: [(&str, Vec<Vec<u8>>); 8] = [
        ("dots", vec![file("../evil", "x")]),
        ("dots within", vec![file("a/../../evil", "x")]),
        ("absolute link", vec![link("way", &out), file("way/evil", "x")]),
        ("link above", vec![link("way", "../.."), file("way/evil", "x")]),
        ("link in link", vec![link("a", "."), link("a/b", ".."), file("b/evil", "x")]),
        (
            "directory through a link",
            vec![link("way", ".."), member(EntryType::Directory, b"way/evil", b"", b"")],
        ),
        ("hard link above", vec![member(EntryType::Link, b"evil", b"../kept", b"")]),
        (
            "hard link through a link",
            vec![link("way", ".."), member(EntryType::Link, b"evil", b"way/kept", b"")],
        ),
    ];
    for (what, members) in cases {
        let place = Place::new();
        place.file("kept", "kept");
        place.dir("to");
        let error = extract(&place, "/to", &members.concat()).expect_err(what);
        assert!(matches!(error.kind, FileErrorKind::Refused(_)), "{what}: {error}");
        assert!(!place.at("evil").exists() && !place.at("to/evil").exists(), "{what}");
    }
    assert_eq!(fs::read_dir(outside.path()).expect("the directory").count(), 0);
}

#[test]
fn names_with_a_slash_in_front_are_taken_from_the_directory() {
    let place = Place::new();
    place.dir("to");
    extract(&place, "/to", &file("/./etc//passwd", "x")).expect("extracted");
    assert_eq!(place.text("to/etc/passwd"), "x");
}

#[test]
fn a_file_replaces_a_link_instead_of_writing_through_it() {
    let place = Place::new();
    place.dir("to");
    place.file("kept", "kept");
    place.link("../kept", "to/file");
    fs::hard_link(place.at("kept"), place.at("to/hard")).expect("a hard link");
    let tar = [file("file", "new"), file("hard", "new"), file("file", "newer")].concat();
    extract(&place, "/to", &tar).expect("extracted");
    assert_eq!((place.text("kept"), place.text("to/file")), ("kept".into(), "newer".into()));
    assert_eq!(place.text("to/hard"), "new");
    assert!(!place.at("to/file").is_symlink());
}

#[test]
fn links_that_stay_below_the_directory_are_followed() {
    let place = Place::new();
    place.dir("to/usr/lib");
    place.link("usr/lib", "to/lib");
    let tar = [member(EntryType::Directory, b"lib/", b"", b""), file("lib/x", "1")].concat();
    extract(&place, "/to", &tar).expect("extracted");
    assert_eq!(place.text("to/usr/lib/x"), "1");
    assert!(place.at("to/lib").is_symlink());
}

#[test]
fn files_belong_to_the_acting_user_unless_owners_are_kept() {
    let place = Place::new();
    place.dir("to");
    let tar = [file("file", "x"), member(EntryType::Char, b"device", b"", b"")].concat();
    let (reply, _) = extract(&place, "/to", &tar).expect("extracted");
    assert_eq!(reply, FileReply::Moved { entries: 1, skipped: 1 });
    let metadata = fs::metadata(place.at("to/file")).expect("metadata");
    assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o755, 1_000_000));
    if !is_root() || !id_is_mapped(4321) || !group_is_mapped(5432) {
        skip!("root with more than one id");
    }
    extract_as(&place, &own_user(), "/to", true, &tar).expect("extracted");
    let metadata = fs::metadata(place.at("to/file")).expect("metadata");
    assert_eq!((metadata.uid(), metadata.gid()), (4321, 5432));
    assert_eq!(metadata.mode() & 0o7777, 0o4755);
    fs::set_permissions(place.at("to"), fs::Permissions::from_mode(0o777)).expect("a mode");
    let error = extract_as(&place, "1234:1234", "/to", true, &tar).expect_err("refused");
    assert!(matches!(error.kind, FileErrorKind::Refused(_)));
}

#[test]
fn damaged_archives_are_refused_with_the_reason() {
    let place = Place::new();
    place.dir("to");
    let mut wrong_sum = file("file", "x");
    wrong_sum[0] ^= 1;
    let cut = file("file", &"x".repeat(2000))[..1000].to_vec();
    let sparse = member(EntryType::GNUSparse, b"file", b"", b"");
    let mut long = Header::new_gnu();
    long.set_entry_type(EntryType::GNULongName);
    long.set_size(1 << 40);
    long.set_cksum();
    let pax = member(EntryType::XHeader, b"pax", b"", b"999 path=x\n");
    for (tar, why) in [
        (wrong_sum, "checksum"),
        (cut, "too early"),
        (sparse, "sparse"),
        (long.as_bytes().to_vec(), "1 MiB"),
        (pax, "malformed"),
        (vec![b'x'; 4096], "checksum"),
    ] {
        let error = extract(&place, "/to", &tar).expect_err(why);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn an_empty_archive_is_no_error() {
    let place = Place::new();
    for tar in [&[][..], &[0; 1024], &[0; 10240]] {
        let (reply, _) = extract(&place, "/", tar).expect("extracted");
        assert_eq!(reply, FileReply::Moved { entries: 0, skipped: 0 });
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Bytes that look like an archive as far as the checksum goes.
    #[test]
    fn no_archive_makes_extraction_panic_or_leave(
        kind in proptest::num::u8::ANY,
        name in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
        target in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
        data in proptest::collection::vec(proptest::num::u8::ANY, 0..1200),
    ) {
        let place = Place::new();
        place.dir("to");
        let tar = [member(EntryType::new(kind), &name, &target, &data), file("after", "x")].concat();
        let _ = extract(&place, "/to", &tar);
        proptest::prop_assert_eq!(paths(&place.list("/", 1, 10).0), ["to"]);
    }
}
