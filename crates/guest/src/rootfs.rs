//! Builds a sandbox's root from the mounts that the spawner made, and moves into it.
//!
//! Everything is resolved below descriptors: an image whose `/proc` is a symbolic link, or whose
//! `/etc` leads out, only harms itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use forkyard_sys::mount::{
    self, MountAttr, NODEV, NOEXEC, NOSUID, RDONLY, attach_mount, attach_mount_on, clone_mount,
    mount_setattr, new_mount, open_dir,
};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::proto::{Failure, Overlay, Setup};

/// Where mounts are put while a root is built: a directory that every root has, is not needed
/// meanwhile, and goes away with the old root.
const ANCHOR: &str = "/dev";

/// Kernel files that tell of the host, as OCI runtimes mask them: covered by an empty file.
const MASKED_FILES: [&str; 7] = [
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/timer_list",
    "proc/timer_stats",
];

/// Kernel directories that tell of the host: covered by an empty directory.
const MASKED_DIRS: [&str; 5] =
    ["proc/acpi", "proc/asound", "proc/scsi", "sys/firmware", "sys/devices/virtual/powercap"];

/// Kernel files that change the host: shown read-only.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// Builds the root that `setup` describes over the uppers of `generation`, and makes it `/`.
///
/// The old root is let go. `mounts` are the sources of `setup`, in its order, detached.
pub(crate) fn enter(setup: &Setup, generation: &str, mounts: &[OwnedFd]) -> Result<(), Failure> {
    let anchor = open_dir(ANCHOR).map_err(|e| Failure::new("opening /dev", &e))?;
    let state = source(mounts, setup.state)?;
    for overlay in &setup.overlays {
        for &lower in &overlay.lowers {
            attach_once(source(mounts, lower)?, &anchor)?;
        }
    }
    attach_once(state, &anchor)?;
    write_identity(setup, generation, state)?;

    let mut root = None;
    for overlay in &setup.overlays {
        let target = match &root {
            None => ANCHOR.to_owned(),
            Some(root) => {
                let dir = directory(root, &overlay.target)?;
                mount_overlay(overlay, generation, state, mounts, &fd_path(&dir))?;
                continue;
            }
        };
        mount_overlay(overlay, generation, state, mounts, &target)?;
        root = Some(open_dir(ANCHOR).map_err(|e| Failure::new("opening the root", &e))?);
    }
    let Some(root) = root else {
        return Err(Failure::new("building a root of no overlay", &Errno::INVAL.into()));
    };
    mount_kernel_files(setup, &root, source(mounts, setup.dev)?)?;
    if setup.make_workdir {
        directory(&root, &setup.workdir)?;
    }
    for volume in &setup.volumes {
        let fd = source(mounts, volume.source)?;
        mount_volume(&root, fd, &volume.target)?;
    }
    // After the volumes: with the host's network, /sys is one.
    mask(&root)?;
    mount::pivot_into(&root).map_err(|e| Failure::new("pivot_root into the sandbox's root", &e))
}

/// Makes the empty directories that the overlays of a generation write to.
pub(crate) fn make_generation(
    setup: &Setup,
    generation: &str,
    mounts: &[OwnedFd],
) -> Result<(), Failure> {
    let state = source(mounts, setup.state)?;
    make_dir(state, generation)?;
    for overlay in &setup.overlays {
        let upper = format!("{generation}/{}", overlay.name);
        make_dir(state, &upper)?;
        make_dir(state, &format!("{upper}.work"))?;
    }
    Ok(())
}

fn source(mounts: &[OwnedFd], index: usize) -> Result<&OwnedFd, Failure> {
    mounts.get(index).ok_or_else(|| Failure::new("finding a mount", &Errno::BADF.into()))
}

/// Attaches a mount at the anchor; one that is there already, as a layer used twice, stays.
fn attach_once(fd: &OwnedFd, anchor: &OwnedFd) -> Result<(), Failure> {
    match attach_mount_on(fd, anchor) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        Err(e) => Err(Failure::new("attaching a layer", &e)),
    }
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Mounts one overlay. By mount(2), since a value given to fsconfig(2) ends at 256 bytes.
fn mount_overlay(
    overlay: &Overlay,
    generation: &str,
    state: &OwnedFd,
    mounts: &[OwnedFd],
    target: &str,
) -> Result<(), Failure> {
    let mut lowers = String::new();
    for &lower in &overlay.lowers {
        if !lowers.is_empty() {
            lowers.push(':');
        }
        lowers.push_str(&fd_path(source(mounts, lower)?));
    }
    let upper = format!("{}/{generation}/{}", fd_path(state), overlay.name);
    // `userxattr`: this is a user namespace, which may not read trusted.* attributes.
    // `volatile`: a sandbox does not outlive its host's crash, so nothing need reach the disk.
    let options =
        format!("lowerdir={lowers},upperdir={upper},workdir={upper}.work,userxattr,volatile");
    let options = std::ffi::CString::new(options)
        .map_err(|_| Failure::new("mounting the overlay", &Errno::INVAL.into()))?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|e| {
            Failure::new(format!("mounting the overlay for {}", overlay.target), &e.into())
        })
}

/// Writes the files that carry the sandbox's name, into the upper that will be mounted.
fn write_identity(setup: &Setup, generation: &str, state: &OwnedFd) -> Result<(), Failure> {
    let name = setup.overlays.first().map_or("root", |o| o.name.as_str());
    let upper = open_dir_at(state, &format!("{generation}/{name}"))
        .map_err(|e| Failure::new("opening the upper directory", &e))?;
    make_dir(&upper, "etc")?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{}\n",
        setup.hostname
    );
    write_file(&upper, "etc/hosts", hosts.as_bytes())?;
    write_file(&upper, "etc/hostname", format!("{}\n", setup.hostname).as_bytes())?;
    if let Some(resolv_conf) = &setup.resolv_conf {
        write_file(&upper, "etc/resolv.conf", resolv_conf)?;
    }
    Ok(())
}

fn write_file(dir: &OwnedFd, path: &str, contents: &[u8]) -> Result<(), Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW;
    let fd = openat(dir, path, flags, Mode::from_raw_mode(0o644))
        .map_err(|e| Failure::new(format!("making /{path}"), &e.into()))?;
    rustix::io::write(&fd, contents)
        .map_err(|e| Failure::new(format!("writing /{path}"), &e.into()))?;
    Ok(())
}

/// /proc, /sys, /dev and /tmp.
fn mount_kernel_files(setup: &Setup, root: &OwnedFd, dev: &OwnedFd) -> Result<(), Failure> {
    for name in ["proc", "sys", "dev", "tmp"] {
        make_dir(root, name)?;
    }
    attach(root, "proc", || new_mount("proc", &[], NOSUID | NODEV | NOEXEC))?;
    if !setup.host_network {
        // sysfs belongs to the network namespace, which is the host's otherwise.
        attach(root, "sys", || new_mount("sysfs", &[], RDONLY | NOSUID | NODEV | NOEXEC))?;
        if setup.cgroup2 {
            let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
            attach(root, "sys/fs/cgroup", || new_mount("cgroup2", &[], attributes))?;
        }
    }
    attach_mount(dev, root, "dev").map_err(|e| Failure::new("attaching /dev", &e))?;
    attach(root, "dev/pts", || {
        // The group of terminals is 5 on Debian and Fedora alike; with a single id there is none.
        let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
        let attributes = NOSUID | NOEXEC;
        new_mount("devpts", &options, attributes)
            .or_else(|_| new_mount("devpts", &options[..3], attributes))
    })?;
    attach(root, "dev/mqueue", || new_mount("mqueue", &[], NOSUID | NODEV | NOEXEC))?;
    let size = setup.tmp_size.to_string();
    let options = [("mode", "1777"), ("size", size.as_str())];
    attach(root, "dev/shm", || new_mount("tmpfs", &options, NOSUID | NODEV))?;
    attach(root, "tmp", || new_mount("tmpfs", &options, NOSUID | NODEV))
}

fn attach(
    root: &OwnedFd,
    target: &str,
    make: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<(), Failure> {
    make()
        .and_then(|fd| attach_mount(&fd, root, target))
        .map_err(|e| Failure::new(format!("mounting /{target}"), &e))
}

/// Covers what a guest must not see or change.
fn mask(root: &OwnedFd) -> Result<(), Failure> {
    let failed = |path: &str, e: &io::Error| Failure::new(format!("masking /{path}"), e);
    for path in MASKED_FILES {
        if exists(root, path) {
            clone_mount(root, "dev/null", false)
                .and_then(|null| attach_mount(&null, root, path))
                .map_err(|e| failed(path, &e))?;
        }
    }
    for path in MASKED_DIRS {
        if exists(root, path) {
            new_mount("tmpfs", &[("size", "0"), ("nr_inodes", "1")], RDONLY | NOSUID | NODEV)
                .and_then(|empty| attach_mount(&empty, root, path))
                .map_err(|e| failed(path, &e))?;
        }
    }
    for path in READ_ONLY {
        if exists(root, path) {
            let attr = MountAttr { set: RDONLY | NOSUID | NODEV | NOEXEC, ..MountAttr::default() };
            clone_mount(root, path, false)
                .and_then(|same| mount_setattr(&same, attr).map(|()| same))
                .and_then(|same| attach_mount(&same, root, path))
                .map_err(|e| failed(path, &e))?;
        }
    }
    Ok(())
}

fn exists(root: &OwnedFd, path: &str) -> bool {
    rustix::fs::accessat(root, path, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
        .is_ok()
}

/// Puts a host directory or file at `target`, which is made when it is not there.
fn mount_volume(root: &OwnedFd, volume: &OwnedFd, target: &str) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(format!("mounting the volume at {target}"), &e);
    let kind = rustix::fs::fstat(volume).map_err(|e| failed(e.into()))?.st_mode;
    let place = if rustix::fs::FileType::from_raw_mode(kind).is_dir() {
        directory(root, target)?
    } else {
        let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
        let parent = directory(root, parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        drop(
            openat(&parent, name, flags, Mode::from_raw_mode(0o644))
                .map_err(|e| failed(e.into()))?,
        );
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(&parent, name, flags, Mode::empty()).map_err(|e| failed(e.into()))?
    };
    attach_mount_on(volume, &place).map_err(failed)
}

/// Opens the directory at an absolute path below `root`, making what is not there. Links are
/// followed within `root`.
fn directory(root: &OwnedFd, path: &str) -> Result<OwnedFd, Failure> {
    let failed = |e: Errno| Failure::new(format!("making the directory {path}"), &e.into());
    let mut done = String::from(".");
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            return Err(failed(Errno::INVAL));
        }
        let parent = open_in_root(root, &done).map_err(failed)?;
        match mkdirat(&parent, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        done.push('/');
        done.push_str(part);
    }
    open_in_root(root, &done).map_err(failed)
}

fn open_in_root(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

fn open_dir_at(dir: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat(dir, path, flags, Mode::empty())?)
}

fn make_dir(dir: impl AsFd, name: &str) -> Result<(), Failure> {
    let dir: BorrowedFd<'_> = dir.as_fd();
    match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Failure::new(format!("making /{name}"), &e.into())),
    }
}
