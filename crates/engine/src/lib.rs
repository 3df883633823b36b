//! Sandboxes as state machines: create, run, reset, delete; the store; recovery.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod model;
