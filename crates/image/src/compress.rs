//! Compressed archives: what they are, and their contents as a plain stream.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use crate::text::read_full;

/// Bytes read from a blob at a time.
const BUFFER: usize = 128 * 1024;

/// Bytes needed to tell compressions apart.
const MAGIC: usize = 6;

/// A part of a file that holds a blob: all of it, or its place within an archive.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// The file; it is read by position, its own offset is left alone.
    pub file: &'a File,
    /// Where the blob begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Known, but not read here.
    Other(&'static str),
}

impl<'a> Blob<'a> {
    /// All of a file, as long as it is now.
    pub fn whole(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, offset: 0, length: file.metadata()?.len() })
    }

    /// The bytes as they are stored.
    pub(crate) fn reader(&self) -> BlobReader<'a> {
        BlobReader { file: self.file, at: self.offset, left: self.length }
    }

    pub(crate) fn compression(&self) -> io::Result<Compression> {
        let mut head = [0; MAGIC];
        let got = read_full(&mut self.reader(), &mut head)?;
        Ok(Compression::of(head.get(..got).unwrap_or_default()))
    }

    /// The bytes uncompressed. Every member of a gzip and every frame of a zstd file is read.
    ///
    /// `Err` is the name of a compression that is not supported, or an I/O error.
    pub(crate) fn uncompressed(&self) -> io::Result<Result<Box<dyn Read + 'a>, &'static str>> {
        let raw = BufReader::with_capacity(BUFFER, self.reader());
        Ok(Ok(match self.compression()? {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
            Compression::Other(name) => return Ok(Err(name)),
        }))
    }
}

impl Compression {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // RFC 8878: a frame, or one of the sixteen skippable frames.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Other("xz"),
            [b'B', b'Z', b'h', b'0'..=b'9', b'1', b'A'] => Self::Other("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Other("lz4"),
            [b'P', b'K', 3, 4, ..] => Self::Other("zip"),
            _ => Self::None,
        }
    }
}

/// Reads a [`Blob`] from its beginning to its end.
pub(crate) struct BlobReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl BlobReader<'_> {
    /// Moves on without reading; returns by how much, less than asked for only at the end.
    pub(crate) fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let end = self.file.metadata()?.len().saturating_sub(self.at);
        let skipped = bytes.min(self.left).min(end);
        self.at += skipped;
        self.left -= skipped;
        Ok(skipped)
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_are_told_by_their_first_bytes() {
        assert_eq!(Compression::of(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(Compression::of(&[0x28, 0xb5, 0x2f, 0xfd, 0]), Compression::Zstd);
        assert_eq!(Compression::of(&[0x5a, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::of(&[0xfd, b'7', b'z', b'X', b'Z', 0]), Compression::Other("xz"));
        assert_eq!(Compression::of(b"bin/sh"), Compression::None);
        assert_eq!(Compression::of(b""), Compression::None);
    }
}
