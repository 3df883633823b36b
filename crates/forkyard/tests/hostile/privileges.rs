//! Ways to more rights than a command was given.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::arena::{Guest, Mode, check_refused, text};
use crate::case::cases;

cases! {
    setuid_files: "a setuid-root copy of a program and `su`, run by another user"
        => "no_new_privs", setuid;
    file_capabilities: "`CAP_SYS_ADMIN` and `CAP_SYS_PTRACE` on a program by setcap"
        => "no_new_privs, bounding set", file_capabilities;
    regaining_capabilities: "capset(2) of every capability that commands do not hold"
        => "they are not permitted, and the bounding set lacks them",
        |guest| check_refused(&guest.attack(&["capabilities"]), &["EPERM"]);
    capabilities_of_users: "a command of a user that is not root uses root's capabilities"
        => "such commands hold none", users;
    another_user_than_there_is: "commands as users that the sandbox does not have"
        => "user namespace: ids that are not mapped cannot be taken on", unmapped;
    setuid_files_for_the_host: "a setuid-root file in the upper layer, for a user of the host to run"
        => "the store is closed to others", on_disk;
}

/// Bits of what a file grants, as `attack.c` sets it.
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// A user that the image does not know, in a directory that is open to all.
const AS_USER: [&str; 4] = ["--user", "1000", "--workdir", "/"];

/// Makes a copy of `program` that anybody may run, with this mode.
fn copy(guest: &Guest, program: &str, mode: &str) {
    let out = guest.sh(&format!(
        "mkdir -p /srv/x && cp $(command -v {program}) /srv/x/ && chmod {mode} /srv/x/{program}"
    ));
    assert_eq!(out, "");
}

fn setuid(guest: &Guest) {
    copy(guest, "id", "6755");
    assert_eq!(guest.sh("stat -c %a /srv/x/id"), "6755\n");
    if guest.mode() == Mode::Single {
        // There is no other user that could gain anything.
        let out = guest.exec(&AS_USER, &["/srv/x/id", "-u"]);
        assert!(text(&out.stderr).contains("only root exists"), "{out:?}");
        return;
    }
    let out = guest.exec(&AS_USER, &["/srv/x/id", "-u"]);
    assert_eq!(text(&out.stdout), "1000\n", "{out:?}");
    let out = guest.exec(&AS_USER, &["su", "-c", "id -u"]);
    assert!(!text(&out.stdout).contains('0'), "{out:?}");
}

fn file_capabilities(guest: &Guest) {
    // By mode 1 a program that lacks the capabilities starts without them, by mode 2 it does not.
    for mode in ["1", "2"] {
        copy(guest, "cat", "755");
        let set = guest.attack(&["file_capability", "/srv/x/cat", mode]);
        assert_eq!(set, [("setxattr".to_owned(), "OK".to_owned())]);
        let users: &[&[&str]] = match guest.mode() {
            Mode::Single => &[&[]],
            _ => &[&[], &AS_USER],
        };
        for options in users {
            let out = guest.exec(options, &["/srv/x/cat", "/proc/self/status"]);
            if mode == "2" {
                assert!(text(&out.stderr).contains("Operation not permitted"), "{out:?}");
                continue;
            }
            let status = text(&out.stdout);
            let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
            let line = line.unwrap_or_else(|| panic!("{out:?}"));
            let held = u64::from_str_radix(line.trim(), 16).expect("hexadecimal");
            assert_eq!(held & (CAP_SYS_ADMIN | CAP_SYS_PTRACE), 0, "{status}");
            assert!(options.is_empty() || held == 0, "{status}");
        }
    }
}

fn users(guest: &Guest) {
    if guest.mode() == Mode::Single {
        return unmapped(guest);
    }
    let out = guest
        .exec(&AS_USER, &["grep", "-E", "Cap(Prm|Eff|Inh|Amb)|NoNewPrivs", "/proc/self/status"]);
    let out = text(&out.stdout);
    let sets: Vec<_> = out.lines().filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(sets, [&["0000000000000000"; 4][..], &["1"]].concat(), "{out}");
}

fn unmapped(guest: &Guest) {
    for user in ["65536", "100000", "4294967294", "0:4294967294", "nobody-of-this-name"] {
        let out = guest.exec(&["--user", user], &["/usr/bin/id"]);
        assert!(!out.status.success(), "{user}: {out:?}");
        assert!(!text(&out.stdout).contains("uid="), "{user}: {out:?}");
    }
}

fn on_disk(guest: &Guest) {
    copy(guest, "id", "6755");
    for dir in ["", "sandboxes", "images"] {
        let dir = guest.arena.server.store().join(dir);
        let mode = fs::metadata(&dir).expect("a directory of the store").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others", dir.display());
    }
}
