//! Builds a sandbox's root from the mounts that the spawner made, and moves into it.
//!
//! Everything is resolved below descriptors: an image whose `/proc` is a symbolic link, or whose
//! `/etc` leads out, only harms itself.

mod seal;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use forkyard_sys::mount::{self, OldRoot, attach_mount, attach_mount_on, clone_mount, open_dir};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat, openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::kernel_files::{Fresh, KernelFiles, Stand};
use crate::proto::{Failure, Overlay, Setup, WORKSPACE};

pub(crate) use seal::Sealed;

/// Where mounts are put while a root is built: a directory that every root has, is not needed
/// meanwhile, and goes away with the old root.
const ANCHOR: &str = "/dev";

/// Directory beside the generations with the files that carry the sandbox's name: a layer below
/// the upper, which so has nothing but what the guest did.
const IDENTITY: &str = "identity";

/// What roots are built of, one after the other.
pub(crate) struct Builder {
    kernel_files: KernelFiles,
    /// What roots are mounted in, from the first on.
    stand: Option<Stand>,
    /// The sources of the setup, in its order, detached.
    mounts: Vec<OwnedFd>,
}

impl Builder {
    /// `mounts` are the sources of the setup, in its order, detached.
    pub(crate) fn new(kernel_files: KernelFiles, mounts: Vec<OwnedFd>) -> Self {
        Self { kernel_files, stand: None, mounts }
    }

    /// Gives away what [`KernelFiles::mount`] kept.
    pub(crate) fn take_settings(&mut self) -> Option<OwnedFd> {
        self.kernel_files.take_settings()
    }

    /// Makes the files that carry the sandbox's name.
    pub(crate) fn make_identity(&self, setup: &Setup) -> Result<(), Failure> {
        write_identity(setup, source(&self.mounts, setup.state)?)
    }

    /// Makes the empty directories that the overlays of the setup's generation write to.
    pub(crate) fn make_uppers(&self, setup: &Setup) -> Result<(), Failure> {
        let state = source(&self.mounts, setup.state)?;
        make_dir(state, &setup.generation)?;
        for overlay in &setup.overlays {
            let upper = format!("{}/{}", setup.generation, overlay.name);
            self.make_upper(state, &upper, overlay)?;
            make_dir(state, &format!("{upper}.work"))?;
        }
        Ok(())
    }

    /// Makes a directory that an overlay writes to. Its mode and owner are those of the overlay's
    /// own top, which for a workspace are as in the directory that is worked on.
    fn make_upper(&self, state: &OwnedFd, upper: &str, overlay: &Overlay) -> Result<(), Failure> {
        let failed = |e: Errno| Failure::new(format!("making {upper}"), &e.into());
        match mkdirat(state, upper, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // A clone's or a restored sandbox's, as it was.
            Err(Errno::EXIST) => return Ok(()),
            Err(e) => return Err(failed(e)),
        }
        if let (WORKSPACE, [lower]) = (overlay.name.as_str(), overlay.lowers.as_slice()) {
            let stat = rustix::fs::fstat(source(&self.mounts, *lower)?).map_err(failed)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            // Owners that are not of this sandbox cannot be had.
            let _ = chownat(state, upper, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            let mode = Mode::from_raw_mode(stat.st_mode);
            chmodat(state, upper, mode, AtFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    /// Path of the directory of the setup's generation, for this process alone.
    pub(crate) fn generation(&self, setup: &Setup) -> Result<String, Failure> {
        let state = source(&self.mounts, setup.state)?;
        Ok(format!("{}/{}", fd_path(state), setup.generation))
    }

    /// Has the sandbox that this process is in have files of its own, where these paths lead to
    /// files of its base: who has one open from there does not see what is written to it later.
    pub(crate) fn take_from_base(
        &self,
        setup: &Setup,
        paths: BTreeSet<&[u8]>,
    ) -> Result<(), Failure> {
        // Opened for writing, a file is copied from its layer into the upper.
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for path in paths.into_iter().filter(|path| self.is_in_base(setup, path)) {
            match rustix::fs::open(path, flags, Mode::empty()) {
                // Covered by what is not there, or may not be written, it stays what it is.
                Ok(_)
                | Err(Errno::NOENT | Errno::TXTBSY | Errno::ROFS | Errno::PERM | Errno::LOOP) => {}
                Err(error) => {
                    let what = format!("copying {}", String::from_utf8_lossy(path));
                    return Err(Failure::new(what, &error.into()));
                }
            }
        }
        Ok(())
    }

    fn is_in_base(&self, setup: &Setup, path: &[u8]) -> bool {
        let below = |overlay: &Overlay| {
            let target = overlay.target.trim_end_matches('/').as_bytes();
            path.strip_prefix(target)?.strip_prefix(b"/").map(<[u8]>::to_vec)
        };
        let all = setup.overlays.iter().filter_map(|overlay| Some((overlay, below(overlay)?)));
        // The innermost, whose path is the longest.
        let Some((overlay, path)) = all.min_by_key(|(_, path)| path.len()) else { return false };
        overlay.base.iter().any(|&layer| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let file = source(&self.mounts, layer).ok().and_then(|layer| {
                openat2(layer, path.as_slice(), flags, Mode::empty(), resolve).ok()
            });
            let stat = file.and_then(|file| rustix::fs::fstat(file).ok());
            stat.is_some_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
        })
    }

    /// Builds the root that `setup` describes over the uppers of its generation, and makes it `/`.
    /// Nothing is to be started until the old root is let go.
    pub(crate) fn enter(&mut self, setup: &Setup, fresh: Fresh) -> Result<OldRoot, Failure> {
        let anchor = open_dir(ANCHOR).map_err(|e| Failure::new("opening /dev", &e))?;
        let mut used = Used::of(&self.mounts);
        let layers = |overlay: &Overlay| [overlay.base.clone(), overlay.lowers.clone()].concat();
        for lower in setup.overlays.iter().flat_map(layers) {
            used.once(lower, |fd| attach_mount_on(fd, &anchor), "attaching a layer")?;
        }
        used.once(setup.state, |fd| attach_mount_on(fd, &anchor), "attaching the uppers")?;

        // The first root brings what it is mounted in; the next ones take its place there.
        let stand = self.kernel_files.take_stand();
        if let Some(stand) = &stand {
            attach_mount_on(stand.mount(), &anchor)
                .map_err(|e| Failure::new("attaching what the root is mounted in", &e))?;
        }
        let mut root = None;
        for overlay in &setup.overlays {
            let Some(root) = &root else {
                let open = || stand.as_ref().map_or_else(|| open_dir(ANCHOR), Stand::root);
                let failed = |e: io::Error| Failure::new("opening the root", &e);
                let place = open().map_err(failed)?;
                mount_overlay(overlay, setup, &self.mounts, &fd_path(&place))?;
                root = Some(open().map_err(failed)?);
                continue;
            };
            let dir = directory(root, &overlay.target)?;
            mount_overlay(overlay, setup, &self.mounts, &fd_path(&dir))?;
        }
        let Some(root) = root else {
            return Err(Failure::new("building a root of no overlay", &Errno::INVAL.into()));
        };
        for name in ["proc", "sys", "dev", "tmp"] {
            make_dir(&root, name)?;
        }
        self.kernel_files.move_to(&root)?;
        used.once(setup.dev, |fd| attach_mount(fd, &root, "dev"), "attaching /dev")?;
        fresh.attach(&root)?;
        if setup.make_workdir {
            directory(&root, &setup.workdir)?;
        }
        for volume in &setup.volumes {
            let what = format!("mounting the volume at {}", volume.target);
            let place = place_for(source(&self.mounts, volume.source)?, &root, &volume.target)?;
            used.once(volume.source, |fd| attach_mount_on(fd, &place), &what)?;
        }
        if setup.host_network {
            // /sys is a volume then.
            crate::kernel_files::mask_sys(
                &open_dir_at(&root, "sys").map_err(|e| Failure::new("opening /sys", &e))?,
            )?;
        }
        self.mounts = used.spares()?;
        let pivoted = match &stand {
            Some(stand) => mount::pivot_into_below(stand.mount(), &root),
            None => mount::pivot_into(&root),
        };
        let old = pivoted.map_err(|e| Failure::new("pivot_root into the sandbox's root", &e))?;
        self.stand = self.stand.take().or(stand);
        Ok(old)
    }

    /// What this root and the next ones are mounted in.
    pub(crate) fn stand(&self) -> Result<&Stand, Failure> {
        let stand = self.stand.as_ref();
        stand.ok_or_else(|| {
            Failure::new("finding what the root is mounted in", &Errno::NOENT.into())
        })
    }
}

/// Mounts that go into a root, and a copy of each for the next one: a mount goes away with the
/// root that it was part of.
struct Used<'a> {
    mounts: &'a [OwnedFd],
    spares: Vec<Option<OwnedFd>>,
}

impl<'a> Used<'a> {
    fn of(mounts: &'a [OwnedFd]) -> Self {
        Self { mounts, spares: mounts.iter().map(|_| None).collect() }
    }

    /// Attaches a mount, unless it is: layers may be used twice.
    fn once(
        &mut self,
        index: usize,
        attach: impl FnOnce(&OwnedFd) -> io::Result<()>,
        what: &str,
    ) -> Result<(), Failure> {
        let fd = source(self.mounts, index)?;
        if let Some(spare) = self.spares.get_mut(index).filter(|spare| spare.is_none()) {
            // Copied at once: something may be mounted on it later.
            let copy = attach(fd).and_then(|()| clone_mount(fd, "", true));
            *spare = Some(copy.map_err(|e| Failure::new(what, &e))?);
        }
        Ok(())
    }

    /// All of them for the next root, those of a base that this one is without any more included:
    /// what follows them keeps its place.
    fn spares(self) -> Result<Vec<OwnedFd>, Failure> {
        let failed = |e| Failure::new("keeping a mount that no root has", &e);
        let all = self.spares.into_iter().zip(self.mounts);
        all.map(|(spare, unused)| spare.map_or_else(|| unused.try_clone().map_err(failed), Ok))
            .collect()
    }
}

fn source(mounts: &[OwnedFd], index: usize) -> Result<&OwnedFd, Failure> {
    mounts.get(index).ok_or_else(|| Failure::new("finding a mount", &Errno::BADF.into()))
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Mounts one overlay. By mount(2), since a value given to fsconfig(2) ends at 256 bytes.
fn mount_overlay(
    overlay: &Overlay,
    setup: &Setup,
    mounts: &[OwnedFd],
    target: &str,
) -> Result<(), Failure> {
    let state = fd_path(source(mounts, setup.state)?);
    let mut lowers = Vec::with_capacity(overlay.base.len() + overlay.lowers.len() + 1);
    for &layer in &overlay.base {
        lowers.push(fd_path(source(mounts, layer)?));
    }
    if overlay.target == "/" {
        lowers.push(format!("{state}/{IDENTITY}"));
    }
    for &lower in &overlay.lowers {
        lowers.push(fd_path(source(mounts, lower)?));
    }
    let lowers = lowers.join(":");
    let upper = format!("{state}/{}/{}", setup.generation, overlay.name);
    // `userxattr`: this is a user namespace, which may not read trusted.* attributes.
    // `volatile`: a sandbox does not outlive its host's crash, so nothing need reach the disk.
    // `index=off`: a layer may be the upper of another overlay yet, which nobody writes to.
    let index = if overlay.base.is_empty() { "" } else { ",index=off" };
    let options = format!(
        "lowerdir={lowers},upperdir={upper},workdir={upper}.work,userxattr,volatile{index}"
    );
    let options = std::ffi::CString::new(options)
        .map_err(|_| Failure::new("mounting the overlay", &Errno::INVAL.into()))?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|e| {
            Failure::new(format!("mounting the overlay for {}", overlay.target), &e.into())
        })
}

fn write_identity(setup: &Setup, state: &OwnedFd) -> Result<(), Failure> {
    make_dir(state, IDENTITY)?;
    let identity =
        open_dir_at(state, IDENTITY).map_err(|e| Failure::new("opening the identity layer", &e))?;
    make_dir(&identity, "etc")?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{}\n",
        setup.hostname
    );
    write_file(&identity, "etc/hosts", hosts.as_bytes())?;
    write_file(&identity, "etc/hostname", format!("{}\n", setup.hostname).as_bytes())?;
    if let Some(resolv_conf) = &setup.resolv_conf {
        write_file(&identity, "etc/resolv.conf", resolv_conf)?;
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

/// Opens where a host directory or file is to be put, which is made when it is not there.
fn place_for(volume: &OwnedFd, root: &OwnedFd, target: &str) -> Result<OwnedFd, Failure> {
    let failed =
        |e: Errno| Failure::new(format!("making the place for the volume {target}"), &e.into());
    let kind = rustix::fs::fstat(volume).map_err(failed)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind).is_dir() {
        return directory(root, target);
    }
    let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
    let parent = directory(root, parent)?;
    // What is there is not opened: it may be a fifo, of a volume's owner or of the guest's own.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(&parent, name, flags, Mode::empty()).map_err(failed)
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
