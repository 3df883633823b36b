//! What each operation takes, measured over the server's socket: no start of a command line in it.

use std::time::{Duration, Instant};

use forkyard_api::routes::{Run, SessionRun};
use forkyard_engine::model::{CommandSpec, Sandbox, SandboxSpec, SessionOutput};
use hyper::Method;

use crate::client::frames::Frame;
use crate::client::{Client, Url};
use crate::error::Error;

/// Rounds of each measurement; the median is told.
const ROUNDS: usize = 20;

/// Lines measured in each round's session.
const LINES: usize = 5;

/// Medians.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) create: Duration,
    pub(super) builtin: Duration,
    pub(super) program: Duration,
    pub(super) reset: Duration,
    pub(super) delete: Duration,
    /// Create, start a command, its end and output, delete.
    pub(super) run: Duration,
}

/// Takes sandboxes of the `host` image through their life.
pub(super) async fn measure(client: &Client) -> Result<Times, Error> {
    let mut samples: [Vec<Duration>; 6] = Default::default();
    let [creates, builtins, programs, resets, deletes, runs] = &mut samples;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let sandbox: Sandbox =
            client.post(Url::new("/v1/sandboxes"), &SandboxSpec::default()).await?;
        creates.push(start.elapsed());
        let url = || Url::sandbox(sandbox.id.as_str());
        for (line, times) in [("echo hello", &mut *builtins), ("/bin/true", &mut *programs)] {
            for _ in 0..LINES {
                let start = Instant::now();
                run_line(client, url().part("session"), line).await?;
                times.push(start.elapsed());
            }
        }
        let start = Instant::now();
        let _: Sandbox = client.post(url().part("reset"), &()).await?;
        resets.push(start.elapsed());
        let start = Instant::now();
        client.call(Method::DELETE, url()).await?;
        deletes.push(start.elapsed());
        let start = Instant::now();
        run_once(client).await?;
        runs.push(start.elapsed());
    }
    let [create, builtin, program, reset, delete, run] = samples.map(median);
    Ok(Times { create, builtin, program, reset, delete, run })
}

async fn run_line(client: &Client, url: Url, line: &str) -> Result<(), Error> {
    let body = SessionRun { command: line.to_owned(), timeout_ms: None };
    let output: SessionOutput = client.post(url, &body).await?;
    match output.exit_code {
        0 => Ok(()),
        code => Err(Error::Protocol(format!("`{line}` in the session exits with {code}"))),
    }
}

async fn run_once(client: &Client) -> Result<(), Error> {
    let command = CommandSpec { argv: vec!["/bin/true".to_owned()], ..CommandSpec::default() };
    let body = Run { command, ..Run::default() };
    let mut stream = client.open(Url::new("/v1/run"), &body).await?;
    let exit = loop {
        match stream.reader.next().await? {
            Some(Frame::Exit(exit)) => break exit,
            Some(Frame::Error(error)) => return Err(Error::Server(error)),
            Some(_) => {}
            None => return Err(Error::Protocol("a stream without an end".to_owned())),
        }
    };
    match exit.code {
        0 => Ok(()),
        code => Err(Error::Protocol(format!("`/bin/true` exits with {code}"))),
    }
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
