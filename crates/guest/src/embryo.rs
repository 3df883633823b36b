//! An init in namespaces of its own that does not know yet what it will be.
//!
//! Most of the time to make a sandbox goes into what is alike for all of them: namespaces, groups
//! and kernel file systems. One is made ahead while there is nothing else to do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use forkyard_sys::channel;
use forkyard_sys::mount::{MountAttr, NODEV, NOSUID, RDONLY, clone_mount, mount_setattr};
use forkyard_sys::process::{self, Child, CloneFlags, SingleThreaded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::CWD;
use rustix::process::Pid;
use serde::Serialize;

use crate::devices;
use crate::init::{self, Birth, Growth};
use crate::launch::Bounds;
use crate::proto::{Failure, Ids, MountSource, Place, Setup, encode};
use crate::template::Held;

pub(crate) struct Embryo {
    child: Child,
    /// Its setup, sockets and mounts go through this.
    cord: OwnedFd,
    place: Place,
    /// What its layers' ids are shown through, where it has a range.
    user_namespace: Option<File>,
    /// Its own /dev, where one can be made.
    dev: Option<OwnedFd>,
}

impl Embryo {
    /// Has it cloned, puts it at its place, and lets it grow as far as it can without a setup.
    pub(crate) fn conceive(
        proof: &SingleThreaded,
        bounds: &Bounds,
        place: Place,
        own_network: bool,
        held: Option<&Held>,
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
        let group = place.cgroup2.as_ref().map(|path| open_group(path)).transpose()?;
        let child = process::fork(proof, flags, group.as_ref().map(AsFd::as_fd), |proof| {
            init::main(proof, bounds, theirs, join(&place.cgroup1), held)
        })
        .map_err(|e| Failure::new("clone3 into new namespaces", &e))?;
        // From here on, the end of its cord ends it.
        write_maps(child.pid, place.ids)?;
        let single_id = place.ids == Ids::Single;
        tell(&cord, &Growth { single_id, own_network }, &[])?;
        let user_namespace = match place.ids {
            Ids::Range { .. } => {
                let path = format!("/proc/{}/ns/user", child.pid);
                let open = File::open(&path);
                Some(open.map_err(|e| Failure::new(format!("opening {path}"), &e))?)
            }
            Ids::Outer | Ids::Single => None,
        };
        let dev = user_namespace.as_ref().and_then(|_| devices::own().ok());
        Ok(Self { child, cord, place, user_namespace, dev })
    }

    /// Whether it waits at this place: out of memory, the host may have killed it.
    pub(crate) fn waits_at(&self, place: &Place) -> bool {
        let mut ended = [PollFd::new(&self.child.pidfd, PollFlags::IN)];
        self.place == *place && matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
    }

    /// Gives it its mounts, and tells it what to be. `sockets` are its ends of the control channel
    /// and of the socket that it listens at.
    pub(crate) fn bear(
        mut self,
        sources: &[MountSource],
        setup: Setup,
        sockets: &[OwnedFd],
    ) -> Result<Child, Failure> {
        let mounts: Vec<_> =
            sources.iter().map(|source| self.mount(source)).collect::<Result<_, _>>()?;
        let fds: Vec<_> = sockets.iter().chain(&mounts).collect();
        tell(&self.cord, &Birth { setup }, &fds)?;
        Ok(self.child)
    }

    /// Makes a detached mount of a source, its ids shown as the sandbox has them.
    fn mount(&mut self, source: &MountSource) -> Result<OwnedFd, Failure> {
        let devices = source.path == "/dev";
        let tree = if let Some(dev) = self.dev.take_if(|_| devices) {
            dev
        } else {
            let path = devices::instead_of_hosts(&source.path);
            clone_mount(CWD, &path, source.recursive)
                .map_err(|e| Failure::new(format!("open_tree of {}", source.path), &e))?
        };
        // The device nodes and kernel file systems keep their owner: the host's root.
        let keep = devices || source.path == "/sys";
        // What users show to a sandbox brings no devices, whoever made nodes there.
        let volume = source.recursive && !keep;
        let attr = MountAttr {
            set: if source.read_only { RDONLY } else { 0 }
                | if volume { NODEV | NOSUID } else { 0 },
            idmap: self.user_namespace.as_ref().map(AsFd::as_fd).filter(|_| !keep),
            recursive: source.recursive,
        };
        if attr.set != 0 || attr.idmap.is_some() {
            mount_setattr(&tree, attr).map_err(|e| {
                Failure::new(format!("mount_setattr (idmapped) of {}", source.path), &e)
            })?;
        }
        Ok(tree)
    }
}

fn tell(cord: &OwnedFd, what: &impl Serialize, fds: &[&OwnedFd]) -> Result<(), Failure> {
    let invalid = || io::ErrorKind::InvalidInput.into();
    let bytes = encode(what).map_err(|_| Failure::new("encoding", &invalid()))?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    channel::send(cord, &bytes, &fds).map_err(|e| Failure::new("telling init what to be", &e))
}

pub(crate) fn open_group(path: &str) -> Result<OwnedFd, Failure> {
    forkyard_sys::mount::open_dir(path).map_err(|e| Failure::new(format!("opening {path}"), &e))
}

/// Moves this process into v1 groups.
///
/// Only a thread that moves itself does so without a lock on all forks and exits of the host, and
/// the wait for all processors that comes with it: ten milliseconds at times. There is no such way
/// into a group of the unified hierarchy but to be cloned into it.
pub(crate) fn join(groups: &[String]) -> Result<(), Failure> {
    for group in groups {
        let path = format!("{group}/tasks");
        std::fs::write(&path, "0").map_err(|e| Failure::new(format!("writing {path}"), &e))?;
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
