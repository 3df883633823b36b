//! What can go wrong, said for people: what was tried on what, why not, and what to do.

use forkyard_guest::files::proto::{FileError, FileErrorKind};
use forkyard_guest::proto::{Failure, InitError, StartError, TakeError};
use forkyard_image::{DocumentError, ImportError, PullError};

use crate::cgroup;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox of that id or name.
    #[error("no such sandbox: {0}")]
    NoSandbox(String),
    /// No command of that number.
    #[error("no such command: {command} in sandbox {sandbox}")]
    NoCommand {
        /// The sandbox.
        sandbox: String,
        /// The command.
        command: u32,
    },
    /// No image of that name.
    #[error("no such image: {0}")]
    NoImage(String),
    /// The image is used by sandboxes.
    #[error("image {image}: used by sandbox {sandbox}")]
    ImageInUse {
        /// The image.
        image: String,
        /// One that uses it.
        sandbox: String,
    },
    /// No snapshot of that id or name.
    #[error("no such snapshot: {0}")]
    NoSnapshot(String),
    /// Another snapshot has the name.
    #[error("name taken: {name} is snapshot {by}")]
    SnapshotNameTaken {
        /// The name.
        name: String,
        /// Which has it.
        by: String,
    },
    /// No key of that id or name.
    #[error("no such key: {0}")]
    NoKey(String),
    /// Another key has the name.
    #[error("name taken: {name} is key {by}")]
    KeyNameTaken {
        /// The name.
        name: String,
        /// Which has it.
        by: String,
    },
    /// A snapshot needs the image.
    #[error("image {image}: used by snapshot {snapshot}")]
    ImageInSnapshot {
        /// The image.
        image: String,
        /// One that uses it.
        snapshot: String,
    },
    /// A snapshot cannot be gone on from.
    #[error("{0}")]
    NotRestored(String),
    /// What a sandbox changed could not be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is not done with something else yet.
    #[error("{0}")]
    Busy(String),
    /// Another sandbox has the name.
    #[error("name taken: {name} is sandbox {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: String,
    },
    /// The request makes no sense, before anything was done.
    #[error("{0}")]
    Invalid(String),
    /// The sandbox cannot do that in its state.
    #[error("sandbox {id} is {state}{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    State {
        /// The sandbox.
        id: String,
        /// Its state, in words.
        state: &'static str,
        /// Why it is in it.
        reason: Option<String>,
    },
    /// A command still runs.
    #[error("command {0} still runs")]
    Running(u32),
    /// A command could not be started.
    #[error(transparent)]
    Start(StartError),
    /// A file request failed.
    #[error(transparent)]
    File(FileError),
    /// A system call in the spawner or in init failed.
    #[error(transparent)]
    Kernel(Failure),
    /// A system call in the server failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on what.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The store's database failed.
    #[error("store: {0}")]
    Store(#[from] rusqlite::Error),
    /// The store's database cannot be used.
    #[error("opening {}: {source}", path.display())]
    Database {
        /// Its file.
        path: std::path::PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// Limits or accounting failed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Another server serves this store.
    #[error("store {store}: another server serves it{}", pid.as_ref().map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked {
        /// The store.
        store: String,
        /// The other server.
        pid: Option<String>,
    },
    /// Something about images failed.
    #[error("{message}")]
    Image {
        /// What was tried on what, and why it failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A sandbox could not be forked; it goes on as it was.
    #[error(transparent)]
    NotForked(TakeError),
    /// A fork would take more memory than a sandbox's limit leaves; it goes on as it was.
    #[error(
        "not enough memory to fork: the sandbox holds {} MiB of its limit of {} MiB, and the \
         fork has to copy {}", used >> 20, limit >> 20,
        copied.map_or("more than is left".to_owned(), |bytes| format!("{} MiB", bytes >> 20))
    )]
    ForkMemory {
        /// What it holds, in bytes.
        used: u64,
        /// Its limit, in bytes.
        limit: u64,
        /// What is to be copied, in bytes, where that is known.
        copied: Option<u64>,
    },
    /// The sandbox ended while it was asked for something.
    #[error("sandbox {0} ended")]
    Gone(String),
}

/// What the engine gives.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failed system call of the server's own.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoSandbox(_) => "`forkyard ls -a` lists them",
            Self::NoCommand { .. } => "`forkyard ps ID` lists a sandbox's commands",
            Self::NoImage(_) => {
                "`forkyard image ls` lists what is here; `forkyard image pull REF` and \
                 `forkyard image import PATH NAME` get more"
            }
            Self::ImageInUse { .. } => "remove the sandbox first: `forkyard rm -f ID`",
            Self::NameTaken { name, .. } => {
                let hint = format!("choose another name, or remove that one: `forkyard rm {name}`");
                return Some(hint);
            }
            Self::NoSnapshot(_) => "`forkyard snapshots` lists them",
            Self::SnapshotNameTaken { name, .. } => {
                let remove = format!("`forkyard snapshots rm {name}`");
                return Some(format!("choose another name, or remove that one: {remove}"));
            }
            Self::NoKey(_) => "`forkyard key ls` lists them",
            Self::KeyNameTaken { name, .. } => {
                let remove = format!("`forkyard key rm {name}`");
                return Some(format!("choose another name, or remove that one: {remove}"));
            }
            Self::ImageInSnapshot { .. } => "remove the snapshot first: `forkyard snapshots rm ID`",
            Self::State { state: "paused", .. } => "have it go on: `forkyard resume ID`",
            Self::State { state: "ended", .. } => "make a new one; `forkyard rm ID` removes it",
            Self::Running(_) => "end it first: `forkyard kill ID COMMAND`",
            Self::Start(StartError::Processes) => {
                "raise its limit with `--pids`, or end what runs in it"
            }
            Self::NotForked(TakeError::Refused(_)) => {
                "the sandbox goes on as it was; try again once that is not there any more, or keep \
                 its files alone: `forkyard snapshot ID --files-only`"
            }
            Self::NotForked(TakeError::Unsteady(_)) => "the sandbox goes on as it was; fork again",
            Self::ForkMemory { .. } => {
                "the sandbox goes on as it was; free memory in it, or make it with a higher \
                 `--memory`: a fork needs as much again as it copies"
            }
            Self::Locked { .. } => "give this one a store of its own: `--store DIR`",
            Self::Kernel(failure) if !failure.is_full() => {
                "`forkyard doctor` tells what this host lacks"
            }
            Self::Cgroup(error) => return error.hint(),
            Self::Image { hint, .. } => return hint.clone(),
            Self::Database { source, .. } if is_damaged(source) => {
                "put a copy of it back, or move it away: what it knew of is then forgotten"
            }
            _ if self.is_full() => {
                "free some space (`forkyard rm ID` does), or move the store: `--store DIR`"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// The HTTP status that says it best.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoSandbox(_)
            | Self::NoCommand { .. }
            | Self::NoImage(_)
            | Self::NoSnapshot(_)
            | Self::NoKey(_) => 404,
            Self::NameTaken { .. }
            | Self::State { .. }
            | Self::Running(_)
            | Self::ImageInUse { .. }
            | Self::ImageInSnapshot { .. }
            | Self::SnapshotNameTaken { .. }
            | Self::KeyNameTaken { .. }
            | Self::Busy(_)
            | Self::NotForked(TakeError::Unsteady(_))
            | Self::Locked { .. } => 409,
            Self::Invalid(_)
            | Self::Cgroup(cgroup::Error::BadLimit(_) | cgroup::Error::Lacking(_)) => 400,
            Self::Start(_)
            | Self::Image { .. }
            | Self::NotRestored(_)
            | Self::Unreadable(_)
            | Self::NotForked(TakeError::Refused(_))
            | Self::ForkMemory { .. } => 422,
            Self::Gone(_) => 410,
            Self::File(error) => match error.kind {
                FileErrorKind::NotFound => 404,
                FileErrorKind::PermissionDenied => 403,
                FileErrorKind::AlreadyExists => 409,
                FileErrorKind::NoSpace => 507,
                FileErrorKind::TooLarge(_) => 413,
                FileErrorKind::Other { .. } => 500,
                _ => 400,
            },
            _ if self.is_full() => 507,
            _ => 500,
        }
    }

    /// Whether the disk, or what the user may have of it, is full.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            Self::Store(error) | Self::Database { source: error, .. } => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Kernel(failure) => failure.is_full(),
            _ => false,
        }
    }

    /// The exit code that a command line ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start(StartError::NotFound(_)) => 127,
            Self::Start(StartError::NotExecutable { .. }) => 126,
            _ => 125,
        }
    }
}

/// Whether a database is not one, or no longer.
fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

macro_rules! image_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Image { message: error.to_string(), hint: None }
            }
        }
    )*};
}

image_errors!(forkyard_image::StoreError, forkyard_image::host::HostError);

/// What to do about an image for another platform.
const PLATFORM: &str = "`--platform OS/ARCH` takes an image for another platform; this machine may \
                        not be able to run its programs";

impl From<ImportError> for Error {
    fn from(error: ImportError) -> Self {
        let hint = match &error {
            ImportError::Document { error: DocumentError::NoPlatform { .. }, .. } => Some(PLATFORM),
            ImportError::Several(_) => Some("`forkyard image import PATH NAME` takes one of them"),
            _ => None,
        };
        Self::Image { message: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<PullError> for Error {
    fn from(error: PullError) -> Self {
        let hint = match &error {
            PullError::Document { error: DocumentError::NoPlatform { .. }, .. } => Some(PLATFORM),
            PullError::Connect { .. } => {
                Some("check the registry's name; `--plain-http` for one without TLS")
            }
            PullError::Denied { .. } => Some(
                "check the image's name; `docker login REGISTRY`, or Docker's `config.json` \
                 written by hand, gives the credentials",
            ),
            PullError::NotFound(_) => Some("check the image's name and tag"),
            PullError::Cut { .. } | PullError::Stalled { .. } => {
                Some("pull again: it goes on from what came")
            }
            _ => None,
        };
        Self::Image { message: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<InitError> for Error {
    fn from(error: InitError) -> Self {
        match error {
            InitError::NoCommand(command) => Self::NoCommand { sandbox: String::new(), command },
            InitError::Running(command) => Self::Running(command),
            InitError::Start(error) => Self::Start(error),
            InitError::File(error) => Self::File(error),
            InitError::Failed(failure) | InitError::Setup(failure) => Self::Kernel(failure),
        }
    }
}
