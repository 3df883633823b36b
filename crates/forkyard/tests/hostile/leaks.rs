//! What a guest can find out about the host and its server.

use std::process::Output;
use std::time::Duration;

use forkyard_testkit::image_dir;
use serde_json::json;

use crate::arena::{Guest, text};
use crate::case::cases;

cases! {
    descriptors_of_a_command: "finding descriptors that were not meant for it"
        => "init's are closed on exec; a command has 0, 1 and 2", command_descriptors;
    descriptors_of_a_session: "the same in the session's shell"
        => "it has 0, 1, 2 and the three of the session", session_descriptors;
    starting_in_descriptors_of_init: "commands and shells whose directory or program is, or is a \
        link to, each /proc/self/fd/N: raw layers, uppers and the next reset's, in an image \
        without Landlock"
        => "init's descriptors are closed before a path of the guest's is looked up",
        start_in_descriptors;
    environment_of_the_server: "reading the server's variables in its own environment, in that of \
        init and by file requests"
        => "the spawner starts with none; contents of /proc are refused to file requests",
        environment;
    paths_of_the_host: "names of the host's directories in mountinfo, mounts, cgroup, cmdline, maps"
        => "mounts are made by descriptors; namespaces", paths;
}

/// Each descriptor and where it leads.
const LIST: &str = "for f in /proc/self/fd/*; do [ -e \"$f\" ] || [ -L \"$f\" ] && \
                    echo \"${f##*/} $(readlink /proc/$$/fd/${f##*/})\"; done";

/// Numbers and targets, those left out that the shell has open itself.
fn descriptors(said: &str) -> Vec<(u32, String)> {
    let line = |line: &str| {
        let (number, target) = line.split_once(' ')?;
        Some((number.parse().ok()?, target.to_owned()))
    };
    said.lines().filter_map(line).filter(|(_, target)| !target.is_empty()).collect()
}

fn command_descriptors(guest: &Guest) {
    let out = text(&guest.exec(&[], &["/bin/sh", "-c", LIST]).stdout);
    let found = descriptors(&out);
    let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2], "{out}");
    assert_eq!(found[0].1, "/dev/null");
    assert!(found[1..].iter().all(|(_, target)| target.starts_with("pipe:")), "{out}");
}

fn session_descriptors(guest: &Guest) {
    let answer = guest.session(LIST, std::time::Duration::from_secs(10));
    let out = answer["stdout"].as_str().unwrap_or_default();
    for (number, target) in descriptors(out) {
        let known = match number {
            0 => target == "/dev/null",
            1 | 2 | 251 | 252 => target.starts_with("pipe:"),
            250 => target.starts_with("/memfd:line"),
            // bash keeps a copy of what it redirects, and what it sources.
            10 | 255 => target.starts_with("pipe:") || target.starts_with("/memfd:line"),
            _ => false,
        };
        assert!(known, "descriptor {number} leads to {target}\n{out}");
    }
}

/// Beyond the descriptors that an init of a few layers and volumes has.
const NUMBERS: std::ops::Range<u32> = 3..48;

fn start_in_descriptors(guest: &Guest) {
    let dir = image_dir();
    let source = dir.path().to_string_lossy().into_owned();
    guest.arena.server.ok(&["image", "import", "-q", &source, "bare"]);
    let other = guest.arena.guest(&json!({ "image": "bare", "workdir": "/root/work" }));
    let told = |out: &Output| format!("{}{}", text(&out.stdout), text(&out.stderr));
    for number in NUMBERS {
        let path = format!("/proc/self/fd/{number}");
        other.sh_in("/", &format!("rm -rf /root/work; ln -s {path} /root/work"));
        for place in [&*path, "/root/work"] {
            let out = other.exec(&["-w", place], &["/bin/sh", "-c", "echo STARTED; ls -a"]);
            assert!(!out.status.success() && out.stdout.is_empty(), "{path}: {}", told(&out));
        }
        // Whatever is found there is not a directory that leads on.
        let program = format!("{path}/bin/sh");
        let out = other.exec(&["-w", "/"], &[&program, "-c", "echo STARTED"]);
        assert!(!out.status.success() && out.stdout.is_empty(), "{path}: {}", told(&out));
        let session = other.url("session");
        let _ = other.arena.http().request("DELETE", &session, "");
        let said = other.session("echo STARTED; ls -a", Duration::from_secs(5)).to_string();
        assert!(!said.contains("STARTED"), "{path}: {said}");
    }
    other.sh_in("/", "rm -rf /root/work; mkdir /root/work");
}

fn environment(guest: &Guest) {
    // The server has the path of its store in its environment.
    let secret = guest.arena.server.dir().to_string_lossy().into_owned();
    let out = guest.sh("cat /proc/*/environ /proc/*/task/*/environ 2>/dev/null | tr '\\0' '\\n'");
    assert!(!out.contains(&secret) && !out.contains("FORKYARD"), "{out}");
    for path in ["/proc/1/environ", "/proc/self/environ", "/proc/thread-self/environ"] {
        let (status, body) = guest.read(path);
        assert!(status >= 400, "{path}: {status}");
        assert!(!text(&body).contains("FORKYARD"), "{path}: {}", text(&body));
    }
}

fn paths(guest: &Guest) {
    let secret = guest.arena.server.dir().to_string_lossy().into_owned();
    let out = guest.sh(
        "cat /proc/*/mountinfo /proc/*/mounts /proc/*/mountstats /proc/*/cgroup /proc/*/cmdline \
         /proc/*/maps /proc/*/cpuset /etc/* 2>/dev/null; ls -l /proc/*/fd /proc/*/exe 2>/dev/null",
    );
    assert!(!out.contains(&secret), "a path of the host shows");
    assert!(!out.contains("subvol") && !out.contains("sandboxes/"), "a path of the host shows");
    let overlays = guest.sh("grep -o 'lowerdir=.*' /proc/self/mountinfo");
    let named = overlays
        .split(['=', ':', ','])
        .filter(|part| part.starts_with('/') && !part.starts_with("/proc/self/fd/"));
    assert_eq!(named.collect::<Vec<_>>(), Vec::<&str>::new(), "{overlays}");
}
