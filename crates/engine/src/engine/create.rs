//! Making a sandbox: decide what it is, write it down, have its init cloned, wait for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use forkyard_guest::proto::{InitError, MountSource, Place, Setup, VolumeMount};
use forkyard_sys::channel;

use super::{Engine, SETUP_WAIT};
use crate::cgroup::Group;
use crate::clock::now;
use crate::command::RunningCommand;
use crate::cradle::{Cradle, place};
use crate::error::{Error, Result};
use crate::images::Rootfs;
use crate::model::{CommandSpec, Net, RestoreReport, Sandbox, SandboxId, SandboxSpec, State};
use crate::sandbox::{Internal, LiveSandbox, as_record};
use crate::spawner::Template;

impl Engine {
    /// Makes a sandbox with a session and waits until it is usable.
    pub async fn create(self: &Arc<Self>, spec: SandboxSpec) -> Result<Arc<LiveSandbox>> {
        self.create_reported(spec).await.map(|(sandbox, _)| sandbox)
    }

    /// As [`Engine::create`]; tells how it went where the sandbox goes on from a snapshot.
    pub async fn create_reported(
        self: &Arc<Self>,
        spec: SandboxSpec,
    ) -> Result<(Arc<LiveSandbox>, Option<RestoreReport>)> {
        if let Some(from) = spec.from.clone() {
            let (sandbox, report) = self.create_from(&from, spec).await?;
            return Ok((sandbox, Some(report)));
        }
        let (sandbox, ready) = self.begin(spec, Purpose::Keep).await?;
        self.finish(&sandbox, ready).await?;
        Ok((sandbox, None))
    }

    /// Makes a sandbox without a session and starts a command in it. An ephemeral one is removed
    /// with its command, by whoever follows that: see [`Engine::remove_if_ephemeral`].
    pub async fn run(
        self: &Arc<Self>,
        spec: SandboxSpec,
        command: CommandSpec,
        ephemeral: bool,
    ) -> Result<(Arc<LiveSandbox>, Arc<RunningCommand>)> {
        if spec.from.is_some() {
            let what = "`run` takes an image: create a sandbox from the snapshot, and run it there";
            return Err(Error::Invalid(what.to_owned()));
        }
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
        mut spec: SandboxSpec,
        purpose: Purpose,
    ) -> Result<(Arc<LiveSandbox>, Ready)> {
        crate::check::spec(&spec)?;
        crate::workspace::resolve(&mut spec, self.layout.root())?;
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
        let sandbox = Sandbox::creating(id, image, None, spec);
        setup.deadline = sandbox.deadline;
        let live = self.register(sandbox, internal)?;
        let made = async {
            let site = self.lay_out(&live, cradle)?;
            self.spawn(&live, site, setup, Maker::Spawner).await
        };
        match made.await {
            Ok(ready) => {
                self.expect_another();
                Ok((live, ready))
            }
            Err(error) => Err(self.undo(&live, error).await),
        }
    }

    /// Writes a sandbox down.
    pub(super) fn register(
        &self,
        sandbox: Sandbox,
        internal: Internal,
    ) -> Result<Arc<LiveSandbox>> {
        let written = as_record(&sandbox, &internal).and_then(|record| self.store.insert(&record));
        let live = LiveSandbox::new(Arc::clone(&self.store), sandbox, internal);
        if let Err(error) = written {
            self.release(&live);
            return Err(error);
        }
        self.index().by_id.insert(live.id().clone(), Arc::clone(&live));
        Ok(live)
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
        let mut overlays = rootfs.overlays;
        if let Some(workspace) = &spec.workspace {
            crate::workspace::add(workspace, &mut sources, &mut overlays, &mut volumes);
        }
        let config = rootfs.config;
        let workdir = spec.workdir.clone().or(spec.workspace.as_ref().map(|w| w.target.clone()));
        let mut env = config.env;
        env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
        let setup = Setup {
            id: id.to_string(),
            forks: 0,
            hostname: spec.name.clone().unwrap_or_else(|| id.to_string()),
            host_network: spec.net == Net::Host,
            overlays: overlays.clone(),
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
            make_workdir: workdir.is_none() && config.workdir.is_some(),
            workdir: workdir.or(config.workdir).unwrap_or_else(|| "/".to_owned()),
            session: true,
            deadline: None,
        };
        let internal = Internal {
            slot,
            generation: 1,
            overlays,
            sources,
            bases: Vec::new(),
            group: None,
            entrypoint: config.entrypoint,
            default_argv: config.argv,
            ephemeral: false,
            oom_kills: 0,
            rest_ms: None,
        };
        (internal, setup)
    }

    /// Makes a sandbox's directories, groups and sockets.
    pub(super) fn lay_out(&self, live: &LiveSandbox, cradle: Option<Group>) -> Result<Site> {
        let id = live.id();
        self.layout.make_sandbox(id)?;
        let limits = live.info().spec.limits;
        let group = Self::groups(&self.cgroups, id, &limits, cradle)?;
        // Found by its name again, should the server die before it is written down.
        live.record().1.group = Some(group.clone());
        let path = self.layout.socket(id);
        let listener = channel::listen_at(&path)
            .map_err(Error::io(format!("listening at {}", path.display())))?;
        let (ours, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        Ok(Site { place: place(&self.mode, live.internal().slot, &group), listener, ours, theirs })
    }

    /// Has a sandbox's init cloned.
    pub(super) async fn spawn(
        self: &Arc<Self>,
        live: &Arc<LiveSandbox>,
        site: Site,
        mut setup: Setup,
        maker: Maker<'_>,
    ) -> Result<Ready> {
        let Site { place, listener, ours, theirs } = site;
        let sources = crate::base::sources(&live.internal(), &mut setup);
        let spawned = match maker {
            Maker::Spawner => self.spawner.spawn(place, sources, setup, theirs, &listener).await?,
            Maker::Template(template) => {
                template.spawn(place, sources, setup, theirs, &listener).await?
            }
        };
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

    pub(super) async fn finish_inner(&self, live: &LiveSandbox, ready: Ready) -> Result<()> {
        let pid = self.await_ready(live, ready).await?;
        live.change("start", "", |sandbox, _| {
            sandbox.state = State::Running;
            sandbox.started_at = Some(now());
            sandbox.pid = Some(pid);
        })
    }

    /// Waits until init has set the sandbox up; its process id on the host.
    pub(super) async fn await_ready(&self, live: &LiveSandbox, ready: Ready) -> Result<u32> {
        let Ready { pid, ready } = ready;
        match tokio::time::timeout(SETUP_WAIT, ready).await {
            Ok(Ok(Ok(()))) => Ok(pid),
            Ok(Ok(Err(InitError::Setup(failure)))) => Err(Error::Kernel(failure)),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(_)) => Err(Error::Gone(live.id().to_string())),
            Err(_) => Err(Error::Invalid("setting the sandbox up took too long".into())),
        }
    }

    /// Removes a sandbox that could not be made, and gives the error back.
    pub(super) async fn undo(self: &Arc<Self>, live: &Arc<LiveSandbox>, error: Error) -> Error {
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

/// Who clones a sandbox's init.
pub(super) enum Maker<'a> {
    /// The spawner.
    Spawner,
    /// Who holds the picture that it goes on from.
    Template(&'a Template),
}

/// Where a sandbox's init comes, and what it is reached by.
pub(super) struct Site {
    place: Place,
    listener: OwnedFd,
    ours: OwnedFd,
    theirs: OwnedFd,
}

/// What tells that a sandbox is set up.
pub(super) struct Ready {
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
