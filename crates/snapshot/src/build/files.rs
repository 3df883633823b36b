//! Open files, made by init for all processes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Home;
use crate::error::{Context, Result};
use crate::picture::{AreaKind, Body, Description, DescriptionKind, Picture, Pipe};

/// What `O_*` flags of a description can be asked for again.
const KEPT: OFlags = OFlags::APPEND
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::PATH)
    .union(OFlags::DIRECTORY)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);

/// All that was opened.
pub(super) struct Files {
    /// As the picture's descriptions.
    pub(super) descriptions: Vec<OwnedFd>,
    /// Files that are mapped or run, by path and whether they are written.
    pub(super) mapped: BTreeMap<(Vec<u8>, bool), OwnedFd>,
}

pub(super) fn open_all(picture: &Picture, home: &mut dyn Home) -> Result<Files> {
    let mut pipes = Vec::with_capacity(picture.pipes.len());
    for pipe in &picture.pipes {
        pipes.push(make_pipe(pipe)?);
    }
    let mut descriptions = Vec::with_capacity(picture.descriptions.len());
    for description in &picture.descriptions {
        descriptions.push(open_one(description, &pipes, home)?);
    }
    Ok(Files { descriptions, mapped: open_mapped(picture)? })
}

fn open_one(
    description: &Description,
    pipes: &[(OwnedFd, OwnedFd)],
    home: &mut dyn Home,
) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(description.flags);
    match &description.kind {
        DescriptionKind::Outside(number) => {
            home.outside(*number).context(|| "a stream of a command".to_owned())
        }
        DescriptionKind::Path(path) => open_path(path, flags, description.position),
        DescriptionKind::Pipe(index) => {
            let Some((read, write)) = pipes.get(*index) else {
                return Err(crate::error::unreadable("a picture: no such pipe"));
            };
            let end = match flags & OFlags::RWMODE {
                OFlags::RDONLY => read,
                _ => write,
            };
            open_pipe_end(end, flags)
        }
    }
}

fn open_path(path: &[u8], flags: OFlags, position: u64) -> Result<OwnedFd> {
    let failed = || format!("opening {}", String::from_utf8_lossy(path));
    let how = flags & (OFlags::RWMODE | KEPT) | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = open(path, how, Mode::empty()).context(failed)?;
    if position != 0 && !flags.contains(OFlags::PATH) {
        seek(&file, SeekFrom::Start(position)).context(failed)?;
    }
    Ok(file)
}

/// A pipe with what was in it.
fn make_pipe(pipe: &Pipe) -> Result<(OwnedFd, OwnedFd)> {
    let failed = || "making a pipe".to_owned();
    let (read, write) = match &pipe.path {
        None => pipe_with(PipeFlags::CLOEXEC).context(failed)?,
        Some(path) => {
            // Open for both, so that neither end waits for the other.
            let open_fifo = |flags| open(path.as_slice(), flags | OFlags::CLOEXEC, Mode::empty());
            let both = open_fifo(OFlags::RDWR).context(failed)?;
            let read = open_fifo(OFlags::RDONLY | OFlags::NONBLOCK).context(failed)?;
            drop(read);
            (both.try_clone().context(failed)?, both)
        }
    };
    if pipe.capacity != 0 {
        rustix::pipe::fcntl_setpipe_size(&write, pipe.capacity as usize).context(failed)?;
    }
    let mut rest = pipe.unread.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(&write, rest).context(failed)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok((read, write))
}

/// A description of its own of a pipe's end.
fn open_pipe_end(end: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    let how = flags & (OFlags::RWMODE | OFlags::NONBLOCK | OFlags::DIRECT) | OFlags::CLOEXEC;
    open(path.as_str(), how, Mode::empty()).context(|| "opening the end of a pipe".to_owned())
}

fn open_mapped(picture: &Picture) -> Result<BTreeMap<(Vec<u8>, bool), OwnedFd>> {
    let mut mapped = BTreeMap::new();
    let mut add = |path: &Vec<u8>, write: bool| -> Result<()> {
        if let Entry::Vacant(place) = mapped.entry((path.clone(), write)) {
            let mode = if write { OFlags::RDWR } else { OFlags::RDONLY };
            let file = open(path.as_slice(), mode | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("opening {}", String::from_utf8_lossy(path)))?;
            place.insert(file);
        }
        Ok(())
    };
    for process in &picture.processes {
        let Body::Alive(alive) = &process.body else { continue };
        add(&alive.memory.program, false)?;
        for area in &alive.memory.areas {
            if let AreaKind::File { path, writable, .. } = &area.kind {
                add(path, *writable)?;
            }
        }
    }
    Ok(mapped)
}
