//! Keys of clients over TCP: make, list, remove.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use forkyard_engine::Engine;
use forkyard_engine::model::{Key, KeySpec, NewKey};

use crate::body::{Body, Path};
use crate::error::Answer;

type Shared = State<Arc<Engine>>;

pub(crate) async fn create(
    State(engine): Shared,
    Body(spec): Body<KeySpec>,
) -> Answer<(StatusCode, Json<NewKey>)> {
    Ok((StatusCode::CREATED, Json(engine.create_key(spec)?)))
}

pub(crate) async fn list(State(engine): Shared) -> Answer<Json<Vec<Key>>> {
    Ok(Json(engine.keys()?))
}

pub(crate) async fn remove(State(engine): Shared, Path(key): Path<String>) -> Answer<StatusCode> {
    engine.remove_key(&key)?;
    Ok(StatusCode::NO_CONTENT)
}
