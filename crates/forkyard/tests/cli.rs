//! What only the command line itself does: its help, its scripts, its listings for programs, its
//! words when something is wrong, terminals, copies, and the end of the server.

#![allow(clippy::unwrap_used)]

#[path = "support/pty.rs"]
mod pty;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use forkyard_testkit::{TestServer, binary, find_program, finish, skip, wait_for};
use pty::Pty;
use serde_json::Value;
use support::{SOON, code, create, refused, stderr, stdout};

/// `forkyard ARGS` without any server, and without one being started.
fn alone(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.env("FORKYARD_STORE", "/nonexistent/forkyard");
    command.env("FORKYARD_SOCKET", "/nonexistent/forkyard/sock");
    finish(command.args(args).env("NO_COLOR", "1"), b"")
}

/// The names that a help text lists below `Commands:`.
fn commands_of(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = lines.take_while(|line| !line.is_empty());
    // What is indented further goes on with the line above.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Every command line that has a help text: `[]`, `["run"]`, `["image", "pull"]` ...
fn command_lines() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        let help = [path.clone(), vec!["--help".to_owned()]].concat();
        let args: Vec<&str> = help.iter().map(String::as_str).collect();
        let listed = commands_of(&stdout(&alone(&args)));
        let below = listed.into_iter().filter(|name| name != "help");
        found.extend(below.map(|name| [path.clone(), vec![name]].concat()));
        at += 1;
    }
    found
}

#[test]
fn the_commands_are_these() {
    let help = stdout(&alone(&["--help"]));
    insta::assert_snapshot!(commands_of(&help).join(" "), @"run create exec shell ls inspect logs top ps wait attach kill cp diff fork snapshot snapshots pause resume reset rm image quickstart serve key stop doctor bench completion man version help");
    let image = stdout(&alone(&["image", "--help"]));
    insta::assert_snapshot!(commands_of(&image).join(" "), @"pull import ls inspect prune rm help");
}

#[test]
fn every_command_explains_itself_within_the_width_of_a_screen() {
    let lines = command_lines();
    assert!(lines.len() > 25, "{lines:?}");
    for path in lines {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let out = alone(&args);
        let text = stdout(&out);
        assert_eq!((code(&out), stderr(&out).as_str()), (0, ""), "{path:?}");
        let usage =
            format!("Usage: {}", [vec!["forkyard".to_owned()], path.clone()].concat().join(" "));
        assert!(text.contains(&usage), "{path:?}: {text}");
        let long = text.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None, "{path:?}");
    }
}

#[test]
fn completion_scripts_name_every_command_and_are_read_by_their_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&alone(&["completion", shell]));
        for word in ["forkyard", "quickstart", "image", "inspect", "--memory"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(script.contains(word), "{shell}: no `{word}`");
        }
    }
    // fish and zsh read theirs with the same option, where they are installed.
    for shell in ["bash", "zsh", "fish"] {
        let Some(program) = find_program(shell) else { continue };
        let script = alone(&["completion", shell]).stdout;
        let out = finish(Command::new(program).arg("-n"), &script);
        assert_eq!((code(&out), stderr(&out).as_str()), (0, ""), "{shell}");
    }
    refused(&alone(&["completion", "tcsh"]), 125, "tcsh");
}

#[test]
fn bash_completes_with_the_script() {
    let Some(bash) = find_program("bash") else { skip!("bash") };
    let script = stdout(&alone(&["completion", "bash"]));
    let try_it = "COMP_WORDS=(forkyard image in) COMP_CWORD=2; \
                  _forkyard forkyard in image; echo \"${COMPREPLY[@]}\"";
    let out = finish(Command::new(bash).arg("-c").arg(format!("{script}\n{try_it}")), b"");
    assert_eq!(stdout(&out).trim(), "inspect", "{}", stderr(&out));
}

#[test]
fn a_manual_page_is_written_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("made/when/missing");
    let out = alone(&["man", pages.to_str().unwrap()]);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    for path in command_lines() {
        let name = [vec!["forkyard".to_owned()], path].concat().join("-");
        let page = fs::read_to_string(pages.join(format!("{name}.1"))).expect(&name);
        assert!(page.contains(".TH") && page.contains(".SH SYNOPSIS"), "{name}");
    }
    assert!(!pages.join("forkyard-bench-floor.1").exists(), "what is hidden has no page");
    assert!(stdout(&alone(&["man"])).contains(".SH SYNOPSIS"));
    refused(&alone(&["man", "/proc/nowhere"]), 125, "write manual pages to /proc/nowhere");
}

#[test]
fn mistakes_are_told_in_a_line_with_what_to_do() {
    for (args, text, hint) in [
        (&["lss"][..], "unrecognized subcommand 'lss'", "`ls`"),
        (&["image", "pul", "x"], "unrecognized subcommand 'pul'", "`pull`"),
        (
            &["run", "host", "echo"],
            "unexpected argument 'echo'",
            "`forkyard run [IMAGE] -- CMD...`",
        ),
        (&["run"], "no command", "`forkyard run -- CMD...`"),
        (&["exec"], "required arguments", "`forkyard exec --help`"),
        (&["ls", "--jsn"], "'--jsn'", "`--json`"),
        (&["stop", "--keep", "--force"], "cannot be used with", "`forkyard stop --help`"),
        (&["run", "-it", "--", "sh"], "stdin is no terminal", "-i alone"),
        (&["run", "-p", "80:80", "--", "true"], "'-p'", "`forkyard run --help`"),
        (&["cp", "a", "b"], "no side is in a sandbox", "ID:PATH"),
        (&["cp", "a:/x", "b:/y"], "both sides are in sandboxes", "pipe them"),
    ] {
        let out = alone(args);
        refused(&out, 125, text);
        assert!(stderr(&out).contains("hint: ") && stderr(&out).contains(hint), "{}", stderr(&out));
    }
    for (args, text) in [
        (&["create", "--memory", "lots"][..], "write 512m or 2g"),
        (&["create", "--memory", "1m"], "4m at least"),
        (&["create", "--cpus", "0"], "write 0.5 or 2"),
        (&["create", "--timeout", "soon"], "write 30s, 5m or 1h30m"),
        (&["create", "--net", "all"], "write none or host"),
        (&["create", "--volume", "/only"], "write SRC:DST"),
        (&["kill", "x", "1", "-s", "NOPE"], "write TERM, SIGTERM or 15"),
        (&["create", "--env", "=x"], "write K=V"),
        (&["create", "--pids", "0"], "0"),
    ] {
        refused(&alone(args), 125, text);
    }
}

#[test]
fn a_place_where_no_server_can_be_is_named() {
    let mut command = Command::new(binary());
    command.args(["ls", "--store", "/proc/nowhere", "--socket", "/proc/nowhere/sock"]);
    let out = finish(&mut command, b"");
    assert_eq!(code(&out), 125);
    assert!(stderr(&out).contains("/proc/nowhere"), "{}", stderr(&out));
    let long = format!("/tmp/{}", "x".repeat(200));
    let mut command = Command::new(binary());
    command.args(["ls", "--store", "/tmp/unused", "--socket", &long]);
    refused(&finish(&mut command, b""), 125, "xxx");
    assert!(!Path::new("/tmp/unused").exists(), "nothing is made before all is known to be well");
}

#[test]
fn every_listing_can_be_read_by_a_program() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--name", "box", "--label", "k=v"]);
    assert_eq!(code(&sandbox.exec(&["true"])), 0);
    let background = sandbox.start("sleep 600").to_string();
    let ended = sandbox.start("exit 3").to_string();
    let id = sandbox.id.as_str();
    sandbox.wait(ended.parse().unwrap());
    let listings: [&[&str]; 13] = [
        &["ls", "--json"],
        &["ls", "-a", "--json"],
        &["inspect", "--json", "box", id],
        &["ps", "--json", id],
        &["ps", "-a", "--json", id],
        &["wait", "--json", id, &ended],
        &["top", "--json"],
        &["top", "--json", "-n", "1"],
        &["image", "ls", "--json"],
        &["image", "inspect", "--json", "host"],
        &["version", "--json"],
        &["create", "--json", "--name", "other"],
        &["doctor", "--json"],
    ];
    for args in listings {
        let out = server.cli(args);
        let text = stdout(&out);
        let json: Result<Value, _> = serde_json::from_str(&text);
        assert!(json.is_ok(), "{args:?}: {text}{}", stderr(&out));
        assert!(text.ends_with('\n') && !text.contains('\x1b'), "{args:?}: {text}");
    }
    let events = server.ok(&["logs", "--json", id]);
    assert!(events.lines().count() >= 2, "{events}");
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["sandbox"], id);
    }
    // For people and for `xargs`.
    assert_eq!(server.ok(&["ps", "-q", id]), format!("{background}\n"));
    assert_eq!(server.ok(&["ls", "-q"]).lines().next(), Some(id));
    let table = server.ok(&["ls"]);
    assert!(table.starts_with("ID ") && table.contains("box"), "{table}");
    refused(&server.cli(&["ls", "-q", "--json"]), 125, "cannot be used with");
}

#[test]
fn a_reader_that_goes_away_ends_a_listing_quietly() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let number = sandbox.start("seq 1 200000").to_string();
    sandbox.wait(number.parse().unwrap());
    let mut command = server.command(&["logs", &sandbox.id, &number]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    // As a program that SIGPIPE ends is told by a shell.
    assert_eq!((code(&out), stderr(&out).as_str()), (141, ""));
}

#[test]
fn a_command_line_of_any_length_the_kernel_takes_is_run() {
    let server = TestServer::start();
    let many: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    let mut args = vec!["run", "-e", "TEXT", "--", "sh", "-c", "echo $# ${#TEXT}", "sh"];
    args.extend(many.iter().map(String::as_str));
    let mut command = server.command(&args);
    let out = finish(command.env("TEXT", "x".repeat(100_000)), b"");
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "20000 100000\n"), "{}", stderr(&out));
}

#[test]
fn versions_of_both_ends_are_told() {
    let server = TestServer::start();
    let versions: Value = serde_json::from_str(&server.ok(&["version", "--json"])).unwrap();
    assert_eq!(versions["client"], env!("CARGO_PKG_VERSION"));
    assert_eq!(versions["server"]["pid"], server.pid().unwrap());
    assert!(server.ok(&["version"]).contains("Server:"));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none");
    let mut command = Command::new(binary());
    command.args(["version", "--socket", socket.to_str().unwrap()]);
    let out = finish(&mut command, b"");
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    // Asking starts no server.
    assert!(stdout(&out).contains("none runs"), "{}", stdout(&out));
    assert!(!socket.exists());
}

#[test]
fn a_server_is_stopped_with_its_sandboxes_kept() {
    let mut server = TestServer::start();
    let id = create(&server, &[]).id;
    server.ok(&["exec", &id, "--", "sh", "-c", "echo here >/tmp/mark"]);
    let out = server.cli(&["stop"]);
    refused(&out, 125, "stopping the server: 1 sandbox runs");
    assert!(stderr(&out).contains("--keep") && stderr(&out).contains("--force"));
    assert_eq!(server.ok(&["stop", "--keep"]), "");
    let gone = server.socket().to_owned();
    wait_for("the end of the server", SOON, || !gone.exists());
    let out = server.cli(&["stop"]);
    assert_eq!((code(&out), stderr(&out).as_str()), (0, "no server runs\n"));
    server.restart();
    assert_eq!(server.ok(&["exec", &id, "--", "cat", "/tmp/mark"]), "here\n");
}

#[test]
fn a_run_that_is_over_is_in_nobodys_way() {
    let mut server = TestServer::start();
    // The sandbox goes after its command's end is told: neither its name nor the server waits.
    for _ in 0..5 {
        assert_eq!(server.ok(&["run", "--name", "same", "--", "echo", "x"]), "x\n");
    }
    assert_eq!(server.ok(&["stop"]), "");
    server.restart();
}

#[test]
fn a_shell_on_a_terminal_has_job_control_size_and_the_exit_code() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let mut terminal = Pty::start(&server.command(&["shell", &sandbox.id]));
    terminal.press("echo $((6 * 7))-$(tty)\n");
    terminal.until("42-/dev/pts/");
    assert!(terminal.is_raw(), "keys go to the sandbox as they are pressed");
    terminal.press("stty size; echo size-$?\n");
    terminal.until("24 80");
    terminal.resize(40, 132);
    terminal.press("until [ \"$(stty size)\" = '40 132' ]; do :; done; echo re''sized\n");
    terminal.until("resized");
    // Ctrl-C ends what runs in there, and nothing here.
    terminal.press("sleep 600; echo status-$?\n");
    wait_for("the command", SOON, || sandbox.sh("ps ax || ps").contains("sleep 600"));
    terminal.press("\x03");
    terminal.press("echo af''ter\n");
    terminal.until("after");
    terminal.press("sleep 500\n");
    wait_for("the command", SOON, || sandbox.sh("ps ax || ps").contains("sleep 500"));
    terminal.press("\x1a");
    terminal.press("jobs; kill %1; exit 3\n");
    terminal.until("Stopped");
    // A shell warns of stopped jobs once.
    terminal.press("exit 3\n");
    let (status, shown) = terminal.finish();
    assert_eq!(status.code(), Some(3), "{shown}");
}

#[test]
fn the_terminal_is_as_before_after_a_shell() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let script = "\"$0\" shell \"$1\"; stty -a; echo end";
    let mut command = server.prepare("sh");
    command.args(["-c", script]).arg(binary()).arg(&sandbox.id);
    let mut terminal = Pty::start(&command);
    terminal.press("echo in''side\n");
    terminal.until("inside");
    terminal.press("exit\n");
    terminal.until("end\r\n");
    let (_, shown) = terminal.finish();
    assert!(shown.contains(" icanon") && shown.contains(" echo "), "{shown}");
    // An error restores it too: the sandbox goes away under the shell.
    let mut terminal = Pty::start(&command);
    terminal.press("echo in''side\n");
    terminal.until("inside");
    server.ok(&["rm", &sandbox.id]);
    terminal.until("end\r\n");
    let (_, shown) = terminal.finish();
    assert!(shown.contains(" icanon") && shown.contains(" echo "), "{shown}");
}

#[test]
fn a_shell_without_a_terminal_takes_lines_from_stdin() {
    let server = TestServer::start();
    let sandbox = create(&server, &[]);
    let lines = b"cd /tmp\npwd\nread x\nhello\necho $x\nexit 4\n";
    let out = server.cli_with_input(&["shell", "-e", "A=b", &sandbox.id], lines);
    assert_eq!((code(&out), stdout(&out).as_str()), (4, "/tmp\nhello\n"), "{}", stderr(&out));
    let out = server.cli_with_input(&["shell", "-w", "/usr", &sandbox.id], b"pwd\n");
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "/usr\n"), "{}", stderr(&out));
    refused(&server.cli(&["shell", "nobody"]), 125, "no such sandbox: nobody");
}

#[test]
fn files_and_trees_are_copied_both_ways() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--name", "box"]);
    let here = server.dir().join("here");
    fs::create_dir_all(here.join("sub/empty")).unwrap();
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(here.join("sub/data"), &bytes).unwrap();
    fs::write(here.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(here.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("sub/data", here.join("link")).unwrap();
    let path = here.to_str().unwrap();

    // Into a directory, as a new name, and the contents alone.
    server.ok(&["cp", path, "box:/srv"]);
    server.ok(&["cp", path, "box:/srv/renamed"]);
    server.ok(&["cp", &format!("{path}/."), "box:/mnt"]);
    for tree in ["/srv/here", "/srv/renamed", "/mnt"] {
        let seen = sandbox.sh(&format!(
            "cd {tree}; wc -c <sub/data; stat -c %a run.sh; readlink link; ls -d sub/empty"
        ));
        assert_eq!(seen, "300000\n750\nsub/data\nsub/empty\n", "{tree}");
    }
    // A link itself, and what it leads to.
    let link = format!("{path}/link");
    server.ok(&["cp", &link, "box:/srv/as-link"]);
    server.ok(&["cp", "-L", &link, "box:/srv/as-file"]);
    assert_eq!(sandbox.sh("readlink /srv/as-link; wc -c </srv/as-file"), "sub/data\n300000\n");

    // And back.
    let back = server.dir().join("back");
    server.ok(&["cp", "box:/srv/here", back.to_str().unwrap()]);
    assert_eq!(fs::read(back.join("sub/data")).unwrap(), bytes);
    assert_eq!(fs::metadata(back.join("run.sh")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("sub/data"));
    assert!(back.join("sub/empty").is_dir());
    let single = back.join("single");
    server.ok(&["cp", "box:/srv/here/sub/data", single.to_str().unwrap()]);
    assert_eq!(fs::read(&single).unwrap(), bytes);
    // Onto a file that is there: replaced.
    server.ok(&["cp", "box:/srv/here/run.sh", single.to_str().unwrap()]);
    assert_eq!(fs::read(&single).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn archives_are_copied_through_pipes() {
    let server = TestServer::start();
    let (one, two) = (create(&server, &[]), create(&server, &[]));
    one.sh("mkdir -p /srv/d/sub; echo contents >/srv/d/sub/file");
    let archive = server.cli(&["cp", &format!("{}:/srv/d", one.id), "-"]);
    assert_eq!(code(&archive), 0, "{}", stderr(&archive));
    let to = format!("{}:/srv", two.id);
    let out = server.cli_with_input(&["cp", "-", &to], &archive.stdout);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert_eq!(two.sh("cat /srv/d/sub/file"), "contents\n");
    let out = server.cli_with_input(&["cp", "-", &to], &archive.stdout[..700]);
    assert_eq!(code(&out), 125, "half an archive is an error");
}

#[test]
fn a_copy_that_cannot_be_is_told_and_leaves_nothing() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--name", "box"]);
    sandbox.sh("echo x >/srv/file; mkdir /srv/dir");
    let out = server.dir().join("out");
    let out_path = out.to_str().unwrap();
    for (from, to, text) in [
        ("box:/nope", out_path, "/nope"),
        ("nobody:/x", out_path, "nobody"),
        ("/nope/here", "box:/srv", "/nope/here"),
        ("/etc/hostname", "box:/nope/deep/file", "/nope/deep"),
        ("/etc/hostname", "box:/srv/new/", "/srv/new/"),
        ("box:/srv/dir", "/etc/hostname", "/etc/hostname"),
        ("box:/srv/file", "/nope/deep/file", "/nope/deep"),
    ] {
        let result = server.cli(&["cp", from, to]);
        assert_eq!(code(&result), 125, "{from} {to}: {}", stderr(&result));
        assert!(stderr(&result).contains(text), "{from} {to}: {}", stderr(&result));
        assert!(!out.exists());
    }
    assert_eq!(sandbox.sh("ls /srv"), "dir\nfile\n");
}

#[test]
fn a_copy_out_of_a_hostile_sandbox_stays_where_it_was_sent() {
    let server = TestServer::start();
    let sandbox = create(&server, &["--name", "box"]);
    let canary = server.dir().join("canary");
    fs::write(&canary, "kept").unwrap();
    sandbox.sh(&format!(
        "mkdir -p /srv/d; ln -s {} /srv/d/link; ln -s .. /srv/d/up; echo gotcha >/srv/d/file; \
         mkfifo /srv/d/fifo",
        canary.display()
    ));
    let to = server.dir().join("to");
    // The directory that it is sent to already has a link where the sandbox has a file.
    fs::create_dir_all(to.join("d")).unwrap();
    symlink(&canary, to.join("d/file")).unwrap();
    let out = server.cli(&["cp", "box:/srv/d", to.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&canary).unwrap(), "kept", "{}", stderr(&out));
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert_eq!(fs::read_to_string(to.join("d/file")).unwrap(), "gotcha\n");
}

#[test]
fn the_page_on_the_command_line_names_every_command() {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    let page = fs::read_to_string(Path::new(&package).join("../../docs/cli.md")).unwrap();
    for path in command_lines().into_iter().skip(1) {
        let name = [vec!["forkyard".to_owned()], path].concat().join(" ");
        // `image` alone does nothing.
        let named = page.contains(&format!("`{name} ")) || page.contains(&format!("`{name}`"));
        assert!(named || name == "forkyard image", "{name} is not in docs/cli.md");
    }
}
