//! Why an image could not be pulled.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_client::errors::OciDistributionError;

use super::credentials::CredentialsError;
use crate::digest::Digest;
use crate::oci::DocumentError;
use crate::store::StoreError;
use crate::text::show;

/// Why an image could not be pulled. What a registry says is repeated without control characters
/// and cut short.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name of the image cannot be one.
    #[error("`{reference}` is not an image reference: {why}")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// Docker's configuration is unusable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No connection.
    #[error("cannot connect to registry {registry}: {why}")]
    Connect {
        /// The registry's host and port.
        registry: String,
        /// Why.
        why: String,
    },
    /// Nothing came for too long.
    #[error("{what} from registry {registry}: nothing came for {} s", after.as_secs_f32())]
    Stalled {
        /// The registry's host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended in the middle.
    #[error("{what} from registry {registry}: cut off after {got} of {of} bytes")]
    Cut {
        /// The registry's host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes that came, now or before; they are kept.
        got: u64,
        /// Bytes in all.
        of: u64,
    },
    /// The registry wants to know who asks, or does not let them.
    #[error("registry {registry} denies access to {repository}: {why}")]
    Denied {
        /// The registry's host and port.
        registry: String,
        /// The repository.
        repository: String,
        /// With which credentials it was asked, and what it said.
        why: String,
    },
    /// There is no such image.
    #[error("{0} does not exist in the registry")]
    NotFound(String),
    /// The registry answered with an error, or with nonsense.
    #[error("{what}: {why}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What came.
        why: String,
    },
    /// A document of the image is wrong.
    #[error("{what}: {error}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        error: DocumentError,
    },
    /// Contents are not what they are called.
    #[error("{what}: the registry sent other contents, with the digest {actual}")]
    WrongDigest {
        /// What was asked for.
        what: String,
        /// The digest of what came, or its size where that is wrong.
        actual: String,
    },
    /// A system call failed.
    #[error("{call} of {}: {error}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// What on.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A layer could not be added to the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread of ours died.
    #[error("worker thread: {0}")]
    Internal(String),
}

impl PullError {
    /// Whether asking again may help at once.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Cut { .. })
    }

    pub(super) fn wrong_digest(what: &Digest, actual: &impl ToString) -> Self {
        Self::WrongDigest { what: what.to_string(), actual: actual.to_string() }
    }
}

/// Whom is asked and for what: turns a client's error into one that says so.
pub(super) struct Asked<'a> {
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) what: &'a str,
    pub(super) stall: Duration,
    pub(super) with_credentials: bool,
}

impl Asked<'_> {
    pub(super) fn http(&self, error: &reqwest::Error) -> PullError {
        let (registry, what) = (self.registry.to_owned(), self.what.to_owned());
        if error.is_connect() {
            let why = if error.is_timeout() { "timed out".to_owned() } else { deepest(error) };
            return PullError::Connect { registry, why };
        }
        if error.is_timeout() {
            return self.stalled();
        }
        PullError::Answer { what: format!("{what} from registry {registry}"), why: deepest(error) }
    }

    pub(super) fn stalled(&self) -> PullError {
        let (registry, what) = (self.registry.to_owned(), self.what.to_owned());
        PullError::Stalled { registry, what, after: self.stall }
    }

    pub(super) fn client(&self, error: &OciDistributionError) -> PullError {
        match error {
            OciDistributionError::RequestError(error) => self.http(error),
            OciDistributionError::UnauthorizedError { .. } => self.status(401, ""),
            OciDistributionError::AuthenticationFailure(why) => self.status(401, why),
            OciDistributionError::ServerError { code, message, .. } => self.status(*code, message),
            OciDistributionError::RegistryError { envelope, .. } => {
                let text = envelope.errors.first().map(|e| format!("{:?}: {}", e.code, e.message));
                let text = text.unwrap_or_default();
                let has = |words: [&str; 2]| words.iter().any(|word| text.contains(word));
                let code = match () {
                    () if has(["Denied", "Unauthorized"]) => 403,
                    () if has(["Unknown", "NotFound"]) => 404,
                    () => 400,
                };
                self.status(code, &text)
            }
            other => PullError::Answer { what: self.what.to_owned(), why: show_error(other) },
        }
    }

    pub(super) fn status(&self, code: u16, body: &str) -> PullError {
        let said = show(body.trim().as_bytes());
        match code {
            401 | 403 => {
                let with = if self.with_credentials { "with" } else { "without" };
                let said = if said.is_empty() { String::new() } else { format!(": {said}") };
                PullError::Denied {
                    registry: self.registry.to_owned(),
                    repository: self.repository.to_owned(),
                    why: format!("asked {with} credentials{said}"),
                }
            }
            404 => PullError::NotFound(format!("{}/{}", self.registry, self.what)),
            _ => PullError::Answer {
                what: format!("{} from registry {}", self.what, self.registry),
                why: format!("HTTP status {code} {said}").trim_end().to_owned(),
            },
        }
    }
}

/// The innermost cause says what happened; the outer ones repeat the URL.
pub(super) fn deepest(error: &dyn Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    show(inner.to_string().as_bytes())
}

fn show_error(error: &dyn Error) -> String {
    show(error.to_string().as_bytes())
}

pub(super) fn io(call: &'static str, path: &Path) -> impl Fn(io::Error) -> PullError {
    move |error| PullError::Io { call, path: path.to_path_buf(), error }
}
