//! Which limits a sandbox may have, and how they are written.

use std::fs;

use super::{Controller, Dir, Group, Result, Version, file};
use crate::model::Limits;

/// The least memory limit, in bytes: below it not even init and a shell start. Docker's is
/// 6 MiB.
pub const MEMORY_MIN: u64 = 4 << 20;

/// The greatest memory limit, in bytes: more than any machine has, less than v1 takes for
/// "unlimited".
pub const MEMORY_MAX: u64 = 1 << 50;

/// The least share of processors: 1 ms in each period of 100 ms, the least quota the kernel
/// takes (`Documentation/scheduler/sched-bwc.rst`).
pub const CPU_MIN: f64 = 0.01;

/// The greatest limit on processes: the kernel's `PID_MAX_LIMIT`.
pub const PIDS_MAX: u32 = 4 << 20;

/// Processes and threads of a sandbox that asked for no limit. A fork bomb must not take the
/// host's pids (32,768 on small machines), and no sane build or test run comes near it: it is
/// about what systemd gives a service (15% of that).
pub const DEFAULT_PIDS: u32 = 4096;

/// Period of processor quotas, in microseconds: the kernel's and Docker's.
const PERIOD_US: u64 = 100_000;

/// A limit that is out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadLimit {
    /// Memory, in bytes.
    #[error("memory limit of {0} bytes: must be {min} (4 MiB) to {max} (1 PiB)",
        min = MEMORY_MIN, max = MEMORY_MAX)]
    Memory(u64),
    /// Processors.
    #[error("cpu limit of {asked}: must be {CPU_MIN} to {processors}, the processors here")]
    Cpus {
        /// What was asked for.
        asked: f64,
        /// Processors of this machine.
        processors: u32,
    },
    /// Processes and threads.
    #[error("pids limit of {0}: must be 1 to {PIDS_MAX}")]
    Pids(u32),
}

/// Whether `limits` are in range on a machine with this many processors.
pub fn check(limits: &Limits, processors: u32) -> std::result::Result<(), BadLimit> {
    if let Some(bytes) = limits.memory
        && !(MEMORY_MIN..=MEMORY_MAX).contains(&bytes)
    {
        return Err(BadLimit::Memory(bytes));
    }
    if let Some(asked) = limits.cpus
        && !(CPU_MIN..=f64::from(processors)).contains(&asked)
    {
        return Err(BadLimit::Cpus { asked, processors });
    }
    match limits.pids {
        Some(pids) if !(1..=PIDS_MAX).contains(&pids) => Err(BadLimit::Pids(pids)),
        _ => Ok(()),
    }
}

/// Processors that are online. Not the server's own affinity or quota: that is no property of
/// the sandboxes.
pub(super) fn processors() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_cpus(online.trim()).unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
    })
}

/// Counts a list such as `0-3,8` (`Documentation/admin-guide/cputopology.rst`).
fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Sets the limits of a group just made; what is not asked for has the kernel's default, "no
/// limit", but for pids.
pub(super) fn set(group: &Group, limits: &Limits) -> Result<()> {
    if limits.memory.is_some()
        && let Some(dir) = group.dir(Controller::Memory)
    {
        set_memory(dir, limits.memory)?;
    }
    if limits.cpus.is_some()
        && let Some(dir) = group.dir(Controller::Cpu)
    {
        set_cpus(dir, limits.cpus)?;
    }
    set_pids(group, limits.pids)
}

/// Sets the limits of a group that has some already.
pub(super) fn change(group: &Group, limits: &Limits) -> Result<()> {
    if let Some(dir) = group.dir(Controller::Memory) {
        set_memory(dir, limits.memory)?;
    }
    if let Some(dir) = group.dir(Controller::Cpu) {
        set_cpus(dir, limits.cpus)?;
    }
    set_pids(group, limits.pids)
}

fn set_pids(group: &Group, pids: Option<u32>) -> Result<()> {
    match group.dir(Controller::Pids) {
        Some(dir) => file::write(&dir.file("pids.max"), &pids.unwrap_or(DEFAULT_PIDS).to_string()),
        None => Ok(()),
    }
}

/// Swap is not given on top of memory: a limit that only moves the load to the disk protects
/// nobody. `memory.oom.group` stays 0, its default: out of memory ends the process that took
/// it, not the session around it.
fn set_memory(dir: &Dir, bytes: Option<u64>) -> Result<()> {
    let v1_value = bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
    match dir.version {
        Version::V2 => {
            let value = bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
            let swap = if bytes.is_some() { "0" } else { "max" };
            file::write_optional(&dir.file("memory.swap.max"), swap)?;
            file::write(&dir.file("memory.max"), &value)
        }
        Version::V1 => {
            // The kernel holds memory <= memory + swap at every moment, so the order depends on
            // the way the limit moves: down works memory first, up the other way round.
            let memory = dir.file("memory.limit_in_bytes");
            let both = dir.file("memory.memsw.limit_in_bytes");
            match file::write(&memory, &v1_value) {
                Ok(()) => file::write_optional(&both, &v1_value).map(drop),
                Err(error) if error.is_invalid() => {
                    file::write(&both, &v1_value)?;
                    file::write(&memory, &v1_value)
                }
                Err(error) => Err(error),
            }
        }
    }
}

fn set_cpus(dir: &Dir, cpus: Option<f64>) -> Result<()> {
    let quota = cpus.map(|cpus| (cpus * PERIOD_US as f64).round() as u64);
    match dir.version {
        Version::V2 => {
            let quota = quota.map_or("max".to_owned(), |us| us.to_string());
            file::write(&dir.file("cpu.max"), &format!("{quota} {PERIOD_US}"))
        }
        // The period of a new v1 group is the wanted one already.
        Version::V1 => {
            let quota = quota.map_or("-1".to_owned(), |us| us.to_string());
            file::write(&dir.file("cpu.cfs_quota_us"), &quota)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(bytes: u64) -> Limits {
        Limits { memory: Some(bytes), ..Limits::default() }
    }

    fn cpus(cpus: f64) -> Limits {
        Limits { cpus: Some(cpus), ..Limits::default() }
    }

    fn pids(pids: u32) -> Limits {
        Limits { pids: Some(pids), ..Limits::default() }
    }

    #[test]
    fn limits_at_the_edges_of_their_ranges_pass() {
        let edges = [memory(4 << 20), memory(1 << 50), cpus(0.01), cpus(2.0), pids(1)];
        for limits in edges.into_iter().chain([pids(PIDS_MAX), Limits::default()]) {
            assert_eq!(check(&limits, 2), Ok(()), "{limits:?}");
        }
    }

    #[test]
    fn limits_out_of_range_are_refused_with_value_and_range() {
        let text = |limits| check(&limits, 2).unwrap_err().to_string();
        assert_eq!(
            text(memory((4 << 20) - 1)),
            "memory limit of 4194303 bytes: must be 4194304 (4 MiB) to 1125899906842624 (1 PiB)"
        );
        assert_eq!(text(cpus(2.5)), "cpu limit of 2.5: must be 0.01 to 2, the processors here");
        assert_eq!(text(pids(0)), "pids limit of 0: must be 1 to 4194304");
        for bad in [0.0, -1.0, 0.009, f64::NAN, f64::INFINITY] {
            assert!(matches!(check(&cpus(bad), 2), Err(BadLimit::Cpus { .. })), "{bad}");
        }
        assert!(check(&memory(u64::MAX), 2).is_err());
        assert!(check(&pids(u32::MAX), 2).is_err());
    }

    #[test]
    fn processors_are_counted_over_ranges_and_gaps() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        for bad in ["", "a", "3-1", "0-4294967295", "1,"] {
            assert_eq!(count_cpus(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_share_in_range_gives_a_quota_the_kernel_takes(share in CPU_MIN..64.0f64) {
            prop_assert_eq!(check(&cpus(share), 64), Ok(()));
            prop_assert!((share * PERIOD_US as f64).round() as u64 >= 1000);
        }

        #[test]
        fn no_list_of_processors_panics(list in "[-0-9,a ]{0,40}") {
            count_cpus(&list);
        }
    }
}
