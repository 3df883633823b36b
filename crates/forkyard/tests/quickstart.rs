//! The first thing a newcomer runs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use forkyard_testkit::{binary, finish_within, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(200);

/// The quickstart with a directory of temporary files of its own.
fn quickstart(temp: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("quickstart").env("TMPDIR", temp).env("NO_COLOR", "1");
    command
}

/// Short, since sockets are in it.
fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("fy-").tempdir().expect("a temporary directory")
}

fn processes_of(temp: &Path) -> usize {
    forkyard_testkit::leaks::processes(&temp.to_string_lossy()).len()
}

#[test]
fn every_step_shows_what_it_claims_and_nothing_is_left() {
    let temp = temp_dir();
    let out = finish_within(LIMIT, &mut quickstart(temp.path()), b"");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("All 10 steps showed what they claim"), "{text}");
    assert!(text.lines().count() < 110, "two screens at most:\n{text}");
    assert!(!text.contains('\x1b'), "colour without a terminal:\n{text}");
    assert_eq!(std::fs::read_dir(temp.path()).expect("read it").count(), 0);
    assert_eq!(processes_of(temp.path()), 0);
}

#[test]
fn ctrl_c_removes_everything_too() {
    let temp = temp_dir();
    let mut command = quickstart(temp.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it");
    let socket = || {
        let entries = std::fs::read_dir(temp.path()).expect("read it");
        entries.flatten().any(|entry| entry.path().join("sock").exists())
    };
    wait_for("the quickstart's server", LIMIT, socket);
    kill_process(Pid::from_child(&child), Signal::INT).expect("send SIGINT");
    let status = child.wait().expect("wait for it");
    assert_eq!(status.code(), Some(130));
    assert_eq!(std::fs::read_dir(temp.path()).expect("read it").count(), 0);
    assert_eq!(processes_of(temp.path()), 0);
}
