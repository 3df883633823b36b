//! Contents that are no text, as git writes them into a patch: deflated, in base 85.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

const DIGITS: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// Bytes of a line.
const LINE: usize = 52;

/// Writes all of some contents, and the empty line behind.
pub(crate) fn write_literal(to: &mut impl Write, contents: &[u8]) -> io::Result<()> {
    let mut deflated = ZlibEncoder::new(Vec::new(), Compression::default());
    deflated.write_all(contents)?;
    writeln!(to, "literal {}", contents.len())?;
    for line in deflated.finish()?.chunks(LINE) {
        to.write_all(&encode(line))?;
    }
    to.write_all(b"\n")
}

/// A line: a letter for its length, five digits for each four bytes, zeros behind the last.
fn encode(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u8;
    let mut line = vec![if length <= 26 { b'A' + length - 1 } else { b'a' + length - 27 }];
    for group in bytes.chunks(4) {
        let mut word = [0_u8; 4];
        word.iter_mut().zip(group).for_each(|(to, from)| *to = *from);
        let mut value = u32::from_be_bytes(word);
        let mut digits = [0_u8; 5];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS.get((value % 85) as usize).copied().unwrap_or_default();
            value /= 85;
        }
        line.extend(digits);
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_base_85_as_git_writes_them() {
        // What git writes of an empty file.
        let deflated = [0x78, 0x01, 0x03, 0, 0, 0, 0, 1];
        assert_eq!(String::from_utf8(encode(&deflated)).unwrap(), "HcmV?d00001\n");
    }
}
