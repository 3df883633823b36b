//! The first thing that is read of a snapshot, and the last that is written.
//!
//! A line `forkyard snapshot FORMAT CHECKSUM LENGTH`, then so many bytes of JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result, damaged};
use super::host::Host;

/// The format that this program writes, and the only one that it reads: a number more whenever
/// anything in it, a picture's types included, means something else than before.
pub const FORMAT: u32 = 5;

/// The first words of a header.
const MAGIC: &str = "forkyard snapshot ";

/// No header is longer, in bytes.
pub(super) const HEADER_MAX: u64 = 1024 * 1024;

/// What a snapshot is, and what its parts are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// When it was taken, in milliseconds since the epoch.
    pub taken_at: u64,
    /// The image that the sandbox was made from.
    pub image: String,
    /// Which ids its files have: the word for how the server makes sandboxes.
    pub ids: String,
    /// Where processes ran; none for files alone.
    pub host: Option<Host>,
    /// The part `picture`.
    pub picture: Option<Part>,
    /// The part `pages`.
    pub pages: Option<Part>,
    /// What is in the directory `files`, by name.
    pub files: BTreeMap<String, TreePart>,
}

/// A file of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Length in bytes.
    pub length: u64,
    /// CRC-32 (IEEE 802.3) of all of it.
    pub checksum: u32,
}

/// A directory of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreePart {
    /// Files, directories and links in it.
    pub entries: u64,
    /// Bytes of contents, in blocks that are not all zero.
    pub length: u64,
    /// CRC-32 of names, attributes and contents.
    pub checksum: u32,
}

impl Header {
    /// As it is on disk.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| damaged(format!("its header cannot be written: {error}")))?;
        let sum = crc32fast::hash(&json);
        let mut bytes = format!("{MAGIC}{FORMAT} {sum:08x} {}\n", json.len()).into_bytes();
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Unfit`] for another format, [`Error::Damaged`] for what is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let no_header = || damaged("its header is none");
        let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(no_header)?;
        let (line, json) = (bytes.get(..end), bytes.get(end + 1..));
        let line = line.and_then(|line| std::str::from_utf8(line).ok()).ok_or_else(no_header)?;
        let json = json.ok_or_else(no_header)?;
        let mut words = line.strip_prefix(MAGIC).ok_or_else(no_header)?.split(' ');
        let format: u32 = words.next().and_then(|word| word.parse().ok()).ok_or_else(no_header)?;
        if format != FORMAT {
            return Err(Error::Unfit(format!(
                "it is written in format {format}, and this program reads format {FORMAT}"
            )));
        }
        let sum = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let length = words.next().and_then(|word| word.parse().ok());
        if sum != Some(crc32fast::hash(json)) || length != Some(json.len()) {
            return Err(damaged("the checksum of its header is wrong"));
        }
        serde_json::from_slice(json).map_err(|error| damaged(format!("its header: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            taken_at: 1,
            image: "host".to_owned(),
            ids: "root".to_owned(),
            host: Some(Host { release: "6.18".to_owned(), ..Host::default() }),
            pages: Some(Part { length: 4096, checksum: 7 }),
            ..Header::default()
        }
    }

    #[test]
    fn another_format_is_told_apart_from_damage() {
        let bytes = header().to_bytes().unwrap();
        assert_eq!(Header::parse(&bytes).unwrap(), header());
        let text = String::from_utf8(bytes).unwrap();
        let (this, next) = (format!("snapshot {FORMAT} "), format!("snapshot {} ", FORMAT + 1));
        let other = text.replacen(&this, &next, 1);
        assert!(matches!(Header::parse(other.as_bytes()), Err(Error::Unfit(_))));
        let other = text.replacen("\"host\"", "\"hxst\"", 1);
        assert!(matches!(Header::parse(other.as_bytes()), Err(Error::Damaged(_))));
    }

    proptest! {
        #[test]
        fn no_change_of_a_header_goes_unnoticed(at: prop::sample::Index, byte: u8) {
            let mut bytes = header().to_bytes().unwrap();
            let place = at.get_mut(&mut bytes);
            prop_assume!(*place != byte);
            *place = byte;
            if let Ok(read) = Header::parse(&bytes) {
                // Letters of the checksum may be large.
                prop_assert_eq!(read, header());
            }
        }

        #[test]
        fn no_part_of_a_header_is_one(length: prop::sample::Index) {
            let bytes = header().to_bytes().unwrap();
            prop_assert!(Header::parse(&bytes[..length.index(bytes.len())]).is_err());
        }
    }
}
