//! The server's entry: what the command line hands over.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forkyard_api::{Remote, Served, Tls};
use forkyard_engine::Engine;

use crate::args::{ListenOptions, ServeOptions};
use crate::error::Error;
use crate::paths::Paths;

/// What the server is asked for.
#[derive(Debug)]
pub(crate) struct ServeArgs {
    /// Where it listens, what it keeps, where it logs.
    pub(crate) paths: Paths,
    /// `--idle`, `--listen`, `--ready-fd`.
    pub(crate) options: ServeOptions,
}

/// Serves until it is told to end, or has nothing to serve for the idle time.
pub(crate) fn serve(args: ServeArgs) -> Result<(), Error> {
    let ServeArgs { paths, options: ServeOptions { idle, listen: remotes, ready_fd } } = args;
    log_to_stderr();
    let ready = ready_fd.map(only_ready_fd).transpose()?;
    // One thread: what a request needs is mostly a message to another process and its answer, and
    // every hand-over between threads costs more than the work. Disk and archives have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .map_err(|e| Error::io("start the server", e))?;
    runtime.block_on(async {
        let engine = Engine::open(&paths.store).await.map_err(|e| failed(e, &paths.store))?;
        let served = serve_with(&engine, &paths, idle.limit(), remotes, ready).await;
        engine.settle().await;
        engine.retire();
        served
    })
}

async fn serve_with(
    engine: &Arc<Engine>,
    paths: &Paths,
    idle: Option<Duration>,
    remotes: ListenOptions,
    ready: Option<OwnedFd>,
) -> Result<(), Error> {
    let remotes = bind(remotes)?;
    let mut listener = listen(&paths.socket)?;
    if let Some(fd) = ready {
        std::fs::File::from(fd).write_all(b"1").map_err(|e| Error::io("tell that we listen", e))?;
    }
    let mut late = Vec::new();
    let served = loop {
        let engine = Arc::clone(engine);
        let served = forkyard_api::serve(engine, &listener, late, &remotes, idle).await;
        // Whoever finds nobody listening from now on starts a server that waits for our lock.
        let _ = std::fs::remove_file(&paths.socket);
        late = listener.incoming().map_while(Result::ok).collect();
        if late.is_empty() || !matches!(served, Ok(Served::Idle)) {
            break served;
        }
        listener = listen(&paths.socket)?;
    };
    served.map(drop).map_err(|e| Error::io("serve", e))
}

fn failed(error: forkyard_engine::Error, store: &Path) -> Error {
    match error {
        forkyard_engine::Error::Locked { .. } => Error::AlreadyServed { store: store.to_owned() },
        error => Error::Usage { what: format!("serve: {error}"), hint: error.hint() },
    }
}

/// Listens at the socket. Whoever had it is gone: we hold the store's lock.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let tried = |e| Error::io(format!("listen at {}", path.display()), e);
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(tried(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(tried)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).map_err(tried)?;
    Ok(listener)
}

/// Listens for clients with keys.
fn bind(options: ListenOptions) -> Result<Vec<Remote>, Error> {
    let ListenOptions { listen, tls_cert, tls_key } = options;
    let tls = match tls_cert.zip(tls_key) {
        Some((certificates, key)) => {
            let what = |e| Error::Usage { what: format!("serve: {e}"), hint: None };
            Some(Tls::load(&certificates, &key).map_err(what)?)
        }
        None => None,
    };
    let mut remotes = Vec::new();
    for address in listen {
        let remote = Remote::bind(address, tls.clone())
            .map_err(|e| Error::io(format!("listen at {address}"), e))?;
        tracing::info!("takes requests with a key at {}", remote.url());
        if tls.is_none() && !address.ip().is_loopback() {
            tracing::warn!("keys pass {address} in clear: give --tls-cert and --tls-key");
        }
        remotes.push(remote);
    }
    Ok(remotes)
}

/// Keeps, of all that whoever started us left open, only what tells that we listen: a pipe of
/// theirs must not stay open as long as we live.
fn only_ready_fd(fd: i32) -> Result<OwnedFd, Error> {
    let tried = |e| Error::io(format!("take descriptor {fd}"), e);
    let fd = forkyard_sys::process::inherited_fd(fd).map_err(tried)?;
    forkyard_sys::process::close_all_but(&[fd.as_fd()]).map_err(tried)?;
    Ok(fd)
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FORKYARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second subscriber in one process is refused, and the first as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}
