//! Sandboxes among themselves, and a sandbox and what it was before a reset.

use forkyard_testkit::wait_some;
use serde_json::json;

use crate::arena::{Guest, PATIENCE, text};
use crate::case::cases;

cases! {
    seeing_other_sandboxes: "finding, signalling and tracing processes of another sandbox"
        => "pid namespace", processes;
    watching_others: "inotify of /dev, /dev/pts, /dev/shm, /usr/bin, /proc and /sys while another \
        sandbox uses what is there"
        => "a /dev of its own; overlays watch for themselves", watch;
    shared_memory_of_others: "System V and POSIX shared memory, queues, and files in /dev/shm of \
        another sandbox"
        => "ipc and mount namespaces", memory;
    files_of_others: "files that another sandbox of the same image wrote or removed"
        => "an upper layer of its own", files;
    surviving_a_reset: "files, processes, System V memory, message queues, abstract sockets, \
        ports of connections that were closed, terminals and variables, kept past a reset"
        => "a reset kills all, and makes the root, /tmp, /dev/shm and the ipc namespace anew; the \
            network remembers no connections", reset;
}

fn processes(guest: &Guest) {
    let other = guest.arena.guest(&json!({}));
    let script = "echo up; exec -a fy-victim sleep 43210";
    other.spawn(&["/bin/bash", "-c", script]);
    let seen = guest.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(!seen.contains("43210"), "{seen}");
    guest.sh("kill -9 -1; for p in $(seq 2 400); do kill -9 $p; done");
    guest.attack(&["storm", "9", "1"]);
    assert!(other.sh("pgrep -c -f 4321[0]").contains('1'));
}

fn watch(guest: &Guest) {
    let other = guest.arena.guest(&json!({}));
    for place in ["/dev", "/dev/pts", "/dev/shm", "/usr/bin", "/proc", "/sys"] {
        guest.sh("rm -f /root/enough");
        let number = text(&guest.exec(&["--detach"], &["/hostile/attack", "watch", place]).stdout);
        let output = guest.url(&format!("commands/{}/output", number.trim()));
        let said = |what: &str| {
            wait_some(what, PATIENCE, || {
                let out = text(&guest.arena.http().get(&output).1);
                out.contains(what).then_some(out)
            })
        };
        assert!(said("watch").contains("watch OK"), "{place}");
        other.sh(": >/dev/null; head -c 9 /dev/zero >/dev/shm/x; ls -l /usr/bin /etc >/dev/null; \
             cat /usr/bin/id /etc/passwd /proc/uptime /sys/kernel/uevent_seqnum >/dev/null");
        other.exec(&["--tty"], &["tty"]);
        guest.write("/root/enough", "");
        let seen = said("seen");
        assert!(seen.contains("seen nothing"), "{place}: {seen}");
    }
}

fn memory(guest: &Guest) {
    let other = guest.arena.guest(&json!({}));
    let made = other.sh(
        "ipcmk -M 4096 -p 666 >/dev/null; ipcmk -Q -p 666 >/dev/null; ipcmk -S 1 -p 666 >/dev/null; \
         echo x >/dev/shm/fy; : >/dev/mqueue/fy; echo x >/tmp/fy; ipcs | grep -c 0x",
    );
    assert_eq!(made, "3\n");
    let seen = guest.sh("ipcs | grep -c 0x; ls -A /dev/shm /dev/mqueue /tmp | grep fy; echo end");
    assert_eq!(seen, "0\nend\n");
}

fn files(guest: &Guest) {
    let other = guest.arena.guest(&json!({}));
    other.sh("echo x >/root/mine; rm /usr/bin/id; echo x >/usr/bin/own; chmod 000 /etc/passwd");
    let seen = guest.sh("ls /root/mine /usr/bin/own 2>/dev/null; id -u; head -c 4 /etc/passwd");
    assert_eq!(seen, "0\nroot");
}

fn reset(guest: &Guest) {
    let python = "import socket,time\ns=socket.socket(socket.AF_UNIX)\ns.bind('\\0fy-kept')\n\
                  s.listen()\nprint('up',flush=True)\ntime.sleep(600)";
    guest.sh("echo x >/root/kept; echo x >/usr/kept; echo x >/tmp/kept; echo x >/dev/shm/kept; \
         : >/dev/mqueue/kept; ipcmk -M 4096 >/dev/null; ipcmk -Q >/dev/null; rm /usr/bin/id; \
         echo evil >/etc/profile; (setsid sleep 54322 >/dev/null 2>&1 &)");
    guest.session("kept=1; cd /usr; trap 'echo kept' EXIT", std::time::Duration::from_secs(5));
    guest.spawn(&["python3", "-c", python]);
    // Whoever closes first would hold the port for a minute.
    let closed = "import socket\nl=socket.create_server(('127.0.0.1',4444))\n\
                  c=socket.create_connection(('127.0.0.1',4444))\ns=l.accept()[0]\ns.close()\n\
                  c.recv(1)\nc.close()\nprint('closed')";
    assert_eq!(text(&guest.exec(&[], &["python3", "-c", closed]).stdout), "closed\n");
    guest.exec(&["--detach", "--tty"], &["sleep", "600"]);
    guest.reset();
    let left = guest
        .sh("ls -d /root/kept /usr/kept /tmp/kept /dev/shm/kept /dev/mqueue/kept 2>/dev/null; \
         ipcs | grep 0x; grep -a -c . /proc/net/unix; pgrep -f '[s]leep|[p]ython'; ls /dev/pts; id -u");
    // The heading of the table of sockets, and what every devpts has.
    assert_eq!(left, "1\nptmx\n0\n");
    let bind = "import socket\ns=socket.socket()\ns.bind(('127.0.0.1',4444))\nprint('bound')";
    let out = guest.exec(&[], &["python3", "-c", bind]);
    assert_eq!(text(&out.stdout), "bound\n", "{out:?}");
    let session = guest.session("echo \"[$kept]\"; pwd", std::time::Duration::from_secs(5));
    assert!(session["stdout"].as_str().is_some_and(|out| out.starts_with("[]\n")), "{session}");
}
