//! Paused sandboxes: on disk, with no process and no memory.
//!
//! A sandbox is either running or paused, whole, whenever the server dies: it stays stopped from
//! the moment that is written to disk, and what tells which of the two it is, is its state in the
//! store. What of the other is left is removed by whoever comes next.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkyard_guest::proto::{self, Setup};

use super::Engine;
use super::create::Maker;
use super::restore::{restore_report, unfit};
use super::snapshot::{phases, settle, snapshot_report};
use crate::clock::now;
use crate::error::{Error, Result};
use crate::model::{Paused, Resumed, SandboxId, State};
use crate::sandbox::LiveSandbox;
use crate::spawner::Template;

/// How long processes that were killed may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Writes a running sandbox to disk and ends its processes. Time does not go on for it.
    pub async fn pause(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<Paused> {
        Self::can_stop(live)?;
        let begun = Instant::now();
        let _alone = live.without_template().await;
        let _turn = live.transition.lock().await;
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        let (part, whole) = self.pause_dirs(live.id());
        let written = self.write_paused(live, &part, &whole).await;
        let (template, paused) = match written {
            Ok(written) => written,
            Err(error) => {
                // It goes on as it was.
                self.sweep_paused(live.id())?;
                self.trash.sweep();
                return Err(error);
            }
        };
        // From here on it is paused, whoever dies.
        let change = live.change("pause", "", |sandbox, internal| {
            sandbox.state = State::Paused;
            sandbox.pid = None;
            internal.rest_ms = sandbox.deadline.take().map(|at| at.saturating_sub(now()));
            internal.ephemeral = false;
        });
        if let Err(error) = change {
            self.sweep_paused(live.id())?;
            self.trash.sweep();
            return Err(error);
        }
        let flushed = self.store.flush().await;
        live.kill();
        // Who traces them is in the way of their end.
        drop(template);
        live.wait_gone(KILL_WAIT).await?;
        self.clean_up(live)?;
        self.discard_uppers(live)?;
        flushed?;
        let mut report = snapshot_report(begun, paused.taken);
        report.write = phases(paused.written.parts);
        report.durable_us = Some(report.taken_us);
        // They never went on.
        report.stopped_us = report.stop.iter().chain(&report.write).map(|phase| phase.us).sum();
        Ok(Paused { sandbox: live.info(), report })
    }

    async fn write_paused(
        &self,
        live: &LiveSandbox,
        part: &Path,
        whole: &Path,
    ) -> Result<(Template, proto::Paused)> {
        self.layout.discard(part)?;
        self.layout.discard(whole)?;
        let (template, holder, source) = self.hold(live, part).await?;
        let label = self.label(&live.info().image);
        let paused = template.pause(source, part, label, &holder).await?;
        settle(part.to_owned(), whole.to_owned()).await?;
        Ok((template, paused))
    }

    /// Has a paused sandbox go on.
    pub async fn resume(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<Resumed> {
        let begun = Instant::now();
        let _turn = live.transition.lock().await;
        if live.state() != State::Paused {
            return Err(live.wrong_state());
        }
        let (_, whole) = self.pause_dirs(live.id());
        let template = self.spawner.template(None).await?;
        let restored = template.restore(&whole, self.mode.word(), None).await?;
        let mut report = restore_report(begun, &restored);
        let nothing = || Error::NotRestored("the snapshot is damaged: it has no memory".to_owned());
        let setup = *restored.setup.ok_or_else(nothing)?;
        live.change("resuming", "", |sandbox, internal| {
            sandbox.state = State::Resuming;
            internal.generation += 1;
        })?;
        if let Err(error) = self.build_again(live, setup, &template).await {
            let error = unfit(error);
            self.pause_again(live, &error).await?;
            return Err(error);
        }
        report.build = phases(live.rebuilt());
        report.running_us = begun.elapsed().as_micros() as u64;
        let engine = Arc::clone(self);
        self.behind(async move {
            engine.layout.discard(&whole)?;
            engine.trash.sweep();
            Ok(())
        });
        Ok(Resumed { sandbox: live.info(), report })
    }

    async fn build_again(
        self: &Arc<Self>,
        live: &Arc<LiveSandbox>,
        mut setup: Setup,
        template: &Template,
    ) -> Result<()> {
        live.revive().await;
        let internal = live.internal();
        let deadline = internal.rest_ms.map(|ms| now().saturating_add(ms));
        setup.generation = internal.generation_name();
        setup.deadline = deadline;
        let site = self.lay_out(live, None)?;
        let ready = self.spawn(live, site, setup, Maker::Template(template)).await?;
        let pid = self.await_ready(live, ready).await?;
        live.take_up_commands().await?;
        live.change("resume", "", |sandbox, internal| {
            sandbox.state = State::Running;
            sandbox.pid = Some(pid);
            sandbox.deadline = deadline;
            internal.rest_ms = None;
        })
    }

    /// Undoes a resume that failed.
    async fn pause_again(&self, live: &Arc<LiveSandbox>, error: &Error) -> Result<()> {
        if live.has_init() {
            live.kill();
            live.wait_gone(KILL_WAIT).await?;
        } else {
            // The spawner may have died between making one and telling of it.
            crate::recovery::end_init(&self.layout.socket(live.id())).await;
        }
        self.clean_up(live)?;
        self.discard_uppers(live)?;
        live.change("pause", &format!("not resumed: {error}"), |sandbox, _| {
            sandbox.state = State::Paused;
        })
    }

    /// Brings what a server left behind of a sandbox that is paused, or was about to be resumed, to
    /// being paused.
    pub(crate) async fn recover_paused(&self, live: &Arc<LiveSandbox>) -> Result<()> {
        crate::recovery::end_init(&self.layout.socket(live.id())).await;
        live.record().1.group = None;
        self.clean_up(live)?;
        self.discard_uppers(live)?;
        let (part, whole) = self.pause_dirs(live.id());
        self.layout.discard(&part)?;
        if !whole.is_dir() {
            self.write_end(live, "what was on disk of it is gone");
            live.mark_ended();
            return Ok(());
        }
        if live.state() == State::Resuming {
            live.change("pause", "", |sandbox, _| sandbox.state = State::Paused)?;
        }
        Ok(())
    }

    /// Removes what a pause that was cut off has left of a sandbox that runs.
    pub(crate) fn sweep_paused(&self, id: &SandboxId) -> Result<()> {
        let (part, whole) = self.pause_dirs(id);
        self.layout.discard(&part)?;
        self.layout.discard(&whole)
    }

    /// Where a sandbox is written to when it is paused, and where it is when all of it is there.
    fn pause_dirs(&self, id: &SandboxId) -> (PathBuf, PathBuf) {
        let dir = self.layout.sandbox(id);
        (dir.join("paused.part"), dir.join("paused"))
    }

    /// Removes what a sandbox wrote, of which the copy on disk has all.
    fn discard_uppers(&self, live: &LiveSandbox) -> Result<()> {
        let dir = self.layout.sandbox(live.id());
        let failed = || Error::io(format!("reading {}", dir.display()));
        for entry in std::fs::read_dir(&dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if crate::recovery::is_generation(&entry.file_name()) {
                self.layout.discard(&entry.path())?;
            }
        }
        self.trash.sweep();
        Ok(())
    }
}
