//! Servers and spawners that are killed: no sandbox and no output is lost, nothing is left over.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forkyard_api::routes::Health;
use forkyard_api::stream::Kind;
use forkyard_engine::model::{Sandbox as Described, State};
use forkyard_testkit::leaks::{self, Process};
use forkyard_testkit::{TestServer, wait_for, wait_some};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::kill::Random;
use support::stream::Stream;
use support::{SOON, Sandbox, code, counted, counting, create, refused, stdout};

/// A sandbox, seen through the server of now.
fn of<'a>(server: &'a TestServer, id: &str) -> Sandbox<'a> {
    Sandbox { server, id: id.to_owned() }
}

fn kill_and_restart(server: &mut TestServer) {
    server.kill9();
    server.restart();
}

fn all(server: &TestServer) -> Vec<Described> {
    serde_json::from_str(&server.ok(&["ls", "-a", "--json"])).unwrap()
}

/// Waits until the store has directories and sockets for these sandboxes alone.
#[track_caller]
fn is_tidy(server: &TestServer, sandboxes: usize) {
    wait_for("a store without leavings", SOON, || {
        ["sandboxes", "run"].iter().all(|part| entries(&server.store().join(part)) == sandboxes)
            && entries(&server.store().join("trash")) == 0
    });
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// The spawner of a server: the child that runs this very program.
fn spawner(server: &TestServer) -> Option<Process> {
    let pid = server.pid()?;
    leaks::descendants(pid).into_iter().find(|process| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parent == Some(&pid.to_string())
    })
}

#[test]
fn sandboxes_commands_sessions_and_files_outlive_their_server() {
    let mut server = TestServer::start();
    let id = create(&server, &["--name", "box", "--timeout", "1h"]).id;
    let sandbox = of(&server, &id);
    sandbox.say("cd /tmp; x='kept in memory'; sleep 600 &");
    sandbox.sh("echo on disk >/root/file");
    sandbox.sh("mkfifo /tmp/go");
    let command = sandbox.start("echo before; read x </tmp/go; echo after; exit 3");
    let before = sandbox.inspect();
    let old = server.pid();

    server.kill9();
    assert!(Process::of(before.pid.unwrap()).is_some());
    server.restart();

    assert_ne!(server.pid(), old);
    let sandbox = of(&server, &id);
    let after = sandbox.inspect();
    assert_eq!((&after.name, after.pid, after.state), (&before.name, before.pid, State::Running));
    assert_eq!((after.deadline, after.started_at), (before.deadline, before.started_at));
    assert_eq!(sandbox.say("pwd; echo $x; jobs -p | wc -l"), "/tmp\nkept in memory\n1\n");
    assert_eq!(sandbox.sh("cat /root/file"), "on disk\n");
    let listed = sandbox.commands();
    assert!(listed.iter().any(|c| c.id.0 == command && c.exit.is_none()), "{listed:?}");
    sandbox.sh("echo >/tmp/go");
    assert_eq!(sandbox.wait(command).code, 3);
    assert_eq!(server.ok(&["logs", &id, &command.to_string()]), "before\nafter\n");
    let journal = server.ok(&["logs", &id]);
    assert!(journal.contains("takeover"), "{journal}");
}

#[test]
fn what_ended_while_nobody_served_is_complete() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    let sandbox = of(&server, &id);
    // The pipe holds 64 KiB, so this much is there although nobody takes it.
    let command = sandbox.start(&format!("{}; echo err >&2; exit 9", counting(50_000)));
    let gate = sandbox.start("sleep 0.3; echo late; kill -9 $$");
    let pids: Vec<u32> = sandbox.commands().iter().map(|c| c.pid).collect();
    let init = sandbox.inspect().pid.unwrap();
    server.kill9();
    wait_for("the end of the commands", SOON, || {
        let alive = leaks::descendants(init);
        // The session's shell alone.
        alive.len() == 1 && pids.len() == 2
    });
    server.restart();
    let sandbox = of(&server, &id);
    assert_eq!(sandbox.wait(command).code, 9);
    let exit = sandbox.wait(gate);
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    let output = |command: u32, stream: &str| {
        let path = sandbox.path(&format!("/commands/{command}/output?stream={stream}"));
        server.get(&path).1
    };
    assert!(output(command, "stdout") == counted(50_000));
    assert_eq!(output(command, "stderr"), "err\n");
    assert_eq!(output(gate, "stdout"), "late\n");
}

#[test]
fn a_stream_goes_on_at_the_next_server_without_a_byte_lost_or_twice() {
    const SIZE: usize = 24 << 20;
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    let path = format!("/v1/sandboxes/{id}/commands");
    let body = json!({ "shell": format!("{} | tee /dev/stderr", counting(SIZE)) });
    let mut stream = Stream::open(server.socket(), &path, &body).unwrap();
    let command = stream.command.id.0;
    let (mut stdout, mut stderr): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut random = Random(0x5eed_0001);
    let mut kills = 0;
    let mut next = 100_000 + random.below(3 << 20) as usize;
    let exit = loop {
        match stream.part() {
            Some((Kind::Stdout, bytes)) => stdout.extend(bytes),
            Some((Kind::Stderr, bytes)) => stderr.extend(bytes),
            Some((Kind::Exit, json)) => {
                break serde_json::from_slice::<forkyard_engine::model::Exit>(&json).unwrap();
            }
            None => {
                server.restart();
                let (out, err) = (stdout.len(), stderr.len());
                let path = format!("{path}/{command}/attach?stdout={out}&stderr={err}");
                stream = Stream::attach(server.socket(), &path).unwrap();
            }
            other => panic!("{other:?}"),
        }
        if stdout.len() > next && server.pid().is_some() {
            server.kill9();
            kills += 1;
            next = stdout.len() + 500_000 + random.below(5 << 20) as usize;
        }
    };
    assert_eq!(exit.code, 0);
    assert!(kills >= 3, "{kills} kills");
    let expected = counted(SIZE);
    for (name, got) in [("stdout", stdout), ("stderr", stderr)] {
        let same = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let rest = &got[same..];
        let shown = String::from_utf8_lossy(&rest[..rest.len().min(60)]).into_owned();
        assert!(got == expected, "{name}: {} bytes, wrong from {same}: {shown:?}", got.len());
    }
}

#[test]
fn the_command_line_finds_its_command_again_and_passes_stdin_on() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    let mut child = server
        .command(&["exec", "-i", &id, "--", "sh", "-c", "echo up; cat; echo end; exit 5"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let socket = server.socket().to_owned();
    server.kill9();
    // It starts the next server by itself.
    let http = forkyard_testkit::Http::new(&socket);
    let health: Health = wait_some("the next server", SOON, || {
        let (status, body) = http.request("GET", "/v1/health", "").ok()?;
        (status == 200).then(|| serde_json::from_slice(&body).unwrap())
    });
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"through two servers\n").unwrap();
    drop(child.stdin.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!(stdout(&out), "through two servers\nend\n");
    assert_eq!(code(&out), 5);
    // Out of the way of this test's own.
    let pid = Pid::from_raw(health.pid as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    wait_for("its end", SOON, || Process::of(health.pid).is_none());
}

#[test]
fn a_one_off_run_whose_server_is_killed_is_finished_and_removed() {
    let mut server = TestServer::start();
    let body = json!({ "command": { "shell": "mkfifo /tmp/go; echo up; read x </tmp/go; echo end; exit 4" } });
    let mut stream = Stream::open(server.socket(), "/v1/run", &body).unwrap();
    let id = stream.sandbox.as_ref().unwrap().id.to_string();
    let command = stream.command.id.0;
    stream.until("up\n");
    kill_and_restart(&mut server);
    let path = format!("/v1/sandboxes/{id}/commands/{command}/attach?stdout=3");
    let stream = Stream::attach(server.socket(), &path).unwrap();
    of(&server, &id).sh("echo >/tmp/go");
    let outcome = stream.finish();
    assert_eq!(outcome.stdout, b"end\n");
    assert_eq!(outcome.exit.code, 4);
    wait_for("the removal of the sandbox", SOON, || all(&server).is_empty());
    is_tidy(&server, 0);
}

#[test]
fn a_sandbox_whose_deadline_passed_meanwhile_is_found_ended() {
    let mut server = TestServer::start();
    let id = create(&server, &["--timeout", "400ms"]).id;
    let init = Process::of(of(&server, &id).inspect().pid.unwrap()).unwrap();
    server.kill9();
    wait_for("the end at the deadline, without a server", SOON, || !init.lives());
    server.restart();
    assert_eq!(of(&server, &id).wait_ended(), "deadline");
    server.ok(&["rm", &id]);
    is_tidy(&server, 0);
}

#[test]
fn a_sandbox_whose_init_died_meanwhile_is_told_as_ended() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    let other = create(&server, &[]).id;
    let pid = of(&server, &id).inspect().pid.unwrap();
    server.kill9();
    if kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).is_err() {
        server.restart();
        forkyard_testkit::skip!("the right to kill a sandbox's init");
    }
    wait_for("its end", SOON, || Process::of(pid).is_none());
    server.restart();
    assert_eq!(of(&server, &id).wait_ended(), "its processes are gone");
    refused(&of(&server, &id).exec(&["true"]), 125, "is ended");
    assert_eq!(of(&server, &other).say("echo unharmed"), "unharmed\n");
}

#[test]
fn a_sandbox_that_was_taken_over_knows_its_name_and_can_be_reset() {
    let mut server = TestServer::start();
    let id = create(&server, &["--name", "box"]).id;
    kill_and_restart(&mut server);
    let sandbox = of(&server, &id);
    assert_eq!(sandbox.sh("cat /etc/hostname"), "box\n");
    sandbox.sh("echo other >/etc/hostname");
    for _ in 0..2 {
        server.ok(&["reset", &id]);
        assert_eq!(sandbox.sh("cat /etc/hostname; grep -c box /etc/hosts"), "box\n1\n");
    }
}

#[test]
fn a_line_that_ran_when_the_server_died_does_not_disturb_the_next() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    let sandbox = of(&server, &id);
    sandbox.sh("mkfifo /tmp/go");
    thread::scope(|scope| {
        let http = server.http();
        let path = sandbox.path("/session");
        scope.spawn(move || {
            let line = "echo stale; : >/tmp/begun; read x </tmp/go; echo stale; y=set";
            let body = json!({ "command": line });
            http.request("POST", &path, body.to_string()).unwrap_err();
        });
        wait_for("the line to begin", SOON, || {
            sandbox.sh("test -e /tmp/begun && echo yes || true") == "yes\n"
        });
        let pid = Pid::from_raw(server.pid().unwrap() as i32).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    });
    kill_and_restart(&mut server);
    let sandbox = of(&server, &id);
    sandbox.start("echo >/tmp/go");
    assert_eq!(sandbox.say("echo fresh ${y-unset}"), "fresh set\n");
}

/// Ends the clients when the killing is over, or has panicked.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets clients do `work` over and over while servers are killed at random moments; what a call
/// answers in between does not matter.
fn under_fire(server: &mut TestServer, seed: u64, kills: usize, work: impl Fn(&Caller) + Sync) {
    let mut random = Random(seed);
    let stop = AtomicBool::new(false);
    let caller = Caller { socket: server.socket().to_owned() };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    work(&caller);
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for _ in 0..kills {
            let end = Instant::now() + Duration::from_micros(random.below(60_000));
            while Instant::now() < end {
                thread::yield_now();
            }
            kill_and_restart(server);
        }
    });
}

/// A client that is content with any answer, or none.
struct Caller {
    socket: std::path::PathBuf,
}

impl Caller {
    fn call(&self, method: &str, path: &str, body: &'static str) -> Option<(u16, Vec<u8>)> {
        let http = forkyard_testkit::Http::new(&self.socket).limit(SOON);
        match http.request(method, path, body) {
            Ok((status, body)) => Some((status, body.to_vec())),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains("no answer within"), "a server that hangs: {text}");
                None
            }
        }
    }

    fn create(&self) -> Option<String> {
        let (status, body) = self.call("POST", "/v1/sandboxes", "{}")?;
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
        Some(serde_json::from_slice::<Described>(&body).unwrap().id.to_string())
    }
}

#[test]
fn servers_killed_while_sandboxes_are_made_and_removed_leave_nothing_half_made() {
    let mut server = TestServer::start();
    let keep = create(&server, &["--name", "keep"]).id;
    of(&server, &keep).say("x=kept");
    let marker = server.store().to_str().unwrap().to_owned();
    under_fire(&mut server, 0x5eed_0002, 15, |caller| {
        if let Some(id) = caller.create() {
            let line = r#"{"command":"echo hello; sleep 600 &"}"#;
            caller.call("POST", &format!("/v1/sandboxes/{id}/session"), line);
            caller.call("DELETE", &format!("/v1/sandboxes/{id}"), "");
        }
    });
    assert_eq!(of(&server, &keep).say("echo $x"), "kept\n");
    // What was answered, and what was on its way: each is there whole, or not at all.
    for sandbox in all(&server) {
        assert_eq!(sandbox.state, State::Running, "{sandbox:?}");
        let id = sandbox.id.to_string();
        assert_eq!(of(&server, &id).sh("echo works"), "works\n");
        if id != keep {
            server.ok(&["rm", &id]);
        }
    }
    is_tidy(&server, 1);
    only_sandboxes_of(&server, &[&keep]);
    assert!(leaks::mounts(&marker).iter().all(|mount| !mount.to_string().contains("trash")));
}

/// Waits until no init runs but those of these sandboxes.
#[track_caller]
fn only_sandboxes_of(server: &TestServer, ids: &[&str]) {
    let inits: Vec<u32> = ids.iter().map(|id| of(server, id).inspect().pid.unwrap()).collect();
    let marker = server.store().to_str().unwrap();
    let mut strays = Vec::new();
    wait_for("the end of inits that nobody knows", SOON, || {
        // An init has the store's directories among its mounts; so does the spawner's namespace,
        // which has no marker on its own mounts.
        strays = leaks::mounts(marker)
            .into_iter()
            .filter_map(|leak| match leak {
                leaks::Leak::Mount { pid, line } if line.contains("/sandboxes/") => {
                    Some((pid, line))
                }
                _ => None,
            })
            .filter(|(pid, _)| !inits.contains(pid) && !below_any(*pid, &inits))
            .collect();
        strays.is_empty()
    });
}

fn below_any(pid: u32, inits: &[u32]) -> bool {
    inits.iter().any(|init| leaks::descendants(*init).iter().any(|process| process.pid == pid))
}

#[test]
fn servers_killed_while_sandboxes_are_reset_leave_each_old_or_new() {
    let mut server = TestServer::start();
    let ids: Vec<String> = (0..3).map(|_| create(&server, &[]).id).collect();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    under_fire(&mut server, 0x5eed_0003, 12, |caller| {
        let id = &ids[turn.fetch_add(1, Ordering::Relaxed) % ids.len()];
        let line = r#"{"command":"echo x >>/root/mark"}"#;
        caller.call("POST", &format!("/v1/sandboxes/{id}/session"), line);
        caller.call("POST", &format!("/v1/sandboxes/{id}/reset"), "");
    });
    for id in &ids {
        let sandbox = of(&server, id);
        assert_eq!(sandbox.inspect().state, State::Running, "{:?}", sandbox.inspect());
        assert_eq!(sandbox.say("echo works"), "works\n");
        server.ok(&["reset", id]);
        assert_eq!(sandbox.say("ls /root"), "");
        // With the files that carry its name.
        let uppers = server.store().join("sandboxes").join(id);
        wait_for("one upper alone", SOON, || entries(&uppers) == 2);
        assert_eq!(sandbox.sh("cat /etc/hostname"), format!("{id}\n"));
    }
    is_tidy(&server, ids.len());
}

#[test]
fn servers_killed_while_one_off_commands_run_leave_no_sandbox() {
    let mut server = TestServer::start();
    let socket = server.socket().to_owned();
    let ran = std::sync::atomic::AtomicUsize::new(0);
    let mut random = Random(0x5eed_0004);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let body = json!({ "command": { "shell": "echo hello" } });
                    if let Ok(mut stream) = Stream::try_open(&socket, "/v1/run", &body)
                        && stream.part().is_some()
                    {
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        wait_for("a first run", SOON, || ran.load(Ordering::Relaxed) > 0);
        for _ in 0..10 {
            let end = Instant::now() + Duration::from_micros(random.below(50_000));
            while Instant::now() < end {
                thread::yield_now();
            }
            kill_and_restart(&mut server);
        }
    });
    // Those whose clients did not come back are given some time, then removed.
    wait_for("the removal of all", Duration::from_secs(60), || all(&server).is_empty());
    is_tidy(&server, 0);
}

#[test]
fn a_killed_spawner_is_replaced_and_its_sandboxes_live_on() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.say("x=kept");
    for _ in 0..3 {
        let old = spawner(&server).unwrap();
        kill_process(Pid::from_raw(old.pid as i32).unwrap(), Signal::KILL).unwrap();
        wait_for("the spawner's end", SOON, || !old.lives());
        assert_eq!(sandbox.say("echo $x"), "kept\n");
        assert_eq!(sandbox.sh("echo a command"), "a command\n");
        let other = create(&server, &[]);
        assert_eq!(other.sh("echo new"), "new\n");
        assert_ne!(spawner(&server), Some(old));
        server.ok(&["rm", &other.id]);
    }
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.say("echo ${x-unset}"), "unset\n");
    is_tidy(&server, 1);
}

#[test]
fn a_sandbox_of_an_earlier_server_or_spawner_is_forked_kept_and_paused() {
    /// Whether it can be looked into, and goes on.
    #[track_caller]
    fn can_be_stopped(server: &TestServer, id: &str) {
        let clone = server.ok(&["fork", id]).trim().to_owned();
        assert_eq!(server.ok(&["exec", "-s", &clone, "echo $x"]), "kept\n");
        server.ok(&["rm", &clone]);
        server.ok(&["snapshot", "--files-only", id, "files"]);
        server.ok(&["snapshots", "rm", "files"]);
        server.ok(&["pause", id]);
        server.ok(&["resume", id]);
        assert_eq!(server.ok(&["exec", "-s", id, "echo $x"]), "kept\n");
    }
    let mut server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.say("x=kept");
    let id = sandbox.id.clone();
    for _ in 0..2 {
        server.restart();
        let clone = server.ok(&["fork", &id]).trim().to_owned();
        assert_eq!(server.ok(&["exec", "-s", &clone, "echo $x"]), "kept\n");
    }
    let old = spawner(&server).unwrap();
    kill_process(Pid::from_raw(old.pid as i32).unwrap(), Signal::KILL).unwrap();
    wait_for("the spawner's end", SOON, || !old.lives());
    let newer = create(&server, &[]);
    newer.say("x=kept");
    can_be_stopped(&server, &id);
    can_be_stopped(&server, &newer.id);
}

#[test]
fn an_init_made_ahead_that_was_killed_is_made_anew() {
    let server = TestServer::start();
    for _ in 0..3 {
        let below = |spawner: Process| leaks::descendants(spawner.pid).into_iter().next();
        let mut waiting = None;
        wait_for("an init made ahead", SOON, || {
            waiting = spawner(&server).and_then(below);
            waiting.is_some()
        });
        let waiting = waiting.unwrap();
        kill_process(Pid::from_raw(waiting.pid as i32).unwrap(), Signal::KILL).unwrap();
        wait_for("its end", SOON, || !waiting.lives());
        let sandbox = create(&server, &[]);
        assert_eq!(sandbox.sh("echo works"), "works\n");
        server.ok(&["rm", &sandbox.id]);
    }
    is_tidy(&server, 0);
}

#[test]
fn spawners_killed_at_random_moments_leave_nothing_half_made() {
    let server = TestServer::start();
    let mut random = Random(0x5eed_0005);
    let stop = AtomicBool::new(false);
    let caller = Caller { socket: server.socket().to_owned() };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Some((201, body)) = caller.call("POST", "/v1/sandboxes", "{}") {
                        let made: Described = serde_json::from_slice(&body).unwrap();
                        caller.call("POST", &format!("/v1/sandboxes/{}/reset", made.id), "");
                        caller.call("DELETE", &format!("/v1/sandboxes/{}", made.id), "");
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for _ in 0..15 {
            thread::sleep(Duration::from_micros(random.below(40_000)));
            if let Some(process) = spawner(&server) {
                let pid = Pid::from_raw(process.pid as i32).unwrap();
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    for sandbox in all(&server) {
        server.ok(&["rm", sandbox.id.as_str()]);
    }
    let sandbox = create(&server, &[]);
    assert_eq!(sandbox.say("echo works"), "works\n");
    is_tidy(&server, 1);
    only_sandboxes_of(&server, &[&sandbox.id]);
}

#[test]
fn sigterm_ends_the_server_alone() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    of(&server, &id).say("x=kept");
    // Ends it by SIGTERM and starts the next.
    server.restart();
    assert_eq!(of(&server, &id).say("echo $x"), "kept\n");
}
