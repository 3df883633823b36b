//! A real registry on loopback, and a proxy before it that misbehaves.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{find_program, print_skip};

/// `user:letmein`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuKwWV7ESJpzKzf9FQg57dBvMuv92X9HS\n";

/// Debian's `docker-registry`; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// Its storage.
    dir: tempfile::TempDir,
    /// Address and port.
    pub host: String,
}

impl Registry {
    /// Starts one; `None` counts the test as skipped, with the program that is missing.
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// One that wants a name and a password.
    pub fn start_locked() -> Option<Self> {
        Self::start_with("auth:\n  htpasswd:\n    realm: test\n    path: DIR/htpasswd\n")
    }

    fn start_with(more: &str) -> Option<Self> {
        let registry = needed("docker-registry")?;
        needed("skopeo")?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = dir.path().to_str().expect("a path in UTF-8");
        fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("write its configuration");
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {at}\n\
             http:\n  addr: 127.0.0.1:0\n{}",
            more.replace("DIR", at)
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("write its configuration");
        let mut child = Command::new(registry)
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start docker-registry");
        let mut lines = BufReader::new(child.stderr.take().expect("its stderr")).lines();
        let host = lines.find_map(|line| {
            let line = line.ok()?;
            let rest = line.split("listening on ").nth(1)?;
            Some(rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect())
        });
        // Read on, or the registry would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, dir, host: host.expect("the registry says where it listens") })
    }

    /// Copies a tag of a layout into a repository.
    pub fn push(&self, layout: &Path, tag: &str, repository: &str) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--all", "--dest-tls-verify=false"])
            .args(["--dest-creds", "user:letmein"])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{repository}:{tag}", self.host))
            .output()
            .expect("run skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Flips a byte in the middle of a blob, behind the registry's back.
    pub fn damage(&self, blob: &forkyard_image::Digest) {
        self.change(blob, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }

    /// Takes the second half of a blob away, likewise.
    pub fn truncate(&self, blob: &forkyard_image::Digest) {
        self.change(blob, |bytes| bytes.truncate(bytes.len() / 2));
    }

    fn change(&self, blob: &forkyard_image::Digest, change: impl FnOnce(&mut Vec<u8>)) {
        let hex = blob.hex();
        let path = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let path = self.dir.path().join(path);
        let mut bytes = fs::read(&path).expect("read a blob of the registry");
        change(&mut bytes);
        fs::write(path, bytes).expect("write a blob of the registry");
    }
}

/// The program's path, or a line that counts the test that runs in this thread as skipped.
fn needed(name: &str) -> Option<PathBuf> {
    let found = find_program(name);
    if found.is_none() {
        let thread = std::thread::current();
        print_skip(thread.name().unwrap_or("a test"), name);
    }
    found
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a proxy treats blobs of more than 4 KiB, and who may ask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    /// As a proxy should.
    Honest,
    /// Closes the connection after this many bytes of a body, once.
    CutOnce(usize),
    /// The same each time.
    Cut(usize),
    /// Stops sending after this many bytes and keeps the connection.
    Hang(usize),
    /// Wants a token, which it gives for the identity token `identity`.
    Token,
}

/// A proxy on loopback before a registry.
#[derive(Debug)]
pub struct Proxy {
    /// Address and port.
    pub host: String,
    mood: Arc<Mutex<Mood>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// A proxy that serves until the test ends.
    pub fn before(registry: &Registry, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let host = listener.local_addr().expect("listen on loopback").to_string();
        let (mood, requests) = (Arc::new(Mutex::new(mood)), Arc::new(Mutex::new(Vec::new())));
        let (upstream, own) = (registry.host.clone(), host.clone());
        let shared = (mood.clone(), requests.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (upstream, own) = (upstream.clone(), own.clone());
                let (mood, requests) = shared.clone();
                // A client that goes away in the middle is part of the tests.
                std::thread::spawn(move || {
                    let _ = serve(client?, &upstream, &own, &mood, &requests);
                    Ok::<(), std::io::Error>(())
                });
            }
        });
        Self { host, mood, requests }
    }

    /// Changes how it treats what is asked from now on.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// Lines of requests since the last call: method, path, and the range asked for.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(
    mut client: TcpStream,
    upstream: &str,
    own: &str,
    mood: &Mutex<Mood>,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let field = |name: &str| {
        let line = head.iter().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        line.map(|line| line[name.len() + 2..].to_owned())
    };
    let range = field("range").unwrap_or_default();
    requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{} {range}", head[0]));
    let now = *mood.lock().unwrap_or_else(PoisonError::into_inner);
    if now == Mood::Token {
        let length = field("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if head[0].starts_with("POST /token") && body.contains("refresh_token=identity") {
            return answer(&mut client, "200 OK", "", r#"{"access_token": "granted"}"#);
        }
        if field("authorization").as_deref() != Some("Bearer granted") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\"\r\n"
            );
            return answer(&mut client, "401 Unauthorized", &challenge, "{}");
        }
    }
    let mut server = TcpStream::connect(upstream)?;
    let mut kept = String::new();
    for line in &head {
        let lower = line.to_ascii_lowercase();
        let ours = now == Mood::Token && lower.starts_with("authorization:");
        if !ours && !lower.starts_with("connection:") {
            kept += line;
            kept += "\r\n";
        }
    }
    server.write_all(format!("{kept}Connection: close\r\n\r\n").as_bytes())?;
    let mut response = Vec::new();
    server.read_to_end(&mut response)?;
    let body = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0) + 4;
    let large = head[0].contains("/blobs/") && response.len() - body > 4096;
    match now {
        Mood::CutOnce(at) | Mood::Cut(at) if large => {
            if now == Mood::CutOnce(at) {
                *mood.lock().unwrap_or_else(PoisonError::into_inner) = Mood::Honest;
            }
            client.write_all(&response[..(body + at).min(response.len())])?;
        }
        Mood::Hang(at) if large => {
            client.write_all(&response[..(body + at).min(response.len())])?;
            // Until the client gives up.
            reader.read_to_end(&mut Vec::new())?;
        }
        _ => client.write_all(&response)?,
    }
    client.shutdown(Shutdown::Both)
}

fn answer(client: &mut TcpStream, status: &str, more: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\n");
    client.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())?;
    client.shutdown(Shutdown::Both)
}
