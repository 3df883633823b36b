//! Unix sockets.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::{refused, refused_with, survives};

#[test]
fn fork_keeps_pairs_of_sockets_and_what_waits_in_them() {
    survives("unix_pairs");
}

#[test]
fn fork_keeps_listening_sockets_their_names_and_connections() {
    survives("unix_servers");
}

#[test]
fn fork_keeps_datagrams_with_their_senders() {
    survives("unix_datagrams");
}

#[test]
fn fork_keeps_users_of_peers_and_senders_of_messages() {
    survives("unix_credentials");
}

#[test]
fn fork_of_a_descriptor_in_flight_is_refused() {
    refused("unix_flight", "descriptors wait in it to be received");
}

#[test]
fn fork_of_data_that_nobody_has_accepted_is_refused() {
    refused("unix_untaken", "a connection that was not accepted has data");
}

#[test]
fn fork_refuses_unix_sockets_that_cannot_be_looked_into_and_leaves_all_in_them() {
    for (kind, text) in [
        ("filter", "a socket with a filter"),
        ("offset", "something waits to be read of a socket with SO_PEEK_OFF"),
        ("urgent", "what waits to be read is urgent, or of several senders"),
        ("pidfd", "something waits to be read of a socket with SO_PASSPIDFD"),
        ("error", "something waits to be read behind an error"),
        ("datagram", "descriptors wait in it to be received"),
        ("packet", "descriptors wait in it to be received"),
        ("proc", "a socket bound below /proc"),
        ("gone", "a connection of a client that is gone was not accepted"),
    ] {
        refused_with("unix_refused", text, &[], &["-e", &format!("ZOO={kind}")]);
    }
}

#[test]
fn fork_refuses_abstract_names_in_the_hosts_network() {
    let text = "an abstract name in the host's network, which a copy cannot have as well";
    refused_with("unix_refused", text, &["--net", "host"], &["-e", "ZOO=abstract"]);
}

#[test]
fn fork_refuses_connections_that_lead_out_of_the_sandbox_by_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let path = dir.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let volume = format!("{}:/volume", dir.path().display());
    let text = "a socket whose peer is outside of the sandbox";
    refused_with("unix_refused", text, &["-v", &volume], &["-e", "ZOO=outside"]);
    echo.join().unwrap();
}
