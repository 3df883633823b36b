//! Whom Unix sockets talk to, and where their files are: known when all have been seen.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::Capture;
use super::sockets::Found;
use super::unix_diag::{self, LISTENS, Told};
use crate::error::{Context, Result};
use crate::picture::sockets::{Socket, State};
use crate::picture::{Body, FileRef};
use crate::proc;

/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 65_536;

impl Capture<'_> {
    /// Finds whom all sockets talk to, and where their files are.
    pub(super) fn resolve_sockets(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.descriptions.sockets);
        let Some(first) = found.first() else { return Ok(()) };
        let Some(diag) = &self.subject.diag else {
            return Err(first.waiting.refuse("a socket, of which this kernel tells nothing"));
        };
        let told = unix_diag::ask(diag)?;
        let indices: HashMap<u32, usize> =
            found.iter().map(|socket| (socket.inode, socket.waiting.index)).collect();
        let nothing = Told::default();
        let pending: Vec<u32> = found
            .iter()
            .flat_map(|socket| told.get(&socket.inode).map_or(&[][..], |told| &told.pending))
            .copied()
            .collect();
        for socket in &found {
            let told = told.get(&socket.inode).unwrap_or(&nothing);
            let state = state(socket, told, &indices, &pending)?;
            let Some(Socket { name, .. }) = self.socket_mut(socket.waiting.index) else { continue };
            let name = name.clone();
            let place = match (&name, told.file) {
                (Some(name), Some(inode)) => self.place_of(socket, name, inode)?,
                _ => None,
            };
            if let Some(socket) = self.socket_mut(socket.waiting.index) {
                socket.state = state;
                socket.shutdown = told.shutdown & 3;
                socket.place = place;
            }
        }
        Ok(())
    }

    /// Where the file of a socket is: where it was bound, or near by under another name.
    fn place_of(&self, found: &Found, name: &[u8], inode: u32) -> Result<Option<Vec<u8>>> {
        if name.first() == Some(&0) {
            return Ok(None);
        }
        // There, names lead elsewhere for each process.
        if name.starts_with(b"/proc/") {
            return Err(found.waiting.refuse("a socket bound below /proc"));
        }
        let root = format!("/proc/{}/root", found.waiting.pid);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root.as_str(), flags, Mode::empty()).context(|| root)?;
        let mut directories = Vec::new();
        if name.starts_with(b"/") {
            directories.push(Vec::new());
        } else {
            directories.push(proc::link(found.waiting.pid, "cwd")?);
            for process in &self.picture.processes {
                if let Body::Alive(alive) = &process.body
                    && let FileRef::Path(path) = &alive.directory
                {
                    directories.push(path.clone());
                }
            }
        }
        for directory in directories {
            let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
            let path = [directory.as_slice(), slash, name].concat();
            match find(&root, &path, inode) {
                Ok(Some(place)) => return Ok(Some(place)),
                Ok(None) => {}
                Err(rustix::io::Errno::LOOP) => {
                    return Err(found.waiting.refuse("a socket bound below /proc"));
                }
                Err(error) => return Err(error).context(|| "looking for a socket".to_owned()),
            }
        }
        Ok(None)
    }
}

/// Looks for the socket with this inode at a path, or anywhere in the same directory.
fn find(root: &OwnedFd, path: &[u8], inode: u32) -> rustix::io::Result<Option<Vec<u8>>> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let is_it = |path: &[u8]| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), how) {
            Ok(file) => fstat(file).map(|stat| {
                let socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
                socket && stat.st_ino as u32 == inode
            }),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error),
        }
    };
    if is_it(path)? {
        return Ok(Some(path.to_vec()));
    }
    let end = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let parent = path.get(..end).unwrap_or_default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = openat2(root, OsStr::from_bytes(parent), flags, Mode::empty(), how) else {
        return Ok(None);
    };
    for entry in Dir::read_from(dir)?.flatten().take(ENTRIES_MAX) {
        if entry.file_type() == FileType::Socket && entry.ino() as u32 == inode {
            let path = [parent, entry.file_name().to_bytes()].concat();
            if is_it(&path)? {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

/// What a socket is to others, from what the kernel tells.
fn state(
    found: &Found,
    told: &Told,
    indices: &HashMap<u32, usize>,
    pending: &[u32],
) -> Result<State> {
    let waiting = &found.waiting;
    if told.state == LISTENS {
        let clients = told.pending.iter().map(|inode| indices.get(inode).copied());
        let Some(pending) = clients.collect() else {
            return Err(waiting.not_yet("a connection of a client that is gone was not accepted"));
        };
        return Ok(State::Listens { backlog: told.queue, pending });
    }
    match told.peer {
        None => Ok(State::Alone),
        Some(0) if pending.contains(&found.inode) => {
            if told.queue != 0 {
                // What waits there nobody can look at but who accepts it.
                return Err(waiting.not_yet("a connection that was not accepted has data"));
            }
            Ok(State::Pends)
        }
        Some(0) if told.shutdown != 3 && told.state == 1 && found.kind != libc::SOCK_DGRAM => {
            Err(waiting.refuse("a connection to a socket that nobody has open"))
        }
        Some(0) => Ok(State::Left { name: found.peer_name.clone(), reset: found.fails }),
        Some(peer) => match indices.get(&peer) {
            Some(&index) => Ok(State::Connected(index)),
            None => Err(waiting.refuse("a socket whose peer is outside of the sandbox")),
        },
    }
}
