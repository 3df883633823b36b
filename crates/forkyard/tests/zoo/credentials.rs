//! Who processes and threads are, and what they may do.

use forkyard_testkit::TestServer;

use super::{goes_on, refused, start_in, survives, survives_with};

#[test]
fn clones_have_the_rights_of_each_thread_and_no_more() {
    survives("credentials");
}

#[test]
fn fork_keeps_a_process_from_being_looked_at() {
    survives_with("credentials", &[], &["-e", "NOT_DUMPABLE=1"]);
}

#[test]
fn clones_of_a_users_command_are_that_users() {
    let server = TestServer::start();
    let id = server.ok(&["create"]).trim().to_owned();
    server.ok(&["exec", &id, "--", "chmod", "755", "/root"]);
    let out = server.cli(&["exec", "--user", "nobody", &id, "--", "true"]);
    if !out.status.success() {
        // With a single id there is nobody else.
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(text.contains("id"), "{text}");
        return;
    }
    let options = ["--user", "nobody", "-e", "USER_COMMAND=1"];
    let command = start_in(&server, &id, "credentials", &options);
    goes_on(&server, "credentials", &id, &command);
}

#[test]
fn a_filter_of_the_guests_own_is_refused() {
    refused("own_filter", "it has a seccomp filter of its own making");
}
