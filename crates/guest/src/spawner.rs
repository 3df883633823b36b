//! The spawner: the only process that makes sandboxes, small so that its forks cost little.
//!
//! It has one thread and no state but a mount namespace of its own: requests come in order over
//! one socket, and it ends when the server's end of it closes. The sandboxes live on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_snapshot::Copies;
use forkyard_sys::mount::make_private;
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use forkyard_sys::seccomp::Filter;
use forkyard_sys::{channel, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;

use crate::devices;
use crate::embryo::{Embryo, join, open_group};
use crate::launch::Bounds;
use crate::proto::{
    self, Failure, MountSource, Place, Setup, SpawnerReply, SpawnerRequest, TakeError, decode,
    encode,
};
use crate::template::disk::{HeldFiles, SavedFiles, Source, restore};
use crate::template::{Held, Take};

/// A job that the spawner runs in a child of its own: its name, its arguments and descriptors.
/// What it gives back is sent to whoever asked.
pub type Job = fn(name: &str, payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8>;

/// Serves requests on `socket` until its other end closes.
///
/// The process must be single-threaded and, unless it is root, already in a user namespace where
/// it is. Its standard streams should be `/dev/null`: sandboxes start with copies of them. `files`
/// is how many descriptors a command may have open, unless it asks for more: its limit is half of
/// this process's.
///
/// # Errors
/// When the mount namespace cannot be set up, or the socket fails.
pub fn run(socket: &OwnedFd, files: u64, job: Job) -> Result<(), Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| Failure::new(what, &e)
    };
    let proof = SingleThreaded::prove().map_err(failed("counting threads"))?;
    signal::set_all_default();
    signal::set_blocked(false).map_err(failed("unblocking signals"))?;
    process::unshare(&proof, CloneFlags::MOUNT)
        .map_err(failed("unshare of the mount namespace"))?;
    make_private().map_err(failed("making mounts private"))?;
    devices::cover()?;
    // Once for all commands of all sandboxes: they are forks of this process.
    let filter = Filter::compile()
        .map_err(|e| Failure::new(e.to_string(), &io::ErrorKind::InvalidData.into()))?;
    let bounds = Bounds::new(filter, files);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    forkyard_snapshot::prepare();
    serve_all(&proof, &bounds, socket, job)
}

/// Serves requests, as the spawner or as a template.
fn serve_all(
    proof: &SingleThreaded,
    bounds: &Bounds,
    socket: &OwnedFd,
    job: Job,
) -> Result<(), Failure> {
    let mut nursery = Nursery::default();
    loop {
        reap();
        if nursery.wish.is_some() && is_idle(socket) {
            nursery.grant(proof, bounds);
        }
        nursery.bury_templates(socket);
        let message = match channel::receive(socket) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::CONNRESET.raw_os_error()) => {
                return Ok(());
            }
            Err(e) => return Err(Failure::new("receiving a request", &e)),
        };
        let Ok(request) = decode::<SpawnerRequest>(&message.bytes) else { continue };
        let (reply, fds) = serve(proof, bounds, &mut nursery, socket, request, message.fds, job);
        let Some(reply) = reply else { continue };
        let Ok(bytes) = encode(&reply) else { continue };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if channel::send(socket, &bytes, &fds).is_err() {
            return Ok(());
        }
    }
}

/// Children are waited for when they happen to have ended: their ends are known by pidfds.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

fn serve(
    proof: &SingleThreaded,
    bounds: &Bounds,
    nursery: &mut Nursery,
    socket: &OwnedFd,
    request: SpawnerRequest,
    mut fds: Vec<OwnedFd>,
    job: Job,
) -> (Option<SpawnerReply>, Vec<OwnedFd>) {
    match request {
        SpawnerRequest::Spawn { seq, place, sources, setup } => {
            let own_network = !setup.host_network;
            if let Err(failure) = nursery.give_files(&setup, &sources) {
                return (Some(SpawnerReply::Failed { seq, failure }), Vec::new());
            }
            let conceived = match nursery.embryo_at(&place).filter(|_| own_network) {
                Some(embryo) => Ok(embryo),
                None => Embryo::conceive(proof, bounds, place, own_network, nursery.held.as_ref()),
            };
            match conceived.and_then(|embryo| embryo.bear(&sources, *setup, &fds)) {
                Ok(child) => {
                    let pid = child.pid.as_raw_nonzero().get().cast_unsigned();
                    (Some(SpawnerReply::Spawned { seq, pid }), vec![child.pidfd])
                }
                Err(failure) => (Some(SpawnerReply::Failed { seq, failure }), Vec::new()),
            }
        }
        SpawnerRequest::Prepare { place } => {
            nursery.wish = Some(place);
            (None, Vec::new())
        }
        SpawnerRequest::Template { cgroup2, cgroup1 } => {
            // One that cannot be made is known by the end of its socket.
            if let Some(socket) = fds.pop()
                && let Ok(group) = cgroup2.as_deref().map(open_group).transpose()
            {
                let group = group.as_ref().map(AsFd::as_fd);
                let made = process::fork(proof, CloneFlags::default(), group, |proof| {
                    // Before it has any memory of its own.
                    if process::close_all_but(&[socket.as_fd()]).is_err() || join(&cgroup1).is_err()
                    {
                        return 1;
                    }
                    i32::from(serve_all(&proof, bounds, &socket, job).is_err())
                });
                nursery.templates.extend(made.map(|child| child.pidfd));
            }
            (None, Vec::new())
        }
        SpawnerRequest::Keep => {
            let held = nursery.held.take();
            // Without root there is no way back out of the sandbox's, but one to a new one.
            let is_inside = held.as_ref().is_some_and(Held::is_inside);
            let is_out = !is_inside || process::unshare(proof, CloneFlags::IPC).is_ok();
            nursery.copies = held.filter(|_| is_out).and_then(Held::into_copies);
            (None, Vec::new())
        }
        SpawnerRequest::Take { seq, source, clones } => {
            let take = take(source, clones);
            let nobody = || TakeError::Failed("no socket to init".to_owned());
            let copies = nursery.copies.take().unwrap_or_default();
            let taken = fds.pop().ok_or_else(nobody).and_then(|fd| Held::take(&take, &fd, copies));
            let reply = match taken {
                Ok((held, report)) => {
                    let setup = Box::new(held.records.setup.clone());
                    nursery.held = Some(held);
                    SpawnerReply::Taken { seq, setup, report }
                }
                Err(why) => SpawnerReply::NotTaken { seq, why },
            };
            (Some(reply), Vec::new())
        }
        request @ (SpawnerRequest::TakeFiles { .. }
        | SpawnerRequest::Persist { .. }
        | SpawnerRequest::Pause { .. }
        | SpawnerRequest::Restore { .. }) => {
            (serve_disk(nursery, request, fds, socket), Vec::new())
        }
        SpawnerRequest::Job { name, payload } => {
            if !fds.is_empty() {
                let answer = fds.remove(0);
                // A child that cannot be made answers by the end of its socket.
                let _ = process::fork(proof, CloneFlags::default(), None, |_| {
                    let mut keep: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    keep.push(answer.as_fd());
                    if process::close_all_but(&keep).is_err() {
                        return 1;
                    }
                    let bytes = job(&name, &payload, fds);
                    i32::from(channel::send(&answer, &bytes, &[]).is_err())
                });
            }
            (None, Vec::new())
        }
    }
}

fn take(source: proto::Source, clones: Option<u32>) -> Take {
    let proto::Source { init, ids, uppers, into, base, seal, layers } = source;
    Take { init, ids, uppers, into, base, seal, layers, clones }
}

/// Serves requests to a template about snapshots on disk.
fn serve_disk(
    nursery: &mut Nursery,
    request: SpawnerRequest,
    mut fds: Vec<OwnedFd>,
    server: &OwnedFd,
) -> Option<SpawnerReply> {
    let take = |source| take(source, None);
    let nobody = |seq| {
        let why = TakeError::Failed("no socket to init".to_owned());
        Some(SpawnerReply::NotTaken { seq, why })
    };
    Some(match request {
        SpawnerRequest::TakeFiles { seq, source } => {
            let Some(holder) = fds.pop() else { return nobody(seq) };
            match HeldFiles::take(&take(source), &holder) {
                Ok((files, setup, report)) => {
                    nursery.files = Some(files);
                    SpawnerReply::Taken { seq, setup: Box::new(setup), report }
                }
                Err(why) => SpawnerReply::NotTaken { seq, why },
            }
        }
        SpawnerRequest::Persist { seq, dir, label } => {
            let written = match (&nursery.held, &nursery.files) {
                (Some(held), _) => held.persist(&dir, &label, server),
                (None, Some(files)) => files.persist(&dir, &label, server),
                (None, None) => {
                    let nothing = io::ErrorKind::NotFound.into();
                    Err(Failure::new("writing a snapshot that was not taken", &nothing))
                }
            };
            match written {
                Ok(report) => SpawnerReply::Persisted { seq, report },
                Err(failure) => SpawnerReply::Failed { seq, failure },
            }
        }
        SpawnerRequest::Pause { seq, source, dir, label } => {
            let Some(holder) = fds.pop() else { return nobody(seq) };
            return Held::pause(seq, &take(source), &holder, (&dir, &label), server);
        }
        SpawnerRequest::Restore { seq, dir, ids, known, share } => {
            match restore(&dir, &ids, known, share) {
                Ok((source, restored)) => {
                    match source {
                        Source::Memory(held) => nursery.held = Some(*held),
                        Source::Files(files) => nursery.saved_files = Some(files),
                    }
                    SpawnerReply::Restored { seq, restored }
                }
                Err(why) => SpawnerReply::NotRestored { seq, why },
            }
        }
        _ => return None,
    })
}

/// The sandbox's own directory on the host.
fn state(setup: &Setup, sources: &[MountSource]) -> Result<String, Failure> {
    let source = sources.get(setup.state);
    let invalid = || Failure::new("finding a clone's directory", &io::ErrorKind::NotFound.into());
    source.map(|source| source.path.clone()).ok_or_else(invalid)
}

/// How long nothing is asked before an embryo is made, so that making it is in nobody's way.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Whether nothing is asked for a moment.
fn is_idle(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&IDLE)), Ok(0))
}

/// The embryo that is ready, and the place where the next is wanted.
#[derive(Default)]
struct Nursery {
    embryo: Option<Embryo>,
    wish: Option<Place>,
    /// Templates that have not ended yet.
    templates: Vec<OwnedFd>,
    /// What a template makes its sandboxes from.
    held: Option<Held>,
    /// What it has for the next picture of the same sandbox.
    copies: Option<Copies>,
    /// Files that it has taken, to be written down.
    files: Option<HeldFiles>,
    /// Where files are that its sandboxes begin with.
    saved_files: Option<SavedFiles>,
}

impl Nursery {
    /// Gives a new sandbox the files that it begins with, if any.
    fn give_files(&self, setup: &Setup, sources: &[MountSource]) -> Result<(), Failure> {
        match (&self.held, &self.saved_files) {
            (Some(held), _) => held.give_files(setup, &state(setup, sources)?),
            (None, Some(files)) => files.give(setup, &state(setup, sources)?),
            (None, None) => Ok(()),
        }
    }

    /// Waits for the ends of templates until a request comes: who asks for one does so seldom, and
    /// nothing of it is to be left.
    fn bury_templates(&mut self, socket: &OwnedFd) {
        while !self.templates.is_empty() {
            let all = std::iter::once(socket).chain(&self.templates);
            let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            if poll(&mut fds, None).is_err() {
                return;
            }
            let came: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let mut ended = came.iter().skip(1);
            self.templates.retain(|_| ended.next() != Some(&true));
            reap();
            if came.first() == Some(&true) {
                return;
            }
        }
    }

    fn grant(&mut self, proof: &SingleThreaded, bounds: &Bounds) {
        if let Some(place) = self.wish.take() {
            // The old one ends before the new one needs its memory.
            self.embryo = None;
            // Without one, a sandbox is made in one go: the failure will be told then.
            self.embryo = Embryo::conceive(proof, bounds, place, true, None).ok();
        }
    }

    /// The embryo at this place. What was wished for there is no longer needed.
    fn embryo_at(&mut self, place: &Place) -> Option<Embryo> {
        self.wish.take_if(|wish| wish == place);
        self.embryo.take_if(|embryo| embryo.waits_at(place))
    }
}

/// Enters a user namespace in which this process is root, with one id: its own.
///
/// For a server without root and without subordinate ids; see `user_namespaces(7)`.
pub fn become_root_of_one_id(proof: &SingleThreaded) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    process::unshare(proof, CloneFlags::USER)
        .map_err(|e| Failure::new("unshare of the user namespace", &e))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {} 1", uid.as_raw())),
        ("gid_map", format!("0 {} 1", gid.as_raw())),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, text).map_err(|e| Failure::new(format!("writing {path}"), &e))?;
    }
    Ok(())
}
