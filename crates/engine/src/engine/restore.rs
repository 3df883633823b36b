//! Sandboxes that go on from a snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use forkyard_guest::proto::{Layer, MountSource, Restored, Setup, VolumeMount};

use super::Engine;
use super::create::{Maker, Ready};
use super::snapshot::phases;
use crate::base::{BASES_MAX, Base};
use crate::error::{Error, Result};
use crate::model::{Limits, Net, RestoreReport, Sandbox, SandboxId, SandboxSpec, SnapshotKind};
use crate::sandbox::{Internal, LiveSandbox};
use crate::snapshots::{Entry, Kept};
use crate::spawner::Template;

impl Engine {
    /// Makes a sandbox from the snapshot that the spec names, and waits until it runs.
    pub(super) async fn create_from(
        self: &Arc<Self>,
        from: &str,
        spec: SandboxSpec,
    ) -> Result<(Arc<LiveSandbox>, RestoreReport)> {
        let begun = Instant::now();
        let entry = self.snapshots.find(from)?;
        let _used = entry.used.read().await;
        let kept = entry.kept();
        let Kept { snapshot, internal, setup, .. } = kept.clone();
        if !kept.is_ready() {
            return Err(Error::Busy(format!(
                "snapshot {from}: it is being written; `forkyard snapshots` tells when it is ready"
            )));
        }
        let whole = merge(spec, &kept)?;
        crate::check::spec(&whole)?;
        self.cgroups.check(&whole.limits)?;
        check_sources(&entry, &internal.sources)?;
        let dir = self.layout.snapshot(entry.id());
        let template = self.spawner.template(None).await?;
        let mut internal = internal;
        // They are read once in the life of this server, which alone may write to them.
        let known = (internal.bases.len() < BASES_MAX).then(|| entry.layers());
        let restored = template.restore(&dir, self.mode.word(), known).await?;
        entry.know_layers(&restored.layers);
        internal.bases.splice(..0, base(&dir, &restored.layers));
        let mut report = restore_report(begun, &restored);
        let lost = || Error::Invalid(format!("snapshot {from}: how it was set up is not known"));
        let setup = restored.setup.map(|setup| *setup).or(setup).ok_or_else(lost)?;
        let copy = Copy { spec: whole, image: snapshot.image, parent: snapshot.sandbox, internal };
        let fresh = snapshot.kind == SnapshotKind::Files;
        let (live, ready) = self.begin_copy(copy, setup, &template, fresh).await?;
        let finished = async {
            self.finish_inner(&live, ready).await?;
            live.take_up_commands().await
        };
        if let Err(error) = finished.await {
            return Err(self.undo(&live, unfit(error)).await);
        }
        report.build = phases(live.rebuilt());
        report.running_us = begun.elapsed().as_micros() as u64;
        Ok((live, report))
    }

    /// Writes a sandbox down that is made from a template, and has its init cloned. With `fresh`,
    /// nothing runs in it yet.
    async fn begin_copy(
        self: &Arc<Self>,
        copy: Copy,
        mut setup: Setup,
        template: &Template,
        fresh: bool,
    ) -> Result<(Arc<LiveSandbox>, Ready)> {
        let Copy { spec, image, parent, internal } = copy;
        let (id, slot) = (SandboxId::new(), self.reserve_slot()?);
        if let Some(name) = &spec.name
            && let Err(error) = self.take_name(&id, name).await
        {
            self.release_slot(slot);
            return Err(error);
        }
        let mut internal = Internal { slot, generation: 1, ..internal };
        if let Some(state) = internal.sources.get_mut(setup.state) {
            state.path = self.layout.sandbox(&id).to_string_lossy().into_owned();
        }
        setup.id = id.to_string();
        setup.hostname = spec.name.clone().unwrap_or_else(|| id.to_string());
        setup.generation = internal.generation_name();
        setup.session = true;
        if fresh {
            setup.forks = 0;
            change_setup(&mut setup, &mut internal, &spec);
        }
        let sandbox = Sandbox::creating(id, image, Some(parent), spec);
        setup.deadline = sandbox.deadline;
        let live = self.register(sandbox, internal)?;
        let made = async {
            let site = self.lay_out(&live, None)?;
            self.spawn(&live, site, setup, Maker::Template(template)).await
        };
        match made.await {
            Ok(ready) => Ok((live, ready)),
            Err(error) => Err(self.undo(&live, error).await),
        }
    }
}

/// What a sandbox is made from.
struct Copy {
    spec: SandboxSpec,
    image: String,
    parent: SandboxId,
    internal: Internal,
}

/// What a sandbox is asked to be that goes on from a snapshot: as the original, but for what is
/// asked for and can be had.
fn merge(asked: SandboxSpec, kept: &Kept) -> Result<SandboxSpec> {
    let memory = kept.snapshot.kind == SnapshotKind::Memory;
    let refuse = |what: &str| Err(Error::Invalid(what.to_owned()));
    if asked.image.is_some() {
        return refuse("image: a snapshot has its own; leave `--image` out, or `--from`");
    }
    if asked.net == Net::Host && kept.spec.net != Net::Host {
        return refuse("network: it is what it was when the snapshot was taken");
    }
    if asked.workspace.is_some() {
        return refuse("workspace: it is what it was when the snapshot was taken");
    }
    if memory && !asked.volumes.is_empty() {
        return refuse(
            "volumes: the processes of the snapshot go on with those that they had; a snapshot \
             taken with `--files-only` lets you choose",
        );
    }
    if memory && (asked.user.is_some() || asked.workdir.is_some() || !asked.env.is_empty()) {
        return refuse(
            "user, directory and variables: the processes of the snapshot go on with those that \
             they had; a snapshot taken with `--files-only` lets you choose",
        );
    }
    let mut whole = kept.spec.clone();
    whole.from = asked.from;
    whole.name = asked.name;
    whole.timeout_ms = asked.timeout_ms.or(whole.timeout_ms);
    if asked.limits != Limits::default() {
        whole.limits = asked.limits;
    }
    whole.user = asked.user.or(whole.user);
    whole.workdir = asked.workdir.or(whole.workdir);
    whole.env.extend(asked.env);
    whole.volumes.extend(asked.volumes);
    whole.metadata.extend(asked.metadata);
    Ok(whole)
}

/// Has a sandbox that starts anew be set up as it was asked to be.
fn change_setup(setup: &mut Setup, internal: &mut Internal, spec: &SandboxSpec) {
    for (name, value) in &spec.env {
        let before = format!("{name}=");
        setup.env.retain(|variable| !variable.starts_with(&before));
        setup.env.push(format!("{name}={value}"));
    }
    if let Some(user) = &spec.user {
        setup.user.clone_from(user);
    }
    if let Some(workdir) = &spec.workdir {
        setup.workdir.clone_from(workdir);
        setup.make_workdir = false;
    }
    for volume in &spec.volumes {
        if setup.volumes.iter().any(|known| known.target == volume.target) {
            continue;
        }
        internal.sources.push(MountSource {
            path: volume.source.clone(),
            read_only: volume.read_only,
            recursive: true,
        });
        let source = internal.sources.len() - 1;
        setup.volumes.push(VolumeMount { source, target: volume.target.clone() });
    }
}

/// What new sandboxes share of a snapshot's files.
fn base(dir: &Path, layers: &[Layer]) -> Option<Base> {
    let overlays: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    let dir = dir.join(forkyard_guest::SNAPSHOT_FILES);
    (!overlays.is_empty()).then_some(Base { dir, overlays })
}

/// What its root is made of must still be there.
fn check_sources(entry: &Entry, sources: &[MountSource]) -> Result<()> {
    // The sandbox's own directory is another one now.
    let own = format!("/{}", entry.info().sandbox);
    let mut others = sources.iter().filter(|source| !source.path.ends_with(&own));
    match others.find(|source| !std::path::Path::new(&source.path).exists()) {
        None => Ok(()),
        Some(gone) => {
            let what = format!("snapshot {}: {} of its image is gone", entry.id(), gone.path);
            Err(Error::Invalid(what))
        }
    }
}

/// That files of an image are others now is no failure of the host's.
pub(super) fn unfit(error: Error) -> Error {
    match error {
        Error::Kernel(failure) if failure.is_unfit() => Error::NotRestored(failure.what),
        error => error,
    }
}

pub(super) fn restore_report(begun: Instant, restored: &Restored) -> RestoreReport {
    let [processes, threads, files] = restored.counts;
    RestoreReport {
        read_us: begun.elapsed().as_micros() as u64,
        read: phases(restored.parts.clone()),
        memory: restored.memory,
        processes,
        threads,
        files,
        ..RestoreReport::default()
    }
}
