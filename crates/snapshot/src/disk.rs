//! Snapshots on disk: a picture with its memory, written and read again.
//!
//! A snapshot is a directory:
//!
//! | name | what |
//! | --- | --- |
//! | `header` | format, host, and length and checksum of all else: see [`Header`] |
//! | `picture` | CBOR of the picture, of where its pages belong, and of the records that came along |
//! | `pages` | pages of memory that hold something, one after the other |
//! | `files/` | what the sandbox had written, as it is |
//!
//! Without memory there are `header` and `files/` alone. Everything is checked before anything is
//! made of it: that it is whole, by checksums; that kernel and processor are those that it was
//! taken on; and that the files of the image that its processes have mapped are still the same.

mod check;
mod error;
mod header;
mod host;
mod marks;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use serde::{Deserialize, Serialize};

pub use error::{Error, Result};
pub use header::{FORMAT, Header, Part, TreePart};
pub use host::Host;
pub use marks::{Mark, check_marks};
pub use read::{Layer, Read, read, read_header};
pub use write::{Content, Written, write};

use crate::stage::Plan;

/// The directory, in that of a snapshot, with what the sandbox had written.
pub const FILES: &str = "files";
const HEADER: &str = "header";
const PICTURE: &str = "picture";
const PAGES: &str = "pages";

/// The part `picture`.
#[derive(Debug, Serialize, Deserialize)]
struct Saved<P, R> {
    picture: P,
    plan: Plan,
    marks: Vec<Mark>,
    records: R,
}

/// Reads a picture from bytes that anyone may have written: for the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_picture(bytes: &[u8]) {
    if let Ok(saved) = read::parse::<ciborium::Value>(bytes) {
        let mut again = Vec::new();
        let _ = ciborium::into_writer(&saved, &mut again);
        assert!(read::parse::<ciborium::Value>(&again).is_ok(), "what was read can be written");
    }
}
