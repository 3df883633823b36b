//! Small helpers: names from archives shown to people, and reads that survive signals.

use std::io::{self, Read};

/// Longest part of a hostile name that a message repeats, in characters.
const SHOWN: usize = 200;

/// Bytes from an archive or a registry as text for a message: control characters (which could
/// drive a terminal) and bytes that are not UTF-8 replaced, cut after 200 characters.
pub(crate) fn show(bytes: &[u8]) -> String {
    let head = bytes.get(..bytes.len().min(4 * SHOWN)).unwrap_or_default();
    let text = String::from_utf8_lossy(head);
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = text.chars().take(SHOWN).map(clean).collect();
    if head.len() < bytes.len() || text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// One `read`, begun anew when a signal interrupts it.
pub(crate) fn read_some(reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Fills the buffer as far as the reader has bytes; returns how many came.
pub(crate) fn read_full(reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read_some(reader, rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_drive_a_terminal_or_flood_a_message() {
        assert_eq!(show(b"a\x1b[31m\xff\n"), "a\u{fffd}[31m\u{fffd}\u{fffd}");
        assert!(show(&vec![b'x'; 100_000]).chars().count() <= SHOWN + 1);
    }
}
