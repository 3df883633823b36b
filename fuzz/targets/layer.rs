//! Unpacks a layer, and extracts what leaves a sandbox, below a directory: nothing beside it may
//! change, whatever the archive holds.
#![no_main]

mod mend;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use forkyard_image::{Limits, Ownership, UnpackJob, extract, unpack};
use libfuzzer_sys::fuzz_target;

/// Enough for every form, and little to clean up.
const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 200 };

fuzz_target!(|bytes: &[u8]| {
    let bytes = mend::mended(bytes);
    let place = tempfile::tempdir().expect("a temporary directory");
    let (root, beside) = (place.path().join("root"), place.path().join("beside"));
    fs::create_dir(&root).expect("make the root");
    fs::write(&beside, "kept").expect("make a file beside it");
    let open = || File::open(&root).expect("open the root");
    if bytes.first().is_some_and(|byte| byte % 2 == 0) {
        let _ = extract(bytes.as_slice(), open().as_fd(), LIMITS);
    } else {
        let mut blob = tempfile::tempfile().expect("a temporary file");
        blob.write_all(&bytes).expect("write the archive");
        let _ = unpack(&UnpackJob {
            blob,
            offset: 0,
            length: bytes.len() as u64,
            destination: OwnedFd::from(open()),
            ownership: Ownership::Squash,
            limits: LIMITS,
        });
    }
    let mut left: Vec<_> = fs::read_dir(place.path())
        .expect("list what is beside the root")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["beside", "root"]);
    assert_eq!(fs::read(&beside).expect("read it"), b"kept");
});
