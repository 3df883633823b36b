//! Credentials for registries, where `docker login` has put them.
//!
//! `config.json` of Docker's configuration directory: `credHelpers` and `credsStore` name programs
//! that are asked, `auths` holds them itself
//! ([docker login](https://docs.docker.com/reference/cli/docker/login/#credential-stores)).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use oci_client::Reference;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use super::blocking;
use super::error::PullError;
use crate::text::show;

/// Largest configuration file, and longest answer of a helper, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// How long a helper may take: some ask the user on a screen that may not be there.
const HELPER_TIME: Duration = Duration::from_secs(20);

/// What Docker calls its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// How to sign in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    None,
    Basic {
        user: String,
        password: String,
    },
    /// A token to be traded for others.
    Identity(String),
}

/// Why Docker's configuration is unusable.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("read of {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no configuration.
    #[error("{}: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Looks for credentials; also returns what the user should know. A helper that fails is a note
/// and no error: most images need no credentials.
pub(super) async fn find(
    reference: &Reference,
    dir: Option<PathBuf>,
) -> Result<(Credentials, Vec<String>), PullError> {
    let registry = reference.registry().to_owned();
    Ok(blocking(move || find_blocking(&registry, dir)).await??)
}

fn find_blocking(
    registry: &str,
    dir: Option<PathBuf>,
) -> Result<(Credentials, Vec<String>), CredentialsError> {
    let Some(path) = dir.or_else(config_dir).map(|dir| dir.join("config.json")) else {
        return Ok((Credentials::None, Vec::new()));
    };
    let Some(config) = read(&path)? else { return Ok((Credentials::None, Vec::new())) };
    let server = if registry == "docker.io" { DOCKER_HUB } else { registry };
    let own = config.cred_helpers.iter().find(|(key, _)| serves(key, registry));
    let mut notes = Vec::new();
    if let Some(helper) = own.map(|(_, helper)| helper).or(config.creds_store.as_ref()) {
        match ask(helper, server, HELPER_TIME) {
            Ok(Some(credentials)) => return Ok((credentials, notes)),
            Ok(None) => {}
            Err(why) => {
                let helper = show(helper.as_bytes());
                notes
                    .push(format!("docker-credential-{helper}: {why}; asking without credentials"));
            }
        }
    }
    let entry = config.auths.into_iter().find(|(key, _)| serves(key, registry));
    let credentials = entry.map_or(Ok(Credentials::None), |(key, entry)| {
        entry.credentials().map_err(|why| {
            let key = show(key.as_bytes());
            CredentialsError::Format { path, why: format!("credentials for {key}: {why}") }
        })
    })?;
    Ok((credentials, notes))
}

fn config_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))
}

fn read(path: &Path) -> Result<Option<Config>, CredentialsError> {
    let failed = |error| CredentialsError::Io { path: path.to_path_buf(), error };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes).map_err(failed)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        // Where it is wrong, not what is there: it may be a password.
        let why = format!("not Docker's configuration: line {}, column {}", e.line(), e.column());
        CredentialsError::Format { path: path.to_path_buf(), why }
    })
}

/// Whether a key of the file (a host, or a URL from older versions) stands for a registry.
fn serves(key: &str, registry: &str) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = bare.split('/').next().unwrap_or_default();
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    host == registry || (hub.contains(&host) && hub.contains(&registry))
}

impl Entry {
    fn credentials(self) -> Result<Credentials, String> {
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Credentials::Identity(token));
        }
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim());
            let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let text = text.ok_or("`auth` is not base64")?;
            let (user, password) = text.split_once(':').ok_or("`auth` holds no `:`")?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Credentials::Basic { user: user.to_owned(), password });
        }
        match (self.username, self.password) {
            (Some(user), Some(password)) => Ok(Credentials::Basic { user, password }),
            _ => Ok(Credentials::None),
        }
    }
}

/// Asks a helper; `None` when it has nothing.
fn ask(helper: &str, server: &str, time: Duration) -> Result<Option<Credentials>, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err("not a name of a helper".to_owned());
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("exec: {e}"))?;
    let answer = talk(&mut child, server, Instant::now() + time);
    if answer.is_err() {
        // Its end is not waited for by anybody else; killing what has ended is no harm.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| format!("wait: {e}"))?;
    let answer = answer?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        let nothing = said.contains("credentials not found") || said.contains("no credentials");
        return if nothing { Ok(None) } else { Err(show(said.trim().as_bytes())) };
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| "its answer is not JSON".to_owned())?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Basic { user: answer.username, password: answer.secret },
    }))
}

/// Writes the server's name to a helper and reads its answer until it ends.
fn talk(child: &mut Child, server: &str, deadline: Instant) -> Result<Vec<u8>, String> {
    let error = |e: io::Error| e.to_string();
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()) {
            // It need not read what it does not care for.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(error(e)),
            _ => {}
        }
    }
    let mut stdout = child.stdout.take().ok_or("no pipe")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        wait_for(&stdout, deadline)?;
        let read = crate::text::read_some(&mut stdout, &mut buffer).map_err(error)?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if answer.len() as u64 > MAX_SIZE {
            return Err("its answer is too long".to_owned());
        }
    }
    let id = rustix::process::Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty());
    wait_for(pidfd.map_err(|e| e.to_string())?, deadline)?;
    Ok(answer)
}

fn wait_for(fd: impl AsFd, deadline: Instant) -> Result<(), String> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left =
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
        Ok(0) => Err("no answer in time".to_owned()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(registry: &str, json: &str) -> Result<Credentials, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        find_blocking(registry, Some(dir.path().to_path_buf())).map(|(found, _)| found)
    }

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn credentials_are_found_by_host() {
        let json = r#"{"auths": {"reg.example:5000": {"auth": "dTpwOnc="},
            "https://index.docker.io/v1/": {"identitytoken": "t"}, "other": {}}}"#;
        assert!(found("reg.example:5000", json).unwrap() == basic("u", "p:w"));
        assert!(found("docker.io", json).unwrap() == Credentials::Identity("t".to_owned()));
        assert!(found("reg.example", json).unwrap() == Credentials::None);
        assert!(found("other", json).unwrap() == Credentials::None);
    }

    #[test]
    fn broken_configurations_are_errors_without_secrets_in_them() {
        let error = found("r", r#"{"auths": {"r": {"auth": "secret!"}}}"#).err().unwrap();
        assert!(!error.to_string().contains("secret"), "{error}");
        let error = found("r", r#"{"auths": {"r": "hunter2"}}"#).err().unwrap();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn helpers_cannot_be_paths() {
        assert!(ask("../../tmp/evil", "r", HELPER_TIME).is_err());
        assert!(ask("", "r", HELPER_TIME).is_err());
    }

    #[test]
    fn a_missing_helper_is_a_note() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"credsStore": "is-not-installed"}"#;
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        let (found, notes) = find_blocking("r", Some(dir.path().to_path_buf())).unwrap();
        assert!(found == Credentials::None);
        assert_eq!(notes.len(), 1);
    }
}
