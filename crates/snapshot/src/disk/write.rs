//! Writing a snapshot: pages first, the header last, then all of it to the disk itself.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32fast::Hasher;
use serde::Serialize;

use super::error::{Context, Error, Result, damaged};
use super::header::{Header, Part};
use super::host::Host;
use super::{FILES, HEADER, PAGES, PICTURE, Saved, marks, tree};
use crate::capture::Taken;
use crate::stage::Plan;
use crate::times::Times;

/// Bytes of pages that are written, and read again for their checksum, at once.
const CHUNK: u64 = 1024 * 1024;

/// What is to be written. The directory has `files` already.
#[derive(Debug)]
pub struct Content<'a, R> {
    /// Picture and memory; none for files alone.
    pub taken: Option<&'a Taken>,
    /// Root directory of the sandbox, for the files that its processes have mapped.
    pub root: &'a OwnedFd,
    /// What else whoever reads it needs to know.
    pub records: &'a R,
    /// When it was taken, in milliseconds since the epoch.
    pub taken_at: u64,
    /// See [`Header::image`].
    pub image: &'a str,
    /// See [`Header::ids`].
    pub ids: &'a str,
}

/// How writing went.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Bytes on disk.
    pub length: u64,
    /// How long its parts took.
    pub times: Times,
}

/// Writes a snapshot into a directory; on return it has reached the disk, but for the directory's
/// own name. Given up when `go_on` says so.
///
/// # Errors
/// What the kernel said; what was written by then is of no use.
pub fn write<R: Serialize>(
    dir: &Path,
    content: &Content<'_, R>,
    go_on: &dyn Fn() -> bool,
) -> Result<Written> {
    let mut written = Written { times: Times::start(), ..Written::default() };
    let mut header = Header {
        taken_at: content.taken_at,
        image: content.image.to_owned(),
        ids: content.ids.to_owned(),
        ..Header::default()
    };
    if let Some(taken) = content.taken {
        header.host = Some(Host::this()?);
        let plan = taken.stage.plan(&taken.picture)?;
        header.pages = Some(write_pages(dir, taken, &plan, go_on)?);
        written.times.mark("pages");
        let seconds = (content.taken_at / 1000).cast_signed();
        let marks = marks::mark(&taken.picture, content.root, seconds);
        let saved = Saved { picture: &taken.picture, plan, marks, records: content.records };
        header.picture = Some(write_picture(dir, &saved)?);
        written.times.mark("picture");
    }
    let files = dir.join(FILES);
    let failed = |path: &Path| format!("reading {}", path.display());
    let failed = |source| {
        if go_on() { Error::Failed { what: failed(&files), source } } else { Error::Abandoned }
    };
    for name in tree::names(&files).map_err(failed)? {
        let read = tree::sum(&files, &name, go_on).map_err(failed)?;
        header.files.insert(name, read.part);
    }
    written.times.mark("files");
    let bytes = header.to_bytes()?;
    let what = || format!("writing {}", dir.join(HEADER).display());
    let mut file = File::create_new(dir.join(HEADER)).context(what)?;
    file.write_all(&bytes).context(what)?;
    file.sync_all().context(what)?;
    let what = || format!("syncing {}", dir.display());
    let opened = File::open(dir).context(what)?;
    if !header.files.is_empty() {
        // One call for all files there are, which a guest made as many of as it liked.
        rustix::fs::syncfs(&opened).context(what)?;
    }
    opened.sync_all().context(what)?;
    written.times.mark("sync");
    let parts = [header.picture, header.pages].into_iter().flatten().map(|part| part.length);
    let files = header.files.values().map(|part| part.length);
    written.length = parts.chain(files).sum::<u64>() + bytes.len() as u64;
    Ok(written)
}

fn write_pages(dir: &Path, taken: &Taken, plan: &Plan, go_on: &dyn Fn() -> bool) -> Result<Part> {
    let path = dir.join(PAGES);
    let failed = || format!("writing {}", path.display());
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.context(failed)?;
    taken.stage.open().context(failed)?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; CHUNK as usize]);
    let mut length = 0;
    let mirrors = plan.mirrors.iter().enumerate();
    let ranges = mirrors.flat_map(|(n, mirror)| mirror.filled.iter().map(move |range| (n, *range)));
    for (mirror, (start, range)) in ranges {
        let mut done = 0;
        while done < range {
            if !go_on() {
                return Err(Error::Abandoned);
            }
            let count = CHUNK.min(range - done);
            let part = (start + done, count);
            taken.stage.write_range(mirror, part, &file, length).context(failed)?;
            let chunk = buffer.get_mut(..count as usize).unwrap_or_default();
            file.read_exact_at(chunk, length).context(failed)?;
            hasher.update(chunk);
            done += count;
            length += count;
        }
    }
    file.sync_all().context(failed)?;
    Ok(Part { length, checksum: hasher.finalize() })
}

fn write_picture<T: Serialize>(dir: &Path, saved: &T) -> Result<Part> {
    let path = dir.join(PICTURE);
    let failed = || format!("writing {}", path.display());
    let mut bytes = Vec::new();
    ciborium::into_writer(saved, &mut bytes)
        .map_err(|error| damaged(format!("its picture cannot be written: {error}")))?;
    let mut file = File::create_new(&path).context(failed)?;
    file.write_all(&bytes).context(failed)?;
    file.sync_all().context(failed)?;
    Ok(Part { length: bytes.len() as u64, checksum: crc32fast::hash(&bytes) })
}
