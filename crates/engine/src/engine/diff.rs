//! What a sandbox changed, told while it runs and after.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use forkyard_guest::proto::{Overlay, WORKSPACE};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Engine;
use crate::changes::{Covered, JOB, OPEN, Order};
use crate::error::{Error, Result};
use crate::model::{DiffForm, DiffSpec, State};
use crate::sandbox::{Internal, LiveSandbox};

/// Most that are read at once, by people in pagers too: each may take a hundred megabytes, which the
/// guest chooses.
const READERS_MAX: usize = 16;

static TURNS: Semaphore = Semaphore::const_new(READERS_MAX);

/// Most paths that are asked for at once.
const PATHS_MAX: usize = 1000;

/// Where something of the kernel's or of forkyard's own is in every sandbox, and no change of the
/// guest's.
const OURS: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/run/forkyard/fork"];

impl Engine {
    /// Tells what a sandbox changed since it was made from its image: what it wrote itself, and what
    /// it was made with by a fork or a snapshot. The image is not read but where something in it
    /// was changed. While the sandbox runs, the answer is of no single moment.
    pub async fn diff(self: &Arc<Self>, live: &Arc<LiveSandbox>, spec: DiffSpec) -> Result<Diff> {
        check(&spec)?;
        let turn = TURNS.try_acquire().map_err(|_| {
            Error::Busy(format!(
                "{READERS_MAX} answers with changes are being read: at most as many"
            ))
        })?;
        // What is open stays, whatever is done to the sandbox after.
        let still = live.transition.lock().await;
        let internal = live.internal();
        let order = self.order(live, &internal, &spec)?;
        let payload = postcard::to_stdvec(&order).map_err(|e| Error::Invalid(e.to_string()))?;
        let (read, write) = crate::files::pipe().map_err(Error::io("pipe"))?;
        let answer = self.spawner.job(JOB, payload, &[write.as_fd()]).await?;
        drop(write);
        let begun = tokio::task::spawn_blocking(move || Diff::begin(File::from(read), answer));
        let mut begun = begun.await.map_err(|e| Error::Invalid(e.to_string()))??;
        drop(still);
        begun.turn = Some(turn);
        begun.of = Some((Arc::clone(live), internal.generation));
        Ok(begun)
    }

    fn order(&self, live: &LiveSandbox, internal: &Internal, spec: &DiffSpec) -> Result<Order> {
        let dir = self.layout.sandbox(live.id());
        let written = match live.state() {
            State::Running | State::Ended => dir.join(internal.generation_name()),
            State::Paused => dir.join("paused").join(forkyard_guest::SNAPSHOT_FILES),
            _ => return Err(live.wrong_state()),
        };
        let info = live.info();
        let workspace = info.spec.workspace;
        let workdir = match info.spec.workdir.or(workspace.map(|workspace| workspace.target)) {
            Some(_) => None,
            None => self.images.find(&info.image).ok().and_then(|image| image.config.workdir),
        };
        let hidden: Vec<&str> = OURS
            .into_iter()
            .chain(internal.overlays.iter().map(|overlay| overlay.target.as_str()))
            .chain(info.spec.volumes.iter().map(|volume| volume.target.as_str()))
            .collect();
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        // Of a workspace, a patch is for its directory on the host, and of nothing else.
        let is_workspace = |overlay: &&Overlay| overlay.name == WORKSPACE;
        let is_for_host = spec.form == DiffForm::Patch
            && spec.paths.is_empty()
            && internal.overlays.iter().any(|overlay| is_workspace(&overlay));
        let all = internal.overlays.iter().filter(|overlay| !is_for_host || is_workspace(overlay));
        let overlays = all.filter_map(|overlay| {
            let paths = wanted(overlay, &spec.paths)?;
            let within = |paths: &[&str]| -> Vec<Vec<u8>> {
                let below = paths.iter().filter_map(|path| below(overlay, path));
                below.filter(|path| !path.is_empty()).collect()
            };
            let bases = internal.bases.iter().filter(|base| base.overlays.contains(&overlay.name));
            let changed = std::iter::once(&written).chain(bases.map(|base| &base.dir));
            let lowers = overlay.lowers.iter().filter_map(|&at| internal.sources.get(at));
            let identity = (overlay.target == "/").then(|| text(dir.join("identity")));
            Some(Covered {
                target: overlay.target.clone(),
                prefix: prefix(overlay),
                changed: changed.map(|dir| text(dir.join(&overlay.name))).collect(),
                base: identity.into_iter().chain(lowers.map(|low| low.path.clone())).collect(),
                paths,
                hidden: within(&hidden),
                made: within(&workdir.as_deref().into_iter().collect::<Vec<_>>()),
            })
        });
        Ok(Order { overlays: overlays.collect(), form: spec.form })
    }
}

/// Changes as they are read. Whoever reads them may wait for the disk.
#[derive(Debug)]
pub struct Diff {
    output: File,
    answer: OwnedFd,
    /// Bytes that were read to know that all goes well.
    first: Vec<u8>,
    /// All of it was read.
    ended: bool,
    of: Option<(Arc<LiveSandbox>, u32)>,
    turn: Option<SemaphorePermit<'static>>,
}

impl Diff {
    /// Waits until all layers are open.
    fn begin(mut output: File, answer: OwnedFd) -> Result<Self> {
        let mut first = [0];
        let read = output.read(&mut first).map_err(Error::io("reading changes"))?;
        let mut begun =
            Self { output, answer, first: Vec::new(), ended: false, of: None, turn: None };
        match (read, first) {
            (1, [OPEN]) => Ok(begun),
            _ => Err(begun.end().err().unwrap_or_else(died)),
        }
    }

    /// Waits until there is something to read, so that what fails before is an error and no broken
    /// answer.
    ///
    /// # Errors
    /// As [`Diff::read`].
    pub fn wait(&mut self) -> Result<()> {
        let mut first = vec![0; 64 * 1024];
        let length = self.read(&mut first)?;
        first.truncate(length);
        self.first = first;
        Ok(())
    }

    /// Reads more; nothing at the end.
    ///
    /// # Errors
    /// When something could not be read, or the sandbox was reset or removed meanwhile.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(self.first.drain(..length)) {
                *to = from;
            }
            return Ok(length);
        }
        if self.ended {
            return Ok(0);
        }
        match self.output.read(buffer).map_err(Error::io("reading changes"))? {
            0 => {
                self.end()?;
                self.ended = true;
                Ok(0)
            }
            length => Ok(length),
        }
    }

    /// Waits for the job's end.
    fn end(&mut self) -> Result<()> {
        let answer = forkyard_sys::channel::receive(&self.answer).map_err(Error::io("recvmsg"))?;
        let error = answer.ok_or_else(died)?.bytes;
        if !error.is_empty() {
            return Err(Error::Unreadable(String::from_utf8_lossy(&error).into_owned()));
        }
        match &self.of {
            Some((live, generation)) if live.internal().generation != *generation => {
                let what = format!("sandbox {}: it was reset or resumed meanwhile", live.id());
                Err(Error::Busy(what))
            }
            Some((live, _)) if live.state() == State::Deleting => {
                Err(Error::Gone(live.id().to_string()))
            }
            _ => Ok(()),
        }
    }
}

fn died() -> Error {
    Error::Unreadable("who reads the changes died".to_owned())
}

fn check(spec: &DiffSpec) -> Result<()> {
    if spec.paths.len() > PATHS_MAX {
        return Err(Error::Invalid(format!("{} paths: at most {PATHS_MAX}", spec.paths.len())));
    }
    for path in &spec.paths {
        let leaves = path.split('/').any(|part| part == "..");
        if !path.starts_with('/') || path.contains('\0') || leaves {
            return Err(Error::Invalid(format!(
                "path `{path}`: must be an absolute path in the sandbox, without `..`"
            )));
        }
    }
    Ok(())
}

/// What comes before the paths of an overlay in a patch: those of a workspace begin at its top.
fn prefix(overlay: &Overlay) -> String {
    let target = clean(&overlay.target);
    if overlay.name == WORKSPACE || target.is_empty() {
        String::new()
    } else {
        format!("{}/", target.join("/"))
    }
}

/// The paths that are wanted of an overlay, from its top; nothing where none of it is.
fn wanted(overlay: &Overlay, paths: &[String]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for path in paths {
        match below(overlay, path) {
            Some(path) if path.is_empty() => return Some(Vec::new()),
            Some(path) => all.push(path),
            // Above it, or beside.
            None if clean(&overlay.target).starts_with(&clean(path)) => {
                return Some(Vec::new());
            }
            None => {}
        }
    }
    (paths.is_empty() || !all.is_empty()).then_some(all)
}

/// What an absolute path is from an overlay's top; nothing where it is not below it.
fn below(overlay: &Overlay, path: &str) -> Option<Vec<u8>> {
    let (target, path) = (clean(&overlay.target), clean(path));
    Some(path.strip_prefix(target.as_slice())?.join("/").into_bytes())
}

/// The parts of a path that mean something.
fn clean(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(target: &str) -> Overlay {
        let (target, name) = (target.to_owned(), String::new());
        Overlay { target, lowers: Vec::new(), base: Vec::new(), name }
    }

    #[test]
    fn paths_are_wanted_of_the_overlays_that_have_them() {
        let want = |target, paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
            let wanted = wanted(&overlay(target), &paths)?;
            Some(wanted.into_iter().map(|p| String::from_utf8(p).unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(want("/usr", &[]), Some(vec![]));
        assert_eq!(want("/usr", &["/"]), Some(vec![]));
        assert_eq!(want("/usr", &["/usr/"]), Some(vec![]));
        assert_eq!(want("/usr", &["//usr/./lib/", "/etc"]), Some(vec!["lib".to_owned()]));
        assert_eq!(want("/usr", &["/usrx", "/etc"]), None);
        assert_eq!(want("/", &["/usr/lib"]), Some(vec!["usr/lib".to_owned()]));
        assert_eq!(want("/opt/data", &["/opt"]), Some(vec![]));
    }
}
