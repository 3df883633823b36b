//! Forks of the same sandbox, one after the other.

use std::time::{Duration, Instant};

use forkyard_engine::model::Fork;
use forkyard_testkit::leaks::Process;
use forkyard_testkit::{TestServer, wait_for, wait_some};
use rustix::process::{Pid, Signal, kill_process};

use super::support::templates;
use super::{PATIENCE, end, output, start};

const MIB: u64 = 1 << 20;

/// How long a template is kept, and how long it and what it had may take to be gone.
const KEPT: Duration = Duration::from_secs(10);
const GONE: Duration = Duration::from_secs(5);

/// What marks what a process writes.
const MARKS: &str = "anon_inode:[userfaultfd]";

/// What the program does between forks.
const STEPS: usize = 6;

/// Forks a sandbox once, and has the clone check itself; how many bytes were copied.
#[track_caller]
fn forked(server: &TestServer, source: &str) -> u64 {
    let fork: Fork = serde_json::from_str(&server.ok(&["fork", "--json", source])).unwrap();
    let clone = fork.clones[0].id.to_string();
    checks_itself(server, &clone);
    server.ok(&["rm", &clone]);
    fork.report.memory
}

#[track_caller]
fn checks_itself(server: &TestServer, id: &str) {
    server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    let (output, code) = end(server, id);
    assert!(code == 0 && output.ends_with("ok\n"), "{id}: {code}, {output}");
}

#[track_caller]
fn step(server: &TestServer, source: &str, number: usize) {
    server.ok(&["exec", source, "--", "touch", &format!("/root/step-{number}")]);
    wait_for("the next step", PATIENCE, || {
        let output = output(server, source);
        assert!(!output.contains("FAIL"), "{output}");
        output.contains(&format!("step {number}\n"))
    });
}

#[test]
fn forks_one_after_the_other_are_each_of_their_own_moment() {
    let server = TestServer::start();
    let source = start(&server, "again", &[], &[]);
    let mut copied = vec![forked(&server, &source)];
    for number in 1..=STEPS {
        step(&server, &source, number);
        copied.push(forked(&server, &source));
    }
    checks_itself(&server, &source);
    assert!(copied[0] >= 64 * MIB, "{copied:?}");
    assert!(copied[1] < 8 * MIB, "a megabyte was written since: {copied:?}");
}

/// A sandbox with 64 MiB of memory, forked once.
#[track_caller]
fn forked_once(server: &TestServer) -> String {
    let source = start(server, "again", &[], &[]);
    assert!(forked(server, &source) >= 64 * MIB);
    kept(server);
    source
}

/// The template that is kept: jobs of the spawner look like one, but mark nothing.
#[track_caller]
pub(crate) fn kept(server: &TestServer) -> Process {
    let marks = |template: &Process| links(template, "fd").iter().any(|link| link == MARKS);
    let find = || templates(server).into_iter().find(marks);
    wait_some("a kept template", GONE, find)
}

/// Where links of a process in /proc lead to.
fn links(process: &Process, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{}/{dir}", process.pid));
    let entries = entries.into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn are_gone(server: &TestServer, within: Duration) {
    wait_for("the end of the template", within, || templates(server).is_empty());
}

#[test]
fn a_fork_copies_all_again_when_the_template_was_let_go() {
    let server = TestServer::start();
    let source = forked_once(&server);
    // Who takes another picture has the memory alone.
    let snapshot = server.ok(&["snapshot", &source]);
    assert!(forked(&server, &source) >= 64 * MIB);
    step(&server, &source, 1);
    assert!(forked(&server, &source) < 8 * MIB);
    let template = kept(&server);
    kill_process(Pid::from_raw(template.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert!(forked(&server, &source) >= 64 * MIB);
    checks_itself(&server, &source);
    drop(snapshot);
}

#[test]
fn a_template_is_kept_for_its_time_and_not_longer() {
    let server = TestServer::start();
    let source = start(&server, "again", &[], &[]);
    let before = Instant::now();
    forked(&server, &source);
    are_gone(&server, KEPT + GONE);
    assert!(before.elapsed() >= KEPT);
    assert!(forked(&server, &source) >= 64 * MIB);
    checks_itself(&server, &source);
}

#[test]
fn nothing_of_a_template_outlives_what_it_has_copies_of() {
    let mut server = TestServer::start();
    let source = forked_once(&server);
    server.ok(&["reset", &source]);
    are_gone(&server, GONE);
    server.ok(&["rm", &source]);

    let source = forked_once(&server);
    server.ok(&["pause", &source]);
    are_gone(&server, GONE);
    server.ok(&["resume", &source]);
    assert!(forked(&server, &source) >= 64 * MIB);
    server.ok(&["rm", &source]);
    are_gone(&server, GONE);

    let source = forked_once(&server);
    let json = server.ok(&["inspect", "--json", &source]);
    let inspected: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sandbox = inspected.as_array().map_or(&inspected, |all| &all[0]);
    let init = i32::try_from(sandbox["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(init).unwrap(), Signal::KILL).unwrap();
    are_gone(&server, GONE);

    // Whose server is killed knows of no other.
    let source = forked_once(&server);
    let template = kept(&server);
    server.kill9();
    wait_for("the end of the template", GONE, || !template.lives());
    server.restart();
    checks_itself(&server, &source);
}

#[test]
fn a_kept_template_has_nothing_of_the_sandbox_but_copies() {
    let server = TestServer::start();
    let source = forked_once(&server);
    let template = kept(&server);
    let spawner = std::fs::read_to_string(format!("/proc/{}/stat", template.pid)).unwrap();
    let spawner = spawner.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    for name in ["mnt", "net", "uts", "pid", "user", "cgroup"] {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(link(&template.pid.to_string()), link(&spawner), "{name}");
    }
    // Without root it cannot go back to the one where it comes from.
    let ipc = std::fs::read_link(format!("/proc/{}/ns/ipc", template.pid)).unwrap();
    let inside = server.ok(&["exec", &source, "--", "readlink", "/proc/self/ns/ipc"]);
    assert_ne!(ipc.to_string_lossy(), inside.trim());
    let known = |link: &String| {
        link == "/dev/null"
            || link.starts_with("socket:")
            || link == MARKS
            || link.ends_with("/pagemap")
    };
    let others: Vec<_> = links(&template, "fd").into_iter().filter(|link| !known(link)).collect();
    assert_eq!(others, Vec::<String>::new());
    let sockets = links(&template, "fd").iter().filter(|link| link.starts_with("socket:")).count();
    assert_eq!(sockets, 1, "to the server");
    checks_itself(&server, &source);
}
