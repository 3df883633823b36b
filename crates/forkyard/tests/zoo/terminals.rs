//! Terminals: those of commands, those that programs make, and what sessions have of them.

use forkyard_testkit::TestServer;

use super::support::stream::Stream;
use super::{end, fork, refused_with, start, survives};

#[test]
fn fork_keeps_ptys_with_their_state_and_all_that_is_unread() {
    survives("ptys");
}

#[test]
fn fork_keeps_controlling_terminals_groups_and_stopped_jobs() {
    let server = TestServer::start();
    let source = start_typing(&server, "sessions", "!\n");
    let clones = fork(&server, &source);
    for id in clones.iter().chain([&source]) {
        server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    }
    for id in clones.iter().chain([&source]) {
        let (output, code) = end(&server, id);
        assert!(code == 0 && output.ends_with("ok\n"), "{id}: {code}, {output}");
    }
}

#[test]
fn a_line_that_is_half_typed_goes_on_in_each_fork_and_is_attached_to() {
    let server = TestServer::start();
    let source = start(&server, "lines", &[], &["-t"]);
    let mut keyboard = attach(&server, &source);
    keyboard.type_in("whole\nha");
    keyboard.until("whole\r\nha");
    let clones = fork(&server, &source);
    for id in clones.iter().chain([&source]) {
        server.ok(&["exec", id, "--", "touch", "/root/forked"]);
    }
    for (n, id) in clones.iter().enumerate() {
        let mut clone = attach(&server, id);
        let before = clone.until("read whole.\r\n");
        assert!(!before.contains("ready") && !before.contains("ha"), "from the fork on: {before}");
        clone.type_in(&format!("\x7f\x7fhalf {n}\n"));
        clone.until(&format!("read half {n}.\r\n"));
        clone.resize(40, 130 + n as u16);
        clone.until(&format!("size 40 {} after 1\r\n", 130 + n));
        clone.type_in("\x04");
        clone.until("ok\r\n");
        assert_eq!(clone.finish().exit.code, 0);
    }
    keyboard.type_in("lf\n");
    keyboard.until("read half.\r\n");
    keyboard.type_in("\x04");
    keyboard.until("ok\r\n");
}

#[test]
fn terminals_that_cannot_be_copied_are_refused_by_what_is_in_the_way() {
    for (kind, text) in [
        ("signals", "a terminal that sends signals (O_ASYNC)"),
        ("packet", "its holder has not read of a change in packet mode"),
        ("elsewhere", "its lines are edited elsewhere (EXTPROC)"),
        ("one way", "the master of a terminal, open for one way only"),
        ("input", "more input waits than can be taken along"),
    ] {
        let kind = format!("KIND={kind}");
        refused_with("refused_terminal", text, &[], &["-e", kind.as_str()]);
    }
}

/// The command's own terminal.
#[track_caller]
pub(crate) fn attach(server: &TestServer, id: &str) -> Stream {
    let path = format!("/v1/sandboxes/{id}/commands/1/attach");
    Stream::attach(server.socket(), &path).unwrap()
}

/// Starts a program of the zoo on a terminal, which is ready when it sees what is typed.
#[track_caller]
fn start_typing(server: &TestServer, program: &str, text: &str) -> String {
    let compiled = super::compiled(program);
    let id = server.ok(&["create"]).trim().to_owned();
    server.ok(&["cp", compiled.path.to_str().unwrap(), &format!("{id}:/root/zoo")]);
    server.ok(&["exec", "-d", "-t", &id, "--", "/root/zoo"]);
    let mut keyboard = attach(server, &id);
    keyboard.type_in(text);
    keyboard.until("ready\r\n");
    id
}
