//! The spawner: the only process that makes sandboxes, small so that its forks cost little.
//!
//! It has one thread and no state but a mount namespace of its own: requests come in order over
//! one socket, and it ends when the server's end of it closes. The sandboxes live on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::mount::{NOEXEC, NOSUID, attach_mount, clone_mount, make_private, new_mount};
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use forkyard_sys::seccomp::Filter;
use forkyard_sys::{channel, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat, symlinkat};

use crate::embryo::Embryo;
use crate::proto::{Failure, Place, SpawnerReply, SpawnerRequest, decode, encode};

/// A job that the spawner runs in a child of its own: its name, its arguments and descriptors.
/// What it gives back is sent to whoever asked.
pub type Job = fn(name: &str, payload: &[u8], fds: Vec<OwnedFd>) -> Vec<u8>;

/// Devices of a sandbox: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Serves requests on `socket` until its other end closes.
///
/// The process must be single-threaded and, unless it is root, already in a user namespace where
/// it is. Its standard streams should be `/dev/null`: sandboxes start with copies of them.
///
/// # Errors
/// When the mount namespace cannot be set up, or the socket fails.
pub fn run(socket: &OwnedFd, job: Job) -> Result<(), Failure> {
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
    make_devices()?;
    // Once for all commands of all sandboxes: they are forks of this process.
    let filter = Filter::compile()
        .map_err(|e| Failure::new(e.to_string(), &io::ErrorKind::InvalidData.into()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut nursery = Nursery::default();
    loop {
        reap();
        if nursery.wish.is_some() && is_idle(socket) {
            nursery.grant(&proof, &filter);
        }
        let message = match channel::receive(socket) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::CONNRESET.raw_os_error()) => {
                return Ok(());
            }
            Err(e) => return Err(Failure::new("receiving a request", &e)),
        };
        let Ok(request) = decode::<SpawnerRequest>(&message.bytes) else { continue };
        let (reply, fds) = serve(&proof, &filter, &mut nursery, request, message.fds, job);
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
    filter: &Filter,
    nursery: &mut Nursery,
    request: SpawnerRequest,
    mut fds: Vec<OwnedFd>,
    job: Job,
) -> (Option<SpawnerReply>, Vec<OwnedFd>) {
    match request {
        SpawnerRequest::Spawn { seq, place, sources, setup } => {
            let own_network = !setup.host_network;
            let conceived = match nursery.take(&place).filter(|_| own_network) {
                Some(embryo) => Ok(embryo),
                None => Embryo::conceive(proof, filter, place, own_network),
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
}

impl Nursery {
    fn grant(&mut self, proof: &SingleThreaded, filter: &Filter) {
        if let Some(place) = self.wish.take() {
            // The old one ends before the new one needs its memory.
            self.embryo = None;
            // Without one, a sandbox is made in one go: the failure will be told then.
            self.embryo = Embryo::conceive(proof, filter, place, true).ok();
        }
    }

    /// The embryo at this place. What was wished for there is no longer needed.
    fn take(&mut self, place: &Place) -> Option<Embryo> {
        self.wish.take_if(|wish| wish == place);
        self.embryo.take_if(|embryo| embryo.is_at(place))
    }
}

/// Covers this namespace's /dev by the devices that every sandbox gets a read-only view of.
fn make_devices() -> Result<(), Failure> {
    let failed = |what: String| move |e: io::Error| Failure::new(what, &e);
    let mut binds = Vec::new();
    for (name, ..) in DEVICES {
        let path = format!("/dev/{name}");
        let bind =
            clone_mount(CWD, &path, false).map_err(failed(format!("open_tree of {path}")))?;
        binds.push((name, bind));
    }
    let options = [("mode", "0755"), ("size", "64k")];
    let dev = new_mount("tmpfs", &options, NOSUID | NOEXEC).map_err(failed("tmpfs".into()))?;
    attach_mount(&dev, CWD, "/dev").map_err(failed("covering /dev".into()))?;
    for ((name, bind), (_, major, minor)) in binds.into_iter().zip(DEVICES) {
        let failed = |e: io::Error| Failure::new(format!("making /dev/{name}"), &e);
        let mode = Mode::from_raw_mode(0o666);
        let number = rustix::fs::makedev(major, minor);
        // A node of its own needs no mount of its own; without the right to make one, the host's.
        if mknodat(&dev, name, FileType::CharacterDevice, mode, number).is_err() {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(&dev, name, flags, mode).map_err(|e| failed(e.into()))?);
            attach_mount(&bind, &dev, name).map_err(failed)?;
        } else {
            rustix::fs::chmodat(&dev, name, mode, rustix::fs::AtFlags::empty())
                .map_err(|e| failed(e.into()))?;
        }
    }
    for dir in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, dir, Mode::from_raw_mode(0o755))
            .map_err(|e| Failure::new(format!("making /dev/{dir}"), &e.into()))?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        symlinkat(target, &dev, name)
            .map_err(|e| Failure::new(format!("making /dev/{name}"), &e.into()))?;
    }
    Ok(())
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
