//! A blocking client of the HTTP API on a connection that is kept: what an SDK does, and little
//! else, so that its own cost does not hide the server's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forkyard_api::routes::{ErrorBody, SessionRun};
use forkyard_api::stream::{HEADER, Kind, PROTOCOL, parse_header};
use forkyard_engine::model::{
    CommandSpec, Exit, Fork, ForkSpec, Sandbox, SandboxSpec, SessionOutput, SnapshotSpec,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// How long the server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the server.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// What came back: status, and a body where one was announced.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Api {
    pub(super) fn connect(socket: &Path) -> Result<Self, Error> {
        let failed = |e| Error::Connect { socket: socket.to_owned(), source: e };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self { socket: socket.to_owned(), stream, buffer: Vec::with_capacity(4096) })
    }

    /// Makes a sandbox.
    pub(super) fn create(&mut self, image: Option<&str>) -> Result<Sandbox, Error> {
        let spec = SandboxSpec { image: image.map(str::to_owned), ..SandboxSpec::default() };
        self.ask("POST", "/v1/sandboxes", &to_json(&spec)?).and_then(|body| from_json(&body))
    }

    /// Runs a line in the session; it must succeed and write `expected`.
    pub(super) fn line(&mut self, id: &str, line: &str, expected: &str) -> Result<(), Error> {
        match self.output(id, line)? {
            output if output == expected => Ok(()),
            output => Err(Error::Protocol(format!("`{line}` in the session wrote {output:?}"))),
        }
    }

    /// Runs a line in the session; it must succeed. Gives what it wrote.
    pub(super) fn output(&mut self, id: &str, line: &str) -> Result<String, Error> {
        let run = SessionRun { command: line.to_owned(), timeout_ms: None };
        let body = self.ask("POST", &path(id, "/session"), &to_json(&run)?)?;
        match from_json::<SessionOutput>(&body)? {
            output if output.exit_code == 0 => Ok(output.stdout),
            output => Err(Error::Protocol(format!("`{line}` in the session came to {output:?}"))),
        }
    }

    /// Forks the sandbox live, into so many clones.
    pub(super) fn fork(&mut self, id: &str, count: u32) -> Result<Fork, Error> {
        let spec = ForkSpec { count: Some(count), name: None };
        self.ask("POST", &path(id, "/fork"), &to_json(&spec)?).and_then(|body| from_json(&body))
    }

    /// Writes the sandbox to disk.
    pub(super) fn snapshot(&mut self, id: &str, spec: &SnapshotSpec) -> Result<(), Error> {
        self.ask("POST", &path(id, "/snapshot"), &to_json(spec)?).map(drop)
    }

    /// Makes a sandbox that goes on from a snapshot.
    pub(super) fn create_from(&mut self, snapshot: &str) -> Result<Sandbox, Error> {
        let spec = SandboxSpec { from: Some(snapshot.to_owned()), ..SandboxSpec::default() };
        self.ask("POST", "/v1/sandboxes", &to_json(&spec)?).and_then(|body| from_json(&body))
    }

    /// Removes a snapshot.
    pub(super) fn remove_snapshot(&mut self, name: &str) -> Result<(), Error> {
        self.ask("DELETE", &format!("/v1/snapshots/{name}"), &[]).map(drop)
    }

    /// Runs `/bin/true` as a command of its own, its stdio streamed, on a connection of its own.
    pub(super) fn exec(&self, id: &str) -> Result<(), Error> {
        let spec = CommandSpec { argv: vec!["/bin/true".to_owned()], ..CommandSpec::default() };
        let mut connection = Self::connect(&self.socket)?;
        let extra = format!("connection: upgrade\r\nupgrade: {PROTOCOL}\r\n");
        connection.send("POST", &path(id, "/commands"), &extra, &to_json(&spec)?)?;
        let answer = connection.receive()?;
        if answer.status != 101 {
            return Err(refused(&answer));
        }
        connection.wait_exit()
    }

    /// Reads frames up to the one that says how the command ended.
    fn wait_exit(&mut self) -> Result<(), Error> {
        loop {
            let head = self.take(HEADER)?;
            let head: [u8; HEADER] =
                head.try_into().map_err(|_| Error::Protocol("a short frame".to_owned()))?;
            let (kind, length) = parse_header(head).map_err(|e| Error::Protocol(e.to_string()))?;
            let payload = self.take(length)?;
            match kind {
                Kind::Exit => {
                    let exit: Exit = from_json(&payload)?;
                    return match exit.code {
                        0 => Ok(()),
                        code => Err(Error::Protocol(format!("/bin/true exited with {code}"))),
                    };
                }
                Kind::Error => return Err(Error::Server(from_json(&payload)?)),
                _ => {}
            }
        }
    }

    /// Writes a file of the sandbox.
    pub(super) fn write(&mut self, id: &str, file: &str, bytes: &[u8]) -> Result<(), Error> {
        self.ask("PUT", &path(id, &format!("/files?path={file}")), bytes).map(drop)
    }

    /// Reads a file of the sandbox.
    pub(super) fn read(&mut self, id: &str, file: &str) -> Result<Vec<u8>, Error> {
        self.ask("GET", &path(id, &format!("/files?path={file}")), &[])
    }

    /// Throws the sandbox back to its first state.
    pub(super) fn reset(&mut self, id: &str) -> Result<(), Error> {
        self.ask("POST", &path(id, "/reset"), &[]).map(drop)
    }

    /// Removes the sandbox.
    pub(super) fn delete(&mut self, id: &str) -> Result<(), Error> {
        self.ask("DELETE", &path(id, ""), &[]).map(drop)
    }

    /// Sends a request and gives the answer's body.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
        self.send(method, path, "", body)?;
        let answer = self.receive()?;
        if (200..300).contains(&answer.status) { Ok(answer.body) } else { Err(refused(&answer)) }
    }

    fn send(&mut self, method: &str, path: &str, extra: &str, body: &[u8]) -> Result<(), Error> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: forkyard\r\ncontent-type: application/json\r\n\
             {extra}content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).map_err(|e| Error::io("send a request", e))
    }

    fn receive(&mut self) -> Result<Answer, Error> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head = self.take(end)?;
        let head = String::from_utf8_lossy(&head);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| Error::Protocol(format!("no HTTP: {head}")))?;
        let length =
            head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
        Ok(Answer { status, body: self.take(length.unwrap_or(0))? })
    }

    /// Takes so many bytes off the connection.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() < length {
            self.fill()?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let mut chunk = [0; 16 * 1024];
        let count =
            self.stream.read(&mut chunk).map_err(|e| Error::io("read the server's answer", e))?;
        if count == 0 {
            return Err(Error::Protocol("the server hung up".to_owned()));
        }
        self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        Ok(())
    }
}

fn path(id: &str, rest: &str) -> String {
    format!("/v1/sandboxes/{id}{rest}")
}

fn refused(answer: &Answer) -> Error {
    Error::Server(serde_json::from_slice(&answer.body).unwrap_or_else(|_| ErrorBody {
        code: answer.status,
        message: format!("the server answered {}", answer.status),
        hint: None,
        exit_code: None,
    }))
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::Protocol(format!("write JSON: {e}")))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Protocol(format!("read an answer: {e}")))
}
