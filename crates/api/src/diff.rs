//! What a sandbox changed.

use std::io;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use forkyard_engine::model::{DiffForm, DiffSpec};
use forkyard_engine::{Diff, Engine};
use tokio::sync::mpsc;

use crate::body::{Path, Query};
use crate::error::{Answer, Failed};
use crate::files::from_channel;

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;

pub(crate) async fn diff(
    State(engine): State<Arc<Engine>>,
    Path(key): Path<String>,
    Query(asked): Query<Vec<(String, String)>>,
) -> Answer<Response> {
    let spec = spec(asked)?;
    let kind = match spec.form {
        DiffForm::List | DiffForm::Stat => "application/json",
        DiffForm::Patch => "text/x-diff",
    };
    let live = engine.find(&key)?;
    let mut diff = engine.diff(&live, spec).await?;
    let waited = tokio::task::spawn_blocking(move || diff.wait().map(|()| diff));
    let diff = waited.await.map_err(|e| Failed::new(500, e.to_string()))??;
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || pump(diff, &sender));
    let body = HttpBody::from_stream(from_channel(receiver));
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

fn pump(mut diff: Diff, to: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let chunk = match diff.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                chunk.truncate(length);
                Ok(chunk.into())
            }
            Err(error) => {
                tracing::warn!(%error, "in the middle of an answer");
                Err(io::Error::other(error.to_string()))
            }
        };
        let is_last = chunk.is_err();
        if to.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}

fn spec(asked: Vec<(String, String)>) -> Answer<DiffSpec> {
    let mut spec = DiffSpec::default();
    for (name, value) in asked {
        match (name.as_str(), value.as_str()) {
            ("path", _) => spec.paths.push(value),
            ("form", "list") => spec.form = DiffForm::List,
            ("form", "stat") => spec.form = DiffForm::Stat,
            ("form", "patch") => spec.form = DiffForm::Patch,
            ("form", _) => {
                return Err(Failed::new(400, format!("form `{value}`: list, stat or patch")));
            }
            _ => return Err(Failed::new(400, format!("query: `{name}` means nothing here"))),
        }
    }
    Ok(spec)
}
