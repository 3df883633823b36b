//! Datagram sockets: first all with their names, then what waits in them, then whom they send to.
//!
//! A socket takes messages of anyone only as long as it has no peer of its own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::names::{self, Reach};
use super::{Made, make_room, open, send_as};
use crate::error::{Context, Result};
use crate::picture::sockets::{Message, Socket, State};

/// Sockets that are being made.
struct Making<'a> {
    sockets: BTreeMap<usize, &'a Socket>,
    made: BTreeMap<usize, OwnedFd>,
    reach: BTreeMap<usize, Reach>,
    /// Peers of those that have been left.
    left: BTreeMap<usize, OwnedFd>,
}

pub(super) fn make(sockets: &[(usize, &Socket)], made: &mut Made) -> Result<()> {
    let mut making = Making {
        sockets: sockets.iter().copied().collect(),
        made: BTreeMap::new(),
        reach: BTreeMap::new(),
        left: BTreeMap::new(),
    };
    for &(index, socket) in sockets {
        making.open(index, socket)?;
    }
    for &(index, socket) in sockets {
        if let Some(file) = making.made.get(&index) {
            let reach = names::bind(file, socket.name.as_deref(), socket.place.as_deref())?;
            making.reach.insert(index, reach);
        }
    }
    for &(index, socket) in sockets {
        for message in &socket.unread {
            making.fill(index, message)?;
        }
    }
    making.connect_all()?;
    made.all.append(&mut making.made);
    Ok(())
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let made = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let (one, two) = made.context(|| "socketpair".to_owned())?;
    make_room(&one)?;
    make_room(&two)?;
    Ok((one, two))
}

impl Making<'_> {
    /// Opens a socket: as half of a pair where its peer, or who has it as one, has no name by
    /// which it could be reached.
    fn open(&mut self, index: usize, socket: &Socket) -> Result<()> {
        if self.made.contains_key(&index) {
            return Ok(());
        }
        match socket.state {
            State::Connected(peer) if peer != index => {
                let nameless = self.sockets.get(&peer).is_some_and(|peer| peer.name.is_none());
                if (nameless || self.are_mutual(index, peer)) && !self.made.contains_key(&peer) {
                    let (one, two) = pair()?;
                    self.made.insert(index, one);
                    self.made.insert(peer, two);
                    return Ok(());
                }
            }
            State::Left { ref name, .. } => {
                let (one, two) = pair()?;
                names::bind(&two, name.as_deref(), None)?;
                self.made.insert(index, one);
                self.left.insert(index, two);
                return Ok(());
            }
            _ => {}
        }
        // Somebody who sends to this one may have to make it.
        let sender = self
            .sockets
            .iter()
            .find(|(other, sender)| sender.state == State::Connected(index) && **other != index);
        if socket.name.is_none()
            && let Some((&sender, _)) = sender
            && !self.made.contains_key(&sender)
        {
            let (one, two) = pair()?;
            self.made.insert(sender, one);
            self.made.insert(index, two);
            return Ok(());
        }
        self.made.insert(index, open(socket.kind)?);
        Ok(())
    }

    fn are_mutual(&self, one: usize, two: usize) -> bool {
        let sends = |from, to| {
            self.sockets.get(&from).is_some_and(|socket| socket.state == State::Connected(to))
        };
        sends(one, two) && sends(two, one)
    }

    /// Who is connected to a socket already.
    fn peer(&self, index: usize) -> Option<BorrowedFd<'_>> {
        if let Some(left) = self.left.get(&index) {
            return Some(left.as_fd());
        }
        let peer = self.sockets.iter().find(|(other, socket)| {
            socket.state == State::Connected(index) && self.are_pair(**other, index)
        });
        peer.and_then(|(peer, _)| self.made.get(peer)).map(AsFd::as_fd)
    }

    /// Whether two were made as a pair.
    fn are_pair(&self, one: usize, two: usize) -> bool {
        let nameless = |index| self.sockets.get(&index).is_some_and(|it| it.name.is_none());
        self.are_mutual(one, two) || nameless(two)
    }

    /// Sends what waits in a socket, as far as can be by who sent it.
    fn fill(&self, index: usize, message: &Message) -> Result<()> {
        let failed = || "filling a socket again".to_owned();
        let put = |from: BorrowedFd<'_>, to: Option<&[u8]>| {
            send_as(from, &message.bytes, to, message.credentials)
        };
        if let Some(peer) = self.peer(index) {
            return put(peer, None).map(drop).context(failed);
        }
        let Some(to) = self.reach.get(&index).and_then(Reach::address) else {
            // It has neither name nor peer: nobody could have sent to it since.
            return Ok(());
        };
        let sender = message.sender.as_ref().and_then(|name| {
            let mut all = self.sockets.iter();
            all.find(|(_, socket)| socket.name.as_ref() == Some(name)).map(|(index, _)| index)
        });
        if let Some(sender) = sender.and_then(|sender| self.made.get(sender)) {
            return put(sender.as_fd(), Some(&to)).map(drop).context(failed);
        }
        let gone = open(libc::SOCK_DGRAM as u32)?;
        names::bind(&gone, message.sender.as_deref(), None)?;
        put(gone.as_fd(), Some(&to)).map(drop).context(failed)
    }

    /// Connects all, who sends to another before that one gets a peer of its own.
    fn connect_all(&self) -> Result<()> {
        let mut rest: Vec<(usize, usize)> = self
            .sockets
            .iter()
            .filter_map(|(&index, socket)| match socket.state {
                State::Connected(peer) if !self.are_pair(index, peer) => Some((index, peer)),
                _ => None,
            })
            .collect();
        while !rest.is_empty() {
            let at = rest.iter().position(|&(index, peer)| {
                !rest.iter().any(|&(from, to)| to == index && from != peer)
            });
            let (index, peer) = rest.remove(at.unwrap_or_default());
            let (Some(socket), Some(reach)) = (self.made.get(&index), self.reach.get(&peer)) else {
                continue;
            };
            reach.connect(socket).context(|| "connecting a socket".to_owned())?;
        }
        Ok(())
    }
}
