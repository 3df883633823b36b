//! Extended headers of pax: what they say of the entry that follows.
//!
//! Source: POSIX.1-2017 pax, "pax Extended Header"; the `GNU.sparse.` keys are in the GNU tar
//! manual, "Storing Sparse Files"; `SCHILY.xattr.` is star's and what container tools write.

use super::TarError;
use super::sparse::MAX_SEGMENTS;

/// What an extended header says; absent keys leave the header's own fields in force.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    /// Name without the `SCHILY.xattr.` prefix, and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// The keys of GNU's three ways to write a sparse file in pax form.
#[derive(Default)]
pub(super) struct PaxSparse {
    /// 1.0: the map is the first part of the contents.
    pub(super) map_in_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// 0.0 and 0.1: offset and length of each segment.
    pub(super) segments: Vec<(u64, u64)>,
    half: Option<u64>,
}

impl Pax {
    /// Reads all records: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (record, rest) = next_record(bytes).ok_or(TarError::Field("pax record"))?;
            bytes = rest;
            let equals = record.iter().position(|b| *b == b'=');
            let (key, value) = equals
                .and_then(|at| Some((record.get(..at)?, record.get(at + 1..)?)))
                .ok_or(TarError::Field("pax record"))?;
            pax.set(key, value)?;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value).ok_or(TarError::Field("pax time"))?),
            b"GNU.sparse.major" => self.sparse.map_in_data = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" => self.sparse.half = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.half.take().ok_or(TarError::Field("sparse map"))?;
                self.sparse.push(offset, decimal(value)?)?;
            }
            b"GNU.sparse.map" => {
                let mut numbers = value.split(|b| *b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or(TarError::Field("sparse map"))?;
                    self.sparse.push(decimal(offset)?, decimal(length)?)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl PaxSparse {
    pub(super) fn push(&mut self, offset: u64, length: u64) -> Result<(), TarError> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(TarError::TooBig("sparse map"));
        }
        self.segments.push((offset, length));
        Ok(())
    }
}

fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?).ok()?).ok()?;
    let record = bytes.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    Some((record, bytes.get(length..)?))
}

/// Decimal digits, at least one.
pub(super) fn decimal(text: &[u8]) -> Result<u64, TarError> {
    let digits = |b: &u8| b.is_ascii_digit();
    let number = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| digits(&b)));
    number.and_then(|n| n.parse().ok()).ok_or(TarError::Field("pax number"))
}

/// `[-]SECONDS[.FRACTION]` as seconds and nanoseconds, the latter never negative.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if negative && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_carry_any_bytes() {
        let pax = Pax::parse(b"12 path=a\xffb\n30 mtime=1350244992.023960108\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(b"a\xffb".as_slice()));
        assert_eq!(pax.mtime, Some((1_350_244_992, 23_960_108)));
        let pax = Pax::parse(b"27 SCHILY.xattr.user.a=\0\n\0\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"\0\n\0".to_vec())]);
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            b"".as_slice().to_vec(),
            b"99 path=a\n".to_vec(),
            b"9 path=a".to_vec(),
            b"5 a\n".to_vec(),
            b"0 path=a\n".to_vec(),
            b"x path=a\n".to_vec(),
            b"13 size=+12\n".to_vec(),
            b"22 GNU.sparse.map=1,2,3\n".to_vec(),
        ] {
            if bad.is_empty() {
                assert!(Pax::parse(&bad).is_ok());
            } else {
                assert!(Pax::parse(&bad).is_err(), "{}", bad.escape_ascii());
            }
        }
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }
}
