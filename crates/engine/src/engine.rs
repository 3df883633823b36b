//! The engine: what a server does, without HTTP.

mod create;
mod diff;
mod end;
mod fork;
mod index;
mod pause;
mod reset;
mod restore;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::sync::{Notify, watch};

use crate::base::Holds;
use crate::cgroup::Cgroups;
use crate::cradle::Nursery;
use crate::error::{Error, Result};
use crate::ids::Mode;
use crate::images::{Added, Images, ImportOptions, Progress, PullOptions};
use crate::layout::Layout;
use crate::model::{Event, ImageInfo, Pruned, SandboxId, Usage};
use crate::sandbox::LiveSandbox;
use crate::snapshots::Snapshots;
use crate::spawner::Spawner;
use crate::store::Store;
use crate::trash::Trash;

pub use diff::Diff;

/// How long setting a sandbox up may take. Only a host that is out of memory or whose disk
/// hangs takes more than milliseconds.
const SETUP_WAIT: Duration = Duration::from_secs(30);

/// All that a server has.
#[derive(Debug)]
pub struct Engine {
    pub(crate) layout: Layout,
    pub(crate) store: Arc<Store>,
    pub(crate) mode: Mode,
    pub(crate) cgroups: Cgroups,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) images: Images,
    pub(crate) snapshots: Snapshots,
    pub(crate) trash: Trash,
    pub(crate) nursery: Nursery,
    pub(crate) holds: Holds,
    /// What is still being written down or removed behind answers.
    behind: watch::Sender<usize>,
    /// A sandbox went out of the index.
    released: Notify,
    sandboxes: Mutex<Index>,
    _lock: File,
}

/// The sandboxes, by what they are found by.
#[derive(Debug, Default)]
struct Index {
    by_id: BTreeMap<SandboxId, Arc<LiveSandbox>>,
    names: BTreeMap<String, SandboxId>,
    slots: BTreeSet<u32>,
}

impl Engine {
    /// Opens a store: takes its lock, starts the spawner, and takes over what lives in it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another server serves it, or what the host refused.
    pub async fn open(root: &Path) -> Result<Arc<Self>> {
        let layout = Layout::open(root)?;
        let lock = take_lock(&layout)?;
        let store = Arc::new(Store::open(&layout.database())?);
        let mode = Mode::detect()?;
        let cgroups = Cgroups::detect(&tag(root))?;
        let spawner = Arc::new(Spawner::start(&mode)?);
        let images = Images::open(&layout, Arc::clone(&store), &mode, Arc::clone(&spawner)).await?;
        let snapshots = Snapshots::open(Arc::clone(&store))?;
        let trash = Trash::new(layout.trash(), Arc::clone(&spawner));
        let engine = Arc::new(Self {
            layout,
            store,
            mode,
            cgroups,
            spawner,
            images,
            snapshots,
            trash,
            nursery: Nursery::default(),
            holds: Holds::default(),
            behind: watch::channel(0).0,
            released: Notify::new(),
            sandboxes: Mutex::default(),
            _lock: lock,
        });
        crate::recovery::recover(&engine).await?;
        engine.expect_another();
        Ok(engine)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Which ids its sandboxes have: `root`, `subids` or `single`.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Imports an image from a path on the host; `progress` is called from other threads.
    pub async fn import_image(
        &self,
        path: PathBuf,
        options: ImportOptions,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageInfo> {
        self.added(self.images.import(path, options, progress).await?).await
    }

    /// Pulls an image from a registry; `progress` is called from other threads.
    pub async fn pull_image(
        &self,
        reference: &str,
        options: PullOptions,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<ImageInfo> {
        self.added(self.images.pull(reference, options, progress).await?).await
    }

    /// An image that takes another one's name leaves that one's layers to nobody.
    async fn added(&self, added: Added) -> Result<ImageInfo> {
        if added.replaced {
            self.images.sweep(self.mounted()).await?;
        }
        Ok(added.info)
    }

    /// Removes an image that no sandbox is made from, and all layers that nothing uses any more.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        if name == crate::images::HOST {
            let what = "image host: it is this machine's own, and takes no room";
            return Err(Error::Invalid(what.to_owned()));
        }
        let image = self.images.find(name)?.name;
        let same = |used: &str| self.images.find(used).is_ok_and(|found| found.name == image);
        self.wait_leaving(|live| same(&live.info().image)).await;
        if let Some(user) = self.list().iter().find(|live| same(&live.info().image)) {
            return Err(Error::ImageInUse { image, sandbox: user.id().to_string() });
        }
        if let Some(user) = self.snapshots().iter().find(|snapshot| same(&snapshot.image)) {
            return Err(Error::ImageInSnapshot { image, snapshot: user.id.to_string() });
        }
        self.images.forget(&image)?;
        self.images.sweep(self.mounted()).await.map(drop)
    }

    /// Removes what is left of pulls that failed, and whatever else of images nothing uses.
    pub async fn prune_images(&self) -> Result<Pruned> {
        let mut pruned = self.images.sweep(self.mounted()).await?;
        pruned.bytes += self.images.prune_downloads().await?;
        Ok(pruned)
    }

    /// What the mounts of all sandboxes, and of those to come of snapshots, are made of.
    fn mounted(&self) -> BTreeSet<PathBuf> {
        let sources = |live: &Arc<LiveSandbox>| live.internal().sources;
        let kept =
            self.snapshots.list().into_iter().flat_map(|entry| entry.kept().internal.sources);
        let mounted = self.list().iter().flat_map(sources).chain(kept).collect::<Vec<_>>();
        mounted.into_iter().map(|source| source.path.into()).collect()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All sandboxes, by age.
    pub fn list(&self) -> Vec<Arc<LiveSandbox>> {
        let mut all: Vec<_> = self.index().by_id.values().cloned().collect();
        // Ids are in order but for those that were chosen ahead.
        all.sort_by_cached_key(|live| live.record().0.created_at);
        all
    }

    /// How many run or are about to.
    pub fn alive(&self) -> usize {
        self.index().by_id.values().filter(|s| s.state().has_processes()).count()
    }

    /// The sandbox of this id or name.
    pub fn find(&self, key: &str) -> Result<Arc<LiveSandbox>> {
        let index = self.index();
        let by_id = key.parse().ok().and_then(|id: SandboxId| index.by_id.get(&id));
        by_id
            .or_else(|| index.names.get(key).and_then(|id| index.by_id.get(id)))
            .cloned()
            .ok_or_else(|| Error::NoSandbox(key.to_owned()))
    }

    /// What a sandbox went through, also one that is gone, by its id.
    pub fn events(&self, key: &str) -> Result<Vec<Event>> {
        let id = match self.find(key) {
            Ok(sandbox) => sandbox.id().clone(),
            Err(error) => key.parse().map_err(|_| error)?,
        };
        let events = self.store.events(&id)?;
        if events.is_empty() { Err(Error::NoSandbox(key.to_owned())) } else { Ok(events) }
    }

    /// What a sandbox uses.
    pub fn usage(&self, sandbox: &LiveSandbox) -> Option<Usage> {
        sandbox.state().has_processes().then(|| sandbox.usage()).flatten()
    }
}

/// Tells stores on one host apart in the names of cgroups.
fn tag(root: &Path) -> String {
    // FNV-1a: must be the same in every version, and need not be more.
    let hash =
        root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

fn take_lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let failed = || Error::io(format!("locking {}", path.display()));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let pid = std::process::id().to_string();
            file.set_len(0).map_err(failed())?;
            std::os::unix::fs::FileExt::write_all_at(&file, pid.as_bytes(), 0).map_err(failed())?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked {
            store: layout.root().display().to_string(),
            pid: std::fs::read_to_string(&path).ok().filter(|pid| !pid.is_empty()),
        }),
        Err(e) => Err(failed()(e.into())),
    }
}

/// A descriptor of a sandbox's control socket and init, found again by a later server.
pub(crate) struct Found {
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
}
