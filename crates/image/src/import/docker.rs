//! Archives of `docker save` without an OCI layout in them: `manifest.json` names the files of
//! each image, and the configuration names the digests of the uncompressed layers
//! ([Docker image specification 1.2](https://github.com/moby/docker-image-spec)).

use serde::Deserialize;

use super::source::{Found, Source};
use super::{Import, ImportError, Planned, document};
use crate::digest::Digest;
use crate::oci::ConfigFile;
use crate::progress::Fetched;

/// An image as `manifest.json` lists it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn import(
    import: &Import<'_>,
    source: &Source,
    list: &[Listed],
) -> Result<Fetched, ImportError> {
    let named = list.iter().map(|i| (i.repo_tags.clone().unwrap_or_default(), i)).collect();
    let chosen = import.select(named)?;
    let [(names, listed)] = chosen.as_slice() else {
        let ids = chosen.iter().map(|(_, i)| crate::text::show(i.config.as_bytes()));
        return Err(match chosen.len() {
            0 => ImportError::Missing("an image in manifest.json".to_owned()),
            _ => ImportError::Several(ids.take(20).collect()),
        });
    };
    let bytes = source.document(&listed.config)?;
    let digest = Digest::sha256_of(&bytes);
    if let Some(expected) = named_digest(&listed.config)
        && expected != digest
    {
        return Err(ImportError::WrongDigest { expected, actual: digest.to_string() });
    }
    let config = ConfigFile::parse(&bytes).map_err(document(&listed.config))?;
    if import.options.platform.is_none() {
        config.check_platform(&import.platform()).map_err(document(&listed.config))?;
    }
    let diff_ids = config.diff_ids(listed.layers.len()).map_err(document(&listed.config))?;
    let found: Vec<Found> =
        listed.layers.iter().map(|name| source.find(name)).collect::<Result<_, _>>()?;
    let layers: Vec<Planned<'_>> = diff_ids
        .into_iter()
        .zip(&found)
        .map(|(diff_id, found)| Planned {
            label: crate::oci::short(&diff_id),
            diff_id,
            blob: found.blob(),
        })
        .collect();
    import.finish(names, digest, config, &layers)
}

/// The digest in a configuration's name: `HEX.json` or `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    let hex = last.strip_suffix(".json").unwrap_or(last);
    format!("sha256:{hex}").parse().ok()
}
