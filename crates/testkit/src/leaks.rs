//! What is left behind: processes, mounts, cgroups and files that bear a marker.
//!
//! A marker is text that occurs in nothing else: the path of a store, or `forkyard` for all there
//! is. Sources: proc(5), cgroups(7).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Something that should be gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leak {
    /// A process that is no zombie.
    Process {
        /// Which.
        process: Process,
        /// Its command line; its name in brackets where it has none.
        command: String,
    },
    /// A mount.
    Mount {
        /// Its line in `mountinfo`, without ids.
        line: String,
        /// A process that sees it.
        pid: u32,
    },
    /// A directory of a cgroup hierarchy.
    Cgroup(PathBuf),
    /// A file or directory.
    File(PathBuf),
}

/// A process, told apart from later ones of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number as this process sees it.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// What bore a marker at one moment.
#[derive(Clone, Debug)]
pub struct Leaks {
    marker: String,
    known: BTreeSet<Leak>,
}

impl Leaks {
    /// Notes what bears `marker` now.
    pub fn before(marker: impl Into<String>) -> Self {
        let marker = marker.into();
        let known = all(&marker);
        Self { marker, known }
    }

    /// What bears the marker now and did not then. Call it again for as long as something is still
    /// allowed to end, as [`wait_for`](crate::wait_for) does.
    pub fn after(&self) -> Vec<Leak> {
        all(&self.marker).difference(&self.known).cloned().collect()
    }
}

/// Everything that bears `marker`.
fn all(marker: &str) -> BTreeSet<Leak> {
    let mut found: BTreeSet<Leak> = processes(marker).into_iter().map(Leak::process).collect();
    found.extend(mounts(marker));
    found.extend(cgroups(marker).into_iter().map(Leak::Cgroup));
    found.extend(files(marker).into_iter().map(Leak::File));
    found
}

impl Leak {
    /// The leak of a process, with what it runs.
    pub fn process(process: Process) -> Self {
        let proc = PathBuf::from(format!("/proc/{}", process.pid));
        let line = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = if line.is_empty() {
            format!("[{}]", fs::read_to_string(proc.join("comm")).unwrap_or_default().trim())
        } else {
            String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
        };
        Self::Process { process, command }
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { process, command } => write!(f, "process {}: {command}", process.pid),
            Self::Mount { line, pid } => write!(f, "mount seen by process {pid}: {line}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

impl Process {
    /// The process of this number, unless it is gone or a zombie: those hold nothing any more, and
    /// whether somebody reaps them is not ours to decide.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        stat.lives.then_some(Self { pid, start: stat.start })
    }

    /// Whether this very process still runs.
    pub fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// What `/proc/PID/stat` says that matters here.
struct Stat {
    lives: bool,
    parent: u32,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields are counted from the last `)`, since the name before it holds any bytes.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            lives: !matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Numbers of all processes.
fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Processes whose command line or environment contains `marker`.
///
/// The environment of another user's process cannot be read and counts as empty.
pub fn processes(marker: &str) -> BTreeSet<Process> {
    let bears = |pid: u32| {
        ["cmdline", "environ"].iter().any(|file| {
            fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|text| contains(&text, marker))
        })
    };
    pids().into_iter().filter(|pid| bears(*pid)).filter_map(Process::of).collect()
}

/// The namespaces that a process and all below it are in, or that it keeps by a descriptor: links
/// of the form `net:[4026531840]`, as far as we may read them (namespaces(7)).
pub fn namespaces(root: u32) -> BTreeSet<PathBuf> {
    const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let links = |dir: String| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok())
    };
    let below = descendants(root);
    let of_processes = below.iter().map(|process| process.pid).chain([root]);
    of_processes
        .flat_map(|pid| links(format!("/proc/{pid}/ns")))
        .chain(links(format!("/proc/{root}/fd")))
        .filter(|link| {
            let kind = link.to_str().and_then(|link| link.split_once(":["));
            kind.is_some_and(|(kind, _)| KINDS.contains(&kind))
        })
        .collect()
}

/// The processes below `root`, without itself. What was orphaned has left the tree, so note them
/// before their parents end.
pub fn descendants(root: u32) -> BTreeSet<Process> {
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for pid in pids() {
        if let Some(stat) = Stat::read(pid).filter(|stat| stat.lives) {
            children.entry(stat.parent).or_default().push(Process { pid, start: stat.start });
        }
    }
    let mut found = BTreeSet::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        // Taken out, so that numbers that changed hands while we read cannot make a loop.
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.insert(child);
        }
    }
    found
}

/// Mounts that contain `marker` in source, root, target or options, in every mount namespace that
/// a visible process lives in.
pub fn mounts(marker: &str) -> Vec<Leak> {
    let mut namespaces = BTreeSet::new();
    let mut seen = BTreeMap::new();
    for pid in pids() {
        // The link is another user's secret at times; then the namespace is read once a process.
        let known = fs::read_link(format!("/proc/{pid}/ns/mnt"))
            .is_ok_and(|namespace| !namespaces.insert(namespace));
        if known {
            continue;
        }
        let text = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines().filter(|line| line.contains(marker)) {
            seen.entry(without_ids(line)).or_insert(pid);
        }
    }
    seen.into_iter().map(|(line, pid)| Leak::Mount { line, pid }).collect()
}

/// A line of `mountinfo` without mount id, parent id and device, which differ by namespace.
fn without_ids(line: &str) -> String {
    line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned()
}

/// Directories of cgroup hierarchies, v1 and v2, with `marker` in their own name or a name above;
/// of nested ones the uppermost.
pub fn cgroups(marker: &str) -> Vec<PathBuf> {
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut unread: Vec<PathBuf> = mounted.lines().filter_map(cgroup_mount).collect();
    let mut found = Vec::new();
    while let Some(dir) = unread.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(marker) {
                found.push(entry.path());
            } else {
                unread.push(entry.path());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Names of the cgroups that servers made for themselves (`forkyard-TAG`) and that hold `pid`: of
/// nested ones the uppermost, in each hierarchy.
pub fn server_cgroups(pid: u32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter_map(server_cgroup).map(str::to_owned).collect()
}

/// From a line of `/proc/PID/cgroup`: `NUMBER:CONTROLLERS:PATH`.
fn server_cgroup(line: &str) -> Option<&str> {
    line.splitn(3, ':').nth(2)?.split('/').find(|name| name.starts_with("forkyard-"))
}

/// The target of a line of `mountinfo` if it is a cgroup hierarchy.
fn cgroup_mount(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let kind = right.split(' ').next()?;
    matches!(kind, "cgroup" | "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
}

/// Files named with `marker` where temporary things are put: the temporary directory, shared
/// memory, the user's runtime directory.
fn files(marker: &str) -> BTreeSet<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = [Some(std::env::temp_dir()), Some(PathBuf::from("/dev/shm")), runtime];
    let entries = places.into_iter().flatten().flat_map(|place| {
        fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path())
    });
    // The whole path, so that a marker that is itself a path finds its file.
    entries.filter(|path| contains(as_bytes(path), marker)).collect()
}

fn as_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

fn contains(bytes: &[u8], marker: &str) -> bool {
    let marker = marker.as_bytes();
    bytes.windows(marker.len().max(1)).any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::wait_for;

    #[test]
    fn a_process_that_bears_the_marker_is_a_leak_until_it_ends() {
        let marker = "fy-leak-in-environment";
        let leaks = Leaks::before(marker);
        let mut child = Command::new("sleep").arg("60").env("X", marker).spawn().unwrap();
        wait_for("the leak", Duration::from_secs(5), || !leaks.after().is_empty());
        let found = leaks.after();
        assert!(
            matches!(&found[..], [Leak::Process { process, .. }] if process.pid == child.id()),
            "{found:?}"
        );
        child.kill().unwrap();
        // A zombie from here on; it holds nothing.
        wait_for("its end", Duration::from_secs(5), || leaks.after().is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn descendants_are_found_through_generations() {
        // The line read tells that the grandchild is there.
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'sleep 60 & echo ready; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        let family = descendants(child.id());
        assert_eq!(family.len(), 2, "{family:?}");
        assert!(!family.iter().any(|process| process.pid == child.id()));

        child.kill().unwrap();
        child.wait().unwrap();
        for process in &family {
            assert!(process.lives());
            let pid = rustix::process::Pid::from_raw(process.pid as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        wait_for("the orphans' end", Duration::from_secs(5), || {
            !family.iter().any(|process| process.lives())
        });
    }

    #[test]
    fn a_file_left_in_the_temporary_directory_is_a_leak() {
        let marker = format!("fy-leak-file-{}", std::process::id());
        let leaks = Leaks::before(marker.as_str());
        let path = std::env::temp_dir().join(&marker);
        fs::write(&path, "").unwrap();
        assert_eq!(leaks.after(), [Leak::File(path.clone())]);
        fs::remove_file(path).unwrap();
        assert_eq!(leaks.after(), []);
    }

    #[test]
    fn what_was_there_before_is_no_leak() {
        // The file system at `/` and the mount that tells of it.
        let leaks = Leaks::before("proc");
        assert!(!leaks.known.is_empty());
        assert!(!leaks.after().iter().any(|leak| matches!(leak, Leak::Mount { .. })));
    }

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields_of_stat() {
        let text = "7 (a) R 1) S 3 7 7 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 4242 0 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.lives, stat.parent, stat.start), (true, 3, 4242));
        assert!(!Stat::parse(&text.replace(") S", ") Z")).unwrap().lives);
    }

    #[test]
    fn a_servers_own_cgroup_is_the_uppermost_of_its_name() {
        let line = "7:cpu,cpuacct:/user/forkyard-a1/forkyard-server";
        assert_eq!(server_cgroup(line), Some("forkyard-a1"));
        assert_eq!(server_cgroup("0::/user.slice/x:forkyard-/y"), None);
        assert_eq!(server_cgroup("1:name=systemd:/forkyard-b"), Some("forkyard-b"));
    }

    #[test]
    fn hierarchies_of_both_versions_are_recognised() {
        let v1 = "36 25 0:31 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids";
        let v2 = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let none = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw";
        assert_eq!(cgroup_mount(v1), Some(PathBuf::from("/sys/fs/cgroup/pids")));
        assert_eq!(cgroup_mount(v2), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup_mount(none), None);
        assert_eq!(without_ids(none), "/ / rw,relatime - ext4 /dev/root rw");
    }
}
