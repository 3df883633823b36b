//! A client of the framed stream that does as a test says, and no more.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use forkyard_api::stream::{HEADER, Kind, PROTOCOL, header, parse_header};
use forkyard_engine::model::{Command, Exit, Sandbox, TerminalSize};
use serde_json::Value;

use super::SOON;

/// A frame, as it came.
pub type Frame = (Kind, Vec<u8>);

/// A command's stdio over a connection of its own.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// The sandbox, when it was made for this command.
    pub sandbox: Option<Sandbox>,
    /// The command.
    pub command: Command,
}

/// What a command wrote and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
}

impl Stream {
    /// POST `body` to `path`; the error is the answer's status and message.
    pub fn open(server: &Path, path: &str, body: &Value) -> Result<Self, (u16, String)> {
        Self::upgrade(server, "POST", path, &body.to_string())
    }

    /// Attaches to a command that runs.
    pub fn attach(server: &Path, path: &str) -> Result<Self, (u16, String)> {
        Self::upgrade(server, "GET", path, "")
    }

    /// As [`Stream::open`], where the server may be killed meanwhile.
    pub fn try_open(server: &Path, path: &str, body: &Value) -> io::Result<Self> {
        let lost = || io::Error::from(io::ErrorKind::BrokenPipe);
        Self::try_upgrade(server, "POST", path, &body.to_string())?.map_err(|_| lost())
    }

    fn upgrade(server: &Path, method: &str, path: &str, body: &str) -> Result<Self, (u16, String)> {
        Self::try_upgrade(server, method, path, body).unwrap()
    }

    /// The outer error is the connection's, the inner one the server's answer.
    fn try_upgrade(
        server: &Path,
        method: &str,
        path: &str,
        body: &str,
    ) -> io::Result<Result<Self, (u16, String)>> {
        let mut socket = UnixStream::connect(server)?;
        socket.set_read_timeout(Some(SOON)).unwrap();
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status != 101 {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            socket.read_exact(&mut body)?;
            let error: Value = serde_json::from_slice(&body).unwrap_or_default();
            let message = error["message"].as_str().unwrap_or_default().to_owned();
            return Ok(Err((status, message)));
        }
        let mut sandbox = None;
        let command = loop {
            match read_frame(&mut socket)? {
                Some((Kind::Sandbox, json)) => sandbox = serde_json::from_slice(&json).unwrap(),
                Some((Kind::Started, json)) => break serde_json::from_slice(&json).unwrap(),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                other => panic!("not the start of a stream: {other:?}"),
            }
        };
        Ok(Ok(Self { socket, sandbox, command }))
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.socket.write_all(&header(kind, payload.len()))?;
        self.socket.write_all(payload)
    }

    /// Types into the command's terminal, or writes to its stdin.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.send(Kind::Stdin, text.as_bytes()).unwrap();
    }

    /// Sets the terminal's size.
    #[track_caller]
    pub fn resize(&mut self, rows: u16, cols: u16) {
        let size = serde_json::to_vec(&TerminalSize { rows, cols }).unwrap();
        self.send(Kind::Resize, &size).unwrap();
    }

    /// The next frame; `None` at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<Frame> {
        read_frame(&mut self.socket).unwrap()
    }

    /// The next frame, or as much of its payload as came before the server was killed; `None` when
    /// nothing did.
    pub fn part(&mut self) -> Option<Frame> {
        let mut head = [0; HEADER];
        self.socket.read_exact(&mut head).ok()?;
        let (kind, length) = parse_header(head).unwrap();
        let mut payload = Vec::with_capacity(length);
        let whole = (&self.socket).take(length as u64).read_to_end(&mut payload);
        let output = matches!(kind, Kind::Stdout | Kind::Stderr);
        let whole = whole.is_ok() && payload.len() == length;
        (whole || output && !payload.is_empty()).then_some((kind, payload))
    }

    /// Reads output until `text` is in it; gives all that came.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + SOON;
        let mut all = String::new();
        while !all.contains(text) {
            assert!(Instant::now() < end, "no `{text}` in: {all}");
            match read_frame(&mut self.socket) {
                Ok(Some((Kind::Stdout | Kind::Stderr, bytes))) => {
                    all.push_str(&String::from_utf8_lossy(&bytes));
                }
                other => panic!("{other:?} came, and no `{text}` in: {all:?}"),
            }
        }
        all
    }

    /// Reads to the end.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Some((Kind::Stdout, bytes)) => stdout.extend(bytes),
                Some((Kind::Stderr, bytes)) => stderr.extend(bytes),
                Some((Kind::Exit, json)) => {
                    let exit = serde_json::from_slice(&json).unwrap();
                    return Outcome { stdout, stderr, exit };
                }
                other => panic!("{other:?} came before the command's exit"),
            }
        }
    }

    /// Whether nothing comes for this long.
    pub fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let silent = (&self.socket).read(&mut [0; 1]).is_err();
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        silent
    }
}

fn read_frame(socket: &mut UnixStream) -> io::Result<Option<Frame>> {
    let mut head = [0; HEADER];
    match socket.read_exact(&mut head) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (kind, length) = parse_header(head).unwrap();
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}
