//! Proves that [`TestServer`] notices what a bad server leaves behind, with a stand-in that can be
//! told to be bad: the real one is not.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use forkyard_testkit::leaks::Process;
use forkyard_testkit::{TestServer, find_program, skip};
use tempfile::TempDir;

/// Speaks enough of the API. A sandbox is a process without an environment, noted in the store.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import http.server, json, os, signal, socketserver, subprocess, sys

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

if "--broken" in sys.argv:
    sys.exit("this server is broken")
store = option("--store")
os.makedirs(store, exist_ok=True)
if os.path.exists(option("--socket")):
    os.unlink(option("--socket"))

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body):
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        print(self.command, self.path, file=sys.stderr, flush=True)

    def do_GET(self):
        self.answer(200, json.dumps([{"id": name} for name in os.listdir(store)]).encode())

    def do_POST(self):
        if self.path.startswith("/v1/shutdown"):
            try:
                self.answer(204, b"")
            finally:
                os._exit(0)
        if self.path != "/v1/sandboxes":
            return self.answer(404, b"{}")
        sandbox = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        open(os.path.join(store, str(sandbox.pid)), "w").close()
        self.answer(201, str(sandbox.pid).encode())

    def do_DELETE(self):
        pid = self.path.rsplit("/", 1)[1]
        os.unlink(os.path.join(store, pid))
        if "--leak" not in sys.argv:
            os.kill(int(pid), signal.SIGKILL)
        self.answer(204, b"")

class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return self.socket.accept()[0], ("local", 0)

server = Server(option("--socket"), Handler)
os.write(int(option("--ready-fd")), b"r")
server.serve_forever()
"#;

/// The stand-in as a file; `None` where it cannot run.
fn stand_in() -> Option<(TempDir, PathBuf)> {
    find_program("python3")?;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("forkyard");
    fs::write(&program, STAND_IN).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some((dir, program))
}

/// Makes a sandbox of the stand-in.
fn sandbox(server: &TestServer) -> Process {
    let (status, pid) = server.post("/v1/sandboxes", "{}");
    assert_eq!(status, 201);
    Process::of(String::from_utf8(pid.to_vec()).unwrap().parse().unwrap()).unwrap()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[test]
fn sandboxes_survive_a_killed_server_and_go_with_the_test() {
    let Some((_dir, program)) = stand_in() else { skip!("python3") };
    let mut server = TestServer::start_program(&program, &[]);
    let dir = server.dir().to_owned();
    let sandbox = sandbox(&server);
    server.kill9();
    assert_eq!(server.pid(), None);
    assert!(sandbox.lives());
    assert!(server.processes().contains(&sandbox));
    drop(server);
    assert!(!sandbox.lives());
    assert!(!dir.exists());
}

#[test]
fn a_restarted_server_has_the_same_store() {
    let Some((_dir, program)) = stand_in() else { skip!("python3") };
    let mut server = TestServer::start_program(&program, &[]);
    let (before, sandbox) = (server.pid(), sandbox(&server));
    server.restart();
    assert_ne!(server.pid(), before);
    let (_, listed) = server.get("/v1/sandboxes");
    assert_eq!(listed, format!("[{{\"id\": \"{}\"}}]", sandbox.pid));
}

#[test]
fn a_process_left_behind_fails_the_test_and_is_killed() {
    let Some((_dir, program)) = stand_in() else { skip!("python3") };
    let server = TestServer::start_program(&program, &["--leak"]);
    let (dir, sandbox) = (server.dir().to_owned(), sandbox(&server));
    let panic = catch_unwind(AssertUnwindSafe(|| drop(server))).unwrap_err();
    let text = message(&*panic);
    assert!(text.contains(&format!("left behind: process {}: sleep 600", sandbox.pid)), "{text}");
    assert!(text.contains("POST /v1/sandboxes"), "no log: {text}");
    assert!(!sandbox.lives());
    assert!(!dir.exists());
}

#[test]
fn a_test_that_panics_keeps_its_own_message_and_leaves_nothing() {
    let Some((_dir, program)) = stand_in() else { skip!("python3") };
    let mut seen = None;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let server = TestServer::start_program(&program, &["--leak"]);
        seen = Some((server.dir().to_owned(), sandbox(&server)));
        panic!("the test's own");
    }))
    .unwrap_err();
    assert_eq!(message(&*panic), "the test's own");
    let (dir, sandbox) = seen.unwrap();
    assert!(!sandbox.lives());
    assert!(!dir.exists());
}

#[test]
fn a_server_that_does_not_start_is_told_with_what_it_said() {
    let Some((_dir, program)) = stand_in() else { skip!("python3") };
    let start = || TestServer::start_program(&program, &["--broken"]);
    let panic = catch_unwind(start).unwrap_err();
    let text = message(&*panic);
    assert!(text.contains("exit status: 1") && text.contains("this server is broken"), "{text}");
}
