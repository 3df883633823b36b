//! The zoo by way of a disk: from snapshots, when the original is gone, and paused and resumed.

use std::time::UNIX_EPOCH;

use forkyard_testkit::{TestServer, wait_for};

use super::{PATIENCE, end_of, start_in};

/// Programs, with what they are told by their environment.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("attributes", &[]),
    ("blocked", &[]),
    ("credentials", &[]),
    ("deleted_files", &["-e", "ZOO=/root"]),
    ("deleted_files", &["-e", "ZOO=/tmp"]),
    ("directories", &[]),
    ("epoll", &[]),
    ("eventfd", &[]),
    ("file_mappings", &[]),
    ("files", &[]),
    ("growth", &[]),
    ("handlers", &[]),
    ("inotify", &[]),
    ("jemalloc", &[]),
    ("locks", &[]),
    ("memfd", &[]),
    ("much_waits", &[]),
    ("pidfd", &[]),
    ("pipes", &[]),
    ("posix_shm", &[]),
    ("private_memory", &[]),
    ("process", &[]),
    ("registers", &[]),
    ("shared_anonymous", &[]),
    ("signal_owners", &[]),
    ("signalfd", &[]),
    ("signals", &[]),
    ("tcp_connected", &[]),
    ("tcp_idle", &[]),
    ("tcp_processes", &[]),
    ("threads", &["-e", "THREADS=20"]),
    ("timerfd", &[]),
    ("timers", &[]),
    ("ptys", &[]),
    ("system_v", &[]),
    ("tree", &[]),
    ("udp", &[]),
    ("unix_credentials", &[]),
    ("unix_datagrams", &[]),
    ("unix_pairs", &[]),
    ("unix_servers", &[]),
];

#[track_caller]
fn ends_well(server: &TestServer, program: &str, id: &str) {
    server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    let (output, code) = end_of(server, id, "1");
    assert!(code == 0 && output.ends_with("ok\n"), "{program} in {id}: {code}, {output}");
}

#[test]
fn every_program_goes_on_from_a_snapshot() {
    let server = TestServer::start();
    for (program, options) in PROGRAMS {
        let source = server.ok(&["create"]).trim().to_owned();
        start_in(&server, &source, program, options);
        server.ok(&["snapshot", &source, "taken"]);
        ends_well(&server, program, &source);
        server.ok(&["rm", &source]);
        for _ in 0..2 {
            let id = server.ok(&["create", "--from", "taken"]).trim().to_owned();
            ends_well(&server, program, &id);
            server.ok(&["rm", &id]);
        }
        server.ok(&["snapshots", "rm", "taken"]);
    }
}

#[test]
fn every_program_goes_on_when_it_is_resumed() {
    let server = TestServer::start();
    for (program, options) in PROGRAMS {
        let id = server.ok(&["create"]).trim().to_owned();
        start_in(&server, &id, program, options);
        server.ok(&["pause", &id]);
        server.ok(&["resume", &id]);
        ends_well(&server, program, &id);
        server.ok(&["rm", &id]);
    }
}

#[test]
fn what_is_mapped_in_memory_file_systems_is_there_when_it_is_looked_for() {
    let server = TestServer::start();
    let id = server.ok(&["create"]).trim().to_owned();
    start_in(&server, &id, "posix_shm", &[]);
    // Files that may have changed since are not looked for, and times are told in seconds.
    let seconds = || UNIX_EPOCH.elapsed().unwrap().as_secs();
    let made = seconds();
    wait_for("the next second", PATIENCE, || seconds() > made);
    server.ok(&["snapshot", &id, "taken"]);
    server.ok(&["pause", &id]);
    server.ok(&["resume", &id]);
    let other = server.ok(&["create", "--from", "taken"]).trim().to_owned();
    for id in [&id, &other] {
        ends_well(&server, "posix_shm", id);
    }
}
