//! The zoo: one program for each kind of state, forked live, which looks at itself again in the
//! original and in each clone.
//!
//! The programs are in `crates/snapshot/tests/zoo`, and compiled by the test that runs them.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

#[path = "../support/mod.rs"]
mod support;

mod again;
mod attributes;
mod churn;
mod credentials;
mod disk;
mod events;
mod files;
mod inet_sockets;
mod interactive;
mod killed;
mod large_uppers;
mod locks;
mod memory;
mod processes;
mod room;
mod shared_memory;
mod signals;
mod terminals;
mod threads;
mod timers;
mod unix_sockets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forkyard_testkit::{TestServer, wait_for};

/// Clones of one fork.
const CLONES: usize = 2;

/// How long a program may take from its start to being ready, and from the fork to its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Forks a program of the zoo, and checks what it says of itself afterwards.
#[track_caller]
pub fn survives(program: &str) {
    survives_with(program, &[], &[]);
}

/// The same, with options of `create` and of `exec`.
#[track_caller]
pub fn survives_with(program: &str, create: &[&str], exec: &[&str]) {
    let server = TestServer::start();
    let compiled = compiled(program);
    for _ in 0..times() {
        let source = made(&server, create);
        assert_eq!(start_compiled(&server, &source, &compiled, exec), "1");
        let clones = goes_on(&server, program, &source, "1");
        for id in clones.iter().chain([&source]) {
            server.ok(&["rm", id]);
        }
    }
}

/// How often each program is forked from its start: once, unless `FORKYARD_ZOO_TIMES` says more.
fn times() -> usize {
    std::env::var("FORKYARD_ZOO_TIMES").map_or(1, |times| times.parse().unwrap())
}

/// Forks a sandbox in which a program of the zoo is ready, as this command, and checks what it says
/// afterwards; the clones.
#[track_caller]
pub fn goes_on(server: &TestServer, program: &str, source: &str, command: &str) -> Vec<String> {
    let source = source.to_owned();
    let clones = fork(server, &source);
    assert_eq!(clones.len(), CLONES);
    for id in clones.iter().chain([&source]) {
        server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    }
    for id in clones.iter().chain([&source]) {
        let who = if *id == source { "the original" } else { "a clone" };
        let (output, code) = end_of(server, id, command);
        assert!(code == 0 && output.ends_with("ok\n"), "{program} in {who}: {code}, {output}");
    }
    clones
}

/// Forks a program that is always in the middle of something, and has it go on after each fork; what
/// its clones say is checked each time, what it says itself at the end.
#[track_caller]
pub fn survives_forks(program: &str, forks: usize) {
    let server = TestServer::start();
    let source = start(&server, program, &[], &[]);
    for _ in 1..forks {
        for id in fork(&server, &source) {
            server.ok(&["exec", &id, "--", "touch", "/root/forked"]);
            let (output, code) = end(&server, &id);
            assert!(code == 0 && output.ends_with("ok\n"), "a clone: {code}, {output}");
            server.ok(&["rm", &id]);
        }
    }
    goes_on(&server, program, &source, "1");
}

/// Forking a program of the zoo is refused with this text, and does it no harm.
#[track_caller]
pub fn refused(program: &str, text: &str) {
    refused_with(program, text, &[], &[]);
}

/// The same, with options of `create` and of `exec`.
#[track_caller]
pub fn refused_with(program: &str, text: &str, create: &[&str], exec: &[&str]) {
    let server = TestServer::start();
    let source = start(&server, program, create, exec);
    let out = server.cli(&["fork", &source, "-n", "2"]);
    support::refused(&out, 125, text);
    server.ok(&["exec", &source, "--", "touch", "/root/forked"]);
    let (output, code) = end(&server, &source);
    assert!(code == 0 && output.ends_with("ok\n"), "{program}: {code}, {output}");
    let (_, all) = server.get("/v1/sandboxes");
    let all: Vec<serde_json::Value> = serde_json::from_slice(&all).unwrap();
    assert_eq!(all.len(), 1, "no half clone is left");
}

/// Makes a sandbox in which a program of the zoo is ready to be forked; its id.
#[track_caller]
pub fn start(server: &TestServer, program: &str, create: &[&str], exec: &[&str]) -> String {
    let id = made(server, create);
    assert_eq!(start_in(server, &id, program, exec), "1");
    id
}

#[track_caller]
fn made(server: &TestServer, create: &[&str]) -> String {
    let mut args = vec!["create"];
    args.extend(create);
    server.ok(&args).trim().to_owned()
}

/// The same in a sandbox that is there; the command's number.
#[track_caller]
pub fn start_in(server: &TestServer, id: &str, program: &str, exec: &[&str]) -> String {
    start_compiled(server, id, &compiled(program), exec)
}

#[track_caller]
fn start_compiled(server: &TestServer, id: &str, program: &Compiled, exec: &[&str]) -> String {
    server.ok(&["cp", program.path.to_str().unwrap(), &format!("{id}:/root/zoo")]);
    let mut args = vec!["exec", "-d"];
    args.extend(exec);
    args.extend([id, "--", "/root/zoo"]);
    let command = server.ok(&args).trim().to_owned();
    wait_for("the program to be ready", PATIENCE, || {
        let output = output_of(server, id, &command);
        assert!(!output.contains("FAIL"), "before the fork: {output}");
        output.contains("ready\n") || output.contains("ready\r\n")
    });
    command
}

/// Forks a sandbox; the ids of the clones.
#[track_caller]
pub fn fork(server: &TestServer, source: &str) -> Vec<String> {
    let count = CLONES.to_string();
    let out = server.ok(&["fork", source, "-n", &count]);
    out.lines().map(str::to_owned).collect()
}

/// What the first command of a sandbox wrote so far.
#[track_caller]
pub fn output(server: &TestServer, id: &str) -> String {
    output_of(server, id, "1")
}

/// The same of any command.
#[track_caller]
pub fn output_of(server: &TestServer, id: &str, command: &str) -> String {
    let target = format!("/v1/sandboxes/{id}/commands/{command}/output?stream=stdout");
    let (status, bytes) = server.get(&target);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    String::from_utf8_lossy(&bytes).replace("\r\n", "\n")
}

/// Waits for the end of the first command; what it wrote, and its exit code.
#[track_caller]
pub fn end(server: &TestServer, id: &str) -> (String, i64) {
    end_of(server, id, "1")
}

/// The same of any command.
#[track_caller]
pub fn end_of(server: &TestServer, id: &str, number: &str) -> (String, i64) {
    let http = server.http().limit(PATIENCE);
    let target = format!("/v1/sandboxes/{id}/commands/{number}/wait");
    let (status, bytes) = http.post(&target, "");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(status, 200, "{text}; so far: {}", output_of(server, id, number));
    let command: serde_json::Value = serde_json::from_str(&text).unwrap();
    (output_of(server, id, number), command["exit"]["code"].as_i64().unwrap_or(-1))
}

/// A program of the zoo.
struct Compiled {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

#[track_caller]
fn compiled(program: &str) -> Compiled {
    let dir = tempfile::tempdir().unwrap();
    // As this test is run: where it was built may be closed to its user.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("CARGO_MANIFEST_DIR");
    let zoo = Path::new(&package).join("../snapshot/tests/zoo");
    let (source, path) = (zoo.join(format!("{program}.c")), dir.path().join(program));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-Wall", "-Wno-unused-result", "-pthread", "-o"]);
    gcc.arg(&path).arg(source).arg("-lrt");
    let out = gcc.output().expect("run gcc");
    assert!(out.status.success(), "gcc: {}", String::from_utf8_lossy(&out.stderr));
    Compiled { path, _dir: dir }
}
