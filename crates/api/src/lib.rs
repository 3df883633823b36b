//! The HTTP API: JSON over HTTP/1.1, and framed byte streams for commands.
#![forbid(unsafe_code)]

pub mod routes;
pub mod stream;
