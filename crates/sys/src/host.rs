//! What this host offers: one ordered, typed answer that the rest of the project asks.
//!
//! [`Host::probe`] looks at everything, [`Host::probe_quick`] at what a server must know when it
//! starts. Facts are read from /proc and /sys or, where only trying tells, tried: harmless calls in
//! this process, namespaces and mounts in a forked child that ends at once. Nothing is left behind,
//! and it works anywhere, as root or not, within some tens of milliseconds.
//!
//! # Example
//!
//! ```
//! use forkyard_sys::host::{Feature, Host};
//!
//! let host = Host::probe("/var/lib/forkyard".as_ref());
//! match host.verdict() {
//!     Ok(mode) => println!("sandboxes work, {mode}"),
//!     Err(lacking) => println!("lacking: {lacking:?}"),
//! }
//! if !host.has(Feature::PagemapScan) {
//!     println!("{}", Feature::PagemapScan.cost());
//! }
//! ```

mod calls;
mod cgroups;
mod feature;
mod ids;
mod store;
mod system;
mod trial;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Instant;

use rustix::thread::CapabilitySet;
use serde::Serialize;

pub use cgroups::{CgroupLayout, Cgroups};
pub use feature::{Feature, Group};
pub use ids::Identity;
pub use store::Store;

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is, and works as far as it was tried.
    Present,
    /// It is not, it is switched off, or it is too little.
    Absent,
    /// It could not be told; the detail says why.
    Unknown,
}

/// What was found out about one [`Feature`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it is there.
    pub presence: Presence,
    /// What was seen: a version, a size, an error. One line.
    pub detail: String,
    /// What to do to have it, where that is known and it is not there: a command, or one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How sandboxes get their ids here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By root: a range of 65,536 for each.
    Root,
    /// By a user with subordinate ids and the helpers to map them.
    Subids,
    /// By a user without: one id, root in the sandbox is the user outside.
    Single,
}

/// A kernel's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// The 6 of 6.1.
    pub major: u32,
    /// The 1 of 6.1.
    pub minor: u32,
    /// As `uname -r` shows it.
    pub release: String,
}

/// What this host offers to the user who asked.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Its kernel.
    pub kernel: Kernel,
    /// Who asked, and which ids that user may hand out.
    pub identity: Identity,
    /// How sandboxes would get their ids, if they work at all.
    pub mode: Mode,
    /// Landlock's ABI, 0 for none.
    pub landlock_abi: u32,
    /// The control groups.
    pub cgroups: Cgroups,
    /// The file system of the store; none after [`Host::probe_quick`].
    pub store: Option<Store>,
    /// All that was looked at, in [`Feature`]'s order.
    pub findings: BTreeMap<Feature, Finding>,
    /// How long looking took, in microseconds.
    pub took_us: u64,
}

impl Host {
    /// Looks at everything. `store` is the directory of the store; if it is not there yet, its
    /// nearest parent that is stands for it.
    pub fn probe(store: &Path) -> Self {
        let start = Instant::now();
        let mut found = Findings::default();
        let mut host = Self::basics(&mut found);
        calls::all(&mut found);
        let store = store::probe(&mut found, store);
        let outcome = trial::run(&store.directory, host.cgroups.v2.as_deref());
        trial::report(&mut found, &outcome, &host);
        system::clock(&mut found);
        system::huge_pages(&mut found);
        system::devices(&mut found);
        system::limits(&mut found);
        host.store = Some(store);
        host.finish(found, start)
    }

    /// Looks at the kernel's version, ids, control groups, Landlock and the calls that everything
    /// rests on; starts no process, tries no mount, takes less than a millisecond.
    pub fn probe_quick() -> Self {
        let start = Instant::now();
        let mut found = Findings::default();
        let host = Self::basics(&mut found);
        calls::essential(&mut found);
        host.finish(found, start)
    }

    /// How sandboxes work here, or the required features that are absent. What is unknown, or was
    /// not looked at, does not count as absent.
    pub fn verdict(&self) -> Result<Mode, Vec<Feature>> {
        let lacking = self.findings.iter().filter(|(feature, finding)| {
            feature.required() && finding.presence == Presence::Absent
        });
        let lacking: Vec<Feature> = lacking.map(|(feature, _)| *feature).collect();
        if lacking.is_empty() { Ok(self.mode) } else { Err(lacking) }
    }

    /// Whether a feature is known to be present.
    pub fn has(&self, feature: Feature) -> bool {
        self.findings.get(&feature).is_some_and(|finding| finding.presence == Presence::Present)
    }

    fn basics(found: &mut Findings) -> Self {
        let kernel = system::kernel(found);
        let identity = ids::probe(found);
        let capable = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
        let held = rustix::thread::capabilities(None)
            .map_or(CapabilitySet::empty(), |sets| sets.effective);
        let mode = if identity.uid == 0 && held.contains(capable) && identity.owns_all_ids {
            Mode::Root
        } else if identity.can_map_range() {
            Mode::Subids
        } else {
            Mode::Single
        };
        let landlock_abi = system::landlock(found);
        let cgroups = cgroups::probe(found, mode);
        Self {
            kernel,
            identity,
            mode,
            landlock_abi,
            cgroups,
            store: None,
            findings: BTreeMap::new(),
            took_us: 0,
        }
    }

    fn finish(mut self, found: Findings, start: Instant) -> Self {
        self.findings = found.0;
        self.took_us = start.elapsed().as_micros() as u64;
        self
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "as root, 65,536 ids each",
            Self::Subids => "without root, 65,536 subordinate ids each",
            Self::Single => "without root, one id each",
        })
    }
}

/// Findings while they are made.
#[derive(Debug, Default)]
struct Findings(BTreeMap<Feature, Finding>);

impl Findings {
    fn present(&mut self, feature: Feature, detail: impl Into<String>) {
        self.add(feature, Presence::Present, detail.into(), None);
    }

    fn unknown(&mut self, feature: Feature, detail: impl Into<String>) {
        self.add(feature, Presence::Unknown, detail.into(), None);
    }

    fn absent(&mut self, feature: Feature, detail: impl Into<String>, remedy: Option<&str>) {
        self.add(feature, Presence::Absent, detail.into(), remedy.map(str::to_owned));
    }

    /// Present or absent, by the result of trying.
    fn tried(&mut self, feature: Feature, result: std::io::Result<()>, remedy: Option<&str>) {
        match result {
            Ok(()) => self.present(feature, "works"),
            Err(error) => self.absent(feature, error.to_string(), remedy),
        }
    }

    fn add(
        &mut self,
        feature: Feature,
        presence: Presence,
        detail: String,
        remedy: Option<String>,
    ) {
        self.0.insert(feature, Finding { presence, detail, remedy });
    }
}

/// The trimmed text of a small file of /proc or /sys; none if it cannot be read.
fn read_text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The number in a small file of /proc or /sys.
fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    read_text(path)?.parse().ok()
}
