//! Sandboxes as state machines: create, run, reset, delete; the store; recovery.
//!
//! [`Engine`] is what a server does, without HTTP. One process per store: see
//! `ARCHITECTURE.md` for how it, the spawner and the sandboxes' inits work together.
//!
//! ```no_run
//! # async fn example() -> forkyard_engine::Result<()> {
//! use forkyard_engine::{Engine, model::SandboxSpec};
//!
//! let engine = Engine::open("/var/lib/forkyard".as_ref()).await?;
//! let sandbox = engine.create(SandboxSpec::default()).await?;
//! let output = sandbox.run_line("echo hello", None).await?;
//! assert_eq!(output.stdout, "hello\n");
//! engine.delete(&sandbox).await
//! # }
//! ```
//!
//! # Limits
//!
//! It runs on a tokio runtime with IO and time; the program that embeds it must answer to the
//! argument `spawner` by [`spawner_main`], since the engine starts `/proc/self/exe` with it.
//!
//! # Tests
//!
//! Logic and cgroups are tested here; sandboxes by the tests of the `forkyard` crate.
#![forbid(unsafe_code)]

mod account;
mod base;
#[doc(hidden)]
pub mod benching;
pub mod cgroup;
mod changes;
mod check;
pub mod clock;
mod command;
mod cradle;
mod engine;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ids;
pub mod images;
mod jobs;
mod keys;
mod layout;
mod link;
pub mod model;
mod output;
mod recovery;
mod sandbox;
mod session;
mod snapshots;
mod spawner;
mod spawner_main;
mod store;
mod trash;
mod unpack;
mod workspace;

pub use command::{Attachment, RunningCommand};
pub use engine::{Diff, Engine};
pub use error::{Error, Result};
pub use ids::Mode;
pub use output::{Follower, Spool};
pub use sandbox::LiveSandbox;
pub use spawner_main::spawner_main;

/// The file service's requests and answers, as [`LiveSandbox::file`] takes and gives them.
pub mod files {
    use std::io;
    use std::os::fd::OwnedFd;

    pub use forkyard_guest::files::proto::{
        Entry, EntryKind, FileError, FileErrorKind, FileOp, FileReply, FileRequest, INLINE_MAX,
        WriteTarget, read_entries,
    };

    /// A pipe for an archive's bytes: its reading end, then its writing end.
    pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
    }
}
