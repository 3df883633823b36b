//! The server's end of a framed stream: moves frames between a client and a command.

use std::io;

use bytes::Bytes;
use forkyard_engine::model::{Command, Sandbox, TerminalSize};
use forkyard_engine::{Attachment, LiveSandbox, RunningCommand};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::routes::Signal;
use crate::stream::{HEADER, Kind, MAX_PAYLOAD, header, parse_header};

/// What a client is told first.
pub(crate) struct Opening {
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) command: Command,
}

/// Serves a client until the command is over and told, or the client is gone.
///
/// A command that is not detached ends with the last client that follows it.
pub(crate) async fn serve(
    upgrade: OnUpgrade,
    opening: Opening,
    attachment: Attachment,
    live: &LiveSandbox,
) {
    let command = std::sync::Arc::clone(attachment.command());
    let delivered = match upgrade.await {
        Ok(upgraded) => {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            tokio::select! {
                biased;
                done = deliver(writer, &opening, attachment) => done.is_ok(),
                () = take(reader, &command, live) => false,
            }
        }
        Err(_) => false,
    };
    if opening.command.detach {
        return;
    }
    // Whatever goes wrong here means that the sandbox is gone, and the command with it.
    if delivered {
        let _ = live.forget(command.id()).await;
    } else if command.is_unattended() {
        let _ = live.stop(command.id()).await;
        command.wait().await;
        let _ = live.forget(command.id()).await;
    }
}

/// Sends output as it comes, then how the command ended.
async fn deliver(
    mut writer: impl AsyncWrite + Unpin,
    opening: &Opening,
    mut attachment: Attachment,
) -> io::Result<()> {
    let mut first = Vec::new();
    if let Some(sandbox) = &opening.sandbox {
        first.extend(json_frame(Kind::Sandbox, sandbox)?);
    }
    first.extend(json_frame(Kind::Started, &opening.command)?);
    writer.write_all(&first).await?;
    writer.flush().await?;
    loop {
        let mut idle = true;
        for (follower, kind) in attachment.streams.iter().zip([Kind::Stdout, Kind::Stderr]) {
            let bytes = follower.read(MAX_PAYLOAD)?;
            if bytes.is_empty() {
                continue;
            }
            idle = false;
            writer.write_all(&header(kind, bytes.len())).await?;
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            // Only now: what the socket has, the client gets, even when this server dies.
            follower.advance(bytes.len());
        }
        if idle {
            if attachment.is_done() {
                break;
            }
            attachment.changed().await;
        }
    }
    if let Some(exit) = attachment.command().info().exit {
        writer.write_all(&json_frame(Kind::Exit, &exit)?).await?;
    }
    writer.shutdown().await
}

/// Takes stdin, resizes and signals, until the client is gone or sends what makes no sense.
async fn take(mut reader: impl AsyncRead + Unpin, command: &RunningCommand, live: &LiveSandbox) {
    while let Ok((kind, payload)) = read_frame(&mut reader).await {
        let handled = match kind {
            // False: nobody reads it. That is no reason to end anything.
            Kind::Stdin => command.write_stdin(&payload).await.map(drop),
            Kind::StdinEnd => command.close_stdin().await,
            Kind::Resize => match serde_json::from_slice::<TerminalSize>(&payload) {
                Ok(size) => command.resize(size),
                Err(_) => return,
            },
            Kind::Signal => match serde_json::from_slice::<Signal>(&payload) {
                Ok(signal) => live.signal(command.id(), signal.signal).await,
                Err(_) => return,
            },
            _ => return,
        };
        if let Err(error) = handled {
            tracing::debug!(%error, "a client's frame");
        }
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(Kind, Bytes)> {
    let mut head = [0; HEADER];
    reader.read_exact(&mut head).await?;
    let (kind, length) =
        parse_header(head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok((kind, payload.into()))
}

fn json_frame<T: Serialize>(kind: Kind, value: &T) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    // Only an argument list of an absurd length gets here; its tail is of no use to anybody.
    let json = json.get(..MAX_PAYLOAD).unwrap_or(&json);
    let mut frame = header(kind, json.len()).to_vec();
    frame.extend_from_slice(json);
    Ok(frame)
}
