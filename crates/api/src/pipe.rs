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
        first.extend(json_frame(Kind::Sandbox, &shortened(sandbox))?);
    }
    first.extend(json_frame(
        Kind::Started,
        &Command { argv: cut(&opening.command.argv), ..opening.command.clone() },
    )?);
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
            Kind::StdinEnd => live.close_stdin(command).await,
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

/// Of an argument list too long for a frame, as much as is sure to fit: escaped for JSON, a byte
/// becomes six at most. It is for people to recognise the command by.
fn cut(argv: &[String]) -> Vec<String> {
    const MOST: usize = MAX_PAYLOAD / 8;
    let mut left = MOST;
    let mut kept = Vec::new();
    for argument in argv {
        // Quotes and a comma.
        left = left.saturating_sub(3);
        if argument.len() > left {
            let end = (0..=left).rev().find(|&at| argument.is_char_boundary(at)).unwrap_or(0);
            kept.push(format!("{}...", argument.get(..end).unwrap_or_default()));
            break;
        }
        left -= argument.len();
        kept.push(argument.clone());
    }
    kept
}

/// A sandbox without its maker's own texts where these do not fit into a frame; `inspect` has all.
fn shortened(sandbox: &Sandbox) -> Sandbox {
    let mut sandbox = sandbox.clone();
    if serde_json::to_vec(&sandbox).is_ok_and(|json| json.len() > MAX_PAYLOAD) {
        sandbox.spec.env.clear();
        sandbox.spec.metadata.clear();
    }
    sandbox
}

fn json_frame<T: Serialize>(kind: Kind, value: &T) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    if json.len() > MAX_PAYLOAD {
        let what = format!("{kind:?} frame of {} bytes; at most {MAX_PAYLOAD}", json.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut frame = header(kind, json.len()).to_vec();
    frame.extend_from_slice(&json);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_argument_list_fits_into_a_frame() {
        let long = "\u{1}".repeat(200_000);
        let many: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        let emoji = vec!["\u{1f980}".repeat(50_000)];
        for argv in [vec!["sh".to_owned(), long], many, emoji] {
            let kept = cut(&argv);
            assert_eq!(kept[0].get(..1), argv[0].get(..1));
            assert!(serde_json::to_vec(&kept).unwrap().len() < MAX_PAYLOAD);
        }
        let short = vec!["echo".to_owned(), String::new()];
        assert_eq!(cut(&short), short);
    }
}
