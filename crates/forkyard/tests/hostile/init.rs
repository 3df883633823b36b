//! Attacks on process 1, which has all capabilities over the sandbox.

use crate::arena::{Guest, Mode, PATIENCE, check_refused};
use crate::case::cases;

cases! {
    tracing_init: "ptrace attach and seize, process_vm_readv and writev, kcmp, robust list, \
        move_pages and perf events of process 1"
        => "init is not dumpable and has more capabilities; seccomp",
        |guest| guest.refused("init_trace", &["EPERM", "EACCES", "ENOSYS"]);
    taking_descriptors_of_init: "pidfd_getfd(2) of each of init's descriptors"
        => "seccomp", |guest| guest.refused("init_descriptors", &["EPERM"]);
    reading_init: "/proc/1/mem, environ, maps, auxv, fd, root, cwd, exe, ns, stack; writing mem, \
        uid_map, setgroups"
        => "init is not dumpable", files;
    killing_init: "all 64 signals to process 1, by kill, tgkill, rt_sigqueueinfo and a pidfd"
        => "the kernel: signals from inside reach a namespace's init only where it handles them",
        signals;
    laming_init_by_limits: "limits of processor time, descriptors, file size and memory of process \
        1, its priority, scheduler and processors"
        => "seccomp (prlimit64 of process 1); init has more capabilities",
        |guest| guest.refused("init_limits", &["EPERM", "EACCES"]);
    out_of_memory_scores: "a score below its own for itself; with a range of ids, a higher one for \
        init"
        => "`CAP_SYS_RESOURCE` is needed; init's files are the host's root's. Rootless, a guest \
            can have its own init killed first", scores;
    killing_what_answers_file_requests: "SIGKILL to all processes while trees are listed, archived \
        and copied"
        => "init sees each end and answers for it", killed_workers;
    stopping_what_answers_file_requests: "SIGSTOP likewise"
        => "init sees each stop and ends it", stopped_workers;
    stopping_commands_before_they_start: "SIGSTOP to all processes, between fork and exec too"
        => "init waits with a limit, continues the child and at last kills it", stopped_starts;
}

fn files(guest: &Guest) {
    let attempts = guest.attack(&["init_files"]);
    // The kernel lets root of the namespace open some of them where init has the same host id,
    // and refuses what is read or written.
    let open = |name: &str| {
        guest.mode() != Mode::Root
            && ["/proc/1/clear_refs", "/proc/1/coredump_filter"].contains(&name)
    };
    let rest: Vec<_> = attempts.into_iter().filter(|(name, _)| !open(name)).collect();
    check_refused(&rest, &["EACCES", "EPERM", "EIO", "ENOENT"]);
}

fn signals(guest: &Guest) {
    guest.attack(&["signals"]);
    let out = guest.sh("kill -9 1; kill -KILL 1; kill -STOP 1; echo still");
    assert!(out.ends_with("still\n"), "{out}");
}

fn scores(guest: &Guest) {
    let out = guest.sh("echo -1000 >/proc/self/oom_score_adj && echo LOWERED");
    assert!(!out.contains("LOWERED"), "{out}");
    if guest.mode() == Mode::Root {
        let out = guest.sh("echo 1000 >/proc/1/oom_score_adj && echo RAISED");
        assert!(!out.contains("RAISED"), "{out}");
    }
}

/// A tree that takes a while; in memory, where it is gone at once afterwards.
const TREE: &str = "mkdir -p /tmp/tree; cd /tmp/tree; i=0; while [ $i -lt 1500 ]; do : >f$i; \
                    i=$((i+1)); done";

/// Requests that processes of their own answer, each of which must end, well or not.
fn ask_for_trees(guest: &Guest) {
    let http = guest.arena.http();
    for round in 0..6 {
        for (method, rest) in [
            ("GET", "list?path=/tmp/tree&depth=9".to_owned()),
            ("GET", "archive?path=/tmp/tree".to_owned()),
            ("POST", format!("copy?from=/tmp/tree&to=/tmp/copy{round}&recursive=true")),
        ] {
            // A broken archive is an error of the transfer, which is an answer too.
            if let Err(error) = http.request(method, &guest.url(&rest), "") {
                let late = matches!(error, forkyard_testkit::http::HttpError::Late { .. });
                assert!(!late, "{error}");
            }
        }
    }
}

fn killed_workers(guest: &Guest) {
    guest.sh(TREE);
    guest.spawn_attack(&["storm", "9", "5"]);
    ask_for_trees(guest);
    guest.reset();
}

fn stopped_workers(guest: &Guest) {
    guest.sh(TREE);
    guest.spawn_attack(&["storm", "19", "5"]);
    ask_for_trees(guest);
    guest.reset();
}

fn stopped_starts(guest: &Guest) {
    guest.spawn_attack(&["storm", "19", "6"]);
    for _ in 0..6 {
        let started = std::time::Instant::now();
        guest.exec(&["--timeout", "1s"], &["/bin/true"]);
        let took = started.elapsed();
        assert!(took < PATIENCE, "a command took {took:?}");
    }
    guest.reset();
}
