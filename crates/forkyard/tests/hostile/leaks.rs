//! What a guest can find out about the host and its server.

use crate::arena::{Guest, text};
use crate::case::cases;

cases! {
    descriptors_of_a_command: "finding descriptors that were not meant for it"
        => "init's are closed on exec; a command has 0, 1 and 2", command_descriptors;
    descriptors_of_a_session: "the same in the session's shell"
        => "it has 0, 1, 2 and the three of the session", session_descriptors;
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
