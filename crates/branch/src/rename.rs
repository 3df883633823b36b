//! Finds what was moved: a file that is gone, and a new one of the very same contents.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use crate::change::{Aspects, Change, ChangeKind, Kind, Node};
use crate::compare::compare;
use crate::error::Result;
use crate::layers::Layers;

/// Most bytes that are read to find what was moved; more of it is told as removed and added.
const READ_MAX: u64 = 1 << 30;

/// Bytes read at a time.
const BUFFER: usize = 128 * 1024;

/// Turns removals and additions of one contents into renames. Of several that it could be, one of
/// the same name is taken, else the first.
pub(crate) fn find_renames(layers: &Layers, changes: &mut Vec<Change>) -> Result<()> {
    let mut finder = Finder { layers, left: READ_MAX };
    let sizes = Sizes::of(changes);
    // Contents of removed files and where those are, in the order of paths.
    let mut removed: HashMap<(u64, Sum), Vec<usize>> = HashMap::new();
    let mut added = Vec::new();
    for (at, change) in changes.iter().enumerate() {
        let (node, is_new) = match (&change.kind, &change.old, &change.new) {
            (ChangeKind::Removed, Some(node), _) => (node, false),
            (ChangeKind::Added, _, Some(node)) => (node, true),
            _ => continue,
        };
        if !sizes.are_on_both(node) {
            continue;
        }
        let Some(sum) = finder.sum(node, &change.path)? else { continue };
        if is_new {
            added.push((at, (node.size, sum)));
        } else {
            removed.entry((node.size, sum)).or_default().push(at);
        }
    }
    let mut pairs = Vec::new();
    for same_name in [true, false] {
        added.retain(|(to, key)| {
            let Some(candidates) = removed.get_mut(key) else { return true };
            let fits = |&from: &usize| !same_name || name(changes, from) == name(changes, *to);
            let Some(found) = candidates.iter().position(fits) else { return true };
            pairs.push((candidates.remove(found), *to));
            false
        });
    }
    apply(layers, changes, &pairs)
}

/// SHA-256: a guest could make two files of one weaker sum, and hide one behind the other.
type Sum = [u8; 32];

struct Finder<'a> {
    layers: &'a Layers,
    left: u64,
}

impl Finder<'_> {
    /// The checksum of a file; nothing where it cannot be read, is another by now, or too much was
    /// read before.
    fn sum(&mut self, node: &Node, path: &[u8]) -> Result<Option<Sum>> {
        if node.size > self.left {
            return Ok(None);
        }
        self.left -= node.size;
        let file = match self.layers.open_file(node.layer, path) {
            Err(error) if error.is_denied() => None,
            opened => opened?,
        };
        let Some(file) = file else { return Ok(None) };
        let mut file = File::from(file).take(node.size + 1);
        let (mut sum, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((length == node.size).then(|| sum.finalize().into())),
                Ok(count) => {
                    sum.update(buffer.get(..count).unwrap_or_default());
                    length += count as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

/// Sizes of files that are gone, and of new ones.
#[derive(Default)]
struct Sizes(HashMap<u64, (bool, bool)>);

impl Sizes {
    fn of(changes: &[Change]) -> Self {
        let mut sizes = Self::default();
        for change in changes {
            if let (ChangeKind::Removed, Some(node), _) = (&change.kind, &change.old, &change.new)
                && can_move(node)
            {
                sizes.0.entry(node.size).or_default().0 = true;
            }
            if let (ChangeKind::Added, Some(node)) = (&change.kind, &change.new)
                && can_move(node)
            {
                sizes.0.entry(node.size).or_default().1 = true;
            }
        }
        sizes
    }

    fn are_on_both(&self, node: &Node) -> bool {
        can_move(node) && self.0.get(&node.size) == Some(&(true, true))
    }
}

/// Empty files are all alike.
fn can_move(node: &Node) -> bool {
    node.kind == Kind::File && node.size > 0
}

fn name(changes: &[Change], at: usize) -> &[u8] {
    let path = changes.get(at).map_or(&[][..], |change| &change.path);
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

fn apply(layers: &Layers, changes: &mut Vec<Change>, pairs: &[(usize, usize)]) -> Result<()> {
    let mut gone = vec![false; changes.len()];
    for &(from, to) in pairs {
        let Some((from_path, old)) =
            changes.get(from).and_then(|c| Some((c.path.clone(), c.old.clone()?)))
        else {
            continue;
        };
        let Some(change) = changes.get_mut(to) else { continue };
        let Some(new) = &change.new else { continue };
        let aspects = compare(layers, (&from_path, &old), (&change.path, new))?;
        if aspects.contents {
            // Written to since it was read.
            continue;
        }
        change.aspects = Aspects { contents: false, ..aspects };
        change.kind = ChangeKind::Renamed { from: from_path };
        change.old = Some(old);
        if let Some(gone) = gone.get_mut(from) {
            *gone = true;
        }
    }
    let mut gone = gone.into_iter();
    changes.retain(|_| gone.next() != Some(true));
    Ok(())
}
