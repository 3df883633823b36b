//! Compares an overlay's layers, directory by directory, where any of those with changes has one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::readlinkat;

use crate::change::{Aspects, Change, ChangeKind, Kind};
use crate::compare::compare;
use crate::error::{Error, Result};
use crate::layers::{Found, Layers, OpenDir, look_up, names};
use crate::rename::find_renames;
use crate::wanted::{Want, Wanted};

/// Most changes that are told: of two hundred bytes each.
pub const CHANGES_MAX: usize = 1_000_000;

/// Most directories within one another.
pub const DEPTH_MAX: usize = 2048;

/// What was changed in an overlay, in the order of paths.
///
/// # Errors
/// When something that is there cannot be read, or there is more than the limits allow.
pub fn diff(layers: &Layers, wanted: &Wanted) -> Result<Vec<Change>> {
    let mut walk = Walk { layers, wanted, changes: Vec::new(), pending: Vec::new() };
    walk.top()?;
    while let Some(pair) = walk.pending.pop() {
        walk.directory(&pair)?;
    }
    let mut changes = walk.changes;
    find_renames(layers, &mut changes)?;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

struct Walk<'a> {
    layers: &'a Layers,
    wanted: &'a Wanted,
    changes: Vec<Change>,
    pending: Vec<Pair>,
}

/// A directory on its two sides: the layers that have a part of it, none where it is not there.
struct Pair {
    path: Vec<u8>,
    depth: usize,
    new: Vec<usize>,
    old: Vec<usize>,
}

impl Walk<'_> {
    /// The overlay's own top: made with it, and never opaque.
    fn top(&mut self) -> Result<()> {
        let all = 0..self.layers.count();
        let old: Vec<usize> = all.clone().filter(|&layer| !self.layers.is_changed(layer)).collect();
        let pair = Pair { path: Vec::new(), depth: 0, new: all.collect(), old };
        let opened = self.open(&pair.new, &pair.path)?;
        let side = |layers: &[usize]| look_up(within(&opened, layers), b".", &[]);
        if self.wanted.at(&[]) == Want::Told
            && let (Some(new), Some(old)) = (side(&pair.new)?, side(&pair.old)?)
            && !is_as_made(&new)
        {
            self.compare(&pair.path, (&new, &old))?;
        }
        self.pending.push(pair);
        Ok(())
    }

    fn open(&self, layers: &[usize], path: &[u8]) -> Result<Vec<OpenDir>> {
        let opened = layers.iter().map(|&layer| self.layers.open_dir(layer, path));
        opened.filter_map(Result::transpose).collect()
    }

    fn directory(&mut self, pair: &Pair) -> Result<()> {
        if pair.depth > DEPTH_MAX {
            return Err(Error::TooDeep(DEPTH_MAX));
        }
        let mut layers = [pair.new.as_slice(), pair.old.as_slice()].concat();
        layers.sort_unstable();
        layers.dedup();
        let opened = self.open(&layers, &pair.path)?;
        // Where all that was there is still below, only what lies above it can be different.
        let is_whole = !pair.new.is_empty() && pair.old.iter().all(|old| pair.new.contains(old));
        let names = names(
            opened.iter().filter(|dir| {
                !is_whole || pair.old.is_empty() || self.layers.is_changed(dir.layer)
            }),
            &pair.path,
        )?;
        for name in names {
            let path = if pair.path.is_empty() {
                name.clone()
            } else {
                [pair.path.as_slice(), b"/", &name].concat()
            };
            let want = self.wanted.at(&path);
            if want == Want::Nothing {
                continue;
            }
            let side = |layers: &[usize]| -> Result<Option<Found>> {
                let found = look_up(within(&opened, layers), &name, &path)?;
                Ok(found.and_then(|found| with_target(&opened, found, &name)))
            };
            let (new, old) = (side(&pair.new)?, side(&pair.old)?);
            if want == Want::Told {
                self.entry(&path, (new.as_ref(), old.as_ref()))?;
            }
            self.descend(path, pair.depth, new, old);
        }
        Ok(())
    }

    /// Notes what was done to one path.
    fn entry(&mut self, path: &[u8], sides: (Option<&Found>, Option<&Found>)) -> Result<()> {
        let (kind, old, new) = match sides {
            (None, None) => return Ok(()),
            (Some(new), Some(old)) => return self.compare(path, (new, old)),
            (Some(new), None) if is_as_made(new) && self.wanted.may_be_made(path) => return Ok(()),
            (Some(new), None) => (ChangeKind::Added, None, Some(new)),
            (None, Some(old)) => (ChangeKind::Removed, Some(old), None),
        };
        let node = |found: Option<&Found>| found.map(|found| found.node.clone());
        let (old, new) = (node(old), node(new));
        self.push(Change { path: path.to_vec(), kind, old, new, aspects: Aspects::default() })
    }

    fn compare(&mut self, path: &[u8], (new, old): (&Found, &Found)) -> Result<()> {
        if !self.layers.is_changed(new.node.layer) {
            return Ok(());
        }
        let aspects = compare(self.layers, (path, &old.node), (path, &new.node))?;
        if !aspects.any() {
            return Ok(());
        }
        let (old, new) = (Some(old.node.clone()), Some(new.node.clone()));
        self.push(Change { path: path.to_vec(), kind: ChangeKind::Changed, old, new, aspects })
    }

    fn push(&mut self, change: Change) -> Result<()> {
        if self.changes.len() >= CHANGES_MAX {
            return Err(Error::TooMany(CHANGES_MAX));
        }
        self.changes.push(change);
        Ok(())
    }

    /// Has the directories at a path looked into, where they can be different.
    fn descend(&mut self, path: Vec<u8>, depth: usize, new: Option<Found>, old: Option<Found>) {
        let parts = |found: Option<Found>| found.map(|found| found.layers).unwrap_or_default();
        let (new, old) = (parts(new), parts(old));
        if new != old {
            self.pending.push(Pair { path, depth: depth + 1, new, old });
        }
    }
}

/// Those of these directories that are of these layers.
fn within<'a>(opened: &'a [OpenDir], layers: &[usize]) -> impl Iterator<Item = &'a OpenDir> {
    opened.iter().filter(move |dir| layers.contains(&dir.layer))
}

/// Notes where a link leads; nothing where it is gone by now.
fn with_target(opened: &[OpenDir], mut found: Found, name: &[u8]) -> Option<Found> {
    if found.node.kind == Kind::Symlink {
        let dir = opened.iter().find(|dir| dir.layer == found.node.layer)?;
        let target = readlinkat(&dir.fd, OsStr::from_bytes(name), Vec::new()).ok()?;
        found.node.target = Some(target.into_bytes());
    }
    Some(found)
}

/// Whether something is a directory as whoever makes an overlay makes it.
fn is_as_made(found: &Found) -> bool {
    let node = &found.node;
    (node.kind, node.mode, node.uid, node.gid) == (Kind::Directory, 0o755, 0, 0)
}
