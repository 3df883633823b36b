//! What can go wrong with control groups, and what a host may lack.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::{BadLimit, Controller};
use crate::model::SandboxId;

/// The result of an operation on control groups.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on control groups failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file of a control group failed.
    #[error("{call} {}: {errno}", path.display())]
    Call {
        /// The call, with the value for a write.
        call: String,
        /// What it was made on.
        path: PathBuf,
        /// What it answered.
        errno: Errno,
    },
    /// A file of a control group does not say what the kernel documents.
    #[error("{}: no {what} in `{text}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// The start of what was there.
        text: String,
    },
    /// A limit is out of range.
    #[error(transparent)]
    BadLimit(#[from] BadLimit),
    /// A limit was asked for that cannot be enforced here.
    #[error("limits need {0}")]
    Lacking(Lack),
    /// A group cannot be removed, frozen or moved, because of what is in it.
    #[error("{what} {}: still there: {}", path.display(), people(pids))]
    Busy {
        /// What was tried: `remove`, `freeze` or `move`.
        what: &'static str,
        /// The group.
        path: PathBuf,
        /// Processes in it; empty when they are past being listed, but not yet gone.
        pids: Vec<(u32, String)>,
    },
    /// A sandbox has too many groups that are still being killed.
    #[error("cgroup of {id}: {count} earlier ones are still there")]
    Generations {
        /// The sandbox.
        id: SandboxId,
        /// How many names were tried.
        count: u32,
    },
    /// A tag that cannot be part of a group's name.
    #[error("`{0}` is not a tag for a cgroup: 1 to 64 characters of a-z, A-Z, 0-9, _ and -")]
    BadTag(String),
}

/// A controller that sandboxes do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Which.
    pub controller: Controller,
    /// Why.
    pub reason: Reason,
}

/// Why a controller cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No mounted hierarchy has it.
    Nowhere,
    /// A hierarchy has it, but our own group is not in any mount of it that we see.
    OutOfSight,
    /// The hierarchy is mounted read-only at this path.
    ReadOnly(PathBuf),
    /// Our own group, this directory, is not ours to write.
    NotOurs(PathBuf),
    /// v2 does not hand the controller down to our own group, this directory.
    NotHandedDown(PathBuf),
    /// Our own group, this directory, is a threaded one, which can hold no sandboxes.
    Threaded(PathBuf),
    /// v2 hands nothing on from a group that has processes, and these are not ours to move.
    Occupied {
        /// Our own group.
        dir: PathBuf,
        /// Processes in it, with their names.
        pids: Vec<(u32, String)>,
    },
    /// The kernel was built without this control file.
    NoFile(PathBuf),
    /// A call that should have worked did not; its error.
    Failed(String),
}

impl Error {
    /// What the user can do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Lacking(lack) => Some(lack.hint()),
            _ => None,
        }
    }

    pub(super) fn call(call: impl Into<String>, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self::Call { call: call.into(), path: path.into(), errno }
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(super) fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// The file or directory is not there; ENODEV is what an open file of a removed group says.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NODEV))
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.errno(), Some(Errno::BUSY | Errno::NOTEMPTY))
    }

    pub(super) fn is_no_process(&self) -> bool {
        self.errno() == Some(Errno::SRCH)
    }

    pub(super) fn is_invalid(&self) -> bool {
        self.errno() == Some(Errno::INVAL)
    }
}

impl Lack {
    /// How to come by the controller.
    pub fn hint(&self) -> String {
        let name = self.controller;
        match &self.reason {
            Reason::Nowhere => format!(
                "boot with `cgroup_enable={name}` if the kernel has it, and mount cgroup2 on \
                 /sys/fs/cgroup"
            ),
            Reason::OutOfSight => {
                "run in a cgroup that /sys/fs/cgroup shows; in a container, with a cgroup \
                 namespace of its own"
                    .to_owned()
            }
            Reason::ReadOnly(_) => {
                "in a container, mount /sys/fs/cgroup writable (Docker: --privileged)".to_owned()
            }
            Reason::NotOurs(_) | Reason::Occupied { .. } | Reason::Threaded(_) => {
                "start the server in a group of its own: `systemd-run --user --scope -p \
                 Delegate=yes forkyard serve`"
                    .to_owned()
            }
            Reason::NotHandedDown(_) => format!(
                "have systemd delegate it: `systemctl edit user@.service`, add `[Service]` and \
                 `Delegate=cpu memory pids`, log in anew; as root, write +{name} to \
                 cgroup.subtree_control of each group above"
            ),
            Reason::NoFile(_) => format!("use a kernel built with limits by {name}"),
            Reason::Failed(_) => "run `forkyard doctor`".to_owned(),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cgroup controller {}: ", self.controller)?;
        match &self.reason {
            Reason::Nowhere => f.write_str("no mounted hierarchy has it"),
            Reason::OutOfSight => f.write_str("the server's own group is not in a mount of it"),
            Reason::ReadOnly(at) => write!(f, "{} is mounted read-only", at.display()),
            Reason::NotOurs(dir) => write!(f, "no permission to write {}", dir.display()),
            Reason::NotHandedDown(dir) => {
                write!(f, "not in cgroup.controllers of {}", dir.display())
            }
            Reason::Threaded(dir) => write!(f, "{} is a threaded group", dir.display()),
            Reason::Occupied { dir, pids } => {
                write!(f, "{} has other processes: {}", dir.display(), people(pids))
            }
            Reason::NoFile(path) => write!(f, "there is no {}", path.display()),
            Reason::Failed(error) => f.write_str(error),
        }
    }
}

/// At most this many processes are named in a message.
const NAMED: usize = 5;

fn people(pids: &[(u32, String)]) -> String {
    if pids.is_empty() {
        return "processes that are going".to_owned();
    }
    let mut text: Vec<String> =
        pids.iter().take(NAMED).map(|(pid, name)| format!("{pid} ({name})")).collect();
    if pids.len() > NAMED {
        text.push(format!("{} more", pids.len() - NAMED));
    }
    text.join(", ")
}
