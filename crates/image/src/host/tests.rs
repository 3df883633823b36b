//! What a sandbox sees of a host, and what it must not.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::unpack::{InProcess, Limits, Ownership};

/// A small host with something to hide.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for path in ["usr/bin", "lib64", "etc/ssl/certs", "etc/ssl/private", "etc/ssh", "opt/tool"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    for path in ["etc/ssl", "etc/ssl/certs"] {
        // Whatever the umask of whoever runs the test.
        fs::set_permissions(at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("usr/bin", at("bin")).unwrap();
    let write = |path: &str, text: &str, mode: u32| {
        fs::write(at(path), text).unwrap();
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("usr/bin/bash", "", 0o755);
    write(
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        0o644,
    );
    write("etc/group", "root:x:0:\n", 0o644);
    write("etc/shadow", "root:$6$secret", 0o644);
    write("etc/machine-id", "secret", 0o644);
    write("etc/gitconfig", "token = secret", 0o644);
    write("etc/hosts", "secret", 0o644);
    write("etc/sudoers", "secret", 0o644);
    write("etc/services", "http 80/tcp\n", 0o644);
    write("etc/ssh/ssh_host_ed25519_key", "secret", 0o644);
    write("etc/ssl/private/key.pem", "secret", 0o644);
    write("etc/ssl/certs/ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
    write("etc/ssl/certs/oops.pem", "-----BEGIN PRIVATE KEY-----\nsecret\n", 0o644);
    write("etc/ssl/certs/closed.pem", "secret", 0o600);
    symlink("ca.pem", at("etc/ssl/certs/0123abcd.0")).unwrap();
    dir
}

fn store(dir: &Path) -> LayerStore {
    LayerStore::open(dir, Ownership::Squash, Limits::default(), &InProcess).unwrap()
}

fn texts_below(path: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            texts_below(&path, found);
        } else if meta.is_file() {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_skeleton_has_a_system_and_no_secrets() {
    let (host, dir) = (host(), tempfile::tempdir().unwrap());
    let image = prepare_from(host.path(), &store(dir.path()), &InProcess).unwrap();
    assert_eq!(image.trees, ["/usr", "/lib64", "/opt"].map(PathBuf::from));
    let at = |path: &str| image.skeleton.join(path);
    for tree in ["usr", "lib64", "opt", "proc", "home/user", "workspace", "var/tmp"] {
        assert!(at(tree).is_dir(), "{tree}");
    }
    assert_eq!(fs::read_link(at("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::metadata(at("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(at("root")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(at("etc/services")).unwrap(), "http 80/tcp\n");
    assert_eq!(fs::read_link(at("etc/ssl/certs/0123abcd.0")).unwrap(), Path::new("ca.pem"));
    assert!(fs::read_to_string(at("etc/passwd")).unwrap().contains("user:x:1000"));
    for absent in ["etc/shadow", "etc/ssh", "etc/hosts", "etc/machine-id", "etc/ssl/private"] {
        assert!(!at(absent).exists(), "{absent}");
    }
    let mut texts = Vec::new();
    texts_below(&image.skeleton, &mut texts);
    assert!(!texts.iter().any(|text| text.contains("secret") || text.contains("alice")));
}

#[test]
fn it_is_built_again_only_when_the_host_has_changed() {
    let (host, dir) = (host(), tempfile::tempdir().unwrap());
    let store = store(dir.path());
    let first = prepare_from(host.path(), &store, &InProcess).unwrap();
    let again = prepare_from(host.path(), &store, &InProcess).unwrap();
    assert_eq!(first.layer, again.layer);
    assert!(!again.hold.is_fresh());
    fs::write(host.path().join("etc/services"), "https 443/tcp\n").unwrap();
    let changed = prepare_from(host.path(), &store, &InProcess).unwrap();
    assert_ne!(first.layer, changed.layer);
    assert!(first.skeleton.is_dir() && changed.skeleton.is_dir());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn this_machine_makes_a_host_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = prepare(&store(dir.path()), &InProcess).unwrap();
    assert!(image.trees.contains(&PathBuf::from("/usr")));
    assert!(image.skeleton.join("etc/passwd").is_file());
    assert!(!image.skeleton.join("etc/shadow").exists());
    // A program of this machine runs in it: its path leads somewhere.
    let sh = image.skeleton.join("bin");
    assert!(sh.is_symlink() || image.trees.contains(&PathBuf::from("/bin")));
}
