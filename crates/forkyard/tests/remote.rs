//! Clients over TCP: keys, TLS, and what is not for them.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forkyard_testkit::{TestServer, find_program, finish, skip};
use serde_json::{Value, json};
use support::{create, refused};

/// Where a server takes requests with keys.
struct Remote<'a> {
    server: &'a TestServer,
    url: String,
    key: String,
}

impl<'a> Remote<'a> {
    #[track_caller]
    fn of(server: &'a TestServer) -> Self {
        let (_, health) = server.get("/v1/health");
        let health: Value = serde_json::from_slice(&health).unwrap();
        let url = health["listen"][0].as_str().unwrap().to_owned();
        let key = server.ok(&["key", "create"]).trim().to_owned();
        Self { server, url, key }
    }

    /// Status and body, of curl with these arguments.
    #[track_caller]
    fn curl(&self, target: &str, args: &[&str]) -> (u16, Value) {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "30", "-w", "\n%{http_code}", "--noproxy", "*"]);
        let out = finish(curl.args(args).arg(format!("{}{target}", self.url)), b"");
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
        (status.parse().unwrap(), body)
    }

    /// The same with the key, and JSON to post if any.
    #[track_caller]
    fn ask(&self, target: &str, body: Option<Value>) -> (u16, Value) {
        let key = format!("X-API-Key: {}", self.key);
        match body.map(|body| body.to_string()) {
            Some(body) => self.curl(target, &["-H", &key, "-d", &body]),
            None => self.curl(target, &["-H", &key]),
        }
    }

    /// A connection of its own.
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }
}

fn listening() -> TestServer {
    TestServer::start_with(&["--listen", "127.0.0.1:0"])
}

#[test]
fn without_a_key_there_is_no_answer() {
    let server = listening();
    let remote = Remote::of(&server);
    let wrong = format!("e2b_{}", "0".repeat(40));
    for args in [
        vec![],
        vec!["-H".to_owned(), format!("X-API-Key: {wrong}")],
        vec!["-H".to_owned(), format!("Authorization: Bearer {wrong}")],
        vec!["-H".to_owned(), format!("Authorization: Basic {}", remote.key)],
        vec!["-H".to_owned(), format!("X-API-Key: {}x", remote.key)],
        vec!["-H".to_owned(), "X-API-Key:;".to_owned()],
    ] {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        for target in ["/v1/health", "/v1/sandboxes", "/v1/keys", "/nowhere"] {
            let (status, body) = remote.curl(target, &args);
            assert_eq!((status, &body["code"]), (401, &401.into()), "{target} {args:?}: {body}");
            assert!(body["hint"].as_str().unwrap().contains("forkyard key create"), "{body}");
        }
    }
}

#[test]
fn a_key_is_good_until_it_is_removed() {
    let server = listening();
    let remote = Remote::of(&server);
    assert_eq!(remote.ask("/v1/sandboxes", None), (200, json!([])));
    let bearer = format!("Authorization: Bearer {}", remote.key);
    assert_eq!(remote.curl("/v1/sandboxes", &["-H", &bearer]), (200, json!([])));
    let keys: Value = serde_json::from_str(&server.ok(&["key", "ls", "--json"])).unwrap();
    let id = keys[0]["id"].as_str().unwrap();
    assert_eq!(server.ok(&["key", "rm", id]), format!("{id}\n"));
    assert_eq!(remote.ask("/v1/sandboxes", None).0, 401);
    assert_eq!(server.ok(&["key", "ls", "-q"]), "");
    refused(&server.cli(&["key", "rm", id]), 125, &format!("no such key: {id}"));
    server.ok(&["key", "rm", "-f", id]);
}

#[test]
fn keys_have_names_and_their_secrets_are_not_kept() {
    let server = TestServer::start();
    let made: Value = serde_json::from_str(&server.ok(&["key", "create", "ci", "--json"])).unwrap();
    let secret = made["secret"].as_str().unwrap();
    assert_eq!((secret.len(), &secret[..4], &made["name"]), (44, "e2b_", &"ci".into()));
    refused(&server.cli(&["key", "create", "ci"]), 125, "name taken: ci is key");
    refused(&server.cli(&["key", "create", "a/b"]), 125, "name `a/b`");
    assert!(!server.ok(&["key", "ls"]).contains(secret));
    for entry in std::fs::read_dir(server.store()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "the secret is in {}", path.display());
    }
    server.ok(&["key", "rm", "ci"]);
}

#[test]
fn who_has_a_key_makes_and_uses_sandboxes() {
    let server = listening();
    let remote = Remote::of(&server);
    let (status, made) = remote.ask("/v1/sandboxes", Some(json!({"name": "far"})));
    assert_eq!(status, 201, "{made}");
    let line = json!({"command": "X=5; echo $((X + 1))"});
    let (_, output) = remote.ask("/v1/sandboxes/far/session", Some(line));
    assert_eq!((&output["stdout"], &output["exit_code"]), (&"6\n".into(), &0.into()), "{output}");
    let (status, fork) = remote.ask("/v1/sandboxes/far/fork", Some(json!({})));
    assert_eq!(status, 201, "{fork}");
    let command = json!({"argv": ["echo", "there"], "detach": true});
    assert_eq!(remote.ask("/v1/sandboxes/far/commands", Some(command)).0, 201);
    let (_, ended) = remote.ask("/v1/sandboxes/far/commands/1/wait", Some(json!({})));
    assert_eq!(ended["exit"]["code"], 0, "{ended}");
    let output = "/v1/sandboxes/far/commands/1/output?stream=stdout";
    assert_eq!(remote.ask(output, None).1, "there\n");
}

#[test]
fn the_stdio_of_a_command_passes_tcp_whole() {
    let server = listening();
    let remote = Remote::of(&server);
    let sandbox = create(&server, &[]);
    let mut stream = remote.connect();
    let body = json!({"argv": ["sh", "-c", "seq 200000; exit 3"]}).to_string();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nconnection: upgrade\r\n\
         upgrade: forkyard-stream\r\ncontent-length: {}\r\n\r\n{body}",
        sandbox.path("/commands"),
        remote.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // The server closes it behind the exit frame.
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 101"), "{}", &text[..text.len().min(300)]);
    assert!(text.contains("199999\n") && text.contains("200000\n"));
}

#[test]
fn what_is_about_this_machine_is_not_for_them() {
    let server = listening();
    let remote = Remote::of(&server);
    let volume = json!({"volumes": [{"source": "/etc", "target": "/x"}]});
    for (target, body) in [
        ("/v1/sandboxes", volume.clone()),
        ("/v1/sandboxes", json!({"workspace": {"source": "/etc"}})),
        ("/v1/sandboxes", json!({"net": "host"})),
        ("/v1/images/import", json!({"path": "/etc", "name": "etc"})),
        ("/v1/keys", json!({})),
        ("/v1/shutdown", json!({})),
    ] {
        let (status, answer) = remote.ask(target, Some(body.clone()));
        assert_eq!(status, 403, "{target} {body}: {answer}");
        assert!(answer["hint"].as_str().unwrap().contains("Unix socket"), "{answer}");
    }
    assert_eq!(remote.ask("/v1/keys", None).0, 403);
    assert_eq!(server.ok(&["ls", "-q"]), "");
    // Nor by way of a command that brings its sandbox along.
    let key = format!("X-API-Key: {}", remote.key);
    let body = json!({"sandbox": volume, "command": {"argv": ["true"]}}).to_string();
    let upgrade = ["-H", &key, "-H", "Connection: upgrade", "-H", "Upgrade: forkyard-stream"];
    let (status, answer) = remote.curl("/v1/run", &[&upgrade[..], &["-d", &body]].concat());
    assert_eq!(status, 403, "{answer}");
}

#[test]
fn strangers_who_send_nonsense_or_nothing_are_in_nobodys_way() {
    let server = listening();
    let remote = Remote::of(&server);
    let _silent: Vec<_> = (0..200).map(|_| remote.connect()).collect();
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = remote.connect();
        stream.write_all(nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1."), "{text}");
    }
    let mut long = remote.connect();
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(1_000_000));
    let _ = long.write_all(head.as_bytes());
    let mut answer = [0; 12];
    long.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    assert_eq!(remote.ask("/v1/sandboxes", None).0, 200);
    // Half a body, and gone.
    let mut half = remote.connect();
    let head = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 50\r\n\r\n{{",
        remote.key
    );
    half.write_all(head.as_bytes()).unwrap();
    drop(half);
    assert_eq!(remote.server.ok(&["ls", "-q"]), "");
}

#[test]
fn a_server_with_a_certificate_speaks_tls() {
    if find_program("openssl").is_none() {
        skip!("openssl");
    }
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), "one");
    let server = TestServer::start_with(&[
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ]);
    let remote = Remote::of(&server);
    assert!(remote.url.starts_with("https://"), "{}", remote.url);
    let header = format!("X-API-Key: {}", remote.key);
    assert_eq!(remote.curl("/v1/sandboxes", &["--cacert", &cert, "-H", &header]).0, 200);
    // Whoever speaks without is told nothing.
    let plain = Remote { url: remote.url.replace("https", "http"), ..Remote::of(&server) };
    assert_ne!(plain.ask("/v1/sandboxes", None).0, 200);
}

#[test]
fn a_server_that_cannot_listen_as_asked_says_why() {
    let server = listening();
    let remote = Remote::of(&server);
    let taken = remote.url.strip_prefix("http://").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (store, socket) = (dir.path().join("store"), dir.path().join("sock"));
    let serve = |args: &[&str]| {
        let mut command = server.command(&["serve"]);
        finish(command.arg("--store").arg(&store).arg("--socket").arg(&socket).args(args), b"")
    };
    refused(&serve(&["--listen", taken]), 125, "Address already in use");
    refused(&serve(&["--listen", "here"]), 125, "write 127.0.0.1:3000");
    refused(&serve(&["--tls-cert", "x", "--tls-key", "y"]), 125, "--listen");
    let missing = ["--listen", "127.0.0.1:0", "--tls-cert", "/no/cert", "--tls-key", "/no/key"];
    refused(&serve(&missing), 125, "/no/cert");
    if find_program("openssl").is_some() {
        let ((cert, _), (_, key)) =
            (certificate(dir.path(), "one"), certificate(dir.path(), "two"));
        let other = ["--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
        refused(&serve(&other), 125, "certificate and key");
    }
}

/// Makes a certificate of 127.0.0.1 and its key.
#[track_caller]
fn certificate(dir: &Path, name: &str) -> (String, String) {
    let path = |kind: &str| dir.join(format!("{name}.{kind}")).display().to_string();
    let (cert, key) = (path("cert"), path("key"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    openssl.args(["-subj", "/CN=forkyard", "-addext", "subjectAltName=IP:127.0.0.1"]);
    let out = finish(openssl.args(["-keyout", &key, "-out", &cert]), b"");
    assert!(out.status.success(), "openssl: {}", String::from_utf8_lossy(&out.stderr));
    (cert, key)
}

#[test]
fn keys_outlive_the_server() {
    let mut server = listening();
    let first = Remote::of(&server).key;
    server.kill9();
    server.restart();
    let remote = Remote { key: first, ..Remote::of(&server) };
    assert_eq!(remote.ask("/v1/sandboxes", None).0, 200);
}
