//! Sockets of IPv4 and IPv6.

use std::io::{Read, Write};
use std::net::TcpListener;

use forkyard_testkit::TestServer;

use super::{goes_on, output, refused_with, start, survives};

#[test]
fn fork_keeps_tcp_sockets_that_are_new_bound_or_listening_with_who_waits() {
    survives("tcp_idle");
}

#[test]
fn fork_keeps_tcp_connections_with_all_that_was_not_read() {
    survives("tcp_connected");
}

#[test]
fn fork_keeps_tcp_connections_that_processes_are_using() {
    survives("tcp_processes");
}

#[test]
fn fork_keeps_udp_sockets_with_unread_datagrams_and_groups() {
    survives("udp");
}

#[test]
fn fork_refuses_other_sockets_and_leaves_all_in_them() {
    for (kind, text) in [
        ("raw", "a raw socket"),
        ("packet", "a packet socket"),
        ("udplite", "a socket of UDP-Lite"),
        ("filter", "a socket with a filter"),
        ("offset", "a socket with an offset to peek from"),
        ("urgent", "a connection with urgent data"),
        ("waiting", "waits to be accepted with data"),
    ] {
        refused_with("socket_refused", text, &[], &["-e", &format!("ZOO={kind}")]);
    }
}

#[test]
fn fork_keeps_netlink_sockets_with_their_ports_and_groups() {
    survives("netlink");
}

#[test]
fn fork_refuses_netlink_sockets_with_something_unread() {
    let text = "something waits to be read of a netlink socket";
    refused_with("netlink", text, &[], &["-e", "ZOO=waiting"]);
}

#[test]
fn fork_leaves_connections_to_the_outside_to_the_original_and_ends_them_in_clones() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let outside = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes[..5]).unwrap();
        stream.write_all(b"firstsecond").unwrap();
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"still here");
        stream.write_all(b"!").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "only the original has this connection");
    });
    let server = TestServer::start();
    let exec = ["-e", &format!("ZOO={port}")];
    let source = start(&server, "tcp_outside", &["--net", "host"], &exec);
    goes_on(&server, "tcp_outside", &source, "1");
    assert!(output(&server, &source).ends_with("original\nok\n"));
    outside.join().unwrap();
}

#[test]
fn fork_refuses_ports_of_the_hosts_network() {
    let text = "of the host's network, which a copy cannot have as well";
    refused_with("socket_port", text, &["--net", "host"], &[]);
}
