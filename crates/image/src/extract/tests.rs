//! Copies out of a sandbox that wishes the host ill.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, text: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o7755);
    header.set_uid(12_345);
    let raw = header.as_gnu_mut().unwrap();
    raw.name[..name.len()].copy_from_slice(name.as_bytes());
    if kind.is_symlink() || kind.is_hard_link() {
        raw.linkname[..text.len()].copy_from_slice(text.as_bytes());
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, [].as_slice()).unwrap();
    } else {
        header.set_size(text.len() as u64);
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
}

fn run(dir: &std::path::Path, bytes: &[u8]) -> Result<Extracted, UnpackError> {
    let root = fs::File::open(dir).unwrap();
    extract(bytes, root.as_fd(), Limits::default())
}

#[test]
fn copies_files_without_set_ids_and_owners() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(|b| {
        add(b, tar::EntryType::Directory, "d/", "");
        add(b, tar::EntryType::Regular, "d/run", "hi");
        add(b, tar::EntryType::Link, "d/same", "d/run");
        add(b, tar::EntryType::Symlink, "d/away", "/etc/passwd");
        add(b, tar::EntryType::Block, "d/disk", "");
    });
    let extracted = run(dir.path(), &bytes).unwrap();
    let meta = fs::metadata(dir.path().join("d/run")).unwrap();
    assert_eq!(meta.mode() & 0o7000, 0);
    assert_eq!(meta.mode() & 0o700, 0o700);
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(meta.nlink(), 2);
    assert!(dir.path().join("d/away").is_symlink());
    assert!(!dir.path().join("d/disk").exists());
    assert_eq!(extracted.notes.len(), 2, "{:?}", extracted.notes);
}

#[test]
fn nothing_is_written_through_a_link_of_the_archive_or_of_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "safe").unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(outside.path(), dir.path().join("old")).unwrap();
    symlink(outside.path().join("f"), dir.path().join("g")).unwrap();
    let target = outside.path().to_str().unwrap();

    let through_old = archive(|b| add(b, tar::EntryType::Regular, "old/f", "evil"));
    assert!(matches!(run(dir.path(), &through_old), Err(UnpackError::Refused { .. })));
    let as_directory = archive(|b| add(b, tar::EntryType::Directory, "old/", ""));
    assert!(matches!(run(dir.path(), &as_directory), Err(UnpackError::Refused { .. })));
    let through_new = archive(|b| {
        add(b, tar::EntryType::Symlink, "new", target);
        add(b, tar::EntryType::Regular, "new/f", "evil");
    });
    assert!(matches!(run(dir.path(), &through_new), Err(UnpackError::Refused { .. })));
    let replaces = archive(|b| add(b, tar::EntryType::Regular, "g", "mine"));
    run(dir.path(), &replaces).unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("f")).unwrap(), "safe");
    assert_eq!(fs::read_to_string(dir.path().join("g")).unwrap(), "mine");
    assert!(!dir.path().join("g").is_symlink());
}

#[test]
fn names_that_leave_are_refused() {
    for name in ["/etc/x", "../x", "a/../../x"] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(|b| add(b, tar::EntryType::Regular, name, "evil"));
        assert!(matches!(run(dir.path(), &bytes), Err(UnpackError::Refused { .. })), "{name}");
    }
}

#[test]
fn a_directory_of_the_host_is_never_replaced_by_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("work")).unwrap();
    fs::write(dir.path().join("work/precious"), "x").unwrap();
    fs::set_permissions(dir.path().join("work"), fs::Permissions::from_mode(0o700)).unwrap();
    let bytes = archive(|b| add(b, tar::EntryType::Regular, "work", "evil"));
    assert!(matches!(run(dir.path(), &bytes), Err(UnpackError::Refused { .. })));
    let bytes = archive(|b| add(b, tar::EntryType::Directory, "work", ""));
    run(dir.path(), &bytes).unwrap();
    assert!(dir.path().join("work/precious").exists());
    assert_eq!(fs::metadata(dir.path().join("work")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_read_only_directory_gets_its_contents_and_then_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(|b| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o555);
        header.set_size(0);
        b.append_data(&mut header, "ro", [].as_slice()).unwrap();
        add(b, tar::EntryType::Regular, "ro/f", "x");
    });
    run(dir.path(), &bytes).unwrap();
    // The umask of whoever runs the test may take bits of others away.
    assert_eq!(fs::metadata(dir.path().join("ro")).unwrap().mode() & 0o700, 0o500);
    assert!(dir.path().join("ro/f").exists());
    // It has to be removed in the end, by whoever this is.
    fs::set_permissions(dir.path().join("ro"), fs::Permissions::from_mode(0o700)).unwrap();
}
