//! Our stdin, read ahead by no more than a few frames.

use std::io::{self, Read};
use std::thread;

use bytes::{Bytes, BytesMut};
use forkyard_api::stream::{HEADER, Kind, MAX_PAYLOAD, header};
use tokio::sync::mpsc;

use crate::error::Error;

/// Frames that wait to be sent; behind them, whoever writes our stdin waits.
const AHEAD: usize = 2;

/// stdin as frames. A thread reads it, because a terminal or pipe that is shared with other
/// processes must not be made non-blocking; it ends with the process.
#[derive(Debug)]
pub(crate) struct Input {
    frames: mpsc::Receiver<Bytes>,
}

impl Input {
    /// Begins to read.
    pub(crate) fn start() -> Result<Self, Error> {
        let (sender, frames) = mpsc::channel(AHEAD);
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read(&mut io::stdin().lock(), &sender))
            .map_err(|e| Error::io("start a thread for stdin", e))?;
        Ok(Self { frames })
    }

    /// The next frame; nothing at the end of stdin. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.frames.recv().await
    }
}

/// Sends frames until the end of `source`. A terminal that hangs up reads as an error: an end too.
fn read(source: &mut impl Read, sender: &mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.resize(HEADER + MAX_PAYLOAD, 0);
        let length = match source.read(buffer.get_mut(HEADER..).unwrap_or_default()) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if let Some(head) = buffer.first_chunk_mut::<HEADER>() {
            *head = header(Kind::Stdin, length);
        }
        let frame = buffer.split_to(HEADER + length).freeze();
        if sender.blocking_send(frame).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkyard_api::stream::parse_header;

    #[test]
    fn stdin_comes_in_whole_frames_and_ends() {
        let (sender, mut receiver) = mpsc::channel(100);
        let text = vec![7_u8; 3 * MAX_PAYLOAD + 5];
        read(&mut text.as_slice(), &sender);
        drop(sender);
        let mut total = 0;
        while let Some(frame) = receiver.blocking_recv() {
            let (kind, length) = parse_header(*frame.first_chunk().unwrap()).unwrap();
            assert_eq!((kind, length), (Kind::Stdin, frame.len() - HEADER));
            total += length;
        }
        assert_eq!(total, text.len());
    }
}
