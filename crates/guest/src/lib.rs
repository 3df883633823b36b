//! What runs inside a sandbox, and what makes it: init, its sessions and file service, and the
//! spawner.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`spawner`] | the process that clones sandboxes and makes their mounts |
//! | [`init`] | process 1: starts and reaps commands, answers requests |
//! | [`files`] | the file service |
//! | [`users`] | users and groups by the sandbox's own files |
//! | [`proto`] | the messages between all of these and the server |
//!
//! All of it is single-threaded and forks without exec, so it must stay small: what it allocates
//! at its start is in every sandbox.
//!
//! # Limits
//!
//! A guest is hostile. init never opens a path of the guest's with its own rights where a link
//! could lead to a kernel file, never waits for a guest's object, and is not traceable from inside.
//!
//! # Tests
//!
//! Logic is tested beside it; the file service against a directory as its root; all of it
//! together by the tests of the `forkyard` crate, which make real sandboxes.
#![forbid(unsafe_code)]

mod devices;
mod embryo;
pub mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod init;
mod kernel_files;
mod launch;
pub mod proto;
mod rootfs;
mod session;
pub mod spawner;
mod streams;
mod sysctl;
mod template;
mod tree;
pub mod users;

pub use forkyard_snapshot::disk::FILES as SNAPSHOT_FILES;
