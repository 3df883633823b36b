//! The server's side of a sandbox's session: runs lines, one at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use base64::Engine as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::model::SessionOutput;

/// The most of one line's output that is given back, per stream, in bytes.
pub(crate) const OUTPUT_MAX: usize = 16 * 1024 * 1024;

/// How long an interrupted line has before its processes are killed, and then before the shell is.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Output up to this many bytes is made text of at once.
const SHORT: usize = 256 * 1024;

/// What is taken from a pipe at once.
const CHUNK: usize = 64 * 1024;

/// A shell and the server's ends of its pipes.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) generation: u32,
    trigger: OwnedFd,
    done: AsyncFd<OwnedFd>,
    line: OwnedFd,
    outputs: [AsyncFd<OwnedFd>; 2],
    /// Number of the last line, counted anew by each server.
    number: u64,
    /// `$!` after the last line: children with a higher process id belong to the current one.
    pub(crate) last_background: u32,
    /// Another server may have left a line running.
    stale: bool,
    partial: Vec<u8>,
}

/// How waiting for a line went.
pub(crate) enum Progress {
    /// It is done, with this status.
    Done(i32),
    /// The time is up.
    TimeUp,
    /// The shell is gone: init has closed its ends.
    Gone,
}

/// What a line wrote, up to [`OUTPUT_MAX`] of each.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    streams: [Vec<u8>; 2],
    truncated: bool,
}

impl Session {
    /// Takes up a session with the descriptors that init gave.
    pub(crate) fn new(generation: u32, fds: Vec<OwnedFd>, stale: bool) -> Result<Self> {
        let [trigger, done, line, stdout, stderr] = <[OwnedFd; 5]>::try_from(fds)
            .map_err(|_| Error::io("taking up a session")(io::ErrorKind::InvalidData.into()))?;
        let watched = |fd| {
            forkyard_sys::watch::watch(fd, Interest::READABLE)
                .map_err(Error::io("watching a session"))
        };
        Ok(Self {
            generation,
            trigger,
            done: watched(done)?,
            line,
            outputs: [watched(stdout)?, watched(stderr)?],
            // Another server's numbers must not be taken for this one's.
            number: crate::clock::unique(),
            last_background: 0,
            stale,
            partial: Vec::new(),
        })
    }

    /// Lets a line that another server started end, and forgets its output.
    pub(crate) async fn settle(&mut self, until: Option<Instant>) -> Result<Progress> {
        if self.stale {
            if !self.start(b":")? {
                return Ok(Progress::Gone);
            }
            match self.wait(&mut Collected::default(), until).await? {
                Progress::Done(_) => self.stale = false,
                other => return Ok(other),
            }
        }
        Ok(Progress::Done(0))
    }

    /// Starts a line. False when nobody is there to read it: the shell ended since the last one.
    pub(crate) fn start(&mut self, line: &[u8]) -> Result<bool> {
        let failed = |e: rustix::io::Errno| Error::io("starting a line")(e.into());
        rustix::fs::ftruncate(&self.line, 0).map_err(failed)?;
        let mut at = 0;
        while let Some(rest) = line.get(at..).filter(|rest| !rest.is_empty()) {
            at += rustix::io::pwrite(&self.line, rest, at as u64).map_err(failed)?;
        }
        self.number += 1;
        let trigger = format!("{}\n", self.number);
        match rustix::io::write(&self.trigger, trigger.as_bytes()) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::PIPE) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Waits for the current line's end and collects what it writes.
    pub(crate) async fn wait(
        &mut self,
        collected: &mut Collected,
        until: Option<Instant>,
    ) -> Result<Progress> {
        loop {
            // The end first: what the line wrote is in the pipes before its end is told.
            let told = self.read_done()?;
            if let Told::End(end) = told {
                self.drain_rest(collected)?;
                return Ok(end);
            }
            let taken = self.drain(collected)?;
            if taken == Taken::Ended {
                return Ok(Progress::Gone);
            }
            if taken == Taken::Some || matches!(told, Told::Other) {
                // A line that floods has no more time than another, and lets others have their
                // turn.
                if until.is_some_and(|until| until <= Instant::now()) {
                    return Ok(Progress::TimeUp);
                }
                tokio::task::yield_now().await;
                continue;
            }
            let [stdout, stderr] = &self.outputs;
            let ready = async {
                let ready = tokio::select! {
                    ready = self.done.readable() => ready,
                    ready = stdout.readable() => ready,
                    ready = stderr.readable() => ready,
                };
                ready.map(|mut ready| ready.clear_ready())
            };
            let ready = match until {
                None => Ok(ready.await),
                Some(until) => tokio::time::timeout_at(until, ready).await,
            };
            match ready {
                Ok(ready) => ready.map_err(Error::io("waiting for the session"))?,
                Err(_) => return Ok(Progress::TimeUp),
            }
        }
    }

    /// Reads what is in the done pipe, up to a page. The guest can write into this pipe: what is
    /// not of the form, or of another line, is passed over.
    fn read_done(&mut self) -> Result<Told> {
        let mut buffer = [0; 4096];
        let read = match rustix::io::read(self.done.get_ref(), &mut buffer) {
            Ok(0) => return Ok(Told::End(Progress::Gone)),
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN) => return Ok(Told::Nothing),
            Err(rustix::io::Errno::INTR) => return Ok(Told::Other),
            Err(e) => return Err(Error::io("reading from the session")(e.into())),
        };
        self.partial.extend_from_slice(buffer.get(..read).unwrap_or_default());
        while let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if let Some((number, status, background)) = parse_done(&line)
                && number == self.number
            {
                self.partial.clear();
                self.last_background = background;
                return Ok(Told::End(Progress::Done(status)));
            }
        }
        if self.partial.len() > 4096 {
            self.partial.clear();
        }
        Ok(Told::Other)
    }

    /// Takes what is in the output pipes, a chunk of each.
    fn drain(&self, collected: &mut Collected) -> Result<Taken> {
        let mut taken = Taken::Nothing;
        for (pipe, bytes) in self.outputs.iter().zip(&mut collected.streams) {
            match take(pipe.get_ref(), bytes, &mut collected.truncated)? {
                // Init holds the other end of each as long as there is a shell. A pipe that ended
                // is readable for ever: whoever waits for it would never let others run.
                Some(0) if taken == Taken::Nothing => taken = Taken::Ended,
                Some(1..) => taken = Taken::Some,
                _ => {}
            }
        }
        Ok(taken)
    }

    /// Takes what is in the output pipes now, and not what background jobs go on to write.
    pub(crate) fn drain_rest(&self, collected: &mut Collected) -> Result<()> {
        for (pipe, bytes) in self.outputs.iter().zip(&mut collected.streams) {
            let mut left = rustix::io::ioctl_fionread(pipe.get_ref())
                .map_err(|e| Error::io("reading from the session")(e.into()))?;
            while left > 0 {
                match take(pipe.get_ref(), bytes, &mut collected.truncated)? {
                    Some(read @ 1..) => left = left.saturating_sub(read as u64),
                    _ => break,
                }
            }
        }
        Ok(())
    }
}

/// Takes a chunk from a pipe, and keeps of it what is not too much; how much it was, or `None`
/// when there is nothing yet.
fn take(pipe: &OwnedFd, bytes: &mut Vec<u8>, truncated: &mut bool) -> Result<Option<usize>> {
    // Small at first: most lines say little.
    bytes.reserve(if bytes.is_empty() { 4096 } else { CHUNK });
    match rustix::io::read(pipe, rustix::buffer::spare_capacity(bytes)) {
        Ok(read) => {
            if bytes.len() > OUTPUT_MAX {
                bytes.truncate(OUTPUT_MAX);
                *truncated = true;
            }
            Ok(Some(read))
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(e) => Err(Error::io("reading from the session")(e.into())),
    }
}

/// What was in the done pipe.
enum Told {
    /// How the line went.
    End(Progress),
    /// Something else, and there may be more.
    Other,
    /// Nothing.
    Nothing,
}

/// What was in the output pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Something.
    Some,
    /// Nothing yet.
    Nothing,
    /// Nothing, and there will be no more.
    Ended,
}

impl Collected {
    /// What wrote this to stdout, and nothing to stderr.
    pub(crate) fn of(stdout: Vec<u8>) -> Self {
        Self { streams: [stdout, Vec::new()], truncated: false }
    }

    /// As [`Self::into_output`]; much of it on a thread where nobody else waits for that.
    pub(crate) async fn told(self, status: i32) -> Result<SessionOutput> {
        if self.streams.iter().map(Vec::len).sum::<usize>() <= SHORT {
            return Ok(self.into_output(status));
        }
        let output = tokio::task::spawn_blocking(move || self.into_output(status)).await;
        output.map_err(|e| Error::io("making text of a line's output")(io::Error::other(e)))
    }

    /// The answer to who asked for the line.
    pub(crate) fn into_output(self, status: i32) -> SessionOutput {
        let [stdout, stderr] = self.streams;
        let (stdout, stdout_base64) = text(stdout);
        let (stderr, stderr_base64) = text(stderr);
        SessionOutput {
            exit_code: status,
            stdout,
            stderr,
            stdout_base64,
            stderr_base64,
            truncated: self.truncated,
            timed_out: false,
            oom: false,
            shell_ended: false,
        }
    }
}

/// Bytes as text, and in base64 as well where they are not text.
fn text(bytes: Vec<u8>) -> (String, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.into_bytes();
            let encoded = base64::engine::general_purpose::STANDARD.encode(&bytes);
            (String::from_utf8_lossy(&bytes).into_owned(), Some(encoded))
        }
    }
}

/// `NUMBER STATUS BACKGROUND\n`
pub(crate) fn parse_done(line: &[u8]) -> Option<(u64, i32, u32)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut fields = text.trim_end().split(' ');
    let number = fields.next()?.parse().ok()?;
    let status: i32 = fields.next()?.parse().ok()?;
    let background = fields.next()?.parse().unwrap_or(0);
    fields.next().is_none().then_some(())?;
    Some((number, status & 0xff, background))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn done_messages_are_read_strictly() {
        assert_eq!(parse_done(b"7 0 0\n"), Some((7, 0, 0)));
        assert_eq!(parse_done(b"7 130 4711\n"), Some((7, 130, 4711)));
        assert_eq!(parse_done(b"7 0\n"), None);
        assert_eq!(parse_done(b"7 0 0 0\n"), None);
        assert_eq!(parse_done(b"\xff\n"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_guest_panic_the_reader(bytes: Vec<u8>) {
            let _ = parse_done(&bytes);
        }
    }
}
