//! One 512-byte header block of a tar archive: its fields and its checksum.
//!
//! Sources: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use super::TarError;

/// Size of a block; headers and contents fill whole blocks.
pub(crate) const BLOCK: usize = 512;

/// A header block as read.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

#[derive(PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Gnu,
}

impl<'a> Header<'a> {
    pub(super) fn field(&self, at: usize, length: usize) -> &'a [u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    /// A text field: up to its first NUL, or all of it.
    fn text(&self, at: usize, length: usize) -> &'a [u8] {
        let field = self.field(at, length);
        field.split(|b| *b == 0).next().unwrap_or_default()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    /// Whether the checksum holds; some old writers summed signed bytes.
    pub(super) fn checksum_holds(&self) -> bool {
        let Some(stored) = octal(self.field(148, 8)) else { return false };
        let byte_at = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let unsigned: u64 = (0..).zip(self.0).map(|(i, b)| u64::from(byte_at(i, *b))).sum();
        let signed: i64 =
            (0..).zip(self.0).map(|(i, b)| i64::from(byte_at(i, *b).cast_signed())).sum();
        stored == unsigned || i64::try_from(stored) == Ok(signed)
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.field(257, 8) {
            b"ustar  \0" => Dialect::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// The name; ustar's prefix put before it.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if self.dialect() == Dialect::Ustar && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    /// Permission bits, type bits cut off.
    pub(super) fn mode(&self) -> Result<u32, TarError> {
        Ok((self.number(100, 8, "mode")? & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.positive(108, 8, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.positive(116, 8, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.positive(124, 12, "size")
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        self.number(136, 12, "time")
    }

    pub(super) fn positive(
        &self,
        at: usize,
        length: usize,
        what: &'static str,
    ) -> Result<u64, TarError> {
        u64::try_from(self.number(at, length, what)?).map_err(|_| TarError::Field(what))
    }

    fn number(&self, at: usize, length: usize, what: &'static str) -> Result<i64, TarError> {
        number(self.field(at, length)).ok_or(TarError::Field(what))
    }
}

/// A numeric field: octal digits, or GNU's base-256 when the first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return i64::try_from(octal(field)?).ok();
    }
    // Two's complement, big endian; 0x80 is positive, 0xff negative.
    let negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}

/// Octal digits between spaces and NULs; an empty field is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let digits = field.get(..end)?.trim_ascii();
    digits.iter().try_fold(0_u64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(0x2_0000_0000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"0000888\0"), None);
        assert_eq!(number(&[0xbf; 12]), None);
    }
}
