//! What processes hold of the machine's memory, as `/proc` tells it (`proc_pid_smaps(5)`).

use std::fs;

use crate::error::Error;

/// Memory of one or more processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// `Pss`: all that is mapped and present; what processes share counts as a part for each.
    pub(super) resident: f64,
    /// `Private_*`: what would be free without them.
    pub(super) private: f64,
}

/// The sum over processes; one that has just ended counts nothing.
pub(super) fn of_all(processes: &[u32]) -> Result<Memory, Error> {
    let mut sum = Memory::default();
    for process in processes {
        let path = format!("/proc/{process}/smaps_rollup");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let one = parse(&text);
                sum.resident += one.resident;
                sum.private += one.private;
            }
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("read {path}"), e)),
        }
    }
    Ok(sum)
}

fn parse(text: &str) -> Memory {
    let mut memory = Memory::default();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let kibibytes = rest.trim().strip_suffix(" kB").and_then(|n| n.parse::<f64>().ok());
        let Some(kibibytes) = kibibytes else { continue };
        match name {
            "Pss" => memory.resident += kibibytes * 1024.0,
            _ if name.starts_with("Private_") => memory.private += kibibytes * 1024.0,
            _ => {}
        }
    }
    memory
}

/// Children of a process with one thread or more.
pub(super) fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A process and all below it.
pub(super) fn tree(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let mut next = 0;
    while let Some(&parent) = all.get(next) {
        all.extend(children(parent));
        next += 1;
    }
    all
}

/// `MemAvailable` of the whole machine, in bytes.
pub(super) fn available() -> Result<f64, Error> {
    let text =
        fs::read_to_string("/proc/meminfo").map_err(|e| Error::io("read /proc/meminfo", e))?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes =
        value.and_then(|v| v.trim().strip_suffix(" kB")).and_then(|n| n.parse::<f64>().ok());
    kibibytes
        .map(|n| n * 1024.0)
        .ok_or_else(|| Error::Protocol("/proc/meminfo without MemAvailable".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_the_sum_of_all_private_lines() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 100 kB\nPss: 9 kB\n\
                    Private_Clean: 1 kB\nPrivate_Dirty: 2 kB\nPrivate_Hugetlb: 4 kB\n";
        let memory = parse(text);
        assert_eq!((memory.resident, memory.private), (9.0 * 1024.0, 7.0 * 1024.0));
    }

    #[test]
    fn this_process_holds_memory_and_its_tree_holds_its_child() {
        let own = std::process::id();
        assert!(of_all(&[own]).unwrap().private > 0.0);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = tree(own).contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }
}
