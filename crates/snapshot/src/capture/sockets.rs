//! Unix sockets: what they are called, and what waits in them.

use std::os::fd::OwnedFd;

use forkyard_sys::sockets::{self, peek, unix};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Capture;
use super::descriptors::Seen;
use super::waiting::Waiting;
use crate::error::{Context, Result};
use crate::inside::{self, Looker};
use crate::picture::DescriptionKind;
use crate::picture::sockets::{Message, Socket};

/// Most bytes that are taken of one stream.
const UNREAD_MAX: usize = 64 * 1024 * 1024;

/// Options that are kept: buffers first, then in the order of their numbers.
const OPTIONS: [i32; 18] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_REUSEADDR,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_PRIORITY,
    libc::SO_LINGER,
    libc::SO_PASSCRED,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_TIMESTAMP,
    libc::SO_PASSSEC,
    libc::SO_TIMESTAMPNS,
    libc::SO_PEEK_OFF,
    PASS_PIDFD,
    PASS_RIGHTS,
];

/// `SO_PASSPIDFD`, `SO_PASSRIGHTS` of `asm-generic/socket.h`.
const PASS_PIDFD: i32 = 76;
const PASS_RIGHTS: i32 = 83;

/// What comes with a message, with its header: `SCM_CREDENTIALS`, a timestamp.
const CREDENTIALS: u32 = 32;
const TIMESTAMP: u32 = 32;

/// A Unix socket that has been seen, and what is not in the picture of it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) inode: u32,
    pub(super) waiting: Waiting,
    pub(super) kind: i32,
    /// The next call fails.
    pub(super) fails: bool,
    pub(super) peer_name: Option<Vec<u8>>,
    /// Messages wait in it that only init can look at without a risk: a descriptor of it, and how
    /// much room there must be for what comes with one.
    messages: Option<(OwnedFd, u32)>,
}

impl Capture<'_> {
    /// A Unix socket by itself; who its peer is becomes known at the end.
    pub(super) fn unix_socket(&mut self, seen: &Seen<'_>) -> Result<Socket> {
        let failed = || "asking a socket".to_owned();
        let general = |name| sockets::value(&seen.copy, libc::SOL_SOCKET, name);
        let kind = sockets::number(&seen.copy, libc::SOL_SOCKET, libc::SO_TYPE).context(failed)?;
        if sockets::has_filter(&seen.copy) {
            return Err(seen.refuse("a socket with a filter"));
        }
        let mut options = Vec::with_capacity(OPTIONS.len());
        for name in OPTIONS {
            // Not every kernel has all of them.
            if let Ok(value) = general(name) {
                options.push((name, value));
            }
        }
        let [_, user, group] = words(&general(libc::SO_PEERCRED).context(failed)?);
        let peer_user = (self.users.inside(user), self.groups.inside(group));
        let mut polled = [PollFd::new(&seen.copy, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).context(failed)?;
        let [polled] = polled;
        let fails = polled.revents().contains(PollFlags::ERR);
        let mut socket = Socket {
            kind: kind.cast_unsigned(),
            name: unix::name(&seen.copy, false).context(failed)?,
            peer_user,
            options,
            ..Socket::default()
        };
        let peer_name = unix::name(&seen.copy, true).context(failed)?;
        let is_abstract =
            |name: &Option<Vec<u8>>| name.as_ref().is_some_and(|it| it.starts_with(b"\0"));
        if self.subject.host_network && (is_abstract(&socket.name) || is_abstract(&peer_name)) {
            let what = "an abstract name in the host's network, which a copy cannot have as well";
            return Err(seen.refuse(what));
        }
        let mut messages = None;
        if kind == libc::SOCK_STREAM {
            socket.unread.extend(self.unread_bytes(seen, &socket)?);
        } else if polled.revents().contains(PollFlags::IN) {
            messages = room_for_messages(seen, &socket, fails)?;
        }
        self.descriptions.sockets.push(Found {
            inode: seen.stat.st_ino as u32,
            waiting: Waiting::of(seen, self.descriptions.all.len()),
            kind,
            fails,
            peer_name,
            messages,
        });
        Ok(socket)
    }

    /// What nobody has read yet of a stream.
    fn unread_bytes(&self, seen: &Seen<'_>, socket: &Socket) -> Result<Option<Message>> {
        // One that listens has nothing to read.
        let waiting = rustix::io::ioctl_fionread(&seen.copy).unwrap_or_default() as usize;
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > UNREAD_MAX {
            return Err(seen.refuse("more than 64 MiB wait to be read"));
        }
        refuse_offset(seen, socket)?;
        // No more than there is: at its end, an error would be taken away.
        let mut buffer = vec![0; waiting];
        let peeked = peek(&seen.copy, &mut buffer, room(socket) as usize);
        let peeked = peeked.context(|| "looking at what waits in a socket".to_owned())?;
        let Some(peeked) = peeked else { return Ok(None) };
        if peeked.has_more {
            return Err(seen.refuse(more_than_bytes(socket)));
        }
        if peeked.length != waiting {
            let what = "what waits to be read is urgent, or of several senders";
            return Err(seen.refuse(what));
        }
        // Ids as this process sees them, not the sandbox.
        let credentials = credentials(&peeked.control).map(|[pid, user, group]| {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed());
            let pid = pid.and_then(|pid| self.inner_ids.get(&pid).copied()).unwrap_or_default();
            [pid, self.users.inside(user), self.groups.inside(group)]
        });
        Ok(Some(Message { bytes: buffer, sender: unix::name_in(&peeked.sender), credentials }))
    }

    /// Has init look at messages.
    pub(super) fn look_into_sockets(&mut self, looker: &mut dyn Looker) -> Result<()> {
        let found = std::mem::take(&mut self.descriptions.sockets);
        let with_messages = || found.iter().filter(|found| found.messages.is_some());
        let asked: Vec<_> = found
            .iter()
            .filter_map(|found| found.messages.as_ref().map(|(copy, room)| (copy, *room)))
            .collect();
        let all = inside::ask_messages(looker, &asked);
        let all = all.context(|| "looking at messages that wait in sockets".to_owned())?;
        for (found, messages) in with_messages().zip(all) {
            let Some(socket) = self.socket_mut(found.waiting.index) else { continue };
            let messages =
                messages.ok_or_else(|| found.waiting.refuse("more than 16 MiB wait to be read"))?;
            for message in messages {
                if message.has_more {
                    return Err(found.waiting.refuse(more_than_bytes(socket)));
                }
                socket.unread.push(Message {
                    bytes: message.bytes,
                    sender: unix::name_in(&message.sender),
                    credentials: credentials(&message.control),
                });
            }
        }
        self.descriptions.sockets = found;
        Ok(())
    }

    pub(super) fn socket_mut(&mut self, index: usize) -> Option<&mut Socket> {
        match &mut self.descriptions.all.get_mut(index)?.kind {
            DescriptionKind::UnixSocket(socket) => Some(socket),
            _ => None,
        }
    }
}

/// A descriptor by which init can look at messages, and the room that it must give.
fn room_for_messages(
    seen: &Seen<'_>,
    socket: &Socket,
    fails: bool,
) -> Result<Option<(OwnedFd, u32)>> {
    let waiting = rustix::io::ioctl_fionread(&seen.copy).unwrap_or_default();
    let datagram = socket.kind == libc::SOCK_DGRAM as u32;
    if waiting == 0 && (fails || !datagram) {
        return Ok(None);
    }
    if fails {
        // To look would take the error away.
        return Err(seen.refuse("something waits to be read behind an error"));
    }
    refuse_offset(seen, socket)?;
    let copy = seen.copy.try_clone().context(|| "duplicating a descriptor".to_owned())?;
    Ok(Some((copy, room(socket))))
}

fn flag(socket: &Socket, name: i32) -> Option<i32> {
    let (_, value) = socket.options.iter().find(|(other, _)| *other == name)?;
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

fn is_on(socket: &Socket, name: i32) -> bool {
    flag(socket, name).is_some_and(|on| on != 0)
}

fn refuse_offset(seen: &Seen<'_>, socket: &Socket) -> Result<()> {
    match flag(socket, libc::SO_PEEK_OFF) {
        Some(0..) => Err(seen.refuse("something waits to be read of a socket with SO_PEEK_OFF")),
        _ => Ok(()),
    }
}

/// How much room there must be for what comes with each message, so that there is none for
/// descriptors, which come last.
fn room(socket: &Socket) -> u32 {
    let mut room = 0;
    if is_on(socket, libc::SO_PASSCRED) {
        room += CREDENTIALS;
    }
    // Streams tell no times. Each of the two turns the other off.
    let stream = socket.kind == libc::SOCK_STREAM as u32;
    let timed = is_on(socket, libc::SO_TIMESTAMP) || is_on(socket, libc::SO_TIMESTAMPNS);
    if timed && !stream {
        room += TIMESTAMP;
    }
    room
}

/// Why more came with a message than there was room for.
fn more_than_bytes(socket: &Socket) -> &'static str {
    if is_on(socket, PASS_PIDFD) {
        "something waits to be read of a socket with SO_PASSPIDFD"
    } else {
        "descriptors wait in it to be received"
    }
}

/// Process, user and group of a sender.
fn credentials(control: &[(i32, i32, Vec<u8>)]) -> Option<[u32; 3]> {
    let mut all = control.iter();
    let found =
        all.find(|(level, kind, _)| (*level, *kind) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS));
    found.map(|(.., data)| words(data))
}

fn words(bytes: &[u8]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    }
    words
}
