//! Layers as tools write them, and layers that try to get out.

use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{CWD, OFlags};

use super::*;

/// One entry of a test's archive.
#[derive(Clone, Debug)]
struct Item {
    kind: tar::EntryType,
    name: Vec<u8>,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    pax: Vec<(String, Vec<u8>)>,
}

fn item(kind: tar::EntryType, name: &[u8]) -> Item {
    let (link, data, pax) = (Vec::new(), Vec::new(), Vec::new());
    let mode = if kind == tar::EntryType::Directory { 0o755 } else { 0o644 };
    Item { kind, name: name.to_vec(), link, data, mode, pax }
}

fn file(name: &str, data: &str) -> Item {
    Item { data: data.as_bytes().to_vec(), ..item(tar::EntryType::Regular, name.as_bytes()) }
}

fn dir(name: &str) -> Item {
    item(tar::EntryType::Directory, name.as_bytes())
}

fn symlink(name: &str, target: &str) -> Item {
    Item { link: target.as_bytes().to_vec(), ..item(tar::EntryType::Symlink, name.as_bytes()) }
}

fn hard(name: &str, target: &str) -> Item {
    Item { link: target.as_bytes().to_vec(), ..item(tar::EntryType::Link, name.as_bytes()) }
}

/// Writes names as they are, which the `tar` crate's own methods would refuse.
fn archive(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let long = [("path", &item.name), ("linkpath", &item.link)];
        let long = long.into_iter().filter(|(_, value)| !value.is_empty());
        let pax = item.pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        let pax: Vec<_> = long.map(|(k, v)| (k, v.as_slice())).chain(pax).collect();
        builder.append_pax_extensions(pax).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(item.data.len() as u64);
        header.set_cksum();
        builder.append(&header, item.data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Case {
    /// Keeps everything below it.
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn unpack_bytes(
        &self,
        bytes: &[u8],
        ownership: Ownership,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError> {
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(bytes).unwrap();
        blob.rewind().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = rustix::fs::openat(CWD, self.at(""), flags, rustix::fs::Mode::empty()).unwrap();
        let length = bytes.len() as u64;
        unpack(&UnpackJob { blob, offset: 0, length, destination: root, ownership, limits })
    }

    fn unpack(&self, items: &[Item]) -> Result<Unpacked, UnpackError> {
        self.unpack_bytes(&archive(items), mode(), Limits::default())
    }
}

/// Keep needs root; elsewhere the tests prove the same of Squash.
fn mode() -> Ownership {
    if rustix::process::geteuid().is_root() { Ownership::Keep } else { Ownership::Squash }
}

fn read(case: &Case, path: &str) -> String {
    fs::read_to_string(case.at(path)).unwrap()
}

fn xattr(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn files_links_modes_and_times_survive() {
    let case = Case::new();
    let unpacked = case
        .unpack(&[
            dir("bin"),
            Item { mode: 0o4755, ..file("bin/su", "root") },
            hard("bin/sudo", "/bin/su"),
            symlink("bin/sh", "../usr/bin/bash"),
            item(tar::EntryType::Fifo, b"fifo"),
            Item { mode: 0o1777, ..dir("tmp") },
            Item { name: b"caf\xe9".to_vec(), ..file("", "latin-1") },
        ])
        .unwrap();
    assert_eq!(unpacked.entries, 7);
    assert_eq!(unpacked.size, 11);
    assert!(unpacked.ended);
    let su = fs::metadata(case.at("bin/su")).unwrap();
    assert_eq!(su.ino(), fs::metadata(case.at("bin/sudo")).unwrap().ino());
    let keeps = mode() == Ownership::Keep;
    assert_eq!(su.mode() & 0o7777, if keeps { 0o4755 } else { 0o755 });
    assert_eq!(su.mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(case.at("bin")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(case.at("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_link(case.at("bin/sh")).unwrap(), PathBuf::from("../usr/bin/bash"));
    assert!(fs::metadata(case.at("fifo")).unwrap().file_type().is_fifo());
    let name = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9".as_slice());
    let name: &std::ffi::OsStr = name;
    assert!(case.at("").join(name).exists());
}

#[test]
fn squash_keeps_everything_removable_and_says_what_it_dropped() {
    let case = Case::new();
    let items = [Item { mode: 0o555, ..dir("d") }, Item { mode: 0o6111, ..file("d/f", "x") }];
    let unpacked =
        case.unpack_bytes(&archive(&items), Ownership::Squash, Limits::default()).unwrap();
    assert_eq!(fs::metadata(case.at("d")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(case.at("d/f")).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(unpacked.notes, ["setuid and setgid bits dropped: `d/f`"]);
}

#[test]
fn ids_beyond_the_range_belong_to_nobody() {
    if mode() != Ownership::Keep {
        eprintln!("skipped: needs root to give files away");
        return;
    }
    let case = Case::new();
    let pax = |uid: &str| vec![("uid".to_owned(), uid.as_bytes().to_vec())];
    let unpacked = case
        .unpack(&[
            Item { pax: pax("1000"), ..file("mine", "") },
            Item { pax: pax("1041234"), ..file("theirs", "") },
        ])
        .unwrap();
    assert_eq!(fs::metadata(case.at("mine")).unwrap().uid(), 1000);
    assert_eq!(fs::metadata(case.at("theirs")).unwrap().uid(), 65_534);
    assert_eq!(unpacked.notes, ["ids above 65535 given to nobody: `theirs`"]);
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let case = Case::new();
    case.unpack(&[
        file("etc/.wh.gone", ""),
        dir("var"),
        file("var/.wh..wh..opq", ""),
        file("var/kept", "new"),
        // Hidden and made anew in one layer, in either order.
        file(".wh.first", ""),
        dir("first"),
        dir("second"),
        file(".wh.second", ""),
        file(".wh.implied", ""),
        file("implied/new", ""),
        file(".wh.plain", ""),
        file("plain", "there"),
    ])
    .unwrap();
    let gone = fs::symlink_metadata(case.at("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["var", "first", "second", "implied"] {
        let value = xattr(&case.at(opaque), "user.overlay.opaque");
        assert_eq!(value.as_deref(), Some(b"y".as_slice()), "{opaque}");
    }
    assert_eq!(read(&case, "var/kept"), "new");
    assert_eq!(read(&case, "plain"), "there");
    assert!(!case.at("var/.wh..wh..opq").exists());
}

#[test]
fn whiteouts_without_a_name_are_refused() {
    for name in [".wh.", "a/.wh..", ".wh..."] {
        let error = Case::new().unpack(&[file(name, "")]).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { .. }), "{name}: {error}");
    }
}

#[test]
fn xattrs_of_users_are_kept_and_those_of_overlayfs_dropped() {
    let case = Case::new();
    let pax = [("user.note", "yes"), ("user.overlay.redirect", "/etc"), ("trusted.overlay.x", "")]
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_bytes().to_vec()));
    let unpacked = case.unpack(&[Item { pax: pax.to_vec(), ..file("f", "") }]).unwrap();
    assert_eq!(xattr(&case.at("f"), "user.note").as_deref(), Some(b"yes".as_slice()));
    assert_eq!(xattr(&case.at("f"), "user.overlay.redirect"), None);
    assert_eq!(unpacked.notes, ["xattrs of overlayfs dropped: `f` and 1 more"]);
}

#[test]
fn file_capabilities_are_kept_by_root() {
    if mode() != Ownership::Keep {
        eprintln!("skipped: needs root to set file capabilities");
        return;
    }
    let case = Case::new();
    // cap_net_raw+ep, version 2 (linux/capability.h).
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let pax = vec![("SCHILY.xattr.security.capability".to_owned(), value.clone())];
    case.unpack(&[Item { pax, ..file("ping", "") }]).unwrap();
    assert_eq!(xattr(&case.at("ping"), "security.capability"), Some(value));
}

#[test]
fn devices_are_left_out_with_a_note() {
    let case = Case::new();
    let unpacked = case.unpack(&[item(tar::EntryType::Char, b"dev/null")]).unwrap();
    assert!(!case.at("dev/null").exists());
    assert_eq!(unpacked.notes, ["device nodes left out: `dev/null`"]);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let case = Case::new();
    case.unpack(&[
        dir("a"),
        file("a/b", "old"),
        file("a", "now a file"),
        symlink("c", "a"),
        file("c", "not through the link"),
        symlink("d", "a"),
        dir("d"),
        file("d/e", "in a directory"),
    ])
    .unwrap();
    assert_eq!(read(&case, "a"), "now a file");
    assert_eq!(read(&case, "c"), "not through the link");
    assert_eq!(read(&case, "d/e"), "in a directory");
}

#[test]
fn links_on_the_way_are_followed_inside() {
    let case = Case::new();
    case.unpack(&[
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("abs", "/usr/lib"),
        symlink("later", "not/yet"),
        file("lib/one", "1"),
        file("abs/two", "2"),
        file("later/three", "3"),
        hard("usr/four", "lib/one"),
    ])
    .unwrap();
    assert_eq!(read(&case, "usr/lib/one"), "1");
    assert_eq!(read(&case, "usr/lib/two"), "2");
    assert_eq!(read(&case, "not/yet/three"), "3");
    assert_eq!(read(&case, "usr/four"), "1");
}

#[test]
fn what_leads_out_is_refused_by_name() {
    let cases: [&[Item]; 8] = [
        &[file("../out", "")],
        &[file("a/../../out", "")],
        &[symlink("up", "../.."), file("up/out", "")],
        &[dir("d"), symlink("d/up", "../../x"), file("d/up/out", "")],
        &[hard("passwd", "../../../etc/passwd")],
        &[symlink("up", ".."), hard("passwd", "up/etc/passwd")],
        &[symlink("loop", "loop"), file("loop/x", "")],
        &[file("f", ""), file("f/x", "")],
    ];
    for items in cases {
        let case = Case::new();
        let error = case.unpack(items).unwrap_err();
        let UnpackError::Refused { entry, .. } = &error else { panic!("{items:?}: {error}") };
        let last = items.last().unwrap();
        assert_eq!(entry.as_bytes().last(), last.name.last(), "{error}");
        assert_eq!(fs::read_dir(case.dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn absolute_links_stay_inside() {
    let case = Case::new();
    let outside = case.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    case.unpack(&[symlink("out", target), file("out/new", "x")]).unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(read(&case, &format!("{}/new", target.trim_start_matches('/'))), "x");
}

#[test]
fn limits_hold_against_bombs() {
    let case = Case::new();
    let zeros = Item { data: vec![0; 1 << 20], ..file("zeros", "") };
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&archive(&[zeros])).unwrap();
    let bomb = encoder.finish().unwrap();
    let limits = Limits { bytes: 100_000, entries: 10 };
    let error = case.unpack_bytes(&bomb, Ownership::Squash, limits).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { most: 100_000, .. }), "{error}");

    let many: Vec<Item> = (0..11).map(|i| dir(&format!("d{i}"))).collect();
    let error = Case::new().unpack_bytes(&archive(&many), Ownership::Squash, limits).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { most: 10, .. }), "{error}");

    // Much after the end of the archive proper.
    let mut padded = archive(&[]);
    padded.resize(200_000, 0);
    let error = Case::new().unpack_bytes(&padded, Ownership::Squash, limits).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
}

#[test]
fn compressed_and_plain_archives_have_one_diff_id() {
    let plain = archive(&[file("a", "hello")]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain[..700]).unwrap();
    let mut gzip = encoder.finish().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(gzip, flate2::Compression::fast());
    encoder.write_all(&plain[700..]).unwrap();
    gzip = encoder.finish().unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
    let ids: Vec<Digest> = [&plain, &gzip, &zstd]
        .map(|bytes| {
            Case::new().unpack_bytes(bytes, Ownership::Squash, Limits::default()).unwrap().diff_id
        })
        .to_vec();
    assert_eq!(ids[0], Digest::sha256_of(&plain));
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn cut_compressed_archives_are_corrupt() {
    let plain = archive(&[Item { data: (0..=255).cycle().take(9000).collect(), ..file("a", "") }]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
    for whole in [gzip, zstd] {
        for cut in [whole.len() / 2, whole.len() - 1] {
            let limits = Limits::default();
            let result = Case::new().unpack_bytes(&whole[..cut], Ownership::Squash, limits);
            assert!(matches!(result, Err(UnpackError::Corrupt { .. })), "{cut}: {result:?}");
        }
    }
    let xz = Case::new().unpack_bytes(b"\xfd7zXZ\0rest", Ownership::Squash, Limits::default());
    assert_eq!(xz.unwrap_err(), UnpackError::Compression("xz".to_owned()));
}

/// Everything about a tree that an archive could change.
fn picture(path: &std::path::Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![path.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let ids = (meta.uid(), meta.gid(), meta.mode(), meta.nlink(), meta.ino());
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        lines.push(format!("{} {ids:?} {times:?} {content:?}", path.display()));
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

fn hostile_name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        6 => prop::sample::select(vec!["a", "b", "c", "link", "up", "abs"]).prop_map(String::from),
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => Just("OUTSIDE".to_owned()),
        1 => prop::sample::select(vec![".wh.a", ".wh.link", ".wh..wh..opq"]).prop_map(String::from),
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes())
}

fn hostile_target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "..", "../..", "../outside", "OUTSIDE", "OUTSIDE/secret", "/", ".", "a", "../root/../outside",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        2 => hostile_name(),
    ]
}

fn hostile_item() -> impl Strategy<Value = Item> {
    let kind = prop::sample::select(vec![
        tar::EntryType::Regular,
        tar::EntryType::Regular,
        tar::EntryType::Directory,
        tar::EntryType::Symlink,
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Fifo,
        tar::EntryType::Char,
    ]);
    (kind, hostile_name(), hostile_target(), 0..0o10000_u32).prop_map(|(kind, name, link, mode)| {
        let links = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        let link = if links { link } else { Vec::new() };
        let is_file = kind == tar::EntryType::Regular;
        let data = if is_file { b"evil".to_vec() } else { Vec::new() };
        Item { link, data, mode, ..item(kind, &name) }
    })
}

/// Puts the real path of the forbidden directory where the generator left a mark.
fn aim(items: &mut [Item], outside: &str) {
    for item in items {
        for text in [&mut item.name, &mut item.link] {
            *text = String::from_utf8(text.clone()).unwrap().replace("OUTSIDE", outside).into();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_archive_changes_anything_outside_its_root(
        mut items in prop::collection::vec(hostile_item(), 1..14),
        squash in any::<bool>(),
        copy_out in any::<bool>(),
    ) {
        let case = Case::new();
        let outside = case.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "keep").unwrap();
        fs::create_dir(outside.join("a")).unwrap();
        fs::set_permissions(outside.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        aim(&mut items, outside.to_str().unwrap());
        let before = picture(&outside);
        let bytes = archive(&items);
        if copy_out {
            let root = fs::File::open(case.at("")).unwrap();
            let _ = crate::extract(bytes.as_slice(), root.as_fd(), Limits::default());
        } else {
            let ownership = if squash { Ownership::Squash } else { mode() };
            let _ = case.unpack_bytes(&bytes, ownership, Limits::default());
        }
        prop_assert_eq!(&before, &picture(&outside));
        let mut names: Vec<_> =
            fs::read_dir(case.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["outside", "root"]);
        InProcess.remove(&case.at("")).unwrap();
        prop_assert!(!case.at("").exists());
        prop_assert_eq!(&before, &picture(&outside));
    }
}
