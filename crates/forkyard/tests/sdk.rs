//! The Python package below `sdk/python`, against a real server: a test here runs a module of its
//! own tests.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use forkyard_testkit::{TestServer, binary, finish_within, print_skip};
use support::python_packages;

/// For all tests of one module.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn python_speaks_http_and_frames_however_they_are_cut() {
    run("python_speaks_http_and_frames_however_they_are_cut", "test_protocol.py");
}

#[test]
fn python_finds_the_server_that_the_command_line_finds() {
    run("python_finds_the_server_that_the_command_line_finds", "test_paths.py");
}

#[test]
fn python_has_every_method_with_and_without_await() {
    run("python_has_every_method_with_and_without_await", "test_faces.py");
}

#[test]
fn python_makes_forks_keeps_and_removes_sandboxes() {
    run("python_makes_forks_keeps_and_removes_sandboxes", "test_sandboxes.py");
}

#[test]
fn python_streams_commands_without_losing_a_byte() {
    run("python_streams_commands_without_losing_a_byte", "test_commands.py");
}

#[test]
fn python_runs_lines_in_a_session() {
    run("python_runs_lines_in_a_session", "test_sessions.py");
}

#[test]
fn python_moves_files() {
    run("python_moves_files", "test_files.py");
}

#[test]
fn python_uses_terminals() {
    run("python_uses_terminals", "test_terminals.py");
}

#[test]
fn python_manages_images_and_snapshots() {
    run("python_manages_images_and_snapshots", "test_client.py");
}

#[test]
fn python_runs_many_tasks_at_once() {
    run("python_runs_many_tasks_at_once", "test_tasks.py");
}

#[test]
fn python_outlives_the_server_it_speaks_to() {
    run("python_outlives_the_server_it_speaks_to", "test_faults.py");
}

#[test]
fn python_in_the_documents_does_what_they_show() {
    run("python_in_the_documents_does_what_they_show", "test_documents.py");
}

/// Runs a module of the package's tests; what is skipped is told with the reasons.
#[track_caller]
fn run(test: &str, module: &str) {
    let skipped = |why: &str| print_skip(&format!("sdk::{test}"), why);
    let Some(packages) = python_packages().filter(|found| found.join("pytest").is_dir()) else {
        return skipped("packages of Python: ./test gets them");
    };
    let package = repository().join("sdk/python");
    let server = TestServer::start();
    let temp = server.dir().join("tmp");
    std::fs::create_dir(&temp).expect("a directory for temporary files");
    let mut python = server.prepare("/usr/bin/python3");
    python
        .args(["-X", "dev", "-m", "pytest", "-q", "-rs", "--no-header", "--tb=short"])
        .arg("--basetemp")
        .arg(temp.join("pytest"))
        .arg(package.join("tests").join(module))
        .current_dir(&package)
        .env("PYTHONPATH", join(&[&package.join("src"), &packages]))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("FORKYARD_BIN", binary())
        .env("TMPDIR", &temp);
    let out = finish_within(LIMIT, &mut python, b"");
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{module}: {}\n{text}\n{errors}", out.status);
    // SKIPPED [1] tests/test_files.py:1: WHY
    let lines = text.lines().filter_map(|line| line.strip_prefix("SKIPPED "));
    let whys: Vec<&str> =
        lines.filter_map(|line| line.split_once(": ")).map(|(_, why)| why).collect();
    if !whys.is_empty() {
        skipped(&whys.join("; "));
    }
}

fn join(paths: &[&Path]) -> std::ffi::OsString {
    std::env::join_paths(paths).expect("paths without colons")
}

/// The root of the source tree, as of now: `./test` runs this from a copy.
fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| std::env::current_dir().expect("a working directory"), PathBuf::from);
    let above = package.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    above.unwrap_or_else(|| panic!("no Cargo.lock above {}", package.display())).to_owned()
}
