//! Where cases are played: one server, a neighbour that must not notice, and a canary on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use forkyard_testkit::{Http, TestServer, finish};
use serde_json::{Value, json};

/// What the canary says.
pub(crate) const CANARY: &str = "canary-a1b2c3";

/// How long the server may take to answer anything while guests do their worst. What an attack
/// would hold up it holds up for ever; a busy machine takes its time too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of the host's kernel that a guest would like to change.
const SETTINGS: [&str; 8] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage/enabled",
];

/// Ids and rights that the server gives its sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As root: a range of ids that no user of the host has.
    Root,
    /// Rootless with subordinate ids.
    SubIds,
    /// Rootless with one id, the server's own.
    Single,
}

/// The server that the cases of one run share.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) server: TestServer,
    pub(crate) mode: Mode,
    attack: Vec<u8>,
    neighbour: String,
    canary: PathBuf,
}

static SHARED: Mutex<Weak<Arena>> = Mutex::new(Weak::new());

impl Arena {
    /// The arena of the cases that run now; made when none does. The last one to let it go ends
    /// the server, which looks for what is left behind.
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arena) = shared.upgrade() {
            return arena;
        }
        let arena = Arc::new(Self::make());
        *shared = Arc::downgrade(&arena);
        arena
    }

    fn make() -> Self {
        let server = TestServer::start();
        let attack = compile(server.dir());
        let canary = server.dir().join("canary");
        fs::write(&canary, CANARY).expect("write the canary");
        let (_, health) = server.get("/v1/health");
        let health: Value = serde_json::from_slice(&health).expect("health in JSON");
        let mode = match health["mode"].as_str() {
            Some("root") => Mode::Root,
            Some("subids") => Mode::SubIds,
            Some("single") => Mode::Single,
            mode => panic!("unknown mode {mode:?}"),
        };
        let mut arena = Self { server, mode, attack, neighbour: String::new(), canary };
        arena.neighbour = arena.create(&json!({ "name": "neighbour" })).expect("a neighbour");
        let made = arena.session(
            "neighbour",
            "echo untouched >/root/own; sleep 86400 & echo untouched >/dev/shm/own",
        );
        assert_eq!(made["exit_code"], 0, "{made}");
        arena
    }

    /// Makes a sandbox; the error's message otherwise.
    pub(crate) fn create(&self, spec: &Value) -> Result<String, String> {
        let (status, body) = self.http().post("/v1/sandboxes", spec.to_string());
        let body: Value = serde_json::from_slice(&body).expect("an answer in JSON");
        match body["id"].as_str() {
            Some(id) if status == 201 => Ok(id.to_owned()),
            _ => Err(body["message"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// A sandbox with the attacks in `/hostile`; see `SandboxSpec` for what may be asked.
    pub(crate) fn guest(self: &Arc<Self>, spec: &Value) -> Guest {
        self.try_guest(spec).unwrap_or_else(|why| panic!("create {spec}: {why}"))
    }

    /// The same, where the host may not have what is asked for.
    pub(crate) fn try_guest(self: &Arc<Self>, spec: &Value) -> Result<Guest, String> {
        let id = self.create(spec)?;
        let guest = Guest { arena: Arc::clone(self), id, ended: AtomicBool::new(false) };
        guest.arm();
        Ok(guest)
    }

    /// Answers that take longer than a hostile guest may delay them fail the test.
    pub(crate) fn http(&self) -> Http {
        self.server.http().limit(PATIENCE)
    }

    /// A file of the host's that no guest may see or change.
    pub(crate) fn canary(&self) -> &Path {
        &self.canary
    }

    fn session(&self, id: &str, line: &str) -> Value {
        let body = json!({ "command": line, "timeout_ms": 15_000 }).to_string();
        let (_, body) = self.http().post(&format!("/v1/sandboxes/{id}/session"), body);
        serde_json::from_slice(&body).expect("a session's answer in JSON")
    }

    /// The other sandbox has its files and its process, and answers.
    #[track_caller]
    pub(crate) fn check_neighbour(&self) {
        let (status, _) = self.http().get("/v1/health");
        assert_eq!(status, 200);
        let out = self.session("neighbour", "cat /root/own /dev/shm/own; kill -0 $! && echo up");
        assert_eq!(out["stdout"], "untouched\nuntouched\nup\n", "the neighbour: {out}");
    }

    /// What a guest might have changed: compared before and after.
    pub(crate) fn host_state(&self) -> Vec<String> {
        let settings = SETTINGS.iter().map(|path| fs::read_to_string(path).unwrap_or_default());
        let canary = fs::read_to_string(&self.canary).unwrap_or_default();
        settings.chain([canary, format!("{:?}", self.server.pid())]).collect()
    }
}

impl Drop for Arena {
    /// What guests made in quantity is removed behind the answers, on a busy machine long behind.
    /// The end of the server would wait for it, and not as long.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let trash = self.server.store().join("trash");
            forkyard_testkit::wait_for("the removal of all files", 2 * PATIENCE, || {
                fs::read_dir(&trash).map_or(true, |mut entries| entries.next().is_none())
            });
        }
    }
}

/// Compiles the attacks. gcc is there: nothing of forkyard builds without.
fn compile(dir: &Path) -> Vec<u8> {
    let (source, program) = (dir.join("attack.c"), dir.join("attack"));
    fs::write(&source, include_str!("attack.c")).expect("write attack.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-static", "-w", "-o"]).args([&program, &source]);
    let out = finish(&mut gcc, b"");
    assert!(out.status.success(), "gcc: {}", String::from_utf8_lossy(&out.stderr));
    fs::read(&program).expect("the compiled attacks")
}

/// A hostile sandbox; removed when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) arena: Arc<Arena>,
    pub(crate) id: String,
    ended: AtomicBool,
}

/// What an attempt is called, and `OK` or the errno that it met.
pub(crate) type Attempt = (String, String);

impl Guest {
    pub(crate) fn mode(&self) -> Mode {
        self.arena.mode
    }

    /// `/v1/sandboxes/ID/REST`
    pub(crate) fn url(&self, rest: &str) -> String {
        format!("/v1/sandboxes/{}/{rest}", self.id)
    }

    /// `forkyard exec OPTIONS ID -- ARGV`
    pub(crate) fn exec(&self, options: &[&str], argv: &[&str]) -> Output {
        self.arena.server.cli(&[&["exec"], options, &[&self.id, "--"], argv].concat())
    }

    /// Runs a shell script to its end; what it wrote to stdout and stderr together.
    pub(crate) fn sh(&self, script: &str) -> String {
        let script = format!("exec 2>&1\n{script}");
        text(&self.exec(&[], &["/bin/sh", "-c", &script]).stdout)
    }

    /// The same in a directory, where the one that commands start in is of no use.
    pub(crate) fn sh_in(&self, directory: &str, script: &str) -> String {
        let script = format!("exec 2>&1\n{script}");
        text(&self.exec(&["-w", directory], &["/bin/sh", "-c", &script]).stdout)
    }

    /// Starts a program in the background and waits for its first line of output.
    pub(crate) fn spawn(&self, argv: &[&str]) -> String {
        let number = text(&self.exec(&["--detach"], argv).stdout);
        let output = self.url(&format!("commands/{}/output?stream=stdout", number.trim()));
        forkyard_testkit::wait_some("the attack's first line", PATIENCE, || {
            let (_, bytes) = self.arena.http().get(&output);
            bytes.contains(&b'\n').then(|| text(&bytes))
        })
    }

    /// Starts a group of `attack.c` that goes on in the background.
    pub(crate) fn spawn_attack(&self, arguments: &[&str]) -> String {
        self.spawn(&[&["/hostile/attack"], arguments].concat())
    }

    /// Runs a group of `attack.c`.
    pub(crate) fn attack(&self, arguments: &[&str]) -> Vec<Attempt> {
        self.attack_as(&[], arguments)
    }

    /// The same with options of `exec`.
    #[track_caller]
    pub(crate) fn attack_as(&self, options: &[&str], arguments: &[&str]) -> Vec<Attempt> {
        let out = self.exec(options, &[&["/hostile/attack"], arguments].concat());
        let said = text(&out.stdout);
        let attempts: Vec<_> = said
            .lines()
            .filter_map(|line| line.trim_end().rsplit_once(' '))
            .map(|(name, result)| (name.to_owned(), result.to_owned()))
            .collect();
        assert!(!attempts.is_empty(), "{arguments:?}: {out:?}");
        attempts
    }

    /// Runs a group of which every attempt must fail with one of these.
    #[track_caller]
    pub(crate) fn refused(&self, group: &str, errnos: &[&str]) {
        check_refused(&self.attack(&[group]), errnos);
    }

    /// A line in the session: the answer in JSON.
    pub(crate) fn session(&self, line: &str, timeout: Duration) -> Value {
        let body = json!({ "command": line, "timeout_ms": timeout.as_millis() as u64 });
        let (_, body) = self.arena.http().post(&self.url("session"), body.to_string());
        serde_json::from_slice(&body).expect("a session's answer in JSON")
    }

    /// GET of a file of the sandbox.
    pub(crate) fn read(&self, path: &str) -> (u16, Bytes) {
        self.arena.http().get(&self.url(&format!("files?path={path}")))
    }

    /// PUT of a file of the sandbox.
    pub(crate) fn write(&self, path: &str, contents: &'static str) -> (u16, Bytes) {
        self.arena.http().put(&self.url(&format!("files?path={path}")), contents)
    }

    /// Puts the attacks into the sandbox.
    #[track_caller]
    fn arm(&self) {
        let target = self.url("files?path=/hostile/attack&mode=0755&parents=true");
        let (status, body) = self.arena.http().put(&target, self.arena.attack.clone());
        assert_eq!(status, 204, "{}", text(&body));
    }

    /// Throws the sandbox back to its first state, but for the attacks, which are there again.
    #[track_caller]
    pub(crate) fn reset(&self) {
        let (status, body) = self.arena.http().post(&self.url("reset"), "");
        assert_eq!(status, 200, "{}", text(&body));
        self.arm();
    }

    /// Its init is there and answers, unless [`may_end`](Self::may_end).
    #[track_caller]
    pub(crate) fn check_alive(&self) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        let out = self.exec(&["--timeout", "20s"], &["/hostile/attack", "pivot"]);
        assert!(text(&out.stdout).contains("pivot_root EPERM"), "the sandbox is gone: {out:?}");
    }

    /// This attack leaves a sandbox that runs nothing, or none.
    pub(crate) fn may_end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let answer = self.arena.http().request("DELETE", self.url("").trim_end_matches('/'), "");
        if !std::thread::panicking() {
            let (status, body) = answer.expect("an answer to DELETE");
            assert!(status == 204 || status == 404, "{status}: {}", text(&body));
        }
    }
}

/// Every attempt must have failed with one of these errnos.
#[track_caller]
pub(crate) fn check_refused(attempts: &[Attempt], errnos: &[&str]) {
    let other: Vec<_> =
        attempts.iter().filter(|(_, result)| !errnos.contains(&result.as_str())).collect();
    assert!(other.is_empty(), "not refused with {errnos:?}: {other:?}");
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
