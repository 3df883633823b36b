//! Keys of clients that come over TCP.

use serde::{Deserialize, Serialize};

/// What a key is asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySpec {
    /// A name that no other key has: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A key as it is listed. Its secret is known to its owner alone; the store has a hash of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id: the first 12 hexadecimal digits of the SHA-256 of its secret.
    pub id: String,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: u64,
}

/// A key with its secret, which nobody is told again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// The key.
    #[serde(flatten)]
    pub key: Key,
    /// `e2b_` and 40 hexadecimal digits: what clients of E2B take for a key.
    pub secret: String,
}
