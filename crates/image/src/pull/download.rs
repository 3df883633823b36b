//! Downloads one blob into a file, going on where an earlier attempt ended.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::blocking;
use super::error::{PullError, io};
use super::registry::{BlobStream, Registry};
use crate::digest::Hasher;
use crate::oci::Descriptor;

/// Chunks that may wait for the disk; with 16 KiB each, the usual size, 1 MiB.
const QUEUE: usize = 64;

/// Progress is told no more often than this: a screen shows no more.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What has come of a blob so far.
struct Part {
    file: File,
    /// Has seen all bytes of the file.
    hasher: Hasher,
    length: u64,
}

/// Downloads a blob until the file is whole and has its digest. A file with other contents is
/// removed; one that is cut off stays.
pub(super) async fn fetch(
    registry: &Registry,
    blob: &Descriptor,
    path: &Path,
    retries: u32,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<(), PullError> {
    let mut attempt = 0;
    loop {
        match fetch_once(registry, blob, path, tell).await {
            Err(error) if error.is_passing() && attempt < retries => {
                attempt += 1;
                tracing::debug!(blob = %blob.digest, %error, attempt, "going on with a download");
                tokio::time::sleep(Duration::from_millis(200) * attempt).await;
            }
            other => return other,
        }
    }
}

async fn fetch_once(
    registry: &Registry,
    blob: &Descriptor,
    path: &Path,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<(), PullError> {
    let mut part = open(blob, path).await?;
    tell(part.length);
    if part.length < blob.size {
        part = receive(registry, blob, part, path, tell).await?;
    }
    let actual = part.hasher.finish();
    if actual == blob.digest {
        return Ok(());
    }
    std::fs::remove_file(path).map_err(io("unlink", path))?;
    Err(PullError::wrong_digest(&blob.digest, &actual))
}

/// Opens what an earlier attempt has left, and reads it for the digest.
async fn open(blob: &Descriptor, path: &Path) -> Result<Part, PullError> {
    let (at, algorithm, size) = (path.to_path_buf(), blob.digest.algorithm(), blob.size);
    let open = move || -> std::io::Result<Part> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&at)?;
        let mut hasher = Hasher::new(algorithm);
        let mut length = hasher.update_from(&mut file)?;
        if length > size {
            file.set_len(0)?;
            file.rewind()?;
            (length, hasher) = (0, Hasher::new(algorithm));
        }
        Ok(Part { file, hasher, length })
    };
    blocking(open).await?.map_err(io("open", path))
}

/// Receives the rest of a blob. Hashing and writing happen on a thread of their own.
async fn receive(
    registry: &Registry,
    blob: &Descriptor,
    mut part: Part,
    path: &Path,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<Part, PullError> {
    let mut stream = match registry.blob(&blob.digest, part.length).await? {
        BlobStream::Rest(stream) => stream,
        BlobStream::Whole(stream) => {
            part.file.set_len(0).map_err(io("ftruncate", path))?;
            part.hasher = Hasher::new(blob.digest.algorithm());
            part.length = 0;
            stream
        }
    };
    let mut got = part.length;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(QUEUE);
    let writer = tokio::task::spawn_blocking(move || -> std::io::Result<Part> {
        part.file.seek(SeekFrom::Start(part.length))?;
        while let Some(chunk) = receiver.blocking_recv() {
            part.file.write_all(&chunk)?;
            part.hasher.update(&chunk);
            part.length += chunk.len() as u64;
        }
        Ok(part)
    });
    let mut told = Instant::now();
    let mut failure = None;
    while got < blob.size {
        let chunk = match stream.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                failure = Some(registry.transfer(&blob.digest, &error));
                break;
            }
            None => break,
        };
        got += chunk.len() as u64;
        // A closed queue: the disk is full. The writer says so below.
        if got > blob.size || sender.send(chunk.to_vec()).await.is_err() {
            break;
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(got);
        }
    }
    drop(sender);
    let written = writer.await.map_err(|e| PullError::Internal(e.to_string()))?;
    let part = written.map_err(io("write", path))?;
    if got > blob.size {
        return Err(PullError::wrong_digest(
            &blob.digest,
            &format!("of more than {} bytes", blob.size),
        ));
    }
    if part.length < blob.size {
        let cut = PullError::Cut {
            registry: registry.host().to_owned(),
            what: blob.digest.to_string(),
            got: part.length,
            of: blob.size,
        };
        // Anything but a time-out in the middle of a body is an end that came too soon.
        return Err(match failure {
            Some(stalled @ PullError::Stalled { .. }) => stalled,
            _ => cut,
        });
    }
    tell(got);
    Ok(part)
}
