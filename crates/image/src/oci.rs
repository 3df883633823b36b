//! Manifests, indexes and configurations: the JSON documents that describe images.
//!
//! Sources: OCI image specification 1.1 (manifest.md, image-index.md, config.md) and Docker's
//! image manifest version 2, schema 2, which differ in media types only.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::image::ImageConfig;
use crate::platform::Platform;

/// Largest document read, in bytes. Registries allow 4 MiB for a manifest; configurations with a
/// long history stay far below.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// Most layers of an image: overlayfs stacks 500, some of which sandboxes need themselves.
const MAX_LAYERS: usize = 480;

/// What is wrong with a manifest, an index or a configuration.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON of the expected form.
    #[error("bad JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is larger than any honest one.
    #[error("{0} bytes; at most {MAX_DOCUMENT}")]
    TooLarge(u64),
    /// It is an image of a format given up in 2017, or none at all.
    #[error("neither an image manifest nor an index of schema version 2")]
    Schema,
    /// It would mean different things to different readers (CVE-2021-41190).
    #[error("both an image manifest and an index")]
    Ambiguous,
    /// Layers and their digests in the configuration do not correspond.
    #[error("{layers} layers, but {diff_ids} digests of layers in the configuration")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than a file system can stack.
    #[error("{0} layers; at most {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A layer that needs a key.
    #[error("layer {0} is encrypted")]
    Encrypted(Digest),
    /// It is no container image but something else that registries store.
    #[error("its configuration is `{0}`: an artifact, not a container image")]
    Artifact(String),
    /// Nothing for the platform.
    #[error("no image for {wanted}; there is {}", offered.join(", "))]
    NoPlatform {
        /// What was wanted.
        wanted: Platform,
        /// What there is.
        offered: Vec<String>,
    },
}

/// A reference to contents.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a manifest digest can lead to.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Index),
}

#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<ConfigPart>,
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Option<Vec<Digest>>,
}

/// Go writes absent lists as `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigPart {
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let value: serde_json::Value = json(bytes)?;
        if value.get("schemaVersion").and_then(serde_json::Value::as_u64) != Some(2) {
            return Err(DocumentError::Schema);
        }
        let (image, index) = (value.get("layers").is_some(), value.get("manifests").is_some());
        match (image, index) {
            (true, true) => Err(DocumentError::Ambiguous),
            (true, false) => Ok(Self::Image(serde_json::from_value(value)?)),
            (false, true) => Ok(Self::Index(serde_json::from_value(value)?)),
            (false, false) => Err(DocumentError::Schema),
        }
    }
}

impl Descriptor {
    /// The platform, when it is given and makes sense.
    fn platform(&self) -> Option<Platform> {
        serde_json::from_value(self.platform.clone()?).ok()
    }

    /// A short name for progress and errors.
    pub(crate) fn short(&self) -> String {
        short(&self.digest)
    }
}

/// The first twelve digits of a digest, as Docker shows layers.
pub(crate) fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// The best of many images for a platform. Attestations have the platform `unknown/unknown` and
/// are never chosen; a single image without platform always is.
pub(crate) fn choose<'a>(
    offers: &[&'a Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, DocumentError> {
    if let [only] = offers
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let distance = |offer: &&&'a Descriptor| offer.platform().and_then(|p| wanted.distance(&p));
    let fitting = offers.iter().filter(|offer| distance(offer).is_some());
    fitting.min_by_key(distance).copied().ok_or_else(|| {
        let known = offers.iter().filter_map(|offer| offer.platform());
        let mut offered: Vec<String> =
            known.map(|p| p.to_string()).filter(|p| p != "unknown/unknown").take(30).collect();
        offered.dedup();
        if offered.is_empty() {
            offered.push("none".to_owned());
        }
        DocumentError::NoPlatform { wanted: wanted.clone(), offered }
    })
}

impl Manifest {
    /// Refuses what is no container image before anything is fetched for it.
    pub(crate) fn check(&self) -> Result<(), DocumentError> {
        if self.layers.len() > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers(self.layers.len()));
        }
        let kind = self.config.media_type.as_str();
        let image = ["container.image", "oci.image.config"].iter().any(|word| kind.contains(word));
        if !image && !kind.is_empty() {
            return Err(DocumentError::Artifact(crate::text::show(kind.as_bytes())));
        }
        match self.layers.iter().find(|layer| layer.media_type.ends_with("+encrypted")) {
            Some(layer) => Err(DocumentError::Encrypted(layer.digest.clone())),
            None => Ok(()),
        }
    }
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        json(bytes)
    }

    /// The layers' digests, as many as the image has layers.
    pub(crate) fn diff_ids(&self, layers: usize) -> Result<Vec<Digest>, DocumentError> {
        let ids = self.rootfs.diff_ids.clone().unwrap_or_default();
        if ids.len() != layers {
            return Err(DocumentError::LayerCount { layers, diff_ids: ids.len() });
        }
        if layers > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers(layers));
        }
        Ok(ids)
    }

    /// What it was built for, if it says.
    pub(crate) fn platform(&self) -> Option<Platform> {
        let word = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let variant = self.variant.clone().filter(|v| !v.is_empty());
        Some(Platform { os: word(&self.os)?, arch: word(&self.architecture)?, variant })
    }

    /// Whether it runs on `wanted`; says what it is for where it does not.
    pub(crate) fn check_platform(&self, wanted: &Platform) -> Result<(), DocumentError> {
        match self.platform() {
            Some(has) if wanted.distance(&has).is_none() => Err(DocumentError::NoPlatform {
                wanted: wanted.clone(),
                offered: vec![has.to_string()],
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn into_config(self) -> ImageConfig {
        let part = self.config.unwrap_or_default();
        ImageConfig {
            env: part.env.unwrap_or_default(),
            user: part.user.filter(|user| !user.is_empty()),
            workdir: part.working_dir.filter(|dir| !dir.is_empty()),
            entrypoint: part.entrypoint.unwrap_or_default(),
            cmd: part.cmd.unwrap_or_default(),
            labels: part.labels.unwrap_or_default(),
        }
    }
}

pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(DocumentError::TooLarge(bytes.len() as u64));
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(platform: &serde_json::Value) -> Descriptor {
        let digest = Digest::sha256_of(platform.to_string().as_bytes()).to_string();
        let fields = serde_json::json!({"digest": digest, "size": 1, "platform": platform});
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn the_fitting_platform_is_chosen_and_attestations_never() {
        let offers = [
            offer(&serde_json::json!({"os": "unknown", "architecture": "unknown"})),
            offer(&serde_json::json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            offer(&serde_json::json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            offer(&serde_json::json!({"os": "linux", "architecture": "amd64"})),
        ];
        let offers: Vec<&Descriptor> = offers.iter().collect();
        let chosen = |text: &str| choose(&offers, &text.parse().unwrap());
        assert_eq!(chosen("linux/arm/v7").unwrap().digest, offers[2].digest);
        assert_eq!(chosen("linux/amd64").unwrap().digest, offers[3].digest);
        let message = chosen("linux/s390x").unwrap_err().to_string();
        assert_eq!(
            message,
            "no image for linux/s390x; there is linux/arm/v6, linux/arm/v7, linux/amd64"
        );
    }

    #[test]
    fn documents_that_mean_two_things_are_refused() {
        let both = br#"{"schemaVersion": 2, "layers": [], "manifests": []}"#;
        assert!(matches!(Document::parse(both), Err(DocumentError::Ambiguous)));
        let old = br#"{"schemaVersion": 1, "fsLayers": []}"#;
        assert!(matches!(Document::parse(old), Err(DocumentError::Schema)));
        assert!(matches!(Document::parse(b"<html>"), Err(DocumentError::Json(_))));
    }

    #[test]
    fn configurations_with_nulls_are_read() {
        let bytes = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers",
            "diff_ids":null},"config":{"Env":null,"User":"","Cmd":["sh"],"Labels":null}}"#;
        let config = ConfigFile::parse(bytes).unwrap();
        assert_eq!(config.diff_ids(0).unwrap(), []);
        assert!(config.diff_ids(1).is_err());
        let config = config.into_config();
        assert_eq!((config.user, config.cmd), (None, vec!["sh".to_owned()]));
    }

    /// JSON of the shape that documents have, with values that they do not.
    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let name = prop::sample::select(vec![
            "schemaVersion",
            "layers",
            "manifests",
            "config",
            "digest",
            "size",
            "mediaType",
            "platform",
            "rootfs",
            "diff_ids",
            "os",
            "architecture",
            "variant",
            "Env",
            "Cmd",
        ]);
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            prop::sample::select(vec![0_i64, 1, 2, -1, i64::MAX]).prop_map(Into::into),
            "[a-z0-9:/.]{0,12}".prop_map(Into::into),
            Just(serde_json::Value::from(Digest::sha256_of(b"").to_string())),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map(name.clone(), inner, 0..6).prop_map(|map| {
                    map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_document_makes_its_reader_panic(json in any_json(), bytes: Vec<u8>) {
            for bytes in [json.to_string().into_bytes(), bytes] {
                if let Ok(Document::Image(manifest)) = Document::parse(&bytes) {
                    let _ = manifest.check();
                }
                if let Ok(config) = ConfigFile::parse(&bytes) {
                    let _ = config.diff_ids(1);
                    config.into_config();
                }
            }
        }
    }
}
