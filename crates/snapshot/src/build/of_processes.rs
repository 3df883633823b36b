//! Files of /proc that tell of a process: opened by who had them, when all processes are there.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use forkyard_sys::stub::Op;
use rustix::fs::OFlags;

use super::files::open_path;
use crate::error::Result;
use crate::picture::{Alive, DescriptionKind, Picture};

/// Opens what this process had open, by the index of its description.
pub(super) fn open(
    picture: &Picture,
    alive: &Alive,
    made: &mut BTreeMap<usize, OwnedFd>,
) -> Result<()> {
    for descriptor in &alive.descriptors {
        let index = descriptor.description;
        let Some(description) = picture.descriptions.get(index) else { continue };
        if let DescriptionKind::OfProcess(path) = &description.kind
            && !made.contains_key(&index)
        {
            let flags = OFlags::from_bits_retain(description.flags) | OFlags::NOFOLLOW;
            made.insert(index, open_path(path, flags, 0)?);
        }
    }
    Ok(())
}

/// Goes on in them where reading had come to, when all processes are what they were: the kernel
/// writes down then what is read next.
pub(super) fn seek(picture: &Picture, alive: &Alive, ops: &mut Vec<Op>) {
    for descriptor in &alive.descriptors {
        let Some(description) = picture.descriptions.get(descriptor.description) else { continue };
        if matches!(description.kind, DescriptionKind::OfProcess(_)) && description.position != 0 {
            let to = [u64::from(descriptor.number), description.position, 0, 0, 0, 0];
            ops.push(Op::call(libc::SYS_lseek, to));
        }
    }
}
