//! The images of a store, and what a sandbox's root is made of.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forkyard_guest::proto::{MountSource, Overlay};
use forkyard_image::host::{self, HostImage};
use forkyard_image::{
    BadPlatform, Hold, Image, ImportOptions, Layer, LayerStore, Limits, Ownership, PullOptions,
};
pub use forkyard_image::{Progress, Step};

use crate::error::{Error, Result};
use crate::ids::Mode;
use crate::layout::Layout;
use crate::model::ImageInfo;
use crate::spawner::Spawner;
use crate::store::Store;
use crate::unpack::SpawnerUnpacker;

/// Name of the image that is the host's own toolchain.
pub const HOST: &str = "host";

/// How long the `host` image is used before the host's files are looked at again.
const HOST_FRESH: Duration = Duration::from_secs(60);

/// Most layers of an image: each is a descriptor of one message, and overlayfs takes 500.
const LAYERS_MAX: usize = 90;

/// The images of a store.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    layers: LayerStore,
    unpacker: SpawnerUnpacker,
    host: Mutex<Option<(Instant, Arc<HostImage>)>>,
}

/// What a sandbox's root is made of.
#[derive(Clone, Debug)]
pub(crate) struct Rootfs {
    pub(crate) sources: Vec<MountSource>,
    pub(crate) overlays: Vec<Overlay>,
    pub(crate) config: RunConfig,
    /// Commands are restricted by Landlock too.
    pub(crate) landlock: bool,
}

/// How to run something in an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunConfig {
    pub(crate) env: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) workdir: Option<String>,
    pub(crate) argv: Vec<String>,
}

impl Images {
    pub(crate) async fn open(
        layout: &Layout,
        store: Arc<Store>,
        mode: &Mode,
        spawner: Arc<Spawner>,
    ) -> Result<Self> {
        let ownership = match mode {
            Mode::Root | Mode::SubIds { .. } => Ownership::Keep,
            Mode::Single => Ownership::Squash,
        };
        let unpacker = SpawnerUnpacker { spawner, runtime: tokio::runtime::Handle::current() };
        let (root, worker) = (layout.images(), unpacker.clone());
        // What was cut off is the spawner's to remove, which is waited for: not on this thread.
        let layers = tokio::task::spawn_blocking(move || {
            LayerStore::open(&root, ownership, Limits::default(), &worker)
        });
        let layers = layers.await.map_err(joined)??;
        Ok(Self { store, layers, unpacker, host: Mutex::default() })
    }

    /// The layers on disk.
    pub fn layers(&self) -> &LayerStore {
        &self.layers
    }

    /// All images, by name; `host` is always there and not among them.
    pub fn list(&self) -> Result<Vec<ImageInfo>> {
        self.store.images()?.into_iter().map(|(_, at, json)| Ok(info(&parse(&json)?, at))).collect()
    }

    /// Imports an image from a path on the host; `progress` is called from other threads.
    pub async fn import(
        &self,
        path: PathBuf,
        name: Option<String>,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageInfo> {
        let (layers, unpacker) = (self.layers.clone(), self.unpacker.clone());
        let options = ImportOptions { name, platform: None };
        let fetched = tokio::task::spawn_blocking(move || {
            forkyard_image::import(&path, &options, &layers, &unpacker, &progress)
        });
        let fetched = fetched.await.map_err(joined)??;
        self.add(&fetched.image, fetched.holds)
    }

    /// Pulls an image from a registry; `progress` is called from other threads.
    pub async fn pull(
        &self,
        reference: &str,
        platform: Option<String>,
        plain_http: bool,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageInfo> {
        let platform = platform.map(|text| text.parse()).transpose();
        let platform = platform.map_err(|e: BadPlatform| Error::Invalid(e.to_string()))?;
        let options = PullOptions { platform, plain_http, ..PullOptions::default() };
        let (layers, unpacker) = (self.layers.clone(), self.unpacker.clone());
        let reference = reference.to_owned();
        // On a thread of its own: digests of gigabytes are no work for the server's.
        let runtime = unpacker.runtime.clone();
        let fetched = tokio::task::spawn_blocking(move || {
            let unpacker = Arc::new(unpacker);
            let pull = forkyard_image::pull(&reference, &options, &layers, unpacker, &progress);
            runtime.block_on(pull)
        });
        let fetched = fetched.await.map_err(joined)??;
        self.add(&fetched.image, fetched.holds)
    }

    /// Writes an image down; `holds` keep its layers until then.
    fn add(&self, image: &Image, holds: Vec<Hold>) -> Result<ImageInfo> {
        if image.layers.len() > LAYERS_MAX {
            return Err(Error::Invalid(format!(
                "image {}: {} layers, at most {LAYERS_MAX}",
                image.name,
                image.layers.len()
            )));
        }
        if image.name == HOST {
            return Err(Error::Invalid("image name `host`: it is this machine's own".to_owned()));
        }
        let json = serde_json::to_string(image).map_err(|e| Error::Invalid(e.to_string()))?;
        self.store.put_image(&image.name, &json)?;
        drop(holds);
        Ok(info(image, crate::clock::now()))
    }

    /// Removes an image and the layers that no other one has.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let image = self.find(name)?;
        self.store.remove_image(&image.name)?;
        let mut used = Vec::new();
        for (_, _, json) in self.store.images()? {
            used.extend(parse(&json)?.layers);
        }
        let (layers, unpacker) = (self.layers.clone(), self.unpacker.clone());
        let removed = tokio::task::spawn_blocking(move || {
            for layer in image.layers.iter().filter(|layer| !used.contains(layer)) {
                if let Layer::Stored(digest) = layer {
                    layers.remove(digest, &unpacker)?;
                }
            }
            Ok(())
        });
        removed.await.map_err(joined)?.map_err(|e: forkyard_image::StoreError| e.into())
    }

    /// The image of this name; the tag `latest` may be left out.
    pub fn find(&self, name: &str) -> Result<Image> {
        let candidates = [name.to_owned(), format!("{name}:latest")];
        for candidate in candidates {
            if let Some(json) = self.store.image(&candidate)? {
                return parse(&json);
            }
        }
        Err(Error::NoImage(name.to_owned()))
    }

    /// What a sandbox of this image is made of.
    pub(crate) async fn rootfs(&self, name: &str) -> Result<Rootfs> {
        if name == HOST {
            let host = self.host().await?;
            return Ok(host_rootfs(&host));
        }
        let image = self.find(name)?;
        image.check(&self.layers).map_err(|e| Error::Invalid(e.to_string()))?;
        let sources: Vec<MountSource> =
            image.layers.iter().map(|layer| source(&layer.path(&self.layers))).collect();
        let root = Overlay {
            target: "/".to_owned(),
            lowers: (0..sources.len()).rev().collect(),
            name: "root".to_owned(),
        };
        let config = image.config;
        Ok(Rootfs {
            sources,
            overlays: vec![root],
            config: RunConfig {
                env: config.env,
                user: config.user,
                workdir: config.workdir,
                argv: [config.entrypoint, config.cmd].concat(),
            },
            landlock: false,
        })
    }

    async fn host(&self) -> Result<Arc<HostImage>> {
        let kept: Option<(Instant, Arc<HostImage>)> =
            self.host.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, image)) = kept
            && at.elapsed() < HOST_FRESH
        {
            return Ok(image);
        }
        let layers = self.layers.clone();
        let unpacker = self.unpacker.clone();
        let image = tokio::task::spawn_blocking(move || host::prepare(&layers, &unpacker))
            .await
            .map_err(joined)??;
        let image: Arc<HostImage> = Arc::new(image);
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&image)));
        Ok(image)
    }
}

fn host_rootfs(host: &HostImage) -> Rootfs {
    let mut sources = vec![source(&host.skeleton)];
    let mut overlays =
        vec![Overlay { target: "/".to_owned(), lowers: vec![0], name: "root".to_owned() }];
    for tree in &host.trees {
        let target = tree.to_string_lossy().into_owned();
        let name = target.trim_matches('/').replace('/', "-");
        overlays.push(Overlay { target, lowers: vec![sources.len()], name });
        sources.push(source(tree));
    }
    let config = RunConfig { workdir: Some("/root".to_owned()), ..RunConfig::default() };
    Rootfs { sources, overlays, config, landlock: true }
}

fn source(path: &std::path::Path) -> MountSource {
    // A lower layer is never written to, and overlayfs does not look below its mounts.
    MountSource { path: path.to_string_lossy().into_owned(), read_only: false, recursive: false }
}

fn parse(json: &str) -> Result<Image> {
    serde_json::from_str(json).map_err(|e| Error::Invalid(format!("image in the store: {e}")))
}

fn info(image: &Image, created_at: u64) -> ImageInfo {
    ImageInfo {
        name: image.name.clone(),
        digest: image.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
        size: image.size,
        layers: image.layers.len(),
        created_at,
    }
}

/// Takes the error by value to be given to `map_err`.
#[expect(clippy::needless_pass_by_value)]
fn joined(error: tokio::task::JoinError) -> Error {
    Error::Invalid(format!("a task of the server broke off: {error}"))
}
