//! Bad input and faults: one clear error each, and nothing left behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use forkyard_testkit::{TestServer, binary, finish, image_dir, skip, wait_for};
use support::{SOON, create, refused, stderr, stdout, with_small_disk};

/// The error and its hints, with what differs from run to run replaced.
fn told(out: &Output, replace: &[(&str, &str)]) -> String {
    let mut text = stderr(out);
    for (from, to) in replace {
        text = text.replace(from, to);
    }
    text
}

#[track_caller]
fn nothing_is_there(server: &TestServer) {
    // The end of a `run` is told before its sandbox is removed.
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
    wait_for("a store without leavings", SOON, || {
        ["sandboxes", "run", "trash"].iter().all(|part| {
            fs::read_dir(server.store().join(part)).is_ok_and(|mut all| all.next().is_none())
        })
    });
}

/// Imports a directory under a name.
#[track_caller]
fn import(server: &TestServer, dir: &Path, name: &str) {
    server.ok(&["image", "import", dir.to_str().unwrap(), name]);
}

#[test]
fn an_image_that_is_not_there_is_told() {
    let server = TestServer::start();
    let out = server.cli(&["create", "no-such-image"]);
    insta::assert_snapshot!(told(&out, &[]), @r"
    error: no such image: no-such-image
    hint: `forkyard image ls` lists what is here; `forkyard image pull REF` and `forkyard image import PATH NAME` get more
    ");
    refused(&server.cli(&["run", "no-such-image", "--", "true"]), 125, "no such image");
    nothing_is_there(&server);
}

#[test]
fn names_that_are_none_are_refused() {
    let server = TestServer::start();
    let long = "x".repeat(64);
    for name in ["", "-a", ".a", "a b", "a/b", "ä", "a\nb", long.as_str()] {
        let out = server.cli(&["create", &format!("--name={name}")]);
        refused(&out, 125, "name `");
    }
    nothing_is_there(&server);
}

#[test]
fn a_user_that_the_image_does_not_have_is_told() {
    let server = TestServer::start();
    let image = image_dir();
    import(&server, image.path(), "small");
    let out = server.cli(&["run", "small", "--user", "nobody-here", "--", "true"]);
    insta::assert_snapshot!(
        told(&out, &[]),
        @r#"error: user nobody-here: no user "nobody-here" in the sandbox's /etc/passwd"#
    );
    let out = server.cli(&["run", "small", "--user", "root:nogroup-here", "--", "true"]);
    refused(&out, 125, "user root:nogroup-here");
    for user in ["99999999", "-1", "root:99999999", ":", "4294967295"] {
        let out = server.cli(&["run", "small", &format!("--user={user}"), "--", "true"]);
        refused(&out, 125, "user ");
    }
    nothing_is_there(&server);
}

#[test]
fn a_directory_that_the_image_does_not_have_is_told() {
    let server = TestServer::start();
    let out = server.cli(&["run", "--workdir", "/no/such/dir", "--", "true"]);
    insta::assert_snapshot!(
        told(&out, &[]),
        @"error: working directory /no/such/dir: No such file or directory (os error 2)"
    );
    let out = server.cli(&["run", "--workdir", "relative", "--", "true"]);
    refused(&out, 125, "workdir `relative`: must be an absolute path");
    nothing_is_there(&server);
}

#[test]
fn a_volume_that_cannot_be_shown_is_told() {
    let server = TestServer::start();
    for (volume, text) in [
        ("/no/such/source:/data", "volume source /no/such/source: No such file or directory"),
        ("/usr:/proc/x", "the kernel's own"),
        ("/usr:/", "the root cannot be covered"),
        ("/usr:/a/../b", "has a `..`"),
        ("/usr", "is no volume"),
        ("/usr:relative", "is no volume"),
        ("/usr:/data:wo", "is no volume"),
    ] {
        refused(&server.cli(&["run", "-v", volume, "--", "true"]), 125, text);
    }
    // Where something else is in the image's place.
    let out = server.cli(&["run", "-v", "/usr:/etc/passwd/x", "--", "true"]);
    refused(&out, 125, "/etc/passwd/x");
    nothing_is_there(&server);
}

#[test]
fn a_program_for_another_processor_is_told() {
    let server = TestServer::start();
    let image = image_dir();
    // The head of an ELF file for a machine that nobody has.
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    (elf[16], elf[18], elf[20]) = (2, 0xf7, 1);
    let path = image.path().join("bin/alien");
    fs::write(&path, elf).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    image.file("/bin/no-line", "echo a script without its first line\n", 0o755);
    import(&server, image.path(), "alien");
    let out = server.cli(&["run", "alien", "--", "alien"]);
    assert_eq!(out.status.code(), Some(126));
    insta::assert_snapshot!(
        told(&out, &[]),
        @"error: /bin/alien: not a program for this processor, nor a script with a `#!` line"
    );
    refused(&server.cli(&["run", "alien", "--", "no-line"]), 126, "/bin/no-line: not a program");
    nothing_is_there(&server);
}

#[test]
fn an_image_without_a_shell_is_told_where_one_is_needed() {
    let server = TestServer::start();
    let image = image_dir();
    for name in ["sh", "bash", "ash"] {
        let _ = fs::remove_file(image.path().join("bin").join(name));
    }
    import(&server, image.path(), "shell-less");
    let out = server.cli(&["run", "-c", "echo x", "shell-less"]);
    insta::assert_snapshot!(
        told(&out, &[]),
        @"error: no shell in the sandbox: neither /bin/bash nor /bin/sh"
    );
    assert_eq!(server.ok(&["run", "shell-less", "--", "cat", "/etc/group"]).lines().count(), 2);
    nothing_is_there(&server);
}

#[test]
fn an_empty_image_makes_a_sandbox_that_can_run_nothing() {
    let server = TestServer::start();
    let empty = tempfile::tempdir().unwrap();
    import(&server, empty.path(), "empty");
    refused(&server.cli(&["run", "empty", "--", "sh"]), 127, "sh: no such program");
    let sandbox = create(&server, &["empty"]);
    let (status, why) = sandbox.try_line("echo x", None).unwrap_err();
    assert!(status == 422 && why.contains("no shell"), "{status} {why}");
    server.ok(&["rm", &sandbox.id]);
    nothing_is_there(&server);
}

#[test]
fn an_image_whose_directories_are_links_harms_nobody() {
    let server = TestServer::start();
    for target in ["/", "..", "../../../../tmp", "/proc/1/root", "loop"] {
        let image = image_dir();
        for name in ["proc", "dev", "sys", "loop"] {
            let path = image.path().join(name);
            let _ = fs::remove_dir(&path);
            std::os::unix::fs::symlink(target, path).unwrap();
        }
        import(&server, image.path(), "links");
        let out = server.cli(&["run", "links", "--", "true"]);
        assert!(
            out.status.success() || stderr(&out).starts_with("error: "),
            "{target}: {}",
            stderr(&out)
        );
        nothing_is_there(&server);
    }
}

#[test]
fn a_command_killed_by_a_signal_is_reported_and_the_sandbox_goes() {
    let server = TestServer::start();
    let out = server.cli(&["run", "--", "sh", "-c", "echo before; kill -SEGV $$"]);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(139), "before\n"));
    nothing_is_there(&server);
}

#[test]
fn a_store_that_is_no_directory_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let serve = |store: &Path| {
        let mut command = Command::new(binary());
        let socket = dir.path().join("sock");
        command.args(["serve", "--store"]).arg(store).arg("--socket").arg(socket);
        finish(command.env_remove("FORKYARD_STORE").env_remove("FORKYARD_SOCKET"), b"")
    };
    let out = serve(&file);
    refused(&out, 125, file.to_str().unwrap());
    refused(&serve(&file.join("below")), 125, "Not a directory");
    // Nobody may write there, root neither.
    refused(&serve(Path::new("/proc/forkyard")), 125, "/proc/forkyard");
    // On demand, the same is told by the command that needs a server.
    let mut command = Command::new(binary());
    command.env("FORKYARD_STORE", &file).env("FORKYARD_SOCKET", dir.path().join("s")).arg("ls");
    refused(&finish(&mut command, b""), 125, file.to_str().unwrap());
}

#[test]
fn a_database_that_is_damaged_is_told_and_left_alone() {
    let dir = tempfile::Builder::new().prefix("fy-").tempdir().unwrap();
    let (store, socket) = (dir.path().join("store"), dir.path().join("sock"));
    fs::create_dir(&store).unwrap();
    let database = store.join("store.sqlite");
    let junk = "this is not a database, and long enough to be looked at as one. ".repeat(100);
    fs::write(&database, &junk).unwrap();
    let mut command = Command::new(binary());
    command.env("FORKYARD_STORE", &store).env("FORKYARD_SOCKET", &socket).arg("serve");
    let out = finish(&mut command, b"");
    refused(&out, 125, &format!("{}: file is not a database", database.display()));
    assert!(stderr(&out).contains("hint: "), "{}", stderr(&out));
    assert_eq!(fs::read_to_string(&database).unwrap(), junk);
    assert!(!socket.exists());
}

#[test]
fn a_full_disk_is_told_and_what_is_there_can_still_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some(program) = with_small_disk(dir.path(), "24m") else { skip!("mounts of a tmpfs") };
    let server = TestServer::start_program(&program, &[]);
    let sandbox = create(&server, &[]);
    let out = sandbox.exec(&["sh", "-c", "cat /dev/zero >/root/full"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("No space left on device"), "{}", stderr(&out));
    // Commands, sessions and reading need no space.
    assert_eq!(sandbox.sh("echo a command"), "a command\n");
    assert_eq!(sandbox.say("echo a line"), "a line\n");
    let (status, why) = server.put(&sandbox.path("/files?path=/root/new"), vec![b'x'; 100_000]);
    assert_eq!(status, 507, "{why:?}");
    let out = server.cli(&["create"]);
    assert_eq!(out.status.code(), Some(125), "{}", stderr(&out));
    let text = stderr(&out);
    assert!(text.contains("full") || text.contains("No space left"), "{text}");
    assert!(text.contains("hint: free some space"), "{text}");
    let image = image_dir();
    let out = server.cli(&["image", "import", image.path().to_str().unwrap(), "small"]);
    assert_eq!(out.status.code(), Some(125));
    let text = stderr(&out);
    assert!(text.contains("full") || text.contains("No space left"), "{text}");
    // The way out.
    server.ok(&["rm", &sandbox.id]);
    wait_for("space", SOON, || server.cli(&["run", "--", "true"]).status.success());
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
}

#[test]
fn paths_of_the_api_that_are_none_are_told_in_its_own_form() {
    let server = TestServer::start();
    for (method, path, status) in [
        ("GET", "/v1/nonsense", 404),
        ("PATCH", "/v1/sandboxes", 405),
        ("POST", "/v1/run", 426),
        ("GET", "/v1/sandboxes/%ff", 400),
        ("GET", "/v1/sandboxes/nobody/commands/x", 400),
    ] {
        let (code, body) = server.http().request(method, path, "").unwrap();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(code, status, "{method} {path}: {body}");
        assert!(body.starts_with(&format!(r#"{{"code":{status},"message":""#)), "{path}: {body}");
    }
    let (status, body) = server.post("/v1/sandboxes", "{nonsense");
    assert!(status == 400 && body.starts_with(br#"{"code":400,"message":"body: "#), "{body:?}");
    let (status, _) = server.post("/v1/sandboxes", vec![b' '; 9 << 20]);
    assert_eq!(status, 413);
}
