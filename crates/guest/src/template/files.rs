//! The files of a sandbox, copied for its clones.
//!
//! A small upper is copied while all is stopped. A large one is copied before, while the sandbox
//! goes on, and looked through again in the stop. Files in memory are copied in the stop: when one
//! of them was changed is not always told.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forkyard_snapshot::{Error, FilesAhead, Picture, Subject, copy_above, copy_tree, is_large};

use super::{Subjects, TELL, Take};
use crate::proto::{Ids, Layer, Records, TakeError, TakeReport};

/// Names, beside those of uppers, of what is copied of file systems in memory, and where these are.
pub(crate) const IN_MEMORY: [(&str, &str); 2] = [("tmp", "tmp"), ("shm", "dev/shm")];

/// Copies of a sandbox's files.
pub(super) struct Files<'a> {
    what: &'a Take,
    ahead: FilesAhead,
    /// How long it took to copy files ahead, where that was done.
    took: Option<Duration>,
}

impl<'a> Files<'a> {
    /// Copies large uppers while the sandbox goes on.
    pub(super) fn ahead(what: &'a Take, holder: &OwnedFd) -> Result<Self, TakeError> {
        let begun = Instant::now();
        let nothing = Self { what, ahead: FilesAhead::default(), took: None };
        if !any_is_large(Path::new(&what.uppers)) {
            return Ok(nothing);
        }
        let Subjects { records, root: _root, subject, _ipc } = Subjects::ask(what, holder, TELL)?;
        let dirs = uppers(what, &records).into_iter();
        let large = dirs.filter(|(from, ..)| is_large(from));
        let ahead = FilesAhead::copy(&subject, large.collect());
        Ok(Self { ahead, took: Some(begun.elapsed()), ..nothing })
    }

    /// Copies the rest while all is stopped; of file systems in memory too, if asked.
    pub(super) fn finish(
        &mut self,
        subject: &Subject,
        records: &Records,
        root: &OwnedFd,
        in_memory: bool,
    ) -> Result<(), Error> {
        let uppers = uppers(self.what, records);
        let into = Path::new(&self.what.into);
        let ahead =
            |path: &Path| uppers.iter().any(|(from, to, _)| to == path && self.ahead.has(from));
        // A try before this one may have left some.
        if let Ok(entries) = std::fs::read_dir(into) {
            for entry in entries.flatten().filter(|entry| !ahead(&entry.path())) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        for (from, to, _) in &uppers {
            if !self.ahead.has(from) && !is_untouched(from) {
                copy_tree(from, to, 0)?;
            }
        }
        self.ahead.finish(subject)?;
        // In memory, files have the ids that the host sees.
        let shift = if let Ids::Range { base } = self.what.ids { base } else { 0 };
        for (name, place) in IN_MEMORY.into_iter().filter(|_| in_memory) {
            let from = in_root(root, place);
            if !is_empty(&from) {
                copy_tree(&from, &into.join(name), shift)?;
            }
        }
        Ok(())
    }

    /// Makes layers for all clones of what is too large for each to have its own copy, where there
    /// is a place for them.
    pub(super) fn share(
        &self,
        records: &Records,
        picture: &Picture,
    ) -> Result<Vec<Shared>, TakeError> {
        let Some(base) = self.what.base.as_deref().map(Path::new) else { return Ok(Vec::new()) };
        // Who is on the way through a directory would not find the way on in one of more layers.
        if picture.has_half_read_directories() {
            return Ok(Vec::new());
        }
        let mut shared = Vec::new();
        for overlay in &records.setup.overlays {
            let upper = Path::new(&self.what.uppers).join(&overlay.name);
            let Some(copy) = self.ahead.shareable(&upper) else { continue };
            let layer = base.join(&overlay.name);
            let moved = std::fs::create_dir_all(base)
                .and_then(|()| std::fs::rename(&copy.path, &layer))
                .map_err(|error| format!("moving files to {}: {error}", layer.display()));
            moved.map_err(TakeError::Failed)?;
            shared.push(Shared { name: overlay.name.clone(), layer, linked: copy.linked });
        }
        Ok(shared)
    }

    /// Adds what it took to copy files before the stop.
    pub(super) fn add_to(&self, report: &mut TakeReport) {
        if let Some(took) = self.took {
            report.stopped_us += self.ahead.stopped().as_micros() as u64;
            report.parts.insert(0, ("files ahead".to_owned(), took.as_micros() as u64));
        }
    }
}

/// The copy of an upper that clones have as a layer.
#[derive(Debug)]
pub(super) struct Shared {
    /// The overlay's name.
    pub(super) name: String,
    layer: PathBuf,
    /// Names of what each has for itself.
    linked: Vec<Vec<u8>>,
}

impl Shared {
    /// What was read of a layer in a directory.
    pub(super) fn of(dir: &Path, Layer { name, linked }: &Layer) -> Self {
        Self { name: name.clone(), layer: dir.join(name), linked: linked.clone() }
    }

    /// Makes a clone's upper above it, in the directory of its generation.
    pub(super) fn make_upper(&self, generation: &Path) -> Result<(), Error> {
        copy_above(&self.layer, &generation.join(&self.name), &self.linked)
    }
}

/// Where what the sandbox wrote is, and where it sees it.
pub(super) fn written(what: &Take, records: &Records, root: &OwnedFd) -> Vec<(PathBuf, String)> {
    let overlays = uppers(what, records).into_iter().map(|(from, _, target)| (from, target));
    let in_memory = IN_MEMORY.map(|(_, place)| (in_root(root, place), format!("/{place}")));
    overlays.chain(in_memory).collect()
}

/// Where each upper is, where its copy goes, and where the sandbox sees it.
fn uppers(what: &Take, records: &Records) -> Vec<(PathBuf, PathBuf, String)> {
    let all = records.setup.overlays.iter().map(|overlay| {
        let target = if overlay.target == "/" { "" } else { &overlay.target };
        let place = |dir: &str| Path::new(dir).join(&overlay.name);
        (place(&what.uppers), place(&what.into), target.to_owned())
    });
    all.collect()
}

/// Whether any directory of a generation is, but for those that its overlays work in.
fn any_is_large(generation: &Path) -> bool {
    let of_overlay = |path: &PathBuf| path.extension().is_some_and(|end| end == "work");
    std::fs::read_dir(generation).is_ok_and(|all| {
        let paths = all.flatten().map(|entry| entry.path());
        paths.filter(|path| !of_overlay(path)).any(|path| is_large(&path))
    })
}

fn in_root(root: &OwnedFd, place: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{place}", root.as_raw_fd()).into()
}

/// Whether a directory has nothing in it; what cannot be read is not empty.
fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether an upper is as it was made: empty, and its own mode and owner as they were.
fn is_untouched(upper: &Path) -> bool {
    let made = |stat: &std::fs::Metadata| {
        stat.mode() & 0o7777 == 0o755 && stat.uid() == 0 && stat.gid() == 0
    };
    is_empty(upper) && std::fs::metadata(upper).is_ok_and(|stat| made(&stat))
}
