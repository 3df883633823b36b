//! What the host offers for limits and accounting, found without touching anything.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat, getxattr};
use rustix::io::Errno;

use super::layout;
use super::{Controller, Lack, Reason, Result, Version, file};

/// The leaf that a server moves into, beside its base group. A server that finds itself in one
/// (started by a process that was moved along, or by systemd's `DelegateSubgroup=`) makes its
/// base group beside it again.
pub(super) const SERVER_LEAF: &str = "forkyard-server";

/// The places where groups can be made, and what is not to be had.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Our own group in each hierarchy that is of use and that we may write to, v2 first.
    pub places: Vec<Place>,
    /// Limits that nothing here can enforce.
    pub lacks: Vec<Lack>,
}

/// Our own group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The hierarchy's interface.
    pub version: Version,
    /// What it could do for groups below; v2 counts processor time even with none.
    pub controllers: Vec<Controller>,
    /// The group's directory.
    pub dir: PathBuf,
    /// What we may do with the processes in it.
    pub tenure: Tenure,
}

/// By which right a group is ours. It decides whether its processes may be moved into a leaf,
/// which v2 asks for before controllers are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// Nothing needs to move: v1, and the true root of v2, may have processes and groups.
    Free,
    /// systemd marked it as delegated: all that is in it is ours to arrange.
    Delegated,
    /// The root of a cgroup namespace, such as a container's: likewise.
    NamespaceRoot,
    /// We may write to it, but others may count on their processes being there: only our own
    /// process is moved.
    Borrowed,
}

impl Survey {
    /// Looks at the groups of this process. Fails only when /proc cannot be read.
    pub fn take() -> Result<Self> {
        let mountinfo = file::read(Path::new("/proc/self/mountinfo"))?;
        let membership = file::read(Path::new("/proc/self/cgroup"))?;
        Ok(Self::of(mountinfo.as_bytes(), membership.as_bytes()))
    }

    /// As [`Survey::take`] for the texts of /proc/PID/mountinfo and /proc/PID/cgroup.
    pub(super) fn of(mountinfo: &[u8], membership: &[u8]) -> Self {
        let mut survey = Self { places: Vec::new(), lacks: Vec::new() };
        // v1 controllers are named by /proc even where they cannot be reached; those of v2 only
        // by its groups. So what is left at the end is lacking for v2's reason.
        let mut reason = Reason::Nowhere;
        for own in layout::own_groups(mountinfo, membership) {
            match (own.version, own.dir) {
                (Version::V1, dir) => survey.look_at_v1(own.controllers, dir),
                (Version::V2, Ok(dir)) => reason = survey.look_at_v2(dir, &own.path),
                (Version::V2, Err(why)) => reason = why,
            }
        }
        for controller in Controller::LIMITING {
            let served = survey.places.iter().any(|place| place.controllers.contains(&controller));
            if !served && !survey.lacks.iter().any(|lack| lack.controller == controller) {
                survey.lacks.push(Lack { controller, reason: reason.clone() });
            }
        }
        survey
    }

    fn look_at_v1(&mut self, controllers: Vec<Controller>, dir: Looked<PathBuf>) {
        match dir.and_then(|dir| writable(&dir, &[]).map(|()| dir)) {
            Ok(dir) => self.places.push(Place {
                version: Version::V1,
                controllers,
                dir,
                tenure: Tenure::Free,
            }),
            Err(reason) => self.lack(&controllers, &reason),
        }
    }

    /// Returns why controllers that are not found anywhere else are lacking.
    fn look_at_v2(&mut self, mut dir: PathBuf, mut path: &Path) -> Reason {
        if path.file_name().is_some_and(|name| name == SERVER_LEAF)
            && let (true, Some(parent)) = (dir.pop(), path.parent())
        {
            path = parent;
        }
        let kind = file::read(&dir.join("cgroup.type")).ok();
        let usable = match kind.as_deref().map(str::trim) {
            None | Some("domain") => writable(&dir, &["cgroup.procs", "cgroup.subtree_control"]),
            Some(_) => Err(Reason::Threaded(dir.clone())),
        };
        let controllers = limiting(&dir.join("cgroup.controllers"));
        let missing = match kind {
            Some(_) => Reason::NotHandedDown(dir.clone()),
            None => Reason::Nowhere,
        };
        match usable {
            Ok(()) => {
                let tenure = match kind {
                    None => Tenure::Free,
                    Some(_) if delegated(&dir) => Tenure::Delegated,
                    Some(_) if path == Path::new("/") => Tenure::NamespaceRoot,
                    Some(_) => Tenure::Borrowed,
                };
                self.places.push(Place { version: Version::V2, controllers, dir, tenure });
            }
            Err(reason) => self.lack(&controllers, &reason),
        }
        missing
    }

    fn lack(&mut self, controllers: &[Controller], reason: &Reason) {
        for &controller in controllers.iter().filter(|c| Controller::LIMITING.contains(c)) {
            self.lacks.push(Lack { controller, reason: reason.clone() });
        }
    }
}

/// What a look at one group found.
type Looked<T> = std::result::Result<T, Reason>;

/// The controllers of use that a v2 file such as `cgroup.controllers` lists.
pub(super) fn limiting(path: &Path) -> Vec<Controller> {
    let names = file::read(path).unwrap_or_default();
    let known = names.split_whitespace().filter_map(Controller::from_name);
    known.filter(|controller| Controller::LIMITING.contains(controller)).collect()
}

/// Whether we may make groups in `dir` and write these files of it.
fn writable(dir: &Path, files: &[&str]) -> Looked<()> {
    let paths = std::iter::once(dir.to_owned()).chain(files.iter().map(|name| dir.join(name)));
    for path in paths {
        match accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS) {
            Ok(()) => {}
            Err(Errno::ACCESS | Errno::PERM) => return Err(Reason::NotOurs(dir.to_owned())),
            Err(Errno::ROFS) => return Err(Reason::ReadOnly(dir.to_owned())),
            Err(Errno::NOENT) => return Err(Reason::OutOfSight),
            Err(errno) => {
                return Err(Reason::Failed(format!("access {}: {errno}", path.display())));
            }
        }
    }
    Ok(())
}

/// systemd marks what it delegates with an extended attribute: `user.delegate` since 251,
/// `trusted.delegate`, which only root may read, before.
fn delegated(dir: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0u8; 8];
        matches!(getxattr(dir, name, &mut value), Ok(length) if value.get(..length) == Some(b"1"))
    })
}
