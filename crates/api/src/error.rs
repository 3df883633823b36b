//! Errors as HTTP answers.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use forkyard_engine::Error;

use crate::routes::ErrorBody;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) ErrorBody);

pub(crate) type Answer<T> = Result<T, Failed>;

impl Failed {
    pub(crate) fn new(code: u16, message: impl Into<String>) -> Self {
        Self(ErrorBody { code, message: message.into(), hint: None, exit_code: None })
    }
}

/// An engine's error as the API tells it.
pub(crate) fn body_of(error: &Error) -> ErrorBody {
    ErrorBody {
        code: error.status(),
        message: error.to_string(),
        hint: error.hint(),
        exit_code: Some(error.exit_code()),
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(body_of(&error))
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self.0)).into_response()
    }
}
