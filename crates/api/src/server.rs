//! Accepts connections on a Unix socket and serves the routes on them.

use std::convert::Infallible;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use forkyard_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::sync::Notify;
use tower::ServiceExt as _;

use crate::body::Query;
use crate::error::{Answer, Failed};
use crate::{commands, files, images, sandboxes, snapshots};

/// Largest request head, in bytes.
const HEAD_MAX: usize = 64 * 1024;

/// How long a request's head may take to arrive.
const HEAD_WAIT: Duration = Duration::from_secs(30);

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Why a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nothing was left to serve for the idle time.
    Idle,
    /// It was asked to.
    Stopped,
}

/// What the connections share.
#[derive(Debug)]
struct Activity {
    connections: AtomicUsize,
    /// A connection came or went.
    changed: Notify,
    stop: Notify,
}

/// Serves `first`, and whoever connects to `listener`, until asked to stop, or until there was
/// neither sandbox nor connection for `idle`. Somebody may have connected just then: see whether
/// there is one to accept, once nobody else can find the socket.
pub async fn serve(
    engine: Arc<Engine>,
    listener: &UnixListener,
    first: Vec<UnixStream>,
    idle: Option<Duration>,
) -> std::io::Result<Served> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
    let activity = Arc::new(Activity {
        connections: AtomicUsize::new(0),
        changed: Notify::new(),
        stop: Notify::new(),
    });
    let router = router(Arc::clone(&engine), Arc::clone(&activity));
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let take = |stream, slot| {
        let (router, activity) = (router.clone(), Arc::clone(&activity));
        activity.connections.fetch_add(1, Ordering::AcqRel);
        activity.changed.notify_waiters();
        tokio::spawn(async move {
            connection(stream, router).await;
            activity.connections.fetch_sub(1, Ordering::AcqRel);
            activity.changed.notify_waiters();
            drop(slot);
        });
    };
    for stream in first {
        stream.set_nonblocking(true)?;
        take(tokio::net::UnixStream::from_std(stream)?, None);
    }
    let accepting = async {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => take(stream, slot.ok()),
                Err(error) => {
                    // Out of descriptors, most likely: some will be free in a moment.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    let idling = async {
        match idle {
            Some(idle) => wait_idle(&engine, &activity, idle).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = accepting => Ok(Served::Stopped),
        () = idling => Ok(Served::Idle),
        () = activity.stop.notified() => Ok(Served::Stopped),
        () = terminated() => Ok(Served::Stopped),
    }
}

/// SIGTERM and SIGINT end the server as a request to stop does; the sandboxes live on.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

async fn wait_idle(engine: &Engine, activity: &Activity, idle: Duration) {
    loop {
        let changed = activity.changed.notified();
        let busy = activity.connections.load(Ordering::Acquire) > 0 || engine.alive() > 0;
        if busy {
            // A sandbox may also end by itself.
            let _ = tokio::time::timeout(idle, changed).await;
            continue;
        }
        if tokio::time::timeout(idle, changed).await.is_err()
            && activity.connections.load(Ordering::Acquire) == 0
            && engine.alive() == 0
        {
            return;
        }
    }
}

async fn connection(stream: tokio::net::UnixStream, router: Router) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(axum::body::Body::new)).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|e| match e {}))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection");
    }
}

fn router(engine: Arc<Engine>, activity: Arc<Activity>) -> Router {
    let sandbox = Router::new()
        .route("/", get(sandboxes::inspect).delete(sandboxes::delete))
        .route("/reset", post(sandboxes::reset))
        .route("/fork", post(sandboxes::fork))
        .route("/snapshot", post(snapshots::take))
        .route("/pause", post(snapshots::pause))
        .route("/resume", post(snapshots::resume))
        .route("/timeout", post(sandboxes::timeout))
        .route("/events", get(sandboxes::events))
        .route("/session", post(sandboxes::run_line).delete(sandboxes::end_session))
        .route("/commands", get(commands::list).post(commands::start))
        .route("/commands/{n}", get(commands::inspect).delete(commands::forget))
        .route("/commands/{n}/attach", get(commands::attach))
        .route("/commands/{n}/output", get(commands::output))
        .route("/commands/{n}/wait", post(commands::wait))
        .route("/commands/{n}/signal", post(commands::signal))
        .route("/stat", get(files::stat))
        .route("/list", get(files::list))
        .route("/mkdir", post(files::make_dir))
        .route("/move", post(files::rename))
        .route("/copy", post(files::copy));
    let streams = Router::new()
        .route("/files", get(files::read).put(files::write).delete(files::remove))
        .route("/archive", get(files::archive).put(files::extract));
    Router::new()
        .route("/v1/health", get(sandboxes::health))
        .route("/v1/run", post(commands::run))
        .route("/v1/usage", get(sandboxes::usage))
        .route("/v1/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .nest("/v1/sandboxes/{id}", sandbox.merge(streams))
        .route("/v1/snapshots", get(snapshots::list))
        .route("/v1/snapshots/{id}", get(snapshots::inspect).delete(snapshots::remove))
        .route("/v1/images", get(images::list))
        .route("/v1/images/pull", post(images::pull))
        .route("/v1/images/import", post(images::import))
        .route("/v1/images/prune", post(images::prune))
        .route("/v1/images/{*name}", get(images::inspect).delete(images::remove))
        .route("/v1/shutdown", post(shutdown).with_state((Arc::clone(&engine), activity)))
        .fallback(async || Failed::new(404, "no such path in the API"))
        .method_not_allowed_fallback(async || Failed::new(405, "this path has no such method"))
        .with_state(engine)
}

#[derive(Deserialize)]
struct Shutdown {
    /// Remove all sandboxes first.
    #[serde(default)]
    force: bool,
    /// Leave them to the next server.
    #[serde(default)]
    keep: bool,
}

async fn shutdown(
    State((engine, activity)): State<(Arc<Engine>, Arc<Activity>)>,
    Query(shutdown): Query<Shutdown>,
) -> Answer<StatusCode> {
    engine.wait_leaving(|_| true).await;
    if shutdown.force {
        engine.delete_all().await?;
        engine.settle().await;
    } else if engine.alive() > 0 && !shutdown.keep {
        let said = match engine.alive() {
            1 => "1 sandbox runs".to_owned(),
            running => format!("{running} sandboxes run"),
        };
        let mut failed = Failed::new(409, format!("stopping the server: {said}"));
        failed.0.hint = Some(
            "`forkyard stop --keep` leaves them to the next server, `--force` removes them"
                .to_owned(),
        );
        return Err(failed);
    }
    activity.stop.notify_one();
    Ok(StatusCode::NO_CONTENT)
}
