//! OCI layouts: `index.json` leads by digests to everything else
//! ([image-layout.md](https://github.com/opencontainers/image-spec/blob/main/image-layout.md)).

use super::source::{Found, Source};
use super::{Import, ImportError, Planned, document, verify};
use crate::digest::Digest;
use crate::oci::{ConfigFile, Descriptor, Document, Index, Manifest, choose, json};
use crate::progress::Fetched;

/// Indexes within indexes that are followed; one is usual.
const MAX_DEPTH: usize = 4;

/// Annotations that say what a manifest is called.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

pub(super) fn import(import: &Import<'_>, source: &Source) -> Result<Fetched, ImportError> {
    let bytes = source.document("index.json")?;
    let index: Index = json(&bytes).map_err(document("index.json"))?;
    let named = index.manifests.into_iter().map(|d| (names(&d), d)).collect();
    let chosen = import.select(named)?;
    let names: Vec<String> = chosen.first().map(|(names, _)| names.clone()).unwrap_or_default();
    let offers: Vec<&Descriptor> = chosen.iter().map(|(_, descriptor)| descriptor).collect();
    let wanted = import.platform();
    let first = choose(&offers, &wanted).map_err(document("index.json"))?;
    let (digest, manifest) = manifest(import, source, first)?;

    let what = format!("manifest {digest}");
    manifest.check().map_err(document(&what))?;
    let bytes = read_document(source, &manifest.config)?;
    let what = format!("configuration {}", manifest.config.digest);
    let config = ConfigFile::parse(&bytes).map_err(document(&what))?;
    if import.options.platform.is_none() {
        config.check_platform(&wanted).map_err(document(&what))?;
    }
    let diff_ids = config.diff_ids(manifest.layers.len()).map_err(document(&what))?;

    // Everything is verified before anything is unpacked.
    let found: Vec<Found> =
        manifest.layers.iter().map(|l| open(import, source, l)).collect::<Result<_, _>>()?;
    let layers: Vec<Planned<'_>> = manifest
        .layers
        .iter()
        .zip(diff_ids)
        .zip(&found)
        .map(|((layer, diff_id), found)| Planned {
            label: layer.short(),
            diff_id,
            blob: found.blob(),
        })
        .collect();
    import.finish(&names, digest, config, &layers)
}

/// Follows indexes down to the manifest for the platform.
fn manifest(
    import: &Import<'_>,
    source: &Source,
    first: &Descriptor,
) -> Result<(Digest, Manifest), ImportError> {
    let mut next = first.clone();
    for _ in 0..MAX_DEPTH {
        let bytes = read_document(source, &next)?;
        let what = format!("manifest {}", next.digest);
        match Document::parse(&bytes).map_err(document(&what))? {
            Document::Image(manifest) => return Ok((next.digest, manifest)),
            Document::Index(index) => {
                let offers: Vec<&Descriptor> = index.manifests.iter().collect();
                next = choose(&offers, &import.platform()).map_err(document(&what))?.clone();
            }
        }
    }
    Err(ImportError::Missing(format!("a manifest below the index {}", first.digest)))
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    let annotations = descriptor.annotations.as_ref();
    NAMES.iter().filter_map(|key| annotations?.get(*key)).cloned().collect()
}

fn blob_path(digest: &Digest) -> String {
    digest.to_string().replacen(':', "/", 1)
}

fn read_document(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let name = format!("blobs/{}", blob_path(&descriptor.digest));
    let bytes = source.document(&name)?;
    if descriptor.digest.matches(&bytes) {
        return Ok(bytes);
    }
    let actual = Digest::sha256_of(&bytes).to_string();
    Err(ImportError::WrongDigest { expected: descriptor.digest.clone(), actual })
}

fn open(
    import: &Import<'_>,
    source: &Source,
    descriptor: &Descriptor,
) -> Result<Found, ImportError> {
    let found = source.find(&format!("blobs/{}", blob_path(&descriptor.digest)))?;
    let length = found.blob().length;
    if length != descriptor.size {
        let actual = format!("{length} bytes instead of {}", descriptor.size);
        return Err(ImportError::WrongDigest { expected: descriptor.digest.clone(), actual });
    }
    verify(found.blob(), &descriptor.digest, import.path)?;
    Ok(found)
}
