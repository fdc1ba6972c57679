//! Errors in the shape that OpenAI's clients know.

use crate::engine::Failure;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use scrimp_kv::KvError;
use scrimp_llm::Category;
use serde_json::{Value, json};

/// An error response.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// What is wrong, and what to do.
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    /// A word for programs.
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    /// 400: the request cannot be.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400, because of one field.
    pub(crate) fn field(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad_request(message) }
    }

    /// Any status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// With a word for programs.
    #[must_use]
    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The body.
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

impl From<scrimp_llm::Error> for ApiError {
    fn from(e: scrimp_llm::Error) -> Self {
        let message = match e.hint() {
            Some(hint) => format!("{e}; {hint}"),
            None => e.to_string(),
        };
        match e.category() {
            Category::BadInput | Category::Unsupported if e.source_as::<KvError>().is_none() => {
                Self::bad_request(message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let retry = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if retry.contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
