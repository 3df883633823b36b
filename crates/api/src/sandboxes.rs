//! Sandboxes: make, list, look at, reset, remove.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use forkyard_engine::Engine;
use forkyard_engine::model::{Created, Event, Fork, ForkSpec, Sandbox, SandboxSpec};

use crate::body::{Body, Path, long_json};
use crate::error::Answer;
use crate::remote::{Caller, allowed};
use crate::routes::{Health, SessionRun, Timeout};

type Shared = State<Arc<Engine>>;

pub(crate) async fn health(
    State(engine): Shared,
    Extension(urls): Extension<Arc<[String]>>,
) -> Json<Health> {
    Json(Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        store: engine.root().display().to_string(),
        mode: engine.mode().word().to_owned(),
        sandboxes: engine.alive(),
        listen: urls.to_vec(),
    })
}

pub(crate) async fn create(
    State(engine): Shared,
    Extension(caller): Extension<Caller>,
    Body(spec): Body<SandboxSpec>,
) -> Answer<(StatusCode, Json<Created>)> {
    allowed(caller, &spec)?;
    // In a task of its own: a client that goes away meanwhile leaves no half-made sandbox.
    let made = tokio::spawn(async move { engine.create_reported(spec).await }).await;
    let (live, report) = made.map_err(|e| crate::error::Failed::new(500, e.to_string()))??;
    Ok((StatusCode::CREATED, Json(Created { sandbox: live.info(), report })))
}

pub(crate) async fn list(State(engine): Shared) -> Json<Vec<Sandbox>> {
    Json(engine.list().iter().map(|sandbox| sandbox.info()).collect())
}

pub(crate) async fn usage(State(engine): Shared) -> Json<Vec<Sandbox>> {
    let with_usage = |live: &Arc<forkyard_engine::LiveSandbox>| {
        let usage = engine.usage(live)?;
        Some(Sandbox { usage: Some(usage), ..live.info() })
    };
    Json(engine.list().iter().filter_map(with_usage).collect())
}

pub(crate) async fn inspect(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Sandbox>> {
    let live = engine.find(&key)?;
    Ok(Json(Sandbox { usage: engine.usage(&live), ..live.info() }))
}

pub(crate) async fn delete(State(engine): Shared, Path(key): Path<String>) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let deleted = tokio::spawn(async move { engine.delete(&live).await }).await;
    deleted.map_err(|e| crate::error::Failed::new(500, e.to_string()))??;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn reset(State(engine): Shared, Path(key): Path<String>) -> Answer<Json<Sandbox>> {
    let live = engine.find(&key)?;
    let sandbox = Arc::clone(&live);
    let reset = tokio::spawn(async move { engine.reset(&sandbox).await }).await;
    reset.map_err(|e| crate::error::Failed::new(500, e.to_string()))??;
    Ok(Json(live.info()))
}

pub(crate) async fn fork(
    State(engine): Shared,
    Path(key): Path<String>,
    Body(spec): Body<ForkSpec>,
) -> Answer<(StatusCode, Json<Fork>)> {
    let live = engine.find(&key)?;
    let fork = tokio::spawn(async move { engine.fork(&live, spec).await }).await;
    let fork = fork.map_err(|e| crate::error::Failed::new(500, e.to_string()))??;
    Ok((StatusCode::CREATED, Json(fork)))
}

pub(crate) async fn timeout(
    State(engine): Shared,
    Path(key): Path<String>,
    Body(timeout): Body<Timeout>,
) -> Answer<Json<Sandbox>> {
    let live = engine.find(&key)?;
    engine.set_timeout(&live, timeout.timeout_ms).await?;
    Ok(Json(live.info()))
}

pub(crate) async fn events(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Vec<Event>>> {
    Ok(Json(engine.events(&key)?))
}

pub(crate) async fn run_line(
    State(engine): Shared,
    Path(key): Path<String>,
    Body(run): Body<SessionRun>,
) -> Answer<Response> {
    /// Output of more bytes is turned into JSON where nobody else waits for it.
    const SHORT: usize = 256 * 1024;
    let live = engine.find(&key)?;
    let timeout = run.timeout_ms.map(Duration::from_millis);
    let output = live.run_line(&run.command, timeout).await?;
    if output.stdout.len() + output.stderr.len() > SHORT {
        return long_json(move || Ok(output)).await;
    }
    Ok(Json(output).into_response())
}

pub(crate) async fn end_session(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<StatusCode> {
    engine.find(&key)?.end_session().await?;
    Ok(StatusCode::NO_CONTENT)
}
