//! Where the control groups of a process are, from the texts of /proc alone.
//!
//! `/proc/PID/cgroup` (cgroups(7)) names the process's group in each hierarchy, and
//! `/proc/PID/mountinfo` (proc(5)) says which part of which hierarchy is mounted where. Neither
//! is trusted to be whole: a line that makes no sense is skipped.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use super::{Controller, Reason, Version};

/// A process's own group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// The hierarchy's interface.
    pub(super) version: Version,
    /// Its controllers, those this module knows; empty for v2, where the group itself tells.
    pub(super) controllers: Vec<Controller>,
    /// The group's directory, or why it cannot be reached.
    pub(super) dir: Result<PathBuf, Reason>,
    /// Its path in the hierarchy, as this process's cgroup namespace shows it.
    pub(super) path: PathBuf,
}

/// A mount of a cgroup file system.
#[derive(Debug)]
struct Mount {
    /// The group that is mounted, as seen from our cgroup namespace.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    read_only: bool,
    version: Version,
    /// Options of the file system: for v1 its controllers are among them.
    options: Vec<String>,
}

/// The groups of the process with these texts, v2 first; hierarchies without anything that is
/// of use here are left out.
pub(super) fn own_groups(mountinfo: &[u8], membership: &[u8]) -> Vec<Own> {
    let mounts: Vec<Mount> = lines(mountinfo).filter_map(mount).collect();
    let mut owns: Vec<Own> =
        lines(membership).filter_map(|line| own_group(&mounts, line)).collect();
    owns.sort_by_key(|own| own.version != Version::V2);
    owns
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// `HIERARCHY:CONTROLLERS:PATH`; v2 is `0::PATH`.
fn own_group(mounts: &[Mount], line: &[u8]) -> Option<Own> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let hierarchy = fields.next()?;
    let names = std::str::from_utf8(fields.next()?).ok()?;
    let path = to_path(fields.next()?.to_vec());
    let version = if hierarchy == b"0" && names.is_empty() { Version::V2 } else { Version::V1 };
    let controllers: Vec<Controller> = names.split(',').filter_map(Controller::from_name).collect();
    if version == Version::V1 && controllers.is_empty() {
        return None;
    }
    let serves = |mount: &&Mount| {
        mount.version == version
            && controllers.iter().all(|c| mount.options.iter().any(|option| option == c.name()))
    };
    let candidates: Vec<&Mount> = mounts.iter().filter(serves).collect();
    Some(Own { version, controllers, dir: locate(&candidates, &path), path })
}

/// The directory of the group `path`. A writable mount is preferred, and the latest of several,
/// which covers the earlier ones at the same place.
fn locate(mounts: &[&Mount], path: &Path) -> Result<PathBuf, Reason> {
    if mounts.is_empty() {
        return Err(Reason::Nowhere);
    }
    let reached = |mount: &&Mount| Some((mount.read_only, below(mount, path)?));
    let found: Vec<(bool, PathBuf)> = mounts.iter().rev().filter_map(reached).collect();
    match found.iter().find(|(read_only, _)| !read_only).or(found.first()) {
        None => Err(Reason::OutOfSight),
        Some((true, dir)) => Err(Reason::ReadOnly(dir.clone())),
        Some((false, dir)) => Ok(dir.clone()),
    }
}

/// A path with `..` leads out of our cgroup namespace, by names that nobody tells us.
fn below(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(&mount.root).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| if rest == Path::new("") { mount.point.clone() } else { mount.point.join(rest) })
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG]... - TYPE SOURCE SUPER_OPTIONS`.
fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let version = match *fields.get(dash + 1)? {
        b"cgroup2" => Version::V2,
        b"cgroup" => Version::V1,
        _ => return None,
    };
    let options = |field: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
    };
    let super_options = options(fields.get(dash + 3)?);
    let read_only = options(fields.get(5)?).iter().chain(&super_options).any(|o| o == "ro");
    let root = to_path(unescape(fields.get(3)?));
    let point = to_path(unescape(fields.get(4)?));
    (root.is_absolute() && point.is_absolute()).then_some(Mount {
        root,
        point,
        read_only,
        version,
        options: super_options,
    })
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// Spaces, tabs, newlines and backslashes of paths are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        match (first, tail.get(..3)) {
            (b'\\', Some(digits)) if digits.iter().all(octal) => {
                let value = digits.iter().fold(0u32, |sum, b| sum * 8 + u32::from(b - b'0'));
                bytes.push(value as u8);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
