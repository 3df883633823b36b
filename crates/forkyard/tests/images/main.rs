//! Images through the command line and a real server: imported from everything that holds one,
//! pulled from a real registry and from bad ones, listed, inspected, run, removed; and what is
//! hostile or damaged refused. After each, the store has what images need and nothing else.

#![allow(clippy::unwrap_used)]

#[path = "../support/pty.rs"]
mod pty;
#[path = "../support/mod.rs"]
mod support;

mod config;
mod hostile;
mod import;
mod life;
mod make;
mod progress;
mod pull;
