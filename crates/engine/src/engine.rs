//! The engine: what a server does, without HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forkyard_guest::proto::{InitBody, InitError, MountSource, Setup, VolumeMount};
use forkyard_sys::channel;
use rustix::fs::FlockOperation;
use tokio::sync::{Notify, watch};

use crate::cgroup::{Cgroups, Group};
use crate::clock::now;
use crate::command::RunningCommand;
use crate::cradle::{Cradle, Nursery, place};
use crate::error::{Error, Result};
use crate::ids::{Mode, SLOTS};
use crate::images::{Added, Images, ImportOptions, Progress, PullOptions, Rootfs};
use crate::layout::Layout;
use crate::model::{
    CommandSpec, Event, ImageInfo, Net, Pruned, Sandbox, SandboxId, SandboxSpec, State, Usage,
};
use crate::sandbox::{Internal, LiveSandbox, as_record};
use crate::spawner::Spawner;
use crate::store::{Record, Store};
use crate::trash::Trash;

/// How long the end of a killed sandbox is waited for. Only a process that hangs in the kernel
/// takes more than milliseconds.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How long setting a sandbox up may take. Only a host that is out of memory or whose disk
/// hangs takes more than milliseconds.
const SETUP_WAIT: Duration = Duration::from_secs(30);

/// How long something is waited for that is as good as gone.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// All that a server has.
#[derive(Debug)]
pub struct Engine {
    pub(crate) layout: Layout,
    pub(crate) store: Arc<Store>,
    pub(crate) mode: Mode,
    pub(crate) cgroups: Cgroups,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) images: Images,
    pub(crate) trash: Trash,
    pub(crate) nursery: Nursery,
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
        let trash = Trash::new(layout.trash(), Arc::clone(&spawner));
        let engine = Arc::new(Self {
            layout,
            store,
            mode,
            cgroups,
            spawner,
            images,
            trash,
            nursery: Nursery::default(),
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
        let image = self.images.find(name)?.name;
        let same = |used: &str| self.images.find(used).is_ok_and(|found| found.name == image);
        self.wait_leaving(|live| same(&live.info().image)).await;
        if let Some(user) = self.list().iter().find(|live| same(&live.info().image)) {
            return Err(Error::ImageInUse { image, sandbox: user.id().to_string() });
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

    /// What the mounts of all sandboxes are made of.
    fn mounted(&self) -> BTreeSet<PathBuf> {
        let sources = |live: &Arc<LiveSandbox>| live.internal().sources;
        self.list().iter().flat_map(sources).map(|source| source.path.into()).collect()
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
        self.index().by_id.values().filter(|s| s.state() != State::Ended).count()
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
        (sandbox.state() != State::Ended).then(|| sandbox.usage()).flatten()
    }

    // Create.

    /// Makes a sandbox with a session and waits until it is usable.
    pub async fn create(self: &Arc<Self>, spec: SandboxSpec) -> Result<Arc<LiveSandbox>> {
        let (sandbox, ready) = self.begin(spec, Purpose::Keep).await?;
        self.finish(&sandbox, ready).await?;
        Ok(sandbox)
    }

    /// Makes a sandbox without a session and starts a command in it. An ephemeral one is removed
    /// with its command, by whoever follows that: see [`Engine::remove_if_ephemeral`].
    pub async fn run(
        self: &Arc<Self>,
        spec: SandboxSpec,
        command: CommandSpec,
        ephemeral: bool,
    ) -> Result<(Arc<LiveSandbox>, Arc<RunningCommand>)> {
        let (sandbox, ready) = self.begin(spec, Purpose::Run { ephemeral }).await?;
        let mut command = command;
        if command.entrypoint.is_none() && !command.argv.is_empty() {
            command.entrypoint = Some(sandbox.internal().entrypoint);
        }
        let result = async {
            // Already on its way while the sandbox is being set up.
            let later = sandbox.start_later(command).await?;
            self.finish_inner(&sandbox, ready).await?;
            sandbox.started(later).await
        };
        match result.await {
            Ok(command) => Ok((sandbox, command)),
            Err(error) => Err(self.undo(&sandbox, error).await),
        }
    }

    /// Writes a sandbox down and has its init cloned.
    async fn begin(
        self: &Arc<Self>,
        spec: SandboxSpec,
        purpose: Purpose,
    ) -> Result<(Arc<LiveSandbox>, Ready)> {
        crate::check::spec(&spec)?;
        self.cgroups.check(&spec.limits)?;
        let image = spec.image.clone().unwrap_or_else(|| crate::images::HOST.to_owned());
        let rootfs = self.images.rootfs(&image).await?;
        // What was prepared has a network of its own.
        let cradle = if spec.net == Net::None { self.nursery.take() } else { None };
        let (id, slot, cradle) = match cradle {
            Some(Cradle { id, slot, group }) => (id, slot, Some(group)),
            None => (SandboxId::new(), self.reserve_slot()?, None),
        };
        if let Some(name) = &spec.name
            && let Err(error) = self.take_name(&id, name).await
        {
            match cradle {
                Some(group) => self.remove_cradle(Cradle { id, slot, group }),
                None => self.release_slot(slot),
            }
            return Err(error);
        }
        let (mut internal, mut setup) = self.plan(&id, &spec, rootfs, slot);
        setup.session = purpose == Purpose::Keep;
        internal.ephemeral = purpose == Purpose::Run { ephemeral: true };
        let sandbox = Sandbox {
            id: id.clone(),
            name: spec.name.clone(),
            image,
            state: State::Creating,
            reason: None,
            created_at: now(),
            started_at: None,
            ended_at: None,
            deadline: spec.timeout_ms.map(|ms| now().saturating_add(ms)),
            parent: None,
            pid: None,
            spec,
            usage: None,
        };
        setup.deadline = sandbox.deadline;
        let live = LiveSandbox::new(Arc::clone(&self.store), sandbox.clone(), internal.clone());
        let written = as_record(&sandbox, &internal).and_then(|record| self.store.insert(&record));
        if let Err(error) = written {
            self.release(&live);
            return Err(error);
        }
        self.index().by_id.insert(id, Arc::clone(&live));
        match self.spawn(&live, setup, cradle).await {
            Ok(ready) => {
                self.expect_another();
                Ok((live, ready))
            }
            Err(error) => Err(self.undo(&live, error).await),
        }
    }

    /// Decides what a sandbox is made of.
    fn plan(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        rootfs: Rootfs,
        slot: u32,
    ) -> (Internal, Setup) {
        let mut sources = rootfs.sources;
        let mut add = |path: String, read_only, recursive| {
            sources.push(MountSource { path, read_only, recursive });
            sources.len() - 1
        };
        let state = add(self.layout.sandbox(id).to_string_lossy().into_owned(), false, false);
        let dev = add("/dev".to_owned(), true, true);
        let mut volumes: Vec<VolumeMount> = Vec::new();
        if spec.net == Net::Host {
            let source = add("/sys".to_owned(), true, true);
            volumes.push(VolumeMount { source, target: "/sys".to_owned() });
        }
        for volume in &spec.volumes {
            let source = add(volume.source.clone(), volume.read_only, true);
            volumes.push(VolumeMount { source, target: volume.target.clone() });
        }
        let config = rootfs.config;
        let mut env = config.env;
        env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
        let setup = Setup {
            hostname: spec.name.clone().unwrap_or_else(|| id.to_string()),
            host_network: spec.net == Net::Host,
            overlays: rootfs.overlays.clone(),
            state,
            generation: "g1".to_owned(),
            dev,
            volumes,
            tmp_size: tmp_size(spec.limits.memory),
            resolv_conf: (spec.net == Net::Host)
                .then(|| std::fs::read("/etc/resolv.conf").ok())
                .flatten(),
            cgroup2: self.cgroups.offers(crate::cgroup::Controller::Memory)
                == Some(crate::cgroup::Version::V2),
            // In the host's network, its scope keeps the host's abstract sockets away.
            landlock: rootfs.landlock || spec.net == Net::Host,
            env,
            user: spec.user.clone().or(config.user).unwrap_or_else(|| "0".to_owned()),
            make_workdir: spec.workdir.is_none() && config.workdir.is_some(),
            workdir: spec.workdir.clone().or(config.workdir).unwrap_or_else(|| "/".to_owned()),
            session: true,
            deadline: None,
        };
        let internal = Internal {
            slot,
            generation: 1,
            overlays: rootfs.overlays,
            sources,
            group: None,
            entrypoint: config.entrypoint,
            default_argv: config.argv,
            ephemeral: false,
            oom_kills: 0,
        };
        (internal, setup)
    }

    /// Makes directories, groups and sockets, and has init cloned.
    async fn spawn(
        self: &Arc<Self>,
        live: &Arc<LiveSandbox>,
        setup: Setup,
        cradle: Option<Group>,
    ) -> Result<Ready> {
        let id = live.id().clone();
        let internal = live.internal();
        self.layout.make_sandbox(&id)?;
        let limits = live.info().spec.limits;
        let group = Self::groups(&self.cgroups, &id, &limits, cradle)?;
        // Found by its name again, should the server die before it is written down.
        live.record().1.group = Some(group.clone());
        let path = self.layout.socket(&id);
        let listener = channel::listen_at(&path)
            .map_err(Error::io(format!("listening at {}", path.display())))?;
        let (ours, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        let place = place(&self.mode, internal.slot, &group);
        let spawned = self.spawner.spawn(place, internal.sources, setup, theirs, &listener).await?;
        let pid = spawned.pid;
        let ready = live.connect(ours, spawned.pidfd, self.on_end())?;
        Ok(Ready { pid, ready })
    }

    /// What is done when a sandbox's init is gone.
    pub(crate) fn on_end(self: &Arc<Self>) -> impl FnOnce(Arc<LiveSandbox>) + Send + 'static {
        let engine = Arc::downgrade(self);
        move |live| {
            if let Some(engine) = engine.upgrade() {
                engine.ended(&live);
            }
        }
    }

    async fn finish(self: &Arc<Self>, live: &Arc<LiveSandbox>, ready: Ready) -> Result<()> {
        match self.finish_inner(live, ready).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.undo(live, error).await),
        }
    }

    async fn finish_inner(&self, live: &LiveSandbox, ready: Ready) -> Result<()> {
        let Ready { pid, ready } = ready;
        match tokio::time::timeout(SETUP_WAIT, ready).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(InitError::Setup(failure)))) => return Err(Error::Kernel(failure)),
            Ok(Ok(Err(error))) => return Err(error.into()),
            Ok(Err(_)) => return Err(Error::Gone(live.id().to_string())),
            Err(_) => return Err(Error::Invalid("setting the sandbox up took too long".into())),
        }
        live.change("start", "", |sandbox, _| {
            sandbox.state = State::Running;
            sandbox.started_at = Some(now());
            sandbox.pid = Some(pid);
        })
    }

    /// Removes a sandbox that could not be made, and gives the error back.
    async fn undo(self: &Arc<Self>, live: &Arc<LiveSandbox>, error: Error) -> Error {
        let detail = format!("not made: {error}");
        if !live.has_init() {
            // The spawner may have died between making one and telling of it.
            crate::recovery::end_init(&self.layout.socket(live.id())).await;
        }
        let undone = match self.end_for_good(live, &detail).await {
            Ok(_) => self.remove_rest(live, &detail).await,
            Err(error) => Err(error),
        };
        if let Err(undo) = undone {
            tracing::error!(sandbox = %live.id(), error = %undo, "undoing a failed create");
        }
        error
    }

    /// Takes a range of ids.
    pub(crate) fn reserve_slot(&self) -> Result<u32> {
        let mut index = self.index();
        let slot = (0..SLOTS)
            .find(|slot| !index.slots.contains(slot))
            .ok_or_else(|| Error::Invalid(format!("{SLOTS} sandboxes exist: no more ids")))?;
        index.slots.insert(slot);
        Ok(slot)
    }

    pub(crate) fn release_slot(&self, slot: u32) {
        self.index().slots.remove(&slot);
    }

    /// Takes a name for a sandbox, when need be from one that is about to leave.
    async fn take_name(&self, id: &SandboxId, name: &str) -> Result<()> {
        match self.reserve_name(id, name) {
            Err(Error::NameTaken { .. }) => {
                self.wait_leaving(|live| live.info().name.as_deref() == Some(name)).await;
                self.reserve_name(id, name)
            }
            reserved => reserved,
        }
    }

    fn reserve_name(&self, id: &SandboxId, name: &str) -> Result<()> {
        let mut index = self.index();
        if let Some(by) = index.names.get(name) {
            return Err(Error::NameTaken { name: name.to_owned(), by: by.to_string() });
        }
        if name.parse::<SandboxId>().is_ok_and(|id| index.by_id.contains_key(&id)) {
            return Err(Error::NameTaken { name: name.to_owned(), by: name.to_owned() });
        }
        index.names.insert(name.to_owned(), id.clone());
        Ok(())
    }

    fn release(&self, live: &LiveSandbox) {
        let mut index = self.index();
        index.by_id.remove(live.id());
        let record = live.record();
        index.slots.remove(&record.1.slot);
        if let Some(name) = &record.0.name
            && index.names.get(name) == Some(live.id())
        {
            index.names.remove(name);
        }
        drop((record, index));
        self.released.notify_waiters();
    }

    /// Waits for sandboxes that are on their way out, so that what their user was told is over
    /// stands in nobody's way: the end of a `run` is told before its sandbox is removed.
    pub async fn wait_leaving(&self, concerned: impl Fn(&LiveSandbox) -> bool) {
        let leaving = |live: &LiveSandbox| match live.state() {
            State::Deleting => true,
            State::Running if live.internal().ephemeral => {
                live.list_commands().iter().all(|command| command.info().exit.is_some())
            }
            _ => false,
        };
        let gone = async {
            loop {
                let released = self.released.notified();
                if !self.list().iter().any(|live| concerned(live) && leaving(live)) {
                    return;
                }
                released.await;
            }
        };
        // Too late is not wrong: whoever asked looks again.
        let _ = tokio::time::timeout(LEAVE_WAIT, gone).await;
    }

    /// Takes a sandbox up from the store.
    pub(crate) fn take_up(&self, record: &Record, internal: Internal) -> Arc<LiveSandbox> {
        let slot = internal.slot;
        let live = LiveSandbox::new(Arc::clone(&self.store), record.sandbox.clone(), internal);
        let mut index = self.index();
        index.slots.insert(slot);
        if let Some(name) = &record.sandbox.name {
            index.names.insert(name.clone(), live.id().clone());
        }
        index.by_id.insert(live.id().clone(), Arc::clone(&live));
        live
    }

    /// Removes a sandbox that was made for a command, once nobody follows that any more.
    pub async fn remove_if_ephemeral(self: &Arc<Self>, live: &Arc<LiveSandbox>) {
        let followed = |c: &Arc<RunningCommand>| !c.is_unattended();
        if live.internal().ephemeral
            && !live.list_commands().iter().any(followed)
            && let Err(error) = self.delete(live).await
        {
            tracing::error!(sandbox = %live.id(), %error, "removing after its command");
        }
    }

    /// Ends commands whose clients did not come back after a server was killed.
    pub(crate) async fn end_unattended(self: &Arc<Self>) {
        for live in self.list() {
            for command in live.list_commands().iter().filter(|c| c.is_unattended()) {
                command.release();
                if command.info().exit.is_none() {
                    let _ = live.stop(command.id()).await;
                }
            }
            self.remove_if_ephemeral(&live).await;
        }
    }

    // Reset.

    /// Throws away everything that a sandbox did, and starts it again from its image.
    pub async fn reset(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<()> {
        let _turn = live.transition.lock().await;
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        live.change("reset", "", |sandbox, _| sandbox.state = State::Resetting)?;
        self.reset_now(live).await
    }

    /// The reset of a sandbox that is written down as being reset. Done again, as by a server that
    /// did not hear of its end or did not come to write it down, it changes nothing.
    pub(crate) async fn reset_now(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<()> {
        let internal = live.internal();
        let old = self.layout.sandbox(live.id()).join(internal.generation_name());
        let next = Internal { generation: internal.generation + 1, ..internal };
        let reset = InitBody::Reset { generation: next.generation_name() };
        let done = match tokio::time::timeout(SETUP_WAIT, live.ask(reset, &[])).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(Error::Invalid("resetting the sandbox took too long".to_owned())),
        };
        live.lose_everything();
        live.forget_session().await;
        if let Err(error) = done {
            // Half a reset is no sandbox.
            live.kill();
            return Err(error);
        }
        live.change_in_memory(|sandbox, internal| {
            sandbox.state = State::Running;
            internal.generation = next.generation;
        });
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        self.behind(async move {
            engine.end_reset(&live, next.generation).await?;
            engine.layout.discard(&old)?;
            engine.trash.sweep();
            Ok(())
        });
        Ok(())
    }

    /// Writes down that a reset is over, unless the sandbox has gone on to something else.
    async fn end_reset(&self, live: &LiveSandbox, generation: u32) -> Result<()> {
        let _turn = live.transition.lock().await;
        if live.state() == State::Running && live.internal().generation == generation {
            live.change("ready", "", |_, _| ())?;
        }
        Ok(())
    }

    /// Does something behind an answer, after which nobody waits for it but [`Engine::settle`].
    fn behind(self: &Arc<Self>, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.behind.send_modify(|n| *n += 1);
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::error!(%error, "after an answer; the next start will end it");
            }
            engine.behind.send_modify(|n| *n -= 1);
        });
    }

    // End.

    /// Changes when a sandbox ends; never with `None`.
    pub async fn set_timeout(&self, live: &LiveSandbox, timeout_ms: Option<u64>) -> Result<()> {
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        let at = timeout_ms.map(|ms| now().saturating_add(ms));
        live.change("deadline", "", |sandbox, _| sandbox.deadline = at)?;
        live.ask(InitBody::Deadline { at }, &[]).await?;
        Ok(())
    }

    /// Kills a sandbox, and removes all that there is of it behind the answer: from now on nothing
    /// of it runs, and nobody finds it.
    pub async fn delete(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<()> {
        if self.end_for_good(live, "").await? {
            let (engine, live) = (Arc::clone(self), Arc::clone(live));
            self.behind(async move { engine.remove_rest(&live, "").await });
        }
        Ok(())
    }

    /// Kills what runs of a sandbox and makes nobody find it; false when somebody else did.
    async fn end_for_good(&self, live: &Arc<LiveSandbox>, detail: &str) -> Result<bool> {
        let _turn = live.transition.lock().await;
        if self.find(live.id().as_str()).is_err() {
            return Ok(false);
        }
        let state = live.state();
        match live.change("deleting", detail, |sandbox, _| sandbox.state = State::Deleting) {
            // Removing is the way out of that.
            Err(error) if error.is_full() => {
                tracing::warn!(sandbox = %live.id(), %error, "removing");
            }
            done => done?,
        }
        // init says when all that it started is gone, and then takes its time to go itself.
        if state != State::Running || !live.end().await {
            live.kill();
            live.reaped(KILL_WAIT).await?;
        }
        live.mark_ended();
        self.release(live);
        Ok(true)
    }

    async fn remove_rest(&self, live: &LiveSandbox, detail: &str) -> Result<()> {
        live.reaped(KILL_WAIT).await?;
        self.clean_up(live)?;
        self.layout.discard(&self.layout.sandbox(live.id()))?;
        let removed = self.store.remove(live.id(), detail);
        self.trash.sweep();
        match removed {
            Err(error) if error.is_full() => {
                self.trash.settled().await;
                self.store.remove(live.id(), detail)
            }
            removed => removed,
        }
    }

    /// Removes what an ended sandbox no longer needs: its groups and socket.
    fn clean_up(&self, live: &LiveSandbox) -> Result<()> {
        let _ = std::fs::remove_file(self.layout.socket(live.id()));
        if let Some(group) = live.record().1.group.take() {
            group.remove(Duration::from_millis(200))?;
        }
        Ok(())
    }

    /// Writes down that a sandbox's init is gone, and why.
    fn ended(&self, live: &Arc<LiveSandbox>) {
        let state = live.state();
        if matches!(state, State::Running | State::Resetting) {
            let info = live.info();
            let reason = if info.deadline.is_some_and(|at| at <= now()) {
                "deadline"
            } else if live.had_oom() {
                "out of memory"
            } else {
                "killed"
            };
            self.write_end(live, reason);
        }
        live.mark_ended();
    }

    pub(crate) fn write_end(&self, live: &Arc<LiveSandbox>, reason: &str) {
        let written = live.change("end", reason, |sandbox, _| {
            sandbox.state = State::Ended;
            sandbox.reason = Some(reason.to_owned());
            sandbox.ended_at = Some(now());
            sandbox.pid = None;
        });
        let cleaned = written.and_then(|()| self.clean_up(live));
        if let Err(error) = cleaned {
            tracing::error!(sandbox = %live.id(), %error, "cleaning up behind an ended sandbox");
        }
    }

    /// Kills and removes every sandbox.
    pub async fn delete_all(self: &Arc<Self>) -> Result<()> {
        for live in self.list() {
            self.delete(&live).await?;
        }
        Ok(())
    }

    /// Waits until what was thrown away is gone from the disk.
    pub async fn settle(&self) {
        let _ = self.behind.subscribe().wait_for(|n| *n == 0).await;
        self.trash.settled().await;
    }

    /// Removes what a server that has no sandbox leaves behind on the host.
    pub fn retire(&self) {
        if let Some(cradle) = self.nursery.close() {
            self.remove_cradle(cradle);
        }
        if self.alive() == 0 {
            let swept = self.cgroups.sweep(&BTreeSet::new());
            if let Err(error) = swept.map(drop).and_then(|()| self.cgroups.retire()) {
                tracing::warn!(%error, "removing the base cgroup");
            }
        }
    }
}

/// What a sandbox is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be used: it gets a session.
    Keep,
    /// One command.
    Run {
        /// And then to be removed.
        ephemeral: bool,
    },
}

/// What tells that a sandbox is set up.
struct Ready {
    pid: u32,
    ready: tokio::sync::oneshot::Receiver<std::result::Result<(), InitError>>,
}

/// Size of a sandbox's /tmp and /dev/shm each: half of its memory, or a quarter of the host's, so
/// that filling it up gives ENOSPC before it costs the sandbox or the host its memory.
fn tmp_size(limit: Option<u64>) -> u64 {
    const PAGE: u64 = 4096;
    let info = rustix::system::sysinfo();
    let host = info.totalram as u64 * u64::from(info.mem_unit);
    let size = limit.map_or(host / 4, |limit| (limit / 2).min(host / 4));
    size.max(PAGE) / PAGE * PAGE
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
