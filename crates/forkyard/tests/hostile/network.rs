//! Sockets towards the host.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use forkyard_testkit::skip;
use serde_json::json;

use crate::arena::{Guest, check_refused, text};
use crate::case::cases;

cases! {
    ports_of_the_host: "connecting to a port that the host's loopback listens at"
        => "network namespace: its loopback is its own", ports;
    interfaces_of_the_host: "raw and packet sockets, which root may open, to see the host's traffic"
        => "network namespace: there is nothing but its own loopback", interfaces;
    raw_sockets_in_the_hosts_network: "raw and packet sockets with `--net host`"
        => "user namespace: `CAP_NET_RAW` over the host is needed", raw;
    changing_interfaces: "setting lo down, adding routes, by netlink and ioctl; with `--net host` \
        too"
        => "no `CAP_NET_ADMIN`; user namespace", netlink;
    rare_socket_families: "vsock, AF_ALG, CAN, TIPC, RDS, Bluetooth, XDP, netfilter, audit, xfrm \
        and others that load modules"
        => "seccomp", |guest| {
            guest.refused("families", &["EAFNOSUPPORT", "EPROTONOSUPPORT"]);
        };
    abstract_sockets_of_the_host: "connecting to an abstract socket of the host's (D-Bus, X)"
        => "network namespace; with `--net host`, Landlock's scope (Linux 6.12)", abstract_host;
    abstract_sockets_of_other_sandboxes: "the same between sandboxes"
        => "network namespace", abstract_other;
    the_servers_sockets: "connecting to the server's socket, and to those of other sandboxes' inits"
        => "mount namespace: the paths are not there", server;
}

fn ports(guest: &Guest) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let out = guest.sh(&format!(
        "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' && echo CONNECTED; \
         bash -c 'exec 3<>/dev/tcp/10.0.0.1/{port}' && echo CONNECTED"
    ));
    assert!(!out.contains("CONNECTED"), "{out}");
    listener.set_nonblocking(true).expect("a listener");
    assert!(listener.accept().is_err(), "the guest got through");
}

fn interfaces(guest: &Guest) {
    let own = vec![("interface".to_owned(), "lo".to_owned())];
    assert_eq!(guest.attack(&["interfaces"]), own);
    guest.attack(&["raw_sockets"]);
}

fn raw(guest: &Guest) {
    let host = guest.arena.guest(&json!({ "net": "host" }));
    check_refused(&host.attack(&["raw_sockets"]), &["EPERM", "EACCES"]);
    host.check_alive();
}

fn netlink(guest: &Guest) {
    guest.refused("netlink", &["EPERM"]);
    let host = guest.arena.guest(&json!({ "net": "host" }));
    host.refused("netlink", &["EPERM"]);
}

fn abstract_host(guest: &Guest) {
    let name = format!("fy-hostile-{}", guest.id);
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("a listener");
    let name = format!("@{name}");
    check_refused(&guest.attack(&["unix", &name]), &["ECONNREFUSED"]);
    let host = guest.arena.guest(&json!({ "net": "host" }));
    if !forkyard_sys::landlock::abi().is_ok_and(|abi| abi >= 6) {
        // What docs/security.md says that such a kernel gives away.
        skip!("Landlock with scopes (Linux 6.12)");
    }
    check_refused(&host.attack(&["unix", &name]), &["EPERM", "EPROTOTYPE", "ECONNREFUSED"]);
    listener.set_nonblocking(true).expect("a listener");
    assert!(listener.accept().is_err(), "the guest got through");
}

fn abstract_other(guest: &Guest) {
    let listen = "import socket,time\ns=socket.socket(socket.AF_UNIX)\n\
                  s.bind('\\0fy-other')\ns.listen()\nprint('up',flush=True)\ntime.sleep(600)";
    let python = guest.exec(&[], &["python3", "--version"]);
    assert!(python.status.success(), "python3 in the host image: {python:?}");
    let other = guest.arena.guest(&json!({}));
    other.spawn(&["python3", "-c", listen]);
    let stream = |guest: &Guest| guest.attack(&["unix", "@fy-other"]).swap_remove(0).1;
    assert_eq!(stream(&other), "OK");
    assert_eq!(stream(guest), "ECONNREFUSED");
}

fn server(guest: &Guest) {
    let server = &guest.arena.server;
    let run = std::fs::read_dir(server.store().join("run")).expect("sockets of inits");
    let mut sockets: Vec<_> = run.map(|entry| entry.expect("a socket").path()).collect();
    assert!(!sockets.is_empty());
    sockets.push(server.socket().to_owned());
    for socket in sockets {
        let socket = socket.to_string_lossy().into_owned();
        check_refused(&guest.attack(&["unix", &socket]), &["ENOENT"]);
    }
    let out = text(&guest.exec(&[], &["find", "/run", "/tmp", "/var", "-type", "s"]).stdout);
    assert_eq!(out, "", "sockets in a fresh sandbox");
}
