//! Frames of a command's stdio, as [`forkyard_api::stream`] lays them out.

use bytes::{Buf, Bytes, BytesMut};
use forkyard_api::routes::ErrorBody;
use forkyard_api::stream::{self, HEADER, Kind, MAX_PAYLOAD};
use forkyard_engine::model::{Command, Exit, Sandbox};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::Error;

/// Which of a command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    /// The sandbox that was made for this `run`.
    Sandbox(Box<Sandbox>),
    /// The command runs.
    Started(Command),
    /// Output: as much of a frame as is there.
    Output(Channel, Bytes),
    /// The command has ended; the last frame.
    Exit(Exit),
    /// It failed; the last frame.
    Error(ErrorBody),
}

/// Bytes of stdout and stderr that were got so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Offsets {
    /// Counts output of `channel`.
    pub(crate) fn add(&mut self, channel: Channel, bytes: usize) {
        match channel {
            Channel::Stdout => self.stdout += bytes as u64,
            Channel::Stderr => self.stderr += bytes as u64,
        }
    }
}

/// Both directions of an upgraded connection.
#[derive(Debug)]
pub(crate) struct FrameStream {
    pub(crate) reader: FrameReader,
    pub(crate) writer: OwnedWriteHalf,
}

impl FrameStream {
    /// Frames over `stream`, of which `head` was read already.
    pub(crate) fn new(stream: UnixStream, head: &[u8]) -> Self {
        let (reader, writer) = stream.into_split();
        let decoder = Decoder { buffer: BytesMut::from(head), ..Decoder::default() };
        Self { reader: FrameReader { half: reader, decoder }, writer }
    }
}

/// Reads what the server says.
#[derive(Debug)]
pub(crate) struct FrameReader {
    half: OwnedReadHalf,
    decoder: Decoder,
}

impl FrameReader {
    /// The next frame; nothing when the connection has ended, however it did. Dropping the future
    /// loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(Some(frame));
            }
            self.decoder.buffer.reserve(MAX_PAYLOAD + HEADER);
            // A reset connection is what a killed server leaves.
            if !matches!(self.half.read_buf(&mut self.decoder.buffer).await, Ok(1..)) {
                return Ok(None);
            }
        }
    }
}

/// Cuts bytes into frames. Output is handed on before its frame is whole, so that nothing is
/// lost, and the count is right, when the rest never comes.
#[derive(Debug, Default)]
struct Decoder {
    buffer: BytesMut,
    /// The output whose frame is being read, and how much of it is to come.
    output: Option<(Channel, usize)>,
}

impl Decoder {
    fn next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some((channel, missing)) = self.output {
                let here = missing.min(self.buffer.len());
                if missing > 0 && here == 0 {
                    return Ok(None);
                }
                self.output = (missing > here).then_some((channel, missing - here));
                if here > 0 {
                    return Ok(Some(Frame::Output(channel, self.buffer.split_to(here).freeze())));
                }
                continue;
            }
            let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
            let (kind, length) =
                stream::parse_header(*header).map_err(|e| Error::Protocol(e.to_string()))?;
            match kind {
                Kind::Stdout | Kind::Stderr => {
                    self.buffer.advance(HEADER);
                    let stdout = kind == Kind::Stdout;
                    let channel = if stdout { Channel::Stdout } else { Channel::Stderr };
                    self.output = Some((channel, length));
                }
                _ if self.buffer.len() < HEADER + length => return Ok(None),
                _ => {
                    self.buffer.advance(HEADER);
                    return message(kind, &self.buffer.split_to(length)).map(Some);
                }
            }
        }
    }
}

fn message(kind: Kind, payload: &[u8]) -> Result<Frame, Error> {
    match kind {
        Kind::Sandbox => Ok(Frame::Sandbox(Box::new(parse(kind, payload)?))),
        Kind::Started => Ok(Frame::Started(parse(kind, payload)?)),
        Kind::Exit => Ok(Frame::Exit(parse(kind, payload)?)),
        Kind::Error => Ok(Frame::Error(parse(kind, payload)?)),
        _ => Err(Error::Protocol(format!("a {kind:?} frame, which only clients send"))),
    }
}

fn parse<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|e| Error::Protocol(format!("{kind:?} frame: {e}")))
}

/// A whole frame of at most [`MAX_PAYLOAD`] bytes, ready to be written.
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&stream::header(kind, payload.len()));
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

/// A frame of JSON.
pub(crate) fn json_frame(kind: Kind, value: &impl Serialize) -> Result<Bytes, Error> {
    let payload = serde_json::to_vec(value)
        .map_err(|e| Error::Protocol(format!("write a {kind:?} frame: {e}")))?;
    Ok(frame(kind, &payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(code: i32) -> Exit {
        Exit { code, signal: None, timed_out: false, oom: false }
    }

    #[test]
    fn output_is_handed_on_before_its_frame_is_whole() {
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(&stream::header(Kind::Stderr, 4));
        assert_eq!(decoder.next().unwrap(), None);
        decoder.buffer.extend_from_slice(b"ab");
        let half = Frame::Output(Channel::Stderr, Bytes::from_static(b"ab"));
        assert_eq!(decoder.next().unwrap(), Some(half));
        assert_eq!(decoder.next().unwrap(), None);
    }

    #[test]
    fn frames_of_clients_are_refused_from_a_server() {
        let mut decoder = Decoder { buffer: frame(Kind::Stdin, b"x").into(), output: None };
        assert!(decoder.next().is_err());
        let mut decoder = Decoder { buffer: frame(Kind::Exit, b"{}").into(), output: None };
        assert!(decoder.next().is_err());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            outputs in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..50)), 0..8),
            cut in 1_usize..20,
        ) {
            let mut wire = Vec::new();
            let mut expected = [Vec::new(), Vec::new()];
            for (stderr, bytes) in &outputs {
                let kind = if *stderr { Kind::Stderr } else { Kind::Stdout };
                wire.extend_from_slice(&frame(kind, bytes));
                expected[usize::from(*stderr)].extend_from_slice(bytes);
            }
            wire.extend_from_slice(&json_frame(Kind::Exit, &exit(7)).unwrap());
            let mut decoder = Decoder::default();
            let (mut got, mut last) = ([Vec::new(), Vec::new()], None);
            let mut offsets = Offsets::default();
            for piece in wire.chunks(cut) {
                decoder.buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    match frame {
                        Frame::Output(channel, bytes) => {
                            offsets.add(channel, bytes.len());
                            got[usize::from(channel == Channel::Stderr)].extend_from_slice(&bytes);
                        }
                        other => last = Some(other),
                    }
                }
            }
            prop_assert_eq!(offsets.stdout, expected[0].len() as u64);
            prop_assert_eq!(offsets.stderr, expected[1].len() as u64);
            prop_assert_eq!(got, expected);
            prop_assert_eq!(last, Some(Frame::Exit(exit(7))));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder { buffer: BytesMut::from(&bytes[..]), output: None };
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
