//! Control groups: which hierarchies there are, and what this user may do in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::Serialize;

use super::{Feature, Findings, Mode, read_text};

/// Which hierarchies are mounted; cgroups(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupLayout {
    /// None.
    None,
    /// Version 2 alone.
    V2,
    /// Version 1 alone.
    V1,
    /// Controllers in version 1, beside a version 2 hierarchy.
    Hybrid,
}

/// The control groups of this process.
#[derive(Clone, Debug, Serialize)]
pub struct Cgroups {
    /// Which hierarchies are mounted.
    pub layout: CgroupLayout,
    /// This process's directory in version 2.
    pub v2: Option<PathBuf>,
    /// Controllers that version 2 offers there.
    pub v2_controllers: Vec<String>,
    /// This process's directory in version 1, by controller.
    pub v1: BTreeMap<String, PathBuf>,
    /// Those of memory, cpu and pids that this user can set limits with, in either version.
    pub usable: Vec<String>,
}

/// The controllers that limits need.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];

pub(super) fn probe(found: &mut Findings, mode: Mode) -> Cgroups {
    let mounts = read_text("/proc/self/mountinfo").unwrap_or_default();
    let own = read_text("/proc/self/cgroup").unwrap_or_default();
    let mut cgroups = parse(&mounts, &own);
    if let Some(directory) = &cgroups.v2 {
        let text = read_text(directory.join("cgroup.controllers")).unwrap_or_default();
        cgroups.v2_controllers = text.split_whitespace().map(str::to_owned).collect();
    }
    let usable = |controller: &str| {
        let in_v2 = cgroups.v2_controllers.iter().any(|name| name == controller);
        let v2 = cgroups.v2.as_deref().filter(|_| in_v2);
        v2.is_some_and(is_delegated)
            || cgroups.v1.get(controller).is_some_and(|directory| is_writable(directory))
    };
    cgroups.usable = NEEDED.into_iter().filter(|name| usable(name)).map(str::to_owned).collect();
    report(found, &cgroups, mode);
    cgroups
}

fn report(found: &mut Findings, cgroups: &Cgroups, mode: Mode) {
    let v2 = cgroups.v2_controllers.join(" ");
    let v1: Vec<&str> = cgroups.v1.keys().map(String::as_str).collect();
    let v1 = v1.join(" ");
    match cgroups.layout {
        CgroupLayout::None => {
            let remedy = "mount -t cgroup2 none /sys/fs/cgroup";
            found.absent(Feature::Cgroups, "no hierarchy is mounted", Some(remedy));
        }
        CgroupLayout::V2 => found.present(Feature::Cgroups, format!("v2: {v2}")),
        CgroupLayout::V1 => found.present(Feature::Cgroups, format!("v1: {v1}")),
        CgroupLayout::Hybrid => {
            let v2 = if v2.is_empty() { "no controllers" } else { &v2 };
            found.present(Feature::Cgroups, format!("hybrid: v1: {v1}; v2: {v2}"));
        }
    }
    let lacking: Vec<&str> =
        NEEDED.into_iter().filter(|name| !cgroups.usable.iter().any(|had| had == name)).collect();
    if lacking.is_empty() {
        found.present(Feature::CgroupWritable, NEEDED.join(" "));
    } else {
        let remedy = match (mode, cgroups.layout) {
            (_, CgroupLayout::None) => None,
            (Mode::Root, _) => Some("run outside of a container, or mount its cgroups writable"),
            (_, CgroupLayout::V2) => Some(
                "systemd-run --user --scope -p Delegate=yes forkyard serve, or Delegate=yes in \
                 its service (docs/host-setup.md)",
            ),
            _ => Some("boot with systemd.unified_cgroup_hierarchy=1, then delegate"),
        };
        let detail = format!("not for this user: {}", lacking.join(" "));
        found.absent(Feature::CgroupWritable, detail, remedy);
    }
    let kill = cgroups.v2.as_ref().map(|directory| {
        // The root of a hierarchy has no such file; a child of it would.
        directory.join("cgroup.kill").exists() || !directory.join("cgroup.type").exists()
    });
    match kill {
        Some(true) => found.present(Feature::CgroupKill, "works"),
        _ => found.absent(Feature::CgroupKill, "no version 2 hierarchy", None),
    }
    match std::fs::read("/proc/pressure/memory") {
        Ok(_) => found.present(Feature::Pressure, "works"),
        Err(error) => {
            found.absent(Feature::Pressure, error.to_string(), Some("boot with psi=1"));
        }
    }
}

/// Whether groups can be made below a version 2 directory, and processes moved into them.
fn is_delegated(directory: &Path) -> bool {
    let files = ["cgroup.procs", "cgroup.subtree_control"].map(|name| directory.join(name));
    is_writable(directory) && files.iter().all(|file| is_writable(file))
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}

/// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`; proc(5), cgroups(7).
fn parse(mounts: &str, own: &str) -> Cgroups {
    let mut v2 = None;
    let mut v1 = BTreeMap::new();
    for line in mounts.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (mount.next(), mount.next()) else { continue };
        let mut kind = kind.split(' ');
        match kind.next() {
            Some("cgroup2") => {
                let path = own.lines().find_map(|line| line.strip_prefix("0::"));
                v2 = v2.or_else(|| Some(below(point, root, path?)));
            }
            Some("cgroup") => {
                for (names, path) in own.lines().filter_map(controllers) {
                    let options = kind.clone().nth(1).unwrap_or_default();
                    let here = names.split(',').all(|name| options.split(',').any(|o| o == name));
                    for name in names.split(',').filter(|name| here && !name.contains('=')) {
                        let directory = below(point, root, path);
                        v1.entry(name.to_owned()).or_insert(directory);
                    }
                }
            }
            _ => {}
        }
    }
    let layout = match (&v2, v1.is_empty()) {
        (None, true) => CgroupLayout::None,
        (Some(_), true) => CgroupLayout::V2,
        (None, false) => CgroupLayout::V1,
        (Some(_), false) => CgroupLayout::Hybrid,
    };
    Cgroups { layout, v2, v2_controllers: Vec::new(), v1, usable: Vec::new() }
}

/// Controllers and path of a version 1 line, `4:memory:/a/b`.
fn controllers(line: &str) -> Option<(&str, &str)> {
    let (names, path) = line.split_once(':')?.1.split_once(':')?;
    (!names.is_empty()).then_some((names, path))
}

/// Where a group's path is, seen through a mount that shows the hierarchy from `root` on.
fn below(point: &str, root: &str, path: &str) -> PathBuf {
    let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Path::new(point).join(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_layout_gives_each_controller_its_directory() {
        let mounts = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:name=systemd:/\n0::/c\n";
        let cgroups = parse(mounts, own);
        assert_eq!(cgroups.layout, CgroupLayout::Hybrid);
        assert_eq!(cgroups.v2, Some("/sys/fs/cgroup/unified/c".into()));
        assert_eq!(cgroups.v1["memory"], Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(cgroups.v1["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(cgroups.v1.len(), 3);
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        let mounts = "33 20 0:29 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let cgroups = parse(mounts, "0::/docker/1/sub\n");
        assert_eq!(cgroups.layout, CgroupLayout::V2);
        assert_eq!(cgroups.v2, Some("/sys/fs/cgroup/sub".into()));
    }

    #[test]
    fn no_hierarchy_is_no_layout() {
        assert_eq!(parse("1 0 8:1 / / rw - ext4 /dev/sda rw\n", "").layout, CgroupLayout::None);
    }
}
