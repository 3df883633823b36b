//! Images that the tests make, and a look into the store that they go to.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use forkyard_engine::model::{ImageDetails, ImageInfo};
use forkyard_testkit::oci::{Layout, TestLayer, host_platform};
use forkyard_testkit::{TestServer, image_dir, wait_for};
use serde_json::{Value, json};

use crate::support::{SOON, refused, stderr};

/// An entry of an archive, names and links in any bytes.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: tar::EntryType,
    pub(crate) link: &'a str,
    pub(crate) contents: &'a [u8],
}

/// A file.
pub(crate) fn file<'a>(name: &'a str, contents: &'a str) -> Entry<'a> {
    let (kind, contents) = (tar::EntryType::Regular, contents.as_bytes());
    Entry { name, kind, link: "", contents }
}

/// A directory.
pub(crate) fn dir(name: &str) -> Entry<'_> {
    Entry { name, kind: tar::EntryType::Directory, link: "", contents: b"" }
}

/// A symbolic link.
pub(crate) fn symlink<'a>(name: &'a str, link: &'a str) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Symlink, link, contents: b"" }
}

/// A hard link.
pub(crate) fn hardlink<'a>(name: &'a str, link: &'a str) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Link, link, contents: b"" }
}

/// A device node.
pub(crate) fn device(name: &str) -> Entry<'_> {
    Entry { name, kind: tar::EntryType::Char, link: "", contents: b"" }
}

/// An archive of these entries, written without the checks that an honest writer makes.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.contents.len() as u64);
        header.set_mode(if entry.kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        if entry.kind == tar::EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        builder.append(&header, entry.contents).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layer with a shell and the usual programs, compressed with gzip.
pub(crate) fn base() -> TestLayer {
    TestLayer::gzip_of(&root_fs())
}

/// The same as an archive. There is one in each run: times and the order of files are in it, and
/// so in its digest.
pub(crate) fn root_fs() -> Vec<u8> {
    static ARCHIVE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let image = image_dir();
        let mut builder = tar::Builder::new(Vec::new());
        builder.follow_symlinks(false);
        builder.append_dir_all("", image.path()).unwrap();
        builder.into_inner().unwrap()
    });
    ARCHIVE.clone()
}

/// A layer of these entries, compressed with zstd.
pub(crate) fn layer(entries: &[Entry<'_>]) -> TestLayer {
    TestLayer::zstd_of(&archive(entries))
}

/// A layout with one image of this name.
pub(crate) fn layout(name: &str, layers: &[&TestLayer], config: &Value) -> Layout {
    let mut layout = Layout::new();
    let manifest = layout.manifest_with(layers, &host_platform(), config);
    layout.tag(name, manifest);
    layout
}

/// What an image with nothing particular says of itself.
pub(crate) fn plain() -> Value {
    json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] })
}

/// Copies an image from one form to another with skopeo; what `docker save` writes is
/// `docker-archive:PATH:NAME`.
pub(crate) fn skopeo(from: &str, to: &str) {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", from, to]);
    let out = skopeo.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// `forkyard image import PATH`; the image's name.
#[track_caller]
pub(crate) fn import(server: &TestServer, path: &Path) -> String {
    server.ok(&["image", "import", "-q", path.to_str().unwrap()]).trim().to_owned()
}

/// Asserts that a pull or an import failed: steps of layers may have been told before the error.
#[track_caller]
pub(crate) fn refused_fetch(out: &Output, text: &str) {
    let told = stderr(out);
    let from = told.find("error: ").unwrap_or_else(|| panic!("no error: {told}"));
    refused(&Output { stderr: out.stderr[from..].to_vec(), ..out.clone() }, 125, text);
}

/// What `image ls` lists.
#[track_caller]
pub(crate) fn listed(server: &TestServer) -> Vec<ImageInfo> {
    serde_json::from_str(&server.ok(&["image", "ls", "--json"])).unwrap()
}

/// What `image inspect` shows.
#[track_caller]
pub(crate) fn inspect(server: &TestServer, name: &str) -> ImageDetails {
    let text = server.ok(&["image", "inspect", "--json", name]);
    let images: Vec<ImageDetails> = serde_json::from_str(&text).unwrap();
    images.into_iter().next().unwrap()
}

/// How many layers the store has, but for that of the `host` image.
pub(crate) fn layers(server: &TestServer) -> usize {
    let images = server.store().join("images");
    let host = ["host.json", "squash-host.json"]
        .map(|name| fs::read_to_string(images.join(name)).unwrap_or_default())
        .concat();
    let of_host = |name: &str| {
        let digest = name.trim_end_matches("-squash").replacen('-', ":", 1);
        host.contains(&digest)
    };
    let all = fs::read_dir(images.join("layers")).unwrap().flatten();
    all.filter(|layer| !of_host(&layer.file_name().to_string_lossy())).count()
}

/// Panics when the store has more than this many layers, half-made ones, or parts of downloads.
#[track_caller]
pub(crate) fn assert_has_only(server: &TestServer, count: usize) {
    assert_eq!(layers(server), count, "layers in the store");
    assert_eq!(entries(&server.store().join("images/tmp")), 0, "half-made layers");
    assert_eq!(entries(&server.store().join("images/blobs")), 0, "parts of downloads");
}

/// Removes what a pull that failed left. A layer that was being unpacked when another one failed
/// is finished first.
#[track_caller]
pub(crate) fn prune(server: &TestServer) {
    wait_for("a store with nothing of a failed pull", SOON, || {
        server.ok(&["image", "prune"]);
        let left = |part: &str| entries(&server.store().join("images").join(part));
        left("tmp") + layers(server) + left("blobs") == 0
    });
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}
