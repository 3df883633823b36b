//! What keeps files from becoming a layer: they are copied then.

use forkyard_testkit::{TestServer, wait_for};

use super::{MANY, MUCH, clones, fork, sealed};
use crate::support::{SOON, create};

/// What is in the way, and a program of Python that has it.
const PROGRAMS: [(&str, &str); 13] = [
    ("a lock of an open file", "f = open('/made/f', 'w'); fcntl.flock(f, 2)"),
    ("a lock of a process", "f = open('/made/f', 'w'); fcntl.lockf(f, 2)"),
    (
        "a shared mapping",
        "f = open('/made/f', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 0); f.close()",
    ),
    (
        "a shared mapping for reading",
        "open('/made/f', 'w').write('x'); f = open('/made/f', 'rb'); \
         m = mmap.mmap(f.fileno(), 1, prot=mmap.PROT_READ); f.close()",
    ),
    ("a socket", "s = socket.socket(socket.AF_UNIX); s.bind('/made/s'); s.listen()"),
    ("a deleted file", "f = open('/made/f', 'w+'); os.remove('/made/f')"),
    ("a removed directory", "os.mkdir('/made/d'); os.chdir('/made/d'); os.rmdir('/made/d')"),
    ("a fifo", "os.mkfifo('/made/p'); f = os.open('/made/p', os.O_RDWR)"),
    ("a directory that is read in part", "s = os.scandir('/made/many'); next(s)"),
    ("a large file", "f = open('/made/f', 'w'); f.write('x' * 5000000); f.flush()"),
    (
        "a watch",
        "c = ctypes.CDLL(None); n = c.inotify_init(); c.inotify_add_watch(n, b'/made', 256)",
    ),
    ("a database", "d = sqlite3.connect('/made/f'); d.execute('create table t (n)'); d.commit()"),
    ("too many files", "f = [open('/made/f', 'w') for n in range(200)]"),
];

/// The same, and a line of shell.
const LINES: [(&str, &str); 2] = [
    (
        "many files with several names",
        "cd /made/many; for n in $(seq 100); do ln $n l$n; done; >/tmp/ready; sleep 1000000",
    ),
    ("a stopped process", "sleep 1000000 & kill -STOP $!; >/tmp/ready; wait"),
];

#[test]
fn what_cannot_be_moved_is_in_the_way_and_all_is_copied_as_before() {
    let server = TestServer::start();
    for (what, program) in PROGRAMS {
        let modules = "ctypes, fcntl, mmap, os, socket, sqlite3, time";
        let line = format!(
            "exec python3 -c \"import {modules}\n{program}\nopen('/tmp/ready', 'w')\ntime.sleep(1e9)\""
        );
        is_copied(&server, what, &line);
    }
    for (what, line) in LINES {
        is_copied(&server, what, line);
    }
}

#[track_caller]
fn is_copied(server: &TestServer, what: &str, line: &str) {
    let source = create(server, &[]);
    source.say(&format!("mkdir -p /made/many; for n in $(seq 200); do echo $n >/made/many/$n; done; {MUCH} /made/much"));
    source.start(line);
    wait_for(what, SOON, || source.sh("ls /tmp").contains("ready"));
    let fork = fork(&source, &[]);
    assert!(!sealed(&fork), "{what}: {:?}", fork.report);
    let copy = clones(&fork, server).remove(0);
    for sandbox in [&source, &copy] {
        let told = sandbox.say("ls /made/many | grep -vc l; cat /made/many/177");
        assert_eq!(told, "200\n177\n");
        let commands = sandbox.commands();
        let running = commands.iter().filter(|command| command.exit.is_none()).count();
        assert_eq!(running, 1, "{what}");
        server.ok(&["rm", &sandbox.id]);
    }
}

#[test]
fn what_was_in_the_way_once_is_so_no_more() {
    let server = TestServer::start();
    let source = create(&server, &[]);
    source.say(&format!("{MANY}; exec 7>/made/lock; flock 7"));
    let copied = fork(&source, &[]);
    source.say("flock -u 7");
    let layer = fork(&source, &[]);
    assert!(!sealed(&copied) && sealed(&layer));
    let mut all = clones(&copied, &server);
    all.extend(clones(&layer, &server));
    all.push(source);
    for (n, sandbox) in all.iter().enumerate() {
        assert_eq!(sandbox.say(&format!("echo {n} >&7; cat /made/lock")), format!("{n}\n"));
    }
}
