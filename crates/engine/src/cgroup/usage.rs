//! What a sandbox uses, and whether the kernel killed in it for want of memory.

use super::{Controller, Error, Group, Result, Version, file};
use crate::model::Usage;

impl Group {
    /// What it uses now. A figure that nothing here counts, or that cannot be read (any more),
    /// is `None`.
    ///
    /// Memory is without what init had before it was attached. On v1 the kernel batches memory
    /// figures: they may be off by 64 pages a processor.
    pub fn usage(&self) -> Usage {
        let memory = |v1, v2| {
            let dir = self.dir(Controller::Memory)?;
            let name = if dir.version == Version::V1 { v1 } else { v2 };
            file::number(&dir.file(name)).ok()?
        };
        Usage {
            memory: memory("memory.usage_in_bytes", "memory.current"),
            memory_peak: memory("memory.max_usage_in_bytes", "memory.peak"),
            cpu_us: self.cpu_us(),
            pids: self
                .dir(Controller::Pids)
                .and_then(|dir| file::number(&dir.file("pids.current")).ok()?),
            oom_kills: self.oom_kills().ok().flatten(),
        }
    }

    /// What of its memory the kernel cannot take back, in bytes: all but what files can be read
    /// again from. First all of that, then what is its processes' own. `None` where nothing counts.
    pub fn held(&self) -> Option<(u64, u64)> {
        let dir = self.dir(Controller::Memory)?;
        let [usage, file, shared, own] = match dir.version {
            Version::V1 => ["memory.usage_in_bytes", "total_cache", "total_shmem", "total_rss"],
            Version::V2 => ["memory.current", "file", "shmem", "anon"],
        };
        let stat = |key| file::keyed(&dir.file("memory.stat"), key).ok();
        let usage = file::number(&dir.file(usage)).ok()??;
        let files = stat(file)?.saturating_sub(stat(shared)?);
        Some((usage.saturating_sub(files), stat(own)?))
    }

    /// How many of its processes the kernel has killed for want of memory, of the sandbox's or
    /// of the host's; `None` where nothing counts them. It only grows: compare two readings.
    pub fn oom_kills(&self) -> Result<Option<u64>> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(None);
        };
        let name = match dir.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        match file::keyed(&dir.file(name), "oom_kill") {
            // v1 counts since Linux 4.13, v2 since 4.13 too; a vendor's kernel may not.
            Err(Error::Unreadable { .. }) => Ok(None),
            count => count.map(Some),
        }
    }

    /// Every v2 group counts processor time, with controllers or without; v1 counts in
    /// nanoseconds.
    fn cpu_us(&self) -> Option<u64> {
        if let Some(dir) = self.unified() {
            return file::keyed(&dir.file("cpu.stat"), "usage_usec").ok();
        }
        let dir = self.dir(Controller::CpuAcct)?;
        file::number(&dir.file("cpuacct.usage")).ok()?.map(|nanos| nanos / 1000)
    }
}
