//! What sandboxes have in /dev: nodes of harmless devices, and places for what each mounts there.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use forkyard_sys::mount::{NOEXEC, NOSUID, attach_mount, clone_mount, new_mount};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat, symlinkat};

use crate::proto::Failure;

/// Devices of a sandbox: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The directory that [`cover`] covered: one that every host has and nobody needs here. All of
/// /dev would do, were it not for stores and volumes in /dev/shm.
static COVERED: OnceLock<&str> = OnceLock::new();

/// Where the devices are that sandboxes without a /dev of their own get a read-only view of.
pub(crate) fn common() -> &'static str {
    COVERED.get_or_init(|| if Path::new("/dev/pts").is_dir() { "/dev/pts" } else { "/dev" })
}

/// Where to find the source of a mount: of the host's /dev, shared memory alone is shown.
pub(crate) fn instead_of_hosts(source: &str) -> String {
    match Path::new(source).strip_prefix("/dev") {
        Ok(rest) if !rest.starts_with("shm") => format!("{}/{}", common(), rest.display()),
        _ => source.to_owned(),
    }
}

/// Covers a directory of this namespace by these devices.
pub(crate) fn cover() -> Result<(), Failure> {
    let failed = |what: String| move |e: io::Error| Failure::new(what, &e);
    let mut binds = Vec::new();
    for (name, ..) in DEVICES {
        let path = format!("/dev/{name}");
        let bind =
            clone_mount(CWD, &path, false).map_err(failed(format!("open_tree of {path}")))?;
        binds.push(bind);
    }
    let dev = tmpfs()?;
    let place = common();
    attach_mount(&dev, CWD, place).map_err(failed(format!("covering {place}")))?;
    for (bind, (name, major, minor)) in binds.into_iter().zip(DEVICES) {
        let failed = |e: io::Error| Failure::new(format!("making /dev/{name}"), &e);
        // A node of its own needs no mount of its own; without the right to make one, the host's.
        if make_node(&dev, name, major, minor).is_err() {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o666);
            drop(openat(&dev, name, flags, mode).map_err(|e| failed(e.into()))?);
            attach_mount(&bind, &dev, name).map_err(failed)?;
        }
    }
    furnish(&dev)
}

/// A /dev for one sandbox, detached: with inotify(7), who has nodes in common sees when others
/// open them. It takes the right to make nodes.
pub(crate) fn own() -> Result<OwnedFd, Failure> {
    let dev = tmpfs()?;
    for (name, major, minor) in DEVICES {
        make_node(&dev, name, major, minor)
            .map_err(|e| Failure::new(format!("making /dev/{name}"), &e))?;
    }
    furnish(&dev)?;
    Ok(dev)
}

fn tmpfs() -> Result<OwnedFd, Failure> {
    let options = [("mode", "0755"), ("size", "64k")];
    new_mount("tmpfs", &options, NOSUID | NOEXEC)
        .map_err(|e| Failure::new("making a tmpfs for /dev", &e))
}

fn make_node(dev: &OwnedFd, name: &str, major: u32, minor: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    let number = rustix::fs::makedev(major, minor);
    mknodat(dev, name, FileType::CharacterDevice, mode, number)?;
    // Whatever the umask.
    Ok(rustix::fs::chmodat(dev, name, mode, rustix::fs::AtFlags::empty())?)
}

/// Makes places for mounts, and the usual links.
fn furnish(dev: &OwnedFd) -> Result<(), Failure> {
    for dir in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, dir, Mode::from_raw_mode(0o755))
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
        symlinkat(target, dev, name)
            .map_err(|e| Failure::new(format!("making /dev/{name}"), &e.into()))?;
    }
    Ok(())
}
