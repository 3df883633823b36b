//! Taking all there is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forkyard_testkit::{skip, wait_for};
use serde_json::json;

use crate::arena::{Guest, Mode, PATIENCE, text};
use crate::case::cases;

cases! {
    fork_bomb: "processes without end, under a limit of 64"
        => "pids cgroup; without cgroups the limit is refused and there is none", fork_bomb;
    eating_memory: "memory without end, under a limit of 64 MiB"
        => "memory cgroup: kills in the sandbox only; without cgroups the limit is refused", memory;
    filling_tmp_and_shm: "writing to /tmp and /dev/shm without end, under a limit of 64 MiB"
        => "tmpfs sizes follow the limit: ENOSPC; pages count to the sandbox", tmp;
    too_many_files: "20,000 files, then the sandbox is removed"
        => "removal renames and deletes behind", many_files;
    too_deep_a_tree: "directories nested past any path, then the sandbox is removed"
        => "removal walks by descriptors", deep;
    zombies: "2,000 children that nobody waits for, and orphans"
        => "init reaps orphans; a reset ends the rest", zombies;
    flooding_stdout: "192 MiB of NUL bytes without a line's end"
        => "back-pressure: the server's memory stays bounded", flood;
    flooding_a_session: "32 MiB in one line of a session"
        => "16 MiB of a line are kept, the rest is dropped and told", session_flood;
    exhausting_inotify: "all inotify instances of its user"
        => "its user namespace has a smaller share than the server's user", inotify;
    exhausting_pipes_and_signals: "pipes of 1 MiB up to the limit, queued signals without end"
        => "limits of descriptors and of its own user", pipes;
    exhausting_terminals: "all terminals that the host has for sandboxes"
        => "256 for each sandbox", terminals;
    descriptors_on_their_way: "sending descriptors that nobody receives, up to what the kernel \
        lets its user have on the way; without root that is the server's user"
        => "guests have half of the server's limit of descriptors", sent;
}

/// A guest with limits; where the host has no control groups for this user, they are refused.
fn limited(guest: &Guest, limits: &serde_json::Value) -> Option<Guest> {
    match guest.arena.try_guest(&json!({ "limits": limits })) {
        Ok(guest) => Some(guest),
        Err(why) => {
            assert!(why.contains("cgroup"), "a limit is refused with another reason: {why}");
            assert_ne!(guest.mode(), Mode::Root, "root has cgroups: {why}");
            None
        }
    }
}

fn fork_bomb(guest: &Guest) {
    let Some(bomb) = limited(guest, &json!({ "pids": 64 })) else {
        skip!("control groups delegated to this user");
    };
    let script = "b() { b | b & }; b; b; b; sleep 600";
    bomb.exec(&["--detach"], &["/bin/bash", "-c", script]);
    for _ in 0..20 {
        let started = Instant::now();
        guest.arena.check_neighbour();
        let took = started.elapsed();
        assert!(took < PATIENCE, "the neighbour took {took:?}");
    }
    let (_, body) = bomb.arena.http().get(bomb.url("").trim_end_matches('/'));
    let info: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let pids = info["usage"]["pids"].as_u64();
    assert!(pids.is_some_and(|pids| pids <= 64), "{pids:?}");
    bomb.reset();
    bomb.check_alive();
}

fn memory(guest: &Guest) {
    let Some(hog) = limited(guest, &json!({ "memory": 64 << 20 })) else {
        skip!("control groups delegated to this user");
    };
    // 16 MiB at a time, kept.
    let eat = "x=; while :; do x=$x$(head -c 16777216 /dev/zero | tr '\\0' x); done";
    let out = hog.exec(&[], &["/bin/bash", "-c", eat]);
    assert!(!out.status.success(), "{out:?}");
    hog.check_alive();
}

fn tmp(guest: &Guest) {
    let Some(hog) = limited(guest, &json!({ "memory": 64 << 20 })) else {
        skip!("control groups delegated to this user");
    };
    for place in ["/tmp", "/dev/shm"] {
        let out = hog.sh(&format!("dd if=/dev/zero of={place}/x bs=1M count=100; rm {place}/x"));
        assert!(out.contains("No space left") || out.contains("Killed"), "{place}: {out}");
    }
    hog.check_alive();
}

/// Waits until nothing of the sandbox is left in the store.
fn removed(guest: &Guest) {
    let (status, body) = guest.arena.http().delete(guest.url("").trim_end_matches('/'));
    assert_eq!(status, 204, "{}", text(&body));
    let store = guest.arena.server.store();
    let left = |dir: &str| {
        let entries = std::fs::read_dir(store.join(dir)).expect("a directory of the store");
        let mine = |name: String| name.contains(&guest.id);
        entries.flatten().any(|entry| mine(entry.file_name().to_string_lossy().into_owned()))
    };
    wait_for("the removal of all files", PATIENCE, || !left("sandboxes") && !left("trash"));
    guest.may_end();
}

fn many_files(guest: &Guest) {
    let out =
        guest.sh("mkdir /root/many; cd /root/many; seq 20000 | split -l 1 -a 4 - f && ls | wc -l");
    assert_eq!(out, "20000\n");
    removed(guest);
}

fn deep(guest: &Guest) {
    let out = guest.sh("cd /root && /hostile/attack deep 1500");
    assert_eq!(out, "depth 1500\n");
    removed(guest);
}

fn zombies(guest: &Guest) {
    let made = guest.spawn_attack(&["zombies", "2000"]);
    assert!(made.starts_with("zombies "), "{made}");
    guest.sh("i=0; while [ $i -lt 200 ]; do (sleep 0 & ) ; i=$((i+1)); done");
    guest.check_alive();
    guest.reset();
    let left = guest.sh("grep -l '^State:.Z' /proc/[0-9]*/status");
    assert_eq!(left, "", "zombies are left after a reset");
}

/// Memory of the server that is its own or shared memory it made, in KiB.
fn server_memory(guest: &Guest) -> u64 {
    let pid = guest.arena.server.pid().expect("a server");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default()
    };
    field("RssAnon:") + field("RssShmem:")
}

/// Held by who measures the server's memory or takes much of it.
static FLOODS: Mutex<()> = Mutex::new(());

fn flood(guest: &Guest) {
    let _alone = FLOODS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = server_memory(guest);
    let number = text(&guest.exec(&["--detach"], &["head", "-c", "200M", "/dev/zero"]).stdout);
    // Nobody reads it: what is kept is bounded, and so is the server.
    let info = guest.url(&format!("commands/{}", number.trim()));
    for _ in 0..20 {
        let (status, _) = guest.arena.http().get(&info);
        assert_eq!(status, 200);
        guest.arena.check_neighbour();
    }
    let out = guest.exec(&[], &["/bin/sh", "-c", "head -c 192M /dev/zero | tail -c 5M"]);
    assert_eq!(out.stdout.len(), 5 << 20);
    let after = server_memory(guest);
    assert!(after < before + 64 * 1024, "the server grew from {before} to {after} KiB");
}

fn session_flood(guest: &Guest) {
    let _alone = FLOODS.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = guest.session("head -c 33554432 /dev/zero", Duration::from_secs(30));
    assert_eq!(answer["truncated"], true, "{}", answer["exit_code"]);
    let kept = answer["stdout"].as_str().map_or(0, str::len);
    assert!(kept <= 16 << 20, "{kept}");
}

/// A script that makes one inotify instance.
const WATCH: &str = "exec 2>&1; python3 -c 'import ctypes,sys\n\
                     sys.exit(ctypes.CDLL(None).inotify_init1(0) < 0)'; echo $?";

fn inotify(guest: &Guest) {
    let made = guest.spawn_attack(&["many", "inotify"]);
    assert!(made.contains("EMFILE"), "{made}");
    let other = guest.arena.guest(&json!({}));
    assert_eq!(other.sh(WATCH), "0\n", "another sandbox has none left; the guest: {made}");
}

fn terminals(guest: &Guest) {
    let made = guest.spawn_attack(&["many", "terminals"]);
    assert!(made.contains("ENOSPC") || made.contains("EMFILE"), "{made}");
    let other = guest.arena.guest(&json!({}));
    let out = other.exec(&["--tty"], &["tty"]);
    assert!(text(&out.stdout).starts_with("/dev/pts/"), "the guest: {made}; another: {out:?}");
}

fn sent(guest: &Guest) {
    let made = guest.spawn_attack(&["many", "sent"]);
    assert!(made.contains("ETOOMANYREFS") || made.contains("EMFILE"), "{made}");
    // Each of these takes descriptors that are sent between server, spawner and init.
    assert_eq!(guest.sh("echo here"), "here\n", "{made}");
    let other = guest.arena.guest(&json!({}));
    assert_eq!(other.sh("echo there"), "there\n", "{made}");
}

fn pipes(guest: &Guest) {
    let made = guest.spawn_attack(&["many", "pipes"]);
    assert!(made.contains("EMFILE") || made.contains("ENFILE"), "{made}");
    let made = guest.spawn_attack(&["many", "signals"]);
    assert!(made.contains("EAGAIN"), "{made}");
    guest.arena.check_neighbour();
    let other = guest.arena.guest(&json!({}));
    assert_eq!(other.sh("echo through | cat"), "through\n");
}
