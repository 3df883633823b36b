//! Pulls images from registries
//! ([OCI distribution](https://github.com/opencontainers/distribution-spec/blob/main/spec.md)).
//!
//! Every byte is verified by digest before it is used. What was downloaded of a layer stays on
//! disk when a transfer is cut off, and the next pull asks for the rest only. A registry that
//! does not answer, or stops in the middle, makes one clear error after a time-out.

mod credentials;
mod download;
mod error;
mod registry;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use oci_client::Reference;

pub use credentials::CredentialsError;
pub use error::PullError;
#[cfg(feature = "fuzzing")]
pub(crate) use registry::read_challenge;

use crate::compress::Blob;
use crate::digest::Digest;
use crate::image::{Image, Layer, without_repeats};
use crate::oci::{ConfigFile, Descriptor, Document, Manifest, choose};
use crate::platform::Platform;
use crate::progress::{Fetched, OnProgress, Progress, Step};
use crate::store::{Hold, LayerStore, StoreError};
use crate::unpack::Unpacker;
use registry::Registry;

/// Indexes within indexes that are followed; one is usual.
const MAX_DEPTH: usize = 4;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform wanted; the host's when absent. An image for another platform than the host's
    /// is taken only when that is asked for here.
    pub platform: Option<Platform>,
    /// Speak plain HTTP. Registries on loopback addresses are spoken to so in any case.
    pub plain_http: bool,
    /// Give up when no connection is made within this time.
    pub connect_timeout: Duration,
    /// Give up when nothing comes for this long.
    pub stall_timeout: Duration,
    /// How often a transfer that is cut off is taken up again at once.
    pub retries: u32,
    /// Layers downloaded at a time.
    pub parallel: usize,
    /// Docker's configuration directory, with credentials in its `config.json`;
    /// `$DOCKER_CONFIG`, else `~/.docker`, when absent.
    pub docker_config: Option<PathBuf>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: None,
            plain_http: false,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 2,
            // As Docker has it: more do not make one line faster.
            parallel: 3,
            docker_config: None,
        }
    }
}

/// A layer to be had.
struct Wanted {
    diff_id: Digest,
    descriptor: Descriptor,
}

/// Pulls an image; the layers that the store has are not fetched again.
///
/// `reference` is what `docker pull` takes: `[REGISTRY/]REPOSITORY[:TAG|@DIGEST]`, and becomes
/// the image's name. Runs on a tokio runtime with time and I/O enabled, one thread of it is
/// enough; unpacking happens on blocking threads. When it fails or is dropped, layers that were
/// complete stay in the store and partial downloads wait to be resumed.
pub async fn pull(
    reference: &str,
    options: &PullOptions,
    store: &LayerStore,
    unpacker: Arc<dyn Unpacker>,
    progress: OnProgress<'_>,
) -> Result<Fetched, PullError> {
    let name = reference.trim();
    let parsed: Reference = name.parse().map_err(|e: oci_client::ParseError| {
        let reference = crate::text::show(name.as_bytes());
        PullError::Reference { reference, why: e.to_string() }
    })?;
    let (credentials, notes) = credentials::find(&parsed, options.docker_config.clone()).await?;
    for note in notes {
        progress(Progress::Note(note));
    }
    let registry = Registry::connect(parsed, credentials, options).await?;
    let pull = Pull { registry, options, store, unpacker, progress };
    pull.run(name).await
}

/// One pull, its parameters together.
struct Pull<'a> {
    registry: Registry,
    options: &'a PullOptions,
    store: &'a LayerStore,
    unpacker: Arc<dyn Unpacker>,
    progress: OnProgress<'a>,
}

impl Pull<'_> {
    async fn run(&self, name: &str) -> Result<Fetched, PullError> {
        let wanted = self.options.platform.clone().unwrap_or_else(Platform::host);
        let (digest, manifest) = self.manifest(&wanted).await?;
        let what = format!("manifest {digest}");
        manifest.check().map_err(document(&what))?;
        let bytes = self.registry.small_blob(&manifest.config).await?;
        let what = format!("configuration {}", manifest.config.digest);
        let config = ConfigFile::parse(&bytes).map_err(document(&what))?;
        if self.options.platform.is_none() {
            config.check_platform(&wanted).map_err(document(&what))?;
        }
        let diff_ids = config.diff_ids(manifest.layers.len()).map_err(document(&what))?;
        let layers = without_repeats(diff_ids.clone());
        let mut missing: Vec<Wanted> = Vec::new();
        for (diff_id, descriptor) in diff_ids.into_iter().zip(manifest.layers) {
            if !missing.iter().any(|layer| layer.diff_id == diff_id) {
                missing.push(Wanted { diff_id, descriptor });
            }
        }
        let mut fetches = stream::iter(&missing)
            .map(|layer| self.layer(layer))
            .buffer_unordered(self.options.parallel.max(1));
        let mut holds = Vec::new();
        while let Some(hold) = fetches.next().await {
            holds.push(hold?);
        }
        let image = Image {
            name: name.to_owned(),
            digest: Some(digest),
            layers: layers.into_iter().map(Layer::Stored).collect(),
            platform: config.platform(),
            config: config.into_config(),
            size: holds.iter().map(|hold| hold.facts().size).sum(),
        };
        Ok(Fetched::new(image, holds, self.progress))
    }

    /// Follows indexes down to the manifest for the platform. The digest is that of the manifest.
    async fn manifest(&self, wanted: &Platform) -> Result<(Digest, Manifest), PullError> {
        let (mut digest, mut bytes) = self.registry.named_manifest().await?;
        for _ in 0..MAX_DEPTH {
            let what = format!("manifest {digest}");
            match Document::parse(&bytes).map_err(document(&what))? {
                Document::Image(manifest) => return Ok((digest, manifest)),
                Document::Index(index) => {
                    let offers: Vec<&Descriptor> = index.manifests.iter().collect();
                    let next = choose(&offers, wanted).map_err(document(&what))?;
                    digest = next.digest.clone();
                    bytes = self.registry.manifest(&digest).await?;
                }
            }
        }
        let why = format!("no manifest below the index {digest}");
        Err(PullError::Answer { what: "index".to_owned(), why })
    }

    /// Finds a layer in the store, or fetches and unpacks it.
    async fn layer(&self, layer: &Wanted) -> Result<Hold, PullError> {
        if let Some(hold) = self.held(layer).await? {
            self.tell(layer, Step::Present, layer.descriptor.size);
            return Ok(hold);
        }
        // Another pull may be fetching the same blob; when it is done, the layer is there.
        let _lock = self.lock(&layer.descriptor.digest).await?;
        if let Some(hold) = self.held(layer).await? {
            self.tell(layer, Step::Present, layer.descriptor.size);
            return Ok(hold);
        }
        let path = self.store.partial(&layer.descriptor.digest);
        let tell = |done| self.tell(layer, Step::Downloading, done);
        let (retries, what) = (self.options.retries, &layer.descriptor);
        download::fetch(&self.registry, what, &path, retries, &tell).await?;
        self.tell(layer, Step::Unpacking, 0);
        let hold = self.unpack(layer, path).await?;
        self.tell(layer, Step::Done, layer.descriptor.size);
        Ok(hold)
    }

    async fn held(&self, layer: &Wanted) -> Result<Option<Hold>, PullError> {
        let (store, diff_id) = (self.store.clone(), layer.diff_id.clone());
        Ok(blocking(move || store.hold(&diff_id)).await??)
    }

    async fn lock(&self, blob: &Digest) -> Result<File, PullError> {
        let (store, blob) = (self.store.clone(), blob.clone());
        Ok(blocking(move || store.lock_blob(&blob)).await??)
    }

    /// Unpacks a blob that is whole and verified, and removes it: a layer that cannot be unpacked
    /// will not be unpacked the next time either.
    async fn unpack(&self, layer: &Wanted, path: PathBuf) -> Result<Hold, PullError> {
        let (store, unpacker) = (self.store.clone(), self.unpacker.clone());
        let (diff_id, label) = (layer.diff_id.clone(), layer.descriptor.short());
        let unpack = move || -> Result<Hold, PullError> {
            let file = File::open(&path).map_err(error::io("open", &path))?;
            let blob = Blob::whole(&file).map_err(error::io("stat", &path))?;
            let added = store.add(blob, Some(&diff_id), &label, unpacker.as_ref());
            if !matches!(added, Err(StoreError::Io { .. })) {
                std::fs::remove_file(&path).map_err(error::io("unlink", &path))?;
            }
            Ok(added?)
        };
        blocking(unpack).await?
    }

    fn tell(&self, layer: &Wanted, step: Step, done: u64) {
        let total = Some(layer.descriptor.size);
        let id = layer.descriptor.short();
        (self.progress)(Progress::Layer { id, step, done, total });
    }
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| PullError::Internal(e.to_string()))
}

fn document(what: &str) -> impl Fn(crate::DocumentError) -> PullError {
    let what = what.to_owned();
    move |error| PullError::Document { what: what.clone(), error }
}
