//! The kernel's own opinion on unpacked layers: an overlay of them shows what the image means.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::process::Command;

use common::{Layout, Store, TestLayer, host_platform, program};
use forkyard_image::{ImportOptions, InProcess, import};

#[test]
fn an_overlay_of_the_layers_shows_the_image() {
    let Some(unshare) = program("unshare") else { return };
    let base = TestLayer::gzip(&[
        ("kept", b"1"),
        ("gone", b"2"),
        ("dir/hidden", b"3"),
        ("again/hidden", b"4"),
        ("changed", b"old"),
    ]);
    let upper = TestLayer::gzip(&[
        (".wh.gone", b""),
        ("dir/.wh..wh..opq", b""),
        ("dir/new", b"5"),
        (".wh.again", b""),
        ("again/new", b"6"),
        ("changed", b"new"),
    ]);
    let mut layout = Layout::new();
    // The base again on top of itself: an image may have a layer twice, an overlay may not.
    let manifest = layout.manifest(&[&base, &base, &upper], &host_platform());
    layout.tag("1", manifest);
    let store = Store::new();
    let options = ImportOptions::default();
    let fetched = import(layout.dir.path(), &options, &store.store, &InProcess, &|_| ()).unwrap();
    let lowers: Vec<String> = fetched
        .image
        .layers
        .iter()
        .rev()
        .map(|layer| layer.path(&store.store).display().to_string())
        .collect();
    let script = "mount -t overlay overlay -o userxattr,lowerdir=\"$1\" /mnt && cd /mnt && \
                  find . -type f | sort && cat changed";
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let possible = Command::new(&unshare).args(namespaces).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: user namespaces are not to be had");
        return;
    }
    let output = Command::new(&unshare)
        .args(namespaces)
        .args(["sh", "-c", script, "sh", &lowers.join(":")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(shown, "./again/new\n./changed\n./dir/new\n./kept\nnew");
}
