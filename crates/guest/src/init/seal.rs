//! What the sandbox wrote becomes a layer, while its processes stand still: they go on above it.
//!
//! Nothing of it is seen or done before [`Init::commit_seal`] but in places that only init knows, and
//! whoever asks for it may be killed at any time.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use forkyard_snapshot::{Opening, SealError, mount_id};
use forkyard_sys::mount::{self, MountAttr, RDONLY, attach_mount_on, mount_setattr, open_dir};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom, openat2, seek};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Init, open_root};
use crate::proto::Failure;
use crate::rootfs::Sealed;

/// How long processes may take to move, all together.
const PATIENCE: Duration = Duration::from_secs(1);

/// Another root, that nobody has yet.
pub(super) struct Seal {
    sealed: Sealed,
    /// Sockets where processes wait, and what they are to be told.
    doors: Vec<(u64, OwnedFd)>,
}

/// What is said when there is no other root.
pub(super) fn no_seal() -> Failure {
    Failure::new("finding another root", &Errno::NOENT.into())
}

impl Seal {
    /// Opens files of the other root.
    pub(super) fn open(&self, openings: &[Opening]) -> Result<Vec<OwnedFd>, Failure> {
        openings.iter().map(|opening| self.open_one(opening)).collect()
    }

    fn open_one(&self, opening: &Opening) -> Result<OwnedFd, Failure> {
        let failed = |e: Errno| {
            let path = String::from_utf8_lossy(&opening.path);
            Failure::new(format!("opening {path} again"), &e.into())
        };
        let path = opening.path.strip_prefix(b"/").ok_or_else(|| failed(Errno::INVAL))?;
        let path = if path.is_empty() { b"." } else { path };
        let open = |flags: OFlags| {
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            openat2(&self.sealed.root, path, flags | OFlags::CLOEXEC, Mode::empty(), how)
        };
        if opening.copied {
            // Opened for writing, a file is copied from its layer into the upper.
            open(OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK).map_err(failed)?;
        }
        let mut flags = OFlags::from_bits_retain(opening.flags);
        if flags.contains(OFlags::PATH) {
            flags &= OFlags::PATH | OFlags::DIRECTORY;
            flags |= OFlags::NOFOLLOW;
        }
        let file = open(flags).map_err(failed)?;
        if opening.position != 0 {
            seek(&file, SeekFrom::Start(opening.position)).map_err(failed)?;
        }
        Ok(file)
    }

    /// Takes in where processes wait.
    pub(super) fn wait_at(
        &mut self,
        doors: Vec<u64>,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        // The kernel drops those for which this process has no numbers.
        if sockets.len() != doors.len() {
            return Err(Failure::new("taking sockets of processes", &Errno::MFILE.into()));
        }
        self.doors.extend(doors.into_iter().zip(sockets));
        Ok(())
    }

    /// Tells all processes to move, and whether all have, or are gone.
    fn move_processes(&self) -> bool {
        let asked = self.doors.iter().map(|(address, socket)| {
            // Who is gone has nothing to be moved.
            send(socket, &address.to_le_bytes(), SendFlags::NOSIGNAL).is_ok()
        });
        let asked: Vec<bool> = asked.collect();
        let end = Instant::now() + PATIENCE;
        let mut sockets = self.doors.iter().zip(asked).filter(|(_, asked)| *asked);
        sockets.all(|((_, socket), _)| {
            let rest = end.saturating_duration_since(Instant::now());
            let rest =
                Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
            let mut fds = [PollFd::new(socket, PollFlags::IN)];
            matches!(poll(&mut fds, Some(&rest)), Ok(1..))
                && recv(socket, &mut [0; 1][..], RecvFlags::DONTWAIT).is_ok()
        })
    }
}

impl Init<'_> {
    /// Makes another root of the same files, in which what was written so far is a layer.
    pub(super) fn begin_seal(&mut self, linked: &[Vec<u8>]) -> Result<Seal, Failure> {
        if !self.workers.is_empty() {
            return Err(Failure::new("a file request is being answered", &Errno::BUSY.into()));
        }
        let sealed = self.builder.seal(&self.setup, linked)?;
        Ok(Seal { sealed, doors: Vec::new() })
    }

    /// Has all be as it was.
    pub(super) fn unseal(&mut self, seal: Option<Seal>) {
        let Some(Seal { sealed, doors }) = seal else { return };
        // Without a word they let go of what they were given.
        drop(doors);
        if self.builder.unseal(&self.setup, &sealed).is_err() {
            // What it wrote is not where anybody would look for it: it cannot go on for long.
            self.deadline = Some(0);
        }
    }

    /// Makes the other root the one of all processes.
    pub(super) fn commit_seal(&mut self, seal: Seal) -> Result<(), SealError> {
        let moved = match self.enter_sealed(&seal.sealed) {
            Ok(moved) => moved,
            Err(failure) => {
                self.unseal(Some(seal));
                return Err(SealError::NotMoved(failure.to_string()));
            }
        };
        let all_moved = seal.move_processes();
        let (device, old) = moved;
        self.builder.keep_sealed(&mut self.setup, seal.sealed);
        self.gone.push(device);
        // Nobody is to write there any more: clones read what is in it. The kernel says who does. Of
        // the whole file system it would be said as well, but all that is known of its files would
        // be thrown away, in milliseconds for each thousand.
        let read_only = MountAttr { set: RDONLY, ..MountAttr::default() };
        let closed = mount_setattr(old.dir(), read_only);
        let detached = old.detach();
        match (all_moved, closed.and(detached)) {
            (true, Ok(())) => Ok(()),
            (false, _) => Err(SealError::Moved("a process does not answer".to_owned())),
            (_, Err(error)) => Err(SealError::Moved(format!("somebody writes to them: {error}"))),
        }
    }

    /// Enters the other root with all that is mounted in this one: both as before if that fails.
    /// Gives this one, and its device.
    fn enter_sealed(&mut self, sealed: &Sealed) -> Result<(u64, mount::OldRoot), Failure> {
        let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
        let old = open_dir("/").map_err(failed("opening the root"))?;
        let device = rustix::fs::fstat(&old).map_err(|e| failed("fstat")(e.into()))?.st_dev;
        let inner = mounts_in(&old).map_err(failed("reading /proc/self/mountinfo"))?;
        let mut moved = Vec::with_capacity(inner.len());
        let mut enter = || {
            for path in &inner {
                move_mount(&old, &sealed.root, path)?;
                moved.push(path);
            }
            attach_mount_on(&sealed.root, &old)?;
            mount::pivot_into(&sealed.root)
        };
        match enter() {
            Ok(old) => {
                match open_root(&self.setup, self.builder.stand()?) {
                    Ok((root, wall)) => (self.root, self.confinement.wall) = (root, wall),
                    // Nothing more can be started in it.
                    Err(_) => self.deadline = Some(0),
                }
                Ok((device, old))
            }
            Err(error) => {
                for path in moved.iter().rev() {
                    if move_mount(&sealed.root, &old, path).is_err() {
                        self.deadline = Some(0);
                    }
                }
                Err(Failure::new("moving to another root", &error))
            }
        }
    }
}

/// Moves a mount from one root to the same place of another.
fn move_mount(from: &OwnedFd, to: &OwnedFd, path: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let place = |root: &OwnedFd| openat2(root, path, flags, Mode::empty(), how);
    attach_mount_on(place(from)?, place(to)?)
}

/// Where something is mounted right in a root, the one of this process: paths from there.
fn mounts_in(root: &OwnedFd) -> io::Result<Vec<String>> {
    let id = mount_id(root.as_fd())?.to_string();
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let of_root = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, parent, place) = (words.next()?, words.next()?, words.nth(2)?);
        (parent == id).then(|| unescaped(place))
    });
    of_root.map(|place| place.ok_or_else(|| io::ErrorKind::InvalidData.into())).collect()
}

/// A path of `proc_pid_mountinfo`(5): blanks, line ends and backslashes are written as `\NNN`.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..3)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 8).ok()?);
        rest = after.get(3..)?;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_mounts_are_read_with_what_is_escaped_in_them() {
        assert_eq!(unescaped("/a\\040b\\134c\\012").as_deref(), Some("/a b\\c\n"));
        assert_eq!(unescaped("/plain").as_deref(), Some("/plain"));
        assert_eq!([unescaped("/a\\04"), unescaped("\\9"), unescaped("\\")], [None, None, None]);
    }
}
