//! A server of a test's own: its store, its socket, its command line and HTTP API.

mod end;
mod seed;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::leaks::{self, Process};
use crate::poll::poll as look_until;
use crate::run::finish;
use crate::{Http, wait_for};

/// How long a server may take until it listens.
const READY: Duration = Duration::from_secs(30);
/// How long a server may take to end once told to.
const END: Duration = Duration::from_secs(20);
/// How long what a server leaves may take to vanish.
const VANISH: Duration = Duration::from_secs(5);

/// `forkyard serve` with a temporary store; see the crate's front page.
#[derive(Debug)]
pub struct TestServer {
    /// Short, since a socket's path has 107 bytes at most (unix(7)). `None` once removed.
    dir: Option<TempDir>,
    store: PathBuf,
    socket: PathBuf,
    program: PathBuf,
    extra: Vec<String>,
    /// Whether it ever listened; there is nothing to end politely otherwise.
    started: bool,
    child: Option<Child>,
    /// Every process ever seen below a server of this store; orphans are found again by it.
    seen: BTreeSet<Process>,
    /// Names of the cgroups that its servers made, as far as a process was ever seen in them.
    cgroups: BTreeSet<String>,
}

/// The `forkyard` program under test: `FORKYARD_BIN`, else the one built beside this test.
///
/// Tests lie in `target/PROFILE/deps`, examples and benches beside that; so the directories above
/// are searched. This also holds where the executables were copied to another place.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FORKYARD_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the path of this test");
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join("forkyard"));
    found.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("no `forkyard` above {}: run `cargo build -p forkyard` first", test.display())
    })
}

impl TestServer {
    /// Starts a server and waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments to `serve`, such as `--listen`.
    #[track_caller]
    pub fn start_with(extra: &[&str]) -> Self {
        Self::start_program(&binary(), extra)
    }

    /// The same with another program in the place of `forkyard`.
    #[track_caller]
    pub fn start_program(program: &Path, extra: &[&str]) -> Self {
        Self::start_at(&std::env::temp_dir(), program, extra)
    }

    /// The same with its store below this directory.
    #[track_caller]
    pub fn start_at(parent: &Path, program: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("fy-").tempdir_in(parent);
        let dir = dir.expect("a temporary directory");
        let mut server = Self {
            store: dir.path().join("store"),
            socket: dir.path().join("sock"),
            dir: Some(dir),
            program: program.to_owned(),
            extra: extra.iter().map(|&arg| arg.to_owned()).collect(),
            started: false,
            child: None,
            seen: BTreeSet::new(),
            cgroups: BTreeSet::new(),
        };
        if program == binary() {
            seed::plant(&server.store);
        }
        server.launch().unwrap_or_else(|why| panic!("{why}"));
        server.started = true;
        server
    }

    /// Runs `forkyard serve` in the foreground; says why it does not listen.
    fn launch(&mut self) -> Result<(), String> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(|error| format!("open {}: {error}", self.log_path().display()))?;
        // The shell puts the pipe's end where no other test's child inherits it, unlike a
        // descriptor opened here for inheritance.
        let mut child = self
            .prepare("/bin/sh")
            .args(["-c", "exec \"$@\" 3>&1 1>&2", "sh"])
            .arg(&self.program)
            .args(["serve", "--idle", "never", "--ready-fd", "3", "--store"])
            .arg(&self.store)
            .arg("--socket")
            .arg(&self.socket)
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start forkyard serve: {error}"))?;
        let ready = child.stdout.take();
        self.child = Some(child);
        let listens = ready.is_some_and(|mut pipe| {
            let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
            let limit = Timespec { tv_sec: READY.as_secs() as i64, tv_nsec: 0 };
            // End of file, when the server ends first, reads as nothing.
            matches!(poll(&mut fds, Some(&limit)), Ok(1))
                && pipe.read(&mut [0]).is_ok_and(|n| n == 1)
        });
        if listens {
            return Ok(());
        }
        // Its end of the pipe closes a little before it can be reaped.
        let child = self.child.as_mut();
        let status = child.and_then(|child| look_until(VANISH, || child.try_wait().ok().flatten()));
        Err(match status {
            Some(status) => format!("forkyard serve ended: {status}\n{}", self.log()),
            None => format!("forkyard serve is not ready after {READY:?}\n{}", self.log()),
        })
    }

    /// Directory of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Path of the server's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A directory of this test's own for other files; gone with the server.
    pub fn dir(&self) -> &Path {
        self.store.parent().unwrap_or(&self.store)
    }

    /// The server's process id; `None` after [`kill9`](Self::kill9).
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What the server wrote so far: to stderr, then to the log of its store.
    pub fn log(&self) -> String {
        let files = [self.log_path(), self.store.join("server.log")];
        let texts = files.iter().map(|file| fs::read(file).unwrap_or_default());
        texts.map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("log")
    }

    /// The command line of `forkyard` against this server, to be given more and run.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.prepare(&self.program);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// A program whose environment leads `forkyard` to this server.
    pub fn prepare(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("FORKYARD_STORE", &self.store)
            .env("FORKYARD_SOCKET", &self.socket)
            .env("NO_COLOR", "1");
        command
    }

    /// Runs `forkyard ARGS` to its end, with nothing on stdin.
    #[track_caller]
    pub fn cli<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        finish(&mut self.command(args), b"")
    }

    /// Runs `forkyard ARGS` with `input` on stdin.
    #[track_caller]
    pub fn cli_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Output {
        finish(&mut self.command(args), input)
    }

    /// Runs `forkyard ARGS`, panics unless it exits with 0, and gives its stdout.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let mut command = self.command(args);
        let out = finish(&mut command, b"");
        assert!(
            out.status.success(),
            "{command:?}: {}\nstdout: {}\nstderr: {}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).expect("stdout in UTF-8")
    }

    /// The HTTP API over the server's socket.
    pub fn http(&self) -> Http {
        Http::new(&self.socket)
    }

    /// GET over the socket: status and body.
    #[track_caller]
    pub fn get(&self, target: &str) -> (u16, Bytes) {
        self.http().get(target)
    }

    /// POST over the socket: status and body.
    #[track_caller]
    pub fn post(&self, target: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        self.http().post(target, body)
    }

    /// PUT over the socket: status and body.
    #[track_caller]
    pub fn put(&self, target: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        self.http().put(target, body)
    }

    /// DELETE over the socket: status and body.
    #[track_caller]
    pub fn delete(&self, target: &str) -> (u16, Bytes) {
        self.http().delete(target)
    }

    /// Kills the server alone, as a crash would; its sandboxes are meant to live on.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.remember();
        let mut child = self.child.take().expect("a server that runs");
        child.kill().expect("kill the server");
        child.wait().expect("reap the server");
    }

    /// Ends the server with SIGTERM if it runs, and starts one on the same store and socket.
    #[track_caller]
    pub fn restart(&mut self) {
        self.remember();
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            wait_for("the server's end after SIGTERM", END, || {
                child.try_wait().expect("wait for the server").is_some()
            });
        }
        self.launch().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Processes of this store that run now, the server included.
    pub fn processes(&self) -> BTreeSet<Process> {
        let mut found = leaks::processes(&self.marker());
        if let Some(child) = &self.child {
            found.extend(Process::of(child.id()));
            found.extend(leaks::descendants(child.id()));
        }
        found.extend(self.seen.iter().filter(|process| process.lives()));
        found
    }

    /// Keeps in mind what belongs to the server, before its processes become orphans or end.
    fn remember(&mut self) {
        self.seen = self.processes();
        // This test may itself run in a sandbox of forkyard's.
        let own = leaks::server_cgroups(std::process::id());
        let found = self.seen.iter().flat_map(|process| leaks::server_cgroups(process.pid));
        self.cgroups.extend(found.filter(|name| !own.contains(name)));
    }

    /// What nothing else on this machine has in a name: the path of the temporary directory.
    fn marker(&self) -> String {
        self.dir().to_string_lossy().into_owned()
    }
}
