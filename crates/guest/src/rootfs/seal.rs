//! Another root for a sandbox that runs: what it wrote so far is a layer of it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use forkyard_snapshot::copy_above;
use forkyard_sys::mount::{self, RDONLY, attach_mount_on, clone_mount, new_mount};
use rustix::fs::{Access, AtFlags, Mode, mkdirat, renameat, unlinkat};
use rustix::io::Errno;

use super::{Builder, Used, fd_path, make_dir, mount_overlay, source};
use crate::proto::{Failure, Overlay, SEALED, Setup};

/// Another root than the one that a sandbox has, in a place that only init knows.
pub(crate) struct Sealed {
    /// Its root directory.
    pub(crate) root: OwnedFd,
    /// The upper of the other one, which is a layer of this.
    layer: OwnedFd,
}

/// The root's overlay.
fn first(setup: &Setup) -> Result<&Overlay, Failure> {
    let first = setup.overlays.first();
    first.ok_or_else(|| Failure::new("finding the root's overlay", &Errno::NOENT.into()))
}

impl Builder {
    /// Makes another root of the same files, in which what was written so far is a layer; copies of
    /// those files of it that have these names, from its top, are above.
    pub(crate) fn seal(&mut self, setup: &Setup, linked: &[Vec<u8>]) -> Result<Sealed, Failure> {
        let name = &first(setup)?.name;
        move_upper(source(&self.mounts, setup.state)?, setup, name)?;
        let made = self.make_next(setup, linked);
        if made.is_err() {
            move_upper_back(source(&self.mounts, setup.state)?, setup, name)?;
        }
        made
    }

    /// Forgets another root.
    pub(crate) fn unseal(&mut self, setup: &Setup, sealed: &Sealed) -> Result<(), Failure> {
        let detached = mount::detach(&sealed.root);
        move_upper_back(source(&self.mounts, setup.state)?, setup, &first(setup)?.name)?;
        detached.map_err(|e| Failure::new("letting go of another root", &e))
    }

    /// Notes that another root is the sandbox's.
    pub(crate) fn keep_sealed(&mut self, setup: &mut Setup, sealed: Sealed) {
        if let Some(overlay) = setup.overlays.first_mut() {
            overlay.base.insert(0, self.mounts.len());
            self.mounts.push(sealed.layer);
        }
    }

    /// Removes what belonged to the upper that is a layer now, and that nobody but this process may
    /// remove, if there is any.
    pub(crate) fn tidy_sealed(&self, setup: &Setup) {
        if let (Ok(overlay), Ok(state)) = (first(setup), source(&self.mounts, setup.state)) {
            let work = format!("{}/{SEALED}/{}.work", fd_path(state), overlay.name);
            // What is left is a few empty directories.
            let _ = std::fs::remove_dir_all(work);
        }
    }

    /// Makes an upper above the one that was moved away, and mounts an overlay of both.
    fn make_next(&mut self, setup: &Setup, linked: &[Vec<u8>]) -> Result<Sealed, Failure> {
        let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
        let mut overlay = first(setup)?.clone();
        let upper = format!("{}/{}", setup.generation, overlay.name);
        let sealed = format!("{SEALED}/{}", overlay.name);
        let state = source(&self.mounts, setup.state)?;
        let dir = fd_path(state);
        let (from, to) = (format!("{dir}/{sealed}"), format!("{dir}/{upper}"));
        copy_above(Path::new(&from), Path::new(&to), linked)
            .map_err(crate::template::disk::failure)?;
        make_dir(state, &format!("{upper}.work"))?;
        let stand = self.stand()?;
        let place = stand.layers().map_err(failed("opening the place for layers"))?;
        new_mount("tmpfs", &[("size", "0"), ("nr_inodes", "1")], RDONLY)
            .and_then(|scratch| attach_mount_on(scratch, &place))
            .map_err(failed("making a place for layers"))?;
        let scratch = stand.layers().map_err(failed("opening the place for layers"))?;
        let next = stand.next().map_err(failed("opening the place of the next root"))?;
        let mut used = Used::of(&self.mounts);
        let made = (|| {
            for lower in overlay.base.iter().chain(&overlay.lowers) {
                used.once(*lower, |fd| attach_mount_on(fd, &scratch), "attaching a layer")?;
            }
            used.once(setup.state, |fd| attach_mount_on(fd, &scratch), "attaching the uppers")?;
            let layer = clone_mount(state, &sealed, false).map_err(failed("copying a mount"))?;
            attach_mount_on(&layer, &scratch).map_err(failed("attaching a layer"))?;
            overlay.base.insert(0, self.mounts.len());
            let attached = self.mounts.iter().chain([&layer]);
            let attached: Vec<_> = attached
                .map(OwnedFd::try_clone)
                .collect::<Result<_, _>>()
                .map_err(failed("copying descriptors"))?;
            mount_overlay(&overlay, setup, &attached, &fd_path(&next))?;
            clone_mount(&layer, "", true).map_err(failed("copying a mount"))
        })();
        // Those that were attached go with their place.
        let spares = used.spares();
        let detached = mount::detach(&scratch).map_err(failed("letting go of layers"));
        self.mounts = spares?;
        let layer = made?;
        detached?;
        let root = self.stand()?.next().map_err(failed("opening the next root"))?;
        Ok(Sealed { root, layer })
    }
}

/// Moves the upper of an overlay, and what belongs to it, to where it is a layer.
fn move_upper(state: &OwnedFd, setup: &Setup, name: &str) -> Result<(), Failure> {
    let failed =
        |e: Errno| Failure::new(format!("moving /{}/{name} away", setup.generation), &e.into());
    mkdirat(state, SEALED, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let rename = |name: &str| {
        let from = format!("{}/{name}", setup.generation);
        renameat(state, from, state, format!("{SEALED}/{name}"))
    };
    let moved = rename(name).and_then(|()| rename(&format!("{name}.work")));
    if moved.is_err() {
        move_upper_back(state, setup, name)?;
    }
    moved.map_err(failed)
}

/// Moves it back, over what there is.
fn move_upper_back(state: &OwnedFd, setup: &Setup, name: &str) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(format!("moving /{SEALED}/{name} back"), &e);
    for name in [name.to_owned(), format!("{name}.work")] {
        let (from, to) = (format!("{SEALED}/{name}"), format!("{}/{name}", setup.generation));
        match rustix::fs::accessat(state, &from, Access::EXISTS, AtFlags::empty()) {
            // It was not moved, or is back.
            Err(Errno::NOENT) => continue,
            there => there.map_err(|e| failed(e.into()))?,
        }
        match std::fs::remove_dir_all(format!("{}/{to}", fd_path(state))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        renameat(state, &from, state, &to).map_err(|e| failed(e.into()))?;
    }
    unlinkat(state, SEALED, AtFlags::REMOVEDIR).map_err(|e| failed(e.into()))
}
