//! Stream and seqpacket sockets: pairs, listeners and those who wait for these.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socketpair};

use super::names;
use super::{Made, as_user, make_room, open};
use crate::error::{Context, Result};
use crate::picture::sockets::{Socket, State};

pub(super) fn make(sockets: &[(usize, &Socket)], made: &mut Made) -> Result<()> {
    // Connected ones first: for a moment each needs its listener's name.
    for &(index, socket) in sockets {
        match &socket.state {
            State::Connected(other) if index < *other => {
                let peer = sockets.iter().find(|(at, _)| at == other).map(|(_, peer)| *peer);
                let peer = peer.ok_or_else(|| crate::error::unreadable("a picture: no peer"))?;
                let (one, two) = pair(sockets, socket, peer)?;
                made.all.insert(index, one);
                made.all.insert(*other, two);
            }
            State::Left { name, reset } => {
                let user = socket.peer_user;
                let kind = socket.kind;
                let peer =
                    Socket { kind, name: name.clone(), peer_user: user, ..Socket::default() };
                let (one, two) = pair(sockets, socket, &peer)?;
                made.all.insert(index, one);
                made.leaving.push((index, two, *reset));
            }
            _ => {}
        }
    }
    for &(index, socket) in sockets {
        match &socket.state {
            State::Alone => {
                let alone = open(socket.kind)?;
                names::bind(&alone, socket.name.as_deref(), socket.place.as_deref())?;
                made.all.insert(index, alone);
            }
            State::Listens { backlog, pending } => {
                let listener = listener(socket, *backlog, pending, sockets, made)?;
                made.all.insert(index, listener);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A connected pair. The one that was accepted has its listener's name, and so has many like it:
/// `sockets` are all there are.
fn pair(sockets: &[(usize, &Socket)], one: &Socket, two: &Socket) -> Result<(OwnedFd, OwnedFd)> {
    let failed = || "making a pair of sockets".to_owned();
    if one.name.is_none() && two.name.is_none() {
        let kind = SocketType::from_raw(one.kind);
        let make = || Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?);
        let (one, two) = as_user(one.peer_user, make).context(failed)?;
        make_room(&one)?;
        make_room(&two)?;
        return Ok((one, two));
    }
    let like = |it: &Socket| {
        let alike = |other: &Socket| it.name.is_some() && other.name == it.name;
        sockets.iter().filter(|(_, other)| alike(other)).count()
            + usize::from(it.name.is_some() && it.place.is_none())
    };
    if like(two) > like(one) {
        let (two, one) = connected(two, one)?;
        return Ok((one, two));
    }
    connected(one, two)
}

/// The first is the one that was accepted.
fn connected(server: &Socket, client: &Socket) -> Result<(OwnedFd, OwnedFd)> {
    let failed = || "connecting a socket".to_owned();
    let made = open(client.kind)?;
    names::bind(&made, client.name.as_deref(), client.place.as_deref())?;
    let listener = open(server.kind)?;
    let reach = names::bind(&listener, server.name.as_deref(), None)?;
    names::open_to_all(&reach).context(failed)?;
    as_user(client.peer_user, || Ok(listen(&listener, 1)?)).context(failed)?;
    as_user(server.peer_user, || reach.connect(&made)).context(failed)?;
    let accepted = accept_with(&listener, SocketFlags::CLOEXEC).context(failed)?;
    make_room(&accepted)?;
    Ok((accepted, made))
}

/// A listener, with those who have connected to it.
fn listener(
    socket: &Socket,
    backlog: u32,
    pending: &[usize],
    sockets: &[(usize, &Socket)],
    made: &mut Made,
) -> Result<OwnedFd> {
    let failed = || "making a socket listen".to_owned();
    let listener = open(socket.kind)?;
    let reach = names::bind(&listener, socket.name.as_deref(), socket.place.as_deref())?;
    let room = |backlog: u32| i32::try_from(backlog).unwrap_or(i32::MAX);
    let most = backlog.max(pending.len() as u32);
    as_user(socket.peer_user, || Ok(listen(&listener, room(most))?)).context(failed)?;
    for client in pending {
        let Some((_, socket)) = sockets.iter().find(|(at, _)| at == client) else { continue };
        let waiting = open(socket.kind)?;
        names::bind(&waiting, socket.name.as_deref(), socket.place.as_deref())?;
        rustix::io::ioctl_fionbio(&waiting, true).context(failed)?;
        reach.connect(&waiting).context(failed)?;
        rustix::io::ioctl_fionbio(&waiting, false).context(failed)?;
        made.all.insert(*client, waiting);
    }
    if most != backlog {
        listen(&listener, room(backlog)).context(failed)?;
    }
    Ok(listener)
}
