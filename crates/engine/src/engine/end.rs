//! Ends of sandboxes, and of the server: what is done at once, and what behind the answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forkyard_guest::proto::InitBody;

use super::Engine;
use crate::clock::now;
use crate::command::RunningCommand;
use crate::error::Result;
use crate::model::State;
use crate::sandbox::LiveSandbox;

/// How long the end of a killed sandbox is waited for. Only a process that hangs in the kernel
/// takes more than milliseconds.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Engine {
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
    pub(super) async fn end_for_good(&self, live: &Arc<LiveSandbox>, detail: &str) -> Result<bool> {
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

    pub(super) async fn remove_rest(&self, live: &LiveSandbox, detail: &str) -> Result<()> {
        live.reaped(KILL_WAIT).await?;
        self.clean_up(live)?;
        self.layout.discard(&self.layout.sandbox(live.id()))?;
        let removed = self.store.remove(live.id(), detail);
        self.release_bases(live.internal().bases.iter().map(|base| &base.dir));
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
    pub(super) fn clean_up(&self, live: &LiveSandbox) -> Result<()> {
        let _ = std::fs::remove_file(self.layout.socket(live.id()));
        if let Some(group) = live.record().1.group.take() {
            group.remove(Duration::from_millis(200))?;
        }
        Ok(())
    }

    /// Writes down that a sandbox's init is gone, and why.
    pub(super) fn ended(&self, live: &Arc<LiveSandbox>) {
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

    /// Does something behind an answer, after which nobody waits for it but [`Engine::settle`].
    pub(super) fn behind(
        self: &Arc<Self>,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.behind.send_modify(|n| *n += 1);
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::error!(%error, "after an answer; the next start will end it");
            }
            engine.behind.send_modify(|n| *n -= 1);
        });
    }
}
