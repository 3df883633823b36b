//! Images: the read-only root file systems that sandboxes are made from.
//!
//! An image is [pulled](pull) from a registry, [imported](import) from a directory or an archive,
//! or is the [`host`], this machine's own toolchain. Its layers are unpacked once into a
//! [`LayerStore`], each a directory that is ready as a lower one of an overlay, and are shared by
//! all images that have them. Which images there are is the engine's to remember: this crate
//! returns [`Image`] values and keeps layers.
//!
//! ```
//! use forkyard_image::{ImportOptions, InProcess, LayerStore, Limits, Ownership, import};
//!
//! # let home = tempfile::tempdir()?;
//! # let rootfs = home.path().join("rootfs.tar");
//! # let mut archive = tar::Builder::new(std::fs::File::create(&rootfs)?);
//! # let mut header = tar::Header::new_gnu();
//! # header.set_size(0);
//! # archive.append_data(&mut header, "etc/hostname", std::io::empty())?;
//! # archive.finish()?;
//! let root = home.path().join("store");
//! let store = LayerStore::open(&root, Ownership::Squash, Limits::default(), &InProcess)?;
//! let fetched = import(&rootfs, &ImportOptions::default(), &store, &InProcess, &|_| ())?;
//! assert_eq!(fetched.image.name, "rootfs");
//! let lower = fetched.image.layers[0].path(&store);
//! assert!(lower.join("etc/hostname").is_file());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Trust
//!
//! Archives and registries are taken for hostile. Nothing is written outside the directory that is
//! unpacked into, whatever names and links an archive holds; memory, entries and bytes are
//! bounded; contents that a digest names are used only when they have it. [`extract`] does the
//! same for files that leave a sandbox. The store is closed to other users, since layers may hold
//! setuid programs.
//!
//! # Limits
//!
//! - Device nodes, aufs records and xattrs other than `user.*` and `security.capability` are left
//!   out, with a note. Ids above 65535 belong to nobody.
//! - Each layer is unpacked by itself, as Docker does: links of the layers below are not followed.
//! - With [`Ownership::Squash`] all files belong to the one id there is, and setuid bits are gone.
//! - Overlays must be mounted with `userxattr`: opaque directories are marked so.
//! - Layers compressed with something else than gzip and zstd, and encrypted ones, are refused.
//! - Bodies of errors and token answers are read by `oci-client` without a limit on their size,
//!   though not on their time.
//!
//! # Tests
//!
//! Unit tests lie beside the code; one lets generated hostile archives loose on a directory and
//! looks whether anything beside it changed. `tests/pull.rs` starts Debian's `docker-registry` on
//! loopback, fills it with `skopeo` from images made there, and puts a misbehaving proxy before
//! it; where these programs are missing, the tests say so and pass. `tests/overlay.rs` mounts what
//! was unpacked. Nothing is downloaded.
#![forbid(unsafe_code)]

mod archive;
mod compress;
mod digest;
mod error;
mod extract;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
mod image;
mod import;
mod oci;
mod platform;
mod progress;
mod pull;
mod store;
mod text;
mod tree;
mod unpack;

pub use compress::Blob;
pub use digest::{Algorithm, BadDigest, Digest};
pub use error::UnpackError;
pub use extract::{Extracted, extract};
pub use image::{Broken, Image, ImageConfig, Layer};
pub use import::{ImportError, ImportOptions, import};
pub use oci::DocumentError;
pub use platform::{BadPlatform, Platform};
pub use progress::{Fetched, OnProgress, Progress, Step};
pub use pull::{CredentialsError, PullError, PullOptions, pull};
pub use store::{Hold, LayerFacts, LayerStore, StoreError};
pub use unpack::{InProcess, Limits, Ownership, UnpackJob, Unpacked, Unpacker, unpack};
