//! Jobs that run in children of the spawner: with its rights over the store, apart from the
//! server's memory.

use std::os::fd::OwnedFd;

/// Runs the job of this name; what it gives goes back to the server.
pub(crate) fn run(name: &str, payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
    match name {
        crate::trash::JOB => crate::trash::job(payload),
        crate::changes::JOB => crate::changes::job(payload, fds),
        crate::unpack::UNPACK => crate::unpack::unpack_job(payload, fds),
        crate::unpack::REMOVE => crate::unpack::remove_job(payload),
        _ => Vec::new(),
    }
}
