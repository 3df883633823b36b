//! A template: a fork of the spawner that holds the picture of a sandbox and makes sandboxes that
//! go on from there.
//!
//! Everything that a clone starts with is in its memory, so that each clone's init, its fork, has
//! it without a copy.

pub(crate) mod disk;
mod files;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forkyard_snapshot::disk::Mark;
use forkyard_snapshot::picture::{Look, LookError};
use forkyard_snapshot::{
    Answer, Copies, Error, Gone, Looker, Opening, Outside, Picture, Request, SealError, Sealer,
    Stage, Subject, Taken,
};
use forkyard_sys::channel;
use rustix::process::Pid;
use serde::de::DeserializeOwned;

use crate::proto::{
    Failure, HoldRequest, Ids, Records, Setup, TakeError, TakeReport, decode, encode,
};

pub(crate) use files::IN_MEMORY;
use files::{Files, Shared, written};

/// What a template has taken.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) records: Records,
    taken: Taken,
    /// Where copies of the sandbox's files are.
    files: String,
    /// Layers that clones share instead.
    shared: Vec<Shared>,
    /// How many clones there will be, where these are all that needs the copies.
    clones: Option<Cell<u32>>,
    /// The sandbox's root directory, where it was taken here.
    root: Option<OwnedFd>,
    /// When it was taken, in milliseconds since the epoch.
    taken_at: u64,
    /// Files that its processes have mapped, where it comes from a disk.
    marks: Vec<Mark>,
    /// What the next picture of the same sandbox may use again, where that is worth it.
    copies: Option<Copies>,
}

/// Copies of less memory than this, in bytes, are made again as fast as they are found again.
const LASTING: u64 = 2 << 20;

/// How often it is tried when processes come and go.
const TRIES: u32 = 20;

/// What a template is asked to take.
pub(crate) struct Take {
    pub(crate) init: u32,
    pub(crate) ids: Ids,
    pub(crate) uppers: String,
    pub(crate) into: String,
    pub(crate) base: Option<String>,
    pub(crate) seal: Option<String>,
    pub(crate) layers: Vec<String>,
    /// How many clones are made from it, before it takes another one of the same sandbox; none
    /// where nobody says.
    pub(crate) clones: Option<u32>,
}

/// Has init tell what there is, and go on.
const TELL: &[u8] = b"tell";

/// Has init tell what there is, and hold still.
const HOLD: &[u8] = b"hold";

/// Whether this word to init means to hold still.
pub(crate) fn is_to_hold(word: &[u8]) -> bool {
    word != TELL
}

impl Held {
    /// Takes the picture of a sandbox whose init holds still when it is told so through `holder`;
    /// `copies` are of earlier pictures of it.
    pub(crate) fn take(
        what: &Take,
        holder: &OwnedFd,
        copies: Copies,
    ) -> Result<(Self, TakeReport), TakeError> {
        Self::take_and(what, holder, copies, |_, _, _| ()).map(|(held, report, ())| (held, report))
    }

    /// The same; `before` is called before the sandbox goes on.
    fn take_and<T>(
        what: &Take,
        holder: &OwnedFd,
        mut copies: Copies,
        mut before: impl FnMut(&Taken, &Records, &OwnedFd) -> T,
    ) -> Result<(Self, TakeReport, T), TakeError> {
        let mut files = Files::ahead(what, holder)?;
        let Subjects { records, root, subject, _ipc } = Subjects::ask(what, holder, HOLD)?;
        let taken_at = now();
        let mut tries = 0;
        let mut resumed = copies.lasting() > 0;
        let (taken, (), done) = loop {
            tries += 1;
            let mut looker = Init { holder };
            let linked = RefCell::default();
            let mut sealer = InitSealer { holder, linked: &linked };
            let movable = files.movable(&root);
            let seal = movable.map(|movable| (movable, &mut sealer as &mut dyn Sealer));
            let meanwhile = || {
                *linked.borrow_mut() = files.finish(&subject, &records, &root, true)?;
                Ok(())
            };
            let before = |taken: &Taken| before(taken, &records, &root);
            let took = &mut copies;
            match forkyard_snapshot::take(&subject, &mut looker, took, seal, meanwhile, before) {
                Ok(taken) => {
                    files.sealed(linked.take());
                    break taken;
                }
                Err(Error::NotSealed { stopped, .. }) if files.is_sealing() => {
                    files.copy_instead(&subject, stopped);
                }
                Err(Error::Unsteady(_)) if try_again(tries) => {}
                // With what earlier pictures left, there may be no room.
                Err(Error::Failed { .. }) if std::mem::take(&mut resumed) => copies.forget(),
                Err(error) => return Err(take_error(&error)),
            }
        };
        let shared = files.share(&records, &taken.picture)?;
        let keep = what.clones.is_some();
        let copies = Some(copies).filter(|copies| keep && copies.lasting() >= LASTING);
        let lasting = copies.as_ref().map_or(0, Copies::lasting);
        let names = shared.iter().map(|layer| layer.name.clone()).collect();
        let mut report = TakeReport { lasting, shared: names, ..report(&taken) };
        files.add_to(&mut report);
        let held = Self {
            records,
            taken,
            files: what.into.clone(),
            shared,
            clones: what.clones.map(Cell::new),
            root: Some(root),
            taken_at,
            marks: Vec::new(),
            copies,
        };
        Ok((held, report, done))
    }

    /// Whether this process is in the sandbox's IPC namespace yet, in which it looked at objects.
    pub(crate) fn is_inside(&self) -> bool {
        let own = std::fs::read_link("/proc/self/ns/ipc").unwrap_or_default();
        let mut spaces = self.records.namespaces.iter();
        spaces.any(|(name, link)| name == "ipc" && own.as_os_str() == link.as_str())
    }

    /// Lets go of all but what the next picture may use again.
    pub(crate) fn into_copies(self) -> Option<Copies> {
        let mut copies = self.copies?;
        copies.resume(self.taken.stage).ok()?;
        Some(copies)
    }

    pub(crate) fn picture(&self) -> &Picture {
        &self.taken.picture
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.taken.stage
    }

    /// Gives a clone its files: `state` is its own directory on the host. The last one has the
    /// copies themselves.
    pub(crate) fn give_files(&self, setup: &Setup, state: &str) -> Result<(), Failure> {
        let left =
            self.clones.as_ref().map(|clones| clones.replace(clones.get().saturating_sub(1)));
        let target = Path::new(state).join(&setup.generation);
        if left != Some(1) {
            return disk::copy_files(Path::new(&self.files), &target, &self.shared);
        }
        std::fs::rename(&self.files, &target)
            .map_err(|e| Failure::new(format!("moving files to {}", target.display()), &e))?;
        let mut layers = self.shared.iter();
        layers.try_for_each(|layer| layer.make_upper(&target)).map_err(disk::failure)
    }
}

/// What is told before a picture is taken.
struct Subjects {
    records: Records,
    root: OwnedFd,
    subject: Subject,
    /// Its ipc namespace, which the subject names by the number of this.
    _ipc: OwnedFd,
}

impl Subjects {
    /// Has init do as this word says.
    fn ask(what: &Take, holder: &OwnedFd, word: &[u8]) -> Result<Self, TakeError> {
        let failed = |what: &str, error: io::Error| TakeError::Failed(format!("{what}: {error}"));
        let init = Pid::from_raw(what.init.cast_signed())
            .ok_or_else(|| TakeError::Failed("no process".to_owned()))?;
        channel::send(holder, word, &[]).map_err(|e| failed("having init hold still", e))?;
        warm_up();
        let message = channel::receive(holder).map_err(|e| failed("having init hold still", e))?;
        let message = message.ok_or_else(|| TakeError::Failed("init is gone".to_owned()))?;
        let records: Records = decode(&message.bytes)
            .map_err(|error| TakeError::Failed(format!("what init tells: {error}")))?;
        let mut fds = message.fds.into_iter();
        let (Some(root), Some(ipc)) = (fds.next(), fds.next()) else {
            return Err(TakeError::Failed("init gave no root".to_owned()));
        };
        let subject = Subject {
            init,
            leave: workers(init, &records),
            outside: outside(&records),
            namespaces: records.namespaces.clone(),
            root: records.root.unwrap_or_default(),
            path: format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
            written: written(what, &records, &root),
            terminals: records
                .terminals
                .iter()
                .map(|terminal| (terminal.number, u64::from(terminal.number)))
                .collect(),
            ipc: format!("/proc/self/fd/{}", ipc.as_raw_fd()).into(),
            terminal_device: records.terminal_device,
            program: records.program,
            host_network: records.setup.host_network,
            diag: fds.next().map(Arc::new),
            gone: gone(what, &records),
        };
        Ok(Self { records, root, subject, _ipc: ipc })
    }
}

/// Has the kernel provide memory while init is on its way: what is touched first while a sandbox
/// stands still makes it wait.
fn warm_up() {
    /// What a small sandbox needs, in bytes.
    const HEAP: usize = 512 * 1024;
    drop(std::hint::black_box(vec![1_u8; HEAP]));
}

/// Whether to try again after so many tries; waits long enough for a program to be started.
fn try_again(tries: u32) -> bool {
    if tries < TRIES {
        std::thread::sleep(Duration::from_millis(u64::from(tries)));
    }
    tries < TRIES
}

/// Milliseconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn no_root() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// The sandbox's init, which holds still and looks at terminals and into sockets.
struct Init<'a> {
    holder: &'a OwnedFd,
}

impl Looker for Init<'_> {
    fn look(
        &mut self,
        keeper: Option<u64>,
        ends: &[BorrowedFd<'_>],
    ) -> io::Result<Result<Look, LookError>> {
        let request = HoldRequest::Terminal(keeper.map(|number| number as u32));
        ask_init(self.holder, &request, ends)
    }

    fn look_into(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        ask_init(self.holder, &HoldRequest::Sockets(request), fds)
    }
}

/// The same, which makes another root for the sandbox. Files in what becomes a layer that have
/// several names are copied above.
struct InitSealer<'a> {
    holder: &'a OwnedFd,
    linked: &'a RefCell<Vec<Vec<u8>>>,
}

impl Sealer for InitSealer<'_> {
    fn begin(&mut self) -> io::Result<Result<(), String>> {
        ask_init(self.holder, &HoldRequest::Seal(self.linked.borrow().clone()), &[])
    }

    fn open(&mut self, openings: &[Opening]) -> io::Result<Result<Vec<OwnedFd>, String>> {
        let request = HoldRequest::Open(openings.to_vec());
        let (opened, fds) = ask_init_for::<Result<(), String>>(self.holder, &request, &[])?;
        Ok(opened.map(|()| fds))
    }

    fn wait_at(
        &mut self,
        doors: &[u64],
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<Result<(), String>> {
        ask_init(self.holder, &HoldRequest::WaitAt(doors.to_vec()), sockets)
    }

    fn commit(&mut self) -> io::Result<Result<(), SealError>> {
        ask_init(self.holder, &HoldRequest::Commit, &[])
    }

    fn abort(&mut self) {
        let _ = ask_init::<()>(self.holder, &HoldRequest::Unseal, &[]);
    }
}

/// Asks the init that holds still, which always answers.
fn ask_init<T: DeserializeOwned>(
    holder: &OwnedFd,
    request: &HoldRequest,
    fds: &[BorrowedFd<'_>],
) -> io::Result<T> {
    ask_init_for(holder, request, fds).map(|(answer, _)| answer)
}

/// The same, for descriptors too.
fn ask_init_for<T: DeserializeOwned>(
    holder: &OwnedFd,
    request: &HoldRequest,
    fds: &[BorrowedFd<'_>],
) -> io::Result<(T, Vec<OwnedFd>)> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    channel::send(holder, &encode(request).map_err(invalid)?, fds)?;
    let answer = channel::receive(holder)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((decode(&answer.bytes).map_err(invalid)?, answer.fds))
}

/// Host ids of init's own children.
fn workers(init: Pid, records: &Records) -> Vec<Pid> {
    if records.workers.is_empty() {
        return Vec::new();
    }
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
    let inner = |pid: &Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        line.and_then(|line| line.split_ascii_whitespace().last()?.parse::<u32>().ok())
    };
    let children = children.unwrap_or_default();
    let pids =
        children.split_ascii_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?));
    pids.filter(|pid| inner(pid).is_some_and(|inner| records.workers.contains(&inner))).collect()
}

fn outside(records: &Records) -> Outside {
    let mut outside = Outside::new();
    for command in &records.commands {
        for (stream, pipe) in command.streams.iter().enumerate() {
            if let Some(pipe) = pipe {
                outside.insert(*pipe, number_of_command(command.state.id, stream as u64));
            }
        }
    }
    if let Some(session) = &records.session {
        for (n, pipe) in session.streams.iter().enumerate() {
            outside.insert(*pipe, number_of_session(n as u64));
        }
    }
    outside
}

/// The number of a command's stream among what leads out of a sandbox.
pub(crate) fn number_of_command(command: u32, stream: u64) -> u64 {
    u64::from(command) << 8 | stream
}

/// The number of a session's.
pub(crate) fn number_of_session(stream: u64) -> u64 {
    u64::MAX - stream
}

/// Roots that a sandbox had before, each with what was written since.
fn gone(what: &Take, records: &Records) -> Vec<Gone> {
    let Some(overlay) = records.setup.overlays.first() else { return Vec::new() };
    let upper = Path::new(&what.uppers).join(&overlay.name);
    let count = records.gone.len();
    // The topmost layer is the upper of the root that went last.
    let since = |n: usize| {
        let layers = what.layers.iter().take(count - 1 - n).map(PathBuf::from);
        std::iter::once(upper.clone()).chain(layers).collect()
    };
    let devices = records.gone.iter().enumerate();
    devices.map(|(n, &device)| Gone { device, since: since(n) }).collect()
}

fn take_error(error: &Error) -> TakeError {
    match error {
        Error::Refused { .. } => TakeError::Refused(error.to_string()),
        Error::Unsteady(_) => TakeError::Unsteady(error.to_string()),
        Error::Failed { .. } | Error::NotSealed { .. } => TakeError::Failed(error.to_string()),
    }
}

fn report(taken: &Taken) -> TakeReport {
    TakeReport {
        stopped_us: taken.times.stopped.as_micros() as u64,
        parts: taken.times.in_microseconds(),
        memory: taken.stage.filled(),
        counts: taken.picture.counts(),
        lasting: 0,
        shared: Vec::new(),
        sealed: None,
    }
}
