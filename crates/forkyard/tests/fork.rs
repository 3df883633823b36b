//! Live fork as a whole: clones as sandboxes, forks of forks, and what is killed meanwhile. What
//! single kinds of state become is in the zoo.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "fork/told.rs"]
mod told;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use forkyard_engine::model::{Fork, State};
use forkyard_testkit::{TestServer, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use support::kill::Random;
use support::{SOON, Sandbox, create, refused, templates};

/// Forks a sandbox; what the server says of it.
#[track_caller]
fn fork(sandbox: &Sandbox<'_>, options: &[&str]) -> Fork {
    let mut args = vec!["fork", "--json", sandbox.id.as_str()];
    args.extend(options);
    serde_json::from_str(&sandbox.server.ok(&args)).unwrap()
}

/// The only clone of a sandbox.
#[track_caller]
fn clone<'a>(sandbox: &Sandbox<'a>) -> Sandbox<'a> {
    let fork = fork(sandbox, &[]);
    Sandbox { server: sandbox.server, id: fork.clones[0].id.to_string() }
}

#[test]
fn sessions_go_their_own_ways_after_a_fork() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("cd /usr; x=1; f() { x=$((x + $1)); }; echo old >/tmp/file; echo old >/etc/file");
    let fork = fork(&source, &["-n", "2", "--name", "try"]);
    let names: Vec<_> = fork.clones.iter().map(|clone| clone.name.clone().unwrap()).collect();
    assert_eq!(names, ["try-1", "try-2"]);
    for (n, clone) in fork.clones.iter().enumerate() {
        assert_eq!(clone.parent.as_ref().unwrap().as_str(), source.id);
        assert_eq!(clone.state, State::Running);
        let clone = Sandbox { server: &server, id: clone.id.to_string() };
        assert_eq!(clone.say("pwd; cat /tmp/file /etc/file"), "/usr\nold\nold\n");
        clone.say(&format!("f {}; echo new >/tmp/file; echo new >/etc/file", n + 1));
        assert_eq!(clone.say("echo $x"), format!("{}\n", n + 2));
    }
    assert_eq!(source.say("echo $x; cat /tmp/file /etc/file"), "1\nold\nold\n");
    let report = fork.report;
    assert!(report.stopped_us > 0 && report.stopped_us <= report.taken_us, "{report:?}");
    assert!(report.running_us <= report.total_us && report.processes == 1, "{report:?}");
}

#[test]
fn a_sandbox_is_forked_as_soon_as_it_is_there() {
    let server = TestServer::start();
    for _ in 0..20 {
        // Over HTTP: a process to start would give its shell the time to come up.
        let (status, made) = server.post("/v1/sandboxes", "{}");
        assert_eq!(status, 201);
        let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
        let id = made["id"].as_str().unwrap();
        let (status, forked) = server.post(&format!("/v1/sandboxes/{id}/fork"), "{}");
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&forked));
        server.ok(&["rm", id]);
    }
}

#[test]
fn commands_of_a_clone_can_be_followed_signalled_and_waited_for() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    let number = source.start("echo before; trap 'exit 7' USR1; while :; do sleep 0.01; done");
    wait_for("the command to say so", SOON, || {
        server.ok(&["logs", &source.id, &number.to_string()]).contains("before")
    });
    let other = clone(&source);
    let listed = other.commands();
    assert_eq!((listed.len(), listed[0].id.0), (1, number));
    assert!(!server.ok(&["logs", &other.id, &number.to_string()]).contains("before"));
    server.ok(&["kill", "-s", "USR1", &other.id, &number.to_string()]);
    assert_eq!(other.wait(number).code, 7);
    assert!(source.commands()[0].exit.is_none(), "the original's goes on");
    // Numbers go on from those of the original.
    assert_eq!(other.start("true"), number + 1);
}

#[test]
fn ids_of_processes_that_ended_do_not_come_again_in_a_clone() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("for i in $(seq 50); do /bin/true; done");
    let last: u32 = source.say("/bin/true & echo $!").trim().parse().unwrap();
    assert!(last > 50);
    for sandbox in [clone(&clone(&source)), source] {
        let next: u32 = sandbox.say("/bin/true & echo $!").trim().parse().unwrap();
        assert!(next > last, "{next} after {last}");
    }
}

#[test]
fn a_clone_can_be_reset_run_in_and_removed() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say("x=1; echo file >/root/file");
    let other = clone(&source);
    assert_eq!(other.sh("cat /root/file"), "file\n");
    server.ok(&["reset", &other.id]);
    assert_eq!(other.say("echo ${x-gone}; ls /root"), "gone\n");
    server.ok(&["rm", &source.id]);
    assert_eq!(other.say("echo works"), "works\n");
    server.ok(&["rm", &other.id]);
}

#[test]
fn forks_of_forks_are_forked_ten_deep() {
    let server = TestServer::start();
    let mut last = create(&server, &[]);
    last.say("depth=0; sleep 1000 & job=$!");
    let mut mappings = BTreeSet::new();
    for depth in 1..=10 {
        last = clone(&last);
        last.say("depth=$((depth + 1))");
        assert_eq!(last.say("echo $depth; kill -0 $job && echo job"), format!("{depth}\njob\n"));
        mappings.insert(last.say("wc -l </proc/$$/maps"));
    }
    assert_eq!(mappings.len(), 1, "nothing is left of a fork but for the last: {mappings:?}");
}

#[test]
fn a_fork_that_makes_no_sense_is_refused() {
    let server = TestServer::start();
    let source = create(&server, &["--name", "source"]);
    for (args, text) in [
        (&["fork", "source", "-n", "0"][..], "number of clones"),
        (&["fork", "source", "-n", "1001"], "number of clones"),
        (&["fork", "source", "--name", "a b"], "name"),
        (&["fork", "source", "--name", "source"], "name taken"),
        (&["fork", "nobody"], "no such sandbox"),
    ] {
        refused(&server.cli(args), 125, text);
    }
    assert_eq!(source.say("echo works"), "works\n");
    is_tidy(&server, 1);
}

#[test]
fn of_clones_of_which_one_cannot_be_made_none_is() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    create(&server, &["--name", "try-3"]);
    refused(&server.cli(&["fork", &source.id, "-n", "4", "--name", "try"]), 125, "name taken");
    is_tidy(&server, 2);
}

/// Waits until the store has directories and sockets for these sandboxes alone.
#[track_caller]
fn is_tidy(server: &TestServer, sandboxes: usize) {
    let entries = |part: &str| fs::read_dir(server.store().join(part)).unwrap().count();
    wait_for("a store without leavings", SOON, || {
        entries("sandboxes") == sandboxes
            && entries("run") == sandboxes
            && entries("templates") == 0
            && entries("trash") == 0
    });
}

/// A sandbox with threads, a pipeline and memory that checks itself, so that what a stopped process
/// comes to harm by is seen.
fn busy(server: &TestServer) -> Sandbox<'_> {
    let sandbox = create(server, &["--name", "busy"]);
    sandbox.say("x=kept; cd /tmp");
    sandbox.start("i=0; while :; do i=$((i + 1)); echo $i; done | while read n; do m=$((m + 1)); [ $n = $m ] || exit 3; done");
    sandbox.start("while :; do (exit 5); [ $? = 5 ] || exit 3; done");
    sandbox
}

/// The original goes on as if nothing had been.
#[track_caller]
fn is_unharmed(sandbox: &Sandbox<'_>) {
    assert_eq!(sandbox.say("echo $x $PWD"), "kept /tmp\n");
    let ended: Vec<_> = sandbox.commands().into_iter().filter(|c| c.exit.is_some()).collect();
    assert!(ended.is_empty(), "{ended:?}");
    let stopped = sandbox.sh("grep -l 'State:.*[Tt] (' /proc/[0-9]*/status || true");
    assert_eq!(stopped, "", "nothing is stopped");
}

#[test]
fn a_template_killed_at_random_moments_harms_nobody() {
    let server = TestServer::start();
    let source = busy(&server);
    let mut random = Random(0x5eed_0011);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let forks = scope.spawn(|| {
            let mut made = 0;
            while !stop.load(Ordering::Relaxed) {
                let out = server.cli(&["fork", &source.id]);
                if out.status.success() {
                    made += 1;
                    server.ok(&["rm", String::from_utf8_lossy(&out.stdout).trim()]);
                }
            }
            made
        });
        let mut killed = 0;
        while killed < 50 {
            for template in templates(&server) {
                thread::sleep(Duration::from_micros(random.below(15_000)));
                let pid = Pid::from_raw(template.pid.cast_signed()).unwrap();
                killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        stop.store(true, Ordering::Relaxed);
        forks.join().unwrap();
    });
    is_unharmed(&source);
    is_tidy(&server, 1);
    let other = clone(&source);
    is_unharmed(&other);
}

#[test]
fn a_server_killed_while_it_forks_leaves_no_half_clone() {
    let mut server = TestServer::start();
    let id = busy(&server).id;
    let mut random = Random(0x5eed_0012);
    for _ in 0..15 {
        // Not by the command line, which would start the next server itself.
        let http = server.http().limit(SOON);
        let path = format!("/v1/sandboxes/{id}/fork");
        let asked = thread::spawn(move || {
            // It finds its server gone, or had its answer before.
            let _ = http.request("POST", &path, r#"{"count": 3}"#);
        });
        thread::sleep(Duration::from_micros(random.below(60_000)));
        server.kill9();
        asked.join().unwrap();
        server.restart();
        let all: Vec<forkyard_engine::model::Sandbox> =
            serde_json::from_str(&server.ok(&["ls", "--json"])).unwrap();
        for other in all.iter().filter(|other| other.id.as_str() != id) {
            let other = Sandbox { server: &server, id: other.id.to_string() };
            assert_eq!(other.say("echo $x $PWD"), "kept /tmp\n");
            server.ok(&["rm", &other.id]);
        }
        is_unharmed(&Sandbox { server: &server, id: id.clone() });
    }
    is_tidy(&server, 1);
}
