//! A live sandbox: its record, its init, its commands and its session.

mod commands;
mod paused;
mod session;
mod template;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forkyard_guest::files::proto::{FileReply, FileRequest};
use forkyard_guest::proto::{
    InitBody, InitError, InitMessage, InitOk, InitRequest, MountSource, Overlay, decode, encode,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::base::Base;
use crate::cgroup::Group;
use crate::clock::now;
use crate::command::RunningCommand;
use crate::error::{Error, Result};
use crate::link::{Answer, Link};
use crate::model::{CommandId, Sandbox, SandboxId, State, Usage};
use crate::session::Session;
use crate::store::{Record, Store};

use template::Keeper;
pub(crate) use template::Turn;

/// How many ended commands of a sandbox are remembered with their output.
const ENDED_KEPT: usize = 64;

/// How long followers of a command that needs none have to come back after a server was killed.
/// It may be stopped by its output meanwhile, so not long.
const RETURN_DETACHED: Duration = Duration::from_secs(2);

/// How long init may take to end what runs before it is killed.
const END_WAIT: Duration = Duration::from_secs(1);

/// What the engine needs to know of a sandbox besides what users see; stored as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Internal {
    /// Which range of host ids it has.
    pub(crate) slot: u32,
    /// Counts its resets; names its uppers.
    pub(crate) generation: u32,
    /// Its root and other overlays.
    pub(crate) overlays: Vec<Overlay>,
    /// What its mounts are made of, but for its bases.
    pub(crate) sources: Vec<MountSource>,
    /// Layers above its image that it shares, the topmost first.
    #[serde(default)]
    pub(crate) bases: Vec<Base>,
    /// Its cgroups.
    pub(crate) group: Option<Group>,
    /// The image's entrypoint.
    #[serde(default)]
    pub(crate) entrypoint: Vec<String>,
    /// Arguments of a command that names none: the image's entrypoint, then its command.
    pub(crate) default_argv: Vec<String>,
    /// Made for one command, to be removed with it.
    #[serde(default)]
    pub(crate) ephemeral: bool,
    /// Processes killed for want of memory when last looked.
    #[serde(default)]
    pub(crate) oom_kills: u64,
    /// What was left of its time when it was paused, in milliseconds.
    #[serde(default)]
    pub(crate) rest_ms: Option<u64>,
}

impl Internal {
    pub(crate) fn generation_name(&self) -> String {
        format!("g{}", self.generation)
    }
}

/// What init says to a request.
type Reply = std::result::Result<InitOk, InitError>;

/// A sandbox that the server knows.
#[derive(Debug)]
pub struct LiveSandbox {
    id: SandboxId,
    store: Arc<Store>,
    record: Mutex<(Sandbox, Internal)>,
    init: Mutex<Option<Arc<Link<Reply>>>>,
    pidfd: Mutex<Option<Arc<OwnedFd>>>,
    commands: Mutex<BTreeMap<u32, Arc<RunningCommand>>>,
    session: tokio::sync::Mutex<Option<Session>>,
    /// The last shell that ended, and the exit code that a shell would report for it.
    session_ended: watch::Sender<(u32, i32)>,
    /// Its init is gone.
    ended: watch::Sender<bool>,
    /// What building it as a clone took: names of parts, microseconds each.
    rebuilt: Mutex<Vec<(String, u64)>>,
    /// When something was last asked of it, for the curious.
    last_used: AtomicU64,
    /// An earlier server made it, and this one's spawner has no rights over it.
    foreign: AtomicBool,
    /// Commands that are taken up were started by another server.
    adopting: AtomicBool,
    /// Reset and delete wait for each other.
    pub(crate) transition: tokio::sync::Mutex<()>,
    /// The template that it was forked by last, for some time.
    keeper: Keeper,
    /// Held by who writes to terminals, and alone by who takes a picture of them.
    pub(crate) typing: Arc<tokio::sync::RwLock<()>>,
}

impl LiveSandbox {
    pub(crate) fn new(store: Arc<Store>, sandbox: Sandbox, internal: Internal) -> Arc<Self> {
        let (session_ended, _) = watch::channel((0, 0));
        let (ended, _) = watch::channel(false);
        Arc::new(Self {
            id: sandbox.id.clone(),
            store,
            record: Mutex::new((sandbox, internal)),
            init: Mutex::default(),
            pidfd: Mutex::default(),
            commands: Mutex::default(),
            session: tokio::sync::Mutex::default(),
            session_ended,
            ended,
            rebuilt: Mutex::default(),
            last_used: AtomicU64::new(now()),
            foreign: AtomicBool::new(false),
            adopting: AtomicBool::new(false),
            transition: tokio::sync::Mutex::default(),
            keeper: Keeper::default(),
            typing: Arc::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// What `inspect` shows, without usage.
    pub fn info(&self) -> Sandbox {
        self.record().0.clone()
    }

    /// What it uses now.
    pub fn usage(&self) -> Option<Usage> {
        let mut usage = self.group()?.usage();
        if let Some(memory) = &mut usage.memory {
            *memory += self.account().map_or(0, |account| account.used().0);
        }
        Some(usage)
    }

    /// Its control groups.
    pub(crate) fn group(&self) -> Option<Group> {
        self.record().1.group.clone()
    }

    /// Notes that the spawner has no rights over it.
    pub(crate) fn set_foreign(&self) {
        self.foreign.store(true, Ordering::Relaxed);
    }

    /// Whether the spawner has no rights over it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Relaxed)
    }

    /// What building it as a clone took.
    pub(crate) fn rebuilt(&self) -> Vec<(String, u64)> {
        self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.record().0.state
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, (Sandbox, Internal)> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn internal(&self) -> Internal {
        self.record().1.clone()
    }

    /// Changes its record: written to the store first, then here.
    pub(crate) fn change(
        &self,
        kind: &str,
        detail: &str,
        change: impl FnOnce(&mut Sandbox, &mut Internal),
    ) -> Result<()> {
        let mut record = self.record();
        let (mut sandbox, mut internal) = record.clone();
        change(&mut sandbox, &mut internal);
        self.store.update(&as_record(&sandbox, &internal)?, kind, detail)?;
        *record = (sandbox, internal);
        Ok(())
    }

    /// Changes its record here; whoever does so sees to it that it is written later.
    pub(crate) fn change_in_memory(&self, change: impl FnOnce(&mut Sandbox, &mut Internal)) {
        let mut record = self.record();
        let (sandbox, internal) = &mut *record;
        change(sandbox, internal);
    }

    // Init.

    /// Talks to init over this socket from now on. Gives what tells when it is ready.
    pub(crate) fn connect(
        self: &Arc<Self>,
        socket: OwnedFd,
        pidfd: OwnedFd,
        on_end: impl FnOnce(Arc<Self>) + Send + 'static,
    ) -> Result<oneshot::Receiver<std::result::Result<(), InitError>>> {
        let link = Arc::new(Link::new(socket).map_err(Error::io("watching init"))?);
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        *self.pidfd.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(pidfd));
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(Arc::clone(self).receive(link, ready, on_end));
        Ok(is_ready)
    }

    async fn receive(
        self: Arc<Self>,
        link: Arc<Link<Reply>>,
        ready: oneshot::Sender<std::result::Result<(), InitError>>,
        on_end: impl FnOnce(Arc<Self>) + Send + 'static,
    ) {
        let mut ready = Some(ready);
        while let Some(message) = link.receive().await {
            match decode::<InitMessage>(&message.bytes) {
                Ok(InitMessage::Ready(result)) => {
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(result);
                    }
                }
                Ok(InitMessage::Rebuilt(parts)) => {
                    *self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner) = parts;
                }
                Ok(InitMessage::Reply { seq, result }) => {
                    // Registered here and not by who waits: its end may be the next message.
                    if let Ok(InitOk::Started { command, .. }) = &result
                        && self.command(CommandId(command.id)).is_err()
                    {
                        self.register(&result, message.fds);
                        link.answer(seq, (result, Vec::new()));
                    } else {
                        link.answer(seq, (result, message.fds));
                    }
                }
                Ok(InitMessage::Began { command, streams }) => {
                    self.register(&Ok(InitOk::Started { command, streams }), message.fds);
                }
                Ok(InitMessage::Warning(what)) => {
                    tracing::warn!(sandbox = %self.id, "{what}");
                }
                Ok(InitMessage::Exited { command, ended }) => {
                    let oom = ended.signal == Some(9) && self.had_oom();
                    if let Ok(command) = self.command(CommandId(command)) {
                        command.end(ended, oom);
                    }
                }
                Ok(InitMessage::SessionEnded { generation, ended }) => {
                    let code = ended.code.or(ended.signal.map(|signal| 128 + signal));
                    self.session_ended.send_replace((generation, code.unwrap_or(255)));
                }
                Err(_) => {}
            }
        }
        link.close();
        drop(ready);
        on_end(self);
    }

    fn register(&self, result: &Reply, fds: Vec<OwnedFd>) {
        if let Ok(InitOk::Started { command, streams }) = result {
            let id = command.id;
            let hold = self.adopting.load(Ordering::Relaxed);
            let typing = Arc::clone(&self.typing);
            match RunningCommand::new(command.clone(), *streams, fds, hold, typing) {
                Ok(command) => {
                    self.commands().insert(id, command);
                    self.forget_oldest();
                }
                Err(error) => tracing::error!(sandbox = %self.id, %error, "taking up a command"),
            }
        }
    }

    /// Keeps the number of ended commands, whose output takes memory, bounded.
    fn forget_oldest(&self) {
        let over = {
            let commands = self.commands();
            let ended = |(_, c): &(&u32, &Arc<RunningCommand>)| c.info().exit.is_some();
            let oldest = commands.iter().filter(ended).map(|(id, _)| *id);
            let count = oldest.clone().count();
            oldest.take(count.saturating_sub(ENDED_KEPT)).collect::<Vec<_>>()
        };
        for id in over {
            self.commands().remove(&id);
            let link = self.init.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(link) = link {
                tokio::spawn(async move {
                    let body = InitBody::Forget { command: id };
                    let message = |seq| encode(&InitRequest { seq, body }).unwrap_or_default();
                    let _ = link.request(message, &[]).await;
                });
            }
        }
    }

    /// Whether processes were killed for want of memory since last asked.
    pub(crate) fn had_oom(&self) -> bool {
        let mut record = self.record();
        let Some(group) = &record.1.group else { return false };
        let Ok(Some(kills)) = group.oom_kills() else { return false };
        let more = kills > record.1.oom_kills;
        record.1.oom_kills = kills;
        more
    }

    /// Sends a request to init; what comes of it can be waited for.
    pub(crate) async fn ask_later(
        &self,
        body: InitBody,
        fds: &[BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<Answer<Reply>>> {
        self.last_used.store(now(), Ordering::Relaxed);
        let link = self.init.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let link = link.ok_or_else(|| self.wrong_state())?;
        let message = |seq| encode(&InitRequest { seq, body }).unwrap_or_default();
        link.request(message, fds).await.map_err(|_| self.gone())
    }

    /// Asks init and waits for the answer.
    pub(crate) async fn ask(
        &self,
        body: InitBody,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer<InitOk>> {
        let answer = self.ask_later(body, fds).await?;
        self.answered(answer).await
    }

    pub(crate) async fn answered(
        &self,
        answer: oneshot::Receiver<Answer<Reply>>,
    ) -> Result<Answer<InitOk>> {
        match answer.await {
            Ok((Ok(ok), fds)) => Ok((ok, fds)),
            Ok((Err(error), _)) => Err(self.init_error(error)),
            Err(_) => Err(self.gone()),
        }
    }

    fn init_error(&self, error: InitError) -> Error {
        match error.into() {
            Error::NoCommand { command, .. } => {
                Error::NoCommand { sandbox: self.id.to_string(), command }
            }
            error => error,
        }
    }

    fn gone(&self) -> Error {
        Error::Gone(self.id.to_string())
    }

    pub(crate) fn wrong_state(&self) -> Error {
        let record = self.record();
        Error::State {
            id: self.id.to_string(),
            state: record.0.state.word(),
            reason: record.0.reason.clone(),
        }
    }

    fn check_running(&self) -> Result<()> {
        if self.state() == State::Running { Ok(()) } else { Err(self.wrong_state()) }
    }

    // Files.

    /// Makes a file request. `io` goes along, a descriptor may come back.
    pub async fn file(
        &self,
        request: FileRequest,
        io: Option<BorrowedFd<'_>>,
    ) -> Result<(FileReply, Option<OwnedFd>)> {
        self.check_running()?;
        let fds: Vec<_> = io.into_iter().collect();
        match self.ask(InitBody::File(Box::new(request)), &fds).await? {
            (InitOk::File(reply), fds) => Ok((reply, fds.into_iter().next())),
            _ => Err(self.gone()),
        }
    }

    // Ends.

    /// Forgets everything that runs in it, as a reset or its end leaves it.
    pub(crate) fn lose_everything(&self) {
        let commands = std::mem::take(&mut *self.commands());
        for command in commands.values() {
            command.lose();
        }
        // Whoever runs a line holds the lock, and learns of the end by `session_ended`.
        self.session_ended.send_replace((u32::MAX, 128 + 9));
    }

    /// After a reset, shells are counted on by init: one more than before.
    pub(crate) async fn forget_session(&self) {
        self.session.lock().await.take();
        self.session_ended.send_replace((0, 0));
    }

    pub(crate) fn mark_ended(&self) {
        self.init.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.let_template_go();
        self.lose_everything();
        self.ended.send_replace(true);
    }

    /// Waits until its init is gone.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Whether its init was ever known.
    pub(crate) fn has_init(&self) -> bool {
        self.pidfd.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Has init kill everything and end. Whether it said in time that nothing runs any more.
    pub(crate) async fn end(&self) -> bool {
        let done = tokio::time::timeout(END_WAIT, self.ask(InitBody::End, &[])).await;
        matches!(done, Ok(Ok(_)))
    }

    /// Kills init, and with it everything.
    pub(crate) fn kill(&self) {
        let pidfd = self.pidfd.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(pidfd) = pidfd {
            let _ = rustix::process::pidfd_send_signal(&*pidfd, rustix::process::Signal::KILL);
        }
    }

    /// Waits until init and everything in it is reaped, at most this long.
    pub(crate) async fn reaped(&self, within: Duration) -> Result<()> {
        let pidfd = self.pidfd.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(pidfd) = pidfd else { return Ok(()) };
        let failed = || Error::io(format!("waiting for the end of sandbox {}", self.id));
        let copy = pidfd.try_clone().map_err(failed())?;
        let watched =
            forkyard_sys::watch::watch(copy, tokio::io::Interest::READABLE).map_err(failed())?;
        match tokio::time::timeout(within, watched.readable()).await {
            Ok(ready) => {
                drop(ready.map_err(failed())?);
                Ok(())
            }
            Err(_) => Err(failed()(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// What the store keeps of a sandbox.
pub(crate) fn as_record(sandbox: &Sandbox, internal: &Internal) -> Result<Record> {
    let internal = serde_json::to_string(internal).map_err(|e| Error::Invalid(e.to_string()))?;
    Ok(Record { sandbox: sandbox.clone(), internal })
}
