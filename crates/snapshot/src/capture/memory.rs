//! Memory: which mappings there are, and what they hold.

use std::fs::File;
use std::rc::Rc;

use forkyard_sys::memory::{HUGE, Pages};
use forkyard_sys::ptrace;
use forkyard_sys::remote::{self, PageRange};
use rustix::process::Pid;

use super::Capture;
use super::loose::{Key, kind_of};
use super::pool::{self, Pool};
use super::system_v::Segment;
use crate::ahead::{Ahead, MARKED};
use crate::build::program::is_left_behind;
use crate::error::{Context, Error, Result, unreadable};
use crate::filled::Own;
use crate::picture::{Area, AreaKind, FileRef, LooseKind, Memory};
use crate::proc::{self, Mapping, Stat, refuse};
use crate::seize::Stopped;
use crate::stage::{Stage, dress};

/// Flags of mappings whose contents or meaning cannot be copied.
const REFUSED: [(&[u8; 2], &str); 6] = [
    (b"io", "memory of a device"),
    (b"pf", "memory of a device"),
    (b"ht", "huge pages of hugetlbfs"),
    (b"um", "memory watched by userfaultfd"),
    (b"ui", "memory watched by userfaultfd"),
    (b"ss", "a shadow stack"),
];

/// What a process tells of its memory as a whole.
pub(super) struct Told {
    pub(super) brk: u64,
    pub(super) lock_future: u32,
    pub(super) no_exec_gain: u32,
    pub(super) no_huge_pages: bool,
}

impl Capture<'_> {
    /// Finds room for the memory of all processes, or makes sure that what was found is free yet.
    pub(super) fn plan_stage(&mut self, processes: &[Stopped], segments: &[Segment]) -> Result<()> {
        let mut used = Vec::new();
        let mut shared: Vec<(Key, u64)> = Vec::new();
        for stopped in processes.iter().filter(|stopped| !stopped.threads.is_empty()) {
            for area in self.mappings(stopped.pid)?.iter() {
                used.push((area.start, area.end));
                if area.inode != 0
                    && let Some(key @ Key::Anonymous(_)) = self.loose_key(area)
                {
                    let size = area.offset.saturating_add(area.end - area.start);
                    match shared.iter_mut().find(|(other, _)| *other == key) {
                        Some((_, most)) => *most = size.max(*most),
                        None => shared.push((key, size)),
                    }
                }
            }
        }
        if !self.stage.is_found() {
            used.extend(&self.own);
            *self.stage = Stage::find(used)?;
        } else if !self.stage.is_clear_of(&used) {
            *self.ahead = Ahead::default();
            return Err(Error::Unsteady("memory was mapped where copies are".to_owned()));
        }
        let room = |size: &u64| size.saturating_add(HUGE).next_multiple_of(HUGE);
        let all_shared = shared.iter().map(|(_, size)| room(size)).fold(0, u64::saturating_add);
        let all_segments = segments.iter().map(|segment| room(&segment.size));
        // Each for reading alone, too.
        let all_segments = all_segments.fold(0, u64::saturating_add).saturating_mul(2);
        self.stage.set_aside(all_shared.saturating_add(all_segments))?;
        let mut at = self.stage.shared();
        for (key, size) in shared {
            self.loose.entry(key, || LooseKind::Anonymous { at });
            at += room(&size);
        }
        for segment in segments {
            let read_only = at + room(&segment.size);
            self.loose.entry(segment.key(), || segment.kind(at, read_only));
            at = read_only + room(&segment.size);
        }
        Ok(())
    }

    /// Reads what all processes have mapped.
    pub(super) fn read_spaces(&mut self, processes: &[Stopped]) -> Result<()> {
        let alive = processes.iter().filter(|stopped| !stopped.threads.is_empty());
        let alive: Vec<Pid> = alive.map(|stopped| stopped.pid).collect();
        for (pid, (mut read, own)) in self.reader.spaces(&alive)? {
            if let Some(program) = self.subject.program {
                leave_program(pid, program, &mut read)?;
            }
            for mapping in &mut read {
                give_true_name(pid, mapping)?;
                // No other's, for guests have none; that of a template that was just killed, or of
                // this one in memory that a process left to another.
                if mapping.flags.contains(MARKED) && !self.ahead.marks(pid) {
                    *self.ahead = Ahead::default();
                    return Err(Error::Unsteady("another fork is at an end".to_owned()));
                }
            }
            self.mappings.insert(pid, Rc::new(read));
            self.own_pages.insert(pid, own);
        }
        Ok(())
    }

    /// The mappings of a process.
    pub(super) fn mappings(&self, pid: Pid) -> Result<Rc<Vec<Mapping>>> {
        self.mappings.get(&pid).map(Rc::clone).ok_or_else(|| unreadable("/proc/PID/smaps"))
    }

    pub(super) fn read_memory(
        &mut self,
        pid: Pid,
        inner: u32,
        stat: &Stat,
        mappings: &[Mapping],
        told: &Told,
    ) -> Result<Memory> {
        let own = self.own_pages.remove(&pid).ok_or_else(|| unreadable("/proc/PID/pagemap"))?;
        let mut pool = Pool::plan(self.stage, mappings, &own)?;
        let mut areas = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            // Another address space of the kernel's, the same for all.
            if mapping.name == b"[vsyscall]" {
                continue;
            }
            areas.push(self.read_area(pid, inner, stat, (&own, &mut pool), mapping)?);
        }
        pool.read(pid, self.stage, self.reader)?;
        let field = |number| stat.field(number);
        Ok(Memory {
            areas,
            bounds: [
                field(26),
                field(27),
                field(45),
                field(46),
                field(47),
                told.brk,
                field(28),
                field(48),
                field(49),
                field(50),
                field(51),
            ],
            auxv: proc::read_record(pid, "auxv")?,
            program: self.read_program(pid)?,
            lock_future: told.lock_future,
            no_exec_gain: told.no_exec_gain,
            no_huge_pages: told.no_huge_pages,
            staged: self.stage.mirrors(),
        })
    }

    fn read_area(
        &mut self,
        pid: Pid,
        inner: u32,
        stat: &Stat,
        (own, pool): (&Own, &mut Pool),
        mapping: &Mapping,
    ) -> Result<Area> {
        let kernels = [b"[vdso]".as_slice(), b"[vvar]", b"[vvar_vclock]"];
        if kernels.contains(&mapping.name.as_slice()) {
            let kind = AreaKind::Kernel(mapping.name.clone());
            return Ok(area(mapping, kind));
        }
        if let Some((_, what)) = REFUSED.iter().find(|(flag, _)| mapping.flags.contains(flag)) {
            return Err(refuse(inner, &stat.name, format!("it has {what} mapped")));
        }
        if mapping.protection_key != 0 && protection(mapping) != libc::PROT_EXEC as u32 {
            return Err(refuse(inner, &stat.name, "it has memory with a protection key"));
        }
        let mut area = self.read_kind(pid, inner, stat, (own, pool), mapping)?;
        if mapping.shows_anonymous() || mapping.name.starts_with(b"/") {
            area.guards = ends(own.guards(mapping));
        }
        Ok(area)
    }

    fn read_kind(
        &mut self,
        pid: Pid,
        inner: u32,
        stat: &Stat,
        (own, pool): (&Own, &mut Pool),
        mapping: &Mapping,
    ) -> Result<Area> {
        let no = || {
            let name = String::from_utf8_lossy(&mapping.name).into_owned();
            refuse(inner, &stat.name, format!("it has {name} mapped"))
        };
        let shared = mapping.flags.contains(b"sh");
        let file = match self.loose_key(mapping) {
            Some(key @ Key::Anonymous(_)) => {
                let object = self.loose.entry(key, || kind_of(mapping));
                return Ok(area(mapping, AreaKind::Shared { object, offset: mapping.offset }));
            }
            Some(key @ Key::SystemV(_)) => {
                let object = self.loose.known(key).ok_or_else(no)?;
                return Ok(area(mapping, AreaKind::Shared { object, offset: mapping.offset }));
            }
            Some(key @ Key::File(..)) => {
                let index = self.loose.entry(key, || kind_of(mapping));
                self.note_source(index, pid, mapping);
                FileRef::Loose(index)
            }
            None if mapping.shows_anonymous() => {
                // What may be dropped at any time is so now, as it would be by fork(2).
                let droppable = mapping.flags.contains(b"dp");
                let staged = (mapping.own() > 0 && !droppable)
                    .then(|| self.stage_area(pid, own, pool, mapping))
                    .transpose()?;
                return Ok(area(mapping, AreaKind::Anonymous { staged }));
            }
            None if mapping.name.starts_with(b"/") => FileRef::Path(mapping.name.clone()),
            None => return Err(no()),
        };
        let changed = if mapping.own() > 0 && !shared {
            self.stage_changes(pid, own, pool, mapping)?
        } else {
            Vec::new()
        };
        let kind = AreaKind::File {
            file,
            offset: mapping.offset,
            shared,
            writable: shared && mapping.flags.contains(b"mw"),
            changed,
        };
        Ok(area(mapping, kind))
    }

    /// Copies an area of anonymous memory into a mirror.
    fn stage_area(
        &mut self,
        pid: Pid,
        own: &Own,
        pool: &mut Pool,
        mapping: &Mapping,
    ) -> Result<u64> {
        let found = own.pages(mapping);
        if let Some(at) = self.ahead.finish(pid, mapping, &found, self.stage)? {
            return Ok(at);
        }
        if pool::takes_area(mapping) {
            return Ok(pool.area(mapping, &ends(found)));
        }
        let length = mapping.end - mapping.start;
        let grows_down = mapping.flags.contains(b"gd");
        let mut mirror = self.stage.mirror(mapping.start, length, grows_down)?;
        let at = mirror.start();
        let parts: Vec<_> = ends(found)
            .into_iter()
            .map(|(start, end)| (start, start - mapping.start + at, end - start))
            .collect();
        Source::of(pid, mapping)?.fill(&mut mirror, &parts)?;
        dress(&mut mirror, &mapping.flags, protection(mapping))?;
        self.stage.keep(mirror, parts.iter().map(|(.., length)| length).sum());
        Ok(at)
    }

    /// Copies what a process changed of a private mapping of a file.
    fn stage_changes(
        &mut self,
        pid: Pid,
        own: &Own,
        pool: &mut Pool,
        mapping: &Mapping,
    ) -> Result<Vec<(u64, u64, u64)>> {
        let ranges = ends(own.pages(mapping));
        if pool::takes_changes(mapping) {
            return Ok(pool.changes(&ranges));
        }
        let length: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut pages = self.stage.mirror(0, length, false)?;
        let mut next = pages.start();
        let parts: Vec<_> = ranges
            .into_iter()
            .map(|(start, end)| {
                let at = next;
                next += end - start;
                (start, at, end - start)
            })
            .collect();
        Source::of(pid, mapping)?.fill(&mut pages, &parts)?;
        self.stage.keep(pages, length);
        Ok(parts.into_iter().map(|(start, at, length)| (start, length, at)).collect())
    }
}

/// Takes what a process was built by off its mappings, unless a thread has not left it yet.
fn leave_program(pid: Pid, program: u64, mappings: &mut Vec<Mapping>) -> Result<()> {
    let Some(code) = mappings.iter().find(|area| {
        area.start == program && area.shows_anonymous() && is_left_behind(area, program)
    }) else {
        return Ok(());
    };
    let code = code.start..code.end;
    for tid in proc::numbers(pid, "task")? {
        let Some(tid) = Pid::from_raw(tid.cast_signed()) else { continue };
        let registers = ptrace::registers(tid).context(|| "PTRACE_GETREGS".to_owned())?;
        if code.contains(&registers.rip) {
            return Ok(());
        }
    }
    mappings.retain(|area| !area.shows_anonymous() || !is_left_behind(area, program));
    Ok(())
}

/// Where ranges begin and end.
fn ends(ranges: Vec<PageRange>) -> Vec<(u64, u64)> {
    ranges.into_iter().map(|range| (range.start, range.end)).collect()
}

/// Line ends of a name are written as `\012` in smaps, and these four characters just so: where
/// they are, the name is asked for.
fn give_true_name(pid: Pid, mapping: &mut Mapping) -> Result<()> {
    let escaped = b"\\012".as_slice();
    if !mapping.name.windows(escaped.len()).any(|part| part == escaped) {
        return Ok(());
    }
    let path = format!("/proc/{pid}/maps");
    let maps = File::open(&path).context(|| format!("opening {path}"))?;
    let name = remote::mapping_name(&maps, mapping.start);
    let failed = || "PROCMAP_QUERY of a mapped file with a line end in its name".to_owned();
    mapping.name = proc::inside(name.context(failed)?);
    Ok(())
}

/// Where memory of a process is read.
pub(super) enum Source {
    /// All at once, by `process_vm_readv`(2).
    Readable(Pid),
    /// By `/proc/PID/mem`: where the process itself may not read, and what it has in common with
    /// others.
    Closed(File),
}

impl Source {
    pub(super) fn of(pid: Pid, mapping: &Mapping) -> Result<Self> {
        if mapping.permissions.first() == Some(&b'r') && !mapping.is_in_common() {
            return Ok(Self::Readable(pid));
        }
        Self::file(pid)
    }

    fn file(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        File::open(&path).map(Self::Closed).context(|| format!("opening {path}"))
    }

    /// Fills pages: address there, address here, and length of each part.
    pub(super) fn fill(&self, pages: &mut Pages, parts: &[(u64, u64, u64)]) -> Result<()> {
        let failed = || "reading memory of a process that is forked".to_owned();
        match self {
            Self::Readable(pid) => pages.fill(*pid, parts).context(failed),
            Self::Closed(memory) => parts.iter().try_for_each(|&(there, here, length)| match pages
                .read_from(here, length, memory, there)
                .context(failed)?
            {
                read if read == length => Ok(()),
                _ => Err(crate::Error::Unsteady("memory went away".to_owned())),
            }),
        }
    }

    /// Fills pages from an address on, as far as there is something; gives how much there was.
    pub(super) fn read(&self, pages: &mut Pages, there: u64) -> Result<u64> {
        let memory = match self {
            Self::Readable(pid) => &Self::file(*pid)?,
            closed @ Self::Closed(_) => closed,
        };
        let Self::Closed(memory) = memory else { return Ok(0) };
        let (start, length) = (pages.start(), pages.length());
        Ok(pages.read_from(start, length, memory, there).unwrap_or(0))
    }
}

fn area(mapping: &Mapping, kind: AreaKind) -> Area {
    Area {
        start: mapping.start,
        end: mapping.end,
        protection: protection(mapping),
        flags: mapping.flags.iter().filter(|flag| *flag != MARKED).copied().collect(),
        guards: Vec::new(),
        name: mapping.given_name(),
        kind,
    }
}

fn protection(mapping: &Mapping) -> u32 {
    let [read, write, execute, _] = mapping.permissions;
    let bit = |letter: u8, bit: i32| if letter == b'-' { 0 } else { bit };
    (bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(execute, libc::PROT_EXEC))
        as u32
}
