//! Joins our stdin, stdout, stderr, signals and terminal to a command in a sandbox.
//!
//! One loop does everything at once, so that no direction can hold up another: output waits for
//! our reader while stdin waits for the command, and signals pass both. When the server is
//! killed, the sandbox lives on: the loop attaches again through a new server, at the byte where
//! the output broke off.

mod input;
mod outgoing;
mod output;
mod signals;
mod terminal;

use std::time::Duration;

use bytes::{Buf, Bytes};
use forkyard_api::routes::Signal;
use forkyard_api::stream::Kind;
use forkyard_engine::model::Exit;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use crate::args::caller_terminal_size;
use crate::client::frames::{Channel, Frame, FrameStream, Offsets, json_frame};
use crate::client::{Client, Url};
use crate::error::{Error, LostCommand};
use input::Input;
use outgoing::Outgoing;
use output::Output;
use signals::{Asked, Signals};
use terminal::RawMode;

/// How long a killed server may take to be there again.
const RETURN: Duration = Duration::from_secs(10);

/// Between two attempts to attach again.
const RETRY: Duration = Duration::from_millis(50);

/// What of ours the command gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// stdin.
    pub(crate) stdin: bool,
    /// A terminal: ours is raw while it reads from it.
    pub(crate) tty: bool,
}

/// Which command it is, as far as is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// The sandbox; `run` learns it from the server.
    pub(crate) sandbox: Option<String>,
    /// The command; `run` and `exec` learn it from the server.
    pub(crate) command: Option<u32>,
    /// What was got of its output before.
    pub(crate) offsets: Offsets,
}

/// Everything of ours, taken before the command is asked for.
#[derive(Debug)]
pub(crate) struct Relay {
    joined: Joined,
    signals: Signals,
    /// Restores the terminal however this ends.
    _raw: Option<RawMode>,
}

impl Relay {
    /// Takes over signals and, for a terminal that is read from, its mode.
    pub(crate) fn prepare(joined: Joined) -> Result<Self, Error> {
        let signals = Signals::take(joined.tty)?;
        let raw = if joined.tty && joined.stdin { RawMode::enter()? } else { None };
        Ok(Self { joined, signals, _raw: raw })
    }

    /// Joins everything to `stream` until the command has ended.
    pub(crate) async fn join(
        mut self,
        client: &Client,
        stream: FrameStream,
        target: Target,
    ) -> Result<Exit, Error> {
        let input = if self.joined.stdin { Some(Input::start()?) } else { None };
        let mut exchange = Exchange {
            client,
            stream,
            target,
            input,
            outgoing: Outgoing::default(),
            writable: true,
            shown: None,
            stdout: Output::stdout(),
            stderr: Output::stderr(),
        };
        loop {
            match exchange.step(&mut self.signals).await? {
                Step::Going => {}
                Step::Ended(exit) => return Ok(exit),
                Step::Lost => exchange.find_again(&mut self.signals).await?,
            }
        }
    }
}

/// The state of the loop.
struct Exchange<'a> {
    client: &'a Client,
    stream: FrameStream,
    target: Target,
    /// stdin until its end.
    input: Option<Input>,
    outgoing: Outgoing,
    /// Whether the server takes what we send.
    writable: bool,
    /// Output on its way to our reader.
    shown: Option<(Channel, Bytes)>,
    stdout: Output,
    stderr: Output,
}

enum Step {
    Going,
    Ended(Exit),
    /// The connection ended without a last frame.
    Lost,
}

impl Exchange<'_> {
    /// Does whatever can be done first.
    async fn step(&mut self, signals: &mut Signals) -> Result<Step, Error> {
        let sending = self.writable && !self.outgoing.rest().is_empty();
        let reading = self.input.is_some() && self.outgoing.is_idle();
        tokio::select! {
            written = show(&mut self.stdout, &mut self.stderr, self.shown.as_ref()),
                if self.shown.is_some() => self.was_shown(written?),
            frame = self.stream.reader.next(), if self.shown.is_none() => {
                return frame?.map_or(Ok(Step::Lost), |frame| self.take(frame));
            }
            written = self.stream.writer.write(self.outgoing.rest()), if sending => match written {
                Ok(written) => self.outgoing.sent(written),
                // The other direction tells how the command ended, or that the server is lost.
                Err(_) => self.writable = false,
            },
            frame = next_input(self.input.as_mut()), if reading => if let Some(frame) = frame {
                self.outgoing.push(frame);
            } else {
                self.input = None;
                self.outgoing.end_stdin();
            },
            asked = signals.next() => self.obey(asked)?,
        }
        Ok(Step::Going)
    }

    fn take(&mut self, frame: Frame) -> Result<Step, Error> {
        match frame {
            Frame::Sandbox(sandbox) => self.target.sandbox = Some(sandbox.id.to_string()),
            Frame::Started(command) => self.target.command = Some(command.id.0),
            Frame::Output(channel, bytes) => {
                self.target.offsets.add(channel, bytes.len());
                self.shown = Some((channel, bytes));
            }
            Frame::Exit(exit) => return Ok(Step::Ended(exit)),
            Frame::Error(body) => return Err(Error::Server(body)),
        }
        Ok(Step::Going)
    }

    fn was_shown(&mut self, written: usize) {
        if let Some((_, bytes)) = &mut self.shown {
            bytes.advance(written);
            if bytes.is_empty() {
                self.shown = None;
            }
        }
    }

    fn obey(&mut self, asked: Asked) -> Result<(), Error> {
        match asked {
            Asked::Leave => Err(Error::Interrupted),
            Asked::Resize => {
                self.outgoing.push(json_frame(Kind::Resize, &caller_terminal_size())?);
                Ok(())
            }
            Asked::Pass(signal) => self.pass(Signal { signal }),
        }
    }

    /// Sends a signal. Behind stdin that the command does not read it might wait for ever; then
    /// it takes a connection of its own.
    fn pass(&mut self, signal: Signal) -> Result<(), Error> {
        match (&self.target.sandbox, self.target.command) {
            (Some(sandbox), Some(command)) if !self.outgoing.is_idle() => {
                let url = Url::command(sandbox, command).part("signal");
                let client = self.client.clone();
                // A command that has ended meanwhile needs no signal.
                tokio::spawn(async move { client.tell(url, &signal).await.ok() });
            }
            _ => self.outgoing.push(json_frame(Kind::Signal, &signal)?),
        }
        Ok(())
    }

    /// Attaches to the command again after its server was killed.
    async fn find_again(&mut self, signals: &mut Signals) -> Result<(), Error> {
        let (Some(sandbox), Some(command)) = (self.target.sandbox.clone(), self.target.command)
        else {
            let why = "it ended before it said that the command was started".to_owned();
            return Err(Error::Lost { why, command: None });
        };
        let lost = LostCommand { sandbox, command, offsets: self.target.offsets };
        let client = self.client;
        let attached = attach_again(client, lost.clone());
        tokio::pin!(attached);
        let attached = loop {
            tokio::select! {
                stream = &mut attached => break stream,
                asked = signals.next() => self.obey(asked)?,
            }
        };
        self.stream = match attached {
            Ok(stream) => stream,
            Err(why) => return Err(Error::Lost { why: why.to_string(), command: Some(lost) }),
        };
        self.outgoing.reconnected();
        self.writable = true;
        Ok(())
    }
}

async fn show(
    stdout: &mut Output,
    stderr: &mut Output,
    shown: Option<&(Channel, Bytes)>,
) -> Result<usize, Error> {
    match shown {
        Some((Channel::Stdout, bytes)) => stdout.write(bytes).await.map_err(Error::stdout),
        Some((Channel::Stderr, bytes)) => {
            stderr.write(bytes).await.map_err(|e| Error::io("write to stderr", e))
        }
        None => Ok(0),
    }
}

async fn next_input(input: Option<&mut Input>) -> Option<Bytes> {
    input?.next().await
}

/// Tries until the server is back, or says that the command is not.
async fn attach_again(client: &Client, lost: LostCommand) -> Result<FrameStream, Error> {
    let deadline = Instant::now() + RETURN;
    loop {
        match tokio::time::timeout_at(deadline, client.attach(attach_url(&lost))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refused @ (Error::Server(_) | Error::Start { .. }))) => return Err(refused),
            Ok(Err(error)) if Instant::now() >= deadline => return Err(error),
            Ok(Err(_)) => sleep(RETRY).await,
            Err(_) => {
                let why = format!("no answer within {} s", RETURN.as_secs());
                return Err(Error::Protocol(why));
            }
        }
    }
}

/// Where a command's output goes on.
pub(crate) fn attach_url(command: &LostCommand) -> Url {
    Url::command(&command.sandbox, command.command)
        .part("attach")
        .query("stdout", command.offsets.stdout.to_string())
        .query("stderr", command.offsets.stderr.to_string())
}
