//! What a picture of a process tree holds.
//!
//! Process ids, paths and users are those inside the sandbox. A picture refers to memory that its
//! [`crate::Stage`] holds by the address where it is staged.

mod attributes;
pub mod events;
mod inet;
mod locks;
mod loose;
mod message_queues;
mod moved;
pub mod netlink;
pub mod sockets;
mod system_v;
mod terminals;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;

use serde::{Deserialize, Serialize};

pub use attributes::{ProcessAttributes, ThreadAttributes};
pub use inet::{Connection, Datagram, Far, Inet, InetState};
pub use locks::{Lock, LockKind, SignalOwner};
pub use loose::{FileRef, Loose, LooseKind, Rest};
pub use message_queues::MessageQueue;
pub use system_v::{Queue, Semaphores};
pub use terminals::{Look, LookError, Side, Slave, Stop, Terminal, Unread};
pub use timers::PosixTimer;

/// Processes of a sandbox as they were at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Picture {
    /// Every process but init, parents before their children.
    pub processes: Vec<Process>,
    /// Open file descriptions, which descriptors of one or several processes refer to.
    pub descriptions: Vec<Description>,
    /// Pipes and fifos.
    pub pipes: Vec<Pipe>,
    /// Files that no path leads to, and shared memory.
    pub loose: Vec<Loose>,
    /// Terminals.
    pub terminals: Vec<Terminal>,
    /// Sets of System V semaphores.
    pub semaphores: Vec<Semaphores>,
    /// System V message queues.
    pub queues: Vec<Queue>,
    /// POSIX message queues.
    pub message_queues: Vec<MessageQueue>,
    /// What has not been read of pipes that come from outside, by their numbers.
    pub inputs: BTreeMap<u64, serde_bytes::ByteBuf>,
}

impl Picture {
    /// Whether a directory is open that was read in part.
    pub fn has_half_read_directories(&self) -> bool {
        let half = |description: &Description| match &description.kind {
            DescriptionKind::Directory(_, rest) => description.position != 0 && rest.count != 0,
            _ => false,
        };
        self.descriptions.iter().any(half)
    }

    /// Paths of what is open, or mapped so that changes of the file are seen.
    pub fn open_paths(&self) -> BTreeSet<&[u8]> {
        let open = self.descriptions.iter().filter_map(|description| match &description.kind {
            DescriptionKind::Path(path) => Some(path.as_slice()),
            _ => None,
        });
        let alive = self.processes.iter().filter_map(|process| match &process.body {
            Body::Alive(alive) => Some(alive),
            Body::Zombie(_) => None,
        });
        let mapped =
            alive.flat_map(|alive| &alive.memory.areas).filter_map(|area| match &area.kind {
                AreaKind::File { file: FileRef::Path(path), shared: true, .. } => {
                    Some(path.as_slice())
                }
                _ => None,
            });
        open.chain(mapped).collect()
    }

    /// Processes, threads, and open file descriptions.
    pub fn counts(&self) -> [u32; 3] {
        let threads = |process: &Process| match &process.body {
            Body::Zombie(_) => 0,
            Body::Alive(alive) => alive.threads.len(),
        };
        let threads: usize = self.processes.iter().map(threads).sum();
        [self.processes.len() as u32, threads as u32, self.descriptions.len() as u32]
    }
}

/// A process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's; 1 for children of init.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// The number of its controlling terminal.
    pub terminal: Option<u32>,
    /// What is left of it, or what lives.
    pub body: Body,
}

impl Process {
    /// Whether it is stopped for job control.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(&self.body, Body::Alive(alive) if alive.stopped.is_some())
    }
}

/// What there is of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Body {
    /// It ended with this wait status, and its parent has not asked for it.
    Zombie(i32),
    /// It lives.
    Alive(Box<Alive>),
}

/// A process that lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alive {
    /// Its threads, the leader first.
    pub threads: Vec<Thread>,
    /// Its memory.
    pub memory: Memory,
    /// Its descriptors.
    pub descriptors: Vec<Descriptor>,
    /// Working directory.
    pub directory: FileRef,
    /// umask(2)
    pub umask: u32,
    /// What signals do, by their number less one; absent where it is the default.
    pub actions: Vec<Option<SignalAction>>,
    /// Signals that wait, as `siginfo_t`.
    pub pending: Vec<Signal>,
    /// Soft and hard limits, by `RLIMIT_*`.
    pub limits: Vec<(u64, u64)>,
    /// The three of setitimer(2): interval and rest, as `struct itimerval`.
    pub timers: [[u64; 4]; 3],
    /// POSIX timers.
    pub posix_timers: Vec<PosixTimer>,
    /// It is stopped for job control, by this signal.
    pub stopped: Option<i32>,
    /// Its parent has not been told of that yet.
    pub stop_untold: bool,
    /// `PR_SET_DUMPABLE`
    pub dumpable: bool,
    /// `PR_SET_CHILD_SUBREAPER`
    pub subreaper: bool,
    /// `/proc/PID/oom_score_adj`
    pub oom_score: i32,
    /// personality(2)
    pub personality: u32,
    /// What else it was told.
    pub attributes: ProcessAttributes,
}

/// `struct kernel_sigaction` of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// Address of the handler, or 0 or 1.
    pub handler: u64,
    /// `SA_*`
    pub flags: u64,
    /// Address of the way back.
    pub restorer: u64,
    /// Blocked meanwhile.
    pub mask: u64,
}

/// A `siginfo_t`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A thread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// `struct user_regs_struct`, as it shall go on.
    pub registers: Vec<u64>,
    /// Vector registers, as XSAVE lays them out.
    #[serde(with = "serde_bytes")]
    pub extended: Vec<u8>,
    /// Blocked signals.
    pub mask: u64,
    /// Signals that wait for it alone.
    pub pending: Vec<Signal>,
    /// `stack_t`: address, flags, size.
    pub alternate_stack: [u64; 3],
    /// Address of the word that its end clears, see `set_tid_address`(2).
    pub clear_tid: u64,
    /// Head and length of its robust futexes.
    pub robust_list: (u64, u64),
    /// Address, length and signature of its rseq(2).
    pub rseq: (u64, u32, u32),
    /// `PR_SET_NAME`
    pub name: Vec<u8>,
    /// Who it is.
    pub credentials: Credentials,
    /// `PR_SET_PDEATHSIG`
    pub death_signal: i32,
    /// `PR_SET_TIMERSLACK`, in nanoseconds.
    pub timer_slack: u64,
    /// Policy, nice value and real-time priority, as `sched_setattr`(2).
    pub scheduling: Scheduling,
    /// Processors that it may run on, as a bit mask.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    /// What else it was told.
    pub attributes: ThreadAttributes,
}

/// `sched_setattr`(2)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`
    pub policy: u32,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99 for real-time policies.
    pub priority: u32,
    /// `SCHED_FLAG_RESET_ON_FORK`
    pub flags: u64,
}

/// Ids and capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, and of file accesses.
    pub uids: [u32; 4],
    /// Likewise.
    pub gids: [u32; 4],
    /// Supplementary.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// `PR_SET_SECUREBITS`
    pub secure_bits: u32,
}

/// A process's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Its mappings, by address.
    pub areas: Vec<Area>,
    /// The fields of `struct prctl_mm_map` up to `env_end`.
    pub bounds: [u64; 11],
    /// The vector that the kernel gave it.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// Its program.
    pub program: FileRef,
    /// `MCL_*` for what it maps from now on: see mlockall(2).
    pub lock_future: u32,
    /// `PR_SET_MDWE`
    pub no_exec_gain: u32,
    /// `PR_SET_THP_DISABLE`
    pub no_huge_pages: bool,
    /// The staged mirrors of its areas: first address and behind the last.
    pub staged: (u64, u64),
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// `PROT_*`
    pub protection: u32,
    /// The two letters of each flag, as `VmFlags` of /proc/PID/smaps has them.
    pub flags: Vec<[u8; 2]>,
    /// Ranges of guard pages in it, `MADV_GUARD_INSTALL`: first address and behind the last.
    pub guards: Vec<(u64, u64)>,
    /// `PR_SET_VMA_ANON_NAME`
    pub name: Option<Vec<u8>>,
    /// What it shows.
    pub kind: AreaKind,
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AreaKind {
    /// Memory of its own.
    Anonymous {
        /// Where its mirror is staged, with all its contents; none where nothing was written.
        staged: Option<u64>,
    },
    /// A file, shared or with changes of its own.
    File {
        /// The file.
        file: FileRef,
        /// Where in the file it begins.
        offset: u64,
        /// Changes go to the file.
        shared: bool,
        /// It was opened for writing.
        writable: bool,
        /// Pages that differ from the file: address, length, and where they are staged.
        changed: Vec<(u64, u64, u64)>,
    },
    /// Memory that is shared and has no descriptor: see [`LooseKind`].
    Shared {
        /// Index into the picture's loose files.
        object: usize,
        /// Where in it it begins.
        offset: u64,
    },
    /// Of the kernel's: `[vdso]`, `[vvar]` and its like.
    Kernel(Vec<u8>),
}

/// A descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// `FD_CLOEXEC`
    pub close_on_exec: bool,
    /// Index into the picture's descriptions.
    pub description: usize,
    /// The process's own locks that it set by it.
    pub locks: Vec<Lock>,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `O_*`, as `/proc/PID/fdinfo` has them.
    pub flags: u32,
    /// Position.
    pub position: u64,
    /// Its locks.
    pub locks: Vec<Lock>,
    /// Who is told of it.
    pub owner: Option<SignalOwner>,
    /// What is open.
    pub kind: DescriptionKind,
}

/// What is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionKind {
    /// A file, directory or device by its path.
    Path(Vec<u8>),
    /// A file of a process in /proc, by its path: to be opened when the process is there.
    OfProcess(Vec<u8>),
    /// A directory that was read in part, by its path.
    Directory(Vec<u8>, Rest),
    /// A file that no path leads to: index into the picture's loose files.
    Loose(usize),
    /// A pipe: index into the picture's pipes.
    Pipe(usize),
    /// A POSIX message queue, opened by its name.
    MessageQueue(CString),
    /// What tells of events.
    Event(events::Event),
    /// A Unix socket.
    UnixSocket(sockets::Socket),
    /// A socket of IPv4 or IPv6.
    Inet(Box<Inet>),
    /// A netlink socket.
    Netlink(Box<netlink::Netlink>),
    /// A side of a terminal: index into the picture's terminals.
    Terminal {
        /// Which.
        terminal: usize,
        /// How it was opened.
        side: Side,
    },
    /// What leads out of the sandbox, or to init: told apart by who asked for the picture.
    Outside(u64),
}

/// A pipe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// How many bytes it holds at most.
    pub capacity: u32,
    /// What nobody has read yet.
    #[serde(with = "serde_bytes")]
    pub unread: Vec<u8>,
    /// Where it is by path, for a fifo.
    pub path: Option<Vec<u8>>,
}
