//! What an image says of how to run something in it, and what the caller says against it.

use forkyard_testkit::TestServer;
use serde_json::{Value, json};

use crate::make::{base, file, import, layer, layout};
use crate::support::{Sandbox, create, refused};

/// A server with an image `app` of this configuration.
fn server_with(config: &Value) -> TestServer {
    let server = TestServer::start();
    let own = layer(&[file("etc/motd", "hello\n")]);
    import(&server, layout("app", &[&base(), &own], config).dir.path());
    server
}

/// Whether users other than root can be had: not with a single id.
fn has_users(server: &TestServer) -> bool {
    let (_, body) = server.get("/v1/health");
    let health: Value = serde_json::from_slice(&body).unwrap();
    health["mode"] != "single"
}

const SHOW: &str = "echo $COLOUR $MORE $(id -u):$(id -g) $PWD $HOME";

#[test]
fn variables_user_and_directory_hold_for_run_exec_and_session() {
    let server = TestServer::start();
    let user = if has_users(&server) { "user" } else { "root" };
    let config = json!({
        "Env": ["PATH=/bin", "COLOUR=blue", "MORE=a=b"], "User": user, "WorkingDir": "/work/deep",
    });
    import(&server, layout("app", &[&base()], &config).dir.path());
    let expected = match user {
        "user" => "blue a=b 1000:1000 /work/deep /tmp\n",
        _ => "blue a=b 0:0 /work/deep /root\n",
    };
    assert_eq!(server.ok(&["run", "app", "--", "sh", "-c", SHOW]), expected);
    assert_eq!(server.ok(&["run", "app", "-c", SHOW]), expected);
    let sandbox = create(&server, &["app"]);
    assert_eq!(sandbox.sh(SHOW), expected);
    assert_eq!(sandbox.say(SHOW), expected);
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.say(SHOW), expected);
}

#[test]
fn the_caller_has_the_last_word() {
    let server = server_with(&json!({
        "Env": ["PATH=/bin", "COLOUR=blue"], "User": "0", "WorkingDir": "/etc",
    }));
    let user = if has_users(&server) { "1000" } else { "0" };
    let shown = format!("red {user} /tmp\n");
    let show = "echo $COLOUR $(id -u) $PWD";
    let options = ["-e", "COLOUR=red", "-u", user, "--workdir", "/tmp"];
    let run = [&["run", "app"], &options[..], &["--", "sh", "-c", show]].concat();
    assert_eq!(server.ok(&run), shown);
    let made = create(&server, &[&["app"], &options[..]].concat());
    assert_eq!(made.sh(show), shown);
    assert_eq!(made.say(show), shown);
    let plain = create(&server, &["app"]);
    let exec = |sandbox: &Sandbox<'_>, options: &[&str]| {
        let out = sandbox.exec_with(options, &["sh", "-c", show], b"");
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(exec(&plain, &[]), "blue 0 /etc\n");
    assert_eq!(exec(&plain, &["-e", "COLOUR=red", "-u", user, "-w", "/tmp"]), shown);
}

#[test]
fn an_image_with_a_command_alone_runs_it_where_none_is_given() {
    let server = server_with(&json!({ "Env": ["PATH=/bin"], "Cmd": ["cat", "/etc/motd"] }));
    assert_eq!(server.ok(&["run", "app"]), "hello\n");
    assert_eq!(server.ok(&["run", "app", "--", "echo", "other"]), "other\n");
    assert_eq!(server.ok(&["run", "app", "-c", "echo $0; exit 0"]).lines().count(), 1);
}

#[test]
fn an_entrypoint_stands_before_the_command_in_run_and_not_in_exec() {
    let server = server_with(&json!({
        "Env": ["PATH=/bin"], "Entrypoint": ["echo", "entry"], "Cmd": ["default"],
    }));
    assert_eq!(server.ok(&["run", "app"]), "entry default\n");
    assert_eq!(server.ok(&["run", "app", "--", "given", "two"]), "entry given two\n");
    assert_eq!(server.ok(&["run", "--entrypoint", "echo", "app"]), "\n");
    assert_eq!(server.ok(&["run", "--entrypoint", "echo", "app", "--", "x"]), "x\n");
    assert_eq!(server.ok(&["run", "--entrypoint", "", "app", "--", "echo", "bare"]), "bare\n");
    refused(&server.cli(&["run", "--entrypoint", "", "app"]), 125, "no command given");
    assert_eq!(server.ok(&["run", "app", "-c", "echo shell"]), "shell\n");
    let sandbox = create(&server, &["app"]);
    assert_eq!(server.ok(&["exec", &sandbox.id, "--", "echo", "plain"]), "plain\n");
}

#[test]
fn an_image_without_a_command_needs_one() {
    let server = server_with(&json!({ "Env": ["PATH=/bin"] }));
    refused(&server.cli(&["run", "app"]), 125, "no command given");
    assert_eq!(server.ok(&["ls", "-aq"]), "");
}

#[test]
fn a_user_or_a_directory_that_is_not_in_the_image_is_named() {
    let server = server_with(&json!({ "Env": ["PATH=/bin"] }));
    for (options, text) in [
        (["-u", "nobody-here"], "nobody-here"),
        (["-u", "root:nobodys"], "nobodys"),
        (["--workdir", "/no/such"], "/no/such"),
    ] {
        let args = [&["run", "app"], &options[..], &["--", "true"]].concat();
        refused(&server.cli(&args), 125, text);
    }
    refused(&server.cli(&["run", "app", "--", "no-such-program"]), 127, "no-such-program");
    refused(&server.cli(&["run", "app", "--", "/etc/motd"]), 126, "/etc/motd");
    assert_eq!(server.ok(&["ls", "-aq"]), "");
}

#[test]
fn an_image_whose_user_is_not_in_it_cannot_be_run() {
    let server = server_with(&json!({ "Env": ["PATH=/bin"], "User": "ghost" }));
    refused(&server.cli(&["run", "app", "--", "true"]), 125, "ghost");
    assert_eq!(server.ok(&["run", "-u", "0", "app", "--", "echo", "root"]), "root\n");
}
