//! Bodies of requests: JSON with errors that say where it is wrong.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::error::{Answer, Failed};

/// Largest JSON body, in bytes: a command line may have 2 MiB of arguments.
const BODY_MAX: usize = 8 * 1024 * 1024;

/// How long one may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(120);

/// How much of a body is read that is refused, in bytes.
const DISCARD_MAX: usize = 64 * 1024 * 1024;

/// An answer in JSON that is as long as a guest likes: a hundred megabytes of it take longer than
/// others may wait, so it is made on a thread of its own, and no two at once.
pub(crate) async fn long_json<T: Serialize>(
    make: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    static TURN: Semaphore = Semaphore::const_new(1);
    let turn = TURN.acquire().await;
    let json = tokio::task::spawn_blocking(move || {
        serde_json::to_vec(&make()?).map_err(|e| Failed::new(500, format!("answer: {e}")))
    });
    let json = json.await.map_err(|e| Failed::new(500, e.to_string()))??;
    drop(turn);
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// A JSON body. The content type is not looked at: there is no other form.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failed> {
        let late = |_| Failed::new(408, format!("body: not here after {} s", BODY_WAIT.as_secs()));
        let bytes = tokio::time::timeout(BODY_WAIT, read(request)).await.map_err(late)??;
        // No body asks for all defaults.
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|e| Failed::new(400, format!("body: {e}")))
    }
}

/// Reads a body that is not too long. Of one that is, the rest is read too: a connection that is
/// closed on somebody who still sends loses the answer.
async fn read(request: Request) -> Result<Vec<u8>, Failed> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Failed::new(400, format!("body: {e}")))?;
        length += chunk.len();
        if length <= BODY_MAX {
            bytes.extend_from_slice(&chunk);
        } else if length <= DISCARD_MAX {
            bytes = Vec::new();
        } else {
            break;
        }
    }
    if length > BODY_MAX {
        return Err(Failed::new(413, format!("body: more than {} MiB", BODY_MAX >> 20)));
    }
    Ok(bytes)
}

/// A query string, with errors in the API's own form.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = Failed;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Failed> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Failed::new(400, format!("query: {}", e.body_text())))
    }
}

/// The variable parts of a path, with errors in the API's own form.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> axum::extract::FromRequestParts<S> for Path<T> {
    type Rejection = Failed;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, Failed> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|e| Failed::new(e.status().as_u16(), format!("path: {}", e.body_text())))
    }
}
