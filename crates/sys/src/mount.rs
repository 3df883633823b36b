//! Mounts by descriptor: what rustix lacks of the new mount API.
//!
//! See [mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// Attributes to set on a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr<'fd> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// Show the ids of its files through the mapping of this user namespace.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// Apply to all mounts below as well.
    pub recursive: bool,
}

/// `MOUNT_ATTR_RDONLY`
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// `MOUNT_ATTR_NOSUID`
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// `MOUNT_ATTR_NODEV`
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// `MOUNT_ATTR_NOEXEC`
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Changes attributes of the mount that `fd` is the root of.
pub fn mount_setattr(fd: impl AsFd, attr: MountAttr<'_>) -> io::Result<()> {
    // SAFETY: mount_attr is all integers.
    let mut raw: libc::mount_attr = unsafe { std::mem::zeroed() };
    raw.attr_set = attr.set;
    if let Some(idmap) = attr.idmap {
        raw.attr_set |= libc::MOUNT_ATTR_IDMAP;
        raw.userns_fd = idmap.as_raw_fd() as u64;
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if attr.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, and `raw` is valid for the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&raw),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a detached mount of a file system that needs no device: `proc`, `tmpfs`, `overlay` ...
///
/// `options` are keys with values; an empty value is a flag.
pub fn new_mount(fs: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for &(key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, key)?;
        } else {
            fsconfig_set_string(&context, key, value)?;
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes a detached copy of the mount at `path` below `dir`: a bind mount not yet anywhere.
///
/// An empty path means `dir` itself.
pub fn clone_mount(dir: impl AsFd, path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(dir, path, flags)?)
}

/// Attaches a detached mount at `path`, relative to `dir`; the last part is not followed.
pub fn attach_mount(mount: impl AsFd, dir: impl AsFd, path: &str) -> io::Result<()> {
    Ok(move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a detached mount over the directory or file that `target` is.
pub fn attach_mount_on(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Keeps mounts made from now on in this mount namespace from reaching any other, and the other
/// way round.
pub fn make_private() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Makes the directory `root` the root of this mount namespace. The old one is still mounted, on
/// top of the new one where no path leads, until [`OldRoot::detach`].
///
/// See [pivot_root(2)](https://man7.org/linux/man-pages/man2/pivot_root.2.html), where both
/// arguments are the directory itself.
pub fn pivot_into(root: impl AsFd) -> io::Result<OldRoot> {
    let old = open_dir("/")?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::process::chdir("/")?;
    Ok(OldRoot(old))
}

/// Makes the directory `root`, on which or below which `top` is the mount that it is in, the root of
/// this process, and `top` that of this mount namespace. The old one is as with [`pivot_into`].
pub fn pivot_into_below(top: impl AsFd, root: impl AsFd) -> io::Result<OldRoot> {
    let old = pivot_into(top)?;
    rustix::process::fchdir(root)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(old)
}

/// Lets go of the mount that `root` is the root of, and of all that is mounted there. The working
/// directory is `/` then.
pub fn detach(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    let done = rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH);
    rustix::process::chdir("/")?;
    Ok(done?)
}

/// The root that was left for another.
#[derive(Debug)]
#[must_use]
pub struct OldRoot(OwnedFd);

impl OldRoot {
    /// Lets go of it, and of all that is mounted there: what takes longest about a new root.
    pub fn detach(self) -> io::Result<()> {
        detach(&self.0)
    }

    /// Its root directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens a directory to be used as a place only (`O_PATH`).
pub fn open_dir(path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}
