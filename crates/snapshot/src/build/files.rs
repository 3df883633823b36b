//! Open files, made by init for all processes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::process::SingleThreaded;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::pipe::{PipeFlags, pipe_with};

use super::locks;
use super::loose::{self, Made};
use super::terminals::Terminals;
use super::{Home, events, inet, netlink, sockets};
use crate::error::{Context, Result};
use crate::listing;
use crate::picture::{AreaKind, Body, Description, DescriptionKind, FileRef, Picture, Pipe};
use crate::stage::Stage;

/// What `O_*` flags of a description can be asked for again.
const KEPT: OFlags = OFlags::APPEND
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::PATH)
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);

/// All that was opened.
pub(super) struct Files {
    /// As the picture's descriptions; without those that each process opens for itself.
    descriptions: Vec<Option<OwnedFd>>,
    /// Peers of sockets that will be gone.
    pub(super) leaving: RefCell<Vec<sockets::Leaving>>,
    /// What processes add to their epoll descriptors.
    pub(super) own: events::Own,
    /// Files that are mapped or run, and whether they are written.
    pub(super) mapped: BTreeMap<(FileRef, bool), OwnedFd>,
    /// As the picture's.
    pub(super) loose: Vec<Made>,
}

impl Files {
    /// An open file description by its index.
    pub(super) fn description(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.descriptions.get(index)?.as_ref().map(AsFd::as_fd)
    }

    /// Closes all but what is to be let go in a way of its own.
    pub(super) fn into_loose(self) -> Vec<Made> {
        self.loose
    }
}

pub(super) fn open_all(
    proof: &SingleThreaded,
    picture: &Picture,
    stage: &Stage,
    home: &mut dyn Home,
    terminals: &mut Terminals,
) -> Result<Files> {
    let mut pipes = Vec::with_capacity(picture.pipes.len());
    for pipe in &picture.pipes {
        pipes.push(make_pipe(pipe)?);
    }
    let loose = loose::make_all(picture, stage, home)?;
    let mut made = sockets::make_all(picture)?;
    let mut internet = inet::open_all(picture)?;
    let mut descriptions = Vec::with_capacity(picture.descriptions.len());
    for (index, description) in picture.descriptions.iter().enumerate() {
        let opened = match &description.kind {
            DescriptionKind::Event(event) => {
                events::open(proof, event, OFlags::from_bits_retain(description.flags))?
            }
            DescriptionKind::OfProcess(_) => None,
            DescriptionKind::UnixSocket(_) => made.all.remove(&index),
            DescriptionKind::Inet(_) => internet.remove(&index),
            kind => {
                let file = match kind {
                    DescriptionKind::Terminal { .. } => terminals.take(index)?,
                    _ => open_one(description, &pipes, &loose, home)?,
                };
                locks::take(&file, description)?;
                Some(file)
            }
        };
        descriptions.push(opened);
    }
    let mapped = open_mapped(picture, &loose)?;
    Ok(Files {
        descriptions,
        own: events::own(picture),
        mapped,
        loose,
        leaving: RefCell::new(made.leaving),
    })
}

fn open_one(
    description: &Description,
    pipes: &[(OwnedFd, OwnedFd)],
    loose: &[Made],
    home: &mut dyn Home,
) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(description.flags);
    match &description.kind {
        DescriptionKind::Outside(number) => {
            home.outside(*number).context(|| "a stream of a command".to_owned())
        }
        DescriptionKind::Path(path) => {
            open_path(path, flags | OFlags::NOFOLLOW, description.position)
        }
        DescriptionKind::Directory(path, rest) => {
            let file = open_path(path, flags | OFlags::NOFOLLOW, 0)?;
            listing::restore(&file, description.position, *rest, path)?;
            Ok(file)
        }
        DescriptionKind::Loose(index) => {
            let path = made(loose, *index)?.path()?;
            open_path(path.as_bytes(), flags - OFlags::NOFOLLOW, description.position)
        }
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
        DescriptionKind::Netlink(socket) => {
            netlink::open(socket, flags).context(|| "opening a netlink socket".to_owned())
        }
        DescriptionKind::MessageQueue(name) => {
            let how = (flags & (OFlags::RWMODE | OFlags::NONBLOCK)).bits().cast_signed();
            forkyard_sys::message_queues::open(name, how | libc::O_CLOEXEC)
                .context(|| format!("opening the message queue {}", name.to_string_lossy()))
        }
        DescriptionKind::Event(_)
        | DescriptionKind::OfProcess(_)
        | DescriptionKind::Terminal { .. }
        | DescriptionKind::UnixSocket(_)
        | DescriptionKind::Inet(_) => {
            Err(crate::error::unreadable("a picture: what is made elsewhere"))
        }
    }
}

fn made(loose: &[Made], index: usize) -> Result<&Made> {
    loose.get(index).ok_or_else(|| crate::error::unreadable("a picture: no such loose file"))
}

/// Opens a path as it was open.
pub(super) fn open_path(path: &[u8], flags: OFlags, position: u64) -> Result<OwnedFd> {
    let failed = || format!("opening {}", String::from_utf8_lossy(path));
    let how = flags & (OFlags::RWMODE | KEPT) | OFlags::CLOEXEC | OFlags::NOCTTY;
    // `O_TMPFILE` has the bit of a directory, and the file that it made keeps both.
    let made_there = flags.bits() & OFlags::TMPFILE.difference(OFlags::DIRECTORY).bits() != 0;
    let how = if made_there { how - OFlags::DIRECTORY } else { how };
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

fn open_mapped(picture: &Picture, loose: &[Made]) -> Result<BTreeMap<(FileRef, bool), OwnedFd>> {
    let mut mapped = BTreeMap::new();
    let mut add = |file: &FileRef, write: bool| -> Result<()> {
        if let Entry::Vacant(place) = mapped.entry((file.clone(), write)) {
            let mode = if write { OFlags::RDWR } else { OFlags::RDONLY };
            let path = path_of(file, loose)?;
            let file = open(path.as_slice(), mode | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("opening {}", String::from_utf8_lossy(&path)))?;
            place.insert(file);
        }
        Ok(())
    };
    for process in &picture.processes {
        let Body::Alive(alive) = &process.body else { continue };
        add(&alive.memory.program, false)?;
        for area in &alive.memory.areas {
            if let AreaKind::File { file, writable, .. } = &area.kind {
                add(file, *writable)?;
            }
        }
    }
    Ok(mapped)
}

/// A path to open a file by, in this process.
pub(super) fn path_of(file: &FileRef, loose: &[Made]) -> Result<Vec<u8>> {
    match file {
        FileRef::Path(path) => Ok(path.clone()),
        FileRef::Loose(index) => made(loose, *index)?.path().map(String::into_bytes),
    }
}
