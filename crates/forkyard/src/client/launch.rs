//! Reaching the server, and starting it when there is none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::Error;
use crate::paths::Paths;

/// How long a server may take until it serves.
const START: Duration = Duration::from_secs(10);

/// Seconds without a sandbox or a request after which a server that was started on demand ends.
const IDLE: &str = "300";

/// Between two attempts to reach a server that somebody else is starting.
const RETRY: Duration = Duration::from_millis(10);

/// A server ends so when another one has its store.
const ALREADY_SERVED: i32 = 3;

/// Lines of the log that are shown when a start fails.
const TAIL_LINES: usize = 3;

/// Bytes of the log that are looked at for them.
const TAIL_BYTES: u64 = 4096;

/// A connection to the server, if one runs.
pub(super) async fn connect(paths: &Paths) -> Result<Option<UnixStream>, Error> {
    paths.check_socket()?;
    let deadline = Instant::now() + START;
    loop {
        match UnixStream::connect(&paths.socket).await {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
                // Its queue of connections is full.
                io::ErrorKind::WouldBlock if Instant::now() < deadline => sleep(RETRY).await,
                _ => return Err(Error::Connect { socket: paths.socket.clone(), source: error }),
            },
        }
    }
}

/// A connection to the server, which is started if none runs.
pub(super) async fn connect_or_start(paths: &Paths) -> Result<UnixStream, Error> {
    match connect(paths).await? {
        Some(stream) => Ok(stream),
        None => start(paths, &["/proc/self/exe"], Instant::now() + START).await,
    }
}

/// Runs `program`, arguments of its own included, with `serve` until a server can be reached. When
/// several callers start one at once, one server wins the store, the others end, and all callers
/// reach the winner.
async fn start(paths: &Paths, program: &[&str], deadline: Instant) -> Result<UnixStream, Error> {
    paths.make_directories()?;
    let log_before = fs::metadata(paths.log()).map_or(0, |meta| meta.len());
    let failed = |why: String| {
        let tail = log_tail(&paths.log(), log_before);
        let why = if tail.is_empty() { why } else { format!("{why}: {tail}") };
        Error::Start { why, log: paths.log() }
    };
    loop {
        let (mut child, ready) = spawn(paths, program)?;
        match timeout_at(deadline, wait_ready(&mut child, ready)).await {
            Ok(outcome) => match outcome? {
                Outcome::Ready => {}
                Outcome::Ended(status) if status.code() == Some(ALREADY_SERVED) => {}
                Outcome::Ended(status) => return Err(failed(format!("it ended with {status}"))),
            },
            Err(_) => return Err(failed(format!("not ready within {} s", START.as_secs()))),
        }
        if let Some(stream) = connect(paths).await? {
            return Ok(stream);
        }
        if Instant::now() >= deadline {
            return Err(failed("another server has the store, but does not answer".to_owned()));
        }
        sleep(RETRY).await;
    }
}

enum Outcome {
    Ready,
    Ended(ExitStatus),
}

/// Runs the server with a pipe to say that it is ready. It leads a session of its own as soon as
/// it runs (see `commands::server`), so that no key pressed here reaches it.
fn spawn(paths: &Paths, program: &[&str]) -> Result<(Child, pipe::Receiver), Error> {
    let (ready, ready_far) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("pipe2", e.into()))?;
    rustix::io::fcntl_setfd(&ready_far, FdFlags::empty())
        .map_err(|e| Error::io("fcntl F_SETFD", e.into()))?;
    let log = open_log(&paths.log())?;
    let log_too = log.try_clone().map_err(|e| Error::io("dup the server's log", e))?;
    let (program, arguments) = program.split_first().unwrap_or((&"forkyard", &[]));
    let child = Command::new(program)
        .arg0("forkyard")
        .args(arguments)
        .arg("serve")
        .arg("--ready-fd")
        .arg(ready_far.as_raw_fd().to_string())
        .arg("--store")
        .arg(&paths.store)
        .arg("--socket")
        .arg(&paths.socket)
        .arg("--idle")
        .arg(IDLE)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .spawn()
        .map_err(|e| Error::io(format!("spawn {program} serve"), e))?;
    drop(ready_far);
    Ok((child, receiver(ready)?))
}

fn receiver(fd: OwnedFd) -> Result<pipe::Receiver, Error> {
    pipe::Receiver::from_owned_fd(fd).map_err(|e| Error::io("poll the server's pipe", e))
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io(format!("open {}", path.display()), e))
}

async fn wait_ready(child: &mut Child, mut ready: pipe::Receiver) -> Result<Outcome, Error> {
    if matches!(ready.read(&mut [0]).await, Ok(1)) {
        return Ok(Outcome::Ready);
    }
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::io("wait for the server", e))? {
            return Ok(Outcome::Ended(status));
        }
        sleep(RETRY).await;
    }
}

/// The last lines that were logged since the log was `from` bytes long, on one line.
fn log_tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines.into_iter().skip(skipped).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    use crate::paths::{PathOptions, Surroundings};

    struct Fixture {
        directory: tempfile::TempDir,
        paths: Paths,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Some(directory.path().join("store"));
            let options = PathOptions { store, socket: None };
            let paths = Paths::resolve(&options, &Surroundings::of_process()).unwrap();
            Self { directory, paths }
        }

        /// A script that stands for the server. `$N` is the descriptor to write to.
        fn program(&self, script: &str) -> String {
            let path = self.directory.path().join("program");
            fs::write(&path, format!("N=$3\nLINK={}\n{script}\n", self.link())).unwrap();
            path.display().to_string()
        }

        /// A listening socket that the program can move to where the server's belongs.
        fn listen(&self) -> UnixListener {
            UnixListener::bind(self.link()).unwrap()
        }

        fn link(&self) -> String {
            self.directory.path().join("listening").display().to_string()
        }

        fn start(&self, script: &str, within: Duration) -> Result<(), Error> {
            let program = self.program(script);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let deadline = Instant::now() + within;
            runtime
                .unwrap()
                .block_on(start(&self.paths, &["/bin/sh", &program], deadline))
                .map(drop)
        }
    }

    #[test]
    fn a_server_that_says_it_is_ready_is_connected_to() {
        let fixture = Fixture::new();
        let _listener = fixture.listen();
        fixture.start("mv $LINK $7; printf x > /dev/fd/$N", START).unwrap();
    }

    #[test]
    fn the_loser_of_two_servers_leads_to_the_winner() {
        let fixture = Fixture::new();
        let _listener = fixture.listen();
        let script = "test -e $0.second && mv $LINK $7; touch $0.second; exit 3";
        fixture.start(script, START).unwrap();
    }

    #[test]
    fn a_failed_start_tells_what_was_logged() {
        let fixture = Fixture::new();
        let error = fixture.start("echo no such luck >&2; exit 1", START).unwrap_err();
        assert!(error.to_string().contains("exit status: 1: no such luck"), "{error}");
        assert!(error.hint().unwrap().contains("server.log"));
    }

    #[test]
    fn only_what_this_start_logged_is_told() {
        let fixture = Fixture::new();
        fixture.start("echo old >&2; exit 1", START).unwrap_err();
        let error = fixture.start("exit 1", START).unwrap_err();
        assert!(!error.to_string().contains("old"), "{error}");
    }

    #[test]
    fn a_start_that_takes_for_ever_ends_at_the_deadline() {
        let fixture = Fixture::new();
        let error = fixture.start("exec sleep 1", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("not ready within"), "{error}");
    }
}
