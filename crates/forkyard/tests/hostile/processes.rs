//! Processes that will not end, and programs that are not what they seem.

use std::time::{Duration, Instant};

use forkyard_testkit::image_dir;
use serde_json::json;

use crate::arena::{Guest, PATIENCE, text};
use crate::case::cases;

cases! {
    ignoring_sigterm: "ignoring all signals when the time is up"
        => "SIGKILL a second later", ignoring;
    stopping_itself: "SIGSTOP to itself and its children when the time is up"
        => "SIGKILL reaches stopped processes", stopped;
    stopping_everything: "SIGSTOP to all processes, for ever, then reset and removal"
        => "both kill by init, and the removal by the host", storm;
    stuck_processes: "vfork parents, children held by a tracer, then reset"
        => "SIGKILL by init", stuck;
    daemons: "a double fork that keeps the command's stdout open, then reset"
        => "a command ends with its first process; a reset ends the rest", daemons;
    ends_in_any_order: "parents that end before their children and behind them, by exit, signal \
        and stop, many at once"
        => "init reaps what it did not start too, and knows commands by their process", any_order;
    closing_stdio: "closing 0, 1 and 2 and running on"
        => "the server waits for the process, not for its pipes", closing;
    replaced_shell_and_users: "junk, a fifo and a directory in the place of /bin/sh and \
        /etc/passwd, then commands as users"
        => "init opens them without waiting and reads at most 1 MiB", replaced;
    preloading_into_init: "LD_PRELOAD and other variables of the loader in the image and sandbox"
        => "init executes nothing; variables are given to commands only", preload;
    the_servers_program_as_interpreter: "a script whose interpreter is /proc/self/exe, run by init"
        => "Landlock (host image); init is not dumpable, and the program is busy: no writing to it",
        interpreter;
}

fn timed_out(guest: &Guest, script: &str) {
    let started = Instant::now();
    let out = guest.exec(&["--timeout", "1s"], &["/bin/bash", "-c", script]);
    assert_eq!(out.status.code(), Some(124), "{out:?}");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

fn ignoring(guest: &Guest) {
    timed_out(guest, "trap '' $(seq 1 31 | grep -v -e '^9$' -e '^19$'); while :; do sleep 1; done");
    let left = guest.sh("pgrep -c -f 'sleep [1]$' || true");
    assert_eq!(left, "0\n");
}

fn stopped(guest: &Guest) {
    timed_out(guest, "sleep 600 & kill -STOP $! $$; sleep 600");
}

fn storm(guest: &Guest) {
    guest.spawn_attack(&["storm", "19", "600"]);
    guest.reset();
    guest.check_alive();
    guest.spawn_attack(&["storm", "19", "600"]);
    let started = Instant::now();
    let (status, body) = guest.arena.http().delete(guest.url("").trim_end_matches('/'));
    assert_eq!(status, 204, "{}", text(&body));
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    guest.may_end();
}

fn stuck(guest: &Guest) {
    assert_eq!(guest.spawn_attack(&["vforks"]), "stuck OK\n");
    guest.reset();
    assert_eq!(guest.sh("pgrep -c attack || true"), "0\n");
}

fn daemons(guest: &Guest) {
    let started = Instant::now();
    let script = "(setsid sleep 54321 &) ; (setsid nohup sleep 54321 >/dev/null 2>&1 &); echo done";
    let out = guest.exec(&[], &["/bin/bash", "-c", script]);
    assert_eq!(text(&out.stdout), "done\n");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!(guest.sh("pgrep -c -f 'sleep [5]4321'"), "2\n");
    guest.reset();
    assert_eq!(guest.sh("pgrep -c -f 'sleep [5]4321' || true"), "0\n");
}

fn any_order(guest: &Guest) {
    let scripts = [
        ("(sleep 0.05; exit 9) & exit 3", 3),
        ("(exit 9) & wait; exit 4", 4),
        ("(sleep 0.05 & exec sleep 0.02) & kill -9 $$", 137),
        ("(kill -STOP $BASHPID; exit 9) & sleep 0.02; exit 5", 5),
        (
            "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c \"sleep 0.0$i; exit $i\" &) & done; exit 6",
            6,
        ),
        ("exec sh -c 'sleep 0.03 & exit 7'", 7),
    ];
    std::thread::scope(|scope| {
        let play = |(script, code): (&str, i32)| {
            for _ in 0..4 {
                let out = guest.exec(&["--timeout", "30s"], &["/bin/bash", "-c", script]);
                assert_eq!(out.status.code(), Some(code), "{script}: {out:?}");
            }
        };
        let all: Vec<_> = scripts.map(|one| scope.spawn(move || play(one))).into();
        assert!(all.into_iter().all(|one| one.join().is_ok()), "see above");
    });
}

fn closing(guest: &Guest) {
    let started = Instant::now();
    let out = guest.exec(&[], &["/bin/bash", "-c", "exec 0<&- 1>&- 2>&-; sleep 0.3; exit 7"]);
    assert_eq!(out.status.code(), Some(7), "{out:?}");
    assert!(started.elapsed() >= Duration::from_millis(300));
}

fn replaced(guest: &Guest) {
    for junk in [
        "rm -f /etc/passwd /etc/group; mkfifo /etc/passwd /etc/group",
        "rm -f /etc/passwd /etc/group; mkdir /etc/passwd; ln -s /dev/zero /etc/group",
        "rm -rf /etc/passwd /etc/group; ln -s /proc/1/mem /etc/passwd; truncate -s 1T /etc/group",
        "rm -f /etc/passwd /etc/group; head -c 2M /dev/urandom >/etc/passwd; cp /etc/passwd /etc/group",
        "rm -f /usr/bin/sh /usr/bin/bash /usr/bin/dash; mkfifo /usr/bin/sh; ln -s sh /usr/bin/bash",
    ] {
        guest.sh(junk);
        let started = Instant::now();
        let out = guest.exec(&["--user", "0"], &["/usr/bin/id", "-u"]);
        assert_eq!(text(&out.stdout), "0\n", "after {junk}: {out:?}");
        guest.exec(&["--user", "daemon"], &["/usr/bin/id"]);
        // A shell that waits for a fifo of its own harms nobody else.
        guest.exec(&["--timeout", "1s", "-c", "echo"], &[]);
        assert!(started.elapsed() < PATIENCE, "{junk}: {:?}", started.elapsed());
        guest.check_alive();
    }
}

fn preload(guest: &Guest) {
    let env = json!({
        "LD_PRELOAD": "/hostile/evil.so", "LD_LIBRARY_PATH": "/hostile", "LD_AUDIT": "/hostile/x.so",
        "BASH_ENV": "/hostile/env", "ENV": "/hostile/env", "PATH": "/hostile:/usr/bin:/bin",
    });
    let other = guest.arena.guest(&json!({ "env": env }));
    // The loader complains in commands, which is where the variables belong.
    let out = other.exec(&[], &["/bin/true"]);
    assert!(out.status.success() && text(&out.stderr).contains("evil.so"), "{out:?}");
    // Static programs have no loader.
    other.check_alive();
    other.reset();
    let (status, _) = other.read("/etc/hostname");
    assert_eq!(status, 200);
}

fn interpreter(guest: &Guest) {
    let script = "#!/proc/self/exe\n";
    let run = |guest: &Guest, path: &str| {
        let out = guest.exec(&["--timeout", "5s"], &[path, "version"]);
        // Whatever it did, it may not have written to the server's program.
        let program = std::fs::metadata(forkyard_testkit::binary()).expect("the program");
        (out, program.len(), program.modified().expect("a time"))
    };
    let before = std::fs::metadata(forkyard_testkit::binary()).expect("the program");
    let dir = image_dir();
    dir.file("/bin/trap", script, 0o755);
    // Holds the program open while it runs, if it can, and tries to write to it.
    dir.file(
        "/bin/steal",
        "#!/bin/sh\necho up\nwhile :; do for p in /proc/[0-9]*/exe; do \
         case $(readlink $p) in */forkyard*) (: >>$p) 2>/dev/null && echo WROTE;; esac; \
         done; done\n",
        0o755,
    );
    let server = &guest.arena.server;
    server.ok(&["image", "import", "-q", &dir.path().to_string_lossy(), "interpreter"]);
    let other = guest.arena.guest(&json!({ "image": "interpreter" }));
    other.spawn(&["/bin/steal"]);
    for _ in 0..5 {
        let (_, length, modified) = run(&other, "/bin/trap");
        assert_eq!((length, modified), (before.len(), before.modified().expect("a time")));
    }
    // Over the host image there is a second wall.
    guest.sh("printf '#!/proc/self/exe\\n' >/root/trap; chmod 755 /root/trap");
    if forkyard_sys::landlock::abi().is_ok_and(|abi| abi >= 2) {
        let (out, ..) = run(guest, "/root/trap");
        assert_eq!(out.status.code(), Some(126), "{out:?}");
    }
}
