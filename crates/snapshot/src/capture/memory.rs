//! Memory: which mappings there are, and what they hold.

use std::fs::File;

use forkyard_sys::memory::Pages;
use forkyard_sys::remote::{PageScan, page, scan_pages};
use rustix::process::Pid;

use super::Capture;
use crate::error::{Context, Result};
use crate::picture::{Area, AreaKind, Memory};
use crate::proc::{self, Mapping, Stat, refuse};
use crate::seize::Stopped;
use crate::stage::Stage;

const KIB: u64 = 1024;

/// Flags of mappings whose contents or meaning cannot be copied.
const REFUSED: [(&[u8; 2], &str); 5] = [
    (b"io", "memory of a device"),
    (b"pf", "memory of a device"),
    (b"ht", "huge pages of hugetlbfs"),
    (b"um", "memory watched by userfaultfd"),
    (b"ss", "a shadow stack"),
];

impl Capture<'_> {
    /// Finds room for the memory of all processes.
    pub(super) fn plan_stage(&mut self, processes: &[Stopped]) -> Result<()> {
        let own = proc::mappings(rustix::process::getpid())?;
        let mut used: Vec<_> = own.iter().map(|area| (area.start, area.end)).collect();
        let mut length = 0;
        for stopped in processes.iter().filter(|stopped| !stopped.threads.is_empty()) {
            for area in self.mappings(stopped.pid)? {
                used.push((area.start, area.end));
                if area.anonymous > 0 {
                    // Aligned, and apart from the next.
                    length += area.end - area.start + 3 * 2048 * KIB;
                }
            }
        }
        self.stage = Stage::find(used, length)?;
        Ok(())
    }

    /// The mappings of a process, read once.
    pub(super) fn mappings(&mut self, pid: Pid) -> Result<Vec<Mapping>> {
        if let Some(known) = self.mappings.get(&pid) {
            return Ok(known.clone());
        }
        let read = proc::mappings(pid)?;
        self.mappings.insert(pid, read.clone());
        Ok(read)
    }

    pub(super) fn read_memory(
        &mut self,
        pid: Pid,
        inner: u32,
        stat: &Stat,
        mappings: Vec<Mapping>,
        brk: u64,
    ) -> Result<Memory> {
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(&path).context(|| format!("opening {path}"))?;
        let first = self.stage.position();
        let mut areas = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            // Another address space of the kernel's, the same for all.
            if mapping.name == b"[vsyscall]" {
                continue;
            }
            areas.push(self.read_area(pid, inner, stat, &pagemap, &mapping)?);
        }
        let field = |number| stat.field(number);
        Ok(Memory {
            areas,
            bounds: [
                field(26),
                field(27),
                field(45),
                field(46),
                field(47),
                brk,
                field(28),
                field(48),
                field(49),
                field(50),
                field(51),
            ],
            auxv: proc::read(pid, "auxv")?,
            program: proc::link(pid, "exe")?,
            staged: (first, self.stage.position()),
        })
    }

    fn read_area(
        &mut self,
        pid: Pid,
        inner: u32,
        stat: &Stat,
        pagemap: &File,
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
        let shared = mapping.flags.contains(b"sh");
        if mapping.inode == 0 {
            let staged = (mapping.anonymous > 0)
                .then(|| self.stage_area(pid, pagemap, mapping))
                .transpose()?;
            return Ok(area(mapping, AreaKind::Anonymous { staged }));
        }
        if mapping.name.ends_with(b" (deleted)") {
            let name = String::from_utf8_lossy(&mapping.name).into_owned();
            return Err(refuse(inner, &stat.name, format!("it has {name} mapped")));
        }
        let changed = if mapping.anonymous > 0 && !shared {
            self.stage_changes(pid, pagemap, mapping)?
        } else {
            Vec::new()
        };
        let kind = AreaKind::File {
            path: mapping.name.clone(),
            offset: mapping.offset,
            shared,
            writable: shared && mapping.flags.contains(b"mw"),
            changed,
        };
        Ok(area(mapping, kind))
    }

    /// Copies an area of anonymous memory into a mirror.
    fn stage_area(&mut self, pid: Pid, pagemap: &File, mapping: &Mapping) -> Result<u64> {
        let length = mapping.end - mapping.start;
        let grows_down = mapping.flags.contains(b"gd");
        let mut mirror = self.stage.mirror(mapping.start, length, grows_down)?;
        let at = mirror.start();
        let parts = filled(pagemap, mapping, 0)?;
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(start, end)| (start, start - mapping.start + at, end - start))
            .collect();
        fill(&mut mirror, pid, &parts)?;
        for (flag, advice) in [
            (b"wf", libc::MADV_WIPEONFORK),
            (b"hg", libc::MADV_HUGEPAGE),
            (b"nh", libc::MADV_NOHUGEPAGE),
            (b"dd", libc::MADV_DONTDUMP),
        ] {
            if mapping.flags.contains(flag) {
                mirror.advise(at, length, advice).context(|| "madvise".to_owned())?;
            }
        }
        mirror.protect(protection(mapping)).context(|| "mprotect".to_owned())?;
        self.stage.keep(mirror, parts.iter().map(|(.., length)| length).sum());
        Ok(at)
    }

    /// Copies what a process changed of a private mapping of a file.
    fn stage_changes(
        &mut self,
        pid: Pid,
        pagemap: &File,
        mapping: &Mapping,
    ) -> Result<Vec<(u64, u64, u64)>> {
        let ranges = filled(pagemap, mapping, page::FILE)?;
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
        fill(&mut pages, pid, &parts)?;
        self.stage.keep(pages, length);
        Ok(parts.into_iter().map(|(start, at, length)| (start, length, at)).collect())
    }
}

fn fill(pages: &mut Pages, pid: Pid, parts: &[(u64, u64, u64)]) -> Result<()> {
    pages.fill(pid, parts).context(|| "reading memory of a process that is forked".to_owned())
}

/// Ranges of pages that hold something, and are none of `not`.
fn filled(pagemap: &File, mapping: &Mapping, not: u64) -> Result<Vec<(u64, u64)>> {
    let scan = PageScan {
        inverted: page::ZERO | not,
        all_of: page::ZERO | not,
        any_of: page::PRESENT | page::SWAPPED,
        report: 0,
        protect: false,
    };
    let ranges = scan_pages(pagemap, mapping.start, mapping.end, scan);
    let ranges = ranges.context(|| "PAGEMAP_SCAN".to_owned())?;
    Ok(ranges.into_iter().map(|range| (range.start, range.end)).collect())
}

fn area(mapping: &Mapping, kind: AreaKind) -> Area {
    Area {
        start: mapping.start,
        end: mapping.end,
        protection: protection(mapping),
        flags: mapping.flags.clone(),
        kind,
    }
}

fn protection(mapping: &Mapping) -> u32 {
    let [read, write, execute, _] = mapping.permissions;
    let bit = |letter: u8, bit: i32| if letter == b'-' { 0 } else { bit };
    (bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(execute, libc::PROT_EXEC))
        as u32
}
