//! Taking the picture: everything is stopped, and is asked what it is.

mod attributes;
mod connections;
mod descriptors;
mod events;
mod inet;
mod locks;
mod loose;
mod memory;
mod named;
mod netlink;
mod peers;
mod pool;
mod process;
pub(crate) mod queues;
mod reader;
mod seats;
mod sharing;
mod signals;
mod sockets;
mod stops;
mod system_v;
mod terminals;
mod thread;
mod timers;
mod unix_diag;
mod waiting;
mod watches;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use forkyard_sys::terminal;
use rustix::process::Pid;

use crate::ahead::Ahead;
use crate::error::{Error, Result};
use crate::filled::Own;
use crate::ids::Map;
use crate::inject::Tail;
use crate::inside::Looker;
use crate::machine::Machine;
use crate::picture::{Body, Picture, Process};
use crate::proc::{Mapping, Stat, Status};
use crate::seal::Sealer;
use crate::seize::{Scope, Stopped, Tree};
use crate::stage::Stage;
use crate::times::Times;
use terminals::Terminals;

pub(crate) use descriptors::Descriptions;
pub(crate) use loose::{DELETED, LooseFiles};
pub(crate) use named::memory_device;
use reader::Reader;
pub(crate) use seats::Seat;
use seats::{Changed, Seats};
pub use seats::{Gone, Movable, mount_id};
use sharing::Sharing;
use stops::Stops;

/// Reads what `/proc/PID/fdinfo/N` tells of each kind: for the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_info(info: &crate::proc::FdInfo) {
    let lines = info.text.lines().count();
    assert!(locks::of(info).is_none_or(|locks| locks.len() <= lines));
    events::read_all(info);
    watches::read_all(info);
}

/// Reads `/proc/PID/limits`, likewise.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_limits(bytes: &[u8]) {
    assert!(process::limits(bytes).is_none_or(|limits| limits.len() <= bytes.len()));
}

/// Reads `/proc/PID/timers`, likewise.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_timers(text: &str) {
    timers::read_all(text);
}

/// What of a sandbox leads out of it: pipes and files, by device and inode, with a number of the
/// asker's.
pub type Outside = BTreeMap<(u64, u64), u64>;

/// Whose picture is taken.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its init, which holds still and starts and reaps nothing meanwhile.
    pub init: Pid,
    /// Children of init that are not the sandbox's.
    pub leave: Vec<Pid>,
    /// What leads out of it.
    pub outside: Outside,
    /// Names of its namespaces, and what the links of these say.
    pub namespaces: Vec<(String, String)>,
    /// Device and inode of its root directory.
    pub root: (u64, u64),
    /// A path of this process's that leads to that directory.
    pub path: PathBuf,
    /// Directories that hold all that the sandbox wrote, and below which path it sees each.
    pub written: Vec<(PathBuf, String)>,
    /// Terminals whose masters are kept outside of it: their numbers, with one of the asker's.
    pub terminals: BTreeMap<u32, u64>,
    /// A path of this process's that leads to its IPC namespace.
    pub ipc: PathBuf,
    /// Device of its `/dev/pts`.
    pub terminal_device: u64,
    /// Where its processes keep the programs that they were built by, see [`Stage::program`].
    pub program: Option<u64>,
    /// It is in the host's network, where there are others.
    pub host_network: bool,
    /// A socket that lists those of its network namespace, see [`forkyard_sys::sockets::diag`].
    pub diag: Option<Arc<OwnedFd>>,
    /// Roots that it had before, the oldest first.
    pub gone: Vec<Gone>,
}

/// A picture with the memory that belongs to it.
#[derive(Debug)]
pub struct Taken {
    /// What there was.
    pub picture: Picture,
    /// What the memory held.
    pub stage: Stage,
    /// How long it took.
    pub times: Times,
}

/// What was copied of a sandbox that still runs: it stays valid when a try fails.
#[derive(Debug, Default)]
pub struct Copies {
    stage: Stage,
    ahead: Ahead,
}

impl Copies {
    /// How many bytes of what was taken last the next picture may use again, where its memory
    /// comes back.
    pub fn lasting(&self) -> u64 {
        self.ahead.lasting()
    }

    /// Takes the memory of the last picture back, for the next. All of it that this one cannot use
    /// is let go.
    pub fn resume(&mut self, stage: Stage) -> Result<()> {
        stage.resume(&self.ahead.mirrors())?;
        self.stage = stage;
        Ok(())
    }

    /// Has the next picture begin with nothing.
    pub fn forget(&mut self) {
        self.ahead = Ahead::default();
    }
}

/// Stops all processes of a sandbox, takes their picture, and lets them go on.
///
/// `looker` asks its init what only that one may look at. `meanwhile` is called when all are
/// stopped: for what must be of the same moment. `before` is called with the picture before
/// anything goes on. `seal`, where it is asked for, moves all processes to another root with the same
/// files: when that cannot be done, no picture is taken, [`Error::NotSealed`].
pub fn take<T, U>(
    subject: &Subject,
    looker: &mut dyn Looker,
    copies: &mut Copies,
    seal: Option<(Movable, &mut dyn Sealer)>,
    meanwhile: impl FnOnce() -> Result<T>,
    before: impl FnOnce(&Taken) -> U,
) -> Result<(Taken, T, U)> {
    let mut times = Times::default();
    times.begin();
    let machine = Machine::get()?;
    let memory_files = named::memory_files(subject);
    let _inside = system_v::Inside::enter(&subject.ipc)?;
    let own = crate::proc::places(rustix::process::getpid())?;
    let Copies { stage, ahead } = copies;
    let is_much = ahead.copy(subject, machine, stage)?;
    let mut reader = Reader::start(is_much && machine.is_parallel);
    times.mark("ahead");
    times.stop();
    let tree = Tree::stop(Scope::Below(subject.init, subject.leave.clone()))?;
    times.mark("stop");
    let (movable, sealer) = seal.unzip();
    let mut capture = Capture {
        tree: &tree,
        tail: &machine.tail,
        subject,
        picture: Picture::default(),
        own: own.iter().map(|area| (area.start, area.end)).collect(),
        stage,
        ahead,
        descriptions: Descriptions::default(),
        terminals: Terminals::kept(subject.terminals.iter().map(|(&pts, &keeper)| (pts, keeper))),
        inner_ids: HashMap::new(),
        users: Map::read(subject.init, "uid_map")?,
        groups: Map::read(subject.init, "gid_map")?,
        mappings: HashMap::new(),
        own_pages: HashMap::new(),
        reader: &mut reader,
        loose: LooseFiles::default(),
        stops: Stops::new(),
        untold_stops: BTreeSet::new(),
        memory_device: machine.memory_device,
        memory_files,
        seats: movable.map(Seats::new),
        changed: Changed::default(),
    };
    let processes = tree.processes();
    match capture.read_all(&processes, looker) {
        Err(Error::Failed { what, source }) if tree.has_lost_any() => {
            return Err(Error::Unsteady(format!("a process ended meanwhile: {what}: {source}")));
        }
        read => read?,
    }
    times.mark("read");
    let Capture { mut picture, descriptions, loose, seats, .. } = capture;
    let in_vain = |error: Error| error.after(times.since_stop());
    if let Some(why) = seats.as_ref().and_then(Seats::why_not) {
        return Err(in_vain(Error::not_sealed(why)));
    }
    let with = meanwhile().map_err(in_vain)?;
    times.mark("files");
    if let Some((seats, sealer)) = seats.zip(sealer) {
        crate::seal::seal(&tree, &machine.tail, &seats.all, &seats.open, sealer)
            .map_err(|error| error.after(times.since_stop()))?;
        times.mark("seal");
    }
    picture.descriptions = descriptions.all;
    picture.pipes = descriptions.pipes;
    picture.loose = loose.all;
    ahead.settle(stage);
    let mut taken = Taken { picture, stage: std::mem::take(stage), times };
    let done = before(&taken);
    tree.let_go();
    taken.times.stopped(ahead.stopped);
    Ok((taken, with, done))
}

/// Stops the processes of a sandbox for as long as `work` takes.
pub fn hold_still<T>(subject: &Subject, work: impl FnOnce() -> Result<T>) -> Result<(T, Times)> {
    let mut times = Times::default();
    times.begin();
    times.stop();
    let tree = Tree::stop(Scope::Below(subject.init, subject.leave.clone()))?;
    times.mark("stop");
    let done = work()?;
    times.mark("files");
    tree.let_go();
    times.stopped(Duration::ZERO);
    Ok((done, times))
}

/// A picture that is being taken.
struct Capture<'a> {
    tree: &'a Tree,
    tail: &'a Tail,
    subject: &'a Subject,
    picture: Picture,
    /// What this process has mapped itself.
    own: Vec<(u64, u64)>,
    stage: &'a mut Stage,
    ahead: &'a mut Ahead,
    descriptions: Descriptions,
    terminals: Terminals,
    /// Ids inside, by those on the host.
    inner_ids: HashMap<Pid, u32>,
    users: Map,
    groups: Map,
    mappings: HashMap<Pid, Rc<Vec<Mapping>>>,
    /// Of processes whose memory was not read yet.
    own_pages: HashMap<Pid, Own>,
    reader: &'a mut Reader,
    loose: LooseFiles,
    stops: Stops,
    /// Processes whose parents have not been told that they stopped.
    untold_stops: BTreeSet<u32>,
    /// The device of shared memory and memfds.
    memory_device: u64,
    /// Devices of the sandbox's file systems in memory.
    memory_files: Vec<u64>,
    /// What is to be moved to another root, where that is wanted.
    seats: Option<Seats>,
    changed: Changed,
}

impl Capture<'_> {
    fn read_all(&mut self, processes: &[Stopped], looker: &mut dyn Looker) -> Result<()> {
        self.inner_ids.insert(self.subject.init, 1);
        let mut read = Vec::new();
        for stopped in processes {
            let status = Status::read(stopped.pid)?;
            let stat = Stat::read(stopped.pid)?;
            self.inner_ids.insert(stopped.pid, status.inner_id("NSpid"));
            if let Some(parent) = Pid::from_raw(stat.field(4) as i32)
                && stopped.job_control.is_some()
            {
                self.stops.entry(parent).or_default().push(status.inner_id("NSpid"));
            }
            read.push((stopped, status, stat));
        }
        let mut sharing = Sharing::default();
        for (stopped, status, stat) in &read {
            if !stopped.threads.is_empty() {
                sharing.check(stopped, status.inner_id("NSpid"), &stat.name)?;
            }
        }
        let segments = self.segments()?;
        self.read_spaces(processes)?;
        self.plan_stage(processes, &segments)?;
        self.read_segments(&segments)?;
        self.read_system_v(processes)?;
        for (stopped, status, stat) in read {
            let body = if stopped.threads.is_empty() {
                Body::Zombie(stat.field(52) as i32)
            } else {
                Body::Alive(Box::new(self.read_process(stopped, &status, &stat)?))
            };
            let parent = Pid::from_raw(stat.field(4) as i32);
            let parent = parent.and_then(|pid| self.inner_ids.get(&pid).copied()).unwrap_or(1);
            self.picture.processes.push(Process {
                pid: status.inner_id("NSpid"),
                parent,
                group: status.inner_id("NSpgid"),
                session: status.inner_id("NSsid"),
                terminal: terminal::slave_of_device(stat.field(7) as u32),
                body,
            });
        }
        self.finish_stops();
        self.finish_loose()?;
        self.resolve_entries()?;
        self.look_at_terminals(looker)?;
        self.look_into_queues(looker)?;
        self.look_into_sockets(looker)?;
        self.resolve_sockets()?;
        self.look_into_datagrams(looker)?;
        self.connect_ends(looker)?;
        self.check_seats();
        for pages in self.reader.filled()? {
            self.stage.keep(pages, 0);
        }
        Ok(())
    }
}
