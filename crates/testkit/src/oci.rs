//! Images in the OCI format, made here: layers, layouts and archives of them.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use forkyard_image::{Digest, Platform};
use serde_json::{Value, json};
use tempfile::TempDir;

/// This machine's platform in Docker's words.
pub fn host_platform() -> String {
    Platform::host().to_string()
}

/// A layer: its archive as it is stored, and the digest of the plain one.
#[derive(Clone, Debug)]
pub struct TestLayer {
    /// As it is stored and sent.
    pub bytes: Vec<u8>,
    /// What the configuration calls it by.
    pub diff_id: Digest,
    /// What the manifest says of it.
    pub media_type: &'static str,
}

/// An archive of files with these names and contents.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, *contents)
            .expect("write in memory or below a temporary directory");
    }
    builder.into_inner().expect("write in memory or below a temporary directory")
}

/// Compressed, as most layers are.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("write in memory or below a temporary directory");
    encoder.finish().expect("write in memory or below a temporary directory")
}

/// Bytes that do not compress, the same ones in each run.
pub fn noise(length: usize) -> Vec<u8> {
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
    /// A layer of these files, compressed with gzip.
    pub fn gzip(files: &[(&str, &[u8])]) -> Self {
        Self::gzip_of(&tar_of(files))
    }

    /// A layer that is this archive, compressed with gzip.
    pub fn gzip_of(plain: &[u8]) -> Self {
        let diff_id = Digest::sha256_of(plain);
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { bytes: gzip(plain), diff_id, media_type }
    }

    /// A layer of these files, compressed with zstd.
    pub fn zstd(files: &[(&str, &[u8])]) -> Self {
        Self::zstd_of(&tar_of(files))
    }

    /// A layer that is this archive, compressed with zstd.
    pub fn zstd_of(plain: &[u8]) -> Self {
        let diff_id = Digest::sha256_of(plain);
        let bytes = zstd::stream::encode_all(plain, 3).expect("compress in memory");
        Self { bytes, diff_id, media_type: "application/vnd.oci.image.layer.v1.tar+zstd" }
    }

    /// What the manifest calls it by.
    pub fn digest(&self) -> Digest {
        Digest::sha256_of(&self.bytes)
    }
}

/// An OCI layout being made in a directory; removed when dropped.
#[derive(Debug)]
pub struct Layout {
    /// The directory.
    pub dir: TempDir,
    manifests: Vec<Value>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

impl Layout {
    /// One without images.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("blobs/sha256"))
            .expect("write in memory or below a temporary directory");
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("write in memory or below a temporary directory");
        Self { dir, manifests: Vec::new() }
    }

    /// Where the contents of this digest are.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = Digest::sha256_of(bytes);
        fs::write(self.blob_path(&digest), bytes)
            .expect("write in memory or below a temporary directory");
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image's blobs; returns the descriptor of its manifest. `platform` is `OS/ARCH`.
    pub fn manifest(&self, layers: &[&TestLayer], platform: &str) -> Value {
        let config = json!({
            "Env": ["PATH=/bin"], "Cmd": ["/bin/hello"], "Entrypoint": null, "User": "1000:1000",
            "WorkingDir": "/work", "Labels": {"made-by": "test"},
        });
        self.manifest_with(layers, platform, &config)
    }

    /// The same with another `config` in its configuration.
    pub fn manifest_with(&self, layers: &[&TestLayer], platform: &str, config: &Value) -> Value {
        let (os, arch) = platform.split_once('/').expect("OS/ARCH");
        let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let config = json!({
            "os": os, "architecture": arch, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config =
            serde_json::to_vec(&config).expect("write in memory or below a temporary directory");
        let config = self.blob(&config, "application/vnd.oci.image.config.v1+json");
        let layers: Vec<Value> = layers.iter().map(|l| self.blob(&l.bytes, l.media_type)).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
        });
        let mut descriptor = self.blob(
            &serde_json::to_vec(&manifest).expect("write in memory or below a temporary directory"),
            kind,
        );
        descriptor["platform"] = json!({"os": os, "architecture": arch});
        descriptor
    }

    /// Adds an index of manifests; returns its descriptor.
    pub fn index(&self, manifests: &[Value]) -> Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.blob(
            &serde_json::to_vec(&index).expect("write in memory or below a temporary directory"),
            kind,
        )
    }

    /// Gives a manifest or index a name in the layout.
    pub fn tag(&mut self, name: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.path().join("index.json"), index.to_string())
            .expect("write in memory or below a temporary directory");
    }

    /// The layout as an archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_dir_all(".", self.dir.path())
            .expect("write in memory or below a temporary directory");
        builder.into_inner().expect("write in memory or below a temporary directory")
    }
}
