//! Moving stopped processes to another root with the same files.
//!
//! What a sandbox wrote becomes a layer, of its clones and of itself: from now on it writes above.
//! So each of its processes gets other descriptors of the same files, and another working directory;
//! its root is moved by the kernel, all at once (`pivot_root`(2)).
//!
//! # Death of the tracer
//!
//! Were the template killed in between, a process would go on with half of its files moved. So each
//! is first given what it needs by a socket, at numbers that are free. Then all of its threads wait
//! in the stub, the first for a message from init: to take it all in place, and wait again until all
//! others have done so, or to let go of it. Init has the other ends of the sockets. If it closes one
//! without a word, or if none came to it, the process is as it was. So all of it is decided by init,
//! at one moment.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::channel;
use forkyard_sys::stub::{self, Op};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::capture::Seat;
use crate::error::{Context, Error, Result};
use crate::inject::{Asked, Hand, Tail};
use crate::seize::Tree;

/// A file that is opened again in another root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Its path.
    pub path: Vec<u8>,
    /// `O_*`
    pub flags: u32,
    /// Its position.
    pub position: u64,
    /// It was written: it is copied above the layer that it is in, so that all who open it share it.
    pub copied: bool,
}

/// Most descriptors in a message, see [`channel::MAX_FDS`].
const AT_ONCE: usize = 100;

/// Whoever asks init, which makes the other root, and moves all there at one moment.
///
/// The outer errors are those of asking, the inner ones say what could not be done.
pub trait Sealer {
    /// Has it make the other root.
    fn begin(&mut self) -> io::Result<std::result::Result<(), String>>;

    /// Has it open some files there.
    fn open(
        &mut self,
        openings: &[Opening],
    ) -> io::Result<std::result::Result<Vec<OwnedFd>, String>>;

    /// Gives it the sockets where processes wait for the address, which comes along for each, of
    /// what they shall do.
    fn wait_at(
        &mut self,
        doors: &[u64],
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<std::result::Result<(), String>>;

    /// Has it move all of them, and whatever else there is. When it could not be made sure that
    /// nothing of the old root is written to any more, the error says so; else they have not moved.
    fn commit(&mut self) -> io::Result<std::result::Result<(), SealError>>;

    /// Has it forget the other root, if there is one.
    fn abort(&mut self);
}

/// What came of moving processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealError {
    /// They have not moved.
    NotMoved(String),
    /// They have, but there may be somebody who writes to what they left.
    Moved(String),
}

/// Moves all of these, or none.
///
/// # Errors
/// [`Error::NotSealed`] when none has moved.
pub(crate) fn seal(
    tree: &Tree,
    tail: &Tail,
    seats: &[Seat],
    open: &BTreeMap<usize, Opening>,
    sealer: &mut dyn Sealer,
) -> Result<()> {
    let mut waiting = Vec::with_capacity(seats.len());
    let prepared = prepare(tree, tail, seats, open, sealer, &mut waiting);
    let done = match prepared {
        Ok(()) => sealer.commit().context(|| "having init move a sandbox's root".to_owned()),
        Err(error) => {
            // It closes the sockets where they wait.
            sealer.abort();
            Ok(Err(SealError::NotMoved(error.to_string())))
        }
    };
    for door in waiting {
        // Who was killed meanwhile, or is stopped, is so after the picture.
        let _ = door.leave();
    }
    match done? {
        Ok(()) => Ok(()),
        Err(SealError::NotMoved(why)) => Err(Error::not_sealed(why)),
        Err(SealError::Moved(why)) => {
            let source = io::Error::from_raw_os_error(libc::EBUSY);
            Err(Error::Failed { what: format!("making files a layer: {why}"), source })
        }
    }
}

fn prepare<'a>(
    tree: &'a Tree,
    tail: &'a Tail,
    seats: &'a [Seat],
    open: &BTreeMap<usize, Opening>,
    sealer: &mut dyn Sealer,
    waiting: &mut Vec<Door<'a>>,
) -> Result<()> {
    sealer.begin().context(asking)?.map_err(Error::not_sealed)?;
    let mut files: BTreeMap<usize, OwnedFd> = BTreeMap::new();
    let all: Vec<_> = open.iter().collect();
    for some in all.chunks(AT_ONCE) {
        let openings: Vec<_> = some.iter().map(|(_, opening)| (*opening).clone()).collect();
        let opened = open_all(sealer, &openings)?;
        files.extend(some.iter().map(|(index, _)| **index).zip(opened));
    }
    let mut directories: BTreeMap<&[u8], OwnedFd> = BTreeMap::new();
    let flags = (OFlags::PATH | OFlags::DIRECTORY).bits();
    let of_seats = seats.iter().filter_map(|seat| seat.directory.as_deref());
    let paths: std::collections::BTreeSet<&[u8]> = of_seats.collect();
    let paths: Vec<&[u8]> = paths.into_iter().collect();
    for some in paths.chunks(AT_ONCE) {
        let opening =
            |path: &&[u8]| Opening { path: path.to_vec(), flags, position: 0, copied: false };
        let openings: Vec<_> = some.iter().map(opening).collect();
        let opened = open_all(sealer, &openings)?;
        directories.extend(some.iter().copied().zip(opened));
    }
    let mut sockets = Vec::with_capacity(seats.len());
    for seat in seats.iter().filter(|seat| !seat.threads.is_empty()) {
        let directory = seat.directory.as_deref().map(|path| directories.get(path));
        let missing = || Error::not_sealed("init opened no directory");
        let directory = directory.map(|found| found.ok_or_else(missing)).transpose()?;
        let (door, socket) = Door::make(tree, tail, seat, &files, directory)?;
        waiting.push(door);
        sockets.push(socket);
    }
    let addresses: Vec<u64> = waiting.iter().map(|door| door.address).collect();
    for (some, sockets) in addresses.chunks(AT_ONCE).zip(sockets.chunks(AT_ONCE)) {
        let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        sealer.wait_at(some, &sockets).context(asking)?.map_err(Error::not_sealed)?;
    }
    Ok(())
}

fn asking() -> String {
    "having init make another root".to_owned()
}

fn open_all(sealer: &mut dyn Sealer, openings: &[Opening]) -> Result<Vec<OwnedFd>> {
    let opened = sealer.open(openings).context(asking)?.map_err(Error::not_sealed)?;
    // A process that has all descriptors that it may have gets no more.
    if opened.len() < openings.len() {
        return Err(Error::not_sealed("too many files are open"));
    }
    Ok(opened)
}

/// A process that waits to be moved.
struct Door<'a> {
    hand: Hand<'a>,
    /// Where its ops are that move it.
    address: u64,
    asked: Vec<Asked>,
    lengths: Vec<usize>,
}

/// Room for a thread that waits for the first.
const THREAD_ROOM: u64 = 1024;

/// Room for all that a first thread is asked beside what there is for each file.
const ROOM: u64 = 4096;

/// The same for a file: at most three ops, and its number.
const FILE_ROOM: u64 = 256;

/// `struct msghdr`, an iovec, a byte, and the head of a control message: sizes and offsets.
const VECTOR: u64 = 56;
const BYTE: u64 = VECTOR + 16;
const CONTROL: u64 = BYTE + 8;
const NUMBERS: u64 = CONTROL + 16;

const SIZE: u64 = size_of::<Op>() as u64;

/// A number of no descriptor, to be closed where none came.
const NONE: u64 = u32::MAX as u64;

fn close(number: u64) -> Op {
    Op::call(libc::SYS_close, [number, 0, 0, 0, 0, 0])
}

fn first_argument(op: u64) -> u64 {
    op + stub::ARGUMENT as u64
}

impl<'a> Door<'a> {
    /// Has a process take what it needs, and wait at a socket, whose other end is given.
    fn make(
        tree: &'a Tree,
        tail: &'a Tail,
        seat: &'a Seat,
        files: &BTreeMap<usize, OwnedFd>,
        directory: Option<&OwnedFd>,
    ) -> Result<(Self, OwnedFd)> {
        let count = seat.files.len() as u64 + 2;
        let first = ROOM + count * FILE_ROOM;
        let length = first + seat.threads.len() as u64 * THREAD_ROOM;
        let who = (seat.inner, seat.name.as_slice());
        let mut hand = Hand::new(tree, tail, seat.pid, seat.vdso, length, who)?;
        let ready = Self::get_ready(&mut hand, seat, files, directory);
        if ready.is_err() {
            // On the way back it closes what it was given.
            let _ = hand.go_on(seat.pid);
        }
        let (numbers, socket, gifts) = ready?;
        Self::wait(hand, seat, numbers, &gifts, directory.is_some(), first)
            .map(|door| (door, socket))
    }

    /// Has a process take what it needs: the numbers of its sockets, the second of these, and the
    /// numbers of the rest.
    fn get_ready(
        hand: &mut Hand<'_>,
        seat: &Seat,
        files: &BTreeMap<usize, OwnedFd>,
        directory: Option<&OwnedFd>,
    ) -> Result<([u64; 2], OwnedFd, Vec<u64>)> {
        let (numbers, socket) = Self::connect(hand, seat.pid)?;
        let old = directory.map(|_| {
            let path = format!("/proc/{}/cwd", seat.pid);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(path.as_str(), flags, Mode::empty()).context(|| path)
        });
        let old = old.transpose()?;
        let mut gifts = Vec::with_capacity(seat.files.len() + 2);
        for (_, _, description) in &seat.files {
            let missing = || Error::not_sealed("init did not open all");
            gifts.push(files.get(description).ok_or_else(missing)?.as_fd());
        }
        gifts.extend(directory.map(AsFd::as_fd));
        gifts.extend(old.as_ref().map(AsFd::as_fd));
        let gifts = Self::give(hand, seat.pid, (numbers, &socket), &gifts, old.is_some())?;
        Ok((numbers, socket, gifts))
    }

    /// Has it make a pair of sockets: gives the numbers of both there, and the second.
    fn connect(hand: &mut Hand<'_>, pid: Pid) -> Result<([u64; 2], OwnedFd)> {
        let ops = 6;
        let (at, data) = (hand.area(), hand.data_address(0, ops));
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
        let make = [libc::AF_UNIX as u64, kind, 0, data, 0, 0];
        let ops = [
            Op::call(libc::SYS_socketpair, make).keep(),
            Op::copy(first_argument(at + 4 * SIZE), data, 4),
            Op::copy(first_argument(at + 5 * SIZE), data + 4, 4),
            Op::trap(),
            close(NONE),
            close(NONE),
        ];
        let mut pair = [0xff; 8];
        let results = hand.ask(pid, 0, &ops, &mut pair)?;
        check(results.first(), "socketpair")?;
        let number = |at: usize| u64::from(word(&pair, at));
        let numbers = [number(0), number(4)];
        let failed = || "taking a socket of a process".to_owned();
        let process = pidfd_open(pid, PidfdFlags::empty()).context(failed)?;
        let socket = pidfd_getfd(&process, numbers[1] as i32, PidfdGetfdFlags::empty());
        Ok((numbers, socket.context(failed)?))
    }

    /// Gives it descriptors; their numbers there. Tries whether it may go to the last but one, and
    /// back to the last, if these are directories.
    fn give(
        hand: &mut Hand<'_>,
        pid: Pid,
        (numbers, socket): ([u64; 2], &OwnedFd),
        gifts: &[BorrowedFd<'_>],
        is_going: bool,
    ) -> Result<Vec<u64>> {
        if gifts.is_empty() {
            return Ok(Vec::new());
        }
        channel::send(socket, b"", gifts).context(|| "sending descriptors".to_owned())?;
        let count = gifts.len();
        let ops = 1 + count + 4 + 1 + count + 2;
        let (at, data) = (hand.area(), hand.data_address(0, ops));
        let op = |n: usize| at + n as u64 * SIZE;
        let number = |n: usize| data + NUMBERS + 4 * n as u64;
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let mut all = vec![Op::call(libc::SYS_recvmsg, [numbers[0], data, flags, 0, 0, 0]).keep()];
        // What comes is closed if nobody says otherwise.
        let closes = 1 + count + 4 + 1;
        all.extend((0..count).map(|n| Op::copy(first_argument(op(closes + n)), number(n), 4)));
        let (to, back) = (1 + count + 2, 1 + count + 3);
        let target = |n: usize| if is_going { number(n) } else { data + BYTE };
        all.push(Op::copy(first_argument(op(to)), target(count.saturating_sub(2)), 4));
        all.push(Op::copy(first_argument(op(back)), target(count - 1), 4));
        let go = |number: u64| Op::call(libc::SYS_fchdir, [number, 0, 0, 0, 0, 0]).keep();
        let stay = Op::call(libc::SYS_getpid, [0; 6]).keep();
        all.extend(if is_going { [go(NONE), go(NONE)] } else { [stay, stay] });
        all.push(Op::trap());
        all.extend((0..count).map(|_| close(NONE)));
        all.extend(numbers.map(close));
        let control = 16 + 4 * count as u64;
        let mut bytes = vec![0xff; (NUMBERS + 4 * count as u64 + 8) as usize];
        let mut put = |at: u64, value: u64| {
            if let Some(place) = bytes.get_mut(at as usize..at as usize + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        };
        // Name and its length, vector, control and its length, flags.
        for (n, value) in
            [0, 0, data + VECTOR, 1, data + CONTROL, control, 0].into_iter().enumerate()
        {
            put(n as u64 * 8, value);
        }
        put(VECTOR, data + BYTE);
        put(VECTOR + 8, 1);
        let results = hand.ask(pid, 0, &all, &mut bytes)?;
        check(results.first(), "recvmsg")?;
        let came = u64::from(word(&bytes, CONTROL as usize));
        if came != control {
            return Err(Error::not_sealed("a process has no numbers for other files"));
        }
        check(results.get(to), "fchdir")?;
        check(results.get(back), "fchdir")?;
        let number = |n: usize| u64::from(word(&bytes, NUMBERS as usize + 4 * n));
        Ok((0..count).map(number).collect())
    }

    /// Has all of its threads wait.
    fn wait(
        hand: Hand<'a>,
        seat: &Seat,
        numbers: [u64; 2],
        gifts: &[u64],
        is_going: bool,
        first: u64,
    ) -> Result<Self> {
        let call = |number, args| Op::call(number, args);
        let moved = seat.files.len() + usize::from(is_going);
        // Behind the first three: files, sending, waiting again; then the end.
        let end = 3 + moved + 2;
        let ops = end + gifts.len() + 3;
        let (at, data) = (hand.area(), hand.data_address(0, ops));
        let op = |n: usize| at + n as u64 * SIZE;
        let (word_at, scratch) = (data, data + 8);
        let receive = |to: u64| call(libc::SYS_recvfrom, [numbers[0], to, 8, 0, 0, 0]);
        let mut all = vec![close(numbers[1]), receive(first_argument(op(2))), Op::jump(op(end))];
        for ((number, close_on_exec, _), gift) in seat.files.iter().zip(gifts) {
            let flags = if *close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
            all.push(call(libc::SYS_dup3, [*gift, u64::from(*number), flags, 0, 0, 0]));
        }
        if is_going {
            let directory = gifts.get(seat.files.len()).copied().unwrap_or(NONE);
            all.push(call(libc::SYS_fchdir, [directory, 0, 0, 0, 0, 0]));
        }
        let quietly = libc::MSG_NOSIGNAL as u64;
        all.push(call(libc::SYS_sendto, [numbers[0], scratch, 1, quietly, 0, 0]));
        all.push(receive(scratch));
        all.extend(gifts.iter().copied().map(close));
        all.push(close(numbers[0]));
        all.push(Op::add(word_at, 1));
        let wake = [word_at, libc::FUTEX_WAKE as u64, i32::MAX as u64, 0, 0, 0];
        all.push(call(libc::SYS_futex, wake));
        debug_assert_eq!(all.len(), ops);
        let mut door = Self { hand, address: op(3), asked: Vec::new(), lengths: Vec::new() };
        let (leader, others) =
            seat.threads.split_first().ok_or_else(|| Error::Unsteady("no thread".to_owned()))?;
        let zero = [0; 16];
        let asked = door.hand.begin(*leader, 0, &all, &zero)?;
        door.asked.push(asked);
        door.lengths.push(zero.len());
        for (n, tid) in others.iter().enumerate() {
            let at = first + n as u64 * THREAD_ROOM;
            let asked = door.hand.begin(*tid, at, &[Op::wait_while(word_at, 0)], &[])?;
            door.asked.push(asked);
            door.lengths.push(0);
        }
        Ok(door)
    }

    /// Waits until all of its threads wait no more, and gives them back what they were.
    fn leave(self) -> Result<()> {
        for (asked, length) in self.asked.iter().zip(&self.lengths) {
            self.hand.answer(asked, &mut vec![0; *length])?;
        }
        self.hand.close()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).unwrap_or_default();
    u32::from_le_bytes(bytes.try_into().unwrap_or([0xff; 4]))
}

fn check(result: Option<&i64>, call: &str) -> Result<()> {
    match result.copied().unwrap_or(-i64::from(libc::EIO)) {
        0.. => Ok(()),
        error => {
            let error = io::Error::from_raw_os_error(-error as i32);
            Err(Error::not_sealed(format!("{call} in a process: {error}")))
        }
    }
}
