//! Images: list, inspect, import, pull, remove. What takes long answers line by line.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use forkyard_engine::Engine;
use forkyard_engine::images::{
    BadPlatform, ImportOptions, Platform, Progress as Moved, PullOptions, Step,
};
use forkyard_engine::model::{ImageDetails, ImageInfo, Pruned};
use tokio::sync::mpsc;

use crate::body::{Body, Path};
use crate::error::{Answer, Failed, body_of};
use crate::routes::{Import, Progress, Pull};

type Shared = State<Arc<Engine>>;

/// Lines on their way to a client. Progress that it is too slow for is dropped, the end is not.
const LINES: usize = 64;

pub(crate) async fn list(State(engine): Shared) -> Answer<Json<Vec<ImageInfo>>> {
    Ok(Json(engine.images().list()?))
}

pub(crate) async fn inspect(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Answer<Json<ImageDetails>> {
    Ok(Json(engine.images().inspect(&name).await?))
}

pub(crate) async fn prune(State(engine): Shared) -> Answer<Json<Pruned>> {
    Ok(Json(engine.prune_images().await?))
}

pub(crate) async fn remove(State(engine): Shared, Path(name): Path<String>) -> Answer<StatusCode> {
    engine.remove_image(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn import(State(engine): Shared, Body(import): Body<Import>) -> Answer<Response> {
    let path = PathBuf::from(&import.path);
    if !path.is_absolute() {
        return Err(Failed::new(400, format!("path `{}`: must be absolute", import.path)));
    }
    let options = ImportOptions { name: import.name, platform: platform(import.platform)? };
    Ok(lines(|progress| async move { engine.import_image(path, options, progress).await }))
}

pub(crate) async fn pull(State(engine): Shared, Body(pull): Body<Pull>) -> Answer<Response> {
    let mut options = PullOptions {
        platform: platform(pull.platform)?,
        plain_http: pull.plain_http,
        ..PullOptions::default()
    };
    if let Some(timeout) = pull.timeout_ms.map(Duration::from_millis) {
        options.stall_timeout = timeout;
        options.connect_timeout = options.connect_timeout.min(timeout);
    }
    Ok(lines(|progress| async move { engine.pull_image(&pull.reference, options, progress).await }))
}

fn platform(text: Option<String>) -> Answer<Option<Platform>> {
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|e: BadPlatform| Failed::new(400, e.to_string()))
}

/// Does the work in a task of its own, so that it goes on without its client, and answers with a
/// line for every step.
fn lines<W>(work: impl FnOnce(Box<dyn Fn(Moved) + Send + Sync>) -> W) -> Response
where
    W: Future<Output = forkyard_engine::Result<ImageInfo>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel::<Progress>(LINES);
    let told = sender.clone();
    let work = work(Box::new(move |moved| {
        let _ = told.try_send(progress(moved));
    }));
    tokio::spawn(async move {
        let last = match work.await {
            Ok(image) => Progress::Done { image },
            Err(error) => Progress::Error { error: body_of(&error) },
        };
        let _ = sender.send(last).await;
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let progress = receiver.recv().await?;
        let mut line = serde_json::to_vec(&progress).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, HttpBody::from_stream(stream)).into_response()
}

fn progress(moved: Moved) -> Progress {
    match moved {
        Moved::Layer { id, step, done, total } => {
            let step = match step {
                Step::Downloading => "downloading",
                Step::Unpacking => "unpacking",
                Step::Done => "done",
                Step::Present => "present",
            };
            Progress::Layer { id, step: step.to_owned(), done, total }
        }
        Moved::Note(message) => Progress::Note { message },
    }
}
