//! A command of a sandbox as the server holds it: its streams, who follows it, how it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forkyard_guest::proto::{CommandState, Ended, Streams};
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{RwLock, watch};

use crate::error::{Error, Result};
use crate::model::{Command, CommandId, Exit, TerminalSize};
use crate::output::{Follower, Source, Spool, pump};

/// A command, running or ended, until it is forgotten.
#[derive(Debug)]
pub struct RunningCommand {
    info: Mutex<Command>,
    stdin: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// For a terminal: what writers to it share.
    typing: Option<Arc<RwLock<()>>>,
    /// stdout, and stderr unless it has a terminal.
    spools: Vec<Arc<Spool>>,
    ended: watch::Sender<bool>,
    /// Counts every change of output and state.
    changed: watch::Sender<u64>,
    attached: AtomicUsize,
    /// After another server: whoever followed the command there has time to come back, so
    /// nothing runs ahead of it until then.
    held: Mutex<Vec<Follower>>,
}

/// Somebody who follows a command; while there is one, a command that is not detached stays.
#[derive(Debug)]
pub struct Attachment {
    command: Arc<RunningCommand>,
    /// stdout, then stderr unless it has a terminal.
    pub streams: Vec<Follower>,
    changed: watch::Receiver<u64>,
}

impl RunningCommand {
    /// Takes up a command with the descriptors that init gave; `hold` where another server
    /// started it, see [`RunningCommand::release`]. While somebody else has `typing`, nothing is
    /// written to a terminal.
    pub(crate) fn new(
        state: CommandState,
        streams: Streams,
        fds: Vec<OwnedFd>,
        hold: bool,
        typing: Arc<RwLock<()>>,
    ) -> Result<Arc<Self>> {
        let (changed, _) = watch::channel(0);
        let (ended, _) = watch::channel(state.exit.is_some());
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next().ok_or_else(|| {
                Error::io("taking a command's streams")(io::ErrorKind::UnexpectedEof.into())
            })
        };
        let async_fd = |fd, interest| {
            forkyard_sys::watch::watch(fd, interest).map_err(Error::io("watching a stream"))
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        let mut stdin = None;
        let mut sources = Vec::new();
        if streams.tty {
            let master = Arc::new(async_fd(next()?, both)?);
            stdin = Some(Arc::clone(&master));
            sources.push(Source::Terminal { master, read: next()?, write: next()? });
        } else {
            if streams.stdin {
                stdin = Some(Arc::new(async_fd(next()?, Interest::WRITABLE)?));
            }
            for _ in 0..2 {
                sources.push(Source::Pipe(async_fd(next()?, Interest::READABLE)?));
            }
        }
        let mut spools = Vec::new();
        let mut held = Vec::new();
        for source in sources {
            let spool = Spool::open(next()?).map_err(Error::io("opening a spool"))?;
            let spool = Arc::new(spool);
            spools.push(Arc::clone(&spool));
            held.extend(hold.then(|| spool.hold()));
            tokio::spawn(pump(spool, source, ended.subscribe(), changed.clone()));
        }
        let info = Command {
            id: CommandId(state.id),
            pid: state.pid,
            argv: state.argv,
            tty: state.tty,
            detach: state.detach,
            started_at: state.started_at,
            exit: state.exit.map(|ended| exit_of(ended, false)),
        };
        Ok(Arc::new(Self {
            info: Mutex::new(info),
            stdin: Mutex::new(stdin),
            typing: streams.tty.then_some(typing),
            spools,
            ended,
            changed,
            attached: AtomicUsize::new(0),
            held: Mutex::new(held),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Command> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is and how it ended.
    pub fn info(&self) -> Command {
        self.lock().clone()
    }

    /// Its number.
    pub fn id(&self) -> CommandId {
        self.lock().id
    }

    /// stdout, then stderr unless it has a terminal.
    pub fn spools(&self) -> &[Arc<Spool>] {
        &self.spools
    }

    /// Whether it runs for a client, and there is none.
    pub fn is_unattended(&self) -> bool {
        self.attached.load(Ordering::Acquire) == 0 && !self.lock().detach
    }

    pub(crate) fn end(&self, ended: Ended, oom: bool) {
        self.lock().exit = Some(exit_of(ended, oom));
        self.ended.send_replace(true);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends it for its followers when its sandbox went away under it.
    pub(crate) fn lose(&self) {
        let mut info = self.lock();
        if info.exit.is_none() {
            info.exit = Some(Exit { code: 137, signal: Some(9), timed_out: false, oom: false });
            drop(info);
            self.ended.send_replace(true);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Follows its output from these offsets.
    pub fn attach(self: &Arc<Self>, stdout: u64, stderr: u64) -> Attachment {
        self.attached.fetch_add(1, Ordering::AcqRel);
        let offsets = [stdout, stderr];
        let streams = self.spools.iter().zip(offsets).map(|(s, at)| s.follow(at)).collect();
        self.release();
        Attachment { streams, changed: self.changed.subscribe(), command: Arc::clone(self) }
    }

    /// Lets output run on for nobody: followers of another server had their time.
    pub(crate) fn release(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until it has ended and all its output is in its spools.
    pub async fn wait(&self) -> Command {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if self.is_over() {
                return self.info();
            }
            if changed.changed().await.is_err() {
                return self.info();
            }
        }
    }

    fn is_over(&self) -> bool {
        self.spools.iter().all(|spool| spool.is_closed()) && self.lock().exit.is_some()
    }

    /// Writes to its stdin, all of it; false when nobody reads it any more.
    pub async fn write_stdin(&self, mut bytes: &[u8]) -> Result<bool> {
        let Some(stdin) = self.stdin() else { return Ok(false) };
        while !bytes.is_empty() {
            match self.try_write(stdin.get_ref(), bytes).await {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN) => {
                    let mut ended = self.ended.subscribe();
                    tokio::select! {
                        ready = stdin.writable() => {
                            ready.map_err(Error::io("waiting for stdin"))?.clear_ready();
                        }
                        _ = ended.wait_for(|ended| *ended) => return Ok(false),
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::IO) => return Ok(false),
                Err(e) => return Err(Error::io("writing to stdin")(e.into())),
            }
        }
        Ok(true)
    }

    async fn try_write(&self, stdin: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
        let _turn = match &self.typing {
            Some(typing) => Some(typing.read().await),
            None => None,
        };
        rustix::io::write(stdin, bytes)
    }

    fn stdin(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends its stdin as far as this server holds it: Ctrl-D for a terminal, else our end of the
    /// pipe is closed, and true says that init's is still to be.
    pub(crate) async fn close_stdin(&self) -> Result<bool> {
        if self.lock().tty {
            self.write_stdin(&[4]).await?;
            return Ok(false);
        }
        Ok(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take().is_some())
    }

    /// Changes its terminal's size; nothing without one.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        if let Some(master) = self.stdin().filter(|_| self.lock().tty) {
            let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(master.get_ref(), size)
                .map_err(|e| Error::io("resizing the terminal")(e.into()))?;
        }
        Ok(())
    }
}

impl Attachment {
    /// The command.
    pub fn command(&self) -> &Arc<RunningCommand> {
        &self.command
    }

    /// Waits until there is output to read or the command is over.
    pub async fn changed(&mut self) {
        loop {
            self.changed.borrow_and_update();
            if self.has_news() || self.changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether all output is delivered and the command has ended.
    pub fn is_done(&self) -> bool {
        self.streams.iter().all(Follower::is_done) && self.command.lock().exit.is_some()
    }

    fn has_news(&self) -> bool {
        self.command.is_over() || self.streams.iter().any(Follower::has_more)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.command.attached.fetch_sub(1, Ordering::AcqRel);
    }
}

fn exit_of(ended: Ended, oom: bool) -> Exit {
    let code = if ended.timed_out {
        124
    } else {
        ended.code.or(ended.signal.map(|signal| 128 + signal)).unwrap_or(255)
    };
    Exit { code, signal: ended.signal, timed_out: ended.timed_out, oom }
}
