//! The files of a sandbox, copied for its clones.
//!
//! A small upper is copied while all is stopped. A large one is copied before, while the sandbox
//! goes on, and looked through again in the stop. Files in memory are copied in the stop: when one
//! of them was changed is not always told.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forkyard_snapshot::{
    Error, FilesAhead, Movable, Names, Picture, Subject, copy_above, copy_tree, is_large, is_much,
    mount_id,
};

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
    /// The upper that becomes a layer of the sandbox itself, too, and is not copied at all.
    sealing: Option<Sealing>,
    /// How long the sandbox stood still in vain.
    in_vain: Duration,
}

/// An upper that becomes a layer.
struct Sealing {
    /// Its overlay's name.
    name: String,
    upper: PathBuf,
    names: Names,
    /// Where its copy goes otherwise.
    copy: (PathBuf, PathBuf, String),
    /// Names of files in it that have several, once it is a layer.
    linked: Option<Vec<Vec<u8>>>,
}

/// Most names of files that have several, which are copied in the stop where the rest of an upper
/// becomes a layer.
const LINKED_MOST: usize = 64;

/// The same of their bytes.
const LINKED_BYTES: u64 = 1 << 20;

impl<'a> Files<'a> {
    /// Copies large uppers while the sandbox goes on.
    pub(super) fn ahead(what: &'a Take, holder: &OwnedFd) -> Result<Self, TakeError> {
        let begun = Instant::now();
        let (ahead, in_vain) = (FilesAhead::default(), Duration::ZERO);
        let nothing = Self { what, ahead, took: None, sealing: None, in_vain };
        if !any_is_large(Path::new(&what.uppers)) {
            return Ok(nothing);
        }
        let Subjects { records, root: _root, subject, _ipc } = Subjects::ask(what, holder, TELL)?;
        let mut large = uppers(what, &records);
        let sealing = Self::look(what, &records, &large);
        large.retain(|(from, ..)| {
            sealing.as_ref().is_none_or(|sealing| *from != sealing.upper) && is_large(from)
        });
        let ahead = FilesAhead::copy(&subject, large);
        Ok(Self { ahead, took: Some(begun.elapsed()), sealing, ..nothing })
    }

    /// Looks whether the upper of the root may become a layer, and is worth it.
    fn look(
        what: &Take,
        records: &Records,
        uppers: &[(PathBuf, PathBuf, String)],
    ) -> Option<Sealing> {
        what.seal.as_ref()?;
        let copy = uppers.first().cloned()?;
        let upper = copy.0.clone();
        let name = records.setup.overlays.first()?.name.clone();
        // Who answers a file request is not stopped.
        let may_be = records.workers.is_empty() && is_large(&upper);
        let names = may_be.then(|| Names::read(&upper).ok())??;
        if !is_much(&upper, &names) {
            return None;
        }
        Some(Sealing { name, upper, names, copy, linked: None })
    }

    /// Whether an upper is to become a layer.
    pub(super) fn is_sealing(&self) -> bool {
        self.sealing.is_some()
    }

    /// The root whose upper it is.
    pub(super) fn movable(&self, root: &OwnedFd) -> Option<Movable> {
        let upper = self.sealing.as_ref()?.upper.clone();
        Some(Movable { mount: mount_id(root).ok()?, upper })
    }

    /// Notes that it is one by now.
    pub(super) fn sealed(&mut self, linked: Vec<Vec<u8>>) {
        if let Some(sealing) = &mut self.sealing {
            sealing.linked = Some(linked);
        }
    }

    /// Has it copied, since it cannot be one. The sandbox stood still so long to find that out.
    pub(super) fn copy_instead(&mut self, subject: &Subject, stopped: Duration) {
        self.in_vain += stopped;
        let begun = Instant::now();
        let Some(sealing) = self.sealing.take() else { return };
        let copied = std::mem::take(&mut self.ahead);
        self.ahead = copied.copy_too(subject, vec![sealing.copy]);
        self.took = self.took.map(|took| took + begun.elapsed());
    }

    /// Copies the rest while all is stopped; of file systems in memory too, if asked. Gives the names
    /// of files that have several in the upper that is to become a layer.
    pub(super) fn finish(
        &mut self,
        subject: &Subject,
        records: &Records,
        root: &OwnedFd,
        in_memory: bool,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let linked = self.sealing.as_mut().map(Sealing::linked).transpose()?;
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
            let is_layer = self.sealing.as_ref().is_some_and(|sealing| sealing.upper == *from);
            if !is_layer && !self.ahead.has(from) && !is_untouched(from) {
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
        Ok(linked.unwrap_or_default())
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
        if let Some((sealing, seal)) = self.sealing.as_ref().zip(self.what.seal.as_ref()) {
            let (name, linked) = (sealing.name.clone(), sealing.linked.clone().unwrap_or_default());
            shared.push(Shared { layer: Path::new(seal).join(&name), name, linked });
        }
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

    /// Adds what it took to copy files before the stop, and what became of them.
    pub(super) fn add_to(&self, report: &mut TakeReport) {
        if let Some(sealing) = &self.sealing {
            report.shared.retain(|name| *name != sealing.name);
            report.sealed = Some(sealing.name.clone());
        }
        if let Some(took) = self.took {
            report.stopped_us += (self.ahead.stopped() + self.in_vain).as_micros() as u64;
            report.parts.insert(0, ("files ahead".to_owned(), took.as_micros() as u64));
        }
    }
}

impl Sealing {
    /// Names of files that have several, if these are few.
    fn linked(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let many = || Error::not_sealed("many files have several names");
        let linked = self.names.linked(LINKED_MOST)?.ok_or_else(many)?;
        let bytes = linked.iter().take(LINKED_MOST + 1).map(|name| {
            let path = self.upper.join(OsStr::from_bytes(name));
            path.symlink_metadata().map_or(0, |stat| stat.blocks() * 512)
        });
        if bytes.sum::<u64>() > LINKED_BYTES || linked.len() > LINKED_MOST {
            return Err(many());
        }
        Ok(linked)
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
