//! Reads what a sandbox changed, in a child of the spawner: what belongs to a sandbox may belong to
//! ids that the server is not, and what a guest wrote takes memory of nobody else.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;

use forkyard_branch::{Aspects, ChangeKind, Layers, Patch, Wanted, diff};
use forkyard_sys::mount::clone_mount;
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};

use crate::model::{self, DiffForm, Difference, FileName};

/// The job's name.
pub(crate) const JOB: &str = "changes";

/// What the job writes when all layers are open, before anything else: they may be renamed after
/// that.
pub(crate) const OPEN: u8 = b'+';

/// What the job is told; where it writes goes along as a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) overlays: Vec<Covered>,
    pub(crate) form: DiffForm,
}

/// An overlay, and where its layers are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Covered {
    /// Where it is mounted in the sandbox.
    pub(crate) target: String,
    /// What comes before its paths in a patch.
    pub(crate) prefix: String,
    /// Layers with changes, the topmost first. One that is not there has none.
    pub(crate) changed: Vec<String>,
    /// Layers that they are changes of, the topmost first.
    pub(crate) base: Vec<String>,
    /// As [`Wanted`] has them: from the overlay's top.
    pub(crate) paths: Vec<Vec<u8>>,
    pub(crate) hidden: Vec<Vec<u8>>,
    pub(crate) made: Vec<Vec<u8>>,
}

/// Why the job failed.
type Failed = String;

/// The job: writes what was changed, and tells the error if there is one.
pub(crate) fn job(payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
    let done = match (postcard::from_bytes::<Order>(payload), <[OwnedFd; 1]>::try_from(fds)) {
        (Ok(order), Ok([output])) => tell(&order, File::from(output)),
        _ => Err("malformed order".to_owned()),
    };
    done.err().unwrap_or_default().into_bytes()
}

fn tell(order: &Order, mut output: File) -> Result<(), Failed> {
    let layers = order.overlays.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    output.write_all(&[OPEN]).map_err(|e| format!("writing the changes: {e}"))?;
    let mut changes = Vec::new();
    for (covered, layers) in order.overlays.iter().zip(&layers) {
        let wanted = Wanted {
            paths: covered.paths.clone(),
            hidden: covered.hidden.clone(),
            made: covered.made.clone(),
        };
        let here = diff(layers, &wanted)
            .map_err(|error| format!("changes below {}: {error}", covered.target))?;
        changes.extend(here.into_iter().map(|change| Told { covered, layers, change }));
    }
    if order.overlays.len() > 1 {
        changes.sort_by_cached_key(|told| told.path(&told.change.path));
    }
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    let written = if order.form == DiffForm::Patch {
        write_patch(&changes, &mut output)
    } else {
        write_list(&changes, order.form, &mut output)
    };
    written.and_then(|()| output.flush().map_err(|e| format!("writing the changes: {e}")))
}

fn open(covered: &Covered) -> Result<Layers, Failed> {
    // As the overlay has them: what is mounted below them is no part of them.
    let open = |path: &String| {
        clone_mount(CWD, path, false).map_err(|error| (error.kind(), format!("{path}: {error}")))
    };
    let changed = covered.changed.iter().filter_map(|path| match open(path) {
        Err((std::io::ErrorKind::NotFound, _)) => None,
        opened => Some(opened),
    });
    let changed: Result<_, _> = changed.collect();
    let base: Result<_, _> = covered.base.iter().map(open).collect();
    match (changed, base) {
        (Ok(changed), Ok(base)) => Ok(Layers::new(changed, base)),
        (Err((_, why)), _) | (_, Err((_, why))) => Err(format!("opening the layer {why}")),
    }
}

/// A change in one of the overlays.
struct Told<'a> {
    covered: &'a Covered,
    layers: &'a Layers,
    change: forkyard_branch::Change,
}

impl Told<'_> {
    /// The absolute path in the sandbox of one in the overlay.
    fn path(&self, path: &[u8]) -> Vec<u8> {
        let target = self.covered.target.trim_end_matches('/').as_bytes();
        if path.is_empty() && !target.is_empty() {
            return target.to_vec();
        }
        [target, b"/", path].concat()
    }

    fn model(&self, form: DiffForm) -> Result<model::Change, forkyard_branch::Error> {
        let change = &self.change;
        let (kind, from) = match &change.kind {
            ChangeKind::Added => (model::ChangeKind::Added, None),
            ChangeKind::Changed => (model::ChangeKind::Changed, None),
            ChangeKind::Removed => (model::ChangeKind::Removed, None),
            ChangeKind::Renamed { from } => (model::ChangeKind::Renamed, Some(self.path(from))),
        };
        let is_told = change.aspects != Aspects::default();
        let lines = match form {
            DiffForm::Stat => change.lines(self.layers)?,
            DiffForm::List | DiffForm::Patch => None,
        };
        Ok(model::Change {
            path: FileName::new(&self.path(&change.path)),
            change: kind,
            from: from.as_deref().map(FileName::new),
            differs: if is_told { Difference::all(change.aspects) } else { Vec::new() },
            old: change.old.as_ref().map(Into::into),
            new: change.new.as_ref().map(Into::into),
            binary: change.is_binary(self.layers)?,
            lines: lines.map(|lines| model::Lines { added: lines.added, removed: lines.removed }),
        })
    }
}

fn write_list(changes: &[Told<'_>], form: DiffForm, to: &mut impl Write) -> Result<(), Failed> {
    let failed = |e: std::io::Error| format!("writing the changes: {e}");
    to.write_all(b"[").map_err(failed)?;
    for (at, told) in changes.iter().enumerate() {
        if at > 0 {
            to.write_all(b",").map_err(failed)?;
        }
        let change = told.model(form).map_err(|error| error.to_string())?;
        serde_json::to_writer(&mut *to, &change).map_err(|e| failed(e.into()))?;
    }
    to.write_all(b"]\n").map_err(failed)
}

fn write_patch(changes: &[Told<'_>], to: &mut impl Write) -> Result<(), Failed> {
    for told in changes {
        let mut patch = Patch::new(told.layers, told.covered.prefix.as_str(), &mut *to);
        patch.write(&told.change).map_err(|error| error.to_string())?;
    }
    Ok(())
}
