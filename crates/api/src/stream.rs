//! The framed stream that carries a command's stdio over an upgraded HTTP connection.
//!
//! A request with `Connection: Upgrade` and `Upgrade: forkyard-stream` is answered with `101`
//! (or with a plain JSON error), after which both sides send frames:
//!
//! ```text
//! | kind: u8 | length: u32, big endian, at most 65,536 | payload |
//! ```
//!
//! Client to server: [`Kind::Stdin`], [`Kind::StdinEnd`], [`Kind::Resize`], [`Kind::Signal`].
//! Server to client: [`Kind::Sandbox`] (`run` only), [`Kind::Started`], [`Kind::Stdout`],
//! [`Kind::Stderr`], then exactly one of [`Kind::Exit`] and [`Kind::Error`], then end of file.
//!
//! A connection that ends without that last frame means that the server died. The client counts
//! the bytes of stdout and stderr that it got, those of an unfinished frame included, and attaches
//! again at these offsets; no byte is lost and none comes twice.

/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Bytes before a frame's payload.
pub const HEADER: usize = 5;

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "forkyard-stream";

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes for the command's stdin.
    Stdin = 0,
    /// Bytes of its stdout; of its terminal where it has one.
    Stdout = 1,
    /// Bytes of its stderr.
    Stderr = 2,
    /// JSON [`TerminalSize`](forkyard_engine::model::TerminalSize).
    Resize = 3,
    /// JSON [`Signal`](crate::routes::Signal): sent to the command's process group.
    Signal = 4,
    /// No more stdin; empty.
    StdinEnd = 5,
    /// JSON [`Exit`](forkyard_engine::model::Exit); the last frame.
    Exit = 6,
    /// JSON [`ErrorBody`](crate::routes::ErrorBody); the last frame.
    Error = 7,
    /// JSON [`Command`](forkyard_engine::model::Command): it runs.
    Started = 8,
    /// JSON [`Sandbox`](forkyard_engine::model::Sandbox): made for this `run`.
    Sandbox = 9,
}

impl Kind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Resize,
            4 => Self::Signal,
            5 => Self::StdinEnd,
            6 => Self::Exit,
            7 => Self::Error,
            8 => Self::Started,
            9 => Self::Sandbox,
            _ => return None,
        })
    }
}

/// Why a frame's header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Longer than [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes; at most {MAX_PAYLOAD}")]
    Length(u32),
}

/// Writes the header of a frame.
pub fn header(kind: Kind, payload: usize) -> [u8; HEADER] {
    debug_assert!(payload <= MAX_PAYLOAD);
    let length = (payload as u32).to_be_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// Reads the header of a frame: its kind and the length of its payload.
pub fn parse_header(bytes: [u8; HEADER]) -> Result<(Kind, usize), FrameError> {
    let kind = Kind::from_byte(bytes[0]).ok_or(FrameError::Kind(bytes[0]))?;
    let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    if length as usize > MAX_PAYLOAD {
        return Err(FrameError::Length(length));
    }
    Ok((kind, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        for byte in 0..=9 {
            let kind = Kind::from_byte(byte).unwrap();
            assert_eq!(parse_header(header(kind, 4096)), Ok((kind, 4096)));
        }
    }

    #[test]
    fn unknown_kinds_and_long_frames_are_refused() {
        assert_eq!(parse_header([77, 0, 0, 0, 0]), Err(FrameError::Kind(77)));
        assert_eq!(parse_header([1, 0, 1, 0, 1]), Err(FrameError::Length(65_537)));
    }

    #[test]
    fn a_header_is_read_as_it_was_written_or_refused() {
        for first in 0..=u8::MAX {
            for length in [0, 1, MAX_PAYLOAD as u32, MAX_PAYLOAD as u32 + 1, u32::MAX] {
                let [a, b, c, d] = length.to_be_bytes();
                let bytes = [first, a, b, c, d];
                match parse_header(bytes) {
                    Ok((kind, payload)) => assert_eq!(header(kind, payload), bytes),
                    Err(_) => assert!(first > 9 || length as usize > MAX_PAYLOAD, "{bytes:?}"),
                }
            }
        }
    }
}
