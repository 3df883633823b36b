//! Accepts connections and serves the routes on them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Extension, Router, middleware};
use forkyard_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use crate::body::Query;
use crate::error::{Answer, Failed};
use crate::remote::{Caller, Remote, Stream, Tls, authenticate, local_only, welcome};
use crate::{commands, diff, files, images, keys, sandboxes, snapshots};

/// Largest request head, in bytes.
const HEAD_MAX: usize = 64 * 1024;

/// How long a request's head may take to arrive.
const HEAD_WAIT: Duration = Duration::from_secs(30);

/// Most connections at once at a socket or at all addresses; more wait to be accepted.
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

/// Serves `first`, whoever connects to `listener`, and who has a key at `remotes`, until asked to
/// stop, or until there was neither sandbox nor connection for `idle`. Somebody may have connected
/// just then: see whether there is one to accept, once nobody else can find the socket.
pub async fn serve(
    engine: Arc<Engine>,
    listener: &UnixListener,
    first: Vec<UnixStream>,
    remotes: &[Remote],
    idle: Option<Duration>,
) -> std::io::Result<Served> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
    let activity = Arc::new(Activity {
        connections: AtomicUsize::new(0),
        changed: Notify::new(),
        stop: Notify::new(),
    });
    let urls: Arc<[String]> = remotes.iter().map(Remote::url).collect();
    let router = router(Arc::clone(&engine), Arc::clone(&activity)).layer(Extension(urls));
    let local = Door::new(router.clone().layer(Extension(Caller::Local)), &activity);
    for stream in first {
        stream.set_nonblocking(true)?;
        local.admit(tokio::net::UnixStream::from_std(stream)?, None);
    }
    // Strangers have connections of their own, so that they keep nobody out of the socket.
    let authenticated = middleware::from_fn_with_state(Arc::clone(&engine), authenticate);
    let router = router.layer(Extension(Caller::Remote)).layer(authenticated);
    let outer = Door::new(router, &activity);
    // Ends with this function.
    let mut accepting = JoinSet::new();
    for remote in remotes {
        let (listener, tls, outer) = (remote.listener()?, remote.tls(), outer.clone());
        accepting.spawn(async move {
            loop {
                let (stream, slot) = outer.next(|cx| listener.poll_accept(cx)).await;
                outer.welcome(stream.0, tls.clone(), slot);
            }
        });
    }
    accepting.spawn(async move {
        loop {
            let (stream, slot) = local.next(|cx| listener.poll_accept(cx)).await;
            local.admit(stream.0, slot);
        }
    });
    let idling = async {
        match idle {
            Some(idle) => wait_idle(&engine, &activity, idle).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = idling => Ok(Served::Idle),
        () = activity.stop.notified() => Ok(Served::Stopped),
        () = terminated() => Ok(Served::Stopped),
    }
}

/// Where connections come in, and what serves them.
#[derive(Clone)]
struct Door {
    router: Router,
    activity: Arc<Activity>,
    slots: Arc<Semaphore>,
}

impl Door {
    fn new(router: Router, activity: &Arc<Activity>) -> Self {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { router, activity: Arc::clone(activity), slots }
    }

    /// The next connection, when there is a place for it.
    async fn next<T>(
        &self,
        accept: impl Fn(&mut Context<'_>) -> Poll<std::io::Result<T>>,
    ) -> (T, Option<OwnedSemaphorePermit>) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        loop {
            match poll_fn(&accept).await {
                Ok(connected) => return (connected, slot),
                Err(error) => {
                    // Out of descriptors, most likely: some will be free in a moment.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Serves a connection, as long as it has its place.
    fn admit<S: Stream + 'static>(&self, stream: S, slot: Option<OwnedSemaphorePermit>) {
        self.serve(slot, async move |router| connection(stream, router).await);
    }

    /// The same of one over TCP.
    fn welcome(&self, stream: TcpStream, tls: Option<Tls>, slot: Option<OwnedSemaphorePermit>) {
        self.serve(slot, async move |router| {
            if let Some(stream) = welcome(stream, tls).await {
                connection(stream, router).await;
            }
        });
    }

    fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        slot: Option<OwnedSemaphorePermit>,
        work: impl FnOnce(Router) -> F,
    ) {
        let (activity, work) = (Arc::clone(&self.activity), work(self.router.clone()));
        activity.connections.fetch_add(1, Ordering::AcqRel);
        activity.changed.notify_waiters();
        tokio::spawn(async move {
            work.await;
            activity.connections.fetch_sub(1, Ordering::AcqRel);
            activity.changed.notify_waiters();
            drop(slot);
        });
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

async fn connection(stream: impl Stream + 'static, router: Router) {
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
        .route("/diff", get(diff::diff))
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
    // What is about this machine.
    let host = Router::new()
        .route("/v1/images/import", post(images::import))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route("/v1/keys/{id}", delete(keys::remove))
        .route("/v1/shutdown", post(shutdown).with_state((Arc::clone(&engine), activity)))
        .route_layer(middleware::from_fn(local_only));
    Router::new()
        .merge(host)
        .route("/v1/health", get(sandboxes::health))
        .route("/v1/run", post(commands::run))
        .route("/v1/usage", get(sandboxes::usage))
        .route("/v1/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .nest("/v1/sandboxes/{id}", sandbox.merge(streams))
        .route("/v1/snapshots", get(snapshots::list))
        .route("/v1/snapshots/{id}", get(snapshots::inspect).delete(snapshots::remove))
        .route("/v1/images", get(images::list))
        .route("/v1/images/pull", post(images::pull))
        .route("/v1/images/prune", post(images::prune))
        .route("/v1/images/{*name}", get(images::inspect).delete(images::remove))
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
