//! APIs of other servers. An adapter is one file: it translates requests into a [`Turn`](super::turn::Turn) or into prompts
//! of the engine, and answers into its own format. [`APIS`] lists the adapters; nothing else knows them.

pub(super) mod anthropic;
pub(super) mod llama_server;
pub(super) mod ollama;
pub(super) mod responses;

use super::{error::ApiError, state::State};
use axum::{Router, body::Body, http::header, response::Response};
use serde_json::Value;
use std::sync::Arc;

/// An API.
pub(crate) struct Api {
    /// Adds its routes.
    pub(crate) routes: fn(Router<Arc<State>>) -> Router<Arc<State>>,
    /// Whether its clients use a path.
    owns: fn(&str) -> bool,
    /// The body of an error.
    pub(crate) error: fn(&ApiError) -> Value,
}

/// All adapters.
pub(crate) const APIS: [Api; 4] = [anthropic::API, llama_server::API, ollama::API, responses::API];

/// `response`, the response to an error at `path`, with a body in the form of the path's API.
pub(crate) fn in_form(mut response: Response, path: &str, e: &ApiError) -> Response {
    if let Some(api) = APIS.iter().find(|api| (api.owns)(path)) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from((api.error)(e).to_string());
    }
    response
}
