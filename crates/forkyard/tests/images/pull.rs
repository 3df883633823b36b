//! Pulls from Debian's registry on loopback, and through a proxy before it that fails.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::{Duration, Instant};

use forkyard_testkit::oci::{Layout, TestLayer, noise};
use forkyard_testkit::registry::{Mood, Proxy, Registry};
use forkyard_testkit::{TestServer, binary};
use serde_json::Value;

use crate::make::{
    assert_has_only, base, file, inspect, layer, layers, layout, listed, plain, prune,
    refused_fetch,
};
use crate::support::{SOON, create, stderr};

/// Bytes of [`large`], more than any proxy lets through at a time.
const LARGE: usize = 300_000;

/// A layer that does not compress.
fn large() -> TestLayer {
    TestLayer::gzip(&[("large", &noise(LARGE))])
}

/// A registry with `app:1` of two layers, the second being [`large`].
fn registry() -> Option<(Registry, Layout)> {
    let registry = Registry::start()?;
    let layout = layout("1", &[&base(), &large()], &plain());
    registry.push(layout.dir.path(), "1", "app");
    Some((registry, layout))
}

fn pull(server: &TestServer, reference: &str, options: &[&str]) -> Output {
    server.cli(&[&["image", "pull", reference], options].concat())
}

#[test]
fn an_image_is_pulled_run_and_pulled_again_without_its_layers() {
    let Some((registry, _layout)) = registry() else { return };
    let proxy = Proxy::before(&registry, Mood::Honest);
    let server = TestServer::start();
    let name = format!("{}/app:1", proxy.host);
    assert_eq!(server.ok(&["image", "pull", &name]), format!("{name}\n"));
    let size = server.ok(&["run", &name, "--", "sh", "-c", "wc -c </large"]);
    assert_eq!(size.trim(), LARGE.to_string());
    let details = inspect(&server, &name);
    assert!(details.digest.starts_with("sha256:"), "{details:?}");
    proxy.take_requests();
    let again = pull(&server, &name, &[]);
    assert!(stderr(&again).contains(": present"), "{}", stderr(&again));
    let asked = proxy.take_requests();
    // The configuration only.
    assert_eq!(asked.iter().filter(|line| line.contains("/blobs/")).count(), 1, "{asked:?}");
    // By digest, it is another name for the same.
    let exact = format!("{}/app@{}", proxy.host, details.digest);
    server.ok(&["image", "pull", "-q", &exact]);
    assert_eq!((listed(&server).len(), layers(&server)), (2, 2));
    server.ok(&["image", "rm", &name, &exact]);
    assert_has_only(&server, 0);
}

#[test]
fn a_layer_that_another_image_brought_is_not_fetched() {
    let Some((registry, _layout)) = registry() else { return };
    let own = layer(&[file("own", "2")]);
    let other = layout("1", &[&base(), &own], &plain());
    registry.push(other.dir.path(), "1", "other");
    let proxy = Proxy::before(&registry, Mood::Honest);
    let server = TestServer::start();
    let [app, other] = ["app", "other"].map(|name| format!("{}/{name}:1", proxy.host));
    server.ok(&["image", "pull", "-q", &app]);
    proxy.take_requests();
    server.ok(&["image", "pull", "-q", &other]);
    let asked = proxy.take_requests();
    assert_eq!(asked.iter().filter(|line| line.contains("/blobs/")).count(), 2, "{asked:?}");
    assert_has_only(&server, 3);
    server.ok(&["image", "rm", &app]);
    assert_eq!(server.ok(&["run", &other, "--", "cat", "/own"]), "2");
    server.ok(&["image", "rm", &other]);
    assert_has_only(&server, 0);
}

#[test]
fn a_tag_that_moved_is_pulled_anew_under_a_sandbox_of_the_old_image() {
    let Some(registry) = Registry::start() else { return };
    let shared = base();
    let push = |version: &str| {
        let own = layer(&[file("version", version)]);
        registry.push(layout("1", &[&shared, &own], &plain()).dir.path(), "1", "app");
    };
    let server = TestServer::start();
    let name = format!("{}/app:1", registry.host);
    push("old");
    server.ok(&["image", "pull", "-q", &name]);
    let sandbox = create(&server, &[&name]);
    push("new");
    server.ok(&["image", "pull", "-q", &name]);
    assert_eq!(server.ok(&["run", &name, "--", "cat", "/version"]), "new");
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.sh("cat /version"), "old");
    server.ok(&["rm", &sandbox.id]);
    server.ok(&["image", "rm", &name]);
    assert_has_only(&server, 0);
}

#[test]
fn credentials_come_from_dockers_configuration() {
    let Some(registry) = Registry::start_locked() else { return };
    registry.push(layout("1", &[&base()], &plain()).dir.path(), "1", "secret");
    let docker = tempfile::tempdir().unwrap();
    // The server's environment counts: it is the one that pulls.
    let program = docker.path().join("forkyard");
    let script = "#!/bin/sh\nDOCKER_CONFIG=${0%/*} exec ";
    fs::write(&program, format!("{script}{} \"$@\"\n", binary().display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let server = TestServer::start_program(&program, &[]);
    let name = format!("{}/secret:1", registry.host);
    let out = pull(&server, &name, &[]);
    refused_fetch(&out, "asked without credentials");
    assert!(stderr(&out).contains("hint: ") && stderr(&out).contains("docker login"));
    let write = |auth: &str| {
        let json = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, registry.host);
        fs::write(docker.path().join("config.json"), json).unwrap();
    };
    // user:wrong
    write("dXNlcjp3cm9uZw==");
    let out = pull(&server, &name, &[]);
    refused_fetch(&out, "asked with credentials");
    assert!(!stderr(&out).contains("wrong"), "a password is nobody's business: {}", stderr(&out));
    assert_has_only(&server, 0);
    // user:letmein
    write("dXNlcjpsZXRtZWlu");
    server.ok(&["image", "pull", "-q", &name]);
    assert_eq!(server.ok(&["run", &name, "--", "echo", "in"]), "in\n");
    fs::write(docker.path().join("config.json"), "{ no json").unwrap();
    refused_fetch(&pull(&server, &name, &[]), "config.json");
}

#[test]
fn other_contents_than_promised_are_refused() {
    let Some((registry, _layout)) = registry() else { return };
    registry.damage(&large().digest());
    let server = TestServer::start();
    let name = format!("{}/app:1", registry.host);
    refused_fetch(&pull(&server, &name, &[]), "the registry sent other contents");
    assert_eq!(listed(&server), []);
    // The layer that was whole stays for another try, or until room is wanted.
    assert!(layers(&server) <= 1);
    let nowhere = format!("{}/app@sha256:{}", registry.host, "0".repeat(64));
    refused_fetch(&pull(&server, &nowhere, &[]), "does not exist");
    assert_eq!(listed(&server), []);
    prune(&server);
}

#[test]
fn a_layer_that_the_registry_lost_the_end_of_is_refused() {
    let Some((registry, _layout)) = registry() else { return };
    registry.truncate(&large().digest());
    let server = TestServer::start();
    let out = pull(&server, &format!("{}/app:1", registry.host), &[]);
    refused_fetch(&out, large().digest().hex());
    assert_eq!(listed(&server), []);
    prune(&server);
}

#[test]
fn a_pull_that_was_cut_off_goes_on_where_it_ended() {
    let Some((registry, _layout)) = registry() else { return };
    let proxy = Proxy::before(&registry, Mood::Honest);
    let server = TestServer::start();
    let name = format!("{}/app:1", proxy.host);
    // Each of the three tries of one pull brings a piece; the layers have more than four.
    proxy.set(Mood::Cut(60_000));
    let out = pull(&server, &name, &[]);
    refused_fetch(&out, "cut off after");
    assert!(stderr(&out).contains("hint: pull again"), "{}", stderr(&out));
    assert_eq!(listed(&server), []);
    proxy.set(Mood::Honest);
    proxy.take_requests();
    server.ok(&["image", "pull", "-q", &name]);
    let asked = proxy.take_requests();
    let digest = large().digest();
    let rest = asked.iter().find(|line| line.contains(digest.hex())).unwrap();
    let from = rest.rsplit("bytes=").next().unwrap().trim_end_matches('-');
    assert!(from.parse::<usize>().is_ok_and(|at| at >= 60_000), "{rest}");
    assert_eq!(server.ok(&["run", &name, "--", "sh", "-c", "wc -c </large"]).trim(), "300000");
    server.ok(&["image", "rm", &name]);
    assert_has_only(&server, 0);
}

#[test]
fn what_a_cut_off_pull_left_can_be_removed() {
    let Some((registry, _layout)) = registry() else { return };
    let proxy = Proxy::before(&registry, Mood::Cut(60_000));
    let server = TestServer::start();
    let name = format!("{}/app:1", proxy.host);
    refused_fetch(&pull(&server, &name, &[]), "cut off after");
    let pruned: Value = serde_json::from_str(&server.ok(&["image", "prune", "--json"])).unwrap();
    assert!(pruned["bytes"].as_u64() >= Some(60_000), "{pruned}");
    prune(&server);
    assert_eq!(server.ok(&["image", "prune"]), "0 layers, 0 B\n");
}

#[test]
fn a_registry_that_hangs_is_given_up_after_the_timeout() {
    let server = TestServer::start();
    // Connections are taken by the kernel; nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/app:1", silent.local_addr().unwrap());
    let begun = Instant::now();
    refused_fetch(&pull(&server, &name, &["--timeout", "500ms"]), "nothing came for 0.5 s");
    let Some((registry, _layout)) = registry() else { return };
    let proxy = Proxy::before(&registry, Mood::Hang(50_000));
    let name = format!("{}/app:1", proxy.host);
    let out = pull(&server, &name, &["--timeout", "1s"]);
    refused_fetch(&out, "nothing came for 1 s");
    assert!(begun.elapsed() < SOON + Duration::from_secs(10));
    // Others are served meanwhile and afterwards.
    proxy.set(Mood::Honest);
    server.ok(&["image", "pull", "-q", &name]);
    server.ok(&["image", "rm", &name]);
    assert_has_only(&server, 0);
}

#[test]
fn what_is_not_there_is_said_plainly() {
    let server = TestServer::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused_fetch(&pull(&server, &format!("{closed}/app:1"), &[]), &format!("registry {closed}"));
    for bad in ["UPPER", "a b", "-x:1"] {
        let out = server.cli(&["image", "pull", "--", bad]);
        refused_fetch(&out, "is not an image reference");
    }
    refused_fetch(&pull(&server, "x/y", &["--platform", "odd"]), "odd");
    let Some((registry, _layout)) = registry() else { return };
    let name = format!("{}/nothing:1", registry.host);
    refused_fetch(&pull(&server, &name, &[]), "does not exist");
    let name = format!("{}/app:2", registry.host);
    refused_fetch(&pull(&server, &name, &[]), "does not exist");
    assert_has_only(&server, 0);
}

#[test]
fn an_image_for_another_machine_is_pulled_only_when_asked_for() {
    let Some(registry) = Registry::start() else { return };
    let mut layout = Layout::new();
    let manifest = layout.manifest(&[&layer(&[file("f", "")])], "linux/mips64le");
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "odd");
    let server = TestServer::start();
    let name = format!("{}/odd:1", registry.host);
    let out = pull(&server, &name, &[]);
    refused_fetch(&out, "there is linux/mips64le");
    assert!(stderr(&out).contains("hint: `--platform OS/ARCH`"), "{}", stderr(&out));
    assert_has_only(&server, 0);
    server.ok(&["image", "pull", "-q", "--platform", "linux/mips64le", &name]);
    assert_eq!(inspect(&server, &name).platform.as_deref(), Some("linux/mips64le"));
}
