//! Commands: how they are started, what goes in and out, how they end.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use forkyard_api::stream::Kind;
use forkyard_engine::model::Exit;
use forkyard_testkit::leaks::Process;
use forkyard_testkit::{TestServer, skip, wait_for, wait_some};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::stream::Stream;
use support::{SOON, Sandbox, code, counted, counting, create, refused, resident, stderr, stdout};

/// A command of a sandbox over a connection of its own.
#[track_caller]
fn open(sandbox: &Sandbox<'_>, body: &Value) -> Stream {
    let path = sandbox.path("/commands");
    Stream::open(sandbox.server.socket(), &path, body).unwrap()
}

/// A shell on a terminal of 30 lines and 100 columns, at its first prompt.
fn terminal(sandbox: &Sandbox<'_>) -> Stream {
    let mut stream = open(
        sandbox,
        &json!({
            "argv": ["bash", "--norc", "--noprofile"],
            // No more than the prompt is to be written where it is.
            "env": { "PS1": "ready> ", "TERM": "dumb" },
            "tty": { "rows": 30, "cols": 100 },
            "stdin": true,
        }),
    );
    stream.until("ready> ");
    stream
}

/// `forkyard exec` as a process that can be looked at and killed; it has printed its first line.
fn running(sandbox: &Sandbox<'_>, line: &str) -> Child {
    let mut child = sandbox
        .server
        .command(&["exec", &sandbox.id, "--", "sh", "-c", line])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    }
    child
}

/// Waits until no process of the sandbox has this in its arguments.
#[track_caller]
fn is_gone(sandbox: &Sandbox<'_>, argument: &str) {
    let pattern = format!("[{}]{}", &argument[..1], &argument[1..]);
    let look = format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '{pattern}'");
    wait_for("the end of a process", SOON, || {
        stdout(&sandbox.exec(&["sh", "-c", &format!("{look} || true")])) == "0\n"
    });
}

/// Bytes of memory that the output of a server's commands takes.
fn spooled(server: &TestServer) -> u64 {
    let dir = format!("/proc/{}/fd", server.pid().unwrap());
    let fds = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let spools = fds.filter(|fd| {
        fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().contains("memfd:output"))
    });
    spools.filter_map(|fd| Some(fs::metadata(fd).ok()?.blocks() * 512)).sum()
}

#[test]
fn arguments_reach_the_program_as_they_are() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let args = ["printf", "%s|", "a", "b  c", "", "*", "$HOME", "\"", "ü\n", "-n", "--help"];
    let out = sandbox.exec(&args);
    assert_eq!(stdout(&out), "a|b  c||*|$HOME|\"|ü\n|-n|--help|");
    let many: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    let mut args = vec!["sh", "-c", "echo $#", "sh"];
    args.extend(many.iter().map(String::as_str));
    assert_eq!(stdout(&sandbox.exec(&args)), "5000\n");
    let long = "x".repeat(100_000);
    assert_eq!(stdout(&sandbox.exec(&["sh", "-c", "echo ${#1}", "sh", &long])), "100000\n");
    // More than the kernel takes for one argument.
    let longer = json!({ "argv": ["true", "x".repeat(200_000)] });
    let path = sandbox.path("/commands");
    let (status, why) = Stream::open(server.socket(), &path, &longer).unwrap_err();
    assert!(status == 422 && why.contains("Argument list too long"), "{status} {why}");
}

#[test]
fn a_line_is_run_by_the_sandboxs_shell() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = server.cli(&["exec", "-c", "x=$(echo 4); echo $((x + 1)) | cat; false", &sandbox.id]);
    assert_eq!((stdout(&out).as_str(), code(&out)), ("5\n", 1));
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let path = sandbox.path("/commands");
    for (body, text) in [
        (json!({}), "no command given"),
        (json!({ "argv": ["a"], "shell": "b" }), "both `argv` and `shell`"),
        (json!({ "argv": ["a\0b"] }), "NUL"),
        (json!({ "argv": ["a"], "env": { "a=b": "c" } }), "no name of a variable"),
        (json!({ "argv": ["a"], "nonsense": 1 }), "nonsense"),
        (json!({ "argv": "a" }), "body: "),
    ] {
        let (status, why) = Stream::open(server.socket(), &path, &body).unwrap_err();
        assert!(status == 400 && why.contains(text), "{body}: {status} {why}");
    }
    let (status, why) = server.post(&path, r#"{"argv":["true"]}"#);
    assert!(status == 400 && String::from_utf8_lossy(&why).contains("Upgrade"), "{why:?}");
    let (status, _) = server.get(&sandbox.path("/commands/77"));
    assert_eq!(status, 404);
    assert!(sandbox.commands().is_empty());
}

#[test]
fn stdin_stdout_and_stderr_carry_any_bytes_apart() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let out = sandbox.exec_with(&["-i"], &["sh", "-c", "tee /dev/stderr"], &bytes);
    assert_eq!(code(&out), 0);
    assert!(
        out.stdout == bytes && out.stderr == bytes,
        "{} {}",
        out.stdout.len(),
        out.stderr.len()
    );
    // Nothing is sent without `-i`.
    let out = sandbox.exec_with(&[], &["cat"], b"unsent");
    assert_eq!((stdout(&out).as_str(), code(&out)), ("", 0));
    let out = sandbox.exec_with(&["-i"], &["cat"], b"");
    assert_eq!((stdout(&out).as_str(), code(&out)), ("", 0));
}

#[test]
fn much_goes_in_and_out_at_the_same_time() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let input = counted(24 << 20);
    let out = sandbox.exec_with(&["-i"], &["cat"], &input);
    assert!(out.stdout == input, "{} bytes", out.stdout.len());
    // A command that does not read all of it is no error.
    let out = sandbox.exec_with(&["-i"], &["head", "-c", "5"], &input);
    assert_eq!((stdout(&out).as_str(), code(&out)), ("0\n1\n2", 0));
}

#[test]
fn a_hundred_mebibytes_pass_in_bounded_memory_however_slowly_they_are_read() {
    const SIZE: usize = 128 << 20;
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let before = resident(server.pid().unwrap());
    let line = format!("{}; echo end >&2; touch /tmp/done", counting(SIZE));
    let mut stream = open(&sandbox, &json!({ "shell": line }));
    let expected = counted(SIZE);
    let (mut at, mut worst) = (0, (0, 0));
    let mut stderr = Vec::new();
    let exit: Exit = loop {
        match stream.next() {
            Some((Kind::Stdout, bytes)) => {
                assert!(expected[at..].starts_with(&bytes), "wrong bytes at {at}");
                at += bytes.len();
            }
            Some((Kind::Stderr, bytes)) => stderr.extend(bytes),
            Some((Kind::Exit, json)) => break serde_json::from_slice(&json).unwrap(),
            other => panic!("{other:?}"),
        }
        if at % (8 << 20) < 70_000 {
            // As slow as a look at the server is.
            let growth = resident(server.pid().unwrap()).saturating_sub(before);
            worst = (growth.max(worst.0), spooled(&server).max(worst.1));
        }
    };
    assert_eq!((at, exit.code, stderr.as_slice()), (SIZE, 0, &b"end\n"[..]));
    assert!(worst.0 < 8 << 20, "the server grew by {} bytes", worst.0);
    assert!(worst.1 > 0 && worst.1 < 8 << 20, "{} bytes of output in memory", worst.1);
}

#[test]
fn a_client_that_reads_nothing_holds_the_command_back() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let size = 32 << 20;
    let line = format!("{}; touch /tmp/done", counting(size));
    let stream = open(&sandbox, &json!({ "shell": line }));
    // The sink is full as soon as the writer no longer gets on.
    let mut last = 0;
    wait_for("the command to be held back", SOON, || {
        std::thread::sleep(Duration::from_millis(100));
        let now = spooled(&server);
        std::mem::replace(&mut last, now) == now && now > 0
    });
    assert!(last < 8 << 20, "{last} bytes of output in memory");
    assert_eq!(code(&sandbox.exec(&["test", "-e", "/tmp/done"])), 1);
    let outcome = stream.finish();
    assert!(outcome.stdout == counted(size), "{} bytes", outcome.stdout.len());
    assert_eq!(code(&sandbox.exec(&["test", "-e", "/tmp/done"])), 0);
}

#[test]
fn a_flood_that_nobody_reads_is_kept_in_bounded_memory() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let before = resident(server.pid().unwrap());
    let size = 96 << 20;
    let command = sandbox.start(&counting(size));
    assert_eq!(sandbox.wait(command).code, 0);
    let growth = resident(server.pid().unwrap()).saturating_sub(before);
    assert!(growth < 8 << 20, "the server grew by {growth} bytes");
    assert!(spooled(&server) < 8 << 20, "{} bytes of output in memory", spooled(&server));
    // The end of it is there.
    let (status, kept) = server.get(&sandbox.path(&format!("/commands/{command}/output")));
    assert_eq!(status, 200);
    assert!(kept.len() >= 1 << 20 && kept.len() < 8 << 20, "{} bytes", kept.len());
    assert!(counted(size).ends_with(&kept));
}

#[test]
fn a_terminal_has_a_size_that_can_change() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut stream = terminal(&sandbox);
    stream.type_in("tty -s && stty size\n");
    stream.until("30 100\r\n");
    stream.type_in("trap 'echo winch $(stty size)' WINCH; echo s''et\n");
    // Before its prompt, readline asks for the size and sets what it was told: for a moment there,
    // another size is lost.
    stream.until("set\r\nready> ");
    stream.resize(50, 132);
    // A shell that was about to read runs the trap with the next key.
    stream.type_in("\n");
    stream.until("winch 50 132\r\n");
    stream.type_in("exit 6\n");
    assert_eq!(stream.finish().exit.code, 6);
}

#[test]
fn a_terminal_has_job_control() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut stream = terminal(&sandbox);
    stream.type_in("sleep 600\n");
    is_there(&sandbox, "sleep 600");
    stream.type_in("\x03");
    stream.until("ready> ");
    stream.type_in("echo st''atus $?\n");
    stream.until("status 130\r\n");
    stream.type_in("sleep 601\n");
    is_there(&sandbox, "sleep 601");
    stream.type_in("\x1a");
    stream.until("Stopped");
    stream.type_in("jobs -r | wc -l; bg; jobs -r\n");
    stream.until("Running");
    stream.type_in("kill %1; wait %1; echo w''aited $?\n");
    stream.until("waited 143\r\n");
    stream.type_in("cat -u\n");
    is_there(&sandbox, "cat -u");
    stream.type_in("echoed\n");
    stream.until("echoed\r\nechoed\r\n");
    stream.type_in("\x04");
    stream.type_in("echo st''atus $?\n");
    // Before its prompt, bash would not see the end: the terminal has another mode then.
    stream.until("status 0\r\nready> ");
    stream.send(Kind::StdinEnd, b"").unwrap();
    assert_eq!(stream.finish().exit.code, 0);
}

/// Waits until a process of the sandbox has these arguments.
#[track_caller]
fn is_there(sandbox: &Sandbox<'_>, arguments: &str) {
    let look = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '";
    wait_for("a process", SOON, || {
        stdout(&sandbox.exec(&["sh", "-c", look])).contains(&format!("{arguments} "))
    });
}

#[test]
fn a_terminal_whose_client_goes_hangs_up() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut stream = terminal(&sandbox);
    stream.type_in("sleep 602\n");
    is_there(&sandbox, "sleep 602");
    drop(stream);
    is_gone(&sandbox, "sleep 602");
    wait_for("the command to be forgotten", SOON, || sandbox.commands().is_empty());
}

#[test]
fn a_command_has_the_variables_directory_and_user_it_is_given() {
    let server = TestServer::start();
    let sandbox = create(&server, &["-e", "A=1", "-e", "B=2", "--workdir", "/usr"]);
    let show = ["sh", "-c", "echo $A $B $C; pwd; id -u; echo $HOME"];
    assert_eq!(stdout(&sandbox.exec(&show)), "1 2\n/usr\n0\n/root\n");
    let out = sandbox.exec_with(&["-e", "B=two words", "-e", "C=3", "-w", "/tmp"], &show, b"");
    assert_eq!(stdout(&out), "1 two words 3\n/tmp\n0\n/root\n");
    refused(
        &sandbox.exec_with(&["-w", "/nowhere"], &["true"], b""),
        125,
        "working directory /nowhere: No such file or directory",
    );
    refused(&sandbox.exec_with(&["-w", "/etc/passwd"], &["true"], b""), 125, "Not a directory");
    refused(&sandbox.exec_with(&["-u", "nobody-here"], &["true"], b""), 125, "user nobody-here");
    if forkyard_testkit::is_single_id() {
        let out = sandbox.exec_with(&["-u", "1000"], &["true"], b"");
        refused(&out, 125, "user 1000");
        skip!("more than one id");
    }
    let out = sandbox.exec_with(&["-u", "1000:1001"], &["sh", "-c", "id -u; id -g"], b"");
    assert_eq!(stdout(&out), "1000\n1001\n");
    let out = sandbox.exec_with(&["-u", "daemon"], &["sh", "-c", "id -un; echo x >/etc/x"], b"");
    assert_eq!((stdout(&out).as_str(), code(&out)), ("daemon\n", 2), "{}", stderr(&out));
}

#[test]
fn a_timeout_kills_the_command_and_all_it_started() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let line = "trap '' TERM; echo begun; sleep 603 & while :; do sleep 0.1; done";
    let before = Instant::now();
    let out = sandbox.exec_with(&["--timeout", "300ms"], &["sh", "-c", line], b"");
    assert_eq!((code(&out), stdout(&out).as_str()), (124, "begun\n"));
    assert!(stderr(&out).contains("its time was up"), "{}", stderr(&out));
    assert!(before.elapsed() >= Duration::from_millis(300));
    is_gone(&sandbox, "sleep 603");
    let out = sandbox.exec_with(&["--timeout", "1h"], &["sh", "-c", "exit 3"], b"");
    assert_eq!(code(&out), 3);
    // One that obeys may still clean up.
    let line = "trap 'echo cleaned; exit 0' TERM; while :; do sleep 0.05; done";
    let out = sandbox.exec_with(&["--timeout", "200ms"], &["sh", "-c", line], b"");
    assert_eq!((code(&out), stdout(&out).as_str()), (124, "cleaned\n"));
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    for status in [0, 1, 2, 42, 124, 125, 126, 127, 128, 200, 255] {
        let out = sandbox.exec(&["sh", "-c", &format!("exit {status}")]);
        assert_eq!((code(&out), stderr(&out).as_str()), (status, ""));
    }
    for signal in [1, 2, 3, 6, 9, 11, 15, 31, 34, 64] {
        let out = sandbox.exec(&["sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!((code(&out), stderr(&out).as_str()), (128 + signal, ""));
    }
    sandbox.sh("printf 'echo x' >/tmp/plain; printf '#!/no/such\\n' >/tmp/bad; chmod +x /tmp/bad");
    refused(&sandbox.exec(&["no-such-program"]), 127, "no-such-program: no such program");
    refused(&sandbox.exec(&["/no/such/program"]), 127, "/no/such/program: no such program");
    refused(&sandbox.exec(&["/tmp/bad"]), 127, "/tmp/bad: no such program");
    refused(&sandbox.exec(&[""]), 127, "no such program");
    refused(&sandbox.exec(&["/tmp/plain"]), 126, "/tmp/plain: Permission denied");
    refused(&sandbox.exec(&["/tmp"]), 126, "/tmp: a directory");
}

#[test]
fn signals_reach_the_whole_command() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let trapping = "trap 'echo usr1; exit 7' USR1; echo up; while :; do sleep 0.02; done";
    let command = sandbox.start(trapping);
    let number = command.to_string();
    wait_for("its trap", SOON, || server.ok(&["logs", &sandbox.id, &number]) == "up\n");
    server.ok(&["kill", "-s", "USR1", &sandbox.id, &number]);
    assert_eq!(sandbox.wait(command).code, 7);
    assert_eq!(server.ok(&["logs", &sandbox.id, &number]), "up\nusr1\n");

    let command = sandbox.start("sleep 604 | sleep 604");
    server.ok(&["kill", &sandbox.id, &command.to_string()]);
    let exit = sandbox.wait(command);
    assert_eq!((exit.code, exit.signal, exit.timed_out), (137, Some(9), false));
    is_gone(&sandbox, "sleep 604");
    // To one that has ended, a signal is no error and does nothing.
    server.ok(&["kill", &sandbox.id, &command.to_string()]);
    let path = sandbox.path(&format!("/commands/{command}/signal"));
    for bad in [0, -1, 65] {
        let (status, why) = server.post(&path, json!({ "signal": bad }).to_string());
        assert_eq!(status, 400, "{why:?}");
    }
    refused(&server.cli(&["kill", &sandbox.id, "99"]), 125, "no such command: 99");
    refused(&server.cli(&["kill", "-s", "NOPE", &sandbox.id, "1"]), 125, "`NOPE` is no signal");
}

#[test]
fn signals_to_the_command_line_are_passed_on() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        // As nohup(1) leaves it, for the command line too.
        if ignored >> (signal.as_raw() - 1) & 1 == 1 {
            continue;
        }
        let child = running(&sandbox, "echo up; exec sleep 605");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{signal:?}: {}", stderr(&out));
    }
    is_gone(&sandbox, "sleep 605");
}

#[test]
fn background_commands_are_listed_waited_for_and_forgotten() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let first = sandbox.start("sleep 606");
    let second = sandbox.start("echo out; echo err >&2; exit 3");
    assert_eq!((first, second), (1, 2));
    assert_eq!(server.ok(&["wait", &sandbox.id, "2"]), "3\n");
    let table = server.ok(&["ps", &sandbox.id]);
    assert!(table.contains("sleep 606") && !table.contains("exit 3"), "{table}");
    let table = server.ok(&["ps", "-a", &sandbox.id]);
    assert!(table.contains("running") && table.contains("exited 3"), "{table}");
    assert_eq!(server.ok(&["ps", "-q", &sandbox.id]), "1\n");
    let out = server.cli(&["logs", &sandbox.id, "2"]);
    assert_eq!((stdout(&out).as_str(), stderr(&out).as_str()), ("out\n", "err\n"));

    let (status, _) = server.delete(&sandbox.path("/commands/1"));
    assert_eq!(status, 409);
    let (status, _) = server.delete(&sandbox.path("/commands/2"));
    assert_eq!(status, 204);
    refused(&server.cli(&["wait", &sandbox.id, "2"]), 125, "no such command: 2");
    // Numbers are not used again.
    assert_eq!(sandbox.start("true"), 3);
}

#[test]
fn a_command_is_attached_to_again_from_any_offset() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.sh("mkfifo /tmp/go");
    let number = sandbox.start("echo 12345; read x </tmp/go; echo 67890; exit 4").to_string();
    wait_for("its output", SOON, || server.ok(&["logs", &sandbox.id, &number]) == "12345\n");
    let attach = |options: &[&'static str]| {
        let mut args = vec!["attach", &sandbox.id, &number];
        args.extend(options);
        let mut command = server.command(&args);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let clients = [attach(&[]), attach(&["--stdout", "3"])];
    let mut late = Stream::attach(
        server.socket(),
        &sandbox.path(&format!("/commands/{number}/attach?stdout=5")),
    )
    .unwrap();
    assert_eq!(late.until("\n"), "\n");
    // A client that goes leaves it running.
    drop(late);
    sandbox.sh("echo >/tmp/go");
    let outs = clients.map(|child| child.wait_with_output().unwrap());
    assert_eq!(outs.each_ref().map(stdout), ["12345\n67890\n", "45\n67890\n"]);
    assert_eq!(outs.each_ref().map(code), [4, 4]);
    // Still when it has ended.
    let out = server.cli(&["attach", &sandbox.id, &number]);
    assert_eq!((stdout(&out).as_str(), code(&out)), ("12345\n67890\n", 4));
}

#[test]
fn ended_commands_are_remembered_up_to_a_number() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    for n in 0..90 {
        let command = sandbox.start(&format!("echo {n}"));
        sandbox.wait(command);
    }
    let kept = sandbox.commands();
    assert!((32..=66).contains(&kept.len()), "{}", kept.len());
    assert_eq!(server.ok(&["logs", &sandbox.id, "90"]), "89\n");
    let pid = sandbox.inspect().pid.unwrap();
    if forkyard_testkit::is_root() {
        wait_for("init to forget them too", SOON, || support::open_fds(pid) < 66 * 5 + 40);
    }
}

#[test]
fn a_command_ends_with_its_client() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut child = running(&sandbox, "trap '' TERM HUP; echo up; sleep 607; sleep 607");
    child.kill().unwrap();
    child.wait().unwrap();
    is_gone(&sandbox, "sleep 607");
    wait_for("the command to be forgotten", SOON, || sandbox.commands().is_empty());
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_flood_stops_it() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut child = running(&sandbox, "echo up; exec cat /dev/zero");
    let mut some = vec![0; 1 << 20];
    child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    // As `| head` does: the command line ends, by its next write.
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), stderr(&out).as_str()), (Some(141), ""));
    is_gone(&sandbox, "cat /dev/zero");
}

#[test]
fn a_client_that_sends_nonsense_is_cut_off() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    for frame in [(Kind::Exit, &b"{}"[..]), (Kind::Signal, b"nonsense"), (Kind::Resize, b"[]")] {
        let mut stream = open(&sandbox, &json!({ "argv": ["sleep", "608"], "stdin": true }));
        stream.send(frame.0, frame.1).unwrap();
        is_gone(&sandbox, "sleep 608");
        assert!(stream.part().is_none());
    }
    assert_eq!(sandbox.sh("echo unharmed"), "unharmed\n");
}

#[test]
fn a_command_that_closes_its_stdio_still_has_an_exit_code() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let line = "echo last; exec <&- >&- 2>&-; sleep 0.3; exit 9";
    let out = sandbox.exec(&["sh", "-c", line]);
    assert_eq!((stdout(&out).as_str(), code(&out)), ("last\n", 9));
}

#[test]
fn a_child_that_keeps_stdout_open_does_not_keep_the_client() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let before = Instant::now();
    let out = sandbox.exec(&["sh", "-c", "setsid sleep 609 & echo done; exit 2"]);
    assert_eq!((stdout(&out).as_str(), code(&out)), ("done\n", 2));
    assert!(before.elapsed() < SOON);
    is_there(&sandbox, "sleep 609");
}

#[test]
fn orphans_are_reaped() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.sh("for n in 1 2 3 4 5 6 7 8; do (setsid sh -c 'sh -c \"exit 3\" & exit' &); done");
    let look = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    wait_for("no zombie", SOON, || sandbox.sh(look) == "0\n");
}

#[test]
fn many_commands_at_once_keep_their_output_apart() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    std::thread::scope(|scope| {
        for n in 0..12 {
            let sandbox = sandbox.clone();
            scope.spawn(move || {
                let line = format!("for i in 1 2 3 4 5; do echo {n}; sleep 0.01; done; exit {n}");
                let out = sandbox.exec(&["sh", "-c", &line]);
                assert_eq!((stdout(&out), code(&out)), (format!("{n}\n").repeat(5), n));
            });
        }
    });
}

#[test]
fn a_command_of_a_removed_sandbox_ends_for_its_client() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let child = running(&sandbox, "echo up; exec sleep 610");
    let init = Process::of(sandbox.inspect().pid.unwrap()).unwrap();
    server.ok(&["rm", &sandbox.id]);
    wait_for("the end of init", SOON, || !init.lives());
    let out = wait_some("the client's end", SOON, {
        let mut child = Some(child);
        move || {
            child.as_mut()?.try_wait().unwrap()?;
            child.take()?.wait_with_output().ok()
        }
    });
    assert_eq!(out.status.code(), Some(137), "{}", stderr(&out));
}
