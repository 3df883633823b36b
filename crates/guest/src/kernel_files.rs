//! The kernel's own file systems in a sandbox: which it has, and what of them a guest may see.

use std::io;
use std::os::fd::OwnedFd;

use forkyard_sys::mount::{
    MountAttr, NODEV, NOEXEC, NOSUID, RDONLY, attach_mount, clone_mount, mount_setattr, new_mount,
};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::devices;
use crate::proto::Failure;

/// What a guest does not get to see or change of a file system.
struct Masks {
    name: &'static str,
    /// Files that tell of the host: covered by an empty one.
    files: &'static [&'static str],
    /// Directories that tell of the host: covered by an empty one.
    dirs: &'static [&'static str],
    /// What changes the host: shown read-only.
    read_only: &'static [&'static str],
}

/// Most terminals of a sandbox. The host has 3,072 for all together (`kernel.pty.max` less
/// `kernel.pty.reserve`).
const PTYS_MAX: u32 = 256;

/// As OCI runtimes mask it.
const PROC: Masks = Masks {
    name: "proc",
    files: &[
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "sched_debug",
        "timer_list",
        "timer_stats",
    ],
    dirs: &["acpi", "asound", "scsi"],
    read_only: &["bus", "fs", "irq", "sys", "sysrq-trigger"],
};

/// As OCI runtimes mask it.
const SYS: Masks = Masks {
    name: "sys",
    files: &[],
    dirs: &["firmware", "devices/virtual/powercap"],
    read_only: &[],
};

/// /proc and /sys with their masks. They know nothing of a root, and move on to the next.
pub(crate) struct KernelFiles {
    proc: OwnedFd,
    /// Absent in the host's network: sysfs belongs to the network namespace.
    sys: Option<OwnedFd>,
    /// `/proc/sys/kernel` as it can be written, for who makes System V objects with their ids.
    settings: Option<OwnedFd>,
    /// What roots are mounted in, see [`Stand`]; until the first is.
    stand: Option<Stand>,
}

/// A file system that a sandbox's root is mounted in, one after the other, out of the sandbox's
/// sight: a directory above them that stays the same when the root is another.
///
/// Landlock tells by it what is the sandbox's. That is not the directory that a root is mounted on:
/// on its way up the kernel passes over it.
pub(crate) struct Stand(OwnedFd);

impl Stand {
    /// The directory that stays, and in it that of the root.
    const ABOVE: &str = "above";
    const ROOT: &str = "above/root";
    /// Where the next root is built.
    const NEXT: &str = "next";
    const LAYERS: &str = "layers";

    /// Makes it, detached.
    fn make() -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::new("making what a root is mounted in", &e);
        let options = [("mode", "0755"), ("size", "64k"), ("nr_inodes", "16")];
        let mount = new_mount("tmpfs", &options, NOSUID | NODEV | NOEXEC).map_err(failed)?;
        for dir in [Self::ABOVE, Self::ROOT, Self::NEXT, Self::LAYERS] {
            mkdirat(&mount, dir, Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
        }
        let read_only = MountAttr { set: RDONLY, ..MountAttr::default() };
        mount_setattr(&mount, read_only).map_err(failed)?;
        Ok(Self(mount))
    }

    /// The mount itself.
    pub(crate) fn mount(&self) -> &OwnedFd {
        &self.0
    }

    /// Opens the directory that stays.
    pub(crate) fn above(&self) -> io::Result<OwnedFd> {
        self.open(Self::ABOVE)
    }

    /// Opens what the root is mounted on, or the root.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        self.open(Self::ROOT)
    }

    /// Opens where the next root is built, or that.
    pub(crate) fn next(&self) -> io::Result<OwnedFd> {
        self.open(Self::NEXT)
    }

    /// Opens where layers are put while an overlay is made of them.
    pub(crate) fn layers(&self) -> io::Result<OwnedFd> {
        self.open(Self::LAYERS)
    }

    fn open(&self, path: &str) -> io::Result<OwnedFd> {
        debug_assert_eq!(Self::ROOT, forkyard_snapshot::ROOT_PLACE.trim_start_matches('/'));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.0, path, flags, Mode::empty())?)
    }
}

impl KernelFiles {
    /// Mounts them over those of the host, in this mount namespace.
    pub(crate) fn mount(own_network: bool, keep_settings: bool) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::new("mounting /proc", &e);
        let proc = new_mount("proc", &[], NOSUID | NODEV | NOEXEC).map_err(failed)?;
        let sys = own_network
            .then(|| new_mount("sysfs", &[], RDONLY | NOSUID | NODEV | NOEXEC))
            .transpose()
            .map_err(|e| Failure::new("mounting /sys", &e))?;
        attach_mount(&proc, CWD, "/proc").map_err(failed)?;
        // As long as they can be written.
        crate::sysctl::set(&proc, own_network);
        let settings = keep_settings.then(|| crate::sysctl::open_dir(&proc, "sys/kernel"));
        let settings = settings.transpose().map_err(failed)?;
        mask(&proc, &PROC)?;
        if let Some(sys) = &sys {
            attach_mount(sys, CWD, "/sys").map_err(|e| Failure::new("mounting /sys", &e))?;
            mask(sys, &SYS)?;
        }
        Ok(Self { proc, sys, settings, stand: Some(Stand::make()?) })
    }

    /// Gives away what roots are mounted in.
    pub(crate) fn take_stand(&mut self) -> Option<Stand> {
        self.stand.take()
    }

    /// Gives away what [`KernelFiles::mount`] kept.
    pub(crate) fn take_settings(&mut self) -> Option<OwnedFd> {
        self.settings.take()
    }

    /// Shows the sandbox its own part of the unified cgroup hierarchy.
    pub(crate) fn add_cgroup2(&self) -> Result<(), Failure> {
        let Some(sys) = &self.sys else { return Ok(()) };
        new_mount("cgroup2", &[], RDONLY | NOSUID | NODEV | NOEXEC)
            .and_then(|cgroup2| attach_mount(&cgroup2, sys, "fs/cgroup"))
            .map_err(|e| Failure::new("mounting /sys/fs/cgroup", &e))
    }

    /// Takes them from the old root to this one.
    pub(crate) fn move_to(&self, root: &OwnedFd) -> Result<(), Failure> {
        let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
        attach_mount(&self.proc, root, "proc").map_err(failed("moving /proc"))?;
        match &self.sys {
            Some(sys) => attach_mount(sys, root, "sys").map_err(failed("moving /sys")),
            None => Ok(()),
        }
    }
}

/// What every root gets new, as guests write to it: terminals, message queues, shared memory and
/// /tmp.
pub(crate) struct Fresh {
    pts: OwnedFd,
    mqueue: OwnedFd,
    shm: OwnedFd,
    tmp: OwnedFd,
}

impl Fresh {
    /// Makes them, detached. /tmp and /dev/shm hold this many bytes each.
    pub(crate) fn mount(tmp_size: u64) -> Result<Self, Failure> {
        let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
        // The group of terminals is 5 on Debian and Fedora alike; with a single id there is none.
        let most = PTYS_MAX.to_string();
        let options = [
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("max", most.as_str()),
            ("gid", "5"),
        ];
        let pts = new_mount("devpts", &options, NOSUID | NOEXEC)
            .or_else(|_| new_mount("devpts", &options[..4], NOSUID | NOEXEC))
            .map_err(failed("making /dev/pts"))?;
        let mqueue = new_mount("mqueue", &[], NOSUID | NODEV | NOEXEC)
            .map_err(failed("making /dev/mqueue"))?;
        let size = tmp_size.to_string();
        let tmpfs = || new_mount("tmpfs", &[("mode", "1777"), ("size", &size)], NOSUID | NODEV);
        let shm = tmpfs().map_err(failed("making /dev/shm"))?;
        let tmp = tmpfs().map_err(failed("making /tmp"))?;
        Ok(Self { pts, mqueue, shm, tmp })
    }

    /// Puts them where they belong in this root, which has its /dev.
    pub(crate) fn attach(self, root: &OwnedFd) -> Result<(), Failure> {
        let places = [
            (&self.pts, "dev/pts"),
            (&self.mqueue, "dev/mqueue"),
            (&self.shm, "dev/shm"),
            (&self.tmp, "tmp"),
        ];
        for (mount, place) in places {
            attach_mount(mount, root, place)
                .map_err(|e| Failure::new(format!("mounting /{place}"), &e))?;
        }
        Ok(())
    }
}

/// Covers what a guest must not see of the host's own /sys.
pub(crate) fn mask_sys(sys: &OwnedFd) -> Result<(), Failure> {
    mask(sys, &SYS)
}

fn mask(dir: &OwnedFd, masks: &Masks) -> Result<(), Failure> {
    let cover = |paths: &[&str], make: &dyn Fn(&str) -> io::Result<OwnedFd>| {
        for path in paths.iter().filter(|path| exists(dir, path)) {
            make(path)
                .and_then(|cover| attach_mount(&cover, dir, path))
                .map_err(|e| Failure::new(format!("masking /{}/{path}", masks.name), &e))?;
        }
        Ok(())
    };
    let read_only = MountAttr { set: RDONLY | NOSUID | NODEV | NOEXEC, ..MountAttr::default() };
    // A node of the device, as the guest's own /dev/null: of no use but that it is empty.
    let null = format!("{}/null", devices::common());
    cover(masks.files, &|_| clone_mount(CWD, &null, false))?;
    cover(masks.dirs, &|_| {
        new_mount("tmpfs", &[("size", "0"), ("nr_inodes", "1")], RDONLY | NOSUID | NODEV)
    })?;
    cover(masks.read_only, &|path| {
        let same = clone_mount(dir, path, false)?;
        mount_setattr(&same, read_only).map(|()| same)
    })
}

fn exists(dir: &OwnedFd, path: &str) -> bool {
    rustix::fs::accessat(dir, path, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
        .is_ok()
}
