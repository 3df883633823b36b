//! A picture whose stage is elsewhere.

use super::{Alive, AreaKind, Body, LooseKind, Picture};
use crate::stage::Shift;

impl Picture {
    /// Has all that refers to the stage follow it.
    pub(crate) fn follow(&mut self, shift: Shift) {
        let moved = |address: &mut u64| *address = address.wrapping_add(shift.mirrors);
        for process in &mut self.processes {
            if let Body::Alive(alive) = &mut process.body {
                follow_process(alive, &moved);
            }
        }
        for loose in &mut self.loose {
            for (_, _, staged) in &mut loose.parts {
                moved(staged);
            }
            match &mut loose.kind {
                LooseKind::Anonymous { at } => *at = at.wrapping_add(shift.shared),
                LooseKind::SystemV { at, read_only, .. } => {
                    *at = at.wrapping_add(shift.shared);
                    *read_only = read_only.wrapping_add(shift.shared);
                }
                LooseKind::Memfd { .. } | LooseKind::Deleted { .. } | LooseKind::Removed { .. } => {
                }
            }
        }
    }
}

fn follow_process(alive: &mut Alive, moved: &impl Fn(&mut u64)) {
    let (first, last) = &mut alive.memory.staged;
    moved(first);
    moved(last);
    for area in &mut alive.memory.areas {
        match &mut area.kind {
            AreaKind::Anonymous { staged: Some(staged) } => moved(staged),
            AreaKind::File { changed, .. } => {
                for (_, _, staged) in changed {
                    moved(staged);
                }
            }
            AreaKind::Anonymous { staged: None }
            | AreaKind::Shared { .. }
            | AreaKind::Kernel(_) => {}
        }
    }
}
