//! Names of Unix sockets. The file of one that is bound by a path is in the copied files already;
//! but only the file that bind(2) made leads to the socket.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use forkyard_sys::sockets::unix;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    chmod, chownat, mkdir, open, openat2, renameat, rmdir, statat, unlink, utimensat,
};

use crate::error::{Context, Result};

/// By what a socket is reached, whatever becomes of its name.
#[derive(Debug)]
pub(super) enum Reach {
    /// It has no name.
    Unnamed,
    /// An abstract name, with its zero byte.
    Abstract(Vec<u8>),
    /// Its file.
    File(OwnedFd),
}

impl Reach {
    /// Connects to it.
    pub(super) fn connect(&self, socket: impl AsFd) -> std::io::Result<()> {
        unix::connect(socket, &self.address().ok_or(std::io::ErrorKind::NotConnected)?)
    }

    /// An address that leads to it.
    pub(super) fn address(&self) -> Option<Vec<u8>> {
        match self {
            Self::Unnamed => None,
            Self::Abstract(name) => Some(name.clone()),
            Self::File(file) => Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes()),
        }
    }
}

/// Gives a socket its name. Its file is where it was, with owner, mode and times of the copy
/// there, or nowhere.
pub(super) fn bind(socket: &OwnedFd, name: Option<&[u8]>, place: Option<&[u8]>) -> Result<Reach> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Reach::Unnamed) };
    let failed = || format!("binding a socket to {}", String::from_utf8_lossy(name));
    if name.first() == Some(&0) {
        unix::bind(socket, name).context(failed)?;
        return Ok(Reach::Abstract(name.to_vec()));
    }
    let bound = if name.starts_with(b"/") {
        absolute(socket, name, place)
    } else {
        relative(socket, name, place)
    };
    bound.context(failed).map(Reach::File)
}

/// Binds where a path says, and puts whatever is there back.
fn absolute(socket: &OwnedFd, name: &[u8], place: Option<&[u8]>) -> std::io::Result<OwnedFd> {
    let parents = Parents::make(name)?;
    let before = keep_times(name);
    let aside = [name, b".forkyard"].concat();
    let had = renameat(CWD, name, CWD, aside.as_slice()).is_ok();
    unix::bind(socket, name)?;
    let file = open(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match place {
        Some(place) if place == name => {
            if had {
                let stat = statat(CWD, aside.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
                unlink(aside.as_slice())?;
                become_like(name, &stat)?;
            }
        }
        _ => {
            match place {
                Some(place) => replace(name, place)?,
                None => unlink(name)?,
            }
            if had {
                renameat(CWD, aside.as_slice(), CWD, name)?;
            }
        }
    }
    parents.remove();
    set_times(before);
    Ok(file)
}

/// Binds in a directory of our own, since nobody can tell what a relative name was relative to.
fn relative(socket: &OwnedFd, name: &[u8], place: Option<&[u8]>) -> std::io::Result<OwnedFd> {
    // It can only be moved to where it was within one file system.
    let end = place.and_then(|place| place.iter().rposition(|&byte| byte == b'/'));
    let parent = place.zip(end).and_then(|(place, end)| place.get(..end)).unwrap_or(b"/tmp");
    let before = place.and_then(keep_times);
    let base = [parent, b"/.forkyard"].concat();
    mkdir(base.as_slice(), Mode::RWXU)?;
    // Deep enough for whatever goes up.
    let up = name.split(|&byte| byte == b'/').filter(|part| *part == b"..").count();
    let mut made = vec![base.clone()];
    let mut deep = base;
    for _ in 0..up {
        deep.extend_from_slice(b"/d");
        mkdir(deep.as_slice(), Mode::RWXU)?;
        made.push(deep.clone());
    }
    let cwd = open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::chdir(deep.as_slice())?;
    let mut bind = || {
        let mut path = Vec::new();
        let parts: Vec<&[u8]> = name.split(|&byte| byte == b'/').collect();
        for part in parts.split_last().map(|(_, parents)| parents).unwrap_or_default() {
            path.extend_from_slice(part);
            if ![b"".as_slice(), b".", b".."].contains(part) {
                mkdir(path.as_slice(), Mode::RWXU)?;
                made.push([deep.as_slice(), b"/", &path].concat());
            }
            path.push(b'/');
        }
        unix::bind(socket, name)?;
        let file = open(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        match place {
            Some(place) => replace(name, place)?,
            None => unlink(name)?,
        }
        Ok(file)
    };
    let file = bind();
    rustix::process::fchdir(&cwd)?;
    for dir in made.iter().rev() {
        let _ = rmdir(dir.as_slice());
    }
    set_times(before);
    file
}

/// Puts a new socket's file where the copy of the old one is, and like it.
fn replace(from: &[u8], place: &[u8]) -> std::io::Result<()> {
    if let Ok(stat) = statat(CWD, place, AtFlags::SYMLINK_NOFOLLOW)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Socket
    {
        become_like(from, &stat)?;
        renameat(CWD, from, CWD, place)?;
        return Ok(());
    }
    Ok(unlink(from)?)
}

fn become_like(path: &[u8], stat: &Stat) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    chmod(path, Mode::from_raw_mode(stat.st_mode))?;
    Ok(utimensat(CWD, path, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or_default();
    path.get(..end.max(1)).unwrap_or_default()
}

/// When the directory of a path was changed.
fn keep_times(path: &[u8]) -> Option<(Vec<u8>, Timestamps)> {
    let parent = parent(path);
    let stat = rustix::fs::stat(parent).ok()?;
    Some((parent.to_vec(), times(&stat)))
}

fn set_times(before: Option<(Vec<u8>, Timestamps)>) {
    if let Some((parent, times)) = before {
        let _ = utimensat(CWD, parent.as_slice(), &times, AtFlags::empty());
    }
}

/// Directories above a path that are made for as long as it takes.
struct Parents(Vec<Vec<u8>>);

impl Parents {
    fn make(path: &[u8]) -> std::io::Result<Self> {
        let mut made = Self(Vec::new());
        let mut above = parent(path);
        let mut missing = Vec::new();
        // What a guest has chosen must not lead out of here by a descriptor of ours.
        let how = ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match openat2(CWD, above, flags, Mode::empty(), how) {
                Ok(_) => break,
                Err(rustix::io::Errno::NOENT) if above.len() > 1 => missing.push(above.to_vec()),
                Err(error) => return Err(error.into()),
            }
            above = parent(above);
        }
        for dir in missing.into_iter().rev() {
            mkdir(dir.as_slice(), Mode::RWXU)?;
            made.0.push(dir);
        }
        Ok(made)
    }

    fn remove(self) {
        for dir in self.0.into_iter().rev() {
            let _ = rmdir(dir.as_slice());
        }
    }
}

/// Lets everybody connect to it, as long as it is only ours.
pub(super) fn open_to_all(reach: &Reach) -> std::io::Result<()> {
    match reach.address() {
        Some(path) if path.first() != Some(&0) => {
            Ok(chmod(path.as_slice(), Mode::RWXU | Mode::RWXG | Mode::RWXO)?)
        }
        _ => Ok(()),
    }
}
