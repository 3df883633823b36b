//! What a sandbox has for itself above a layer that it shares with others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, fstat, mkdirat, openat};

use super::following::DIRECTORY;
use super::{Copy, attributes_of_layer};
use crate::error::{Context, Result};

/// Makes, where there is nothing, an upper for an overlay whose topmost layer is `layer`, with
/// copies of the files in it that have these names, from its top. Names of one file stay so.
///
/// # Errors
/// When something cannot be read or made.
pub fn copy_above(layer: &Path, upper: &Path, names: &[Vec<u8>]) -> Result<()> {
    let failed = || format!("copying {}", layer.display());
    let from = openat(CWD, layer, DIRECTORY, Mode::empty()).context(failed)?;
    mkdirat(CWD, upper, Mode::RWXU).context(failed)?;
    let to = openat(CWD, upper, DIRECTORY, Mode::empty()).context(failed)?;
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    directory(&mut Copy::new(0), &from, &to, &names).context(failed)
}

/// Copies what has these names into a directory, which then covers the layer's in all but what is
/// in it.
fn directory(copy: &mut Copy, from: &OwnedFd, to: &OwnedFd, names: &[&[u8]]) -> io::Result<()> {
    let mut inner: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for name in names {
        match name.iter().position(|&byte| byte == b'/') {
            None => copy.entry(from, to, name)?,
            Some(at) => {
                let (first, rest) = name.split_at(at);
                inner.entry(first).or_default().push(rest.get(1..).unwrap_or_default());
            }
        }
    }
    for (name, names) in inner {
        let path = OsStr::from_bytes(name);
        mkdirat(to, path, Mode::RWXU)?;
        let open = |dir| openat(dir, path, DIRECTORY, Mode::empty());
        directory(copy, &open(from)?, &open(to)?, &names)?;
    }
    attributes_of_layer(from, to, &fstat(from)?)
}
