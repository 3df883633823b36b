//! Files that no path leads to, and shared memory, made anew by init for all processes.

use std::os::fd::{AsRawFd, OwnedFd};

use forkyard_sys::memory::Pages;
use rustix::fs::{
    Gid, MemfdFlags, Mode, OFlags, SealFlags, Timespec, Timestamps, Uid, fchmod, fchown,
    fcntl_add_seals, ftruncate, futimens, memfd_create, mkdir, open, rmdir,
};

use super::Home;
use super::system_v::Segment;
use crate::error::{Context, Error, Result, unreadable};
use crate::picture::{Loose, LooseKind, Picture};
use crate::stage::Stage;

/// What was made.
pub(super) enum Made {
    /// Shared memory, where all processes that are forked find it.
    Shared(Pages),
    /// Shared memory with an id, likewise.
    SystemV(Segment),
    /// An open file, or a directory.
    File(OwnedFd),
}

impl Made {
    /// A path to open it by, in this process.
    pub(super) fn path(&self) -> Result<String> {
        match self {
            Self::File(file) => Ok(format!("/proc/self/fd/{}", file.as_raw_fd())),
            Self::Shared(_) | Self::SystemV(_) => {
                Err(unreadable("a picture: shared memory has no path"))
            }
        }
    }
}

/// Makes all of them.
pub(super) fn make_all(picture: &Picture, stage: &Stage, home: &dyn Home) -> Result<Vec<Made>> {
    picture.loose.iter().map(|loose| make(loose, stage, home)).collect()
}

fn make(loose: &Loose, stage: &Stage, home: &dyn Home) -> Result<Made> {
    match &loose.kind {
        LooseKind::Anonymous { at } => {
            let failed = || "mapping shared memory".to_owned();
            let length = loose.size.next_multiple_of(4096).max(4096);
            let mut pages = Pages::map_shared(*at, length).context(failed)?;
            for &(offset, length, staged) in &loose.parts {
                pages.populate(at + offset, length);
                stage.copy_to(&mut pages, at + offset, (staged, length))?;
            }
            Ok(Made::Shared(pages))
        }
        LooseKind::SystemV { object, at, read_only } => {
            Segment::make(loose, object, [*at, *read_only], stage, home).map(Made::SystemV)
        }
        LooseKind::Memfd { name, seals } => {
            let failed = || "memfd_create".to_owned();
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let name = String::from_utf8_lossy(name);
            let file = memfd_create(name.as_ref(), flags).context(failed)?;
            fill(&file, loose, stage)?;
            if !is_late(*seals) {
                seal(&file, *seals)?;
            }
            Ok(Made::File(file))
        }
        LooseKind::Deleted { path, nameable } => {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            let flags = if *nameable { flags } else { flags | OFlags::EXCL };
            let file = open_below(path, |dir| open(dir, flags, Mode::RUSR | Mode::WUSR))?;
            fill(&file, loose, stage)?;
            Ok(Made::File(file))
        }
        LooseKind::Removed { path } => open_below(path, removed).map(Made::File),
    }
}

/// Seals that forbid new mappings for writing, but not those that there are: set when these are
/// there.
fn is_late(seals: u32) -> bool {
    let seals = SealFlags::from_bits_retain(seals);
    seals.contains(SealFlags::FUTURE_WRITE) && !seals.contains(SealFlags::WRITE)
}

fn seal(file: &OwnedFd, seals: u32) -> Result<()> {
    fcntl_add_seals(file, SealFlags::from_bits_retain(seals)).context(|| "F_ADD_SEALS".to_owned())
}

/// Sets what could not be set before all processes had their mappings.
pub(super) fn finish(picture: &Picture, made: &[Made]) -> Result<()> {
    for (loose, made) in picture.loose.iter().zip(made) {
        match (&loose.kind, made) {
            (LooseKind::Memfd { seals, .. }, Made::File(file)) if is_late(*seals) => {
                seal(file, *seals)?;
            }
            (_, Made::SystemV(segment)) => segment.finish()?,
            _ => {}
        }
    }
    Ok(())
}

/// Lets go of what processes have by themselves now.
pub(super) fn release(made: Vec<Made>) -> Result<()> {
    for made in made {
        match made {
            Made::Shared(pages) => pages.unmap().context(|| "munmap".to_owned())?,
            Made::SystemV(segment) => segment.release()?,
            Made::File(_) => {}
        }
    }
    Ok(())
}

/// Makes something in the directory where a path led to, or the closest above that is there and
/// can be written.
fn open_below(path: &[u8], make: impl Fn(&[u8]) -> rustix::io::Result<OwnedFd>) -> Result<OwnedFd> {
    let mut dir = path;
    loop {
        let end = dir.iter().rposition(|&byte| byte == b'/').unwrap_or_default();
        dir = dir.get(..end).unwrap_or_default();
        let place = if dir.is_empty() { b"/".as_slice() } else { dir };
        match make(place) {
            Ok(made) => return Ok(made),
            Err(error) if dir.is_empty() => {
                let what = format!("making {} anew", String::from_utf8_lossy(path));
                return Err(Error::Failed { what, source: error.into() });
            }
            Err(_) => {}
        }
    }
}

/// A directory that is removed as soon as it is open.
fn removed(dir: &[u8]) -> rustix::io::Result<OwnedFd> {
    let mut path = dir.to_vec();
    path.extend_from_slice(b"/.forkyard-removed");
    mkdir(path.as_slice(), Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(path.as_slice(), flags, Mode::empty());
    rmdir(path.as_slice())?;
    opened
}

fn fill(file: &OwnedFd, loose: &Loose, stage: &Stage) -> Result<()> {
    let failed = || "making a file without a name".to_owned();
    ftruncate(file, loose.size).context(failed)?;
    for &(offset, length, staged) in &loose.parts {
        stage.write_to(file, offset, (staged, length))?;
    }
    let (uid, gid) = loose.owner;
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context(failed)?;
    fchmod(file, Mode::from_raw_mode(loose.mode)).context(failed)?;
    let [last_access, last_modification] =
        loose.times.map(|(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec });
    futimens(file, &Timestamps { last_access, last_modification }).context(failed)
}
