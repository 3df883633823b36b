//! Headers and pictures of snapshots on disk.
#![no_main]

use forkyard_snapshot::disk::{Header, fuzz_picture};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        let again = header.to_bytes().expect("what was read can be written");
        assert_eq!(Header::parse(&again).expect("and read again"), header);
    }
    fuzz_picture(bytes);
});
