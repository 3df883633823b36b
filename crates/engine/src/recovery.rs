//! Takes over what a killed server left: finishes or undoes what was cut off, and removes what
//! nobody owns.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forkyard_guest::proto::{InitBody, InitRequest, encode};
use forkyard_sys::channel;
use rustix::process::{Pid, PidfdFlags};

use crate::engine::{Engine, Found};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::model::{SandboxId, State};
use crate::sandbox::{Internal, LiveSandbox};
use crate::store::Record;

/// How long clients of a killed server have to come back to their commands.
const RETURN_WAIT: Duration = Duration::from_secs(15);

/// How long an init may take from being told to end to its end: it may still be set up.
const END_WAIT: Duration = Duration::from_secs(10);

/// Brings store, host and memory to agree.
pub(crate) async fn recover(engine: &Arc<Engine>) -> Result<()> {
    let records = engine.store.sandboxes()?;
    sweep_groups(engine, &records)?;
    for record in records {
        let id = record.sandbox.id.clone();
        let internal: Internal = match serde_json::from_str(&record.internal) {
            Ok(internal) => internal,
            Err(error) => {
                tracing::error!(sandbox = %id, %error, "unreadable record: removing the sandbox");
                engine.layout.discard(&engine.layout.sandbox(&id))?;
                engine.store.remove(&id, "unreadable record")?;
                continue;
            }
        };
        let live = engine.take_up(&record, internal);
        if let Err(error) = recover_one(engine, &live).await {
            tracing::error!(sandbox = %id, %error, "recovering");
            live.kill();
            engine.write_end(&live, "not recovered");
        }
    }
    sweep_files(engine)?;
    engine.recover_snapshots()?;
    engine.sweep_bases()?;
    let engine = Arc::downgrade(engine);
    tokio::spawn(async move {
        tokio::time::sleep(RETURN_WAIT).await;
        if let Some(engine) = engine.upgrade() {
            engine.end_unattended().await;
        }
    });
    Ok(())
}

async fn recover_one(engine: &Arc<Engine>, live: &Arc<LiveSandbox>) -> Result<()> {
    match live.state() {
        State::Ended => Ok(()),
        // Neither was ever said to be there: undone, or finished.
        State::Creating | State::Deleting => {
            end_init(&engine.layout.socket(live.id())).await;
            engine.delete(live).await
        }
        State::Paused | State::Resuming => {
            // What is on disk of it is whole, whatever happens to what is left beside it.
            if let Err(error) = engine.recover_paused(live).await {
                tracing::error!(sandbox = %live.id(), %error, "recovering a paused sandbox");
            }
            Ok(())
        }
        State::Running | State::Resetting => match find(engine, live) {
            Ok(found) => take_over(engine, live, found).await,
            Err(error) => {
                tracing::info!(sandbox = %live.id(), %error, "its init is gone");
                let reason = match live.info().deadline {
                    Some(at) if at <= crate::clock::now() => "deadline",
                    _ => "its processes are gone",
                };
                engine.write_end(live, reason);
                live.mark_ended();
                Ok(())
            }
        },
    }
}

async fn take_over(engine: &Arc<Engine>, live: &Arc<LiveSandbox>, found: Found) -> Result<()> {
    // It was ready long ago: nothing tells so again.
    drop(live.connect(found.socket, found.pidfd, engine.on_end())?);
    if let Err(error) = engine.follow(live).await {
        tracing::warn!(sandbox = %live.id(), %error, "it cannot be forked, kept or paused");
        live.set_foreign();
    }
    if live.state() == State::Resetting {
        engine.reset_now(live).await?;
    }
    sweep_uppers(engine, live)?;
    engine.sweep_paused(live.id())?;
    live.adopt_commands().await?;
    engine.settle_seal(live, None).await?;
    engine.store.event(live.id(), "takeover", "")?;
    Ok(())
}

/// Removes what a reset that was done but for this has left of the generation before.
fn sweep_uppers(engine: &Engine, live: &LiveSandbox) -> Result<()> {
    let (dir, current) = (engine.layout.sandbox(live.id()), live.internal().generation_name());
    let failed = || Error::io(format!("reading {}", dir.display()));
    for entry in std::fs::read_dir(&dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        // Beside the generations is a layer that is in use as long as the sandbox is.
        if is_generation(&entry.file_name()) && entry.file_name() != current.as_str() {
            engine.layout.discard(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a directory of a sandbox has the name of a generation's uppers.
pub(crate) fn is_generation(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('g'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Ends an init of which nothing but its socket is known, and waits until it is gone. Without
/// cgroups there is no other way to find one.
pub(crate) async fn end_init(socket: &Path) {
    let Ok(socket) = channel::connect_to(socket) else { return };
    let Ok(link) = Link::<()>::new(socket) else { return };
    let request = InitRequest { seq: 0, body: InitBody::End };
    let ending = async {
        if let Ok(bytes) = encode(&request)
            && link.send(&bytes, &[]).await.is_ok()
        {
            while link.receive().await.is_some() {}
        }
    };
    if tokio::time::timeout(END_WAIT, ending).await.is_err() {
        tracing::error!("an init that nobody knows does not end");
    }
}

/// Connects to the init of a sandbox, and makes sure that it is the one that was written down.
fn find(engine: &Engine, live: &LiveSandbox) -> Result<Found> {
    let path = engine.layout.socket(live.id());
    let failed = || Error::io(format!("connecting to {}", path.display()));
    let pid = live
        .info()
        .pid
        .and_then(|pid| Pid::from_raw(pid as i32))
        .ok_or_else(|| failed()(io::ErrorKind::NotFound.into()))?;
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed()(e.into()))?;
    // After the pidfd: when the socket answers now, its process was alive then.
    let socket = channel::connect_to(&path).map_err(failed())?;
    Ok(Found { socket, pidfd })
}

/// Kills what lives in groups of ours that no running sandbox has: half-made sandboxes too.
fn sweep_groups(engine: &Engine, records: &[Record]) -> Result<()> {
    let running =
        |record: &&Record| matches!(record.sandbox.state, State::Running | State::Resetting);
    let names: Vec<String> = records
        .iter()
        .filter(running)
        .filter_map(|record| serde_json::from_str::<Internal>(&record.internal).ok())
        .filter_map(|internal| Some(internal.group?.name().to_owned()))
        .collect();
    let keep: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for swept in engine.cgroups.sweep(&keep)? {
        match swept.error {
            None => tracing::info!(group = swept.name, "removed a group that nobody owns"),
            Some(error) => tracing::error!(group = swept.name, %error, "removing a group"),
        }
    }
    Ok(())
}

/// Removes directories and sockets of no sandbox.
fn sweep_files(engine: &Engine) -> Result<()> {
    for dir in [engine.layout.sandboxes(), engine.layout.run()] {
        let failed = || Error::io(format!("reading {}", dir.display()));
        for entry in std::fs::read_dir(&dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let known = name
                .to_str()
                .is_some_and(|name| name.parse::<SandboxId>().is_ok() && engine.find(name).is_ok());
            if !known {
                engine.layout.discard(&entry.path())?;
            }
        }
    }
    // Of forks that were cut off.
    let templates = engine.layout.templates();
    let failed = || Error::io(format!("reading {}", templates.display()));
    for entry in std::fs::read_dir(&templates).map_err(failed())? {
        engine.layout.discard(&entry.map_err(failed())?.path())?;
    }
    engine.trash.sweep();
    Ok(())
}
