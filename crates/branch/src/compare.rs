//! What of a file is different.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::Errno;

use crate::change::{Aspects, Kind, Node};
use crate::error::{Error, Result};
use crate::layers::Layers;

/// Bytes compared at a time.
const BUFFER: usize = 128 * 1024;

/// Most bytes of names of attributes, and of one attribute: the kernel's own limits.
const ATTRIBUTES_MAX: usize = 64 * 1024;

/// Capabilities of a program, less who gave them.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// What is different between two files, each at its path.
pub(crate) fn compare(
    layers: &Layers,
    (old_path, old): (&[u8], &Node),
    (new_path, new): (&[u8], &Node),
) -> Result<Aspects> {
    let mut aspects = Aspects {
        kind: old.kind != new.kind,
        mode: old.kind == new.kind && old.kind != Kind::Symlink && old.mode != new.mode,
        owner: (old.uid, old.gid) != (new.uid, new.gid),
        ..Aspects::default()
    };
    if aspects.kind {
        return Ok(aspects);
    }
    match old.kind {
        Kind::Symlink => aspects.contents = old.target != new.target,
        Kind::Other => aspects.contents = old.special != new.special,
        Kind::Directory => {
            let old = layers.open_dir(old.layer, old_path);
            let new = layers.open_dir(new.layer, new_path)?;
            if let (Ok(Some(old)), Some(new)) = (old, new) {
                aspects.attributes = differ(attributes(&old.fd), attributes(&new.fd));
            }
        }
        Kind::File => {
            let old_file = match layers.open_file(old.layer, old_path) {
                // What may not be read was not copied either: this is another file.
                Err(error) if error.is_denied() => None,
                opened => opened?,
            };
            let new_file = layers.open_file(new.layer, new_path)?;
            match (old_file, new_file) {
                (Some(old_file), Some(new_file)) => {
                    aspects.contents =
                        old.size != new.size || !are_equal(&old_file, &new_file, new_path)?;
                    aspects.attributes = differ(attributes(&old_file), attributes(&new_file));
                }
                _ => aspects.contents = true,
            }
        }
    }
    Ok(aspects)
}

fn are_equal(old: &OwnedFd, new: &OwnedFd, path: &[u8]) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut at = 0;
    loop {
        let (old, new) = (fill(old, &mut ours, at, path)?, fill(new, &mut theirs, at, path)?);
        if old != new || ours.get(..old) != theirs.get(..new) {
            return Ok(false);
        }
        if old < BUFFER {
            return Ok(true);
        }
        at += BUFFER as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &OwnedFd, buffer: &mut [u8], at: u64, path: &[u8]) -> Result<usize> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *rest, at + have as u64)) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(e) => return Err(Error::system("read", path, e)),
        }
    }
    Ok(have)
}

pub(crate) type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Attributes that cannot be read on either side are told by none.
fn differ(old: Option<Attributes>, new: Option<Attributes>) -> bool {
    old.zip(new).is_some_and(|(old, new)| old != new)
}

/// The attributes that a guest may have set, by name; nothing where the file system has none.
pub(crate) fn attributes(file: &OwnedFd) -> Option<Attributes> {
    let mut names = vec![0; ATTRIBUTES_MAX];
    let length = flistxattr(file, &mut names).ok()?;
    let mut all = Attributes::new();
    let names = names.get(..length).unwrap_or_default();
    for name in names.split(|&byte| byte == 0).filter(|name| is_guests(name)) {
        let mut value = vec![0; ATTRIBUTES_MAX];
        match fgetxattr(file, name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                if name == CAPABILITY {
                    value = capability(&value);
                }
                all.insert(name.to_vec(), value);
            }
            Err(Errno::NODATA) => {}
            Err(_) => return None,
        }
    }
    Some(all)
}

/// Whether an attribute is neither the overlay's own nor a label that the host's policy gives.
fn is_guests(name: &[u8]) -> bool {
    // A guest's own are moved aside by the kernel: `user.overlay.overlay.x`.
    let overlays =
        name.starts_with(b"user.overlay.") && !name.starts_with(b"user.overlay.overlay.");
    let other_security = name.starts_with(b"security.") && name != CAPABILITY;
    !name.is_empty() && !overlays && !other_security && !name.starts_with(b"trusted.overlay.")
}

/// A program's capabilities alone: the kernel notes with them who gave them, which a copy by
/// another user namespace changes.
fn capability(value: &[u8]) -> Vec<u8> {
    let effective = value.first().map(|byte| byte & 1);
    effective.into_iter().chain(value.get(4..20).unwrap_or_default().iter().copied()).collect()
}
