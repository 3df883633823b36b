//! The persistent shell of a sandbox, line by line, through the real server.

#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use forkyard_testkit::{ImageDir, TestServer, image_dir, skip};
use support::{Sandbox, create, open_fds, resident};

/// An image whose shell is the host's dash.
fn dash_image(server: &TestServer) -> Option<ImageDir> {
    let dash = forkyard_testkit::find_program("dash")?;
    let image = image_dir();
    std::fs::remove_file(image.path().join("bin/sh")).unwrap();
    image.program("sh", &dash);
    server.ok(&["image", "import", image.path().to_str().unwrap(), "dash"]);
    Some(image)
}

/// Runs a test in a bash and in a dash session.
fn in_both(test: impl Fn(&Sandbox<'_>)) {
    let server = TestServer::start();
    test(&create(&server, &[]));
    if let Some(_image) = dash_image(&server) {
        test(&create(&server, &["dash"]));
    }
}

#[test]
fn state_carries_from_one_line_to_the_next() {
    in_both(|sandbox| {
        sandbox.say("cd /tmp; x='a  b'; export y=2; f() { echo \"f $1\"; }; umask 027");
        assert_eq!(
            sandbox.say("pwd; echo \"$x\"; f 3; umask; sh -c 'echo $y'"),
            "/tmp\na  b\nf 3\n0027\n2\n"
        );
        sandbox.say("alias hello='echo aliased'");
        assert_eq!(sandbox.say("hello world"), "aliased world\n");
        sandbox.say("set -- one two");
        assert_eq!(sandbox.say("unset x; echo \"${x-gone}\""), "gone\n");
    });
}

#[test]
fn the_last_status_is_seen_by_the_next_line() {
    in_both(|sandbox| {
        assert_eq!(sandbox.line("(exit 7)").exit_code, 7);
        assert_eq!(sandbox.say("echo $?"), "7\n");
        assert_eq!(sandbox.say("echo $?"), "0\n");
        assert_eq!(sandbox.line("false").exit_code, 1);
        assert_eq!(sandbox.line("sh -c 'kill -9 $$'").exit_code, 137);
        assert_eq!(sandbox.line("no-such-program-here").exit_code, 127);
        assert_eq!(sandbox.line("/etc/passwd").exit_code, 126);
    });
}

#[test]
fn background_jobs_live_on_and_are_waited_for() {
    in_both(|sandbox| {
        let before = Instant::now();
        sandbox.line("mkfifo /tmp/go; sh -c 'read x </tmp/go; exit 5' & echo started");
        assert!(before.elapsed() < Duration::from_secs(10));
        let pid = sandbox.say("echo $!");
        assert!(pid.trim().parse::<u32>().is_ok(), "{pid}");
        let out = sandbox.line("kill -0 $! && echo x >/tmp/go; wait $!");
        assert_eq!(out.exit_code, 5, "{out:?}");
    });
}

#[test]
fn what_a_background_job_writes_comes_with_a_later_line() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.line("mkfifo /tmp/go; (read x </tmp/go; echo from behind) &");
    assert_eq!(sandbox.say("echo x >/tmp/go; wait"), "from behind\n");
}

#[test]
fn lines_may_have_any_form_of_shell() {
    in_both(|sandbox| {
        assert_eq!(
            sandbox.say("echo one\necho two\nfor i in 3 4\ndo echo $i\ndone\n"),
            "one\ntwo\n3\n4\n"
        );
        assert_eq!(
            sandbox.say("cat <<END\nhello $((1+1))\nEND\ncat <<'END'\n$x\nEND"),
            "hello 2\n$x\n"
        );
        assert_eq!(
            sandbox.say("echo 'a\"b' \"c'd\" e\\ f 'multi\nline'"),
            "a\"b c'd e f multi\nline\n"
        );
        assert_eq!(sandbox.say("printf 'no newline'"), "no newline");
        assert_eq!(sandbox.say(""), "");
        assert_eq!(sandbox.say("   \n\n  "), "");
        assert_eq!(sandbox.say("# only a comment"), "");
        assert_eq!(sandbox.say("echo ünïcödé → 日本"), "ünïcödé → 日本\n");
        let long = "x".repeat(200_000);
        assert_eq!(sandbox.say(&format!("v={long}; echo ${{#v}}")), "200000\n");
        let out = sandbox.line("echo out; echo err >&2");
        assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
    });
}

#[test]
fn a_line_that_prints_what_looks_like_a_marker_is_not_mistaken_for_its_end() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = sandbox.line("echo '1 0 0' >&252; echo nonsense >&252; echo done; (exit 9)");
    assert_eq!((out.stdout.as_str(), out.exit_code), ("done\n", 9));
    assert_eq!(sandbox.say("echo still here"), "still here\n");
}

#[test]
fn binary_output_comes_in_base64_too() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = sandbox.line(r"printf '\377\000\001'; printf '\376' >&2");
    let decode = |text: Option<String>| {
        base64::engine::general_purpose::STANDARD.decode(text.unwrap()).unwrap()
    };
    assert_eq!(decode(out.stdout_base64), b"\xff\0\x01");
    assert_eq!(decode(out.stderr_base64), b"\xfe");
    assert_eq!(sandbox.line("echo text").stdout_base64, None);
}

#[test]
fn output_beyond_the_limit_is_dropped_and_said_to_be() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = sandbox.line("head -c 52428800 /dev/zero | tr '\\0' x; echo behind >&2; (exit 3)");
    assert!(out.truncated);
    assert_eq!((out.exit_code, out.stderr.as_str()), (3, "behind\n"));
    assert_eq!(out.stdout.len(), 16 << 20);
    assert!(!sandbox.line("echo small").truncated);
    let whole = sandbox.line("head -c 10000000 /dev/zero | tr '\\0' y");
    assert!(!whole.truncated && whole.stdout.len() == 10_000_000);
}

#[test]
fn a_line_that_reads_stdin_gets_end_of_file() {
    in_both(|sandbox| {
        let out = sandbox.line("cat; read x; echo \"status $?\"");
        assert_eq!(out.stdout, "status 1\n");
    });
}

#[test]
fn a_syntax_error_is_told_and_the_session_lives() {
    in_both(|sandbox| {
        sandbox.say("kept=yes");
        for line in ["if then", "echo 'open", "echo $(", "for", "}", ")"] {
            let out = sandbox.line(line);
            assert_ne!(out.exit_code, 0, "{line}: {out:?}");
            assert!(!out.stderr.is_empty(), "{line}: {out:?}");
            assert!(!out.shell_ended, "{line}: {out:?}");
        }
        assert_eq!(sandbox.say("echo $kept"), "yes\n");
    });
}

#[test]
fn exit_ends_the_shell_with_its_code_and_all_its_output() {
    in_both(|sandbox| {
        sandbox.say("x=1");
        let out = sandbox.line("seq 1 20000; echo bye >&2; exit 3");
        assert_eq!((out.exit_code, out.shell_ended), (3, true), "{}", out.stderr);
        assert!(out.stdout.ends_with("\n20000\n"), "{} bytes", out.stdout.len());
        assert_eq!(out.stderr, "bye\n");
        let next = sandbox.line("echo \"${x-fresh}\"");
        assert_eq!((next.stdout.as_str(), next.shell_ended), ("fresh\n", false));
    });
}

#[test]
fn exec_replaces_the_shell_for_good() {
    in_both(|sandbox| {
        let out = sandbox.line("exec echo replaced");
        assert_eq!((out.stdout.as_str(), out.exit_code, out.shell_ended), ("replaced\n", 0, true));
        assert_eq!(sandbox.say("echo next"), "next\n");
        sandbox.say("exec 2>/dev/null");
        assert_eq!(sandbox.line("echo hidden >&2").stderr, "");
    });
}

#[test]
fn a_killed_shell_is_told_by_its_signal_and_replaced() {
    in_both(|sandbox| {
        let out = sandbox.line("echo before; kill -9 $$; sleep 5");
        assert_eq!((out.stdout.as_str(), out.exit_code, out.shell_ended), ("before\n", 137, true));
        assert_eq!(sandbox.say("echo after"), "after\n");
        // Killed between two lines, by somebody else.
        let pid = sandbox.say("echo $$");
        sandbox.sh(&format!("kill -9 {pid}"));
        let next = sandbox.line("echo next");
        assert!(next.stdout == "next\n" || next.shell_ended, "{next:?}");
        assert_eq!(sandbox.say("echo new"), "new\n");
    });
}

#[test]
fn set_e_ends_the_shell_at_the_first_failure() {
    in_both(|sandbox| {
        sandbox.say("set -e");
        let out = sandbox.line("echo first; false; echo second");
        assert_eq!((out.stdout.as_str(), out.exit_code, out.shell_ended), ("first\n", 1, true));
        assert_eq!(sandbox.say("echo new"), "new\n");
    });
}

/// The line is interrupted in time, and the session keeps its state.
#[track_caller]
fn times_out(sandbox: &Sandbox<'_>, line: &str) {
    sandbox.say("kept=yes");
    let before = Instant::now();
    let out = sandbox.line_within(Duration::from_millis(200), line);
    assert!(before.elapsed() < Duration::from_secs(10), "{line}: {:?}", before.elapsed());
    assert!(out.timed_out && out.exit_code == 124, "{line}: {out:?}");
    assert!(!out.shell_ended, "{line}: {out:?}");
    let next = sandbox.line("echo $kept $?");
    assert_eq!(next.stdout, "yes 124\n", "{line}: {next:?}");
}

#[test]
fn a_timeout_ends_an_external_command() {
    in_both(|sandbox| times_out(sandbox, "echo begun; sleep 600"));
}

#[test]
fn a_timeout_ends_a_loop_of_builtins() {
    in_both(|sandbox| times_out(sandbox, "while :; do :; done"));
}

#[test]
fn a_timeout_ends_a_loop_of_commands() {
    in_both(|sandbox| times_out(sandbox, "while :; do sleep 0.05; done"));
}

/// Each function calls the next in a loop: to leave one of them is not enough.
const NESTED: &str = "a() { while :; do b; done; }; b() { while :; do c; done; }; \
                      c() { while :; do :; done; }; a; echo not reached";

#[test]
fn a_timeout_ends_nested_functions() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    times_out(&sandbox, NESTED);
    // What interrupts them is gone with them.
    assert_eq!(
        sandbox.say("f() { echo in; }; f; trap -p DEBUG; shopt -q extdebug; echo $?"),
        "in\n1\n"
    );
    times_out(&sandbox, NESTED);
}

#[test]
fn a_timeout_of_nested_functions_ends_a_posix_shell_at_worst() {
    let server = TestServer::start();
    let Some(_image) = dash_image(&server) else { skip!("dash") };
    let sandbox = create(&server, &["dash"]);
    let out = sandbox.line_within(Duration::from_millis(200), NESTED);
    assert!(out.timed_out && out.exit_code == 124 && out.stdout.is_empty(), "{out:?}");
    assert_eq!(sandbox.say("echo next"), "next\n");
}

#[test]
fn a_timeout_ends_a_command_that_ignores_sigterm() {
    in_both(|sandbox| {
        times_out(sandbox, "sh -c 'trap \"\" TERM INT HUP; while :; do sleep 0.1; done'");
    });
}

#[test]
fn a_timeout_ends_a_subshell_and_a_pipeline() {
    in_both(|sandbox| {
        times_out(sandbox, "(while :; do :; done)");
        times_out(sandbox, "sleep 600 | sleep 600 | cat");
        times_out(sandbox, "x=$(sleep 600)");
    });
}

#[test]
fn what_a_timed_out_line_wrote_is_given() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out =
        sandbox.line_within(Duration::from_millis(300), "echo begun; echo err >&2; sleep 600");
    assert_eq!((out.stdout.as_str(), out.timed_out), ("begun\n", true));
    assert!(out.stderr.starts_with("err\n"), "{}", out.stderr);
}

#[test]
fn earlier_background_jobs_survive_a_timeout() {
    in_both(|sandbox| {
        sandbox.line("sleep 600 & early=$!");
        times_out(sandbox, "sleep 500 & sleep 600");
        assert_eq!(sandbox.say("kill -0 $early && echo alive"), "alive\n");
    });
}

#[test]
fn a_timed_out_line_leaves_no_process_of_its_own() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    times_out(&sandbox, "sh -c 'sleep 654 & sleep 655'");
    let left = sandbox.sh("ps -eo args | grep -c '[s]leep 65' || true");
    assert_eq!(left.trim(), "0");
}

#[test]
fn lines_of_two_clients_run_one_after_the_other() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    thread::scope(|scope| {
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let sandbox = sandbox.clone();
                scope.spawn(move || sandbox.say(&format!("x={n}; sleep 0.02; echo $x {n}")))
            })
            .collect();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.join().unwrap(), format!("{n} {n}\n"));
        }
    });
}

#[test]
fn a_session_runs_as_the_sandboxs_user_in_its_directory_with_its_variables() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--workdir", "/usr", "-e", "A=b c"]);
    assert_eq!(sandbox.say("pwd; echo \"$A\""), "/usr\nb c\n");
    if forkyard_testkit::is_single_id() {
        skip!("more than one id");
    }
    let sandbox = create(&server, &["--user", "1000:1000"]);
    assert_eq!(sandbox.say("id -u; id -g"), "1000\n1000\n");
    times_out(&sandbox, "sleep 600");
}

#[test]
fn a_session_is_ended_on_request_and_made_anew() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    sandbox.say("x=1");
    let (status, _) = server.delete(&sandbox.path("/session"));
    assert_eq!(status, 204);
    assert_eq!(sandbox.say("echo ${x-none}"), "none\n");
}

#[test]
fn ten_thousand_lines_leave_server_and_init_as_they_were() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let init = sandbox.inspect().pid.unwrap();
    let http = server.http();
    let body = r#"{"command":"echo hello"}"#;
    let run = |count: usize| {
        for _ in 0..count {
            let (status, answer) = http.post(&sandbox.path("/session"), body);
            assert_eq!(status, 200);
            assert!(answer.starts_with(br#"{"exit_code":0,"stdout":"hello\n""#), "{answer:?}");
        }
    };
    run(500);
    let pid = server.pid().unwrap();
    let look = || (open_fds(pid), resident(pid), resident(init));
    let before = look();
    run(10_000);
    let after = look();
    assert!(after.0 <= before.0 + 2, "descriptors: {before:?} {after:?}");
    assert!(after.1 < before.1 + (4 << 20), "memory: {before:?} {after:?}");
    assert!(after.2 < before.2 + (1 << 20), "memory of init: {before:?} {after:?}");
}

#[test]
fn a_sandbox_without_a_shell_says_so() {
    let server = TestServer::start();
    let image = image_dir();
    let bin = image.path().join("bin");
    // `cat` stays.
    for entry in std::fs::read_dir(&bin).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "sh" || name == "bash" || name == "ash" {
            std::fs::remove_file(&path).unwrap();
        }
    }
    server.ok(&["image", "import", image.path().to_str().unwrap(), "shell-less"]);
    let sandbox = create(&server, &["shell-less"]);
    let (status, why) = sandbox.try_line("echo x", None).unwrap_err();
    assert_eq!(status, 422, "{why}");
    assert!(why.contains("shell"), "{why}");
    assert_eq!(sandbox.exec(&["cat", "/etc/group"]).status.code(), Some(0));
    support::refused(&server.cli(&["exec", "-c", "echo x", &sandbox.id]), 125, "shell");
}

#[test]
fn a_line_with_a_nul_byte_is_refused() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let (status, why) = sandbox.try_line("echo a\0b", None).unwrap_err();
    assert_eq!(status, 400, "{why}");
}

#[test]
fn a_shell_given_lines_on_stdin_runs_them() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let out = server.cli_with_input(&["shell", &sandbox.id], b"x=1\necho $x\nexit 4\n");
    assert_eq!((support::stdout(&out).as_str(), support::code(&out)), ("1\n", 4));
}
