//! What server, spawner and init say to each other: postcard in SEQPACKET messages.
//!
//! Descriptors travel beside a message, in the order that its type's documentation gives.

mod saved;

use serde::{Deserialize, Serialize};

pub use saved::{Label, Paused, RestoreError, Restored, Source, WriteReport};

use crate::files::proto::{FileError, FileReply, FileRequest};

/// Which ids a sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// 65,536 ids from `base` up on the host. Needs root; files are shown through idmapped mounts.
    Range {
        /// The host id that is root inside.
        base: u32,
    },
    /// The same 65,536 ids as the spawner's own user namespace has.
    Outer,
    /// Root only, which is the spawner's user.
    Single,
}

/// Where an init is put before it is told what to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Directory of its group in the unified hierarchy, absolute.
    pub cgroup2: Option<String>,
    /// Directories of its groups in the v1 hierarchies, absolute.
    pub cgroup1: Vec<String>,
    /// Its ids.
    pub ids: Ids,
}

/// A host directory or file that a sandbox's mounts are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSource {
    /// Absolute path on the host.
    pub path: String,
    /// Whether the sandbox may only read it.
    pub read_only: bool,
    /// Whether mounts below it are shown too.
    pub recursive: bool,
}

/// Server to spawner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SpawnerRequest {
    /// Make a sandbox. With it: init's end of its control channel, then the socket that it listens
    /// at for later servers.
    Spawn {
        /// Comes back in the reply.
        seq: u64,
        /// Where it is made, unless one was prepared there.
        place: Place,
        /// What its root is made of, as [`Setup`] refers to it by index.
        sources: Vec<MountSource>,
        /// The rest, for init.
        setup: Box<Setup>,
    },
    /// Prepare an init for the sandbox that will be asked for at this place, when there is
    /// nothing else to do. One at a time: it takes the place of the one before.
    Prepare {
        /// Where.
        place: Place,
    },
    /// Have a child of the spawner serve on the socket that comes with this, as a template: it can
    /// take the picture of a sandbox, and makes sandboxes that go on from there.
    Template,
    /// To a template: take the picture. With it: a socket to the sandbox's init, which holds
    /// still when it is told so there.
    Take {
        /// Comes back in the reply.
        seq: u64,
        /// Host process id of the init.
        init: u32,
        /// The sandbox's ids.
        ids: Ids,
        /// Directory that holds its uppers, absolute.
        uppers: String,
        /// Directory that copies of its files go to, absolute and there.
        into: String,
    },
    /// To a template: copy what the sandbox wrote, without its processes. With it: as with
    /// [`Self::Take`].
    TakeFiles {
        /// Comes back in the reply.
        seq: u64,
        /// Whose.
        source: Source,
    },
    /// To a template: write what it has taken to disk.
    Persist {
        /// Comes back in the reply.
        seq: u64,
        /// The snapshot's directory, absolute; what was taken of files is in it.
        dir: String,
        /// What it says of itself.
        label: Label,
    },
    /// To a template: take the picture and write it to disk while all stays stopped, until
    /// something else comes or the server is gone. With it: as with [`Self::Take`].
    Pause {
        /// Comes back in the reply.
        seq: u64,
        /// Whose.
        source: Source,
        /// The snapshot's directory.
        dir: String,
        /// What it says of itself.
        label: Label,
    },
    /// To a template: read a snapshot, and make sandboxes that go on from there.
    Restore {
        /// Comes back in the reply.
        seq: u64,
        /// The snapshot's directory.
        dir: String,
        /// See [`Label::ids`].
        ids: String,
    },
    /// Run a job in a child of the spawner, with its rights over the store. With it: the socket
    /// that the job's answer goes to, then the job's own descriptors.
    Job {
        /// Which job.
        name: String,
        /// Its arguments, in a form of its own.
        payload: Vec<u8>,
    },
}

/// Spawner to server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SpawnerReply {
    /// The sandbox's init runs. With it: its pidfd.
    Spawned {
        /// The request's.
        seq: u64,
        /// Its process id on the host.
        pid: u32,
    },
    /// It failed.
    Failed {
        /// The request's.
        seq: u64,
        /// What was tried, and what the kernel said.
        failure: Failure,
    },
    /// A template has the picture.
    Taken {
        /// The request's.
        seq: u64,
        /// How the sandbox was set up.
        setup: Box<Setup>,
        /// How it went.
        report: TakeReport,
    },
    /// A template could not take it.
    NotTaken {
        /// The request's.
        seq: u64,
        /// Why not.
        why: TakeError,
    },
    /// A template has written it to disk.
    Persisted {
        /// The request's.
        seq: u64,
        /// How it went.
        report: WriteReport,
    },
    /// A template has written it to disk, and keeps the sandbox stopped.
    Paused {
        /// The request's.
        seq: u64,
        /// How it went.
        paused: Box<Paused>,
    },
    /// A template has read a snapshot.
    Restored {
        /// The request's.
        seq: u64,
        /// What there is.
        restored: Restored,
    },
    /// A template could not go on from a snapshot.
    NotRestored {
        /// The request's.
        seq: u64,
        /// Why not.
        why: RestoreError,
    },
}

/// How the taking of a picture went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeReport {
    /// How long the sandbox's processes were stopped, in microseconds.
    pub stopped_us: u64,
    /// What that went into: names of parts, microseconds each.
    pub parts: Vec<(String, u64)>,
    /// Bytes of memory that were copied.
    pub memory: u64,
    /// Processes, threads, and open file descriptions.
    pub counts: [u32; 3],
}

/// Why no picture was taken. The sandbox goes on as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TakeError {
    /// A process has something that cannot be copied.
    #[error("{0}")]
    Refused(String),
    /// Processes came and went too fast.
    #[error("{0}")]
    Unsteady(String),
    /// A system call failed.
    #[error("{0}")]
    Failed(String),
}

/// What an init tells of its sandbox when it holds still for a picture. With it: its root, and
/// a descriptor that tells of its sockets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Records {
    /// How it was set up.
    pub setup: Setup,
    /// Commands that run.
    pub commands: Vec<CommandRecord>,
    /// The number of the next command.
    pub next_command: u32,
    /// The session's shell.
    pub session: Option<SessionRecord>,
    /// Process ids, inside, of init's own children.
    pub workers: Vec<u32>,
    /// Names of its namespaces and what their links say.
    pub namespaces: Vec<(String, String)>,
    /// Its root directory.
    pub root: Option<StreamRecord>,
    /// Terminals that init holds the masters of: their commands', ended ones' too, and those that
    /// have no command any more.
    pub terminals: Vec<TerminalRecord>,
    /// Device of `/dev/pts`.
    pub terminal_device: u64,
    /// The process id that was given last: programs count on one that ended not to come again soon.
    pub last_pid: u32,
}

/// A command that runs, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandRecord {
    /// What it is.
    pub state: CommandState,
    /// Its standard input, output and error, as far as they are pipes.
    pub streams: [Option<StreamRecord>; 3],
    /// The owner of its streams.
    pub owner: (u32, u32),
    /// What is left of its time, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A terminal whose master init holds, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// N of `/dev/pts/N`.
    pub number: u32,
    /// The command whose streams it is, where that runs.
    pub command: Option<u32>,
}

/// What a template asks of an init that holds still, once all else is stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HoldRequest {
    /// Look at the terminal of this number that init holds the master of, or at the one whose
    /// master comes along; then a slave, where any is open. Answered by a result of
    /// [`forkyard_snapshot::picture::Look`].
    Terminal(Option<u32>),
    /// Look into the sockets that come along; answered by a [`forkyard_snapshot::Answer`].
    Sockets(forkyard_snapshot::Request),
}

/// The session's shell, for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its process id inside.
    pub pid: u32,
    /// Its pipes, in the order in which the shell has them.
    pub streams: Vec<StreamRecord>,
    /// The owner of its pipes.
    pub owner: (u32, u32),
    /// The line that it runs, or ran last.
    #[serde(with = "serde_bytes")]
    pub line: Vec<u8>,
}

/// A pipe or file, by device and inode.
pub type StreamRecord = (u64, u64);

/// Something that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// What was tried on what.
    pub what: String,
    /// The kernel's error number.
    pub errno: i32,
}

impl Failure {
    /// Says what was tried when `error` came.
    pub fn new(what: impl Into<String>, error: &std::io::Error) -> Self {
        // Errors that the standard library makes up have no number.
        Self { what: what.into(), errno: error.raw_os_error().unwrap_or(5) }
    }

    /// That what a snapshot needs of an image is not there any more.
    pub(crate) fn unfit(what: String) -> Self {
        Self { what, errno: rustix::io::Errno::STALE.raw_os_error() }
    }

    /// Whether a snapshot's image is another by now.
    pub fn is_unfit(&self) -> bool {
        self.errno == rustix::io::Errno::STALE.raw_os_error()
    }

    /// Whether the disk, or what the user may have of it, is full.
    pub fn is_full(&self) -> bool {
        [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT]
            .contains(&rustix::io::Errno::from_raw_os_error(self.errno))
    }
}

/// One overlay of a sandbox's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Where it is mounted; `/` for the root itself.
    pub target: String,
    /// Its read-only layers, the topmost first, as indices into the sources.
    pub lowers: Vec<usize>,
    /// Its name in a generation of the sandbox's directory: `GENERATION/NAME` is its upper,
    /// `GENERATION/NAME.work` beside it overlayfs's own.
    pub name: String,
}

/// A host directory or file shown in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Index into the sources.
    pub source: usize,
    /// Absolute path in the sandbox.
    pub target: String,
}

/// How init sets up a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Its host name.
    pub hostname: String,
    /// It stays in the host's network.
    pub host_network: bool,
    /// Its root and what else of it is an overlay of its own, the root first.
    pub overlays: Vec<Overlay>,
    /// Index of the source that is the sandbox's own directory, which holds the uppers.
    pub state: usize,
    /// Name of the generation of uppers below it, changed by each reset.
    pub generation: String,
    /// Index of the source that is the tree of device nodes.
    pub dev: usize,
    /// Host directories shown in it.
    pub volumes: Vec<VolumeMount>,
    /// Size of /tmp and of /dev/shm, in bytes.
    pub tmp_size: u64,
    /// Contents of /etc/resolv.conf, where it has a network to resolve in.
    pub resolv_conf: Option<Vec<u8>>,
    /// Mount a cgroup2 file system at /sys/fs/cgroup.
    pub cgroup2: bool,
    /// Restrict commands by Landlock.
    pub landlock: bool,
    /// Variables of every command, as `K=V`.
    pub env: Vec<String>,
    /// `USER[:GROUP]` of commands that name none.
    pub user: String,
    /// Working directory of commands that name none.
    pub workdir: String,
    /// Make the working directory where it is not there: an image names it, and not a person.
    pub make_workdir: bool,
    /// Start a session at once.
    pub session: bool,
    /// When it ends, in milliseconds since the epoch.
    pub deadline: Option<u64>,
}

/// Server to init.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitRequest {
    /// Comes back in the reply.
    pub seq: u64,
    /// What to do.
    pub body: InitBody,
}

/// What the server asks of init.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum InitBody {
    /// Start a command. The reply brings its streams: see [`Started`].
    Start(Box<Start>),
    /// Start a session where none runs; give the running one's descriptors otherwise.
    Session,
    /// End the session's shell.
    EndSession,
    /// Interrupt what the session's shell runs, but not the shell.
    Interrupt {
        /// Children of the shell with a process id up to this were started by earlier lines, in
        /// the background, and are left alone.
        after: u32,
        /// SIGKILL instead of SIGTERM.
        force: bool,
    },
    /// What commands there are.
    List,
    /// Give a command's descriptors, to a server that did not start it.
    Adopt {
        /// The command.
        command: u32,
    },
    /// Send a signal to a command's process group.
    Signal {
        /// The command.
        command: u32,
        /// 1 to 64.
        signal: i32,
    },
    /// Close a command's stdin, unless that is a terminal: init holds an end of it too.
    CloseStdin {
        /// The command.
        command: u32,
    },
    /// End a command: SIGTERM, then SIGKILL to all that is left of it.
    Stop {
        /// The command.
        command: u32,
    },
    /// Forget an ended command and close its streams.
    Forget {
        /// The command.
        command: u32,
    },
    /// A file request. With it, for some: a pipe.
    File(Box<FileRequest>),
    /// Kill everything and start again with empty uppers. Asked again for the generation that it
    /// is in, by a server that took over, it does nothing.
    Reset {
        /// Name of the new generation.
        generation: String,
    },
    /// Kill everything, and end once that is said to be done.
    End,
    /// Hold still for a picture, once that is asked for through the socket that comes with this:
    /// tell there what a picture needs, and go on when something comes, or it closes.
    Hold,
    /// Change when the sandbox ends.
    Deadline {
        /// Milliseconds since the epoch.
        at: Option<u64>,
    },
}

/// A command to be started, all defaults filled in by the server but those that only the
/// sandbox's own files tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments; looked up in `PATH` where it has no slash.
    pub argv: Vec<String>,
    /// `argv` is one line for the shell.
    pub shell: bool,
    /// Variables added to the sandbox's, as `K=V`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Rows and columns of its terminal.
    pub tty: Option<(u16, u16)>,
    /// It has a stdin.
    pub stdin: bool,
    /// It outlives its client.
    pub detach: bool,
    /// Ended after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A command as init knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandState {
    /// Its number.
    pub id: u32,
    /// Its process id inside.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// It has a terminal.
    pub tty: bool,
    /// It has a stdin.
    pub stdin: bool,
    /// It outlives its client.
    pub detach: bool,
    /// Milliseconds since the epoch.
    pub started_at: u64,
    /// How it ended.
    pub exit: Option<Ended>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code, where it exited.
    pub code: Option<i32>,
    /// Signal, where one ended it.
    pub signal: Option<i32>,
    /// It was ended because its time was up.
    pub timed_out: bool,
}

/// Which descriptors come with [`InitOk::Started`], in this order, as far as they are true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// The write end of stdin; for a terminal the master, which carries both ways.
    pub stdin: bool,
    /// For a terminal: a pipe, read end then write end, for moving output out of it. Otherwise
    /// the read ends of stdout and stderr. In both cases two descriptors.
    pub tty: bool,
    /// After these always: the memfd that holds stdout, and without a terminal the one of stderr.
    /// The length of each is the count of bytes taken from the command so far.
    pub spools: u8,
}

/// Why a command was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StartError {
    /// No such program.
    #[error("{0}: no such program in the sandbox")]
    NotFound(String),
    /// It is there but cannot be run.
    #[error("{program}: {why}")]
    NotExecutable {
        /// The program.
        program: String,
        /// Permission, format, architecture ...
        why: String,
    },
    /// The user cannot be resolved or taken on.
    #[error("user {user}: {why}")]
    User {
        /// As asked for.
        user: String,
        /// Why not.
        why: String,
    },
    /// The working directory cannot be entered.
    #[error("working directory {path}: {why}")]
    Directory {
        /// As asked for.
        path: String,
        /// Why not.
        why: String,
    },
    /// Neither bash nor sh.
    #[error("no shell in the sandbox: neither /bin/bash nor /bin/sh")]
    NoShell,
    /// The sandbox is at its limit of processes.
    #[error("no more processes: the sandbox is at its limit")]
    Processes,
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why init did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum InitError {
    /// No such command.
    #[error("no such command: {0}")]
    NoCommand(u32),
    /// The command still runs.
    #[error("command {0} still runs")]
    Running(u32),
    /// It could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A file request failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A system call failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The sandbox could not be set up.
    #[error("setting up: {0}")]
    Setup(Failure),
}

/// What init answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum InitOk {
    /// Done.
    Done,
    /// The command runs; its streams come along.
    Started {
        /// The command.
        command: CommandState,
        /// Which descriptors come along.
        streams: Streams,
    },
    /// The session; with it: the write end of the pipe that starts a line, the read end of the
    /// pipe that tells of its end, the memfd that holds the line, and the read ends of stdout and
    /// stderr.
    Session {
        /// Counts the shells of this sandbox; a change means that the state was lost.
        generation: u32,
    },
    /// All commands.
    Commands(Vec<CommandState>),
    /// Of a file request. With it, for some: a descriptor.
    File(FileReply),
}

/// Init to server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum InitMessage {
    /// The sandbox is set up; the first message of all. Answers no request.
    Ready(Result<(), InitError>),
    /// What building a clone took: names of parts, microseconds each. Comes before [`Self::Ready`].
    Rebuilt(Vec<(String, u64)>),
    /// Answers the request with this number.
    Reply {
        /// The request's.
        seq: u64,
        /// What came of it.
        result: Result<InitOk, InitError>,
    },
    /// A command ended.
    Exited {
        /// The command.
        command: u32,
        /// How.
        ended: Ended,
    },
    /// The session's shell ended.
    SessionEnded {
        /// Which shell.
        generation: u32,
        /// How.
        ended: Ended,
    },
}

/// A message that cannot be read; its sender is not one of ours.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(#[from] postcard::Error);

/// Writes a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Malformed> {
    Ok(postcard::to_stdvec(message)?)
}

/// Reads a message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    Ok(postcard::from_bytes(bytes)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> InitRequest {
        let start = Start {
            argv: vec!["sh".to_owned(), "-c".to_owned(), "a\0b".to_owned()],
            shell: false,
            env: vec!["A=b".to_owned()],
            cwd: Some("/".to_owned()),
            user: None,
            tty: Some((24, 80)),
            stdin: true,
            detach: false,
            timeout_ms: Some(u64::MAX),
        };
        InitRequest { seq: 7, body: InitBody::Start(Box::new(start)) }
    }

    #[test]
    fn a_message_cut_short_is_malformed() {
        let whole = encode(&request()).unwrap();
        assert!(matches!(decode::<InitRequest>(&whole), Ok(InitRequest { seq: 7, .. })));
        for length in 0..whole.len() {
            assert!(decode::<InitRequest>(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_of_messages_panic(bytes: Vec<u8>) {
            let _ = decode::<SpawnerRequest>(&bytes);
            let _ = decode::<SpawnerReply>(&bytes);
            let _ = decode::<InitRequest>(&bytes);
            let _ = decode::<InitMessage>(&bytes);
        }

        #[test]
        fn no_change_of_a_message_makes_its_reader_panic(at: usize, byte: u8) {
            let mut bytes = encode(&request()).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(message) = decode::<InitRequest>(&bytes) {
                prop_assert!(encode(&message).is_ok());
            }
        }
    }
}
