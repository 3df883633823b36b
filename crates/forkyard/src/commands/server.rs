//! The server itself: run it, end it, ask for its version.

use std::os::fd::OwnedFd;

use forkyard_api::routes::Health;
use forkyard_sys::host::Host;
use hyper::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::args::{ServeOptions, StopOptions};
use crate::client::{Client, Url};
use crate::error::Error;
use crate::paths::Paths;
use crate::render::{self, Table};
use crate::serve::{ServeArgs, serve as run_server};

/// `forkyard serve`
pub(super) fn serve(paths: Paths, options: ServeOptions) -> Result<(), Error> {
    if options.ready_fd.is_some() {
        // Started by a client: no key that is pressed at its terminal is meant for us. It fails
        // where we lead a session already, which is as good.
        let _ = rustix::process::setsid();
    }
    run_server(ServeArgs { paths, options })
}

/// How long `stop` waits for the end.
const STOPPING: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// `forkyard stop`
pub(super) async fn stop(client: &Client, options: &StopOptions) -> Result<(), Error> {
    let url = Url::new("/v1/shutdown");
    let url = match options {
        StopOptions { force: true, .. } => url.query("force", "true"),
        StopOptions { keep: true, .. } => url.query("keep", "true"),
        _ => url,
    };
    let health: Option<Health> = client.get_if_running(Url::new("/v1/health")).await?;
    // Opened before it may be another's.
    let server = health.and_then(|health| Pid::from_raw(health.pid.cast_signed()));
    let server = server.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if !client.call_if_running(Method::POST, url).await? {
        render::note("no server runs");
    }
    if let Some(server) = server {
        wait_for_end(&server);
    }
    Ok(())
}

/// Waits until the server has let go of its store, so that the next can be started at once.
fn wait_for_end(server: &OwnedFd) {
    let mut ended = [PollFd::new(server, PollFlags::IN)];
    if !matches!(poll(&mut ended, Some(&STOPPING)), Ok(1)) {
        render::note("the server is still busy with what it has to finish");
    }
}

/// `forkyard doctor`; the exit code is 1 where sandboxes cannot work.
pub(super) fn doctor(paths: &Paths, json: bool) -> Result<u8, Error> {
    let report = crate::doctor::report(&Host::probe(&paths.store));
    if json {
        render::json(&report)?;
    } else {
        let mut text = Vec::new();
        report.render(&mut text).map_err(|e| Error::io("write the report", e))?;
        render::data(&text)?;
    }
    Ok(report.exit_code())
}

/// Both versions.
#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    server: Option<Health>,
}

/// `forkyard version`
pub(super) async fn version(client: &Client, json: bool) -> Result<(), Error> {
    let server = client.get_if_running(Url::new("/v1/health")).await?;
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), server };
    if json {
        return render::json(&versions);
    }
    let mut table = Table::bare();
    table.row(["Client:".to_owned(), versions.client.to_owned()]);
    let server = versions.server.map_or("none runs".to_owned(), |server| {
        format!(
            "{} (process {}, store {}, {}, {} running)",
            server.version, server.pid, server.store, server.mode, server.sandboxes
        )
    });
    table.row(["Server:".to_owned(), server]);
    render::data(table.text().as_bytes())
}
