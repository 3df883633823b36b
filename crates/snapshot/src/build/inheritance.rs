//! Which mirrors a process inherits: its own, and those of all that it will fork.
//!
//! To inherit all of them, and to unmap what belongs to others, would take each of a thousand
//! processes longer than all the rest. So mirrors are withheld from forks, and given to one just
//! before it.

use std::io;

use forkyard_sys::memory::set_inherited;

use super::tree::{Plan, Role};
use crate::error::{Context, Result};
use crate::picture::{Alive, AreaKind, Body, Picture};

/// First address, and behind the last.
type Range = (u64, u64);

/// What is given to whom.
pub(super) struct Inheritance {
    /// From the first mirror to behind the last.
    all: Range,
    /// By the index of the node. Mirrors of other processes lie in none of them; gaps may.
    by_node: Vec<Vec<Range>>,
}

impl Inheritance {
    pub(super) fn plan(picture: &Picture, nodes: &Plan, all: Range) -> Self {
        let mut owned = Vec::new();
        for index in 0..nodes.count() as usize {
            if let Some(Role::Alive(process)) = nodes.node(index).map(|node| node.role)
                && let Some(Body::Alive(alive)) = picture.processes.get(process).map(|p| &p.body)
            {
                owned.extend(mirrors(alive).map(|range| (range, index)));
            }
        }
        owned.sort_unstable();
        // By their places in `owned`, so that what lies side by side becomes one range.
        let mut places = vec![Vec::new(); nodes.count() as usize];
        for (at, &(_, index)) in owned.iter().enumerate() {
            if let Some(places) = places.get_mut(index) {
                places.push((at, at + 1));
            }
        }
        for index in nodes.children_first() {
            let Some(node) = nodes.node(index) else { continue };
            let mut below = places.get_mut(index).map(std::mem::take).unwrap_or_default();
            for child in node.forked() {
                below.extend(places.get(child).into_iter().flatten());
            }
            if let Some(places) = places.get_mut(index) {
                *places = joined(below);
            }
        }
        let range = |&(from, to): &(usize, usize)| {
            let ((start, _), _) = owned.get(from)?;
            let ((_, end), _) = owned.get(to.checked_sub(1)?)?;
            Some((*start, *end))
        };
        let by_node = places.iter().map(|places| places.iter().filter_map(range).collect());
        Self { all, by_node: by_node.collect() }
    }

    /// Before a process is forked: has it inherit what is its own.
    pub(super) fn give(&self, index: usize) -> io::Result<()> {
        self.ranges(index).try_for_each(|range| set(range, true))
    }

    /// After that: withholds it from the next.
    pub(super) fn withhold(&self, index: usize) -> io::Result<()> {
        self.ranges(index).try_for_each(|range| set(range, false))
    }

    /// Withholds all mirrors from forks of this process.
    pub(super) fn withhold_all(&self) -> Result<()> {
        set(self.all, false).context(|| "MADV_DONTFORK".to_owned())
    }

    /// Withholds none of them any more.
    pub(super) fn give_all(&self) -> Result<()> {
        set(self.all, true).context(|| "MADV_DOFORK".to_owned())
    }

    fn ranges(&self, index: usize) -> impl Iterator<Item = Range> {
        self.by_node.get(index).into_iter().flatten().copied()
    }
}

fn set((start, end): Range, inherited: bool) -> io::Result<()> {
    set_inherited(start, end - start, inherited)
}

/// Where the memory of a process is staged.
fn mirrors(alive: &Alive) -> impl Iterator<Item = Range> {
    alive.memory.areas.iter().flat_map(|area| {
        let (whole, parts) = match &area.kind {
            AreaKind::Anonymous { staged } => {
                (staged.map(|at| (at, at + (area.end - area.start))), [].as_slice())
            }
            AreaKind::File { changed, .. } => (None, changed.as_slice()),
            _ => (None, [].as_slice()),
        };
        whole.into_iter().chain(parts.iter().map(|&(_, length, at)| (at, at + length)))
    })
}

/// Ranges in their order, those that touch as one.
fn joined(mut ranges: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    ranges.sort_unstable();
    let mut joined: Vec<(usize, usize)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}
