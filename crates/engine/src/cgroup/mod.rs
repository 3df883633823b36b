//! Limits and accounting of sandboxes by control groups: v2, v1, and the hybrid of both.
//!
//! A server finds with [`Cgroups::detect`] which hierarchy serves memory, cpu and pids, and
//! makes one base group, `forkyard-<tag>`, below the group it runs in, in every hierarchy it
//! will use. Each sandbox gets a [`Group`] below that: one directory in each of these
//! hierarchies, made before its init exists and removed after its last process.
//!
//! ```no_run
//! use forkyard_engine::cgroup::Cgroups;
//! use forkyard_engine::model::Limits;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cgroups = Cgroups::detect("default")?;
//! let limits = Limits { memory: Some(256 << 20), ..Limits::default() };
//! let group = cgroups.create(&"0123456789ab".parse()?, &limits)?;
//! group.attach(4711)?;
//! println!("{:?}", group.usage());
//! group.kill()?;
//! group.remove(std::time::Duration::from_secs(1))?;
//! # Ok(())
//! # }
//! ```
//!
//! What the host does not offer is kept as a list of [`Lack`]s, each with a hint. Sandboxes run
//! without it: figures of [`Usage`](crate::model::Usage) are `None`, the default limit on pids
//! is not set, and a limit that was asked for is refused when the sandbox is created, never
//! dropped in silence. With no cgroups at all only `RLIMIT_NPROC` could bound processes; it
//! counts by user, not by sandbox, and is not used.
//!
//! All calls are synchronous and short (a handful of writes to a kernel file system), except
//! where a doc says that it waits, and for how long at most.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/` of the kernel, cgroups(7),
//! and systemd's `CGROUP_DELEGATION`.

mod claim;
mod end;
mod error;
mod file;
mod group;
mod layout;
mod limits;
mod survey;
mod usage;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Limits, SandboxId};

pub use error::{Error, Lack, Reason, Result};
pub use group::{Dir, Group};
pub use limits::{BadLimit, CPU_MIN, DEFAULT_PIDS, MEMORY_MAX, MEMORY_MIN, PIDS_MAX, check};
pub use survey::{Place, Survey, Tenure};

/// A killed group may linger while its processes die; after so many generations of one
/// sandbox something else is wrong.
const GENERATIONS: u32 = 16;

/// How long [`Cgroups::sweep`] waits for the processes of one group to die: a process that
/// frees gigabytes needs a while, one in uninterruptible sleep may need for ever.
const SWEEP_WAIT: Duration = Duration::from_secs(2);

/// What a hierarchy can do for a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Bounds and counts memory.
    Memory,
    /// Bounds processor time.
    Cpu,
    /// Counts processor time; v1 only, in v2 every group counts it.
    CpuAcct,
    /// Bounds and counts processes and threads.
    Pids,
    /// Stops processes; v1 only, in v2 every group can.
    Freezer,
}

/// Which interface a hierarchy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One of the separate hierarchies, each with some controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The control groups that a server may use for its sandboxes.
#[derive(Debug)]
pub struct Cgroups {
    /// Hierarchies with our base group in them, v2 first.
    seats: Vec<Seat>,
    lacks: Vec<Lack>,
    processors: u32,
}

/// A base group, and what it does for the groups below.
#[derive(Debug)]
pub(crate) struct Seat {
    version: Version,
    controllers: Vec<Controller>,
    base: PathBuf,
}

/// A group that nobody owned, and what became of it.
#[derive(Debug)]
pub struct Swept {
    /// The group's name: a sandbox id, perhaps with a generation.
    pub name: String,
    /// Why it could not be removed; `None` when it is gone.
    pub error: Option<Error>,
}

impl Cgroups {
    /// Looks at the host and makes the base groups `forkyard-<tag>`; `tag` tells servers on one
    /// host apart: 1 to 64 characters of `[a-zA-Z0-9_-]`.
    ///
    /// To be called before the server starts other processes: where v2 has controllers, a group
    /// with processes cannot hand them on, so this process moves into a leaf beside the base
    /// group, and so do others if the group was delegated (see [`Tenure`]).
    ///
    /// Fails when `tag` is bad or /proc cannot be read; whatever the host does not offer is in
    /// [`Cgroups::lacks`] instead.
    pub fn detect(tag: &str) -> Result<Self> {
        Self::claim(Survey::take()?, tag)
    }

    /// As [`Cgroups::detect`], from a survey already made.
    pub fn claim(survey: Survey, tag: &str) -> Result<Self> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if tag.is_empty() || tag.len() > 64 || !tag.bytes().all(fits) {
            return Err(Error::BadTag(tag.to_owned()));
        }
        let (seats, lacks) = claim::claim(survey, &format!("forkyard-{tag}"));
        Ok(Self { seats, lacks, processors: limits::processors() })
    }

    /// What sandboxes do without on this host, and what to do about it.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }

    /// Which interface serves `controller`; `None` when nothing does.
    pub fn offers(&self, controller: Controller) -> Option<Version> {
        self.seat(controller).map(|seat| seat.version)
    }

    /// Whether a sandbox can be given `limits`: in range, and enforceable here.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        check(limits, self.processors)?;
        let wanted = [
            (limits.memory.is_some(), Controller::Memory),
            (limits.cpus.is_some(), Controller::Cpu),
            (limits.pids.is_some(), Controller::Pids),
        ];
        for (_, controller) in wanted.into_iter().filter(|(asked, _)| *asked) {
            if self.seat(controller).is_none() {
                return Err(Error::Lacking(self.lack(controller)));
            }
        }
        Ok(())
    }

    /// Makes the groups of a sandbox with its limits set, nothing in them yet.
    ///
    /// Nothing is left behind when it fails. A group that is still there from before, killed
    /// perhaps, is never used again: the new one gets the next generation as a suffix.
    pub fn create(&self, id: &SandboxId, limits: &Limits) -> Result<Group> {
        self.check(limits)?;
        for generation in 1..=GENERATIONS {
            let name = match generation {
                1 => id.to_string(),
                n => format!("{id}.{n}"),
            };
            let mut group = Group::new(name);
            let made = self
                .seats
                .iter()
                .filter(|seat| self.needed(seat, limits))
                .try_for_each(|seat| group.make_dir(seat))
                .and_then(|()| limits::set(&group, limits));
            match made {
                Ok(()) => return Ok(group),
                Err(error) => {
                    // The error that is told is the first; the sweep removes what stays.
                    let _ = group.try_remove();
                    if !error.is_exists() {
                        return Err(error);
                    }
                }
            }
        }
        Err(Error::Generations { id: id.clone(), count: GENERATIONS })
    }

    /// Changes the limits of a sandbox that runs; `None` lifts a limit. The group may gain a
    /// directory by it, so it is to be stored again, also after an error.
    ///
    /// Lowering memory below what is in use makes the kernel reclaim first; what it cannot
    /// reclaim it kills for (v2) or refuses with EBUSY (v1).
    pub fn update(&self, group: &mut Group, limits: &Limits) -> Result<()> {
        self.check(limits)?;
        if limits.cpus.is_some()
            && group.dir(Controller::Cpu).is_none()
            && let Some(seat) = self.seat(Controller::Cpu)
        {
            group.make_dir(seat)?;
            group.fill_last_dir()?;
        }
        limits::change(group, limits)
    }

    /// Kills and removes every group of our base that is not named in `keep`, as a crash leaves
    /// them; names are [`Group::name`]s. Waits up to two seconds for each that has processes.
    pub fn sweep(&self, keep: &BTreeSet<&str>) -> Result<Vec<Swept>> {
        let mut names = BTreeSet::new();
        for seat in &self.seats {
            names.extend(file::subdirs(&seat.base)?);
        }
        let mut swept = Vec::new();
        for name in names.into_iter().filter(|name| !keep.contains(name.as_str())) {
            let mut group = Group::new(name.clone());
            for seat in &self.seats {
                group.find_dir(seat);
            }
            let done = group.kill_everywhere().and_then(|()| group.remove(SWEEP_WAIT));
            swept.push(Swept { name, error: done.err() });
        }
        Ok(swept)
    }

    /// Removes the base groups that hold no sandbox any more; others stay, for the next server.
    pub fn retire(&self) -> Result<()> {
        for seat in &self.seats {
            match file::rmdir(&seat.base) {
                Err(error) if !(error.is_busy() || error.is_gone()) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn seat(&self, controller: Controller) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.controllers.contains(&controller))
    }

    /// A v1 directory costs some 50 µs over a sandbox's life, so those for a cpu limit are made
    /// only when one is asked for, and those that v2 makes superfluous not at all.
    fn needed(&self, seat: &Seat, limits: &Limits) -> bool {
        let unified = self.seats.iter().any(|seat| seat.version == Version::V2);
        seat.version == Version::V2
            || seat.controllers.iter().any(|controller| match controller {
                Controller::Memory | Controller::Pids => true,
                Controller::Cpu => limits.cpus.is_some(),
                Controller::CpuAcct | Controller::Freezer => !unified,
            })
    }

    fn lack(&self, controller: Controller) -> Lack {
        let known = self.lacks.iter().find(|lack| lack.controller == controller);
        known.cloned().unwrap_or(Lack { controller, reason: Reason::Nowhere })
    }
}

impl Controller {
    /// Those that a limit may be asked of.
    pub(crate) const LIMITING: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// Its name in /proc/self/cgroup, mount options and `cgroup.controllers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Memory, Self::Cpu, Self::CpuAcct, Self::Pids, Self::Freezer]
            .into_iter()
            .find(|controller| controller.name() == name)
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod fake_tests;
