//! What sandboxes may use, and what they are told to use.

#![allow(clippy::unwrap_used)]

mod support;

use forkyard_engine::model::{Sandbox as Described, Usage};
use forkyard_testkit::{TestServer, skip, wait_for, wait_some};
use support::{SOON, Sandbox, code, create, offers_limit, refused, stderr, stdout};

/// A server that can enforce limits of this kind, if there is one here.
fn server_with(option: &str, value: &str) -> Option<TestServer> {
    let server = TestServer::start();
    offers_limit(&server, option, value).then_some(server)
}

fn usage(sandbox: &Sandbox<'_>) -> Usage {
    sandbox.inspect().usage.unwrap_or_default()
}

/// A shell that takes all the memory there is, and more.
const GREED: &str = "x=$(head -c 1G /dev/zero | tr '\\0' x); echo took ${#x}";

/// Takes this many MiB of memory, touches all of it, and says so.
fn take(mebibytes: u32) -> String {
    format!("x=$(head -c {mebibytes}m /dev/zero | tr '\\0' x); echo took ${{#x}}")
}

#[test]
fn limits_out_of_range_are_refused_before_anything_is_made() {
    let server = TestServer::start();
    for (option, value, text) in [
        ("--memory", "1m", "4m at least"),
        ("--memory", "0", "4m at least"),
        ("--memory", "lots", "`lots` is no size"),
        ("--memory", "99999999t", "is no size"),
        ("--cpus", "0", "is no count of processors"),
        ("--cpus", "-1", ""),
        ("--cpus", "NaN", "is no count of processors"),
        ("--pids", "0", ""),
        ("--pids", "many", ""),
        ("--pids", "99999999999", ""),
        ("--timeout", "0", "is no duration"),
        ("--timeout", "soon", "is no duration"),
    ] {
        let out = server.cli(&["create", option, value]);
        refused(&out, 125, text);
        assert!(stderr(&out).contains(value), "{}", stderr(&out));
    }
    for (limits, text) in [
        (r#"{"memory":1}"#, "memory limit of 1 bytes"),
        (r#"{"memory":18446744073709551615}"#, "memory limit"),
        (r#"{"cpus":1e9}"#, "cpu limit of 1000000000"),
        (r#"{"cpus":-1}"#, "cpu limit of -1"),
        (r#"{"pids":0}"#, "pids limit of 0"),
        (r#"{"pids":4294967295}"#, "pids limit of 4294967295"),
        (r#"{"memory":-1}"#, "body: "),
        (r#"{"disk":1}"#, "unknown field `disk`"),
    ] {
        let (status, body) = server.post("/v1/sandboxes", format!(r#"{{"limits":{limits}}}"#));
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(status == 400 && body.contains(text), "{limits}: {status} {body}");
    }
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
}

#[test]
fn a_limit_that_cannot_be_enforced_is_refused_with_the_way_to_get_it() {
    let server = TestServer::start();
    let out = server.cli(&["run", "--pids", "100", "--", "true"]);
    if out.status.success() {
        skip!("a host without cgroups");
    }
    refused(&out, 125, "limits need");
    assert!(stderr(&out).contains("hint: "), "{}", stderr(&out));
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
    assert_eq!(server.ok(&["run", "--", "echo", "without"]), "without\n");
}

#[test]
fn limits_are_shown_where_a_sandbox_is() {
    let Some(server) = server_with("--memory", "64m") else { skip!("cgroups") };
    let options = ["--memory", "256m", "--cpus", "0.5", "--pids", "100"];
    let sandbox = create(&server, &options);
    let limits = sandbox.inspect().spec.limits;
    assert_eq!((limits.memory, limits.cpus, limits.pids), (Some(256 << 20), Some(0.5), Some(100)));
    let card = server.ok(&["inspect", &sandbox.id]);
    assert!(card.contains("of 256 MiB") && card.contains("of 100"), "{card}");
    assert!(card.contains("at most 0.5"), "{card}");
    let top = server.ok(&["top"]);
    assert!(top.contains(&sandbox.id) && top.contains("256 MiB"), "{top}");
    let listed: Vec<Described> = serde_json::from_str(&server.ok(&["top", "--json"])).unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].usage.as_ref().unwrap().memory.is_some());
}

#[test]
fn out_of_memory_ends_what_took_it_and_nothing_else() {
    let Some(server) = server_with("--memory", "64m") else { skip!("cgroups") };
    let sandbox = create(&server, &["--memory", "64m"]);
    sandbox.say("kept=yes");
    let bystander = sandbox.start("sleep 600");
    let out = sandbox.exec(&["sh", "-c", GREED]);
    assert_eq!(code(&out), 137, "{}", stderr(&out));
    assert!(stderr(&out).contains("ran out of memory"), "{}", stderr(&out));
    assert!(stderr(&out).contains("--memory"), "{}", stderr(&out));
    let kills = usage(&sandbox).oom_kills.unwrap();
    assert!(kills > 0);
    assert!(server.ok(&["inspect", &sandbox.id]).contains("Out of memory"));
    // The rest lives.
    assert_eq!(sandbox.say("echo $kept"), "yes\n");
    assert!(sandbox.commands().iter().any(|c| c.id.0 == bystander && c.exit.is_none()));
    assert_eq!(stdout(&sandbox.exec(&["sh", "-c", &take(8)])), "took 8388608\n");
    // A kill that has another reason is not taken for it.
    let out = sandbox.exec(&["sh", "-c", "kill -9 $$"]);
    assert_eq!((code(&out), stderr(&out).as_str()), (137, ""));
}

#[test]
fn a_line_of_a_session_that_runs_out_of_memory_says_so() {
    let Some(server) = server_with("--memory", "64m") else { skip!("cgroups") };
    let sandbox = create(&server, &["--memory", "64m"]);
    let out = sandbox.line(&format!("sh -c '{}'", GREED.replace('\'', "\"")));
    assert!(out.oom && out.exit_code == 137, "{out:?}");
    assert_eq!(sandbox.say("echo alive"), "alive\n");
    // The shell itself is the one that takes it.
    let out = sandbox.line(&take(512));
    assert!(out.oom || out.exit_code != 0, "{out:?}");
    assert_eq!(sandbox.say("echo new or old"), "new or old\n");
}

#[test]
fn out_of_memory_in_a_one_off_run_is_told() {
    let Some(server) = server_with("--memory", "32m") else { skip!("cgroups") };
    let out = server.cli(&["run", "--memory", "32m", "--", "sh", "-c", GREED]);
    assert_eq!(code(&out), 137, "{}", stderr(&out));
    assert!(stderr(&out).contains("ran out of memory"), "{}", stderr(&out));
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
}

#[test]
fn files_in_tmp_count_and_are_bounded() {
    let Some(server) = server_with("--memory", "64m") else { skip!("cgroups") };
    let sandbox = create(&server, &["--memory", "64m"]);
    let out = sandbox.exec(&["sh", "-c", "head -c 60m /dev/zero >/tmp/full"]);
    assert_ne!(code(&out), 0);
    assert!(stderr(&out).contains("No space left"), "{}", stderr(&out));
    assert_eq!(sandbox.sh("rm /tmp/full; echo alive"), "alive\n");
}

#[test]
fn processes_are_limited_and_the_sandbox_stays_usable() {
    let Some(server) = server_with("--pids", "20") else { skip!("cgroups") };
    let sandbox = create(&server, &["--pids", "20"]);
    let start = || server.cli(&["exec", "-d", &sandbox.id, "--", "sleep", "600"]);
    let outs: Vec<_> = (0..30).map(|_| start()).collect();
    let full = outs.iter().find(|out| !out.status.success()).unwrap();
    refused(full, 125, "no more processes: the sandbox is at its limit");
    assert!(stderr(full).contains("hint: raise its limit with `--pids`"), "{}", stderr(full));
    assert_eq!(usage(&sandbox).pids, Some(20));
    server.ok(&["kill", &sandbox.id, stdout(&outs[0]).trim()]);
    wait_for("room for others", SOON, || sandbox.exec(&["true"]).status.success());
    assert_eq!(sandbox.say("echo alive"), "alive\n");
}

#[test]
fn a_full_sandbox_is_still_reset_and_removed() {
    let Some(server) = server_with("--pids", "20") else { skip!("cgroups") };
    let sandbox = create(&server, &["--pids", "20"]);
    sandbox.start("f() { f | f & }; for n in $(seq 100); do sleep 600 & done; f");
    wait_for("the limit", SOON, || usage(&sandbox).pids >= Some(19));
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.say("echo alive"), "alive\n");
    sandbox.start("for n in $(seq 100); do sleep 600 & done; wait");
    wait_for("the limit", SOON, || usage(&sandbox).pids >= Some(19));
    server.ok(&["rm", &sandbox.id]);
}

#[test]
fn a_limit_that_leaves_no_room_for_a_command_is_told() {
    let Some(server) = server_with("--pids", "20") else { skip!("cgroups") };
    let out = server.cli(&["run", "--pids", "1", "--", "true"]);
    refused(&out, 125, "limit");
    wait_for("an empty list", SOON, || server.ok(&["ls", "-aq"]).is_empty());
}

#[test]
fn processor_time_is_limited() {
    let Some(server) = server_with("--cpus", "0.2") else { skip!("cgroups") };
    let sandbox = create(&server, &["--cpus", "0.2"]);
    let before = usage(&sandbox).cpu_us.unwrap();
    let out = sandbox.exec_with(
        &["--timeout", "2s"],
        &["sh", "-c", "while :; do :; done & while :; do :; done"],
        b"",
    );
    assert_eq!(code(&out), 124);
    let spent = usage(&sandbox).cpu_us.unwrap() - before;
    // A fifth of two seconds, and as much again for what a busy machine blurs: less than half of
    // what one processor has.
    assert!((50_000..1_000_000).contains(&spent), "{spent} us");
}

#[test]
fn usage_grows_with_what_is_done() {
    let Some(server) = server_with("--memory", "256m") else { skip!("cgroups") };
    let sandbox = create(&server, &["--memory", "256m"]);
    let before = usage(&sandbox);
    sandbox.line("x=$(head -c 32m /dev/zero | tr '\\0' x)");
    sandbox.sh("n=0; while [ $n -lt 100000 ]; do n=$((n + 1)); done");
    let command = sandbox.start("sleep 600 & sleep 600 & wait");
    let after = wait_some("three processes more", SOON, || {
        let now = usage(&sandbox);
        (now.pids >= before.pids.map(|pids| pids + 3)).then_some(now)
    });
    assert!(after.cpu_us > before.cpu_us.map(|us| us + 10_000), "{before:?} {after:?}");
    assert!(after.memory > before.memory.map(|bytes| bytes + (30 << 20)), "{before:?} {after:?}");
    assert!(after.memory_peak >= after.memory, "{after:?}");
    assert_eq!(after.oom_kills, Some(0));
    server.ok(&["kill", &sandbox.id, &command.to_string()]);
}

#[test]
fn the_sandbox_next_door_is_not_charged() {
    let Some(server) = server_with("--memory", "64m") else { skip!("cgroups") };
    let (greedy, quiet) = (create(&server, &["--memory", "64m"]), create(&server, &[]));
    let before = usage(&quiet);
    let out = greedy.exec(&["sh", "-c", GREED]);
    assert_eq!(code(&out), 137);
    let after = usage(&quiet);
    assert_eq!(after.oom_kills, Some(0));
    assert!(after.memory < before.memory.map(|bytes| bytes + (16 << 20)), "{before:?} {after:?}");
}

#[test]
fn limits_outlive_the_server() {
    let Some(mut server) = server_with("--pids", "20") else { skip!("cgroups") };
    let id = create(&server, &["--pids", "20"]).id;
    server.kill9();
    server.restart();
    let sandbox = Sandbox { server: &server, id };
    sandbox.start("for n in $(seq 100); do sleep 600 & done; wait");
    wait_for("the limit", SOON, || usage(&sandbox).pids >= Some(19));
    // However often one looks.
    for _ in 0..20 {
        let pids = usage(&sandbox).pids;
        assert!(pids.is_some() && pids <= Some(20), "{pids:?}");
    }
}
