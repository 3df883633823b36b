//! Which ids sandboxes have on this host, for this user.

use std::path::Path;

use forkyard_guest::proto::Ids;

use crate::error::{Error, Result};

/// First host id given to sandboxes by a root server, and the first that is not: the range that
/// systemd keeps free for containers (uid-range documentation of systemd, `systemd-nspawn`).
const RANGES: std::ops::Range<u32> = 0x0008_0000..0x7000_0000;

/// Ids of one sandbox.
const RANGE: u32 = 65_536;

/// How many sandboxes can have a range at once.
pub(crate) const SLOTS: u32 = (RANGES.end - RANGES.start) / RANGE;

/// Where the ids of sandboxes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Root: 65,536 ids of its own for each sandbox.
    Root,
    /// An ordinary user with subordinate ids: 65,536 that all its sandboxes share.
    SubIds {
        /// First subordinate user id.
        uid: u32,
        /// First subordinate group id.
        gid: u32,
    },
    /// An ordinary user without: only root exists in a sandbox.
    Single,
}

impl Mode {
    /// Chooses the best that this host offers, or what `FORKYARD_IDS` (`root`, `subids`,
    /// `single`) asks for.
    ///
    /// # Errors
    /// When what was asked for cannot be had.
    pub fn detect() -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let asked = std::env::var("FORKYARD_IDS").ok();
        match asked.as_deref() {
            None | Some("") => {
                if root {
                    return Ok(Self::Root);
                }
                Ok(Self::subordinate().unwrap_or(Self::Single))
            }
            Some("root") if root => Ok(Self::Root),
            Some("single") => Ok(Self::Single),
            Some("subids") => Self::subordinate().ok_or_else(|| {
                Error::Invalid(
                    "FORKYARD_IDS=subids: this user has no 65,535 subordinate ids in /etc/subuid \
                     and /etc/subgid, or newuidmap and newgidmap are not installed"
                        .to_owned(),
                )
            }),
            Some(other) => Err(Error::Invalid(format!(
                "FORKYARD_IDS={other}: not `root` (as root), `subids` or `single`"
            ))),
        }
    }

    /// Its name at the API.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::SubIds { .. } => "subids",
            Self::Single => "single",
        }
    }

    /// The ids of the sandbox in this slot.
    pub(crate) fn ids(&self, slot: u32) -> Ids {
        match self {
            Self::Root => Ids::Range { base: RANGES.start + slot * RANGE },
            Self::SubIds { .. } => Ids::Outer,
            Self::Single => Ids::Single,
        }
    }

    fn subordinate() -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            return None;
        }
        let tools = ["newuidmap", "newgidmap"].iter().all(|tool| {
            ["/usr/bin", "/bin", "/usr/local/bin"].iter().any(|d| Path::new(d).join(tool).exists())
        });
        if !tools {
            return None;
        }
        let user = user_name();
        let uid = rustix::process::geteuid().as_raw().to_string();
        let first = |path: &str| {
            let text = std::fs::read_to_string(path).ok()?;
            range_of(&text, user.as_deref(), &uid)
        };
        Some(Self::SubIds { uid: first("/etc/subuid")?, gid: first("/etc/subgid")? })
    }
}

/// First id of the first range of 65,535 or more that a user has: see subuid(5).
fn range_of(text: &str, name: Option<&str>, id: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        (Some(owner) == name || owner == id).then_some(())?;
        (count >= RANGE - 1).then_some(first)
    })
}

fn user_name() -> Option<String> {
    let id = rustix::process::geteuid().as_raw().to_string();
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number_and_must_be_large_enough() {
        let text = "ann:100000:65536\nbob:1:10\nbob:300000:65536\n1003:165536:65536\n";
        assert_eq!(range_of(text, Some("ann"), "1000"), Some(100_000));
        assert_eq!(range_of(text, Some("bob"), "1001"), Some(300_000));
        assert_eq!(range_of(text, None, "1003"), Some(165_536));
        assert_eq!(range_of(text, Some("eve"), "1004"), None);
        assert_eq!(range_of("ann:x\n:\nann", Some("ann"), "1"), None);
    }
}
