//! Whether what was read of a snapshot can be what was written.
//!
//! Checksums keep accidents away. This keeps away what they cannot: numbers that lead to addresses
//! or lengths which nobody meant.

use std::collections::BTreeMap;

use forkyard_sys::memory::{ADDRESSES_END, HUGE};

use super::Saved;
use super::error::{Result, damaged};
use crate::picture::{Alive, Area, AreaKind, Body, FileRef, Loose, LooseKind, Picture};
use crate::registers;
use crate::stage::Plan;

const PAGE: u64 = 4096;

/// Checks that a picture refers to nothing but what is there.
pub(super) fn check<R>(saved: &Saved<Picture, R>) -> Result<()> {
    check_plan(&saved.plan)?;
    let mirrors = saved.plan.mirrors.iter().map(|mirror| (mirror.start, mirror.length));
    let staged = Staged { plan: &saved.plan, mirrors: mirrors.collect() };
    check_picture(&saved.picture, &staged)
}

/// What a picture may refer to.
struct Staged<'a> {
    plan: &'a Plan,
    /// Lengths of mirrors, by their first addresses.
    mirrors: BTreeMap<u64, u64>,
}

impl Staged<'_> {
    fn holds(&self, at: u64, length: u64) -> bool {
        let last = self.mirrors.range(..=at).next_back();
        last.is_some_and(|(start, size)| {
            (at - start).checked_add(length).is_some_and(|end| end <= *size)
        })
    }
}

fn require(condition: bool, what: &str) -> Result<()> {
    if condition { Ok(()) } else { Err(damaged(what)) }
}

/// Whether a range of pages lies between two addresses.
fn within((start, length): (u64, u64), (first, last): (u64, u64)) -> bool {
    let end = start.checked_add(length);
    start.is_multiple_of(PAGE)
        && length.is_multiple_of(PAGE)
        && length > 0
        && start >= first
        && end.is_some_and(|end| end <= last)
}

fn check_plan(plan: &Plan) -> Result<()> {
    let whole =
        plan.first.is_multiple_of(HUGE) && plan.first <= plan.last && plan.last <= ADDRESSES_END;
    require(whole, "its mirrors are nowhere")?;
    let shared = plan.shared.checked_add(plan.shared_length);
    let fits = plan.shared.is_multiple_of(PAGE) && shared.is_some_and(|end| end <= ADDRESSES_END);
    require(fits, "its shared memory is nowhere")?;
    let mut behind = plan.first;
    let mut mirrors: Vec<_> = plan.mirrors.iter().collect();
    mirrors.sort_unstable_by_key(|mirror| mirror.start);
    for mirror in mirrors {
        let fits = within((mirror.start, mirror.length), (behind, plan.last));
        require(fits, "a mirror is not where mirrors are")?;
        behind = mirror.start + mirror.length;
        let mut filled = mirror.start;
        for &(start, length) in &mirror.filled {
            require(within((start, length), (filled, behind)), "pages are in no mirror")?;
            filled = start + length;
        }
    }
    Ok(())
}

fn check_picture(picture: &Picture, staged: &Staged<'_>) -> Result<()> {
    for loose in &picture.loose {
        check_loose(loose, staged)?;
    }
    for process in &picture.processes {
        require(process.pid > 1, "a process has no id")?;
        if let Body::Alive(alive) = &process.body {
            check_process(alive, picture, staged)?;
        }
    }
    Ok(())
}

fn check_loose(loose: &Loose, staged: &Staged<'_>) -> Result<()> {
    require(i64::try_from(loose.size).is_ok(), "a file is too long")?;
    let room = loose.size.next_multiple_of(PAGE).max(PAGE);
    for &(offset, length, at) in &loose.parts {
        let end = offset.checked_add(length);
        require(end.is_some_and(|end| end <= room), "contents are beyond a file's end")?;
        require(staged.holds(at, length), "contents of a file are not there")?;
    }
    let plan = staged.plan;
    let shared = (plan.shared, plan.shared + plan.shared_length);
    let whole = match loose.kind {
        LooseKind::Anonymous { at } => within((at, room), shared),
        LooseKind::SystemV { at, read_only, .. } => {
            within((at, room), shared) && within((read_only, room), shared)
        }
        LooseKind::Memfd { .. } | LooseKind::Deleted { .. } | LooseKind::Removed { .. } => true,
    };
    require(whole, "shared memory is not where it should be")
}

fn check_process(alive: &Alive, picture: &Picture, staged: &Staged<'_>) -> Result<()> {
    let memory = &alive.memory;
    require(!alive.threads.is_empty(), "a process has no thread")?;
    let whole = alive.threads.iter().all(|thread| thread.registers.len() == registers::COUNT);
    require(whole, "a thread lacks registers")?;
    let (plan, (first, last)) = (staged.plan, memory.staged);
    require(first <= last && first >= plan.first && last <= plan.last, "a process is nowhere")?;
    check_file(&memory.program, picture)?;
    let mut behind = 0;
    for area in &memory.areas {
        require(
            within((area.start, area.end.saturating_sub(area.start)), (behind, ADDRESSES_END)),
            "a mapping is nowhere",
        )?;
        behind = area.end;
        check_area(area, picture, staged)?;
    }
    let known = |index: usize| index < picture.descriptions.len();
    let all = alive.descriptors.iter().all(|descriptor| known(descriptor.description));
    require(all, "a descriptor refers to nothing")
}

fn check_area(area: &Area, picture: &Picture, staged: &Staged<'_>) -> Result<()> {
    for &(start, end) in &area.guards {
        let fits = within((start, end.saturating_sub(start)), (area.start, area.end));
        require(fits, "guard pages are in no mapping")?;
    }
    match &area.kind {
        AreaKind::Anonymous { staged: Some(at) } => {
            let length = area.end - area.start;
            let whole = at.is_multiple_of(PAGE) && staged.holds(*at, length);
            require(whole, "a mapping has no mirror")
        }
        AreaKind::File { file, changed, .. } => {
            for &(place, length, at) in changed {
                let fits = within((place, length), (area.start, area.end));
                require(fits && staged.holds(at, length), "changed pages are not there")?;
            }
            check_file(file, picture)
        }
        AreaKind::Shared { object, .. } => {
            require(*object < picture.loose.len(), "a mapping refers to nothing")
        }
        AreaKind::Anonymous { staged: None } | AreaKind::Kernel(_) => Ok(()),
    }
}

fn check_file(file: &FileRef, picture: &Picture) -> Result<()> {
    match file {
        FileRef::Loose(index) => require(*index < picture.loose.len(), "a file is not there"),
        FileRef::Path(_) => Ok(()),
    }
}
