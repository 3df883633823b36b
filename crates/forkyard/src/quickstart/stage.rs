//! Where the quickstart plays: a directory of its own with a store, and the server on it, which
//! the first command starts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forkyard_api::routes::Health;
use forkyard_sys::host::Host;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::client::{Client, Url};
use crate::error::Error;
use crate::paths::{PathOptions, Paths, Surroundings};

/// Longest path of the directory: the sockets in it have 107 bytes, unix(7).
const LONGEST: usize = 60;

/// How long the server may take to end.
const END: Duration = Duration::from_secs(20);

/// A store, the way to its server, and what the host offers there.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    dir: PathBuf,
    paths: Paths,
    host: Host,
    running: Arc<Mutex<Running>>,
}

/// The command that is being shown.
#[derive(Debug, Default)]
struct Running {
    /// Its shell, which leads a process group.
    shell: Option<Pid>,
    /// No more commands are started.
    over: bool,
}

/// What a shown command did.
#[derive(Debug)]
pub(super) struct Ran {
    /// stdout, then stderr.
    pub(super) output: String,
    /// As the shell tells it.
    pub(super) code: i32,
    pub(super) took: Duration,
}

impl Stage {
    /// Makes a directory where sandboxes can live.
    ///
    /// # Errors
    /// What the host lacks, when there is no such place.
    pub(super) fn open() -> Result<Self, Error> {
        let mut refused = None;
        for parent in places() {
            let Ok(dir) = make(&parent) else { continue };
            let host = Host::probe(&dir);
            match host.verdict() {
                Ok(_) => {
                    return Self::at(dir.clone(), host).inspect_err(|_| {
                        let _ = fs::remove_dir_all(&dir);
                    });
                }
                Err(missing) => {
                    let _ = fs::remove_dir(&dir);
                    refused.get_or_insert(missing);
                }
            }
        }
        let missing = refused.unwrap_or_default();
        let names: Vec<&str> = missing.iter().map(|feature| feature.name()).collect();
        let why = if names.is_empty() {
            "no directory to work in: tried that of TMPDIR, /var/tmp and /dev/shm".to_owned()
        } else {
            format!("sandboxes do not work here: no {}", names.join(", no "))
        };
        Err(Error::Usage {
            what: format!("quickstart: {why}"),
            hint: Some("`forkyard doctor` tells how to get what is missing".to_owned()),
        })
    }

    fn at(dir: PathBuf, host: Host) -> Result<Self, Error> {
        let options =
            PathOptions { store: Some(dir.join("store")), socket: Some(dir.join("sock")) };
        let paths = Paths::resolve(&options, &Surroundings::of_process())?;
        // Shown commands say `forkyard`, whatever this program is called and wherever it is.
        let bin = dir.join("bin");
        let program = fs::read_link("/proc/self/exe");
        fs::create_dir(&bin)
            .and_then(|()| std::os::unix::fs::symlink(program?, bin.join("forkyard")))
            .map_err(|e| Error::io(format!("link this program in {}", bin.display()), e))?;
        Ok(Self { dir, paths, host, running: Arc::default() })
    }

    /// What was found out about this machine.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A client of the server.
    pub(super) fn client(&self) -> Client {
        Client::new(self.paths.clone())
    }

    /// What the server says of itself, if it runs.
    pub(super) async fn health(&self) -> Result<Option<Health>, Error> {
        self.client().get_if_running(Url::new("/v1/health")).await
    }

    /// Runs a line of shell and takes all it prints.
    pub(super) fn shell(&self, line: &str) -> Result<Ran, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::iter::once(self.dir.join("bin")).chain(std::env::split_paths(&path)),
        )
        .map_err(|e| Error::io("put this program on PATH", io::Error::other(e)))?;
        let start = Instant::now();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .env("PATH", path)
            .env("FORKYARD_STORE", &self.paths.store)
            .env("FORKYARD_SOCKET", &self.paths.socket)
            .env("NO_COLOR", "1")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self.spawn(&mut command)?.wait_with_output();
        let took = start.elapsed();
        self.running().shell = None;
        let output = output.map_err(|e| Error::io("run /bin/sh", e))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            output: text(&output.stdout) + &text(&output.stderr),
            code: output.status.code().unwrap_or(-1),
            took,
        })
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        let mut running = self.running();
        if running.over {
            return Err(Error::Interrupted);
        }
        let child = command.spawn().map_err(|e| Error::io("run /bin/sh", e))?;
        running.shell = Some(Pid::from_child(&child));
        Ok(child)
    }

    /// Ends what runs, so that it starts no server behind our back.
    fn end_commands(&self) {
        let mut running = self.running();
        running.over = true;
        if let Some(shell) = running.shell {
            let _ = rustix::process::kill_process_group(shell, Signal::KILL);
        }
    }

    /// Removes sandboxes, ends the server, and removes the directory.
    pub(super) fn close(&self) -> Result<(), Error> {
        self.end_commands();
        let ended = self.end_server();
        fs::remove_dir_all(&self.dir)
            .map_err(|e| Error::io(format!("remove {}", self.dir.display()), e))?;
        ended
    }

    /// Asks the server to remove all sandboxes and to end, and waits for its end.
    fn end_server(&self) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::io("end the server", e))?;
        runtime.block_on(async {
            let Some(health) = self.health().await? else { return Ok(()) };
            let pid = Pid::from_raw(health.pid.cast_signed());
            let pidfd =
                pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
            let url = Url::new("/v1/shutdown").query("force", "true");
            let asked = self.client().call_if_running(hyper::Method::POST, url).await;
            let Some(pidfd) = pidfd else { return asked.map(drop) };
            // Readable once the process has ended, pidfd_open(2).
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: END.as_secs() as i64, tv_nsec: 0 };
            if matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(0)) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                return Err(Error::Protocol(format!(
                    "the quickstart's server does not end within {} s",
                    END.as_secs()
                )));
            }
            asked.map(drop)
        })
    }
}

/// Where a store may be put, the likeliest first. The directory of temporary files is no good
/// where it lies on an overlay, as in most containers.
fn places() -> Vec<PathBuf> {
    let around = Surroundings::of_process();
    let home = around.data_home.or_else(|| around.home.map(|home| home.join(".local/share")));
    let mut places = vec![std::env::temp_dir(), PathBuf::from("/var/tmp")];
    places.extend(home);
    places.push(PathBuf::from("/dev/shm"));
    places
}

/// Makes a directory for us alone that nobody else has made.
fn make(parent: &Path) -> io::Result<PathBuf> {
    let pid = std::process::id();
    for attempt in 0..100 {
        let dir = parent.join(format!("forkyard-{pid}-{attempt}"));
        if dir.as_os_str().len() > LONGEST {
            break;
        }
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| dir),
        }
    }
    Err(io::ErrorKind::InvalidFilename.into())
}
