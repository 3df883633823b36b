//! Where a command's output is between the command and whoever follows it.
//!
//! A pump per stream moves bytes from the command's pipe into its spool by splice(2). The spool's
//! length counts the bytes taken, so a killed server loses and repeats nothing: see
//! `forkyard_guest`. While somebody follows, the pump stays at most [`WINDOW`] ahead of the
//! slowest, so that a slow client slows the command down; while nobody does, the last
//! [`KEPT`] bytes are kept.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::FallocateFlags;
use rustix::pipe::SpliceFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

/// How far the output may run ahead of the slowest follower, in bytes.
pub(crate) const WINDOW: u64 = 1024 * 1024;

/// How much output is kept of each stream for who comes later, in bytes.
pub(crate) const KEPT: u64 = 1024 * 1024;

/// Memory is given back in steps of this, a multiple of the page size.
const STEP: u64 = 256 * 1024;

/// The most that is moved at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Where a stream's bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The read end of a pipe.
    Pipe(AsyncFd<OwnedFd>),
    /// A terminal's master, by way of a pipe of ours.
    Terminal { master: Arc<AsyncFd<OwnedFd>>, read: OwnedFd, write: OwnedFd },
}

/// One output stream of a command.
#[derive(Debug)]
pub struct Spool {
    file: OwnedFd,
    /// Bytes taken from the command so far.
    length: AtomicU64,
    /// Bytes before this are gone.
    start: AtomicU64,
    closed: AtomicBool,
    followers: Mutex<Vec<Weak<AtomicU64>>>,
    /// Follower moved on, or went.
    moved: Notify,
}

/// Somebody's place in a stream.
#[derive(Debug)]
pub struct Follower {
    spool: Arc<Spool>,
    at: Arc<AtomicU64>,
}

impl Spool {
    /// Takes up a spool where it is.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        let length = rustix::fs::fstat(&file)?.st_size as u64;
        Ok(Self {
            file,
            length: AtomicU64::new(length),
            start: AtomicU64::new(length.saturating_sub(KEPT)),
            closed: AtomicBool::new(false),
            followers: Mutex::default(),
            moved: Notify::new(),
        })
    }

    /// Bytes taken from the command so far.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Whether no more will come.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The first byte that is still there.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }

    /// Reads at an offset, at most `most` bytes; empty at the end.
    pub fn read(&self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let length = (self.length().saturating_sub(at)).min(most as u64) as usize;
        let mut bytes = vec![0; length];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.file, rest, at + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Keeps what is still there, and what a client of a killed server may come back for.
    pub(crate) fn hold(self: &Arc<Self>) -> Follower {
        self.follow(self.start())
    }

    /// Follows the stream from an offset, or from the first byte that is still there.
    pub fn follow(self: &Arc<Self>, at: u64) -> Follower {
        let at = Arc::new(AtomicU64::new(at.clamp(self.start(), self.length())));
        self.followers().push(Arc::downgrade(&at));
        Follower { spool: Arc::clone(self), at }
    }

    fn followers(&self) -> std::sync::MutexGuard<'_, Vec<Weak<AtomicU64>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the slowest follower is.
    fn slowest(&self) -> Option<u64> {
        let mut followers = self.followers();
        followers.retain(|follower| follower.strong_count() > 0);
        followers.iter().filter_map(Weak::upgrade).map(|at| at.load(Ordering::Acquire)).min()
    }

    /// How many bytes may be taken now.
    fn room(&self) -> u64 {
        match self.slowest() {
            Some(at) => (at + WINDOW).saturating_sub(self.length()),
            None => u64::MAX,
        }
    }

    /// Gives memory back that nobody needs any more.
    fn trim(&self) {
        let length = self.length();
        let needed = self.slowest().unwrap_or(length).min(length.saturating_sub(KEPT));
        let start = self.start();
        let to = needed - needed % STEP;
        if to > start {
            let from = start - start % STEP;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&self.file, flags, from, to - from).is_ok() {
                self.start.store(to, Ordering::Release);
            }
        }
    }

    /// Moves what is there now, up to `CHUNK`; zero at the end of the stream.
    fn take(&self, pipe: &OwnedFd, most: usize) -> io::Result<usize> {
        let mut at = self.length();
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let moved = rustix::pipe::splice(pipe, None, &self.file, Some(&mut at), most, flags)?;
        self.length.store(at, Ordering::Release);
        Ok(moved)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl Follower {
    /// Where it is.
    pub fn at(&self) -> u64 {
        self.at.load(Ordering::Acquire)
    }

    /// What comes next, at most `most` bytes; empty when there is nothing yet.
    pub fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        self.spool.read(self.at(), most)
    }

    /// Whether there is more to read now.
    pub fn has_more(&self) -> bool {
        self.at() < self.spool.length()
    }

    /// Says that these bytes are delivered, so that they need not be kept for it.
    pub fn advance(&self, by: usize) {
        self.at.fetch_add(by as u64, Ordering::AcqRel);
        self.spool.moved.notify_one();
    }

    /// Whether everything was read and no more will come.
    pub fn is_done(&self) -> bool {
        self.spool.is_closed() && self.at() >= self.spool.length()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.spool.moved.notify_one();
    }
}

/// Moves a stream's bytes until its end, or until the command has ended and all is drained.
pub(crate) async fn pump(
    spool: Arc<Spool>,
    source: Source,
    mut ended: watch::Receiver<bool>,
    changed: watch::Sender<u64>,
) {
    loop {
        let room = spool.room();
        if room == 0 {
            spool.moved.notified().await;
            continue;
        }
        // Before the attempt: what was written before the end is then found by it.
        let over = *ended.borrow_and_update();
        match transfer(&spool, &source, room.min(CHUNK as u64) as usize) {
            Ok(0) => break,
            Ok(_) => {
                spool.trim();
                changed.send_modify(|n| *n += 1);
                // Whoever writes as fast as we read must not keep everybody else from running.
                tokio::task::yield_now().await;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if over {
                    break;
                }
                tokio::select! {
                    () = readable(&source) => {}
                    _ = ended.changed() => {}
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // EIO: the last descriptor of a terminal's other side is closed.
            Err(_) => break,
        }
    }
    spool.close();
    changed.send_modify(|n| *n += 1);
}

fn transfer(spool: &Spool, source: &Source, most: usize) -> io::Result<usize> {
    match source {
        Source::Pipe(pipe) => spool.take(pipe.get_ref(), most),
        Source::Terminal { master, read, write } => {
            // What an earlier server left in the pipe comes first.
            match spool.take(read, most) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let flags = SpliceFlags::NONBLOCK;
            rustix::pipe::splice(master.get_ref(), None, write, None, most, flags)?;
            spool.take(read, most)
        }
    }
}

async fn readable(source: &Source) {
    let fd = match source {
        Source::Pipe(pipe) => pipe,
        Source::Terminal { master, .. } => master.as_ref(),
    };
    if let Ok(mut ready) = fd.readable().await {
        ready.clear_ready();
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}
