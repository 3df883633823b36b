//! Parsers of what archives and registries send, open to the targets in `fuzz/`.

use crate::archive::Reader;
use crate::import::DockerListed;
use crate::oci::{ConfigFile, Descriptor, Document, choose, json};
use crate::platform::Platform;
use crate::pull::read_challenge;

/// Reads an archive to its end, contents included.
pub fn archive(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut buffer = [0; 1000];
    while let Ok(Some(entry)) = reader.next() {
        let mut left = entry.size;
        while left > 0 {
            match reader.read_data(&mut buffer) {
                Ok(read @ 1..) => left = left.saturating_sub(read as u64),
                _ => break,
            }
        }
    }
}

/// Reads a manifest, an index, a configuration and Docker's list, whatever it is.
pub fn document(bytes: &[u8]) {
    match Document::parse(bytes) {
        Ok(Document::Image(manifest)) => drop(manifest.check()),
        Ok(Document::Index(index)) => {
            let offers: Vec<&Descriptor> = index.manifests.iter().collect();
            drop(choose(&offers, &Platform::host()));
        }
        Err(_) => {}
    }
    if let Ok(config) = ConfigFile::parse(bytes) {
        drop(config.check_platform(&Platform::host()));
        drop(config.diff_ids(1));
        config.into_config();
    }
    drop(json::<Vec<DockerListed>>(bytes));
}

/// Reads a registry's challenge.
pub fn challenge(header: &str) {
    read_challenge(header);
}
