//! What the kernel tells of all Unix sockets of a network namespace, most of all who is whose peer.
//!
//! See `sock_diag(7)` and `linux/unix_diag.h`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use forkyard_sys::sockets::diag;

use crate::error::{Context, Result, unreadable};

/// State of a socket that listens.
pub(super) const LISTENS: u8 = 10;

/// Most sockets that are read of.
const SOCKETS_MAX: usize = 100_000;

/// A socket; others are told by their inode, or 0 where nobody has them open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) state: u8,
    /// Inode of its file.
    pub(super) file: Option<u32>,
    /// What it is connected to.
    pub(super) peer: Option<u32>,
    /// Who has connected and was not accepted.
    pub(super) pending: Vec<u32>,
    /// How many may wait, or how much that it sent is unread.
    pub(super) queue: u32,
    /// 1 for reading, 2 for writing.
    pub(super) shutdown: u8,
}

/// Asks by a socket of [`forkyard_sys::sockets::diag`]; by inode.
pub(super) fn ask(socket: &OwnedFd) -> Result<HashMap<u32, Told>> {
    let mut all = HashMap::new();
    let mut is_whole = true;
    let dumped = diag::dump(socket, &request(), |body| {
        is_whole &= all.len() < SOCKETS_MAX && parse(body, &mut all).is_some();
    });
    dumped.context(|| "asking for Unix sockets".to_owned())?;
    if is_whole { Ok(all) } else { Err(unreadable("what the kernel tells of sockets")) }
}

/// `struct unix_diag_req`: all states, with files, peers, pending connections and lengths of
/// queues.
fn request() -> Vec<u8> {
    const SHOW: u32 = 2 | 4 | 8 | 0x10;
    let words = [libc::AF_UNIX as u32, u32::MAX, 0, SHOW, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct unix_diag_msg` and what follows it.
fn parse(body: &[u8], all: &mut HashMap<u32, Told>) -> Option<()> {
    let mut told = Told { state: *body.get(2)?, ..Told::default() };
    attributes(body.get(16..)?, &mut told)?;
    all.insert(word(body, 4)?, told);
    Some(())
}

fn attributes(mut bytes: &[u8], told: &mut Told) -> Option<()> {
    while !bytes.is_empty() {
        let (length, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        match kind {
            1 => told.file = Some(word(value, 0)?),
            2 => told.peer = Some(word(value, 0)?),
            3 => told.pending = value.chunks_exact(4).filter_map(|word4| word(word4, 0)).collect(),
            4 => told.queue = word(value, 4)?,
            6 => told.shutdown = *value.first()?,
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_pair_knows_each_other() {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let inodes = [&one, &other].map(|fd| rustix::fs::fstat(fd).unwrap().st_ino as u32);
        let all = ask(&diag::open().unwrap()).unwrap();
        let [one, other] = inodes;
        assert_eq!((all[&one].peer, all[&other].peer), (Some(other), Some(one)));
        assert_eq!((all[&one].state, all[&one].shutdown), (1, 0));
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes, &mut HashMap::new());
        }

        #[test]
        fn lengths_of_nothing_end(length in 0_u32..40, rest: [u8; 60]) {
            let bytes = [length.to_ne_bytes().as_slice(), &rest].concat();
            let _ = parse(&bytes, &mut HashMap::new());
        }
    }
}
