//! `forkyard exec --session`: a line in the persistent shell of a sandbox.

use base64::Engine as _;
use forkyard_api::routes::SessionRun;
use forkyard_engine::model::SessionOutput;

use crate::args::ExecOptions;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render;

/// Exit code of a line whose time was up, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Runs a line and shows what it wrote once it has ended; its exit code.
pub(super) async fn line(client: &Client, options: ExecOptions) -> Result<u8, Error> {
    let body = SessionRun {
        // Words that are no line of their own are one together, as with ssh(1).
        command: options.shell.unwrap_or_else(|| options.command.join(" ")),
        timeout_ms: options.timeout.map(|timeout| timeout.as_millis() as u64),
    };
    let url = Url::sandbox(&options.id).part("session");
    let output: SessionOutput = client.post(url, &body).await?;
    render::data(&bytes(output.stdout, output.stdout_base64)?)?;
    render::talk(&bytes(output.stderr, output.stderr_base64)?);
    if output.truncated {
        render::note("the line wrote more than a session's answer holds; use `exec` without -s");
    }
    if output.shell_ended {
        render::note("the session's shell ended; the next line gets a new one");
    }
    if output.timed_out {
        render::note("the line was ended because its time was up");
        return Ok(TIMED_OUT);
    }
    Ok(u8::try_from(output.exit_code).unwrap_or(u8::MAX))
}

/// What was written, exactly.
fn bytes(text: String, exact: Option<String>) -> Result<Vec<u8>, Error> {
    match exact {
        None => Ok(text.into_bytes()),
        Some(exact) => base64::engine::general_purpose::STANDARD
            .decode(exact)
            .map_err(|e| Error::Protocol(format!("read its answer: {e}"))),
    }
}
