//! Imports of everything an image can be on disk, and of what only looks like one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Layout, Store, TestLayer, contents, host_platform, program};
use forkyard_image::{Fetched, ImportError, ImportOptions, InProcess, Layer, import};
use forkyard_testkit::oci::{gzip, tar_of};

fn run(path: &Path, store: &Store) -> Result<Fetched, ImportError> {
    run_named(path, store, None)
}

fn run_named(path: &Path, store: &Store, name: Option<&str>) -> Result<Fetched, ImportError> {
    let options = ImportOptions { name: name.map(str::to_owned), platform: None };
    import(path, &options, &store.store, &InProcess, &|_| ())
}

fn layers() -> [TestLayer; 2] {
    let base = TestLayer::gzip(&[("bin/hello", b"hello"), ("etc/base", b"1")]);
    [base, TestLayer::zstd(&[("app", b"app"), ("etc/.wh.base", b"")])]
}

fn layout() -> Layout {
    let mut layout = Layout::new();
    let [base, app] = layers();
    let manifest = layout.manifest(&[&base, &app], &host_platform());
    layout.tag("example/app:1", manifest);
    layout
}

fn assert_is_app(fetched: &Fetched, store: &Store) {
    let stored = layers().map(|layer| Layer::Stored(layer.diff_id));
    assert_eq!(fetched.image.layers, stored);
    assert_eq!(fetched.image.config.cmd, ["/bin/hello"]);
    assert_eq!(contents(&stored[0].path(&store.store))["bin/hello"], b"hello");
    fetched.image.check(&store.store).unwrap();
    store.assert_no_leftovers();
}

/// Puts bytes into a file of this name.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn an_oci_layout_is_imported_from_a_directory_and_from_archives() {
    let layout = layout();
    let store = Store::new();
    let fetched = run(layout.dir.path(), &store).unwrap();
    assert_is_app(&fetched, &store);
    assert_eq!(fetched.image.name, "example/app:1");
    let archive = layout.archive();
    let zstd = zstd::stream::encode_all(archive.as_slice(), 3).unwrap();
    for bytes in [archive.clone(), gzip(&archive), zstd] {
        let store = Store::new();
        let (_dir, path) = file("app.tar", &bytes);
        let again = run(&path, &store).unwrap();
        assert_is_app(&again, &store);
        assert_eq!(again.image.digest, fetched.image.digest);
    }
}

#[test]
fn archives_of_docker_save_are_imported() {
    let Some(skopeo) = program("skopeo") else { return };
    let mut layout = Layout::new();
    let layer = TestLayer::gzip(&[("bin/hello", b"hello")]);
    let manifest = layout.manifest(&[&layer, &layer], &host_platform());
    layout.tag("1", manifest);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("saved.tar");
    let output = Command::new(skopeo)
        .args(["--insecure-policy", "copy"])
        .arg(format!("oci:{}:1", layout.dir.path().display()))
        .arg(format!("docker-archive:{}:example/saved:2", path.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let compressed = out.path().join("saved.tar.gz");
    fs::write(&compressed, gzip(&fs::read(&path).unwrap())).unwrap();
    for path in [path, compressed] {
        let store = Store::new();
        let fetched = run(&path, &store).unwrap();
        assert!(fetched.image.name.ends_with("example/saved:2"), "{}", fetched.image.name);
        assert_eq!(fetched.image.layers, [Layer::Stored(layer.diff_id.clone())]);
        assert_eq!(contents(&store.store.tree(&layer.diff_id))["bin/hello"], b"hello");
        store.assert_no_leftovers();
    }
}

/// What Docker before version 25 wrote, equal layers as links.
fn old_docker_save(config_name: Option<&str>) -> Vec<u8> {
    let layer = tar_of(&[("file", b"old")]);
    let diff_id = forkyard_image::Digest::sha256_of(&layer).to_string();
    let config = serde_json::json!({
        "architecture": host_platform().split('/').nth(1), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]},
    });
    let config = config.to_string();
    let name = format!("{}.json", forkyard_image::Digest::sha256_of(config.as_bytes()).hex());
    let name = config_name.unwrap_or(&name);
    let list = serde_json::json!([{
        "Config": name, "RepoTags": ["old:1"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("a/layer.tar", layer.as_slice()),
        (name, config.as_bytes()),
        ("manifest.json", list.to_string().as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn archives_of_old_docker_versions_are_imported_and_verified() {
    let store = Store::new();
    let (_dir, path) = file("x.tar", &old_docker_save(None));
    let fetched = run(&path, &store).unwrap();
    assert_eq!((fetched.image.name.as_str(), fetched.image.layers.len()), ("old:1", 1));

    let store = Store::new();
    let name = format!("{}.json", "0".repeat(64));
    let (_dir, path) = file("x.tar", &old_docker_save(Some(&name)));
    let error = run(&path, &store).unwrap_err();
    assert!(matches!(error, ImportError::WrongDigest { .. }), "{error}");
    store.assert_empty();
}

#[test]
fn a_plain_archive_becomes_an_image_of_one_layer() {
    let plain = tar_of(&[("bin/sh", b"sh"), ("manifest.json", b"not of docker")]);
    let zstd = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
    let cases = [("my.rootfs.tar", &plain), ("My Root.tar.gz", &gzip(&plain)), ("x.tzst", &zstd)];
    for ((name, bytes), expected) in cases.into_iter().zip(["my-rootfs", "my-root", "x"]) {
        let store = Store::new();
        let (_dir, path) = file(name, bytes);
        let fetched = run(&path, &store).unwrap();
        assert_eq!(fetched.image.name, expected);
        let [layer] = fetched.image.layers.as_slice() else { panic!("one layer") };
        assert_eq!(contents(&layer.path(&store.store))["bin/sh"], b"sh");
        assert_eq!(fetched.image.digest, Some(forkyard_image::Digest::sha256_of(&plain)));
    }
}

#[test]
fn a_directory_is_used_in_place() {
    let store = Store::new();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let fetched = run_named(dir.path(), &store, Some("mine")).unwrap();
    assert_eq!(fetched.image.name, "mine");
    let path = dir.path().canonicalize().unwrap();
    assert_eq!(fetched.image.layers, [Layer::Directory(path)]);
    store.assert_empty();
    fetched.image.check(&store.store).unwrap();
    dir.close().unwrap();
    let error = fetched.image.check(&store.store).unwrap_err();
    assert!(error.to_string().contains("is not a directory"), "{error}");
}

#[test]
fn whatever_is_cut_off_leaves_nothing_behind() {
    let (layout, docker) = (layout().archive(), old_docker_save(None));
    let root = tar_of(&[("a", b"1"), ("b", &[7; 3000])]);
    for whole in [layout.clone(), gzip(&layout), docker, root.clone(), gzip(&root)] {
        for part in 0..16 {
            let store = Store::new();
            // The last cut takes the end mark off plain archives, and the trailer of gzip.
            let cut =
                if part == 15 { whole.len().max(1025) - 1024 } else { whole.len() * part / 16 };
            let (_dir, path) = file("cut.tar", &whole[..cut]);
            let error = run(&path, &store).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
            store.assert_empty();
        }
    }
}

#[test]
fn damaged_and_missing_blobs_are_refused() {
    let [base, app] = layers();
    let damage = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let layout_with = |change: &dyn Fn(&Layout)| {
        let layout = layout();
        change(&layout);
        let store = Store::new();
        let error = run(layout.dir.path(), &store).unwrap_err();
        store.assert_empty();
        error
    };
    let error = layout_with(&|l| damage(&l.blob_path(&app.digest())));
    assert!(matches!(error, ImportError::WrongDigest { .. }), "{error}");
    let error = layout_with(&|l| fs::remove_file(l.blob_path(&base.digest())).unwrap());
    assert!(matches!(error, ImportError::Missing(_)), "{error}");
    let error = layout_with(&|l| fs::write(l.blob_path(&app.digest()), b"short").unwrap());
    assert!(error.to_string().contains("5 bytes instead of"), "{error}");
    let error = layout_with(&|l| fs::write(l.dir.path().join("index.json"), "{").unwrap());
    assert!(matches!(error, ImportError::Document { .. }), "{error}");
}

#[test]
fn a_layer_that_lies_takes_its_fellows_away_with_it() {
    let [base, app] = layers();
    let lying = TestLayer { diff_id: forkyard_image::Digest::sha256_of(b"?"), ..app };
    let mut layout = Layout::new();
    let manifest = layout.manifest(&[&base, &lying], &host_platform());
    layout.tag("1", manifest);
    let store = Store::new();
    let error = run(layout.dir.path(), &store).unwrap_err();
    assert!(error.to_string().contains("its contents have the digest"), "{error}");
    store.assert_empty();

    // A layer that was there before stays.
    let mut first = Layout::new();
    let manifest = first.manifest(&[&base], &host_platform());
    first.tag("1", manifest);
    drop(run(first.dir.path(), &store).unwrap());
    run(layout.dir.path(), &store).unwrap_err();
    assert!(store.store.has(&base.diff_id));
}

#[test]
fn of_several_images_one_must_be_named() {
    let mut layout = Layout::new();
    let [base, app] = layers();
    let (one, two) =
        (layout.manifest(&[&base], &host_platform()), layout.manifest(&[&app], &host_platform()));
    layout.tag("one", one);
    layout.tag("two", two);
    let store = Store::new();
    let error = run(layout.dir.path(), &store).unwrap_err();
    assert_eq!(error.to_string(), "it holds several images: one, two; name one of them");
    let fetched = run_named(layout.dir.path(), &store, Some("two")).unwrap();
    assert_eq!(fetched.image.layers, [Layer::Stored(app.diff_id)]);
}

#[test]
fn what_is_no_image_is_said_so() {
    let store = Store::new();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("text.txt", b"hello, I am not an archive".repeat(100)),
        ("nothing.tar", tar_of(&[])),
        ("short", b"x".to_vec()),
    ] {
        let (_dir, path) = file(name, &bytes);
        let error = run(&path, &store).unwrap_err();
        let known = matches!(error, ImportError::Archive { .. } | ImportError::Empty(_));
        assert!(known, "{name}: {error}");
        store.assert_empty();
    }
    let missing = run(Path::new("/nonexistent/image.tar"), &store).unwrap_err();
    assert!(matches!(missing, ImportError::Io { .. }), "{missing}");
    let device = run(Path::new("/dev/null"), &store).unwrap_err();
    assert!(matches!(device, ImportError::Kind(_)), "{device}");
}
