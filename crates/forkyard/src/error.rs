//! What can go wrong for a caller of the binary: the text, the hint and the exit code of each.

use std::io;
use std::path::PathBuf;

use forkyard_api::routes::ErrorBody;

use crate::client::frames::Offsets;

/// Exit code of forkyard's own errors, as Docker has it.
const OURS: u8 = 125;

/// Why a command line did not do what it says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not a command line, or a request for help or the version.
    #[error("{}", crate::render::command_line(.0).0)]
    CommandLine(clap::Error),
    /// Arguments that make no sense together, or a name of something that is not there.
    #[error("{what}")]
    Usage { what: String, hint: Option<String> },
    /// The server's own words.
    #[error("{}", .0.message)]
    Server(ErrorBody),
    /// Something listens, but not for us.
    #[error("connect to {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    /// No server, and none could be started.
    #[error("start the server: {why}")]
    Start { why: String, log: PathBuf },
    /// Another server has the store; the loser of two that start at once ends so.
    #[error("serve {}: another server has this store", store.display())]
    AlreadyServed { store: PathBuf },
    /// The connection broke in the middle of an exchange.
    #[error("talk to the server: {0}")]
    Http(#[from] hyper::Error),
    /// The server said something that is not in the protocol.
    #[error("talk to the server: {0}")]
    Protocol(String),
    /// The server died and took word of a command with it.
    #[error("lost the server: {why}")]
    Lost { why: String, command: Option<LostCommand> },
    /// A call of the operating system's failed.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Whoever read our stdout has gone.
    #[error("stdout is closed")]
    BrokenPipe,
    /// The caller pressed Ctrl-C twice.
    #[error("interrupted")]
    Interrupted,
}

/// Where a lost command can be picked up again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LostCommand {
    pub(crate) sandbox: String,
    pub(crate) command: u32,
    pub(crate) offsets: Offsets,
}

impl Error {
    /// A failed system call, with what it was for; a closed stdout is told apart.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// A failed write to stdout.
    pub(crate) fn stdout(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::io("write to stdout", source),
        }
    }

    /// The exit code that this error ends the process with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::CommandLine(error) if !error.use_stderr() => 0,
            Self::Server(body) => body.exit_code.and_then(|c| u8::try_from(c).ok()).unwrap_or(OURS),
            Self::AlreadyServed { .. } => 3,
            Self::BrokenPipe => 128 + 13,
            Self::Interrupted => 128 + 2,
            _ => OURS,
        }
    }

    /// Whether there is nothing more to say: the caller knows.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::BrokenPipe | Self::Interrupted)
    }

    /// Whether the server says that what was asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Server(body) if body.code == 404)
    }

    /// What to do about it, where there is something to do.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::CommandLine(error) => crate::render::command_line(error).1,
            Self::Usage { hint, .. } => hint.clone(),
            Self::Server(body) => body.hint.clone(),
            Self::Connect { .. } => {
                Some("`--socket PATH` or FORKYARD_SOCKET names another server's socket".to_owned())
            }
            Self::Start { log, .. } => {
                Some(format!("its log is {}; `forkyard doctor` checks this host", log.display()))
            }
            Self::Lost { command: Some(lost), .. } => Some(format!(
                "the command may still run: `forkyard attach {} {} --stdout {} --stderr {}`",
                lost.sandbox, lost.command, lost.offsets.stdout, lost.offsets.stderr
            )),
            Self::Lost { command: None, .. } => {
                Some("the command may not have been started: `forkyard ls -a`".to_owned())
            }
            _ => None,
        }
    }
}
