//! What registries and archives say of an image: manifests, indexes, configurations, challenges,
//! digests and platforms.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    forkyard_image::fuzzing::document(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    forkyard_image::fuzzing::challenge(text);
    if let Ok(digest) = text.parse::<forkyard_image::Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest.clone()));
        assert!(!digest.file_name().contains('/'), "{digest}");
    }
    if let Ok(platform) = text.parse::<forkyard_image::Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform));
    }
});
