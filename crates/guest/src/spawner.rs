//! The spawner: the only process that makes sandboxes, small so that its forks cost little.
//!
//! It has one thread and no state but a mount namespace of its own: requests come in order over
//! one socket, and it ends when the server's end of it closes. The sandboxes live on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::mount::{
    MountAttr, NODEV, NOEXEC, NOSUID, RDONLY, attach_mount, clone_mount, make_private,
    mount_setattr, new_mount,
};
use forkyard_sys::process::{self, Child, CloneFlags, SingleThreaded};
use forkyard_sys::seccomp::Filter;
use forkyard_sys::{channel, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat, symlinkat};
use rustix::process::Pid;

use crate::init::{self, Birth};
use crate::proto::{
    Failure, Ids, MountSource, Setup, SpawnerReply, SpawnerRequest, decode, encode,
};

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
    let mut embryo = None;
    loop {
        reap();
        if embryo.is_none() && is_idle(socket) {
            // Without one, sandboxes are made in one go: the failure will be told then.
            embryo = Embryo::conceive(&proof, &filter, true).ok();
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
        let (reply, fds) = serve(&proof, &filter, &mut embryo, request, message.fds, job);
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
    embryo: &mut Option<Embryo>,
    request: SpawnerRequest,
    mut fds: Vec<OwnedFd>,
    job: Job,
) -> (Option<SpawnerReply>, Vec<OwnedFd>) {
    match request {
        SpawnerRequest::Spawn { seq, cgroup_procs, ids, sources, setup } => {
            let own_network = !setup.host_network;
            let conceived = match embryo.take().filter(|_| own_network) {
                Some(embryo) => Ok(embryo),
                None => Embryo::conceive(proof, filter, own_network),
            };
            let born = conceived
                .and_then(|embryo| embryo.bear(ids, &sources, &cgroup_procs, *setup, &fds));
            match born {
                Ok(child) => {
                    let pid = child.pid.as_raw_nonzero().get().cast_unsigned();
                    (Some(SpawnerReply::Spawned { seq, pid }), vec![child.pidfd])
                }
                Err(failure) => (Some(SpawnerReply::Failed { seq, failure }), Vec::new()),
            }
        }
        SpawnerRequest::Mounts { seq, pid, ids, sources } => {
            match Pid::from_raw(pid as i32)
                .ok_or_else(|| Failure::new("finding init", &io::ErrorKind::NotFound.into()))
                .and_then(|pid| mounts(pid, ids, &sources))
            {
                Ok(fds) => (Some(SpawnerReply::Mounts { seq }), fds),
                Err(failure) => (Some(SpawnerReply::Failed { seq, failure }), Vec::new()),
            }
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

/// An init in namespaces of its own that does not know yet what it will be.
///
/// Most of the time to make a sandbox goes into its namespaces, which are alike for all that have
/// a network of their own. One is made ahead while there is nothing else to do.
struct Embryo {
    child: Child,
    /// Its setup, sockets and mounts go through this.
    cord: OwnedFd,
}

impl Embryo {
    fn conceive(
        proof: &SingleThreaded,
        filter: &Filter,
        own_network: bool,
    ) -> Result<Self, Failure> {
        let (cord, theirs) = channel::pair().map_err(|e| Failure::new("socketpair", &e))?;
        let mut flags = CloneFlags::USER
            .and(CloneFlags::MOUNT)
            .and(CloneFlags::PID)
            .and(CloneFlags::IPC)
            .and(CloneFlags::UTS);
        if own_network {
            flags = flags.and(CloneFlags::NET);
        }
        let child = process::fork(proof, flags, None, |proof| init::main(proof, filter, theirs))
            .map_err(|e| Failure::new("clone3 into new namespaces", &e))?;
        Ok(Self { child, cord })
    }

    /// Gives it its ids, groups and mounts, and tells it what to be. `sockets` are its ends of
    /// the control channel and of the socket that it listens at.
    fn bear(
        self,
        ids: Ids,
        sources: &[MountSource],
        cgroup_procs: &[String],
        setup: Setup,
        sockets: &[OwnedFd],
    ) -> Result<Child, Failure> {
        let pid = self.child.pid;
        let given = attach(pid, cgroup_procs)
            .and_then(|()| write_maps(pid, ids))
            .and_then(|()| mounts(pid, ids, sources))
            .and_then(|mounts| {
                let birth = Birth { setup, single_id: ids == Ids::Single };
                let invalid = || std::io::ErrorKind::InvalidInput.into();
                let bytes = encode(&birth).map_err(|_| Failure::new("encoding", &invalid()))?;
                let fds: Vec<_> = sockets.iter().chain(&mounts).map(AsFd::as_fd).collect();
                channel::send(&self.cord, &bytes, &fds)
                    .map_err(|e| Failure::new("telling init what to be", &e))
            });
        // Without a birth, the end of its cord ends it.
        given.map(|()| self.child)
    }
}

/// Moves init into the groups of its sandbox, before it starts anything.
fn attach(pid: Pid, cgroup_procs: &[String]) -> Result<(), Failure> {
    for path in cgroup_procs {
        std::fs::write(path, pid.to_string())
            .map_err(|e| Failure::new(format!("writing {path}"), &e))?;
    }
    Ok(())
}

fn write_maps(pid: Pid, ids: Ids) -> Result<(), Failure> {
    let map = match ids {
        Ids::Range { base } => format!("0 {base} 65536"),
        // As in our own map, root and the rest are two ranges: one that spans both is refused.
        Ids::Outer => "0 0 1\n1 1 65535".to_owned(),
        Ids::Single => "0 0 1".to_owned(),
    };
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &map).map_err(|e| Failure::new(format!("writing {path}"), &e))?;
    }
    Ok(())
}

/// Makes one detached mount per source, its ids shown as the sandbox of `pid` has them.
fn mounts(pid: Pid, ids: Ids, sources: &[MountSource]) -> Result<Vec<OwnedFd>, Failure> {
    let userns = match ids {
        Ids::Range { .. } => {
            let path = format!("/proc/{pid}/ns/user");
            let open = File::open(&path);
            Some(open.map_err(|e| Failure::new(format!("opening {path}"), &e))?)
        }
        Ids::Outer | Ids::Single => None,
    };
    sources
        .iter()
        .map(|source| {
            let tree = clone_mount(CWD, &source.path, source.recursive)
                .map_err(|e| Failure::new(format!("open_tree of {}", source.path), &e))?;
            // The device nodes and kernel file systems keep their owner: the host's root.
            let keep = source.path == "/dev" || source.path == "/sys";
            // What users show to a sandbox brings no devices, whoever made nodes there.
            let volume = source.recursive && !keep;
            let attr = MountAttr {
                set: if source.read_only { RDONLY } else { 0 }
                    | if volume { NODEV | NOSUID } else { 0 },
                idmap: userns.as_ref().map(AsFd::as_fd).filter(|_| !keep),
                recursive: source.recursive,
            };
            if attr.set != 0 || attr.idmap.is_some() {
                mount_setattr(&tree, attr).map_err(|e| {
                    Failure::new(format!("mount_setattr (idmapped) of {}", source.path), &e)
                })?;
            }
            Ok(tree)
        })
        .collect()
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
