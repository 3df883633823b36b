//! Descriptors, and the open file descriptions that they share.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use forkyard_sys::remote::{self, Kind};
use forkyard_sys::sockets;
use forkyard_sys::stub::Op;
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Capture;
use super::connections::End;
use super::inet::WithDatagrams;
use super::loose::DELETED;
use super::sockets::Found;
use super::waiting::Waiting;
use crate::error::{Context, Result};
use crate::inject::Hand;
use crate::picture::{Description, DescriptionKind, Descriptor, Lock, LockKind, Pipe};
use crate::proc::{self, FdInfo, refuse};

/// Devices that hold no state, or none of one opener's.
const DEVICES: [&[u8]; 5] =
    [b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/random", b"/dev/urandom"];

/// What has been seen so far.
#[derive(Debug, Default)]
pub(crate) struct Descriptions {
    pub(crate) all: Vec<Description>,
    pub(crate) pipes: Vec<Pipe>,
    /// By inode, one descriptor of each with its index, in the kernel's order of what they refer
    /// to.
    known: HashMap<u64, Vec<(Pid, u32, usize)>>,
    /// Those that have `O_CLOEXEC` among the flags of the open file, as what `TIOCGPTPEER` and
    /// `mq_open`(3) open does: /proc shows it for all of their descriptors.
    flagged: HashSet<usize>,
    /// Epoll descriptors whose entries are not resolved, with the inodes of these.
    pub(super) waiting: Vec<(Waiting, Vec<u64>)>,
    /// Unix sockets whose peers are not resolved.
    pub(super) sockets: Vec<Found>,
    /// TCP sockets that are connected, connect or listen.
    pub(super) ends: Vec<End>,
    /// Sockets of UDP that nobody has looked into.
    pub(super) datagrams: Vec<WithDatagrams>,
    /// Groups that somebody is a member of, with the index of an interface.
    pub(super) multicast: Option<Vec<(IpAddr, u32)>>,
    /// Places of the pipes, by their inodes.
    inodes: HashMap<(u64, u64), usize>,
}

impl Descriptions {
    /// Finds the description of an inode that `compare` says to be it, which is given one
    /// descriptor of each; or the place among them where it belongs.
    pub(super) fn find(
        &self,
        inode: u64,
        compare: impl Fn(Pid, u32) -> Result<Ordering>,
    ) -> Result<std::result::Result<usize, usize>> {
        let known = self.known.get(&inode).map(Vec::as_slice).unwrap_or_default();
        let (mut low, mut high) = (0_usize, known.len());
        while let Some(&(pid, fd, index)) = known.get(low.midpoint(high)).filter(|_| low < high) {
            match compare(pid, fd)? {
                Ordering::Equal => return Ok(Ok(index)),
                Ordering::Less => low = low.midpoint(high) + 1,
                Ordering::Greater => high = low.midpoint(high),
            }
        }
        Ok(Err(low))
    }
}

/// A descriptor of a stopped process.
pub(super) struct Seen<'a> {
    pub(super) pid: Pid,
    pub(super) inner: u32,
    pub(super) name: &'a [u8],
    pub(super) number: u32,
    pub(super) link: Vec<u8>,
    pub(super) info: FdInfo,
    pub(super) copy: OwnedFd,
    pub(super) stat: rustix::fs::Stat,
}

impl Seen<'_> {
    pub(super) fn refuse(&self, what: &str) -> crate::Error {
        refuse(self.inner, self.name, format!("{}: {what}", self.place()))
    }

    /// Which descriptor it is, for messages.
    pub(super) fn place(&self) -> String {
        format!("descriptor {} ({})", self.number, String::from_utf8_lossy(&self.link))
    }
}

impl Capture<'_> {
    /// Reads descriptors; with them, which of them /proc may be wrong to say are closed on exec.
    pub(super) fn read_descriptors(
        &mut self,
        pid: Pid,
        inner: u32,
        name: &[u8],
    ) -> Result<(Vec<Descriptor>, Vec<usize>)> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open".to_owned())?;
        let (mut descriptors, mut doubtful) = (Vec::new(), Vec::new());
        for number in proc::numbers(pid, "fd")? {
            let info = FdInfo::read(pid, number)?;
            let close_on_exec = info.flags & OFlags::CLOEXEC.bits() != 0;
            let (own_locks, locks): (Vec<_>, Vec<_>) = super::locks::of(&info)
                .unwrap_or_default()
                .into_iter()
                .partition(|lock| lock.kind == LockKind::Process);
            let inode = info.inode();
            let found = self.descriptions.find(inode, |other, fd| {
                let (other, own) = ((other, u64::from(fd)), (pid, u64::from(number)));
                remote::compare(Kind::File, other, own).context(|| "kcmp".to_owned())
            })?;
            let description = match found {
                Ok(known) => {
                    if let Some(seats) = &mut self.seats {
                        seats.refer(&info, known);
                    }
                    known
                }
                Err(place) => {
                    let copy = pidfd_getfd(&pidfd, number.cast_signed(), PidfdGetfdFlags::empty())
                        .context(|| "pidfd_getfd".to_owned())?;
                    let stat = fstat(&copy).context(|| "fstat".to_owned())?;
                    let link = proc::link(pid, &format!("fd/{number}"))?;
                    let seen = Seen { pid, inner, name, number, link, info, copy, stat };
                    let description = self.describe(&seen, locks)?;
                    let index = self.descriptions.all.len();
                    if let Some(seats) = &mut self.seats {
                        seats.describe(&seen, &description, index);
                        seats.refer(&seen.info, index);
                    }
                    self.descriptions.all.push(description);
                    let flags = fcntl_getfl(&seen.copy).context(|| "fcntl F_GETFL".to_owned())?;
                    if flags.contains(OFlags::CLOEXEC) {
                        self.descriptions.flagged.insert(index);
                    }
                    let alike = self.descriptions.known.entry(inode).or_default();
                    alike.insert(place, (pid, number, index));
                    index
                }
            };
            if close_on_exec && self.descriptions.flagged.contains(&description) {
                doubtful.push(descriptors.len());
            }
            descriptors.push(Descriptor { number, close_on_exec, description, locks: own_locks });
        }
        Ok((descriptors, doubtful))
    }

    fn describe(&mut self, seen: &Seen<'_>, locks: Vec<Lock>) -> Result<Description> {
        let outside = self.subject.outside.get(&(seen.stat.st_dev, seen.stat.st_ino));
        let kind = match outside {
            Some(&number) => {
                self.note_unread(seen, number)?;
                DescriptionKind::Outside(number)
            }
            None => self.kind(seen)?,
        };
        let path = seen.info.flags & OFlags::PATH.bits() != 0;
        Ok(Description {
            flags: seen.info.flags,
            position: seen.info.position,
            locks,
            owner: if path { None } else { self.signal_owner(&seen.copy)? },
            kind,
        })
    }

    fn kind(&mut self, seen: &Seen<'_>) -> Result<DescriptionKind> {
        if seen.link.starts_with(b"anon_inode:") {
            return self.event(seen).map(DescriptionKind::Event);
        }
        if let Some(terminal) = self.terminal(seen)? {
            return Ok(terminal);
        }
        match FileType::from_raw_mode(seen.stat.st_mode) {
            _ if seen.info.flags & OFlags::PATH.bits() != 0 => self.named(seen),
            FileType::Fifo => self.pipe(seen).map(DescriptionKind::Pipe),
            FileType::RegularFile | FileType::Directory => self.named(seen),
            FileType::CharacterDevice if DEVICES.contains(&seen.link.as_slice()) => {
                Ok(DescriptionKind::Path(seen.link.clone()))
            }
            FileType::CharacterDevice | FileType::BlockDevice => Err(seen.refuse("a device")),
            FileType::Socket => self.socket(seen),
            _ => Err(seen.refuse("a kernel object that cannot be copied")),
        }
    }

    fn socket(&mut self, seen: &Seen<'_>) -> Result<DescriptionKind> {
        let family = sockets::number(&seen.copy, libc::SOL_SOCKET, libc::SO_DOMAIN);
        match family.context(|| "getsockopt SO_DOMAIN".to_owned())? {
            libc::AF_UNIX => self.unix_socket(seen).map(DescriptionKind::UnixSocket),
            libc::AF_NETLINK => {
                self.netlink_socket(seen).map(|it| DescriptionKind::Netlink(Box::new(it)))
            }
            family => self.inet_socket(seen, family),
        }
    }

    fn pipe(&mut self, seen: &Seen<'_>) -> Result<usize> {
        let inode = (seen.stat.st_dev, seen.stat.st_ino);
        if let Some(&known) = self.descriptions.inodes.get(&inode) {
            return Ok(known);
        }
        let capacity = rustix::pipe::fcntl_getpipe_size(&seen.copy)
            .context(|| "fcntl F_GETPIPE_SZ".to_owned())?;
        // One that was deleted is a pipe to those who have it.
        let named = seen.link.starts_with(b"/")
            && (!seen.link.ends_with(DELETED) || self.is_at(&seen.link, inode.0, inode.1));
        let path = named.then(|| seen.link.clone());
        let unread = unread(&seen.copy, capacity)?;
        self.descriptions.pipes.push(Pipe { capacity: capacity as u32, unread, path });
        let place = self.descriptions.pipes.len() - 1;
        self.descriptions.inodes.insert(inode, place);
        Ok(place)
    }

    /// What a command has not read yet of its input goes to the clone's input.
    fn note_unread(&mut self, seen: &Seen<'_>, number: u64) -> Result<()> {
        let fifo = FileType::from_raw_mode(seen.stat.st_mode) == FileType::Fifo;
        let reads = OFlags::from_bits_retain(seen.info.flags) & OFlags::RWMODE == OFlags::RDONLY;
        if fifo && reads && !self.picture.inputs.contains_key(&number) {
            let capacity = rustix::pipe::fcntl_getpipe_size(&seen.copy)
                .context(|| "fcntl F_GETPIPE_SZ".to_owned())?;
            let unread = unread(&seen.copy, capacity)?;
            self.picture.inputs.insert(number, serde_bytes::ByteBuf::from(unread));
        }
        let _ = (seen.pid, seen.number);
        Ok(())
    }
}

/// Asks a process which of its doubtful descriptors are closed on exec.
pub(super) fn ask_close_on_exec(
    hand: &mut Hand<'_>,
    pid: Pid,
    descriptors: &mut [Descriptor],
    doubtful: &[usize],
) -> Result<()> {
    /// How many at once, for which the leader has room.
    const AT_ONCE: usize = 64;
    for places in doubtful.chunks(AT_ONCE) {
        let ask = |place: &usize| {
            let number = descriptors.get(*place).map_or(u32::MAX, |it| it.number);
            let get = [u64::from(number), libc::F_GETFD as u64, 0, 0, 0, 0];
            Op::call(libc::SYS_fcntl, get).keep()
        };
        let ops: Vec<Op> = places.iter().map(ask).collect();
        let answers = hand.ask(pid, 0, &ops, &mut [])?;
        for (place, answer) in places.iter().zip(answers) {
            if let Some(descriptor) = descriptors.get_mut(*place) {
                descriptor.close_on_exec = answer & i64::from(libc::FD_CLOEXEC) != 0;
            }
        }
    }
    Ok(())
}

/// What waits in a pipe, which keeps it.
fn unread(end: &OwnedFd, capacity: usize) -> Result<Vec<u8>> {
    let failed = || "copying what waits in a pipe".to_owned();
    // Whichever end this is: a pipe can be opened again by its link, for reading.
    let path = format!("/proc/self/fd/{}", end.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let reader = rustix::fs::open(path.as_str(), flags, Mode::empty()).context(failed)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context(failed)?;
    rustix::pipe::fcntl_setpipe_size(&write, capacity).context(failed)?;
    let mut bytes = Vec::new();
    match tee(&reader, &write, capacity, SpliceFlags::NONBLOCK) {
        Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(bytes),
        Ok(length) => bytes.resize(length, 0),
        Err(error) => return Err(error).context(failed),
    }
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&read, rest).context(failed)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
