//! A reader of tar archives that trusts nothing: memory is bounded whatever the archive says.
//!
//! V7, ustar, GNU (long names, sparse files, base-256 numbers) and pax archives are read from a
//! stream, entry by entry. Global pax headers say nothing that matters to a file tree and are
//! passed over, as container tools do.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

pub(crate) use header::BLOCK;
pub(crate) use sparse::Sparse;

use crate::text::{read_full, read_some};
use header::{Dialect, Header};
use pax::Pax;

/// Most bytes of one extended header. Linux allows 64 KiB per xattr and names of 4 KiB; container
/// tools write a handful of xattrs. Sparse maps of the oldest pax format are the largest.
const MAX_EXTENSION: u64 = 1 << 20;

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// A character or block device.
    Device,
    /// A type flag of another system, with its letter.
    Other(u8),
}

/// One entry of an archive, its contents excepted.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As written: it may be absolute, hold `..`, or be empty.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Where a link leads, as written.
    pub(crate) link: Vec<u8>,
    /// Bytes of contents in the archive.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<Sparse>,
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("it ends in the middle of an entry")]
    Truncated,
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("a header has a bad {0}")]
    Field(&'static str),
    #[error("a {0} is too large")]
    TooBig(&'static str),
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// How an archive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the block of zeros that the formats demand.
    Marker,
    /// Between two entries; whole or cut off, one cannot tell.
    Missing,
}

/// Reads the entries of an archive one after the other.
pub(crate) struct Reader<R> {
    inner: R,
    /// Passes over bytes; returns over how many.
    skip: fn(&mut R, u64) -> io::Result<u64>,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the current entry's contents not read yet, and of the padding behind them.
    left: u64,
    padding: u64,
    end: Option<End>,
}

/// Headers seen before the entry that they are about.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        let skip = |inner: &mut R, bytes| io::copy(&mut inner.take(bytes), &mut io::sink());
        Self::skipping_with(inner, skip)
    }

    /// A reader that passes over contents in a way of its own.
    pub(crate) fn skipping_with(inner: R, skip: fn(&mut R, u64) -> io::Result<u64>) -> Self {
        Self { inner, skip, at: 0, left: 0, padding: 0, end: None }
    }

    /// Bytes of the archive read so far; right after `next`, where the contents begin.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// How the archive ended, once `next` has returned `None`.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// The underlying stream, for what follows the archive.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; what is left of the current one is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pending = Pending::default();
        loop {
            self.skip_rest()?;
            if self.end.is_some() {
                return Ok(None);
            }
            let Some(block) = self.block()? else {
                return self.ended(End::Missing, &pending);
            };
            let header = Header(&block);
            if header.is_zero() {
                return self.ended(End::Marker, &pending);
            }
            if !header.checksum_holds() {
                return Err(TarError::Checksum);
            }
            match header.kind() {
                b'x' | b'X' => {
                    let body = self.extension(header.size()?, MAX_EXTENSION)?;
                    pending.pax = Some(Pax::parse(&body)?);
                }
                b'g' => self.contents(header.size()?),
                b'L' => pending.long_name = Some(self.long_text(header.size()?)?),
                b'K' => pending.long_link = Some(self.long_text(header.size()?)?),
                _ => return self.entry(&block, pending).map(Some),
            }
        }
    }

    /// Reads contents of the current entry; 0 means that there are no more.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let read = read_some(&mut self.inner, buffer.get_mut(..want).unwrap_or_default())?;
        if read == 0 {
            return Err(TarError::Truncated);
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }

    fn ended(&mut self, end: End, pending: &Pending) -> Result<Option<Entry>, TarError> {
        let waiting = pending.pax.is_some() || pending.long_name.is_some();
        if waiting || pending.long_link.is_some() {
            return Err(TarError::Truncated);
        }
        self.end = Some(end);
        Ok(None)
    }

    fn entry(&mut self, block: &[u8; BLOCK], pending: Pending) -> Result<Entry, TarError> {
        let header = Header(block);
        let pax = pending.pax.unwrap_or_default();
        let name = pax.path.or(pending.long_name).unwrap_or_else(|| header.name());
        let link = pax.link.or(pending.long_link).unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            // V7 had no directories: a name that ends in a slash was one.
            0 | b'0' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let mut size = match kind {
            Kind::File | Kind::Other(_) => pax.size.map_or_else(|| header.size(), Ok)?,
            // Writers disagree on what the field means for the rest; none has contents.
            _ => 0,
        };
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        let padding = padded.ok_or(TarError::Field("size"))? - size;
        let mut name = name;
        let sparse = if header.kind() == b'S' && header.dialect() == Dialect::Gnu {
            Some(Sparse::old_gnu(self, block, size)?)
        } else if kind == Kind::File && pax.sparse.real_size.is_some() {
            name = pax.sparse.name.clone().unwrap_or(name);
            Some(Sparse::pax(self, pax.sparse, &mut size)?)
        } else {
            None
        };
        self.left = size;
        self.padding = padding;
        Ok(Entry {
            name,
            kind,
            link,
            size,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)?,
            xattrs: pax.xattrs,
            sparse,
        })
    }

    /// Makes the next bytes the contents to be read or passed over.
    fn contents(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64, most: u64) -> Result<Vec<u8>, TarError> {
        if size > most {
            return Err(TarError::TooBig("extended header"));
        }
        self.contents(size);
        let mut body = vec![0; usize::try_from(size).unwrap_or_default()];
        let got = read_full(&mut self.inner, &mut body)?;
        self.at += got as u64;
        self.left -= got as u64;
        if self.left > 0 {
            return Err(TarError::Truncated);
        }
        Ok(body)
    }

    /// A GNU long name: text that ends at its first NUL.
    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut text = self.extension(size, 64 * 1024)?;
        if let Some(end) = text.iter().position(|b| *b == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    /// The next block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let got = read_full(&mut self.inner, &mut block)?;
        self.at += got as u64;
        match got {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(TarError::Truncated),
        }
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let total = self.left.checked_add(self.padding).ok_or(TarError::Field("size"))?;
        let skipped = (self.skip)(&mut self.inner, total)?;
        self.at += skipped;
        (self.left, self.padding) = (0, 0);
        if skipped < total { Err(TarError::Truncated) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
