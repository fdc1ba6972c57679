//! Error responses, in OpenAI's format until [`super::apis::in_form`] changes it.

use super::params::KV_FIELDS;
use crate::engine::Failure;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use scrimp_base::{Error, translate_settings};
use serde_json::{Value, json};

/// The fields of requests, beside those of the KV cache, that name a setting of the libraries.
const SETTINGS: [&str; 10] = [
    "frequency_penalty",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "prompt",
    "repetition_penalty",
    "seed",
    "temperature",
    "top_k",
    "top_p",
];

/// `message` with settings in backticks (`` `budget` ``) replaced by the fields of a request (`kv_budget`). Libraries
/// name the settings of the KV cache without the prefix `kv_`.
fn name_fields(message: &str) -> String {
    translate_settings(message, |name| {
        SETTINGS
            .iter()
            .chain(&KV_FIELDS)
            .find(|&&s| s == name || s.strip_prefix("kv_") == Some(name))
            .map(|&s| s.to_owned())
    })
}

/// An error response.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Cause and remedy.
    pub(crate) message: String,
    /// The invalid field.
    pub(crate) param: Option<String>,
    /// Machine-readable code.
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    /// 400: invalid request.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: invalid field.
    pub(crate) fn field(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad_request(message) }
    }

    /// Any status. Settings in backticks become fields of the request.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: name_fields(&message.into()), param: None, code: None }
    }

    /// Sets the machine-readable code.
    #[must_use]
    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The response body.
    pub(crate) fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "the server's queue is full; try again in a moment")
                    .code("queue_full")
            }
            Failure::Timeout => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "the request took longer than this server allows")
                    .code("timeout")
            }
            Failure::BadRequest(what) => Self::bad_request(what),
            Failure::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").code("shutdown")
            }
            Failure::Internal(what) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, what),
        }
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        Failure::from(&e).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let retry = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if retry.contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // The body changes if the path belongs to another API.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_by_their_fields() {
        let message = |text: &str| ApiError::bad_request(text).message;
        assert_eq!(
            message("a smaller `budget` or `max_tokens`, `kvcrush` 0, `x.gguf`, `threads`"),
            "a smaller kv_budget or max_tokens, kvcrush 0, `x.gguf`, `threads`"
        );
    }
}
