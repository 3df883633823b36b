//! Files that are copied before the processes that write them are stopped.
//!
//! As with memory, to copy them takes longer than all else, and most of them do not change
//! meanwhile. In the stop, all are looked at, and those copied again that changed. All of this is
//! in vain at worst.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::following::{Following, Inodes, Moment, Work, can_follow};
use super::links::Names;
use crate::capture::{DELETED, Subject, hold_still};
use crate::error::{Error, Result};
use crate::proc;
use crate::seize::Scope;

/// Fewer entries than this are copied in the stop in less time than it takes to stop twice.
const FEW: u64 = 64;

/// The same of bytes.
const LITTLE: u64 = 1 << 20;

/// From so many entries on a copy is shared: they take longer to copy than all else of a clone.
const MANY: u64 = 1000;

/// The same of bytes.
const MUCH: u64 = 16 << 20;

/// Most bytes of names of what each has for itself of a copy that is shared. They travel in messages.
const NAMES_MAX: usize = 16 << 20;

/// How often all is gone through, at most.
const PASSES: u32 = 3;

/// How long all of that may take.
const LONG: Duration = Duration::from_secs(60);

/// After a pass as short as this, little will have changed meanwhile.
const SHORT: Duration = Duration::from_millis(100);

/// How far the times of changes may be behind the clock: a tick is 10 ms at most.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// How often it is tried to have all stand still.
const TRIES: u32 = 5;

/// Whether so much is shared by sandboxes rather than copied for each, but for what has these names.
pub(crate) fn is_shareable(entries: u64, bytes: u64, linked: &[Vec<u8>]) -> bool {
    let names: usize = linked.iter().map(Vec::len).sum();
    (entries >= MANY || bytes >= MUCH) && names <= NAMES_MAX
}

/// Whether it is worth while to copy what is in a directory ahead.
#[must_use]
pub fn is_large(dir: &Path) -> bool {
    has_more_than(dir, Work { entries: FEW, bytes: LITTLE })
}

/// Whether there is so much in a directory, with these names, that sandboxes share it rather than
/// have a copy each.
#[must_use]
pub fn is_much(dir: &Path, names: &Names) -> bool {
    names.count() >= MANY || has_more_than(dir, Work { entries: MANY - 1, bytes: MUCH - 1 })
}

fn has_more_than(dir: &Path, mut left: Work) -> bool {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            let bytes = stat.blocks().saturating_mul(512);
            if left.entries == 0 || left.bytes < bytes && stat.is_file() {
                return true;
            }
            left.entries -= 1;
            if stat.is_file() {
                left.bytes -= bytes;
            } else if stat.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    false
}

/// A copy of a directory that several sandboxes can share as a layer.
#[derive(Clone, Debug)]
pub struct Shareable {
    /// Where it is.
    pub path: PathBuf,
    /// What each must have for itself, from there: files with several names, which would become
    /// different files when one of them is written in a layer above.
    pub linked: Vec<Vec<u8>>,
}

/// Copies of directories that a sandbox writes to.
#[derive(Debug, Default)]
pub struct FilesAhead {
    all: Vec<(Following, String)>,
    stopped: Duration,
}

impl FilesAhead {
    /// Copies directories while the sandbox goes on: where each is, where its copy is to be, and
    /// below which path the sandbox sees it. Those that cannot be followed are left out.
    #[must_use]
    pub fn copy(subject: &Subject, dirs: Vec<(PathBuf, PathBuf, String)>) -> Self {
        Self::default().copy_too(subject, dirs)
    }

    /// Copies more of them in the same way.
    #[must_use]
    pub fn copy_too(self, subject: &Subject, dirs: Vec<(PathBuf, PathBuf, String)>) -> Self {
        let dirs = dirs.into_iter().filter(|(from, ..)| can_follow(from));
        let mut copies = self;
        copies.all.extend(dirs.map(|(from, to, place)| (Following::new(from, to), place)));
        let end = Instant::now() + LONG;
        for _ in 0..PASSES {
            let begun = Instant::now();
            // Whatever fails is done, or told, when all is stopped.
            let Some((done, again)) = copies.pass(subject, end) else { break };
            let short = begun.elapsed() < SHORT;
            if is_little(done) || short && is_little(again) || Instant::now() > end {
                break;
            }
        }
        copies
    }

    fn pass(&mut self, subject: &Subject, end: Instant) -> Option<(Work, Work)> {
        if self.all.is_empty() {
            return None;
        }
        let (since, stopped) = still(subject)?;
        self.stopped = self.stopped.max(stopped);
        let moment = self.moment(subject, since).ok()?;
        let mut sum = (Work::default(), Work::default());
        for (copy, _) in &mut self.all {
            let (done, again) = copy.ahead(&moment, end).ok()?;
            for (sum, more) in [(&mut sum.0, done), (&mut sum.1, again)] {
                sum.entries += more.entries;
                sum.bytes += more.bytes;
            }
        }
        Some(sum)
    }

    /// Brings the copies up to date, while all processes are stopped.
    ///
    /// # Errors
    /// When something cannot be read or copied.
    pub fn finish(&mut self, subject: &Subject) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let moment = self.moment(subject, (0, 0))?;
        self.all.iter_mut().try_for_each(|(copy, _)| copy.finish(&moment))
    }

    /// Whether this directory was copied.
    #[must_use]
    pub fn has(&self, from: &Path) -> bool {
        self.all.iter().any(|(copy, _)| copy.from() == from)
    }

    /// The copy of this directory, where it was copied and is so large that sandboxes rather share
    /// it than have one each: as a layer below what they write, whose files are copied when they
    /// are written first.
    #[must_use]
    pub fn shareable(&self, from: &Path) -> Option<Shareable> {
        let (copy, _) = self.all.iter().find(|(copy, _)| copy.from() == from)?;
        let seen = copy.seen();
        (is_shareable(seen.all.entries, seen.all.bytes, &seen.linked) && !seen.deep)
            .then(|| Shareable { path: copy.to().to_owned(), linked: seen.linked.clone() })
    }

    /// How long the sandbox stood still for it, the longest.
    #[must_use]
    pub fn stopped(&self) -> Duration {
        self.stopped
    }

    /// What is mapped now by whoever lives.
    fn moment(&self, subject: &Subject, since: (i64, u64)) -> Result<Moment> {
        let mut moment = Moment { since, ..Moment::default() };
        for pid in Scope::Below(subject.init, subject.leave.clone()).walk() {
            let places = match proc::places(pid) {
                Ok(places) => places,
                // One that has ended has nothing mapped.
                Err(Error::Failed { .. }) if is_gone(pid) => continue,
                Err(error) => return Err(error),
            };
            let shared = places.iter().filter(|place| place.permissions.last() == Some(&b's'));
            for name in shared.filter(|place| place.inode != 0).map(|place| &place.name) {
                moment.unnamed |= name.ends_with(DELETED);
                self.find(name, &mut moment.mapped);
            }
        }
        Ok(moment)
    }

    /// Adds what has this name in the sandbox.
    fn find(&self, name: &[u8], found: &mut Inodes) {
        // Line ends are written so, and so is what only looks like it.
        let name = String::from_utf8_lossy(name).replace("\\012", "\n").into_bytes();
        for (copy, place) in &self.all {
            let rest = name.strip_prefix(place.as_bytes());
            if let Some(rest) = rest.and_then(|rest| rest.strip_prefix(b"/")) {
                let path = copy.from().join(std::ffi::OsStr::from_bytes(rest));
                let stat = std::fs::symlink_metadata(path);
                found.extend(stat.map(|stat: Metadata| (stat.dev(), stat.ino())));
            }
        }
    }
}

fn is_little(work: Work) -> bool {
    work.entries <= FEW && work.bytes <= LITTLE
}

fn is_gone(pid: rustix::process::Pid) -> bool {
    proc::Stat::read(pid).map_or(true, |stat| matches!(stat.state, b'Z' | b'X'))
}

/// Has every process stand still: what any of them was about to write is written. Gives a time
/// before that, in seconds and nanoseconds since the epoch, and how long they stood.
fn still(subject: &Subject) -> Option<((i64, u64), Duration)> {
    for _ in 0..TRIES {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match hold_still(subject, || Ok(now().saturating_sub(TICK))) {
            Ok((since, times)) => {
                let since = (since.as_secs() as i64, u64::from(since.subsec_nanos()));
                return Some((since, times.stopped));
            }
            Err(Error::Unsteady(_)) => {}
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_shared_unless_too_many_names_were_to_be_told() {
        assert!(!is_shareable(MANY - 1, MUCH - 1, &[]));
        assert!(is_shareable(MANY, 0, &[]) && is_shareable(0, MUCH, &[]));
        let names = vec![vec![b'n'; 4096]; NAMES_MAX / 4096];
        assert!(is_shareable(MANY, MUCH, &names));
        assert!(!is_shareable(MANY, MUCH, &[names, vec![b"n".to_vec()]].concat()));
    }
}
