//! The HTTP API: JSON over HTTP/1.1, and framed byte streams for commands.
//!
//! [`routes`] and [`stream`] are what clients need; [`serve`] is the server.
//!
//! # Limits
//!
//! A JSON body has at most 8 MiB and two minutes to arrive, a request head 64 KiB and 30 seconds; contents of
//! files and archives stream and have no limit.
#![forbid(unsafe_code)]

mod body;
mod commands;
mod diff;
mod error;
mod files;
mod images;
mod keys;
mod pipe;
mod remote;
pub mod routes;
mod sandboxes;
mod server;
mod snapshots;
pub mod stream;

pub use remote::{Remote, Tls, TlsError};
pub use server::{Served, serve};
