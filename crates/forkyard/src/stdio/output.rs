//! stdout and stderr, written so that a slow reader of ours does not hold up signals.
//!
//! Both may be shared with other processes and must stay blocking. `RWF_NOWAIT` (preadv2(2))
//! writes what fits at once without changing that; from the first time that a pipe or socket is
//! full, a thread writes instead. Files and terminals know no such flag and are simply written.

use std::io::{self, IoSlice, Stderr, Stdout, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::mpsc;

/// An offset that means the file's own, preadv2(2).
const CURRENT: u64 = u64::MAX;

/// One of our outputs.
#[derive(Debug)]
pub(crate) struct Output {
    file: Standard,
    way: Way,
}

#[derive(Debug)]
enum Standard {
    Stdout(Stdout),
    Stderr(Stderr),
}

/// How it is written.
#[derive(Debug)]
enum Way {
    AtOnce,
    Blocking,
    Thread(Writer),
}

impl Output {
    /// Our stdout.
    pub(crate) fn stdout() -> Self {
        Self { file: Standard::Stdout(io::stdout()), way: Way::AtOnce }
    }

    /// Our stderr.
    pub(crate) fn stderr() -> Self {
        Self { file: Standard::Stderr(io::stderr()), way: Way::AtOnce }
    }

    /// Writes some of `bytes` and says how many. When the future is dropped, the next call must be
    /// for the same bytes; it takes up what this one began.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> io::Result<usize> {
        loop {
            match &mut self.way {
                Way::Thread(writer) => return writer.write(bytes).await,
                Way::Blocking => return Ok(rustix::io::write(self.file.as_fd(), bytes)?),
                Way::AtOnce => match at_once(self.file.as_fd(), bytes) {
                    Ok(written) => return Ok(written),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => self.way = Way::Thread(Writer::start(&self.file)?),
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {
                        self.way = Way::Blocking;
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }
}

impl AsFd for Standard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(file) => file.as_fd(),
            Self::Stderr(file) => file.as_fd(),
        }
    }
}

fn at_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::io::pwritev2(fd, &[IoSlice::new(bytes)], CURRENT, ReadWriteFlags::NOWAIT)
}

/// A thread that writes what it is given, and says when it has.
#[derive(Debug)]
struct Writer {
    work: mpsc::Sender<Bytes>,
    done: mpsc::Receiver<io::Result<usize>>,
    busy: bool,
}

impl Writer {
    fn start(file: &Standard) -> io::Result<Self> {
        let mut file = std::fs::File::from(file.as_fd().try_clone_to_owned()?);
        let (work, mut given) = mpsc::channel::<Bytes>(1);
        let (tell, done) = mpsc::channel(1);
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            while let Some(bytes) = given.blocking_recv() {
                let result = file.write_all(&bytes).map(|()| bytes.len());
                if tell.blocking_send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { work, done, busy: false })
    }

    async fn write(&mut self, bytes: &Bytes) -> io::Result<usize> {
        let gone = || io::Error::other("the thread that writes has ended");
        if !self.busy {
            self.work.send(bytes.clone()).await.map_err(|_| gone())?;
            self.busy = true;
        }
        let result = self.done.recv().await.ok_or_else(gone)?;
        self.busy = false;
        result
    }
}
