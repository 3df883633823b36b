//! The groups of one sandbox.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::{Controller, Error, Result, Seat, Version, file};

/// Moving a whole group follows its processes as they fork; after so many rounds they fork
/// faster than we move.
const ROUNDS: usize = 64;

/// The groups of one sandbox, one directory in each hierarchy it needs.
///
/// It holds no descriptor, and can be stored: the next server goes on with it. Its methods need
/// nothing but its paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    name: String,
    pub(super) dirs: Vec<Dir>,
}

/// A group's directory in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir {
    pub(super) version: Version,
    pub(super) controllers: Vec<Controller>,
    pub(super) path: PathBuf,
}

impl Group {
    pub(super) fn new(name: String) -> Self {
        Self { name, dirs: Vec::new() }
    }

    /// The name of its directories: the sandbox's id, and a generation if it is not the first.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directories, v2 first; none where the host offers nothing.
    pub fn dirs(&self) -> &[Dir] {
        &self.dirs
    }

    /// Makes its directory below a base group.
    pub(super) fn make_dir(&mut self, seat: &Seat) -> Result<()> {
        let dir = self.dir_in(seat);
        file::mkdir(&dir.path)?;
        self.dirs.push(dir);
        Ok(())
    }

    /// Takes its directory below a base group if there is one.
    pub(super) fn find_dir(&mut self, seat: &Seat) {
        let dir = self.dir_in(seat);
        if dir.path.is_dir() {
            self.dirs.push(dir);
        }
    }

    fn dir_in(&self, seat: &Seat) -> Dir {
        Dir {
            version: seat.version,
            controllers: seat.controllers.clone(),
            path: seat.base.join(&self.name),
        }
    }

    pub(super) fn dir(&self, controller: Controller) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.controllers.contains(&controller))
    }

    pub(super) fn unified(&self) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.version == Version::V2)
    }

    /// Puts a process with all its threads into the group, and so whatever it starts from then
    /// on. `pid` is as this process sees it. Memory it has already stays where it is accounted.
    pub fn attach(&self, pid: u32) -> Result<()> {
        self.dirs.iter().try_for_each(|dir| dir.attach(pid))
    }

    /// As [`Group::attach`], for a process that clone3(2) put into the v2 group already, with
    /// [`Group::dir_fd`] and `CLONE_INTO_CGROUP`: only v1 is left to do, on pure v2 nothing.
    pub fn attach_cloned(&self, pid: u32) -> Result<()> {
        self.dirs
            .iter()
            .filter(|dir| dir.version == Version::V1)
            .try_for_each(|dir| dir.attach(pid))
    }

    /// The v2 directory for `CLONE_INTO_CGROUP`; `None` where there is no v2. A process cloned
    /// into a group after [`Group::kill`] dies at once.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>> {
        let open = |dir: &Dir| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, &dir.path, flags, Mode::empty())
                .map_err(|errno| Error::call("open", &dir.path, errno))
        };
        self.unified().map(open).transpose()
    }

    /// Whether any process is in it, zombies not counted; `false` when it is gone.
    pub fn populated(&self) -> Result<bool> {
        for dir in &self.dirs {
            let some = match dir.version {
                Version::V2 => file::keyed(&dir.file("cgroup.events"), "populated").map(|n| n > 0),
                Version::V1 => file::procs(&dir.path).map(|pids| !pids.is_empty()),
            };
            match some {
                Ok(false) => {}
                Err(error) if error.is_gone() => {}
                done => return done,
            }
        }
        Ok(false)
    }

    /// Moves into the directory made last what is in the others.
    pub(super) fn fill_last_dir(&self) -> Result<()> {
        let (Some(last), Some(first)) = (self.dirs.last(), self.dirs.first()) else {
            return Ok(());
        };
        for _ in 0..ROUNDS {
            let there = file::procs(&last.path)?;
            let mut missing = file::procs(&first.path)?;
            missing.retain(|pid| !there.contains(pid));
            if missing.is_empty() {
                return Ok(());
            }
            for pid in missing {
                match last.attach(pid) {
                    Err(error) if !error.is_no_process() => return Err(error),
                    _ => {}
                }
            }
        }
        let pids = file::named(file::procs(&first.path)?);
        Err(Error::Busy { what: "move", path: first.path.clone(), pids })
    }
}

impl Dir {
    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Which interface it has.
    pub fn version(&self) -> Version {
        self.version
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn attach(&self, pid: u32) -> Result<()> {
        file::write(&self.file("cgroup.procs"), &pid.to_string())
    }
}
