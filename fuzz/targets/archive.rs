//! Both readers of archives: that of images, and that of what clients upload into a sandbox.
#![no_main]

mod mend;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for bytes in [bytes, &mend::mended(bytes)] {
        forkyard_image::fuzzing::archive(bytes);
        forkyard_guest::fuzzing::archive(bytes);
    }
});
