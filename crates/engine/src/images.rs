//! The images of a store, and what a sandbox's root is made of.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkyard_guest::proto::{MountSource, Overlay};
use forkyard_image::host::{self, HostImage};
pub use forkyard_image::{BadPlatform, ImportOptions, Platform, Progress, PullOptions, Step};
use forkyard_image::{Hold, Image, Layer, LayerStore, Limits, Ownership, StoreError};
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::ids::Mode;
use crate::layout::Layout;
use crate::model::{ImageConfig, ImageDetails, ImageInfo, Pruned};
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
    /// Held while it is prepared, so that this is done once for all who ask at the same time.
    host: Mutex<Option<(Instant, Arc<HostImage>)>>,
}

/// An image that was just added.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) info: ImageInfo,
    /// Whether another one had its name.
    pub(crate) replaced: bool,
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
    pub(crate) entrypoint: Vec<String>,
    /// The entrypoint, then the command.
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

    /// Everything about an image, `host` too.
    pub async fn inspect(&self, name: &str) -> Result<ImageDetails> {
        if name == HOST {
            let host = self.host().await?;
            let trees = std::iter::once(&host.skeleton).chain(&host.trees);
            return Ok(ImageDetails {
                name: HOST.to_owned(),
                digest: String::new(),
                platform: Some(forkyard_image::Platform::host().to_string()),
                size: 0,
                created_at: None,
                layers: trees.map(|tree| tree.display().to_string()).collect(),
                config: ImageConfig::default(),
            });
        }
        let (image, at) = self.find_dated(name)?;
        let layer = |layer: &Layer| match layer {
            Layer::Stored(digest) => digest.to_string(),
            Layer::Directory(path) => path.display().to_string(),
        };
        Ok(ImageDetails {
            digest: image.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            platform: image.platform.as_ref().map(ToString::to_string),
            size: image.size,
            created_at: Some(at),
            layers: image.layers.iter().map(layer).collect(),
            config: image.config,
            name: image.name,
        })
    }

    pub(crate) async fn import(
        &self,
        path: PathBuf,
        options: ImportOptions,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Added> {
        let (layers, unpacker) = (self.layers.clone(), self.unpacker.clone());
        let fetched = tokio::task::spawn_blocking(move || {
            forkyard_image::import(&path, &options, &layers, &unpacker, &progress)
        });
        let fetched = fetched.await.map_err(joined)??;
        self.add(&fetched.image, fetched.holds)
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
        options: PullOptions,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Added> {
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
    fn add(&self, image: &Image, holds: Vec<Hold>) -> Result<Added> {
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
        let replaced = self.store.image(&image.name)?.is_some_and(|before| before != json);
        self.store.put_image(&image.name, &json)?;
        drop(holds);
        Ok(Added { info: info(image, crate::clock::now()), replaced })
    }

    /// Forgets an image; its layers are [`Images::sweep`]'s to remove.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        self.store.remove_image(name).map(drop)
    }

    /// Removes the layers that no image has and no sandbox is made of: `mounted` are the
    /// directories that sandboxes are made of. What is being pulled or imported stays.
    pub(crate) async fn sweep(&self, mounted: BTreeSet<PathBuf>) -> Result<Pruned> {
        let mut used = HashSet::new();
        for (_, _, json) in self.store.images()? {
            used.extend(parse(&json)?.layers);
        }
        let (layers, unpacker) = (self.layers.clone(), self.unpacker.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let mut pruned = Pruned::default();
            for facts in layers.list()? {
                let layer = Layer::Stored(facts.diff_id.clone());
                if used.contains(&layer) || mounted.contains(&layer.path(&layers)) {
                    continue;
                }
                match layers.remove(&facts.diff_id, &unpacker) {
                    Ok(()) => {
                        pruned.layers += 1;
                        pruned.bytes += facts.size;
                    }
                    Err(StoreError::Busy(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(pruned)
        });
        Ok(removed.await.map_err(joined)??)
    }

    /// Removes parts of downloads that nobody goes on with; how many bytes.
    pub(crate) async fn prune_downloads(&self) -> Result<u64> {
        let layers = self.layers.clone();
        let removed = tokio::task::spawn_blocking(move || layers.prune_downloads());
        Ok(removed.await.map_err(joined)??)
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

    /// The same with the time when it was added.
    fn find_dated(&self, name: &str) -> Result<(Image, u64)> {
        let image = self.find(name)?;
        let listed = self.store.images()?.into_iter().find(|(listed, ..)| *listed == image.name);
        Ok((image, listed.map_or(0, |(_, at, _)| at)))
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
            base: Vec::new(),
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
                argv: [config.entrypoint.as_slice(), &config.cmd].concat(),
                entrypoint: config.entrypoint,
            },
            landlock: false,
        })
    }

    async fn host(&self) -> Result<Arc<HostImage>> {
        let mut kept = self.host.lock().await;
        if let Some((at, image)) = &*kept
            && at.elapsed() < HOST_FRESH
        {
            return Ok(Arc::clone(image));
        }
        let layers = self.layers.clone();
        let unpacker = self.unpacker.clone();
        let image = tokio::task::spawn_blocking(move || host::prepare(&layers, &unpacker))
            .await
            .map_err(joined)??;
        let image: Arc<HostImage> = Arc::new(image);
        *kept = Some((Instant::now(), Arc::clone(&image)));
        Ok(image)
    }
}

fn host_rootfs(host: &HostImage) -> Rootfs {
    let mut sources = vec![source(&host.skeleton)];
    let mut overlays = vec![Overlay {
        target: "/".to_owned(),
        lowers: vec![0],
        base: Vec::new(),
        name: "root".to_owned(),
    }];
    for tree in &host.trees {
        let target = tree.to_string_lossy().into_owned();
        let name = target.trim_matches('/').replace('/', "-");
        overlays.push(Overlay { target, lowers: vec![sources.len()], base: Vec::new(), name });
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
