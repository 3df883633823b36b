//! Processes that do not hold still: forked while they come and go, look out for tracers, or are in
//! a state that cannot be copied.

use forkyard_testkit::TestServer;

use super::{end, output, refused_with, start, survives_forks};

/// Forks of one sandbox in which something is always in the middle of a change.
const FORKS: usize = 4;

#[test]
fn processes_that_come_and_go_all_the_time_are_forked() {
    survives_forks("churn", FORKS);
}

#[test]
fn a_process_that_is_stopped_again_and_again_comes_to_no_harm() {
    survives_forks("stopped_again", 4 * FORKS);
}

#[test]
fn a_guest_that_looks_out_for_tracers_neither_hangs_a_fork_nor_comes_to_harm() {
    let server = TestServer::start();
    let source = start(&server, "watchers", &[], &[]);
    for _ in 0..FORKS {
        let out = server.cli(&["fork", &source, "-n", "1"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let clone = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let output = output(&server, &source);
        assert!(!output.contains("FAIL"), "the original: {output}");
        match out.status.code() {
            Some(0) => {
                server.ok(&["exec", &clone, "--", "touch", "/root/forked"]);
                let (output, code) = end(&server, &clone);
                assert!(code == 0 && output.ends_with("ok\n"), "a clone: {code}, {output}");
                server.ok(&["rm", &clone]);
            }
            Some(125) => {
                let known = ["it is being traced", "did not hold still"];
                assert!(known.iter().any(|text| said.contains(text)), "{said}");
            }
            _ => panic!("{:?}: {said}", out.status),
        }
    }
    server.ok(&["exec", &source, "--", "touch", "/root/forked"]);
    let (output, code) = end(&server, &source);
    assert!(code == 0 && output.ends_with("ok\n"), "the original: {code}, {output}");
}

#[test]
fn what_cannot_be_forked_of_processes_and_threads_is_refused_by_name() {
    for (kind, text) in [
        ("leader", "its main thread has ended, and others go on"),
        ("traced", "it is being traced"),
        ("memory", "it shares its memory with process 4"),
        ("descriptors", "it shares its table of descriptors with process 4"),
        ("dispatch", "it has its system calls turned into signals"),
        ("vdso", "it has no vDSO that can be executed"),
        ("signals", "more than 1024 signals wait for it"),
    ] {
        refused_with("refused_task", text, &[], &["-e", &format!("KIND={kind}")]);
    }
}

#[test]
fn a_parent_that_waits_for_a_child_of_vfork_can_be_forked_another_time() {
    let text = "waits for a child of vfork(2) that runs no program of its own yet";
    refused_with("refused_task", text, &[], &["-e", "KIND=vfork"]);
}
