//! What a server says to the init of a sandbox, and what init says to it.

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::files::proto::{FileError, FileReply, FileRequest};

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
    /// Start a command. The reply brings its streams: see [`InitOk::Started`].
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
    /// Give a descriptor of the user namespace that it is in.
    Namespace,
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
    /// A command was started that nobody had asked for: a hook. Its streams come along, see
    /// [`InitOk::Started`].
    Began {
        /// The command.
        command: CommandState,
        /// Which descriptors come along.
        streams: Streams,
    },
    /// Something that keeps nothing from going on, for the server's log.
    Warning(String),
    /// The session's shell ended.
    SessionEnded {
        /// Which shell.
        generation: u32,
        /// How.
        ended: Ended,
    },
}
