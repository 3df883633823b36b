//! Removes what was thrown away, behind everybody's back.
//!
//! What belongs to a sandbox may belong to ids that the server may not touch, so the work is done
//! by a job of the spawner's. One sweep runs at a time.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, openat, statat, unlinkat};
use tokio::sync::watch;

use crate::link::Link;
use crate::spawner::Spawner;

/// The job's name.
pub(crate) const JOB: &str = "sweep";

#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    spawner: Arc<Spawner>,
    /// Sweeps asked for, and sweeps done.
    wanted: watch::Sender<u64>,
    done: Arc<watch::Sender<u64>>,
    running: std::sync::Mutex<bool>,
}

impl Trash {
    pub(crate) fn new(dir: PathBuf, spawner: Arc<Spawner>) -> Self {
        Self {
            dir,
            spawner,
            wanted: watch::channel(0).0,
            done: Arc::new(watch::channel(0).0),
            running: std::sync::Mutex::new(false),
        }
    }

    /// Has everything that is in the trash now removed.
    pub(crate) fn sweep(&self) {
        self.wanted.send_modify(|n| *n += 1);
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*running {
            *running = true;
            let (dir, spawner) = (self.dir.clone(), Arc::clone(&self.spawner));
            let (wanted, done) = (self.wanted.subscribe(), Arc::clone(&self.done));
            tokio::spawn(keep_sweeping(dir, spawner, wanted, done));
        }
    }

    /// Waits for all sweeps asked for so far.
    pub(crate) async fn settled(&self) {
        let wanted = *self.wanted.borrow();
        let mut done = self.done.subscribe();
        let _ = done.wait_for(|n| *n >= wanted).await;
    }
}

async fn keep_sweeping(
    dir: PathBuf,
    spawner: Arc<Spawner>,
    mut wanted: watch::Receiver<u64>,
    done: Arc<watch::Sender<u64>>,
) {
    loop {
        // A moment for more to come, so that a burst of deletes is one sweep.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let target = *wanted.borrow_and_update();
        let payload = dir.as_os_str().as_encoded_bytes().to_vec();
        if let Ok(socket) = spawner.job(JOB, payload, &[]).await
            && let Ok(link) = Link::<()>::new(socket)
        {
            // The answer, or its absence, means that the job is over.
            let _ = link.receive().await;
        }
        done.send_replace(target);
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The job: empties the directory that `payload` names.
pub(crate) fn job(payload: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let _ = rustix::process::nice(10);
    let path = std::ffi::OsStr::from_bytes(payload);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) {
        empty(&dir);
    }
    Vec::new()
}

/// Removes all that is in a directory. A guest chose the names, depths and modes: every step is
/// by descriptor, nothing is followed, and depth costs descriptors only one at a time.
fn empty(top: &std::os::fd::OwnedFd) {
    let open = |dir: &std::os::fd::OwnedFd, name: &std::ffi::CStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(dir, name, flags, Mode::empty())
    };
    // A deep tree is flattened: a directory within a directory moves up to the top, so that no
    // path grows and no stack of descriptors is needed.
    loop {
        let mut progress = false;
        for name in names(top) {
            if unlinkat(top, &*name, AtFlags::empty()).is_ok()
                || unlinkat(top, &*name, AtFlags::REMOVEDIR).is_ok()
            {
                progress = true;
                continue;
            }
            open_up(top, &name);
            let Ok(dir) = open(top, &name) else { continue };
            for inner in names(&dir) {
                if unlinkat(&dir, &*inner, AtFlags::empty()).is_ok()
                    || unlinkat(&dir, &*inner, AtFlags::REMOVEDIR).is_ok()
                {
                    progress = true;
                    continue;
                }
                open_up(&dir, &inner);
                let up = format!("{}.up", crate::clock::unique());
                progress |= rustix::fs::renameat(&dir, &*inner, top, up.as_str()).is_ok();
            }
            progress |= unlinkat(top, &*name, AtFlags::REMOVEDIR).is_ok();
        }
        if !progress {
            return;
        }
    }
}

/// Lets us into a directory: without root, a guest's modes bind us too. A link that could not be
/// removed is left as it is, since chmod(2) would follow it.
fn open_up(dir: &std::os::fd::OwnedFd, name: &std::ffi::CStr) {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
        let _ = chmodat(dir, name, Mode::RWXU, AtFlags::empty());
    }
}

fn names(dir: &std::os::fd::OwnedFd) -> Vec<std::ffi::CString> {
    let Ok(entries) = Dir::read_from(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
        .filter(|entry| entry.file_type() != FileType::Unknown || !entry.file_name().is_empty())
        .map(|entry| entry.file_name().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_cannot_be_removed_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = rustix::fs::open(temp.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::mkdirat(&dir, "victim", Mode::from_raw_mode(0o555)).unwrap();
        rustix::fs::symlinkat("victim", &dir, "link").unwrap();
        open_up(&dir, c"link");
        let mode = |name| statat(&dir, name, AtFlags::empty()).unwrap().st_mode & 0o777;
        assert_eq!(mode("victim"), 0o555);
        open_up(&dir, c"victim");
        assert_eq!(mode("victim"), 0o700);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let top = rustix::fs::open(temp.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mut at = top.try_clone().unwrap();
        for _ in 0..200 {
            let name = "d".repeat(200);
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/etc/passwd", &at, "link").unwrap();
            at = openat(&at, &name, OFlags::RDONLY, Mode::empty()).unwrap();
        }
        empty(&top);
        assert!(names(&top).is_empty());
        assert!(std::path::Path::new("/etc/passwd").exists());
    }
}
