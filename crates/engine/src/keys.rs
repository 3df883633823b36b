//! Keys: who may use the server over TCP.
//!
//! A secret has 160 random bits, so one round of SHA-256 is as good as many: there is nothing to
//! guess. It is looked up by its hash, whose time tells nothing about other secrets.

use forkyard_image::Digest;

use crate::check;
use crate::clock::now;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::{Key, KeySpec, NewKey};

/// Random bytes of a secret.
const SECRET_BYTES: usize = 20;

/// Digits of a hash that are a key's id.
const ID_LEN: usize = 12;

/// Most keys of a store.
const KEYS_MAX: usize = 10_000;

impl Engine {
    /// Makes a key.
    pub fn create_key(&self, spec: KeySpec) -> Result<NewKey> {
        if let Some(name) = &spec.name {
            check::name(name)?;
        }
        let keys = self.store.keys()?;
        if keys.len() >= KEYS_MAX {
            return Err(Error::Invalid(format!("{KEYS_MAX} keys are there already")));
        }
        if let Some(by) = spec.name.as_ref().and_then(|name| find(&keys, name)) {
            let name = spec.name.unwrap_or_default();
            return Err(Error::KeyNameTaken { name, by: by.id.clone() });
        }
        let secret = new_secret()?;
        let hash = hash(&secret);
        let id = hash.chars().take(ID_LEN).collect();
        let key = Key { id, name: spec.name, created_at: now() };
        self.store.put_key(&key, &hash)?;
        Ok(NewKey { key, secret })
    }

    /// All keys, by age.
    pub fn keys(&self) -> Result<Vec<Key>> {
        self.store.keys()
    }

    /// Removes a key by its id or name: who has it gets no more answers.
    pub fn remove_key(&self, key: &str) -> Result<()> {
        let keys = self.store.keys()?;
        let found = find(&keys, key).ok_or_else(|| Error::NoKey(key.to_owned()))?;
        self.store.remove_key(&found.id)
    }

    /// Whether there is a key with this secret.
    pub fn has_key(&self, secret: &str) -> Result<bool> {
        self.store.has_key(&hash(secret))
    }
}

fn find<'a>(keys: &'a [Key], key: &str) -> Option<&'a Key> {
    keys.iter().find(|known| known.id == key || known.name.as_deref() == Some(key))
}

fn new_secret() -> Result<String> {
    let mut bytes = [0_u8; SECRET_BYTES];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut bytes, flags).map_err(|e| Error::io("getrandom")(e.into()))?;
    Ok(bytes.iter().fold("e2b_".to_owned(), |secret, byte| format!("{secret}{byte:02x}")))
}

fn hash(secret: &str) -> String {
    Digest::sha256_of(secret.as_bytes()).hex().to_owned()
}
