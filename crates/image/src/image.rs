//! What an image is once it is here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;
use crate::store::LayerStore;

/// A read-only root file system and how to run something in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it is called.
    pub name: String,
    /// Digest of its manifest; of its configuration or of its one archive where it has no
    /// manifest; none for a directory used in place, whose contents may change.
    pub digest: Option<Digest>,
    /// Its layers, the bottom one first. No layer is there twice: overlayfs refuses that, and of
    /// two equal ones only the upper can be seen.
    pub layers: Vec<Layer>,
    /// How to run something in it.
    pub config: ImageConfig,
    /// What it was built for; none where nothing says.
    pub platform: Option<Platform>,
    /// Bytes of its layers' contents. A directory used in place counts nothing.
    pub size: u64,
}

/// One lower directory of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// A layer of the store, by the digest of its uncompressed archive.
    Stored(Digest),
    /// A directory of the host, used where it is and never written to.
    Directory(PathBuf),
}

/// How to run something in an image
/// ([OCI configuration](https://github.com/opencontainers/image-spec/blob/main/config.md)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `USER[:GROUP]`, names or numbers; root when absent.
    pub user: Option<String>,
    /// Working directory; `/` when absent.
    pub workdir: Option<String>,
    /// What is put before the command.
    pub entrypoint: Vec<String>,
    /// The command when none is given.
    pub cmd: Vec<String>,
    /// Its maker's own keys and values.
    pub labels: BTreeMap<String, String>,
}

/// Something that an image needs and that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A layer is not in the store.
    #[error("image `{image}`: layer {layer} is not in the store")]
    LayerMissing {
        /// The image's name.
        image: String,
        /// The layer.
        layer: Digest,
    },
    /// A directory used in place is gone, or is no directory.
    #[error("image `{image}`: {} is not a directory", path.display())]
    DirectoryMissing {
        /// The image's name.
        image: String,
        /// The directory.
        path: PathBuf,
    },
}

impl Image {
    /// Whether all that the image needs is there.
    pub fn check(&self, store: &LayerStore) -> Result<(), Broken> {
        for layer in &self.layers {
            match layer {
                Layer::Stored(digest) if !store.has(digest) => {
                    let (image, layer) = (self.name.clone(), digest.clone());
                    return Err(Broken::LayerMissing { image, layer });
                }
                Layer::Directory(path) if !path.is_dir() => {
                    let (image, path) = (self.name.clone(), path.clone());
                    return Err(Broken::DirectoryMissing { image, path });
                }
                Layer::Stored(_) | Layer::Directory(_) => {}
            }
        }
        Ok(())
    }

    /// An image that is a directory of the host.
    pub(crate) fn of_directory(name: String, path: &Path) -> Self {
        Self {
            name,
            digest: None,
            layers: vec![Layer::Directory(path.to_path_buf())],
            config: ImageConfig::default(),
            platform: None,
            size: 0,
        }
    }
}

impl Layer {
    /// The directory to be mounted as a lower one.
    pub fn path(&self, store: &LayerStore) -> PathBuf {
        match self {
            Self::Stored(digest) => store.tree(digest),
            Self::Directory(path) => path.clone(),
        }
    }
}

/// Leaves of equal layers only the uppermost.
///
/// A layer that comes again above another shows all its files anew and hides again what it hides,
/// so the lower copy of it adds nothing.
pub(crate) fn without_repeats(layers: Vec<Digest>) -> Vec<Digest> {
    let mut kept: Vec<Digest> = Vec::new();
    for layer in layers.into_iter().rev() {
        if !kept.contains(&layer) {
            kept.push(layer);
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_layers_the_uppermost_stays() {
        let [a, b] = ["a", "b"].map(|text| Digest::sha256_of(text.as_bytes()));
        let layers = vec![a.clone(), b.clone(), a.clone()];
        assert_eq!(without_repeats(layers), [b, a]);
    }
}
