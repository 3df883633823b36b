//! Memory put where it was: the mirrors move, files are mapped, and all else goes.

use std::collections::{BTreeMap, BTreeSet};

use forkyard_sys::memory::ADDRESSES_END;
use forkyard_sys::stub::Op;

use super::Site;
use super::program::Program;
use crate::error::{Error, Result};
use crate::picture::{Alive, Area, AreaKind, FileRef, LooseKind};
use crate::stage::ADVICE;

/// Where this process's own vDSO waits meanwhile, from its program on.
const KERNELS: u64 = 64 * 1024 * 1024;

const READ: u32 = libc::PROT_READ as u32;
const WRITE: u32 = libc::PROT_WRITE as u32;

/// `MAP_DROPPABLE` of linux/mman.h, Linux 6.11.
const MAP_DROPPABLE: i32 = 8;

/// `MADV_GUARD_INSTALL` of linux/mman.h, Linux 6.13.
const GUARD_INSTALL: u64 = 102;

/// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME` of linux/prctl.h.
const NAME_AREA: [u64; 2] = [0x5356_4d41, 0];

/// mseal(2), which libc does not know.
const MSEAL: libc::c_long = 462;

/// Where files that are mapped are open.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// The lowest.
    pub(super) first: i32,
    pub(super) by_file: BTreeMap<(FileRef, bool), i32>,
}

/// The files that a process maps or runs.
pub(super) fn files(alive: &Alive) -> BTreeSet<(FileRef, bool)> {
    let mapped = alive.memory.areas.iter().filter_map(|area| match &area.kind {
        AreaKind::File { file, writable, .. } => Some((file.clone(), *writable)),
        _ => None,
    });
    mapped.chain([(alive.memory.program.clone(), false)]).collect()
}

pub(super) fn ops(
    program: &mut Program,
    site: &Site<'_>,
    alive: &Alive,
    numbers: &Numbers,
) -> Result<Vec<Op>> {
    let memory = &alive.memory;
    let mut ops = Vec::with_capacity(memory.areas.len() * 2 + 32);
    let waiting = set_kernels_aside(site, alive, &mut ops)?;
    // All but the mirrors and what this program needs.
    let (first, last) = memory.staged;
    for (start, end) in [(0, first), (last, site.shared), (site.work + 2 * KERNELS, ADDRESSES_END)]
    {
        if start < end {
            ops.push(call(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0]).must());
        }
    }
    for area in &memory.areas {
        place(area, site, numbers, &waiting, &mut ops)?;
    }
    for (start, end) in [(first, last), (site.shared, site.control.address(0))] {
        if start < end {
            ops.push(call(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0]).must());
        }
    }
    if let Some(&(soft, hard)) = alive.limits.get(libc::RLIMIT_MEMLOCK as usize) {
        // What is locked counts against the process's own limit.
        let limit = program.put_words(&[soft, hard]);
        let which = u64::from(libc::RLIMIT_MEMLOCK);
        ops.push(call(libc::SYS_prlimit64, [0, which, limit, 0, 0, 0]));
    }
    for area in &memory.areas {
        advise(program, area, &mut ops);
    }
    set_bounds(program, alive, numbers, &mut ops);
    Ok(ops)
}

fn call(number: libc::c_long, args: [u64; 6]) -> Op {
    Op::call(number, args)
}

/// Moves the kernel's pages of this process out of the way.
fn set_kernels_aside(
    site: &Site<'_>,
    alive: &Alive,
    ops: &mut Vec<Op>,
) -> Result<BTreeMap<Vec<u8>, (u64, u64)>> {
    let mut waiting = BTreeMap::new();
    let mut at = site.work + KERNELS;
    for wanted in &alive.memory.areas {
        let AreaKind::Kernel(name) = &wanted.kind else { continue };
        let length = wanted.end - wanted.start;
        let own = site.own.iter().find(|own| own.name == *name && own.end - own.start == length);
        let Some(own) = own else {
            return Err(Error::Failed {
                what: format!("{} is another on this kernel", String::from_utf8_lossy(name)),
                source: std::io::ErrorKind::Unsupported.into(),
            });
        };
        ops.push(remap(own.start, length, at));
        waiting.insert(name.clone(), (at, length));
        at += length;
    }
    Ok(waiting)
}

fn remap(from: u64, length: u64, to: u64) -> Op {
    let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    call(libc::SYS_mremap, [from, length, length, how, to, 0]).must()
}

fn place(
    area: &Area,
    site: &Site<'_>,
    numbers: &Numbers,
    waiting: &BTreeMap<Vec<u8>, (u64, u64)>,
    ops: &mut Vec<Op>,
) -> Result<()> {
    let length = area.end - area.start;
    match &area.kind {
        AreaKind::Anonymous { staged: Some(staged) } => {
            ops.push(remap(*staged, length, area.start));
        }
        AreaKind::Anonymous { staged: None } => {
            let private =
                if area.flags.contains(b"dp") { MAP_DROPPABLE } else { libc::MAP_PRIVATE };
            let mut kind = private | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            if area.flags.contains(b"gd") {
                kind |= libc::MAP_GROWSDOWN;
            }
            if area.flags.contains(b"nr") {
                kind |= libc::MAP_NORESERVE;
            }
            ops.push(map(area.start, length, area.protection, kind, -1, 0));
        }
        AreaKind::File { file, offset, shared, writable, changed } => {
            let number = numbers.by_file.get(&(file.clone(), *writable)).copied();
            let number = number
                .ok_or_else(|| crate::error::unreadable("a picture: a mapped file is missing"))?;
            let kind = if *shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let open = if changed.is_empty() { 0 } else { WRITE };
            let protection = area.protection | open;
            ops.push(map(area.start, length, protection, kind | libc::MAP_FIXED, number, *offset));
            for &(at, length, staged) in changed {
                ops.push(Op::copy(at, staged, length));
            }
            if protection != area.protection {
                let protection = u64::from(area.protection);
                let protect = [area.start, length, protection, 0, 0, 0];
                ops.push(call(libc::SYS_mprotect, protect).must());
            }
        }
        AreaKind::Shared { object, offset } => {
            let kind = site.picture.loose.get(*object).map(|loose| &loose.kind);
            let at = match kind {
                Some(LooseKind::Anonymous { at }) => Some(at),
                Some(LooseKind::SystemV { at, .. }) if area.flags.contains(b"mw") => Some(at),
                Some(LooseKind::SystemV { read_only, .. }) => Some(read_only),
                _ => None,
            };
            let Some(at) = at else {
                return Err(crate::error::unreadable("a picture: shared memory is missing"));
            };
            // With no old length it is mapped once more.
            let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let args = [at + offset, 0, length, how, area.start, 0];
            ops.push(call(libc::SYS_mremap, args).must());
            if area.protection != READ | WRITE {
                let protect = [area.start, length, u64::from(area.protection), 0, 0, 0];
                ops.push(call(libc::SYS_mprotect, protect).must());
            }
        }
        AreaKind::Kernel(name) => {
            if let Some(&(at, length)) = waiting.get(name) {
                ops.push(remap(at, length, area.start));
            }
        }
    }
    Ok(())
}

fn map(start: u64, length: u64, protection: u32, kind: i32, file: i32, offset: u64) -> Op {
    let file = i64::from(file).cast_unsigned();
    call(libc::SYS_mmap, [start, length, u64::from(protection), kind as u64, file, offset]).must()
}

/// What a mapping does not bring along from a mirror, or has no mirror to bring it.
fn advise(program: &mut Program, area: &Area, ops: &mut Vec<Op>) {
    let length = area.end - area.start;
    let mut advise = |advice: i32| {
        ops.push(call(libc::SYS_madvise, [area.start, length, advice as u64, 0, 0, 0]));
    };
    let has = |flag: &[u8; 2]| area.flags.contains(flag);
    if has(b"dc") {
        advise(libc::MADV_DONTFORK);
    }
    if !matches!(area.kind, AreaKind::Anonymous { staged: Some(_) }) {
        let of_files: [(&[u8; 2], i32); 2] =
            [(b"sr", libc::MADV_SEQUENTIAL), (b"rr", libc::MADV_RANDOM)];
        for (flag, advice) in ADVICE.into_iter().chain(of_files) {
            if has(flag) {
                advise(advice);
            }
        }
    }
    for &(start, end) in &area.guards {
        let guard = [start, end - start, GUARD_INSTALL, 0, 0, 0];
        ops.push(call(libc::SYS_madvise, guard).must());
    }
    if let Some(name) = &area.name {
        let mut name = name.clone();
        name.push(0);
        let name = program.put(&name);
        let [area_name, what] = NAME_AREA;
        ops.push(call(libc::SYS_prctl, [area_name, what, area.start, length, name, 0]));
    }
    if has(b"lo") {
        let on_fault = u64::from(has(b"lf"));
        ops.push(call(libc::SYS_mlock2, [area.start, length, on_fault, 0, 0, 0]));
    }
    if has(b"sl") {
        ops.push(call(MSEAL, [area.start, length, 0, 0, 0, 0]).must());
    }
}

/// Where heap, stack, arguments and program are, for the kernel and /proc.
fn set_bounds(program: &mut Program, alive: &Alive, numbers: &Numbers, ops: &mut Vec<Op>) {
    let memory = &alive.memory;
    let auxv = program.put(&memory.auxv);
    let executable = numbers.by_file.get(&(memory.program.clone(), false)).copied().unwrap_or(-1);
    let mut words = memory.bounds.to_vec();
    words.push(auxv);
    let length = memory.auxv.len() as u64;
    words.push(length | u64::from(executable.cast_unsigned()) << 32);
    let size = words.len() as u64 * 8;
    let map = program.put_words(&words);
    let what = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, map, size, 0, 0];
    ops.push(call(libc::SYS_prctl, what).must());
}

/// What holds for all that is mapped from now on: set when nothing more is mapped for the process.
pub(super) fn close(alive: &Alive, ops: &mut Vec<Op>) {
    let memory = &alive.memory;
    let prctl = |what: i32, value: u32| {
        call(libc::SYS_prctl, [what as u64, u64::from(value), 0, 0, 0, 0]).must()
    };
    if memory.no_huge_pages {
        ops.push(prctl(libc::PR_SET_THP_DISABLE, 1));
    }
    if memory.lock_future != 0 {
        ops.push(call(libc::SYS_mlockall, [u64::from(memory.lock_future), 0, 0, 0, 0, 0]));
    }
    if memory.no_exec_gain != 0 {
        ops.push(prctl(libc::PR_SET_MDWE, memory.no_exec_gain));
    }
}
