//! Snapshots: a sandbox written to disk while it goes on.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use forkyard_guest::proto::{self, InitBody, Label, TakeError, TakeReport, WriteReport};
use forkyard_sys::channel;
use tokio::sync::oneshot;

use super::Engine;
use crate::clock::now;
use crate::error::{Error, Result};
use crate::ids::Mode;
use crate::model::{
    NewSnapshot, Phase, SandboxId, Snapshot, SnapshotId, SnapshotKind, SnapshotReport,
    SnapshotSpec, SnapshotState, State,
};
use crate::sandbox::{Internal, LiveSandbox};
use crate::snapshots::{Entry, Kept};
use crate::spawner::Template;

impl Engine {
    /// All snapshots, by age.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.snapshots.list().iter().map(|entry| entry.info()).collect()
    }

    /// The snapshot of this id or name.
    pub fn find_snapshot(&self, key: &str) -> Result<Snapshot> {
        Ok(self.snapshots.find(key)?.info())
    }

    /// Takes a snapshot of a running sandbox, which goes on as soon as it is taken; it is written
    /// to disk after that. All of it, or nothing.
    pub async fn snapshot(
        self: &Arc<Self>,
        live: &Arc<LiveSandbox>,
        spec: SnapshotSpec,
    ) -> Result<NewSnapshot> {
        if let Some(name) = &spec.name {
            crate::check::name(name)?;
        }
        Self::can_stop(live)?;
        let begun = Instant::now();
        let alone = live.without_template().await;
        let turn = live.transition.lock().await;
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        let entry = self.snapshots.add(plan(live, &spec))?;
        let taken = self.take_snapshot(live, &entry, spec.files_only).await;
        drop((turn, alone));
        let (template, report) = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(self.undo_snapshot(&entry, error)),
        };
        let mut report = snapshot_report(begun, report);
        let (engine, written) = (Arc::clone(self), Arc::clone(&entry));
        let (sender, done) = oneshot::channel();
        self.behind(async move {
            let result = engine.write_snapshot(&written, template).await;
            if let Err(error) = &result {
                tracing::error!(snapshot = %written.id(), %error, "writing a snapshot");
            }
            let _ = sender.send(result);
            Ok(())
        });
        if spec.wait {
            let gone = || Error::Gone(live.id().to_string());
            let written: WriteReport = done.await.map_err(|_| gone())??;
            report.write = phases(written.parts);
            report.durable_us = Some(begun.elapsed().as_micros() as u64);
        }
        Ok(NewSnapshot { snapshot: entry.info(), report })
    }

    /// Removes a snapshot.
    pub async fn remove_snapshot(&self, key: &str) -> Result<()> {
        let entry = self.snapshots.find(key)?;
        let _alone = entry.used.write().await;
        if !entry.kept().is_ready() {
            let what = format!("snapshot {key}: it is being written");
            return Err(Error::Busy(what));
        }
        self.snapshots.forget(&entry)?;
        // Sandboxes may go on with its files.
        let own = self.layout.snapshot(entry.id()).join(forkyard_guest::SNAPSHOT_FILES);
        let kept = entry.kept();
        self.release_bases(kept.internal.bases.iter().map(|base| &base.dir).chain([&own]));
        self.trash.sweep();
        Ok(())
    }

    /// Has the spawner be where it has rights over a sandbox of an earlier server.
    pub(crate) async fn follow(&self, live: &LiveSandbox) -> Result<()> {
        if self.mode == Mode::Root {
            return Ok(());
        }
        let (_, mut fds) = live.ask(InitBody::Namespace, &[]).await?;
        let namespace = fds.pop().ok_or_else(|| Error::Gone(live.id().to_string()))?;
        self.spawner.join(&namespace)
    }

    /// Whether processes of a sandbox can be stopped from here.
    pub(super) fn can_stop(live: &LiveSandbox) -> Result<()> {
        if live.is_foreign() {
            let why = "an earlier server made it, in a user namespace that this one has no rights \
                       over";
            return Err(Error::NotForked(TakeError::Refused(why.to_owned())));
        }
        Ok(())
    }

    async fn take_snapshot(
        &self,
        live: &LiveSandbox,
        entry: &Entry,
        files_only: bool,
    ) -> Result<(Template, TakeReport)> {
        let dir = self.layout.snapshot_part(entry.id());
        let (template, holder, source) = self.hold(live, &dir).await?;
        let (template, setup, report) = if files_only {
            let (setup, report) = template.take_files(source, &holder).await?;
            (template, setup, report)
        } else {
            let taken = template.take(source, None, &holder).await?.finish().await?;
            (taken.template, taken.setup, taken.report)
        };
        self.snapshots.change(entry, |kept| kept.setup = Some(setup))?;
        Ok((template, report))
    }

    /// Makes the directory that a snapshot is written to, and has init await a template.
    pub(super) async fn hold(
        &self,
        live: &LiveSandbox,
        dir: &Path,
    ) -> Result<(Template, OwnedFd, proto::Source)> {
        self.settle_seal(live, None).await?;
        let files = dir.join(forkyard_guest::SNAPSHOT_FILES);
        std::fs::create_dir_all(&files)
            .map_err(Error::io(format!("making {}", files.display())))?;
        let template = self.spawner.template(None).await?;
        let (holder, theirs) = channel::pair().map_err(Error::io("socketpair"))?;
        live.ask(InitBody::Hold, &[theirs.as_fd()]).await?;
        let internal = live.internal();
        let uppers = self.layout.sandbox(live.id()).join(internal.generation_name());
        let source = proto::Source {
            init: live.info().pid.ok_or_else(|| Error::Gone(live.id().to_string()))?,
            ids: self.mode.ids(internal.slot),
            uppers: uppers.to_string_lossy().into_owned(),
            into: files.to_string_lossy().into_owned(),
            base: None,
            seal: None,
            layers: crate::base::layers_of_root(&internal),
        };
        Ok((template, holder, source))
    }

    pub(super) fn label(&self, image: &str) -> Label {
        Label { image: image.to_owned(), ids: self.mode.word().to_owned() }
    }

    /// Has what was taken written to disk, and writes down that it is there.
    async fn write_snapshot(&self, entry: &Entry, template: Template) -> Result<WriteReport> {
        let (part, whole) =
            (self.layout.snapshot_part(entry.id()), self.layout.snapshot(entry.id()));
        let label = self.label(&entry.info().image);
        let written = async {
            let report = template.persist(&part, label).await?;
            // Its memory is needed no more.
            drop(template);
            settle(part, whole).await?;
            self.snapshots.change(entry, |kept| {
                kept.snapshot.state = SnapshotState::Ready;
                kept.snapshot.ready_at = Some(now());
                kept.snapshot.size = Some(report.length);
            })?;
            self.store.flush().await?;
            let detail = format!("{} is on disk", entry.id());
            self.store.event(&entry.info().sandbox, "snapshot", &detail)?;
            Ok(report)
        };
        match written.await {
            Ok(report) => Ok(report),
            Err(error) => Err(self.undo_snapshot(entry, error)),
        }
    }

    /// Removes a snapshot that could not be taken or written, and gives the error back.
    fn undo_snapshot(&self, entry: &Entry, error: Error) -> Error {
        let dirs = [self.layout.snapshot_part(entry.id()), self.layout.snapshot(entry.id())];
        let undone = dirs.iter().try_for_each(|dir| self.layout.discard(dir));
        let undone = undone.and_then(|()| self.snapshots.forget(entry));
        self.release_bases(entry.kept().internal.bases.iter().map(|base| &base.dir));
        let detail = format!("{} was not taken: {error}", entry.id());
        let told = self.store.event(&entry.info().sandbox, "snapshot", &detail);
        if let Err(undo) = undone.and(told) {
            tracing::error!(snapshot = %entry.id(), error = %undo, "undoing a snapshot");
        }
        self.trash.sweep();
        error
    }

    /// Removes what a killed server left half done of snapshots.
    pub(crate) fn recover_snapshots(&self) -> Result<()> {
        for entry in self.snapshots.list() {
            let is_there = self.layout.snapshot(entry.id()).is_dir();
            let ready = entry.kept().is_ready();
            if ready && !is_there {
                tracing::error!(snapshot = %entry.id(), "its directory is gone");
            }
            if !ready || !is_there {
                self.snapshots.forget(&entry)?;
            }
        }
        let dir = self.layout.snapshots();
        let failed = || Error::io(format!("reading {}", dir.display()));
        for found in std::fs::read_dir(&dir).map_err(failed())? {
            let found = found.map_err(failed())?;
            let name = found.file_name();
            let files = found.path().join(forkyard_guest::SNAPSHOT_FILES);
            if !self.snapshots.knows(&name.to_string_lossy())? && !self.is_needed(&files) {
                self.layout.discard(&found.path())?;
            }
        }
        Ok(())
    }
}

/// Gives a directory that is all on disk its name, for good.
pub(super) async fn settle(part: PathBuf, whole: PathBuf) -> Result<()> {
    let failed = || Error::io(format!("naming {}", whole.display()));
    let to = whole.clone();
    let named = tokio::task::spawn_blocking(move || {
        std::fs::rename(&part, &to)?;
        let parent = to.parent().ok_or(std::io::ErrorKind::NotFound)?;
        std::fs::File::open(parent)?.sync_all()
    });
    named.await.map_err(|e| failed()(e.into()))?.map_err(failed())
}

fn plan(live: &LiveSandbox, spec: &SnapshotSpec) -> Kept {
    let sandbox = live.info();
    let internal = live.internal();
    Kept {
        snapshot: Snapshot {
            id: SnapshotId(SandboxId::new().to_string()),
            name: spec.name.clone(),
            sandbox: sandbox.id,
            image: sandbox.image,
            kind: if spec.files_only { SnapshotKind::Files } else { SnapshotKind::Memory },
            state: SnapshotState::Writing,
            created_at: now(),
            ready_at: None,
            size: None,
        },
        spec: sandbox.spec,
        internal: Internal { group: None, ephemeral: false, oom_kills: 0, ..internal },
        setup: None,
    }
}

pub(super) fn phases(parts: Vec<(String, u64)>) -> Vec<Phase> {
    parts.into_iter().map(|(name, us)| Phase { name, us }).collect()
}

pub(super) fn snapshot_report(begun: Instant, report: TakeReport) -> SnapshotReport {
    let [processes, threads, files] = report.counts;
    SnapshotReport {
        stopped_us: report.stopped_us,
        taken_us: begun.elapsed().as_micros() as u64,
        durable_us: None,
        stop: phases(report.parts),
        write: Vec::new(),
        memory: report.memory,
        processes,
        threads,
        files,
    }
}
