//! A template whose picture goes to disk, or comes from there.

use std::os::fd::OwnedFd;
use std::path::Path;

use forkyard_snapshot::disk::{self, Content, FILES};
use forkyard_snapshot::{Copies, Error, Picture, Taken, hold_still};
use forkyard_sys::channel;
use forkyard_sys::mount::open_dir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::files::{Files, IN_MEMORY, Shared};
use super::{HOLD, Held, Subjects, Take, now, take_error};
use crate::proto::{
    Failure, Label, Layer, Paused, Records, RestoreError, Restored, Setup, SpawnerReply, TakeError,
    TakeReport, WriteReport, encode,
};

/// Copies of a sandbox's files, without its processes.
#[derive(Debug)]
pub(crate) struct HeldFiles {
    /// Where they are.
    files: String,
    root: OwnedFd,
    records: Records,
    taken_at: u64,
}

impl HeldFiles {
    /// Copies what a sandbox wrote while its processes stand still.
    pub(crate) fn take(
        what: &Take,
        holder: &OwnedFd,
    ) -> Result<(Self, Setup, TakeReport), TakeError> {
        let mut files = Files::ahead(what, holder)?;
        let Subjects { records, root, subject, _ipc } = Subjects::ask(what, holder, HOLD)?;
        let taken_at = now();
        let mut tries = 0;
        let times = loop {
            tries += 1;
            match hold_still(&subject, || files.finish(&subject, &records, &root, false)) {
                Err(Error::Unsteady(_)) if super::try_again(tries) => {}
                done => break done.map_err(|error| take_error(&error))?.1,
            }
        };
        let mut report = TakeReport {
            stopped_us: times.stopped.as_micros() as u64,
            parts: times.in_microseconds(),
            ..TakeReport::default()
        };
        files.add_to(&mut report);
        let setup = records.setup.clone();
        Ok((Self { files: what.into.clone(), root, records, taken_at }, setup, report))
    }

    /// Writes them down; nobody does so any more when the server is gone.
    pub(crate) fn persist(
        &self,
        dir: &str,
        label: &Label,
        server: &OwnedFd,
    ) -> Result<WriteReport, Failure> {
        debug_assert_eq!(Path::new(&self.files), Path::new(dir).join(FILES));
        let held = Content {
            taken: None,
            root: &self.root,
            records: &self.records,
            taken_at: self.taken_at,
            image: &label.image,
            ids: &label.ids,
        };
        write(dir, &held, server)
    }
}

impl Held {
    /// Writes picture and memory down, behind everybody's back; given up when the server is gone.
    /// No clone is to be made from this any more.
    pub(crate) fn persist(
        &self,
        dir: &str,
        label: &Label,
        server: &OwnedFd,
    ) -> Result<WriteReport, Failure> {
        let root = self.root.as_ref();
        let root = root.ok_or_else(|| Failure::new("writing a snapshot", &super::no_root()))?;
        let held = Content {
            taken: Some(&self.taken),
            root,
            records: &self.records,
            taken_at: self.taken_at,
            image: &label.image,
            ids: &label.ids,
        };
        let _ = rustix::process::nice(10);
        write(dir, &held, server)
    }

    /// Takes a picture and writes it down while all is stopped, tells the server so, and lets go
    /// when something comes from there, or it is gone.
    pub(crate) fn pause(
        seq: u64,
        what: &Take,
        holder: &OwnedFd,
        (dir, label): (&str, &Label),
        server: &OwnedFd,
    ) -> Option<SpawnerReply> {
        let taken_at = now();
        let before = |taken: &Taken, records: &Records, root: &OwnedFd| {
            let content = Content {
                taken: Some(taken),
                root,
                records,
                taken_at,
                image: &label.image,
                ids: &label.ids,
            };
            let written = write(dir, &content, server)?;
            let paused = Box::new(Paused { taken: super::report(taken), written });
            let told = encode(&SpawnerReply::Paused { seq, paused }).unwrap_or_default();
            if channel::send(server, &told, &[]).is_ok() {
                let _ = channel::receive(server);
            }
            Ok(())
        };
        match Self::take_and(what, holder, Copies::default(), before) {
            Ok((_, _, Ok(()))) => None,
            Ok((_, _, Err(failure))) => Some(SpawnerReply::Failed { seq, failure }),
            Err(why) => Some(SpawnerReply::NotTaken { seq, why }),
        }
    }
}

/// What a template reads: with memory, or files alone.
pub(crate) enum Source {
    Memory(Box<Held>),
    Files(SavedFiles),
}

/// Files that new sandboxes begin with.
pub(crate) struct SavedFiles {
    /// Where they are.
    dir: String,
    /// What of them is a layer for all.
    shared: Vec<Shared>,
}

/// Reads a snapshot and checks all of it but layers that are known; those are shared, if any.
pub(crate) fn restore(
    dir: &str,
    ids: &str,
    known: Vec<Layer>,
    share: bool,
) -> Result<(Source, Restored), RestoreError> {
    let read = disk::read::<Records>(Path::new(dir), ids, known).map_err(|error| match error {
        disk::Error::Failed { what, source } => RestoreError::Failed(Failure::new(what, &source)),
        other => RestoreError::Refused(other.to_string()),
    })?;
    let files = format!("{dir}/{FILES}");
    let picture = read.memory.as_ref().map(|(taken, ..)| &taken.picture);
    // See `Files::share`. What was in memory is so again.
    let share = share && !picture.is_some_and(Picture::has_half_read_directories);
    let mut layers = read.layers;
    layers.retain(|layer| share && IN_MEMORY.iter().all(|(name, _)| layer.name != *name));
    let shared = layers.iter().map(|layer| Shared::of(Path::new(&files), layer)).collect();
    let mut restored = Restored {
        setup: None,
        parts: read.times.in_microseconds(),
        memory: 0,
        counts: [0; 3],
        layers,
    };
    let Some((taken, marks, records)) = read.memory else {
        return Ok((Source::Files(SavedFiles { dir: files, shared }), restored));
    };
    restored.setup = Some(Box::new(records.setup.clone()));
    restored.memory = taken.stage.filled();
    restored.counts = taken.picture.counts();
    let held = Held {
        records,
        taken,
        files,
        shared,
        clones: None,
        root: None,
        taken_at: 0,
        marks,
        copies: None,
    };
    Ok((Source::Memory(Box::new(held)), restored))
}

impl Held {
    /// Checks, in the root of a new sandbox, that what its processes will have mapped is what they
    /// had mapped.
    pub(crate) fn check_marks(&self) -> Result<(), Failure> {
        if self.marks.is_empty() {
            return Ok(());
        }
        let root = open_dir("/").map_err(|e| Failure::new("opening /", &e))?;
        disk::check_marks(&self.marks, root).map_err(|error| Failure::unfit(error.to_string()))
    }
}

impl SavedFiles {
    /// Gives a new sandbox its files: `state` is its own directory on the host.
    pub(crate) fn give(&self, setup: &Setup, state: &str) -> Result<(), Failure> {
        let target = Path::new(state).join(&setup.generation);
        copy_files(Path::new(&self.dir), &target, &self.shared)
    }
}

/// Copies files to a generation that is not there yet, but for what it has as layers, above which it
/// gets uppers.
pub(super) fn copy_files(from: &Path, target: &Path, shared: &[Shared]) -> Result<(), Failure> {
    let failed = |what: &str, path: &Path| {
        let what = format!("{what} {}", path.display());
        move |e: std::io::Error| Failure::new(what, &e)
    };
    std::fs::create_dir(target).map_err(failed("making", target))?;
    for entry in std::fs::read_dir(from).map_err(failed("reading", from))? {
        let entry = entry.map_err(failed("reading", from))?;
        if !shared.iter().any(|layer| entry.file_name() == layer.name.as_str()) {
            let to = target.join(entry.file_name());
            forkyard_snapshot::copy_tree(&entry.path(), &to, 0).map_err(failure)?;
        }
    }
    shared.iter().try_for_each(|layer| layer.make_upper(target)).map_err(failure)
}

/// What this crate's neighbour could not do.
pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Failed { what, source } => Failure::new(what, &source),
        other => Failure { what: other.to_string(), errno: libc::EIO },
    }
}

fn write(
    dir: &str,
    content: &Content<'_, Records>,
    server: &OwnedFd,
) -> Result<WriteReport, Failure> {
    let written = disk::write(Path::new(dir), content, &|| !is_gone(server));
    let written = written.map_err(|error| match error {
        disk::Error::Failed { what, source } => Failure::new(what, &source),
        other => Failure { what: other.to_string(), errno: libc::EIO },
    })?;
    Ok(WriteReport { length: written.length, parts: written.times.in_microseconds() })
}

/// Whether the other end of a socket is gone.
fn is_gone(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}
