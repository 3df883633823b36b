//! Unpacks layers in a child of the spawner.
//!
//! The child has the ids that files of a layer belong to, which a server without root has not, and
//! a parser of hostile archives that breaks there breaks nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use forkyard_image::{
    Blob, InProcess, Limits, Ownership, UnpackError, UnpackJob, Unpacked, Unpacker,
};
use forkyard_sys::channel;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::spawner::Spawner;

/// Names of the jobs.
pub(crate) const UNPACK: &str = "unpack";
pub(crate) const REMOVE: &str = "remove";

/// What the unpacking job is told; the blob and the destination go along as descriptors.
#[derive(Serialize, Deserialize)]
struct Order {
    offset: u64,
    length: u64,
    ownership: Ownership,
    limits: Limits,
}

/// Sends the work to the spawner. Used from threads that may block.
#[derive(Clone, Debug)]
pub(crate) struct SpawnerUnpacker {
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) runtime: Handle,
}

impl SpawnerUnpacker {
    fn run(&self, job: &str, payload: Vec<u8>, fds: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
        let socket = self
            .runtime
            .block_on(self.spawner.job(job, payload, fds))
            .map_err(|e| io::Error::other(e.to_string()))?;
        match channel::receive(&socket)? {
            Some(message) => Ok(message.bytes),
            None => Err(io::Error::other("the unpacking process died")),
        }
    }
}

impl Unpacker for SpawnerUnpacker {
    fn unpack(
        &self,
        blob: Blob<'_>,
        destination: BorrowedFd<'_>,
        ownership: Ownership,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError> {
        let order = Order { offset: blob.offset, length: blob.length, ownership, limits };
        let broken = |e: String| UnpackError::Process(e);
        let payload = postcard::to_stdvec(&order).map_err(|e| broken(e.to_string()))?;
        let answer = self
            .run(UNPACK, payload, &[blob.file.as_fd(), destination])
            .map_err(|e| broken(e.to_string()))?;
        serde_json::from_slice::<Result<Unpacked, UnpackError>>(&answer)
            .map_err(|e| broken(e.to_string()))?
    }

    fn remove(&self, tree: &Path) -> io::Result<()> {
        let answer = self.run(REMOVE, tree.as_os_str().as_bytes().to_vec(), &[])?;
        match String::from_utf8_lossy(&answer).as_ref() {
            "" => Ok(()),
            error => Err(io::Error::other(error.to_owned())),
        }
    }
}

/// The job: unpacks, and tells what came of it as JSON.
pub(crate) fn unpack_job(payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
    let result = match (postcard::from_bytes::<Order>(payload), <[OwnedFd; 2]>::try_from(fds)) {
        (Ok(order), Ok([blob, destination])) => forkyard_image::unpack(&UnpackJob {
            blob: File::from(blob),
            offset: order.offset,
            length: order.length,
            destination,
            ownership: order.ownership,
            limits: order.limits,
        }),
        _ => Err(UnpackError::Process("malformed order".to_owned())),
    };
    serde_json::to_vec(&result).unwrap_or_default()
}

/// The job: removes a tree, and tells the error if there is one.
pub(crate) fn remove_job(payload: &[u8]) -> Vec<u8> {
    let path = Path::new(std::ffi::OsStr::from_bytes(payload));
    match InProcess.remove(path) {
        Ok(()) => Vec::new(),
        Err(error) => error.to_string().into_bytes(),
    }
}
