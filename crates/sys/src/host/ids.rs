//! The user who asks, and the ids that user may hand out.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::Serialize;

use super::{Feature, Findings, read_text};

/// Ids that one sandbox takes.
const RANGE: u64 = 65_536;

/// The user who asks.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// Effective user id.
    pub uid: u32,
    /// The user's name, if /etc/passwd has one.
    pub name: Option<String>,
    /// Whether this user namespace maps all ids, as the host's own does.
    pub owns_all_ids: bool,
    /// How many subordinate user ids /etc/subuid gives this user, in its longest range.
    pub subordinate_uids: u64,
    /// The same of /etc/subgid.
    pub subordinate_gids: u64,
    /// Whether newuidmap and newgidmap are there and privileged.
    pub map_helpers: bool,
}

impl Identity {
    /// Whether a range of ids can be mapped without root.
    pub fn can_map_range(&self) -> bool {
        self.map_helpers && self.subordinate_uids >= RANGE && self.subordinate_gids >= RANGE
    }
}

pub(super) fn probe(found: &mut Findings) -> Identity {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = read_text("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, uid).map(str::to_owned);
    let range = |path| {
        let text = read_text(path).unwrap_or_default();
        longest_range(&text, name.as_deref(), uid)
    };
    let identity = Identity {
        uid,
        owns_all_ids: maps_all(&read_text("/proc/self/uid_map").unwrap_or_default()),
        subordinate_uids: range("/etc/subuid"),
        subordinate_gids: range("/etc/subgid"),
        map_helpers: ["newuidmap", "newgidmap"].into_iter().all(is_privileged),
        name,
    };
    report(found, &identity);
    identity
}

fn report(found: &mut Findings, identity: &Identity) {
    let (uids, gids) = (identity.subordinate_uids, identity.subordinate_gids);
    if uids >= RANGE && gids >= RANGE {
        found.present(Feature::SubordinateIds, format!("{uids} user ids, {gids} group ids"));
    } else if identity.uid == 0 && identity.owns_all_ids {
        found.present(Feature::SubordinateIds, "not needed by root");
    } else {
        let user = identity.name.clone().unwrap_or_else(|| identity.uid.to_string());
        let (first, last) = (0x8000_0000_u32, 0x8000_ffff_u32);
        let remedy = format!(
            "usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user} \
             (any range that /etc/subuid gives nobody else)"
        );
        let detail = format!("{uids} user ids, {gids} group ids; {RANGE} of each are needed");
        found.absent(Feature::SubordinateIds, detail, Some(&remedy));
    }
    if identity.map_helpers {
        found.present(Feature::MapHelpers, "set-uid or with file capabilities");
    } else if identity.uid == 0 && identity.owns_all_ids {
        found.present(Feature::MapHelpers, "not needed by root");
    } else {
        let remedy = "apt install uidmap (Fedora: dnf install shadow-utils)";
        found.absent(Feature::MapHelpers, "not there, or without privilege", Some(remedy));
    }
}

/// The name of a user in the text of /etc/passwd.
fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The longest range that the text of /etc/subuid gives a user, by name or number; subuid(5).
fn longest_range(text: &str, name: Option<&str>, uid: u32) -> u64 {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let count = fields.nth(1)?.parse().ok()?;
        (Some(owner) == name || owner.parse() == Ok(uid)).then_some(count)
    });
    ranges.max().unwrap_or(0)
}

/// Whether the text of a `uid_map` maps every id; `user_namespaces`(7).
fn maps_all(text: &str) -> bool {
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    text.lines().filter_map(count).sum::<u64>() == u64::from(u32::MAX)
}

/// Whether a program on the path is set-uid root or has file capabilities, so that it can map ids
/// for others.
fn is_privileged(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let candidates = std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program));
    candidates.into_iter().any(|file| {
        let Ok(stat) = std::fs::metadata(&file) else { return false };
        let set_uid = stat.uid() == 0 && stat.mode() & libc::S_ISUID != 0;
        let mut value = [0_u8; 64];
        set_uid || rustix::fs::getxattr(&file, "security.capability", &mut value).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_for_their_owner_by_name_or_number() {
        let text = "ada:100000:65536\n1001:165536:1000\nbob:1:70000\nbroken\nada:x:y\n";
        assert_eq!(longest_range(text, Some("ada"), 1000), 65_536);
        assert_eq!(longest_range(text, Some("eve"), 1001), 1000);
        assert_eq!(longest_range(text, None, 7), 0);
    }

    #[test]
    fn names_are_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000), Some("ada"));
        assert_eq!(name_of(passwd, 1), None);
    }

    #[test]
    fn only_a_full_map_owns_all_ids() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("0 1000 1\n1 100000 65536\n"));
    }
}
