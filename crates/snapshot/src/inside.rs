//! What a sandbox's init does for whoever takes the sandbox's picture.
//!
//! Most of what there is can be looked at from outside. Some things cannot be without touching
//! them for a moment, and would stay touched if the template were killed in that very moment. Init
//! does those: it puts all back whatever becomes of the template, and when init itself is killed,
//! all that it could leave behind is gone as well.

mod underway;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) use self::underway::SENT_END;
use forkyard_sys::sockets::{Peeked, peek, set_number};
use serde::{Deserialize, Serialize};

use crate::picture::{Look, LookError};

/// The most that is taken of one socket's messages, in bytes: well above what the kernel lets wait
/// unless its limits were raised a lot.
pub(crate) const MOST: usize = 16 * 1024 * 1024;

/// The same of one end of a connection.
pub(crate) const STREAM_MOST: usize = 48 * 1024 * 1024;

/// What a message counts for beside its bytes, as there may be any number of empty ones.
const EACH: usize = 64;

/// Longer than most messages.
const USUAL: usize = 64 * 1024;

/// Whoever asks init, which holds still, and which nobody but the sandbox's end ends.
pub trait Looker {
    /// Has it look at a terminal, see [`crate::look`]: at the one whose master it keeps by this
    /// number, or else at the one whose master is first among the descriptors; then there may be a
    /// slave.
    ///
    /// # Errors
    /// The outer error when it cannot be asked.
    fn look(
        &mut self,
        keeper: Option<u64>,
        ends: &[BorrowedFd<'_>],
    ) -> io::Result<Result<Look, LookError>>;

    /// Has it look into sockets, see [`answer`].
    ///
    /// # Errors
    /// When it cannot be asked.
    fn look_into(&mut self, request: Request, sockets: &[BorrowedFd<'_>]) -> io::Result<Answer>;
}

/// What init is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// For the messages that wait in sockets which have something to be read, for each with this
    /// much room for what comes with a message: see [`forkyard_sys::sockets::peek`].
    Messages(Vec<u32>),
    /// For what the first descriptor's TCP connection has sent, and the second's has not received.
    Underway,
    /// For what is in a POSIX message queue, which is open for reading and writing and not waiting.
    Queue,
}

/// What init answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Messages of each socket, none where there are too many; only of the first few sockets where
    /// there is much: the rest is to be asked for again.
    Messages(Vec<Option<Vec<Waiting>>>),
    /// Bytes on their way.
    Bytes(serde_bytes::ByteBuf),
    /// What a queue can hold and holds: how many messages, of how many bytes, and those that there
    /// are with their priorities, next first.
    Queue {
        /// How many messages at most.
        capacity: u32,
        /// How many bytes each at most.
        size: u32,
        /// Bytes and priority.
        messages: Vec<(serde_bytes::ByteBuf, u32)>,
    },
    /// It may not be touched: somebody is to be told of its next message.
    Awaited,
    /// It could not tell: an errno.
    Failed(i32),
}

/// A message that waits in a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What it says.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The address of who sent it, as the kernel writes it.
    pub sender: Vec<u8>,
    /// What came with it: levels, kinds, and data.
    pub control: Vec<(i32, i32, Vec<u8>)>,
    /// More came with it than there was room for.
    pub has_more: bool,
}

/// Answers, as init, what it is asked.
pub fn answer(request: &Request, fds: &[OwnedFd]) -> Answer {
    let done = match (request, fds) {
        (Request::Messages(rooms), _) => messages_of_all(fds, rooms).map(Answer::Messages),
        (Request::Underway, [near, far]) => {
            underway::underway(near, far).map(|bytes| Answer::Bytes(bytes.into()))
        }
        (Request::Queue, [queue]) => crate::capture::queues::look_into(queue),
        (Request::Underway | Request::Queue, _) => Err(io::ErrorKind::InvalidInput.into()),
    };
    done.unwrap_or_else(|error| Answer::Failed(error.raw_os_error().unwrap_or(libc::EINVAL)))
}

fn messages_of_all(fds: &[OwnedFd], rooms: &[u32]) -> io::Result<Vec<Option<Vec<Waiting>>>> {
    let mut all = Vec::new();
    let mut total = 0;
    for (fd, &room) in fds.iter().zip(rooms) {
        let found = messages(fd, room as usize)?;
        let sizes = found.iter().flatten().map(|message| message.bytes.len() + EACH);
        total += sizes.sum::<usize>();
        all.push(found);
        if total > MOST {
            break;
        }
    }
    Ok(all)
}

/// Looks at all messages, if they are not too many.
///
/// One after the other is looked at by the offset from which a socket peeks. The first is looked
/// at without it: an empty one that has been looked at before is passed over with it.
fn messages(fd: &OwnedFd, room: usize) -> io::Result<Option<Vec<Waiting>>> {
    let mut buffer = vec![0; USUAL];
    let mut all = Vec::new();
    let mut at = 0;
    let seen = loop {
        if at + EACH * all.len() > MOST {
            break Ok(None);
        }
        if !all.is_empty()
            && let Err(error) = set_offset(fd, i32::try_from(at).unwrap_or(i32::MAX))
        {
            break Err(error);
        }
        match peek(fd, &mut buffer, room) {
            Err(error) => break Err(error),
            Ok(None) => break Ok(Some(all)),
            Ok(Some(peeked)) if peeked.length > MOST => break Ok(None),
            Ok(Some(peeked)) if peeked.length > buffer.len() => buffer.resize(peeked.length, 0),
            Ok(Some(peeked)) => {
                at += peeked.length;
                all.push(waiting(peeked, &buffer));
            }
        }
    };
    set_offset(fd, -1)?;
    seen
}

fn waiting(peeked: Peeked, buffer: &[u8]) -> Waiting {
    let Peeked { length, sender, control, has_more } = peeked;
    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
    Waiting { bytes, sender, control, has_more }
}

fn set_offset(fd: &OwnedFd, at: i32) -> io::Result<()> {
    set_number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at)
}

/// A few descriptors at once: as many as go along with a message.
pub(crate) const AT_ONCE: usize = 100;

/// Has init look at all of these sockets, each with its room.
pub(crate) fn ask_messages(
    looker: &mut dyn Looker,
    sockets: &[(&OwnedFd, u32)],
) -> io::Result<Vec<Option<Vec<Waiting>>>> {
    let mut all = Vec::with_capacity(sockets.len());
    while let Some(rest) = sockets.get(all.len()..).filter(|rest| !rest.is_empty()) {
        let asked = rest.iter().take(AT_ONCE);
        let fds: Vec<_> = asked.clone().map(|(fd, _)| fd.as_fd()).collect();
        let rooms = asked.map(|(_, room)| *room).collect();
        match looker.look_into(Request::Messages(rooms), &fds)? {
            Answer::Messages(some) if !some.is_empty() => all.extend(some),
            Answer::Failed(errno) => return Err(io::Error::from_raw_os_error(errno)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(all)
}

/// Has init look at what a TCP connection's `near` end has been given to send and its `far` end has
/// not received.
pub(crate) fn ask_underway(
    looker: &mut dyn Looker,
    near: &OwnedFd,
    far: &OwnedFd,
) -> io::Result<Vec<u8>> {
    match looker.look_into(Request::Underway, &[near.as_fd(), far.as_fd()])? {
        Answer::Bytes(bytes) => Ok(bytes.into_vec()),
        Answer::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    struct Here;

    impl Looker for Here {
        fn look(
            &mut self,
            _: Option<u64>,
            _: &[BorrowedFd<'_>],
        ) -> io::Result<Result<Look, LookError>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn look_into(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
            let fds: Vec<_> = fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            Ok(answer(&request, &fds))
        }
    }

    #[test]
    fn all_messages_are_looked_at_and_stay() {
        for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
            let (one, other) =
                socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            let long = vec![b'x'; USUAL + 1];
            let sent: [&[u8]; 5] = [b"first", b"2", &long, b"four", b""];
            for message in sent {
                send(&one, message, SendFlags::empty()).unwrap();
            }
            for _ in 0..2 {
                let all = ask_messages(&mut Here, &[(&other, 0)]).unwrap();
                let all = all[0].iter().flatten();
                let all: Vec<_> = all.map(|message| message.bytes.as_slice()).collect();
                assert_eq!(all[..4], sent[..4]);
            }
            assert_eq!(forkyard_sys::sockets::number(&other, 1, libc::SO_PEEK_OFF).unwrap(), -1);
            let mut buffer = [0; 8];
            let flags = rustix::net::RecvFlags::empty();
            assert_eq!(rustix::net::recv(&other, &mut buffer[..], flags).unwrap().0, 5);
        }
    }
}
