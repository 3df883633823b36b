//! wip
#![forbid(unsafe_code)]
mod archive;
mod compress;
mod digest;
mod error;
mod extract;
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
