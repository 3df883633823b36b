//! The server's end of a message channel: requests go out, replies and events come in.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use forkyard_sys::channel::{self, Message};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// A reply and the descriptors that came with it.
pub(crate) type Answer<T> = (T, Vec<OwnedFd>);

/// A channel on which requests are numbered and replies carry the number.
#[derive(Debug)]
pub(crate) struct Link<T> {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer<T>>>>>,
}

impl<T> Link<T> {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self {
            socket: forkyard_sys::watch::watch(socket, interest)?,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
        })
    }

    /// Sends the request that `message` makes for a number; the receiver gives what comes of it,
    /// or an error when the other end goes away.
    pub(crate) async fn request(
        &self,
        message: impl FnOnce(u64) -> Vec<u8>,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<oneshot::Receiver<Answer<T>>> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(seq, sender),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let Err(error) = self.send(&message(seq), fds).await {
            self.take(seq);
            return Err(error);
        }
        Ok(receiver)
    }

    /// Sends a message that has no answer.
    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match channel::send(self.socket.get_ref(), bytes, fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let mut ready = self.socket.writable().await?;
            ready.clear_ready();
        }
    }

    /// Waits for the next message; `None` when the other end is gone.
    pub(crate) async fn receive(&self) -> Option<Message> {
        loop {
            match channel::receive(self.socket.get_ref()) {
                Ok(message) => return message,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The other end went without reading all that we sent. What it sent before comes
                // behind this error, which is told once.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(_) => return None,
            }
            self.socket.readable().await.ok()?.clear_ready();
        }
    }

    /// Gives an answer to whoever waits for it.
    pub(crate) fn answer(&self, seq: u64, answer: Answer<T>) {
        if let Some(sender) = self.take(seq) {
            let _ = sender.send(answer);
        }
    }

    /// Hangs up.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }

    /// Says that no request comes any more, and waits until the other end is gone.
    pub(crate) async fn end(&self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write);
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            waiting.insert(seq, sender);
        }
        let _ = receiver.await;
    }

    /// Fails whoever waits, now and from now on.
    pub(crate) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether the other end is known to be gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn take(&self, seq: u64) -> Option<oneshot::Sender<Answer<T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&seq)
    }
}

impl<T> AsFd for Link<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}
