//! Pulls from a real registry on loopback, and from ones that fail in every way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Layout, Store, TestLayer, contents, host_platform};
use forkyard_image::{Fetched, InProcess, Progress, PullError, PullOptions, Step, pull};
use forkyard_testkit::oci::noise;
use forkyard_testkit::registry::{Mood, Proxy, Registry};

/// A pull as the server does it: on a runtime of one thread.
fn run(reference: &str, store: &Store, options: &PullOptions) -> Result<Fetched, PullError> {
    run_telling(reference, store, options, &|_| ())
}

fn run_telling(
    reference: &str,
    store: &Store,
    options: &PullOptions,
    tell: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Fetched, PullError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(pull(reference, options, &store.store, Arc::new(InProcess), tell))
}

/// Options that look into no configuration of this machine, and do not wait long.
fn options() -> PullOptions {
    PullOptions {
        docker_config: Some("/nonexistent".into()),
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(700),
        retries: 0,
        ..PullOptions::default()
    }
}

/// A registry with an image `app:1` of two layers, the second of 200,000 bytes.
fn registry_with_app() -> Option<(Registry, TestLayer, TestLayer)> {
    let registry = Registry::start()?;
    let (base, app) = app_layers();
    let mut layout = Layout::new();
    let manifest = layout.manifest(&[&base, &app], &host_platform());
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "app");
    Some((registry, base, app))
}

fn app_layers() -> (TestLayer, TestLayer) {
    let base = TestLayer::gzip(&[("bin/hello", b"#!/bin/sh\n"), ("etc/base", b"1")]);
    let app = TestLayer::gzip(&[("app/data", &noise(200_000)), ("etc/.wh.base", b"")]);
    (base, app)
}

fn blobs(requests: &[String]) -> usize {
    requests.iter().filter(|request| request.contains("/blobs/")).count()
}

#[test]
fn an_image_comes_whole_and_is_not_fetched_twice() {
    let Some((registry, base, app)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Honest);
    let store = Store::new();
    let reference = format!("{}/app:1", proxy.host);
    let steps = Mutex::new(Vec::new());
    let tell = |progress| {
        if let Progress::Layer { step, .. } = progress {
            steps.lock().unwrap().push(step);
        }
    };
    let fetched = run_telling(&reference, &store, &options(), &tell).unwrap();
    let image = &fetched.image;
    assert_eq!(image.name, reference);
    assert_eq!(image.config.env[0], "PATH=/bin");
    assert_eq!(image.config.cmd, ["/bin/hello"]);
    assert_eq!(image.config.user.as_deref(), Some("1000:1000"));
    assert_eq!(image.config.workdir.as_deref(), Some("/work"));
    assert_eq!(image.config.labels["made-by"], "test");
    assert_eq!(image.size, 10 + 1 + 200_000);
    let paths: Vec<_> = image.layers.iter().map(|layer| layer.path(&store.store)).collect();
    assert_eq!(paths, [&base.diff_id, &app.diff_id].map(|id| store.store.tree(id)));
    assert_eq!(contents(&paths[1])["app/data"], noise(200_000));
    image.check(&store.store).unwrap();
    for step in [Step::Downloading, Step::Unpacking, Step::Done] {
        assert!(steps.lock().unwrap().contains(&step), "{step:?}");
    }
    store.assert_no_leftovers();
    assert_eq!(store.partial(&base.digest()).or(store.partial(&app.digest())), None);

    proxy.take_requests();
    let again = run(&reference, &store, &options()).unwrap();
    assert_eq!(again.image, fetched.image);
    // The configuration only: it names the layers.
    assert_eq!(blobs(&proxy.take_requests()), 1);
}

#[test]
fn a_layer_that_another_image_has_is_not_fetched() {
    let Some((registry, base, _)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Honest);
    let mut layout = Layout::new();
    let own = TestLayer::zstd(&[("other", b"2")]);
    // The shared layer twice: overlayfs would refuse the same directory again.
    let manifest = layout.manifest(&[&base, &own, &base], &host_platform());
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "other");
    let store = Store::new();
    run(&format!("{}/app:1", proxy.host), &store, &options()).unwrap();
    proxy.take_requests();
    let other = run(&format!("{}/other:1", proxy.host), &store, &options()).unwrap();
    assert_eq!(other.image.layers.len(), 2);
    let requests = proxy.take_requests();
    assert_eq!(blobs(&requests), 2, "configuration and one layer: {requests:?}");
    assert!(!requests.iter().any(|request| request.contains(base.digest().hex())));
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    let Some(registry) = Registry::start() else { return };
    let mut layout = Layout::new();
    let [amd, arm] = ["amd64", "arm64"].map(|arch| TestLayer::gzip(&[("arch", arch.as_bytes())]));
    let index = layout
        .index(&[layout.manifest(&[&amd], "linux/amd64"), layout.manifest(&[&arm], "linux/arm64")]);
    layout.tag("1", index);
    registry.push(layout.dir.path(), "1", "multi");
    let reference = format!("{}/multi:1", registry.host);
    for (platform, layer) in [("linux/amd64", &amd), ("linux/arm64", &arm)] {
        let store = Store::new();
        let options = PullOptions { platform: Some(platform.parse().unwrap()), ..options() };
        let fetched = run(&reference, &store, &options).unwrap();
        assert!(store.store.has(&layer.diff_id), "{platform}");
        assert_eq!(fetched.image.platform.unwrap().to_string(), platform);
    }
    let store = Store::new();
    let options = PullOptions { platform: Some("linux/s390x".parse().unwrap()), ..options() };
    let error = run(&reference, &store, &options).unwrap_err().to_string();
    assert!(
        error.ends_with("no image for linux/s390x; there is linux/amd64, linux/arm64"),
        "{error}"
    );
    store.assert_empty();
}

#[test]
fn an_image_of_another_platform_needs_to_be_asked_for() {
    let Some(registry) = Registry::start() else { return };
    let mut layout = Layout::new();
    let manifest = layout.manifest(&[&TestLayer::gzip(&[("f", b"")])], "linux/mips64le");
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "odd");
    let reference = format!("{}/odd:1", registry.host);
    let store = Store::new();
    let error = run(&reference, &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Document { .. }), "{error}");
    let asked = PullOptions { platform: Some("linux/mips64le".parse().unwrap()), ..options() };
    run(&reference, &store, &asked).unwrap();
}

#[test]
fn a_download_that_was_cut_off_goes_on_where_it_ended() {
    let Some((registry, _, app)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Cut(100_000));
    let store = Store::new();
    let reference = format!("{}/app:1", proxy.host);
    let error = run(&reference, &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Cut { got: 100_000, .. }), "{error}");
    assert_eq!(store.partial(&app.digest()), Some(100_000));
    store.assert_no_leftovers();

    proxy.set(Mood::Honest);
    proxy.take_requests();
    run(&reference, &store, &options()).unwrap();
    let requests = proxy.take_requests();
    let rest = requests.iter().find(|request| request.contains(app.digest().hex())).unwrap();
    assert!(rest.ends_with("bytes=100000-"), "{rest}");
    assert_eq!(contents(&store.store.tree(&app.diff_id))["app/data"], noise(200_000));
}

#[test]
fn a_transfer_that_breaks_once_is_taken_up_again_at_once() {
    let Some((registry, _, app)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::CutOnce(60_000));
    let store = Store::new();
    let options = PullOptions { retries: 1, ..options() };
    run(&format!("{}/app:1", proxy.host), &store, &options).unwrap();
    let asked = |request: &&String| request.contains(app.digest().hex());
    assert_eq!(proxy.take_requests().iter().filter(asked).count(), 2);
}

#[test]
fn a_damaged_partial_download_is_noticed_and_fetched_anew() {
    let Some((registry, _, app)) = registry_with_app() else { return };
    let store = Store::new();
    let name = format!("{}.partial", app.digest().file_name());
    let partial = store.dir.path().join("blobs").join(name);
    std::fs::write(&partial, [0; 5000]).unwrap();
    let reference = format!("{}/app:1", registry.host);
    let error = run(&reference, &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    run(&reference, &store, &options()).unwrap();
}

#[test]
fn a_registry_that_hangs_makes_one_clear_error() {
    let store = Store::new();
    // Connections are taken by the kernel; nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let error = run(&format!("{host}/app:1"), &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Stalled { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));

    let Some((registry, _, app)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Hang(50_000));
    let error = run(&format!("{}/app:1", proxy.host), &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Stalled { .. }), "{error:?}");
    assert_eq!(store.partial(&app.digest()), Some(50_000));
}

#[test]
fn other_contents_than_promised_are_refused() {
    let Some((registry, _, app)) = registry_with_app() else { return };
    registry.damage(&app.digest());
    let store = Store::new();
    let error = run(&format!("{}/app:1", registry.host), &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    assert!(!store.store.has(&app.diff_id));
    assert_eq!(store.partial(&app.digest()), None);
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let Some(registry) = Registry::start() else { return };
    let mut layout = Layout::new();
    let (honest, other) = app_layers();
    let lying = TestLayer { diff_id: other.diff_id, ..honest };
    let manifest = layout.manifest(&[&lying], &host_platform());
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "lying");
    let store = Store::new();
    let error = run(&format!("{}/lying:1", registry.host), &store, &options()).unwrap_err();
    assert!(error.to_string().contains("its contents have the digest"), "{error}");
    store.assert_empty();
}

/// A directory with a `config.json` for a registry.
fn docker_config(host: &str, entry: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = format!(r#"{{"auths": {{"{host}": {entry}}}}}"#);
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    dir
}

fn with_config(dir: &Path) -> PullOptions {
    PullOptions { docker_config: Some(dir.to_path_buf()), ..options() }
}

#[test]
fn credentials_come_from_dockers_configuration() {
    let Some(registry) = Registry::start_locked() else { return };
    let (base, _) = app_layers();
    let mut layout = Layout::new();
    let manifest = layout.manifest(&[&base], &host_platform());
    layout.tag("1", manifest);
    registry.push(layout.dir.path(), "1", "secret");
    let reference = format!("{}/secret:1", registry.host);
    let store = Store::new();
    let error = run(&reference, &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
    // user:wrong
    let wrong = docker_config(&registry.host, r#"{"auth": "dXNlcjp3cm9uZw=="}"#);
    let error = run(&reference, &store, &with_config(wrong.path())).unwrap_err();
    assert!(error.to_string().contains("asked with credentials"), "{error}");
    // user:letmein
    let right = docker_config(&registry.host, r#"{"auth": "dXNlcjpsZXRtZWlu"}"#);
    run(&reference, &store, &with_config(right.path())).unwrap();
    assert!(store.store.has(&base.diff_id));
}

#[test]
fn an_identity_token_is_traded_for_one_to_pull_with() {
    let Some((registry, base, _)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Token);
    let store = Store::new();
    let config = docker_config(&proxy.host, r#"{"identitytoken": "identity"}"#);
    let reference = format!("{}/app:1", proxy.host);
    run(&reference, &store, &with_config(config.path())).unwrap();
    assert!(store.store.has(&base.diff_id));
    let config = docker_config(&proxy.host, r#"{"identitytoken": "revoked"}"#);
    let error = run(&reference, &Store::new(), &with_config(config.path())).unwrap_err();
    assert!(matches!(error, PullError::Denied { .. }), "{error}");
}

#[test]
fn what_is_not_there_is_said_plainly() {
    let store = Store::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&format!("{closed}/app:1"), &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::Connect { .. }), "{error}");
    for bad in ["", "UPPER", "a b", "-x:1"] {
        let error = run(bad, &store, &options()).unwrap_err();
        assert!(matches!(error, PullError::Reference { .. }), "{bad}: {error}");
    }
    let Some(registry) = Registry::start() else { return };
    let error = run(&format!("{}/nothing:1", registry.host), &store, &options()).unwrap_err();
    assert!(matches!(error, PullError::NotFound(_)), "{error}");
}

#[test]
fn pulls_of_one_image_at_the_same_time_fetch_it_once() {
    let Some((registry, _, app)) = registry_with_app() else { return };
    let proxy = Proxy::before(&registry, Mood::Honest);
    let store = Store::new();
    let reference = format!("{}/app:1", proxy.host);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| run(&reference, &store, &options()).unwrap());
        }
    });
    let asked = |request: &&String| request.contains(app.digest().hex());
    assert_eq!(proxy.take_requests().iter().filter(asked).count(), 1);
}
