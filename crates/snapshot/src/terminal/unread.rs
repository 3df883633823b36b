//! What nobody has read of a terminal: taken out, and put in as if it were typed and written.
//!
//! The kernel's line discipline (`drivers/tty/n_tty.c`) keeps input in a ring of 4096 bytes, and
//! remembers where lines end. A line that is not complete can be seen by nobody, not even that it
//! is there; so a terminal that reads line by line is always asked:
//!
//! 1. Complete lines are read as the guest would read them. What was typed a moment ago has its
//!    echo and its signals meanwhile: poll(2) waits for that as soon as nothing is left to read.
//! 2. Under quiet settings (no echo, no signals, nothing translated) an end of file is typed: it
//!    completes the last line without being part of it. Where it does not, it was taken literally,
//!    because `VLNEXT` came before it.
//! 3. All is typed again under quiet settings, each special byte after a `VLNEXT` of these.
//!
//! `ICANON` and, while output is stopped, `IXON` stay as they are throughout: their change would
//! have side effects. A terminal that reads byte by byte tells how many wait, and is left alone
//! when there are none.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use forkyard_sys::terminal::{self, Settings};
use rustix::event::PollFlags;
use serde_bytes::ByteBuf;

use super::{Result, events, failed, refused};
use crate::picture::{Stop, Unread};

/// The most input of complete lines, or of a terminal without lines, that is taken along. With the
/// ring full more may wait to enter it, which would be treated twice.
const INPUT_MAX: usize = 3000;

/// The most output: the ring, and what may wait to enter it.
const OUTPUT_MAX: usize = 64 * 1024;

/// As much as the kernel takes at once from a writer that it lets write, and keeps together.
const CHUNK: usize = 1024;

/// What of output goes to the ring first: in buffers of the kernel's least size, so that none that
/// is half empty takes room from others.
const TO_RING: usize = 256;

/// How what waits to enter the ring is written so that as much fits as ever did. A new buffer is
/// as large as what is written, at most [`LARGE`], holds twice that (without flags for each byte,
/// which a terminal has none of), and can be had as long as all together have not more than 8192
/// bytes (`drivers/tty/tty_buffer.c`): eight of 1024, and one more.
const BEHIND_RING: [usize; 18] = {
    let mut sizes = [1024; 18];
    (sizes[16], sizes[17]) = (LARGE, LARGE);
    sizes
};

/// The most that is kept together.
const LARGE: usize = 1792;

/// What fills the ring.
const FULL: usize = 4095;

/// How long the kernel may take to move bytes from one side to the other: a worker of its own does
/// so, which gets no processor for a while on a busy machine. What is taken out must go back.
const MOVING: Duration = Duration::from_secs(5);

/// How long output may be on its way before it is taken for stopped.
const SETTLING: Duration = Duration::from_millis(20);

/// Places in `c_cc`.
const EOF: usize = 4;
const TIME: usize = 5;
const MIN: usize = 6;
const START: usize = 8;
const STOP: usize = 9;
const LITERAL_NEXT: usize = 15;

const LINE_END: u8 = b'\n';

/// Ctrl-S, or whatever stops output for us.
const STOP_BYTE: u8 = 0x13;

/// Both sides of a terminal, in packet mode never.
pub(crate) struct Ends<'a> {
    master: BorrowedFd<'a>,
    slave: BorrowedFd<'a>,
    settings: Settings,
}

impl<'a> Ends<'a> {
    /// `settings` are the terminal's, which it has afterwards too.
    pub(crate) fn new(master: BorrowedFd<'a>, slave: BorrowedFd<'a>, settings: Settings) -> Self {
        Self { master, slave, settings }
    }

    /// Tells what nobody has read and whether output is stopped, and leaves all as it was.
    pub(super) fn look(&self, with_output: bool) -> Result<(Unread, Option<Stop>)> {
        let mut unread = Unread::default();
        let output = if with_output { self.take_output(&mut unread) } else { Ok(()) };
        let stopped = self.stopped(with_output).map_err(failed("looking at the output"));
        let input = self.take_input(&mut unread);
        let stop = *stopped.as_ref().unwrap_or(&None);
        // Whatever came of it: what was taken goes back.
        let restored = if unread == Unread::default() {
            terminal::set_settings(self.slave, &self.settings)
        } else {
            // Where there is no output to write, stopped output need not be started.
            self.put(&unread, stop.filter(|_| !unread.output.is_empty()))
        };
        output?;
        input?;
        stopped?;
        restored.map_err(failed("putting back what waits"))?;
        Ok((unread, stop))
    }

    /// Puts in what nobody had read, and stops output.
    pub(crate) fn put(&self, unread: &Unread, stopped: Option<Stop>) -> io::Result<()> {
        let bytes = unread.lines.iter().flat_map(|line| line.iter()).chain(unread.rest.iter());
        let mut quiet = self.quiet(absent(bytes));
        if stopped == Some(Stop::Call) {
            terminal::set_output(self.slave, true)?;
        }
        if stopped == Some(Stop::Character) {
            // Which starts it.
            quiet.input &= !libc::IXON;
        }
        terminal::set_settings(self.slave, &quiet)?;
        let mut done = self.write_output(&unread.output);
        done = done.and_then(|()| self.type_in(unread, &quiet));
        done = done.and_then(|()| match stopped {
            Some(Stop::Call) => terminal::set_output(self.slave, false),
            Some(Stop::Character) => self.stop(quiet),
            None => Ok(()),
        });
        terminal::set_settings(self.slave, &self.settings)?;
        done
    }

    /// Settings under which nothing happens but what the two characters do: the end of a file, and
    /// the one that makes the next one plain.
    fn quiet(&self, [end_of_file, literal_next]: [u8; 2]) -> Settings {
        let settings = self.settings;
        let mut characters = [0; 19];
        characters[EOF] = end_of_file;
        characters[LITERAL_NEXT] = literal_next;
        if settings.local & libc::ICANON == 0 {
            (characters[MIN], characters[TIME]) = (1, 0);
        }
        Settings {
            input: settings.input & (libc::IXON | libc::IXOFF),
            output: settings.output & !libc::OPOST,
            local: settings.local & libc::ICANON | libc::IEXTEN,
            characters,
            ..settings
        }
    }

    fn take_output(&self, unread: &mut Unread) -> Result<()> {
        let failed = failed("reading output");
        while events(self.master, PollFlags::IN).map_err(&failed)?.contains(PollFlags::IN) {
            let mut bytes = [0; FULL + 1];
            let count = rustix::io::read(self.master, &mut bytes).map_err(|e| failed(e.into()))?;
            unread.output.extend_from_slice(bytes.get(..count).unwrap_or_default());
            if count == 0 || unread.output.len() > OUTPUT_MAX {
                return refused("more output waits than it can hold");
            }
        }
        Ok(())
    }

    /// Whether output is stopped, and by what: then nothing can be written although there is room.
    /// With `taken` there is, as all was read.
    fn stopped(&self, taken: bool) -> io::Result<Option<Stop>> {
        let end = Instant::now() + SETTLING;
        loop {
            if self.is_writable()? {
                return Ok(None);
            }
            if !taken && terminal::waiting(self.master)? >= FULL {
                return Ok(None);
            }
            if taken || Instant::now() > end {
                break;
            }
            rustix::thread::sched_yield();
        }
        // To start what a character stopped takes a character.
        terminal::set_output(self.slave, true)?;
        if self.is_writable()? {
            terminal::set_output(self.slave, false)?;
            return Ok(Some(Stop::Call));
        }
        Ok(Some(Stop::Character))
    }

    fn is_writable(&self) -> io::Result<bool> {
        Ok(events(self.slave, PollFlags::OUT)?.contains(PollFlags::OUT))
    }

    fn is_readable(&self) -> Result<bool> {
        let events = events(self.slave, PollFlags::IN).map_err(failed("poll"))?;
        Ok(events.contains(PollFlags::IN))
    }

    fn read(&self) -> Result<ByteBuf> {
        let mut bytes = vec![0; FULL + 1];
        let count = rustix::io::read(self.slave, bytes.as_mut_slice());
        bytes.truncate(count.map_err(failed("reading input"))?);
        Ok(ByteBuf::from(bytes))
    }

    fn take_input(&self, unread: &mut Unread) -> Result<()> {
        let waiting = || terminal::waiting(self.slave).map_err(failed("FIONREAD"));
        let readable = self.is_readable()?;
        if waiting()? > INPUT_MAX {
            return refused("more input waits than can be taken along");
        }
        let set =
            |settings| terminal::set_settings(self.slave, settings).map_err(failed("TCSETS2"));
        if self.settings.local & libc::ICANON != 0 {
            let mut total = 0;
            while self.is_readable()? {
                let line = self.read()?;
                total += line.len() + 1;
                unread.lines.push(line);
                if total > 2 * FULL {
                    return refused("more input waits than can be taken along");
                }
            }
            set(&self.quiet([4, 22]))?;
            return self.take_rest(unread);
        }
        if !readable && waiting()? == 0 {
            return Ok(());
        }
        // Nothing is to be read as long as there is less than this: so that poll waits for what
        // was typed a moment ago.
        let mut patient = self.settings;
        (patient.characters[MIN], patient.characters[TIME]) = (u8::MAX, 0);
        set(&patient)?;
        self.is_readable()?;
        let count = waiting()?;
        set(&self.quiet([4, 22]))?;
        while unread.rest.len() < count && self.is_readable()? {
            let bytes = self.read()?;
            unread.rest.extend_from_slice(&bytes);
        }
        Ok(())
    }

    /// Takes a line that is not complete, under quiet settings.
    fn take_rest(&self, unread: &mut Unread) -> Result<()> {
        write_all(self.master, &[4]).map_err(failed("typing"))?;
        if !self.is_readable()? {
            unread.literal_next = true;
            write_all(self.master, &[4]).map_err(failed("typing"))?;
            if !self.is_readable()? {
                unread.literal_next = false;
                return Err(failed("typing")(io::Error::from(io::ErrorKind::TimedOut)));
            }
        }
        unread.rest = self.read()?;
        if unread.literal_next {
            unread.rest.pop();
        }
        Ok(())
    }

    fn write_output(&self, bytes: &[u8]) -> io::Result<()> {
        let (ring, mut rest) = bytes.split_at(bytes.len().min(FULL));
        for chunk in ring.chunks(TO_RING) {
            write_all(self.slave, chunk)?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let end = Instant::now() + MOVING;
        while terminal::waiting(self.master)? < FULL {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            rustix::thread::sched_yield();
        }
        for size in BEHIND_RING {
            let (chunk, others) = rest.split_at(rest.len().min(size));
            write_all(self.slave, chunk)?;
            rest = others;
        }
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn type_in(&self, unread: &Unread, quiet: &Settings) -> io::Result<()> {
        let lines = quiet.local & libc::ICANON != 0;
        let (end_of_file, quote) = (quiet.characters[EOF], quiet.characters[LITERAL_NEXT]);
        let mut bytes = Vec::new();
        let plain = |bytes: &mut Vec<u8>, text: &[u8]| {
            for &byte in text {
                if lines && [end_of_file, quote, LINE_END].contains(&byte) {
                    bytes.push(quote);
                }
                bytes.push(byte);
            }
        };
        for line in &unread.lines {
            if let Some((&LINE_END, text)) = line.split_last() {
                plain(&mut bytes, text);
                bytes.push(LINE_END);
            } else {
                plain(&mut bytes, line);
                bytes.push(end_of_file);
            }
        }
        plain(&mut bytes, &unread.rest);
        if unread.literal_next {
            bytes.push(quote);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        write_all(self.master, &bytes)?;
        self.arrived(unread, bytes.len())
    }

    /// Waits until all that was typed has arrived.
    ///
    /// The kernel treats what was written at once as a whole, which a change of settings waits
    /// for: it is enough to see its beginning.
    fn arrived(&self, unread: &Unread, written: usize) -> io::Result<()> {
        let lines: usize = unread.lines.iter().map(|line| line.len()).sum();
        let canonical = self.settings.local & libc::ICANON != 0;
        if canonical && unread.lines.is_empty() {
            // Nothing can be read: poll waits.
            return events(self.slave, PollFlags::IN).map(drop);
        }
        let wanted = if canonical { lines } else { unread.rest.len() };
        let end = Instant::now() + MOVING;
        while terminal::waiting(self.slave)? < wanted
            || !events(self.slave, PollFlags::IN)?.contains(PollFlags::IN)
        {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            rustix::thread::sched_yield();
        }
        if canonical && written > CHUNK {
            // The end of a last line was written after what was seen to arrive.
            std::thread::sleep(SETTLING);
        }
        Ok(())
    }

    /// Stops output by a character, under quiet settings.
    fn stop(&self, mut quiet: Settings) -> io::Result<()> {
        quiet.input |= libc::IXON;
        (quiet.characters[START], quiet.characters[STOP]) = (0, STOP_BYTE);
        terminal::set_settings(self.slave, &quiet)?;
        write_all(self.master, &[STOP_BYTE])?;
        let end = Instant::now() + MOVING;
        while self.is_writable()? {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            rustix::thread::sched_yield();
        }
        Ok(())
    }
}

/// Two bytes that do not occur, for characters that are special; where all occur, any.
fn absent<'b>(bytes: impl Iterator<Item = &'b u8>) -> [u8; 2] {
    let mut occur = [false; 256];
    for &byte in bytes {
        if let Some(place) = occur.get_mut(usize::from(byte)) {
            *place = true;
        }
    }
    let free = |n: &u8| *n != LINE_END && !occur.get(usize::from(*n)).copied().unwrap_or_default();
    let mut found = (1..=u8::MAX).filter(free);
    [found.next().unwrap_or(4), found.next().unwrap_or(22)]
}

/// Writes to the slave, which this process has opened for itself so that no writing waits, or to
/// the master as long as there is room.
fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let waits = !rustix::fs::fcntl_getfl(fd)?.contains(rustix::fs::OFlags::NONBLOCK);
    let end = Instant::now() + MOVING;
    for chunk in bytes.chunks(if waits { CHUNK } else { LARGE }) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let room = !waits || events(fd, PollFlags::OUT)?.contains(PollFlags::OUT);
            let written = if room { rustix::io::write(fd, rest) } else { Ok(0) };
            match written {
                Ok(0) | Err(rustix::io::Errno::AGAIN) if Instant::now() > end => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(0) | Err(rustix::io::Errno::AGAIN) => rustix::thread::sched_yield(),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
