//! Memory of templates and the limits of their sandboxes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forkyard_engine::model::Usage;
use forkyard_testkit::leaks::Process;
use forkyard_testkit::{TestServer, wait_for};

use super::again::kept;
use super::support::{Sandbox, offers_limit, refused, templates};
use super::{PATIENCE, end, fork, start};

const MIB: u64 = 1 << 20;

/// A server that can limit memory, if there is one here.
fn server() -> Option<TestServer> {
    let server = TestServer::start();
    offers_limit(&server, "--memory", "96m").then_some(server)
}

fn usage(server: &TestServer, id: &str) -> Usage {
    Sandbox { server, id: id.to_owned() }.inspect().usage.unwrap_or_default()
}

/// The program goes on, nobody was ended for want of memory, and nothing of a fork is left.
#[track_caller]
fn is_unharmed(server: &TestServer, id: &str) {
    assert_eq!(usage(server, id).oom_kills, Some(0));
    wait_for("the end of the template", PATIENCE, || templates(server).is_empty());
    let (_, all) = server.get("/v1/sandboxes");
    let all: Vec<serde_json::Value> = serde_json::from_slice(&all).unwrap();
    assert_eq!(all.len(), 1, "no half clone is left");
    server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    let (output, code) = end(server, id);
    assert!(code == 0 && output.ends_with("ok\n"), "{code}, {output}");
}

#[test]
fn a_fork_that_the_memory_limit_has_no_room_for_is_refused() {
    let Some(server) = server() else { return };
    let source = start(&server, "again", &["--memory", "96m"], &[]);
    let out = server.cli(&["fork", &source]);
    refused(&out, 125, "not enough memory to fork");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("its limit of 96 MiB") && text.contains("`--memory`"), "{text}");
    is_unharmed(&server, &source);
}

#[test]
fn memory_full_during_a_fork_fails_it_and_harms_nobody() {
    let Some(server) = server() else { return };
    // Seven processes show 24 MiB each, and have them together.
    let source = start(&server, "family", &["--memory", "96m"], &[]);
    let out = server.cli(&["fork", &source]);
    refused(&out, 125, "not enough memory to fork");
    is_unharmed(&server, &source);
}

#[test]
fn what_processes_share_since_a_fork_stays_shared_in_original_and_clone() {
    let Some(server) = server() else { return };
    let source = start(&server, "family", &[], &[]);
    let memory = |id: &str| usage(&server, id).memory.unwrap();
    let before = memory(&source);
    assert!(before < 40 * MIB, "{before}");
    let clones = fork(&server, &source);
    // Who takes another picture ends the template, which counts to the original.
    server.ok(&["snapshot", &source]);
    assert!(memory(&source) < before + 8 * MIB, "{} after {before}", memory(&source));
    // All of it is shared with the other clone.
    let before = memory(&clones[0]);
    assert!(before < 16 * MIB, "{before}");
    fork(&server, &clones[0]);
    server.ok(&["snapshot", &clones[0]]);
    assert!(memory(&clones[0]) < before + 8 * MIB, "{} after {before}", memory(&clones[0]));
}

#[test]
fn a_fork_that_fits_is_made_again_and_again_within_the_limit() {
    let Some(server) = server() else { return };
    let source = start(&server, "again", &["--memory", "160m"], &[]);
    for _ in 0..3 {
        for clone in fork(&server, &source) {
            server.ok(&["rm", &clone]);
        }
    }
    server.ok(&["snapshot", &source]);
    is_unharmed(&server, &source);
}

/// Directories of a template's own control groups.
fn groups(template: Process) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", template.pid)).unwrap();
    let dirs = text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        let top = Path::new("/sys/fs/cgroup");
        [top.join(controllers), top.join("unified"), top.to_owned()]
            .map(|mount| mount.join(path.trim_start_matches('/')))
    });
    dirs.filter(|dir| dir.to_string_lossy().ends_with(".2") && dir.is_dir()).collect()
}

#[test]
fn memory_of_a_kept_template_counts_to_its_sandbox_until_it_is_gone() {
    let Some(server) = server() else { return };
    for options in [&[][..], &["--memory", "256m"]] {
        let source = start(&server, "again", options, &[]);
        let memory = || usage(&server, &source).memory.unwrap();
        let before = memory();
        fork(&server, &source);
        assert!(memory() >= before + 60 * MIB, "{} after {before}", memory());
        let template = kept(&server);
        let groups = groups(template);
        assert!(!groups.is_empty());
        server.ok(&["snapshot", &source]);
        wait_for("the end of the template", PATIENCE, || !template.lives());
        wait_for("the end of its groups", PATIENCE, || groups.iter().all(|dir| !dir.exists()));
        assert!(memory() < before + 16 * MIB, "{} after {before}", memory());
        server.ok(&["rm", &source]);
    }
}

#[test]
fn a_template_is_let_go_when_its_sandbox_needs_the_memory() {
    let Some(server) = server() else { return };
    let source = start(&server, "again", &["--memory", "160m"], &[]);
    fork(&server, &source);
    let begun = Instant::now();
    kept(&server);
    // More than both of them leave.
    let greed = "x=$(head -c 30m /dev/zero | tr '\\0' x); echo took ${#x}; sleep 30";
    server.ok(&["exec", "-d", &source, "--", "sh", "-c", greed]);
    wait_for("the end of the template", PATIENCE, || templates(&server).is_empty());
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(usage(&server, &source).oom_kills, Some(0));
}
