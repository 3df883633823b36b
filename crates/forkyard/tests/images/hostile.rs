//! Layers that try to write outside of their root, and archives that lie.

use std::fs;

use forkyard_testkit::TestServer;
use forkyard_testkit::oci::TestLayer;

use crate::make::{
    Entry, archive, assert_has_only, base, dir, file, hardlink, layout, listed, plain,
    refused_fetch, symlink,
};
use crate::support::{code, stderr};

/// Imports an image with such a layer above an honest one; what the command line says.
fn try_layer(server: &TestServer, entries: &[Entry<'_>]) -> std::process::Output {
    let bad = TestLayer::gzip_of(&archive(entries));
    let layout = layout("bad", &[&base(), &bad], &plain());
    server.cli(&["image", "import", layout.dir.path().to_str().unwrap()])
}

#[test]
fn names_that_lead_out_of_the_root_are_refused() {
    let server = TestServer::start();
    for name in ["../out", "a/../../out", "./../../out", "..", "a/.."] {
        let out = try_layer(&server, &[file(name, "gotcha")]);
        refused_fetch(&out, "layer ");
        assert_has_only(&server, 0);
    }
    assert_eq!(listed(&server), []);
}

#[test]
fn an_absolute_name_is_a_name_below_the_root() {
    let server = TestServer::start();
    let outside = server.dir().join("outside");
    let entries = [file(outside.to_str().unwrap(), "inside"), file("/srv/own", "inside")];
    let out = try_layer(&server, &entries);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert!(!outside.exists());
    assert_eq!(server.ok(&["run", "bad", "--", "cat", "/srv/own"]), "inside");
}

#[test]
fn links_do_not_lead_writes_out_of_the_root() {
    let server = TestServer::start();
    let canary = server.dir().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("kept"), "kept").unwrap();
    let path = canary.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(20), path.trim_start_matches('/'));
    let kept = format!("{path}/kept");
    let through = [symlink("l", path), file("l/kept", "gotcha"), file("l/new", "gotcha")];
    let relative = [symlink("l", &up), file("l/kept", "gotcha"), file("l/new", "gotcha")];
    let chained = [symlink("m", path), symlink("l", "m"), file("l/kept", "gotcha")];
    let replaced = [dir("l"), symlink("l", path), file("l/kept", "gotcha")];
    let onto = [symlink("f", &kept), file("f", "gotcha")];
    let hard = [hardlink("h", &kept), file("h", "gotcha")];
    let hard_up = [hardlink("h", &up), file("h/kept", "gotcha")];
    let hard_through = [symlink("l", path), hardlink("h", "l/kept"), file("h", "gotcha")];
    let whiteout = [symlink("l", path), file("l/.wh.kept", "")];
    let opaque = [symlink("l", path), file("l/.wh..wh..opq", "")];
    let whiteout_up = [file(".wh...", ""), file("..wh.kept", "")];
    let tries: [&[Entry<'_>]; 11] = [
        &through,
        &relative,
        &chained,
        &replaced,
        &onto,
        &hard,
        &hard_up,
        &hard_through,
        &whiteout,
        &opaque,
        &whiteout_up,
    ];
    for (number, entries) in tries.into_iter().enumerate() {
        let out = try_layer(&server, entries);
        // Some are refused, and some are harmless since links are followed below the root.
        if code(&out) == 0 {
            server.ok(&["image", "rm", "bad"]);
        } else {
            refused_fetch(&out, "layer ");
        }
        assert_has_only(&server, 0);
        let left: Vec<_> = fs::read_dir(&canary).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"], "try {number}");
        assert_eq!(fs::read_to_string(canary.join("kept")).unwrap(), "kept", "try {number}");
    }
}

#[test]
fn a_layer_that_is_cut_off_or_lies_about_its_size_is_refused() {
    let server = TestServer::start();
    let whole = archive(&[file("a", &"x".repeat(3000)), file("b", "y")]);
    // In the middle of contents, of a header, and one that promises more than there is.
    let mut greedy = whole.clone();
    greedy[124..136].copy_from_slice(b"77777777777\0");
    for bad in [whole[..1000].to_vec(), whole[..4000].to_vec(), greedy] {
        let bad = TestLayer::zstd_of(&bad);
        let layout = layout("bad", &[&base(), &bad], &plain());
        let out = server.cli(&["image", "import", layout.dir.path().to_str().unwrap()]);
        refused_fetch(&out, "layer ");
        assert_has_only(&server, 0);
    }
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    let server = TestServer::start();
    let cases = [
        ("index.json", "{"),
        ("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
        ("index.json", r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:..","size":1}]}"#),
        ("index.json", r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}"#),
        ("index.json", r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#),
    ];
    for (name, text) in cases {
        let layout = layout("bad", &[&base()], &plain());
        fs::write(layout.dir.path().join(name), text).unwrap();
        let out = server.cli(&["image", "import", layout.dir.path().to_str().unwrap()]);
        refused_fetch(&out, "");
        assert_has_only(&server, 0);
    }
}
