//! The server that is measured: this program, with a store of its own.

use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use super::api::Api;
use super::memory;
use crate::error::Error;
use crate::render;

/// How long the server may take to end once told to.
const END: Duration = Duration::from_secs(20);

/// The name that the image of `--image` gets.
const IMAGE: &str = "bench";

/// A running server; ended, and its directory removed, when dropped.
#[derive(Debug)]
pub(super) struct Server {
    directory: PathBuf,
    child: Child,
    stopped: bool,
}

impl Server {
    /// Starts it in a new directory below the one for temporary files, and waits until it serves.
    pub(super) fn start() -> Result<Self, Error> {
        let directory = std::env::temp_dir().join(format!("fy-bench-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|e| Error::io(format!("mkdir {}", directory.display()), e))?;
        let tried = |what: &'static str| move |e: rustix::io::Errno| Error::io(what, e.into());
        let (ready, far) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(tried("pipe2"))?;
        rustix::io::fcntl_setfd(&far, FdFlags::empty()).map_err(tried("fcntl F_SETFD"))?;
        let log = directory.join("server.log");
        let log = File::create(&log).map_err(|e| Error::io("make the server's log", e))?;
        let child = Command::new("/proc/self/exe")
            .arg0("forkyard")
            .args(["serve", "--idle", "never", "--ready-fd", &far.as_raw_fd().to_string()])
            .arg("--store")
            .arg(directory.join("store"))
            .arg("--socket")
            .arg(directory.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A key pressed here is meant for the bench, which ends the server in order.
            .process_group(0)
            .spawn()
            .map_err(|e| Error::io("start the server", e))?;
        let server = Self { directory, child, stopped: false };
        drop(far);
        let mut byte = [0];
        if matches!(File::from(ready).read(&mut byte), Ok(1)) {
            return Ok(server);
        }
        let log = server.directory.join("server.log");
        let why = fs::read_to_string(&log).unwrap_or_default().trim().to_owned();
        Err(Error::Start { why, log })
    }

    /// Its directory: the store is in it, and what else a run needs on the same file system.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// A new connection to it.
    pub(super) fn connect(&self) -> Result<Api, Error> {
        Api::connect(&self.socket())
    }

    /// Server and spawner, by process id; inits of sandboxes are children of the spawner, and not
    /// among them.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut processes = vec![self.child.id()];
        processes.extend(memory::children(self.child.id()));
        processes
    }

    /// This program as a client of the server.
    pub(super) fn client(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("forkyard").arg("--socket").arg(self.socket()).stdin(Stdio::null());
        command.arg("--store").arg(self.directory.join("store"));
        command
    }

    /// Makes an image of a directory or archive, and gives its name.
    pub(super) fn import(&self, path: &str) -> Result<String, Error> {
        let mut client = self.client();
        client.args(["image", "import", "--quiet", path, IMAGE]).stdout(Stdio::null());
        let status = client.status().map_err(|e| Error::io("start forkyard image import", e))?;
        if status.success() {
            return Ok(IMAGE.to_owned());
        }
        Err(Error::Usage { what: format!("bench: no image could be made of {path}"), hint: None })
    }

    /// Removes all sandboxes, ends the server and removes its directory.
    pub(super) fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        let asked =
            self.connect().and_then(|mut api| api.ask("POST", "/v1/shutdown?force=true", &[]));
        let until = Instant::now() + END;
        let ended = loop {
            match self.child.try_wait() {
                Ok(None) if asked.is_ok() && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(Some(_)) => break true,
                _ => break false,
            }
        };
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        remove(&self.directory)?;
        asked.map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            render::error(&error);
        }
    }
}

/// Removes a directory with all in it, also directories that may not be entered as they are.
fn remove(directory: &Path) -> Result<(), Error> {
    if fs::remove_dir_all(directory).is_ok() {
        return Ok(());
    }
    open_up(directory);
    fs::remove_dir_all(directory)
        .map_err(|e| Error::io(format!("remove {}", directory.display()), e))
}

/// Overlayfs leaves directories of mode 0 behind.
fn open_up(directory: &Path) {
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
