//! Templates and servers that are killed while files become a layer, and disks that are full.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use forkyard_engine::model::Sandbox as Described;
use forkyard_testkit::{TestServer, skip, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use super::{MANY, MUCH, clones, fork, sealed, wait_for_trash};
use crate::support::kill::Random;
use crate::support::{SOON, Sandbox, create, templates, with_small_disk};

/// Writes two files one after the other, and what becomes much again and again, and checks that what
/// it wrote is there: by path, by descriptors, and by its working directory.
const CHECKED: &str = "mkdir -p /made/here; cd /made/here; exec 7>>log 8<log; n=0; m=0
    while :; do n=$((n + 1)); echo $n >>one; echo $n >&7; read -r said <&8; [ \"$said\" = $n ] || exit 3
        [ $(tail -n 1 one) = $n ] && [ $(tail -n 1 /made/here/log) = $n ] || exit 4
        [ $(wc -l <one) = $n ] || exit 5
    done";

fn checked(server: &TestServer) -> Sandbox<'_> {
    let sandbox = create(server, &[]);
    sandbox.say(MANY);
    sandbox.say("x=kept; mkdir /made/session; cd /made/session; exec 9>>log");
    sandbox.start(CHECKED);
    wait_for("the command to write", SOON, || {
        sandbox.sh("ls /made/here 2>/dev/null ||:").contains("one")
    });
    sandbox
}

/// It goes on as if nothing had been, and has all that was written.
#[track_caller]
fn is_unharmed(sandbox: &Sandbox<'_>) {
    let ended: Vec<_> = sandbox.commands().into_iter().filter(|c| c.exit.is_some()).collect();
    assert!(ended.is_empty(), "{ended:?}");
    assert_eq!(
        sandbox.say("echo $x $PWD; pwd -P; ls /made/many | grep -vc m"),
        "kept /made/session\n/made/session\n1000\n"
    );
    let stopped = sandbox.sh("grep -l 'State:.*[Tt] (' /proc/[0-9]*/status || true");
    assert_eq!(stopped, "", "nothing is stopped");
    let count =
        |sandbox: &Sandbox<'_>| sandbox.sh("wc -l </made/here/one").trim().parse::<u64>().unwrap();
    let before = count(sandbox);
    wait_for("the command to go on", SOON, || count(sandbox) > before);
    // The shell closes some of its own meanwhile.
    let sockets = "ls -l /proc/$$/fd 2>/dev/null | grep -c socket: ||:";
    assert_eq!(sandbox.say(sockets), "0\n", "nothing is left of what was given to it");
}

#[test]
fn a_template_killed_at_random_moments_harms_nobody() {
    let server = TestServer::start();
    let mut random = Random(0x5eed_0031);
    // Of each no more than there may be layers above one another.
    let seals: u32 = (0..4).map(|_| kill_templates(&server, &mut random, 13)).sum();
    assert!(seals > 0, "nothing became a layer");
}

/// Kills so many templates of a sandbox; how often its files became a layer.
fn kill_templates(server: &TestServer, random: &mut Random, times: u32) -> u32 {
    let source = checked(server);
    let stop = AtomicBool::new(false);
    let seals = thread::scope(|scope| {
        let forks = scope.spawn(|| {
            let (mut rounds, mut seals) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                // Enough for another layer.
                source.say(&format!(
                    "echo {rounds} >&9; echo {rounds} >>file; {MUCH} /made/many/m{rounds}"
                ));
                let out = server.cli(&["fork", "--json", &source.id]);
                if out.status.success() {
                    let fork = serde_json::from_slice(&out.stdout).unwrap();
                    seals += u32::from(sealed(&fork));
                    server.ok(&["rm", fork.clones[0].id.as_str()]);
                }
                assert_eq!(source.say("tail -n 1 log"), format!("{rounds}\n"));
            }
            let told = source.say("wc -l <log; wc -l <file");
            assert_eq!(told, format!("{rounds}\n{rounds}\n"));
            seals
        });
        let mut killed = 0;
        while killed < times && !forks.is_finished() {
            for template in templates(server) {
                thread::sleep(Duration::from_micros(random.below(40_000)));
                let pid = Pid::from_raw(template.pid.cast_signed()).unwrap();
                killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        stop.store(true, Ordering::Relaxed);
        forks.join().unwrap()
    });
    is_unharmed(&source);
    let other = clones(&fork(&source, &[]), server).remove(0);
    is_unharmed(&other);
    is_unharmed(&source);
    for sandbox in [&source, &other] {
        server.ok(&["rm", &sandbox.id]);
    }
    wait_for_trash(server);
    seals
}

#[test]
fn what_replaces_a_kept_template_that_was_killed_knows_the_layer_that_it_made() {
    let server = TestServer::start();
    let source = checked(&server);
    // Of so much memory, the template is kept for the next fork.
    source.say("large=$(head -c 8000000 /dev/zero | tr '\\0' x)");
    let mut random = Random(0x5eed_0033);
    for round in 1..=15 {
        let quiet = clones(&fork(&source, &[]), &server).remove(0);
        server.ok(&["rm", &quiet.id]);
        let kept = templates(&server);
        source.say(&format!("{MUCH} /made/many/m{round}"));
        let forked = thread::scope(|scope| {
            let forked = scope.spawn(|| server.cli(&["fork", "--json", &source.id]));
            thread::sleep(Duration::from_micros(random.below(60_000)));
            for template in kept {
                let _ =
                    kill_process(Pid::from_raw(template.pid.cast_signed()).unwrap(), Signal::KILL);
            }
            forked.join().unwrap()
        });
        if forked.status.success() {
            let clone = clones(&serde_json::from_slice(&forked.stdout).unwrap(), &server).remove(0);
            let files = format!("ls /made/many | grep -vc m; ls /made/many/m{round}");
            assert_eq!(clone.say(&files), format!("1000\n/made/many/m{round}\n"), "{round}");
            server.ok(&["rm", &clone.id]);
        }
    }
    is_unharmed(&source);
    server.ok(&["rm", &source.id]);
    wait_for_trash(&server);
}

#[test]
fn a_server_killed_at_random_moments_loses_no_layer() {
    let mut server = TestServer::start();
    let id = checked(&server).id;
    let mut random = Random(0x5eed_0032);
    for round in 1..=15 {
        let source = Sandbox { server: &server, id: id.clone() };
        source.say(&format!("echo {round} >>file; {MUCH} /made/many/m{round}"));
        let http = server.http().limit(SOON);
        let path = format!("/v1/sandboxes/{id}/fork");
        let asked = thread::spawn(move || {
            // It finds its server gone, or had its answer before.
            let _ = http.request("POST", &path, r#"{"count": 2}"#);
        });
        thread::sleep(Duration::from_micros(random.below(100_000)));
        server.kill9();
        asked.join().unwrap();
        server.restart();
        let all: Vec<Described> = serde_json::from_str(&server.ok(&["ls", "--json"])).unwrap();
        for other in all.iter().filter(|other| other.id.as_str() != id) {
            let other = Sandbox { server: &server, id: other.id.to_string() };
            is_unharmed(&other);
            server.ok(&["rm", &other.id]);
        }
        let source = Sandbox { server: &server, id: id.clone() };
        is_unharmed(&source);
        assert_eq!(source.say("wc -l <file"), format!("{round}\n"));
    }
    server.ok(&["rm", &id]);
    wait_for_trash(&server);
}

#[test]
fn on_a_full_disk_the_original_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some(program) = with_small_disk(dir.path(), "40m") else { skip!("mounts of a tmpfs") };
    let server = TestServer::start_program(&program, &[]);
    let source = create(&server, &[]);
    source.say(&format!("{MANY}; cd /made; exec 7>>log; echo one >&7; dd if=/dev/zero of=/made/large bs=1M count=12 2>/dev/null"));
    source.line("cat /dev/zero >/made/full");
    // Nothing can be copied or made any more, or just so.
    let out = server.cli(&["fork", "--json", &source.id]);
    source.say("rm /made/full; echo two >&7; [ $(stat -c %s large) = 12582912 ]");
    assert_eq!(source.say("cat log; ls /made/many | wc -l; pwd"), "one\ntwo\n1000\n/made\n");
    if out.status.success() {
        let fork = serde_json::from_slice(&out.stdout).unwrap();
        server.ok(&["rm", &clones(&fork, &server)[0].id]);
    }
    let clone = clones(&fork(&source, &[]), &server).remove(0);
    for sandbox in [&source, &clone] {
        assert_eq!(sandbox.say("cat log; ls /made/many | wc -l; pwd"), "one\ntwo\n1000\n/made\n");
    }
}
