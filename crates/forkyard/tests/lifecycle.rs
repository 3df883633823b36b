//! The life of sandboxes and of the server that has them, through the command line.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use forkyard_engine::model::{Sandbox as Described, State};
use forkyard_testkit::leaks::Process;
use forkyard_testkit::{Http, Leaks, TestServer, binary, finish, wait_for};
use serde_json::Value;
use support::{SOON, Sandbox, code, create, refused, stderr, stdout};

/// A store without a server that was started for it: the command line starts one.
struct Lone {
    dir: tempfile::TempDir,
    leaks: Leaks,
}

impl Lone {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("fy-").tempdir().unwrap();
        let leaks = Leaks::before(dir.path().to_str().unwrap());
        Self { dir, leaks }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .env("FORKYARD_STORE", self.dir.path().join("store"))
            .env("FORKYARD_SOCKET", self.socket())
            .env("NO_COLOR", "1")
            .args(args);
        command
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("sock")
    }

    fn cli(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args), b"")
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.cli(args);
        assert_eq!(code(&out), 0, "{args:?}: {}", stderr(&out));
        stdout(&out)
    }

    /// Waits until nothing of it is left, but the directory itself.
    #[track_caller]
    fn is_left_by_all(&self) {
        wait_for("the end of everything of a store", SOON, || self.leaks.after().is_empty());
        for part in ["sandboxes", "run", "trash"] {
            assert_eq!(entries(&self.dir.path().join("store").join(part)), 0, "{part}");
        }
    }
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Ids that `ls` prints with these options.
fn ids(server: &TestServer, options: &[&str]) -> Vec<String> {
    let mut args = vec!["ls", "-q"];
    args.extend(options);
    server.ok(&args).lines().map(str::to_owned).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_sandbox_is_created_listed_inspected_and_removed() {
    let server = TestServer::start();
    let sandbox = create(
        &server,
        &["--name", "box", "-e", "A=1", "--label", "team=x y", "--workdir", "/usr"],
    );
    assert_eq!(sandbox.id.len(), 12);
    assert_eq!(ids(&server, &[]), [sandbox.id.as_str()]);
    let info = sandbox.inspect();
    assert_eq!(info.id.as_str(), sandbox.id);
    assert_eq!((info.name.as_deref(), info.image.as_str()), (Some("box"), "host"));
    assert_eq!((info.state, info.reason, info.deadline), (State::Running, None, None));
    assert!(info.started_at.unwrap() >= info.created_at);
    assert_eq!(info.spec.env["A"], "1");
    assert_eq!(info.spec.metadata["team"], "x y");
    assert_eq!(info.spec.workdir.as_deref(), Some("/usr"));
    let init = Process::of(info.pid.unwrap()).unwrap();

    let table = server.ok(&["ls"]);
    assert!(table.starts_with("ID "), "{table}");
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with(&sandbox.id)), "{table}");
    let card = server.ok(&["inspect", "box"]);
    assert!(card.contains("Name:") && card.contains("team=x y"), "{card}");

    assert_eq!(server.ok(&["rm", &sandbox.id]), format!("{}\n", sandbox.id));
    assert!(ids(&server, &["-a"]).is_empty());
    wait_for("the end of init", SOON, || !init.lives());
    refused(&server.cli(&["inspect", &sandbox.id]), 125, "no such sandbox");
}

#[test]
fn ids_sort_by_the_time_of_creation() {
    let server = TestServer::start();
    let made: Vec<String> = (0..5).map(|_| create(&server, &[]).id).collect();
    assert_eq!(ids(&server, &[]), made);
    let mut sorted = made.clone();
    sorted.sort();
    assert_eq!(sorted, made);
}

#[test]
fn many_are_removed_at_once_and_what_is_not_there_is_told() {
    let server = TestServer::start();
    let made: Vec<String> = (0..12).map(|_| create(&server, &[]).id).collect();
    let mut args = vec!["rm", "000000000000"];
    args.extend(made[..6].iter().map(String::as_str));
    let out = server.cli(&args);
    refused(&out, 125, "no such sandbox: 000000000000");
    assert_eq!(stdout(&out).lines().collect::<Vec<_>>(), made[..6]);

    let mut args = vec!["rm", "-f", "nobody"];
    args.extend(made[6..].iter().map(String::as_str));
    let out = server.cli(&args);
    assert_eq!((code(&out), stderr(&out).as_str()), (0, ""));
    assert_eq!(stdout(&out).lines().collect::<Vec<_>>(), made[6..]);
    assert!(ids(&server, &["-a"]).is_empty());
}

#[test]
fn many_clients_create_and_remove_at_the_same_time() {
    let server = TestServer::start();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..5 {
                    let name = format!("c{client}-{round}");
                    let sandbox = create(server, &["--name", &name]);
                    assert_eq!(sandbox.sh("cat /etc/hostname"), format!("{name}\n"));
                    server.ok(&["rm", &name]);
                }
            });
        }
    });
    assert!(ids(&server, &["-a"]).is_empty());
}

#[test]
fn a_name_is_unique_until_its_sandbox_is_gone() {
    let server = TestServer::start();
    let first = create(&server, &["--name", "box"]);
    let out = server.cli(&["create", "--name", "box"]);
    refused(&out, 125, &format!("name taken: box is sandbox {}", first.id));
    assert_eq!(ids(&server, &["-a"]), [first.id.as_str()]);
    refused(&server.cli(&["create", "--name", &first.id]), 125, "name taken");
    refused(&server.cli(&["run", "--name", "box", "--", "true"]), 125, "name taken");
    server.ok(&["exec", "box", "--", "true"]);
    server.ok(&["rm", "box"]);
    let second = create(&server, &["--name", "box"]);
    assert_ne!(first.id, second.id);
}

#[test]
fn of_two_that_want_one_name_at_once_one_gets_it() {
    let server = TestServer::start();
    let outs: Vec<Output> = std::thread::scope(|scope| {
        let tasks: Vec<_> =
            (0..6).map(|_| scope.spawn(|| server.cli(&["create", "--name", "one"]))).collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    let (made, lost): (Vec<_>, Vec<_>) = outs.iter().partition(|out| out.status.success());
    assert_eq!(made.len(), 1);
    for out in lost {
        refused(out, 125, "name taken: one");
    }
    assert_eq!(ids(&server, &["-a"]).len(), 1);
}

#[test]
fn what_is_no_sandbox_is_told_by_every_command() {
    let server = TestServer::start();
    for args in [
        &["inspect", "nobody"][..],
        &["exec", "nobody", "--", "true"],
        &["exec", "-s", "-c", "true", "nobody"],
        &["exec", "-d", "nobody", "--", "true"],
        &["shell", "nobody"],
        &["logs", "nobody"],
        &["ps", "nobody"],
        &["wait", "nobody", "1"],
        &["attach", "nobody", "1"],
        &["kill", "nobody", "1"],
        &["cp", "nobody:/etc/passwd", "/dev/null"],
        &["reset", "nobody"],
        &["rm", "nobody"],
        &["rm", "0123456789ab"],
    ] {
        let out = server.cli(args);
        refused(&out, 125, "no such sandbox");
        assert!(stderr(&out).contains("hint: `forkyard ls -a`"), "{args:?}: {}", stderr(&out));
        assert_eq!(stdout(&out), "", "{args:?}");
    }
}

#[test]
fn a_reset_ends_all_processes_and_removes_all_files() {
    let server = TestServer::start();
    let sandbox = create(&server, &["-e", "KEPT=yes"]);
    let before = sandbox.inspect();
    sandbox.say("cd /tmp; x=1; echo changed >>/etc/hosts; echo a >/root/a; echo b >/tmp/b");
    sandbox
        .sh("rm -f /etc/passwd; mkdir -p /srv/deep/er; ln -s /etc /srv/link; echo s >/dev/shm/s");
    let command = sandbox.start("sleep 600 & setsid sleep 601 & wait");
    sandbox.say("sleep 602 &");

    assert_eq!(server.ok(&["reset", &sandbox.id]), format!("{}\n", sandbox.id));

    let after = sandbox.inspect();
    assert_eq!((after.state, after.pid), (State::Running, before.pid));
    assert_eq!(
        sandbox
            .sh("ls /root /tmp /srv /dev/shm; grep -c changed /etc/hosts || true")
            .lines()
            .filter(|line| !line.is_empty() && !line.ends_with(':'))
            .collect::<Vec<_>>(),
        ["0"]
    );
    assert_eq!(sandbox.sh("test -s /etc/passwd && echo there"), "there\n");
    assert_eq!(sandbox.sh("ps -eo args | grep -c '[s]leep 60' || true"), "0\n");
    assert_eq!(sandbox.say("pwd; echo ${x-unset} $KEPT"), "/root\nunset yes\n");
    assert!(sandbox.commands().is_empty(), "{:?}", sandbox.commands());
    refused(&server.cli(&["wait", &sandbox.id, &command.to_string()]), 125, "no such command");
}

#[test]
fn a_sandbox_is_reset_again_and_again_without_growing() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let init = sandbox.inspect().pid.unwrap();
    let look = || {
        // By the time that there is a session, the old root is gone.
        sandbox.say(":");
        let mounts = std::fs::read_to_string(format!("/proc/{init}/mountinfo"));
        (mounts.map_or(0, |text| text.lines().count()), support::resident(init))
    };
    let round = |n: u32| {
        sandbox.say(&format!("test ! -e /root/mark && echo {n} >/root/mark"));
        server.ok(&["reset", &sandbox.id]);
    };
    (0..5).for_each(round);
    let before = look();
    (0..40).for_each(round);
    let after = look();
    assert_eq!(before.0, after.0, "mounts");
    assert!(after.1 < before.1 + (1 << 20), "memory of init: {before:?} {after:?}");
    // The files with its name, and the current uppers.
    let uppers = server.store().join("sandboxes").join(&sandbox.id);
    wait_for("the removal of old uppers", SOON, || entries(&uppers) == 2);
}

#[test]
fn a_reset_while_commands_stream_and_lines_run_ends_them() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    std::thread::scope(|scope| {
        let line = scope.spawn(|| sandbox.try_line("echo begun >/tmp/begun; sleep 600", None));
        let exec = scope.spawn(|| sandbox.exec(&["sh", "-c", "echo begun; exec sleep 600"]));
        wait_for("a line and a command", SOON, || {
            sandbox.commands().iter().any(|c| c.argv.contains(&"echo begun; exec sleep 600".into()))
                && sandbox.exec(&["test", "-e", "/tmp/begun"]).status.success()
        });
        server.ok(&["reset", &sandbox.id]);
        match line.join().unwrap() {
            Ok(line) => assert!(line.shell_ended, "{line:?}"),
            Err((status, why)) => assert!(status == 409 && why.contains("resetting"), "{why}"),
        }
        let exec = exec.join().unwrap();
        assert_eq!((code(&exec), stdout(&exec).as_str()), (137, "begun\n"), "{}", stderr(&exec));
    });
    assert_eq!(sandbox.say("echo new"), "new\n");
}

#[test]
fn a_sandbox_ends_at_its_deadline_and_keeps_its_record() {
    let server = TestServer::start();
    let before = Instant::now();
    let sandbox = create(&server, &["--timeout", "700ms", "--name", "short"]);
    let deadline = sandbox.inspect().deadline.unwrap();
    let init = Process::of(sandbox.inspect().pid.unwrap()).unwrap();
    let running = sandbox.exec(&["sleep", "600"]);
    assert_ne!(code(&running), 0);
    assert!(before.elapsed() >= Duration::from_millis(600), "{:?}", before.elapsed());
    assert_eq!(sandbox.wait_ended(), "deadline");
    let info = sandbox.inspect();
    assert!(info.ended_at.unwrap() >= deadline && info.pid.is_none(), "{info:?}");
    wait_for("the end of init", SOON, || !init.lives());
    assert!(ids(&server, &[]).is_empty());
    assert_eq!(ids(&server, &["-a"]), [sandbox.id.as_str()]);
    let out = sandbox.exec(&["true"]);
    refused(&out, 125, "is ended: deadline");
    assert!(stderr(&out).contains("hint: "), "{}", stderr(&out));
    refused(&server.cli(&["reset", &sandbox.id]), 125, "is ended: deadline");
    let (status, _) = server.post(&sandbox.path("/session"), r#"{"command":"true"}"#);
    assert_eq!(status, 409);
    server.ok(&["rm", "short"]);
}

#[test]
fn a_deadline_can_be_moved_and_taken_away() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--timeout", "1h"]);
    let first = sandbox.inspect().deadline.unwrap();
    let (status, _) = server.post(&sandbox.path("/timeout"), r#"{"timeout_ms":7200000}"#);
    assert_eq!(status, 200);
    assert!(sandbox.inspect().deadline.unwrap() > first + 3_000_000);
    let (status, _) = server.post(&sandbox.path("/timeout"), "{}");
    assert_eq!((status, sandbox.inspect().deadline), (200, None));
    let (status, _) = server.post(&sandbox.path("/timeout"), r#"{"timeout_ms":50}"#);
    assert_eq!(status, 200);
    assert_eq!(sandbox.wait_ended(), "deadline");
}

#[test]
fn a_sandbox_whose_init_is_killed_is_told_as_such() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let pid = sandbox.inspect().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_err() {
        // With a single id its init is this very user; otherwise root may do it.
        forkyard_testkit::skip!("the right to kill a sandbox's init");
    }
    assert_eq!(sandbox.wait_ended(), "killed");
    refused(&sandbox.exec(&["true"]), 125, "is ended: killed");
}

#[test]
fn run_gives_output_and_exit_code_and_leaves_nothing() {
    let server = TestServer::start();
    let out = server.cli(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((code(&out), stdout(&out), stderr(&out)), (7, "out\n".into(), "err\n".into()));
    let out = server.cli(&["run", "-c", "echo $((6 * 7))"]);
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "42\n"));
    let out = server.cli_with_input(&["run", "-i", "--", "wc", "-c"], &vec![b'x'; 100_000]);
    assert_eq!((code(&out), stdout(&out).trim()), (0, "100000"));
    let out = server.cli(&["run", "--timeout", "200ms", "--", "sleep", "600"]);
    assert_eq!(code(&out), 124, "{}", stderr(&out));
    let out = server.cli(&["run", "--", "no-such-program-here"]);
    refused(&out, 127, "no-such-program-here: no such program in the sandbox");
    // The end of a `run` is told before its sandbox is removed.
    wait_for("an empty list", SOON, || ids(&server, &["-a"]).is_empty());

    let out = server.cli(&["run", "--keep", "--name", "kept", "--", "touch", "/root/here"]);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert_eq!(server.ok(&["exec", "kept", "--", "ls", "/root"]), "here\n");
}

#[test]
fn run_without_a_command_says_what_to_write() {
    let server = TestServer::start();
    let out = server.cli(&["run"]);
    refused(&out, 125, "no command");
    assert!(stderr(&out).contains("forkyard run -- CMD"), "{}", stderr(&out));
}

#[test]
fn a_run_whose_client_is_killed_leaves_no_sandbox() {
    let server = TestServer::start();
    let mut child = server
        .command(&["run", "--", "sh", "-c", "trap '' TERM HUP; echo up; while :; do sleep 1; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    assert_eq!(ids(&server, &[]).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the removal of the sandbox", SOON, || ids(&server, &["-a"]).is_empty());
}

#[test]
fn the_journal_tells_a_sandboxs_life_even_after_it() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    server.ok(&["reset", &sandbox.id]);
    server.ok(&["rm", &sandbox.id]);
    wait_for("the last entry", SOON, || {
        server.ok(&["logs", "--json", &sandbox.id]).contains(r#""delete""#)
    });
    let journal = server.ok(&["logs", "--json", &sandbox.id]);
    let kinds: Vec<String> =
        journal.lines().map(|line| json(line)["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["create", "start", "reset", "ready", "deleting", "delete"]);
}

#[test]
fn listings_in_json_have_the_documented_shapes() {
    let server = TestServer::start();
    let made: Described =
        serde_json::from_str(&server.ok(&["create", "--json", "--name", "box"])).unwrap();
    assert_eq!((made.name.as_deref(), made.state), (Some("box"), State::Running));
    let keys = |value: &Value| {
        value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    let list = json(&server.ok(&["ls", "--json"]));
    insta::assert_snapshot!(
        keys(&list[0]),
        @"created_at deadline ended_at id image name parent pid reason spec started_at state"
    );
    insta::assert_snapshot!(
        keys(&list[0]["spec"]),
        @"env image limits metadata name net timeout_ms user volumes workdir"
    );
    let inspected = json(&server.ok(&["inspect", "--json", "box"]));
    assert_eq!(inspected.as_array().unwrap().len(), 1);
    assert_eq!(inspected[0]["id"], list[0]["id"]);
    server.ok(&["exec", "-d", "box", "--", "sleep", "600"]);
    let commands = json(&server.ok(&["ps", "--json", "box"]));
    insta::assert_snapshot!(keys(&commands[0]), @"argv detach exit id pid started_at tty");
    let version = json(&server.ok(&["version", "--json"]));
    assert_eq!(version["server"]["sandboxes"], 1);
    assert_eq!(version["server"]["pid"], server.pid().unwrap());
    assert_eq!(
        json(&server.ok(&["top", "--json"])).as_array().map(|all| all.len() <= 1),
        Some(true)
    );
    assert_eq!(server.ok(&["image", "ls", "--json"]).trim(), "[]");
    server.ok(&["rm", "box"]);
    assert_eq!(server.ok(&["ls", "--json"]).trim(), "[]");
}

#[test]
fn a_second_server_on_a_store_says_so_and_stops() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let socket = server.dir().join("other");
    let store = server.store().to_str().unwrap();
    let args = ["serve", "--store", store, "--socket", socket.to_str().unwrap()];
    let out = finish(&mut server.command(&args), b"");
    refused(&out, 3, &format!("serve {store}: another server has this store"));
    assert!(!socket.exists());
    assert_eq!(sandbox.sh("echo unharmed"), "unharmed\n");
}

#[test]
fn stop_is_refused_while_sandboxes_run() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = server.cli(&["stop"]);
    refused(&out, 125, "1 sandbox");
    assert_eq!(sandbox.sh("echo unharmed"), "unharmed\n");
}

#[test]
fn the_command_line_starts_a_server_which_stops_when_told() {
    let lone = Lone::new();
    // Nothing is started to look.
    assert!(lone.ok(&["version"]).contains("none runs"));
    assert_eq!(code(&lone.cli(&["stop"])), 0);
    assert!(!lone.socket().exists());

    assert_eq!(lone.ok(&["run", "--", "echo", "hello"]), "hello\n");
    let id = lone.ok(&["create"]);
    assert!(lone.ok(&["version"]).contains("1 running"));
    lone.ok(&["rm", id.trim()]);
    lone.ok(&["stop"]);
    lone.is_left_by_all();
    assert!(!lone.socket().exists());
}

#[test]
fn of_many_that_start_a_server_at_once_all_reach_the_same() {
    let lone = Lone::new();
    let pids: Vec<String> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    lone.ok(&["ls"]);
                    json(&lone.ok(&["version", "--json"]))["server"]["pid"].to_string()
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0] && pid != "null"), "{pids:?}");
    lone.ok(&["stop"]);
    lone.is_left_by_all();
}

#[test]
fn stop_by_force_removes_the_sandboxes_too() {
    let lone = Lone::new();
    for _ in 0..3 {
        lone.ok(&["create"]);
    }
    refused(&lone.cli(&["stop"]), 125, "3 sandbox");
    lone.ok(&["stop", "--force"]);
    lone.is_left_by_all();
}

#[test]
fn a_server_without_a_sandbox_ends_after_its_idle_time_and_not_before() {
    let lone = Lone::new();
    let mut server = lone.command(&["serve", "--idle", "1"]).spawn().unwrap();
    wait_for("the server", SOON, || lone.socket().exists());
    let http = Http::new(lone.socket());
    let (status, body) = http.post("/v1/sandboxes", "{}");
    assert_eq!(status, 201);
    let id = json(std::str::from_utf8(&body).unwrap())["id"].as_str().unwrap().to_owned();
    // Longer than the idle time, seen from inside.
    let line = r#"{"command":"sleep 1.5; echo still here"}"#;
    let (status, body) = http.post(&format!("/v1/sandboxes/{id}/session"), line);
    assert!(status == 200 && body.windows(10).any(|w| w == b"still here"), "{body:?}");
    assert!(server.try_wait().unwrap().is_none());
    lone.ok(&["rm", &id]);
    wait_for("the end of an idle server", SOON, || server.try_wait().unwrap().is_some());
    assert!(server.wait().unwrap().success());
    lone.is_left_by_all();
    assert!(!lone.socket().exists());
}

#[test]
fn fifty_lives_leave_no_process_namespace_mount_group_or_directory() {
    let server = TestServer::start();
    let keep = create(&server, &[]);
    let pid = server.pid().unwrap();
    let marker = server.dir().to_str().unwrap().to_owned();
    let group = forkyard_testkit::leaks::server_cgroups(keep.inspect().pid.unwrap());
    let look = || {
        let groups = group
            .iter()
            .flat_map(|name| forkyard_testkit::leaks::cgroups(name))
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .filter(|entry| entry.path().is_dir())
            .count();
        let files: usize = ["sandboxes", "run", "trash"]
            .iter()
            .map(|part| entries(&server.store().join(part)))
            .sum();
        (
            forkyard_testkit::leaks::descendants(pid).len(),
            forkyard_testkit::leaks::namespaces(pid).len(),
            forkyard_testkit::leaks::mounts(&marker).len(),
            groups,
            files,
        )
    };
    let life = |n: usize| {
        let sandbox = create(&server, &[]);
        sandbox.say("sleep 600 & echo x >/root/x");
        if n.is_multiple_of(3) {
            server.ok(&["reset", &sandbox.id]);
        }
        sandbox.start("sleep 600");
        server.ok(&["run", "--", "true"]);
        server.ok(&["rm", &sandbox.id]);
    };
    (0..3).for_each(life);
    let quiet = |what: &str| {
        // One sandbox, with its socket and directory; and what is made ahead stays as it is.
        wait_for(what, SOON, || look().4 == 2);
        support::open_fds(pid)
    };
    let fds = quiet("a quiet store");
    let before = look();
    (0..25).for_each(life);
    assert!(quiet("a quiet store again") <= fds + 4, "descriptors of the server");
    let mut after = look();
    wait_for("everything to be as before", SOON, || {
        after = look();
        after == before
    });
    assert_eq!(Sandbox::clone(&keep).sh("echo alive"), "alive\n");
}

#[test]
fn stores_and_volumes_may_lie_in_dev_shm() {
    let memory = Path::new("/dev/shm");
    let server = TestServer::start_at(memory, &binary(), &[]);
    let dir = tempfile::tempdir_in(memory).unwrap();
    std::fs::write(dir.path().join("file"), "shared\n").unwrap();
    let volume = format!("{}:/volume:ro", dir.path().display());
    let sandbox = create(&server, &["-v", &volume]);
    let line = "cat /volume/file; echo own >/root/file; ls /dev/shm | wc -l; echo >/dev/null";
    assert_eq!(server.ok(&["exec", "-s", &sandbox.id, line]), "shared\n0\n");
    let clone = server.ok(&["fork", &sandbox.id]);
    assert_eq!(server.ok(&["exec", clone.trim(), "--", "cat", "/root/file"]), "own\n");
}
