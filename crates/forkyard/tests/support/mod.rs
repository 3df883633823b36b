//! What the end-to-end tests share beyond the kit: sandboxes by their id, lines in their sessions,
//! and the framed stream of a command, spoken by hand so that a test can be slow, rude or gone.

// Each test executable uses a part of this.
#![allow(dead_code, unreachable_pub)]
// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod kill;
pub mod stream;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use forkyard_engine::model::{Command as Listed, Exit, Sandbox as Described, SessionOutput, State};
use forkyard_testkit::TestServer;
use forkyard_testkit::leaks::{self, Process};
use serde_json::{Value, json};

/// How long anything may take that should take milliseconds, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A sandbox of a test's server. Removed with the server, not when dropped.
#[derive(Clone, Debug)]
pub struct Sandbox<'a> {
    pub server: &'a TestServer,
    pub id: String,
}

/// What a line in a session came to, or the error's status and message.
pub type Line = Result<SessionOutput, (u16, String)>;

/// Makes a sandbox with these options to `create`.
#[track_caller]
pub fn create<'a>(server: &'a TestServer, options: &[&str]) -> Sandbox<'a> {
    let mut args = vec!["create"];
    args.extend(options);
    Sandbox { server, id: server.ok(&args).trim().to_owned() }
}

impl Sandbox<'_> {
    /// The path of the API for this sandbox, with `rest` behind it.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sandboxes/{}{rest}", self.id)
    }

    /// `forkyard exec ID -- ARGV`.
    #[track_caller]
    pub fn exec(&self, argv: &[&str]) -> Output {
        self.exec_with(&[], argv, b"")
    }

    /// The same with options and stdin.
    #[track_caller]
    pub fn exec_with(&self, options: &[&str], argv: &[&str], input: &[u8]) -> Output {
        let mut args = vec!["exec"];
        args.extend(options);
        args.extend([self.id.as_str(), "--"]);
        args.extend(argv);
        self.server.cli_with_input(&args, input)
    }

    /// Runs a line of shell by `exec`; panics unless it exits with 0, gives stdout.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.server.ok(&["exec", &self.id, "--", "sh", "-c", line])
    }

    /// Starts a line of shell in the background; gives its number.
    #[track_caller]
    pub fn start(&self, line: &str) -> u32 {
        let number = self.server.ok(&["exec", "-d", &self.id, "--", "sh", "-c", line]);
        number.trim().parse().unwrap()
    }

    /// Waits for a command's end.
    #[track_caller]
    pub fn wait(&self, command: u32) -> Exit {
        let path = self.path(&format!("/commands/{command}/wait"));
        let (status, body) = self.server.http().limit(SOON).post(&path, "");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Listed>(&body).unwrap().exit.unwrap()
    }

    /// Its commands, ended ones too.
    #[track_caller]
    pub fn commands(&self) -> Vec<Listed> {
        serde_json::from_str(&self.server.ok(&["ps", "-a", "--json", &self.id])).unwrap()
    }

    /// What `inspect` says.
    #[track_caller]
    pub fn inspect(&self) -> Described {
        let all: Vec<Described> =
            serde_json::from_str(&self.server.ok(&["inspect", "--json", &self.id])).unwrap();
        all.into_iter().next().unwrap()
    }

    /// Waits until it has ended; gives the reason.
    #[track_caller]
    pub fn wait_ended(&self) -> String {
        forkyard_testkit::wait_some("the end of a sandbox", SOON, || {
            let info = self.inspect();
            (info.state == State::Ended).then_some(info.reason.unwrap_or_default())
        })
    }

    /// Runs a line in the session.
    #[track_caller]
    pub fn try_line(&self, line: &str, timeout: Option<Duration>) -> Line {
        let timeout = timeout.map(|timeout| timeout.as_millis() as u64);
        let body = json!({ "command": line, "timeout_ms": timeout }).to_string();
        let http = self.server.http().limit(Duration::from_secs(120));
        let (status, body) = http.post(&self.path("/session"), body);
        if status == 200 {
            return Ok(serde_json::from_slice(&body).unwrap());
        }
        let error: Value = serde_json::from_slice(&body).unwrap();
        Err((status, error["message"].as_str().unwrap_or_default().to_owned()))
    }

    /// Runs a line in the session that is meant to be run.
    #[track_caller]
    pub fn line(&self, line: &str) -> SessionOutput {
        self.try_line(line, None).unwrap_or_else(|(code, why)| panic!("{line}: {code} {why}"))
    }

    /// Runs a line in the session with a timeout.
    #[track_caller]
    pub fn line_within(&self, timeout: Duration, line: &str) -> SessionOutput {
        self.try_line(line, Some(timeout)).unwrap_or_else(|(code, why)| panic!("{code} {why}"))
    }

    /// stdout of a line that must succeed and say nothing on stderr.
    #[track_caller]
    pub fn say(&self, line: &str) -> String {
        let out = self.line(line);
        assert_eq!((out.exit_code, out.stderr.as_str()), (0, ""), "{line}: {out:?}");
        out.stdout
    }
}

/// stdout as text.
#[track_caller]
pub fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

/// stderr as text.
#[track_caller]
pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The exit code; panics when a signal ended the command line itself.
#[track_caller]
pub fn code(out: &Output) -> i32 {
    out.status.code().unwrap_or_else(|| panic!("{}: {}", out.status, stderr(out)))
}

/// Asserts an error of forkyard's own: its exit code, and what its first line has in it.
#[track_caller]
pub fn refused(out: &Output, exit: i32, text: &str) {
    let err = stderr(out);
    assert_eq!(code(out), exit, "{err}");
    let mut lines = err.lines();
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with("error: ") && first.contains(text), "`{text}` not in: {err}");
    assert!(lines.all(|line| line.starts_with("hint: ")), "more than an error and hints: {err}");
}

/// Bytes that tell where they are: lines of their own number.
pub fn counted(bytes: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(bytes + 32);
    let mut n = 0_u64;
    while all.len() < bytes {
        all.extend_from_slice(format!("{n}\n").as_bytes());
        n += 1;
    }
    all.truncate(bytes);
    all
}

/// The shell line that writes [`counted`].
pub fn counting(bytes: usize) -> String {
    format!("seq 0 999999999 2>/dev/null | head -c {bytes}")
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The directory of packages of Python that `./test` gets beside what it builds: it has ipykernel and
/// numpy, for sandboxes to be shown, and pytest, for tests of the SDK.
pub fn python_packages() -> Option<PathBuf> {
    // TARGET/PROFILE/deps/TEST
    let test = std::env::current_exe().ok()?;
    let packages = test.ancestors().nth(3)?.join("python");
    packages.join("numpy").is_dir().then_some(packages)
}

/// How many descriptors a process has open.
pub fn open_fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Compiles a static program; `None` where the host has no compiler or no static libc.
pub fn static_program(dir: &Path, name: &str, source: &str) -> Option<PathBuf> {
    let (file, program) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&file, source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-O1", "-o"]).arg(&program).arg(&file);
    let out = gcc.output().ok()?;
    if !out.status.success() {
        return None;
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some(program)
}

/// Whether limits of this kind can be had here: a sandbox with one is made and removed.
pub fn offers_limit(server: &TestServer, option: &str, value: &str) -> bool {
    let out = server.cli(&["run", option, value, "--", "true"]);
    match out.status.code() {
        Some(0) => true,
        _ if stderr(&out).contains("cgroup") || stderr(&out).contains("limit") => false,
        _ => panic!("{}", stderr(&out)),
    }
}

/// A program that is `forkyard`, with its store on a file system of `size` bytes.
pub fn with_small_disk(dir: &Path, size: &str) -> Option<PathBuf> {
    let program = dir.join("forkyard");
    let (binary, ids) = (forkyard_testkit::binary(), rustix::process::geteuid().as_raw());
    let enter = if forkyard_testkit::is_root() {
        "unshare -m --propagation private".to_owned()
    } else {
        "unshare -m --map-root-user".to_owned()
    };
    // Without root, the server is itself again in a user namespace below the one that may mount.
    let leave = if forkyard_testkit::is_root() {
        "exec".to_owned()
    } else {
        format!("FORKYARD_IDS=single exec unshare --map-user={ids} --map-group={ids}")
    };
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = serve ]; then\n\
         exec {enter} sh -c 'mkdir -p \"$STORE\" && mount -t tmpfs -o size={size} none \"$STORE\" \
         && {leave} \"$0\" \"$@\"' {binary} \"$@\"\nfi\nexec {binary} \"$@\"\n",
        binary = binary.display()
    )
    .replace("$STORE", "$FORKYARD_STORE");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut probe = Command::new("sh");
    probe.args(["-c", &format!("{enter} mount -t tmpfs none /mnt")]);
    forkyard_testkit::finish(&mut probe, b"").status.success().then_some(program)
}

/// A file of `/proc` of a process, or nothing when it is gone.
fn proc_file(process: &Process, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", process.pid)).unwrap_or_default()
}

fn parent(process: &Process) -> Option<u32> {
    let stat = proc_file(process, "stat");
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Templates of a server: children of its spawner in the same pid namespace as that.
pub fn templates(server: &TestServer) -> Vec<Process> {
    let Some(server) = server.pid() else { return Vec::new() };
    let all = leaks::descendants(server);
    let spawner = all.iter().find(|process| parent(process) == Some(server)).map(|p| p.pid);
    let is_template = |process: &Process| {
        let status = proc_file(process, "status");
        let ids = status.lines().find(|line| line.starts_with("NSpid:"));
        parent(process) == spawner && ids.is_some_and(|ids| ids.split_whitespace().count() == 2)
    };
    all.into_iter().filter(is_template).collect()
}
