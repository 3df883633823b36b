//! Makes images of what is on disk: OCI layouts, archives of `docker save`, root file systems.

mod docker;
mod layout;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use crate::compress::Blob;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::UnpackError;
use crate::image::{Image, ImageConfig, Layer, without_repeats};
use crate::oci::{ConfigFile, DocumentError};
use crate::platform::Platform;
use crate::progress::{Fetched, OnProgress, Progress, Step};
use crate::store::{Hold, LayerStore, StoreError};
use crate::unpack::Unpacker;
#[cfg(feature = "fuzzing")]
pub(crate) use docker::Listed as DockerListed;
use source::{Archive, Source};

/// What is wanted of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The image's name; from the archive, else from the path, when absent. Of an archive with
    /// several images, the one of this name is taken.
    pub name: Option<String>,
    /// The platform, where there are images for several; the host's when absent. An image for
    /// another platform than the host's is taken only when that is asked for here.
    pub platform: Option<Platform>,
}

/// Why an import failed. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A system call on what is to be imported failed.
    #[error("{call} of {}: {error}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// What on.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is neither a directory nor a regular file.
    #[error("{}: neither a directory nor a regular file", .0.display())]
    Kind(PathBuf),
    /// It is no archive, or a damaged one.
    #[error("{}: {error}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why.
        error: UnpackError,
    },
    /// A root file system without a single file.
    #[error("{}: the archive is empty", .0.display())]
    Empty(PathBuf),
    /// A document in it is wrong.
    #[error("{what}: {error}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        error: DocumentError,
    },
    /// Something that it names is not in it.
    #[error("{0} is missing from it")]
    Missing(String),
    /// Contents are not what they are called.
    #[error("{expected}: its contents are damaged: {actual}")]
    WrongDigest {
        /// What it is called.
        expected: Digest,
        /// What came out: another digest, or another size.
        actual: String,
    },
    /// There are several images, and none was chosen.
    #[error("it holds several images: {}; name one of them", .0.join(", "))]
    Several(Vec<String>),
    /// A layer could not be added to the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes an image of a file or directory. Blocks; takes as long as reading and unpacking takes.
///
/// - A directory with an `oci-layout` file is an OCI layout; any other directory becomes an image
///   as it is, used in place and read-only, without a copy.
/// - A file is a tar archive, plain or compressed with gzip or zstd: of an OCI layout, of
///   `docker save`, or of a root file system, which becomes an image of one layer.
///
/// All contents that are named by digest are verified before a layer of them is used.
pub fn import(
    path: &Path,
    options: &ImportOptions,
    store: &LayerStore,
    unpacker: &dyn Unpacker,
    progress: OnProgress<'_>,
) -> Result<Fetched, ImportError> {
    let path = &path.canonicalize().map_err(failed("realpath", path))?;
    let meta = path.metadata().map_err(failed("stat", path))?;
    let import = Import { path, options, store, unpacker, progress };
    if meta.is_dir() {
        if path.join("oci-layout").is_file() && path.join("index.json").is_file() {
            return layout::import(&import, &Source::Directory(path.clone()));
        }
        let image = Image::of_directory(import.name(&[]), path);
        return Ok(Fetched { image, notes: Vec::new(), holds: Vec::new() });
    }
    if !meta.is_file() {
        return Err(ImportError::Kind(path.clone()));
    }
    match source::open(&import)? {
        Archive::Layout(source) => layout::import(&import, &source),
        Archive::Docker(source, list) => docker::import(&import, &source, &list),
        Archive::RootFs(file) => import.root_fs(&file),
    }
}

/// One import, its parameters together.
struct Import<'a> {
    path: &'a Path,
    options: &'a ImportOptions,
    store: &'a LayerStore,
    unpacker: &'a dyn Unpacker,
    progress: OnProgress<'a>,
}

/// A layer to be added.
struct Planned<'a> {
    label: String,
    diff_id: Digest,
    blob: Blob<'a>,
}

impl Import<'_> {
    fn root_fs(&self, file: &std::fs::File) -> Result<Fetched, ImportError> {
        let blob = Blob::whole(file).map_err(failed("stat", self.path))?;
        let label = "root".to_owned();
        self.tell(&label, Step::Unpacking, blob.length);
        let hold = self.store.add(blob, None, &label, self.unpacker).map_err(|e| match e {
            StoreError::Unpack { error, .. } => {
                ImportError::Archive { path: self.path.to_path_buf(), error }
            }
            other => ImportError::Store(other),
        })?;
        self.tell(&label, Step::Done, blob.length);
        if hold.facts().entries == 0 {
            self.store.undo(vec![hold], self.unpacker);
            return Err(ImportError::Empty(self.path.to_path_buf()));
        }
        let image = Image {
            name: self.name(&[]),
            digest: Some(hold.facts().diff_id.clone()),
            layers: vec![Layer::Stored(hold.facts().diff_id.clone())],
            config: ImageConfig::default(),
            platform: None,
            size: hold.facts().size,
        };
        Ok(Fetched::new(image, vec![hold], self.progress))
    }

    /// Adds the layers and makes the image; on failure no layer of it stays behind.
    fn finish(
        &self,
        names: &[String],
        digest: Digest,
        config: ConfigFile,
        layers: &[Planned<'_>],
    ) -> Result<Fetched, ImportError> {
        let wanted = without_repeats(layers.iter().map(|l| l.diff_id.clone()).collect());
        let mut holds = Vec::new();
        for layer in layers {
            if holds.iter().any(|hold: &Hold| hold.facts().diff_id == layer.diff_id) {
                continue;
            }
            match self.add(layer) {
                Ok(hold) => holds.push(hold),
                Err(error) => {
                    self.store.undo(holds, self.unpacker);
                    return Err(error.into());
                }
            }
        }
        let image = Image {
            name: self.name(names),
            digest: Some(digest),
            layers: wanted.into_iter().map(Layer::Stored).collect(),
            platform: config.platform(),
            config: config.into_config(),
            size: holds.iter().map(|hold| hold.facts().size).sum(),
        };
        Ok(Fetched::new(image, holds, self.progress))
    }

    fn add(&self, layer: &Planned<'_>) -> Result<Hold, StoreError> {
        if let Some(hold) = self.store.hold(&layer.diff_id)? {
            self.tell(&layer.label, Step::Present, layer.blob.length);
            return Ok(hold);
        }
        self.tell(&layer.label, Step::Unpacking, layer.blob.length);
        let hold = self.store.add(layer.blob, Some(&layer.diff_id), &layer.label, self.unpacker)?;
        self.tell(&layer.label, Step::Done, layer.blob.length);
        Ok(hold)
    }

    fn tell(&self, label: &str, step: Step, bytes: u64) {
        let done = if step == Step::Unpacking { 0 } else { bytes };
        (self.progress)(Progress::Layer { id: label.to_owned(), step, done, total: Some(bytes) });
    }

    fn platform(&self) -> Platform {
        self.options.platform.clone().unwrap_or_else(Platform::host)
    }

    /// The name asked for, else the first good one of the archive, else one from the path.
    fn name(&self, offered: &[String]) -> String {
        if let Some(name) = &self.options.name {
            return name.clone();
        }
        if let Some(name) = offered.iter().find(|name| is_name(name)) {
            return name.clone();
        }
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut stem = file.as_ref();
        for end in [".gz", ".zst", ".tgz", ".tzst", ".tar", ".oci"] {
            stem = stem.strip_suffix(end).filter(|rest| !rest.is_empty()).unwrap_or(stem);
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = stem.chars().map(plain).take(100).collect();
        let name = name.trim_matches('-').to_ascii_lowercase();
        if name.is_empty() { "image".to_owned() } else { name }
    }

    /// Of several images, those of the name asked for; all when only one name is there.
    fn select<T>(
        &self,
        images: Vec<(Vec<String>, T)>,
    ) -> Result<Vec<(Vec<String>, T)>, ImportError> {
        let matches = |names: &[String]| {
            let wanted = self.options.name.as_ref();
            wanted.is_some_and(|wanted| names.contains(wanted))
        };
        if images.iter().any(|(names, _)| matches(names)) {
            return Ok(images.into_iter().filter(|(names, _)| matches(names)).collect());
        }
        let mut names: Vec<&str> =
            images.iter().filter_map(|(n, _)| n.first()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > 1 {
            let names = names.iter().take(20).map(|n| crate::text::show(n.as_bytes())).collect();
            return Err(ImportError::Several(names));
        }
        Ok(images)
    }
}

/// Whether an archive's word can be a name: what registries allow in references.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
    text.len() <= 255
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Reads a blob through and compares its digest.
fn verify(blob: Blob<'_>, expected: &Digest, path: &Path) -> Result<(), ImportError> {
    let actual = digest_of(blob, expected.algorithm()).map_err(failed("read", path))?;
    if actual == *expected {
        return Ok(());
    }
    Err(ImportError::WrongDigest { expected: expected.clone(), actual: actual.to_string() })
}

fn digest_of(blob: Blob<'_>, algorithm: Algorithm) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    hasher.update_from(&mut blob.reader())?;
    Ok(hasher.finish())
}

fn failed(call: &'static str, path: &Path) -> impl Fn(io::Error) -> ImportError {
    move |error| ImportError::Io { call, path: path.to_path_buf(), error }
}

fn document(what: &str) -> impl Fn(DocumentError) -> ImportError {
    move |error| ImportError::Document { what: crate::text::show(what.as_bytes()), error }
}
