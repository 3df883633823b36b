//! Snapshots: take, list, look at, remove; and sandboxes that are paused and resumed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use forkyard_engine::Engine;
use forkyard_engine::model::{NewSnapshot, Paused, Resumed, Snapshot, SnapshotSpec};

use crate::body::{Body, Path};
use crate::error::{Answer, Failed};

type Shared = State<Arc<Engine>>;

/// Does something in a task of its own: a client that goes away leaves nothing half done.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = forkyard_engine::Result<T>> + Send + 'static,
) -> Answer<T> {
    Ok(tokio::spawn(work).await.map_err(|e| Failed::new(500, e.to_string()))??)
}

pub(crate) async fn take(
    State(engine): Shared,
    Path(key): Path<String>,
    Body(spec): Body<SnapshotSpec>,
) -> Answer<(StatusCode, Json<NewSnapshot>)> {
    let live = engine.find(&key)?;
    let taken = whole(async move { engine.snapshot(&live, spec).await }).await?;
    Ok((StatusCode::CREATED, Json(taken)))
}

pub(crate) async fn list(State(engine): Shared) -> Json<Vec<Snapshot>> {
    Json(engine.snapshots())
}

pub(crate) async fn inspect(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Snapshot>> {
    Ok(Json(engine.find_snapshot(&key)?))
}

pub(crate) async fn remove(State(engine): Shared, Path(key): Path<String>) -> Answer<StatusCode> {
    whole(async move { engine.remove_snapshot(&key).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn pause(State(engine): Shared, Path(key): Path<String>) -> Answer<Json<Paused>> {
    let live = engine.find(&key)?;
    Ok(Json(whole(async move { engine.pause(&live).await }).await?))
}

pub(crate) async fn resume(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Resumed>> {
    let live = engine.find(&key)?;
    Ok(Json(whole(async move { engine.resume(&live).await }).await?))
}
