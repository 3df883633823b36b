//! What the tests of this crate share: images made here, and a store to put them into.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what is skipped is to be seen")]

pub(crate) mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use forkyard_image::{Digest, InProcess, LayerStore, Limits, Ownership};
use serde_json::{Value, json};

/// A store that ends with the test.
pub(crate) struct Store {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: LayerStore,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            LayerStore::open(dir.path(), Ownership::Squash, Limits::default(), &InProcess).unwrap();
        Self { dir, store }
    }

    /// Panics when anything but complete layers is there.
    pub(crate) fn assert_no_leftovers(&self) {
        assert_eq!(fs::read_dir(self.dir.path().join("tmp")).unwrap().count(), 0);
    }

    pub(crate) fn assert_empty(&self) {
        self.assert_no_leftovers();
        assert_eq!(fs::read_dir(self.dir.path().join("layers")).unwrap().count(), 0);
    }

    /// Bytes kept of a download that was cut off.
    pub(crate) fn partial(&self, blob: &Digest) -> Option<u64> {
        let name = format!("{}.partial", blob.file_name());
        Some(fs::metadata(self.dir.path().join("blobs").join(name)).ok()?.len())
    }
}

/// A layer: its archive as it is stored, and the digest of the plain one.
#[derive(Clone)]
pub(crate) struct TestLayer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: &'static str,
}

/// An archive of files with these names and contents.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same ones in each run.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

impl TestLayer {
    pub(crate) fn gzip(files: &[(&str, &[u8])]) -> Self {
        let plain = tar_of(files);
        let diff_id = Digest::sha256_of(&plain);
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { bytes: gzip(&plain), diff_id, media_type }
    }

    pub(crate) fn zstd(files: &[(&str, &[u8])]) -> Self {
        let plain = tar_of(files);
        let diff_id = Digest::sha256_of(&plain);
        let bytes = zstd::stream::encode_all(plain.as_slice(), 3).unwrap();
        Self { bytes, diff_id, media_type: "application/vnd.oci.image.layer.v1.tar+zstd" }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.bytes)
    }
}

/// An OCI layout being made in a directory.
pub(crate) struct Layout {
    pub(crate) dir: tempfile::TempDir,
    manifests: Vec<Value>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, manifests: Vec::new() }
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = Digest::sha256_of(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image's blobs; returns the descriptor of its manifest.
    pub(crate) fn manifest(&self, layers: &[&TestLayer], platform: &str) -> Value {
        let (os, arch) = platform.split_once('/').unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let config = json!({
            "os": os, "architecture": arch,
            "config": {
                "Env": ["PATH=/bin", format!("ARCH={arch}")], "Cmd": ["/bin/hello"],
                "Entrypoint": null, "User": "1000:1000", "WorkingDir": "/work",
                "Labels": {"made-by": "test"},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config = self.blob(&config, "application/vnd.oci.image.config.v1+json");
        let layers: Vec<Value> = layers.iter().map(|l| self.blob(&l.bytes, l.media_type)).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
        });
        let mut descriptor = self.blob(&serde_json::to_vec(&manifest).unwrap(), kind);
        descriptor["platform"] = json!({"os": os, "architecture": arch});
        descriptor
    }

    pub(crate) fn index(&self, manifests: &[Value]) -> Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.blob(&serde_json::to_vec(&index).unwrap(), kind)
    }

    /// Gives a manifest or index a name in the layout.
    pub(crate) fn tag(&mut self, name: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The layout as an archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.dir.path()).unwrap();
        builder.into_inner().unwrap()
    }
}

/// This machine's platform in Docker's words.
pub(crate) fn host_platform() -> String {
    forkyard_image::Platform::host().to_string()
}

/// Everything below a directory, by path.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).unwrap_or_default());
            }
        }
    }
    found
}

/// The program's path, or a word on what is missing: the test counts as skipped.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}
