//! Sparse files in archives: where their data belong, in GNU tar's four formats.
//!
//! Source: GNU tar manual, "Storing Sparse Files" and "Basic Tar Format" (type `S`).

use std::io::Read;

use super::header::{BLOCK, Header};
use super::pax::{PaxSparse, decimal};
use super::{Reader, TarError};

/// Most segments of one file: a map of this size takes 16 MiB of memory, and a disk image of
/// 100 GiB written by tools that skip holes has far fewer.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

/// Where the data of a sparse file belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Size of the file with its holes, in bytes.
    pub(crate) real_size: u64,
    /// Offset and length of each piece of data, in ascending order, not overlapping.
    pub(crate) segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks a map against the bytes of data that the archive has for it.
    fn checked(real_size: u64, segments: Vec<(u64, u64)>, data: u64) -> Result<Self, TarError> {
        let bad = TarError::Field("sparse map");
        let (mut end, mut total) = (0_u64, 0_u64);
        for &(offset, length) in &segments {
            if offset < end {
                return Err(bad);
            }
            end = offset.checked_add(length).ok_or(TarError::Field("sparse map"))?;
            total += length;
        }
        if end > real_size || total != data {
            return Err(bad);
        }
        Ok(Self { real_size, segments })
    }

    /// Old GNU: four segments in the header, the rest in blocks right behind it.
    pub(super) fn old_gnu<R: Read>(
        reader: &mut Reader<R>,
        block: &[u8; BLOCK],
        data: u64,
    ) -> Result<Self, TarError> {
        let header = Header(block);
        let real_size = header.positive(483, 12, "sparse size")?;
        let mut map = PaxSparse::default();
        add_segments(&header, 386, 4, &mut map)?;
        let mut extended = block.get(482).is_some_and(|b| *b != 0);
        while extended {
            let block = reader.block()?.ok_or(TarError::Truncated)?;
            add_segments(&Header(&block), 0, 21, &mut map)?;
            extended = block.get(504).is_some_and(|b| *b != 0);
        }
        Self::checked(real_size, map.segments, data)
    }

    /// The pax formats. With 1.0 the map is read from the contents, whose size shrinks by it.
    pub(super) fn pax<R: Read>(
        reader: &mut Reader<R>,
        mut map: PaxSparse,
        data: &mut u64,
    ) -> Result<Self, TarError> {
        let real_size = map.real_size.ok_or(TarError::Field("sparse size"))?;
        if map.map_in_data {
            let mut numbers = MapInData { reader, left: data, line: Vec::new(), block: Vec::new() };
            let count = numbers.next_number()?;
            for _ in 0..count {
                let offset = numbers.next_number()?;
                map.push(offset, numbers.next_number()?)?;
            }
        }
        Self::checked(real_size, map.segments, *data)
    }
}

/// Adds the segments of an array in a header; an empty one ends it.
fn add_segments(
    header: &Header<'_>,
    at: usize,
    count: usize,
    map: &mut PaxSparse,
) -> Result<(), TarError> {
    for index in 0..count {
        let start = at + index * 24;
        let first = header.field(start, 1).first().copied().unwrap_or_default();
        if first == 0 {
            break;
        }
        let offset = header.positive(start, 12, "sparse map")?;
        map.push(offset, header.positive(start + 12, 12, "sparse map")?)?;
    }
    Ok(())
}

/// The decimal lines at the head of a 1.0 sparse file's contents.
struct MapInData<'a, R> {
    reader: &'a mut Reader<R>,
    left: &'a mut u64,
    line: Vec<u8>,
    block: Vec<u8>,
}

impl<R: Read> MapInData<'_, R> {
    fn next_number(&mut self) -> Result<u64, TarError> {
        self.line.clear();
        loop {
            if self.block.is_empty() {
                *self.left =
                    self.left.checked_sub(BLOCK as u64).ok_or(TarError::Field("sparse map"))?;
                self.block = self.reader.block()?.ok_or(TarError::Truncated)?.to_vec();
                self.block.reverse();
            }
            match self.block.pop() {
                Some(b'\n') => return decimal(&self.line),
                Some(digit) if self.line.len() < 20 => self.line.push(digit),
                _ => return Err(TarError::Field("sparse map")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_overlap_or_overrun_are_refused() {
        assert!(Sparse::checked(100, vec![(0, 10), (50, 50)], 60).is_ok());
        assert!(Sparse::checked(100, vec![(0, 10), (5, 50)], 60).is_err());
        assert!(Sparse::checked(99, vec![(0, 10), (50, 50)], 60).is_err());
        assert!(Sparse::checked(100, vec![(0, 10)], 60).is_err());
        assert!(Sparse::checked(u64::MAX, vec![(u64::MAX, 2)], 2).is_err());
    }
}
