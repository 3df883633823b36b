//! Commands of a sandbox: started, found, signalled, forgotten.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use forkyard_guest::proto::{InitBody, InitOk, Start};
use tokio::sync::oneshot;

use super::{LiveSandbox, RETURN_DETACHED, Reply};
use crate::command::RunningCommand;
use crate::error::{Error, Result};
use crate::link::Answer;
use crate::model::{CommandId, CommandSpec};

impl LiveSandbox {
    pub(super) fn commands(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<RunningCommand>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its commands, running and ended, in the order of their start.
    pub fn list_commands(&self) -> Vec<Arc<RunningCommand>> {
        self.commands().values().cloned().collect()
    }

    /// One of its commands.
    pub fn command(&self, id: CommandId) -> Result<Arc<RunningCommand>> {
        self.commands()
            .get(&id.0)
            .cloned()
            .ok_or(Error::NoCommand { sandbox: self.id.to_string(), command: id.0 })
    }

    /// Starts a command.
    pub async fn start(&self, spec: CommandSpec) -> Result<Arc<RunningCommand>> {
        self.check_running()?;
        let later = self.start_later(spec).await?;
        self.started(later).await
    }

    /// Asks for a command before the sandbox is ready: it is started as soon as it is.
    pub(crate) async fn start_later(
        &self,
        spec: CommandSpec,
    ) -> Result<oneshot::Receiver<Answer<Reply>>> {
        let start = to_start(spec, &self.record().1.default_argv)?;
        self.ask_later(InitBody::Start(Box::new(start)), &[]).await
    }

    pub(crate) async fn started(
        &self,
        later: oneshot::Receiver<Answer<Reply>>,
    ) -> Result<Arc<RunningCommand>> {
        match self.answered(later).await? {
            (InitOk::Started { command, .. }, _) => self.command(CommandId(command.id)),
            _ => Err(self.gone()),
        }
    }

    /// Takes up the commands that a clone began its life with.
    pub(crate) async fn take_up_commands(&self) -> Result<()> {
        let (InitOk::Commands(states), _) = self.ask(InitBody::List, &[]).await? else {
            return Err(self.gone());
        };
        for state in states {
            self.ask(InitBody::Adopt { command: state.id }, &[]).await?;
        }
        Ok(())
    }

    /// Takes up the commands that another server started.
    pub(crate) async fn adopt_commands(&self) -> Result<()> {
        let (InitOk::Commands(states), _) = self.ask(InitBody::List, &[]).await? else {
            return Err(self.gone());
        };
        self.adopting.store(true, Ordering::Relaxed);
        for state in states {
            // The reply registers it.
            self.ask(InitBody::Adopt { command: state.id }, &[]).await?;
        }
        self.adopting.store(false, Ordering::Relaxed);
        let detached = self.list_commands().into_iter().filter(|c| c.info().detach);
        let detached: Vec<_> = detached.collect();
        if !detached.is_empty() {
            tokio::spawn(async move {
                tokio::time::sleep(RETURN_DETACHED).await;
                for command in detached {
                    command.release();
                }
            });
        }
        Ok(())
    }

    /// Sends a signal to a command's process group.
    pub async fn signal(&self, id: CommandId, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::Invalid(format!("signal {signal}: not from 1 to 64")));
        }
        self.ask(InitBody::Signal { command: id.0, signal }, &[]).await?;
        Ok(())
    }

    /// Ends a command's stdin: end of file for a pipe, Ctrl-D for a terminal.
    pub async fn close_stdin(&self, command: &RunningCommand) -> Result<()> {
        if command.close_stdin().await? {
            self.ask(InitBody::CloseStdin { command: command.id().0 }, &[]).await?;
        }
        Ok(())
    }

    /// Ends a command: SIGTERM, a second later SIGKILL.
    pub async fn stop(&self, id: CommandId) -> Result<()> {
        self.ask(InitBody::Stop { command: id.0 }, &[]).await?;
        Ok(())
    }

    /// Forgets an ended command and its output.
    pub async fn forget(&self, id: CommandId) -> Result<()> {
        self.ask(InitBody::Forget { command: id.0 }, &[]).await?;
        self.commands().remove(&id.0);
        Ok(())
    }
}

/// Checks a command and turns it into what init takes.
fn to_start(spec: CommandSpec, default_argv: &[String]) -> Result<Start> {
    let mut argv = spec.entrypoint.clone().unwrap_or_default();
    argv.extend(spec.argv.iter().cloned());
    let (argv, shell) = match (spec.argv.is_empty(), spec.shell) {
        (false, None) => (argv, false),
        (true, Some(line)) => (vec![line], true),
        (true, None) if !argv.is_empty() => (argv, false),
        (true, None) if spec.entrypoint.is_none() && !default_argv.is_empty() => {
            (default_argv.to_vec(), false)
        }
        (true, None) => return Err(Error::Invalid("no command given".to_owned())),
        (false, Some(_)) => {
            return Err(Error::Invalid("both `argv` and `shell` given: give one".to_owned()));
        }
    };
    for text in argv.iter().chain(spec.env.keys()).chain(spec.env.values()).chain(&spec.cwd) {
        if text.contains('\0') {
            return Err(Error::Invalid("command with a NUL byte".to_owned()));
        }
    }
    if let Some(name) = spec.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(Error::Invalid(format!("`{name}` is no name of a variable")));
    }
    Ok(Start {
        argv,
        shell,
        env: spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: spec.cwd,
        user: spec.user,
        tty: spec.tty.map(|size| (size.rows, size.cols)),
        stdin: spec.stdin,
        detach: spec.detach,
        timeout_ms: spec.timeout_ms,
    })
}
