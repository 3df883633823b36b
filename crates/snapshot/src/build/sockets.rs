//! Unix sockets, made again by init: first all of them with their names and peers, and when all
//! processes are there what waits in them, since its senders must be there to be named.

mod datagrams;
mod names;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::sockets::unix::send;
use forkyard_sys::sockets::{set_number, set_option, value};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socket_with};
use rustix::process::{Gid, Uid, getegid, geteuid, getpid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::files::Files;
use crate::error::{Context, Result};
use crate::picture::sockets::{Message, Socket, State};
use crate::picture::{DescriptionKind, Picture};

/// The peer of a socket, by the index of its description, that will be gone, and whether there is
/// something that it will not have read.
pub(super) type Leaving = (usize, OwnedFd, bool);

/// Sockets by the indices of their descriptions.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) all: BTreeMap<usize, OwnedFd>,
    pub(super) leaving: Vec<Leaving>,
}

/// A socket of the picture.
fn socket_at(picture: &Picture, index: usize) -> Option<&Socket> {
    match &picture.descriptions.get(index)?.kind {
        DescriptionKind::UnixSocket(socket) => Some(socket),
        _ => None,
    }
}

/// Makes all sockets, with names and peers.
pub(super) fn make_all(picture: &Picture) -> Result<Made> {
    let all = |index: usize| Some((index, socket_at(picture, index)?));
    let sockets: Vec<(usize, &Socket)> = (0..picture.descriptions.len()).filter_map(all).collect();
    let mut made = Made::default();
    if sockets.is_empty() {
        return Ok(made);
    }
    let (datagrams, streams): (Vec<_>, Vec<_>) =
        sockets.into_iter().partition(|(_, socket)| socket.kind == libc::SOCK_DGRAM as u32);
    streams::make(&streams, &mut made)?;
    datagrams::make(&datagrams, &mut made)?;
    for (&index, socket) in &made.all {
        let flags = picture.descriptions.get(index).map(|description| description.flags);
        if OFlags::from_bits_retain(flags.unwrap_or_default()).contains(OFlags::NONBLOCK) {
            rustix::io::ioctl_fionbio(socket, true).context(|| "FIONBIO".to_owned())?;
        }
    }
    Ok(made)
}

/// Fills what has peers, shuts down what was, and sets options.
pub(super) fn settle(picture: &Picture, files: &Files, leaving: Vec<Leaving>) -> Result<()> {
    for index in 0..picture.descriptions.len() {
        let Some(socket) = socket_at(picture, index) else { continue };
        if socket.unread.is_empty() || socket.kind == libc::SOCK_DGRAM as u32 {
            continue;
        }
        let peer = match socket.state {
            State::Connected(peer) => files.description(peer),
            _ => leaving.iter().find(|(of, ..)| *of == index).map(|(_, peer, _)| peer.as_fd()),
        };
        for message in &socket.unread {
            if let Some(peer) = peer {
                fill(peer, message)?;
            }
        }
    }
    for (index, peer, reset) in leaving {
        if let Some(socket) = files.description(index).filter(|_| reset) {
            send(socket, b"x", None, None).context(|| "sending to a socket".to_owned())?;
        }
        drop(peer);
    }
    for index in 0..picture.descriptions.len() {
        if let (Some(socket), Some(file)) = (socket_at(picture, index), files.description(index)) {
            finish(socket, file)?;
        }
    }
    Ok(())
}

/// Sends in the name of who sent it; where that process is gone, in that of its user.
fn send_as(
    from: BorrowedFd<'_>,
    bytes: &[u8],
    to: Option<&[u8]>,
    credentials: Option<[u32; 3]>,
) -> io::Result<usize> {
    match send(from, bytes, to, credentials) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            let own = getpid().as_raw_nonzero().get().cast_unsigned();
            send(from, bytes, to, credentials.map(|[_, user, group]| [own, user, group]))
        }
        sent => sent,
    }
}

/// Sends what the other end has not read, as it was sent.
fn fill(from: BorrowedFd<'_>, message: &Message) -> Result<()> {
    let failed = || "filling a socket again".to_owned();
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = send_as(from, rest, None, message.credentials).context(failed)?;
        rest = rest.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
    }
}

fn finish(socket: &Socket, file: BorrowedFd<'_>) -> Result<()> {
    let how = match socket.shutdown {
        1 => Some(Shutdown::Read),
        2 => Some(Shutdown::Write),
        3 => Some(Shutdown::Both),
        _ => None,
    };
    // What others did has shut it down already, and one without a peer cannot be.
    if let Some(how) = how {
        let _ = shutdown(file, how);
    }
    for (name, wanted) in &socket.options {
        if value(file, libc::SOL_SOCKET, *name).is_ok_and(|now| now == *wanted) {
            continue;
        }
        let wanted = match *name {
            // The kernel doubles what it is given.
            libc::SO_SNDBUF | libc::SO_RCVBUF => match wanted.first_chunk() {
                Some(bytes) => (i32::from_ne_bytes(*bytes) / 2).to_ne_bytes().to_vec(),
                None => continue,
            },
            _ => wanted.clone(),
        };
        set_option(file, libc::SOL_SOCKET, *name, &wanted)
            .context(|| format!("setting socket option {name}"))?;
    }
    Ok(())
}

/// Opens a socket, with room for whatever will be sent by it.
fn open(kind: u32) -> Result<OwnedFd> {
    let kind = SocketType::from_raw(kind);
    let made = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let made = made.context(|| "socket".to_owned())?;
    make_room(&made)?;
    Ok(made)
}

/// The kernel takes as much as it allows anyone; its own number comes back at the end.
fn make_room(socket: &OwnedFd) -> Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, i32::MAX / 4)
        .context(|| "SO_SNDBUF".to_owned())
}

/// Does something as another user, who is told to the other end. One whom this sandbox does not
/// have stays root.
fn as_user<T>(user: (u32, u32), act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if user == (0, 0) || user == (u32::MAX, u32::MAX) {
        return act();
    }
    let (uid, gid) = (geteuid(), getegid());
    let become_it = |uid: Uid, gid: Gid, root: bool| {
        // Groups as root, before or after.
        if !root {
            set_thread_res_gid(None::<Gid>, gid, None::<Gid>)?;
        }
        set_thread_res_uid(None::<Uid>, uid, None::<Uid>)?;
        if root {
            set_thread_res_gid(None::<Gid>, gid, None::<Gid>)?;
        }
        rustix::io::Result::Ok(())
    };
    let _ = become_it(Uid::from_raw(user.0), Gid::from_raw(user.1), false);
    let done = act();
    become_it(uid, gid, true)?;
    done
}
