//! Reading a tar stream that nobody vouches for.
//!
//! ustar, pax (POSIX.1-2017) and GNU long names; what a header makes this keep in memory is
//! bounded. Sparse formats are refused: read as plain files they would give wrong contents.

use std::io::{self, Read};

use tar::EntryType;

use super::archive::BLOCK;

/// Most bytes of a pax header or a long name.
const META_MAX: u64 = 1024 * 1024;

/// One member. Names are as the archive has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) size: u64,
}

/// Reads members one after the other; the present one's contents are read from this too.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Bytes of the present member that are not read yet, and its padding.
    left: u64,
    padding: u64,
    /// Records that hold for all members from a global header on.
    globals: Overrides,
}

/// What pax records and GNU long names say instead of the header.
#[derive(Clone, Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, globals: Overrides::default() }
    }

    /// The next member; none at the end mark or the end of the stream.
    ///
    /// # Errors
    ///
    /// `InvalidData` or `Unsupported` with the reason, `UnexpectedEof` in the middle of a member,
    /// or what reading gives.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut over = self.globals.clone();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            let kind = header.entry_type();
            if kind == EntryType::XHeader || kind == EntryType::XGlobalHeader {
                let records = self.meta(size)?;
                let into = if kind == EntryType::XHeader { &mut over } else { &mut self.globals };
                into.read_pax(&records)?;
                if kind == EntryType::XGlobalHeader {
                    over = self.globals.clone();
                }
            } else if kind == EntryType::GNULongName || kind == EntryType::GNULongLink {
                let mut name = self.meta(size)?;
                name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
                let name = Some(name);
                if kind == EntryType::GNULongName { over.path = name } else { over.target = name }
            } else if kind == EntryType::GNUSparse {
                return Err(unsupported("it holds a sparse file; make it without --sparse"));
            } else {
                return self.member(&header, over, size).map(Some);
            }
        }
    }

    fn member(&mut self, header: &tar::Header, over: Overrides, size: u64) -> io::Result<Member> {
        let size = over.size.unwrap_or(size);
        self.expect(size)?;
        let target = header.link_name_bytes().map(std::borrow::Cow::into_owned);
        let path = over.path.unwrap_or_else(|| header.path_bytes().into_owned());
        // Before POSIX a directory was a file whose name ends in a slash.
        let mut kind = header.entry_type();
        if kind == EntryType::Regular && path.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        let (mtime, mtime_nsec) = match over.mtime {
            Some(time) => time,
            None => (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(i64::MAX), 0),
        };
        Ok(Member {
            path,
            target: over.target.or(target).unwrap_or_default(),
            kind,
            // Some writers leave fields blank that they have nothing to say in.
            mode: header.mode().unwrap_or(0o644),
            uid: over.uid.or_else(|| header.uid().ok()).unwrap_or(0),
            gid: over.gid.or_else(|| header.gid().ok()).unwrap_or(0),
            mtime,
            mtime_nsec,
            size,
        })
    }

    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < block.len() {
            let room = block.get_mut(have..).unwrap_or_default();
            match self.inner.read(room) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The sum is taken with its own field as spaces; signed in some old archives, which only
        // matters for bytes that are not ASCII.
        let counted =
            |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
        let sum: u32 =
            block.iter().enumerate().map(|(index, &byte)| u32::from(counted(index, byte))).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(invalid("a header's checksum is wrong: it is no tar archive, or damaged"));
        }
        Ok(Some(header))
    }

    fn expect(&mut self, size: u64) -> io::Result<()> {
        let whole = size
            .checked_next_multiple_of(BLOCK as u64)
            .filter(|&whole| i64::try_from(whole).is_ok())
            .ok_or_else(|| invalid("a member's size is absurd"))?;
        self.left = size;
        self.padding = whole - size;
        Ok(())
    }

    fn meta(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > META_MAX {
            return Err(invalid("a header or name in it is longer than 1 MiB"));
        }
        self.expect(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads past what is left of the present member.
    fn skip(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.inner).take(padding), &mut io::sink())?;
        if skipped == padding { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads what follows the end mark, so that the writer sees no broken pipe; not for ever.
    pub(crate) fn drain(self) -> io::Result<()> {
        io::copy(&mut self.inner.take(META_MAX), &mut io::sink()).map(drop)
    }
}

/// The present member's contents; an end of the stream before their end is an error.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let room = buffer.get_mut(..most).unwrap_or_default();
        if room.is_empty() {
            return Ok(0);
        }
        match self.inner.read(room)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

impl Overrides {
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let (key, value, rest) =
                pax_record(records).ok_or_else(|| invalid("a pax header in it is malformed"))?;
            records = rest;
            let number = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse::<u64>().ok())
                    .ok_or_else(|| invalid("a number in a pax header is malformed"))
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => self.mtime = decimal(value),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(unsupported("it holds a sparse file; make it without --sparse"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first of `LENGTH KEY=VALUE\n`..., and the rest.
fn pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, records.get(length..)?))
}

/// Seconds and nanoseconds of a decimal number, rounded down; none if it is not one.
fn decimal(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_may_hold_newlines_and_equal_signs() {
        let records = b"13 path=a\n=b\n8 uid=1\n";
        let mut over = Overrides::default();
        assert!(over.read_pax(records).is_ok());
        assert_eq!((over.path.as_deref(), over.uid), (Some(&b"a\n=b"[..]), Some(1)));
    }

    #[test]
    fn malformed_pax_records_are_errors_not_panics() {
        for records in [&b"x"[..], b"5 a=b\n", b"99 a=b\n", b"0 a=b\n", b"6 ab\n\n", b"-1 a=b\n"] {
            assert!(Overrides::default().read_pax(records).is_err(), "{records:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(decimal(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(decimal(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(decimal(b"x"), None);
    }

    #[test]
    fn a_member_cut_short_is_an_error() {
        let mut header = tar::Header::new_ustar();
        header.set_size(600);
        header.set_mode(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&[1; 100]);
        let mut reader = TarReader::new(&bytes[..]);
        assert!(reader.next().is_ok_and(|member| member.is_some()));
        let error = reader.next().map_err(|error| error.kind()).err();
        assert_eq!(error, Some(io::ErrorKind::UnexpectedEof));
    }
}
