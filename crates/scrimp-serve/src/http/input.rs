//! The body of a request, within the limits of the server, and the client that sent it.

use super::{Peer, error::ApiError, hash_of, state::State};
use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use std::sync::Arc;

/// A request with a body of JSON.
#[derive(Debug)]
pub(crate) struct Input {
    /// The body.
    pub(crate) body: Bytes,
    /// Hash of key and address, for the fair queue.
    pub(crate) client: u64,
    /// Hash of the key: the owner of stored data.
    pub(crate) owner: u64,
}

/// A request with a body of JSON and any content type. Clients without one, such as `curl -d`, send that of forms.
#[derive(Debug)]
pub(crate) struct Untyped(pub(crate) Input);

/// The API key in OpenAI's or Anthropic's header.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    // Names of schemes are independent of case (RFC 9110, section 11.1).
    let bearer = value
        .and_then(|value| value.trim().split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key);
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok())).map(str::trim)
}

/// A hash of the API key: the owner of stored data.
pub(crate) fn owner(headers: &HeaderMap) -> u64 {
    hash_of(key(headers))
}

/// The content type; empty without one.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type(kind)
}

/// A content type without its parameters. Its name is independent of case (RFC 9110, section 8.3.1).
pub(crate) fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Error 415 for a body of another type than `wanted`.
pub(crate) fn unsupported(wanted: &str) -> ApiError {
    let what = format!("the body must be {wanted}");
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what)
}

impl Input {
    /// Reads a body of any type.
    ///
    /// # Errors
    /// The body is compressed, too large, or does not arrive in time.
    pub(crate) async fn read(state: &State, request: Request) -> Result<Self, ApiError> {
        let encoding =
            request.headers().get(header::CONTENT_ENCODING).map(|v| v.as_bytes().to_ascii_lowercase());
        if encoding.is_some_and(|encoding| !encoding.is_empty() && encoding != b"identity") {
            let what = "the body is compressed; send it without Content-Encoding";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
        }
        let owner = owner(request.headers());
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let client = hash_of(Some(&(owner, peer)));
        let most = state.options.max_body;
        let body = to_bytes(request.into_body(), most);
        let body = match tokio::time::timeout(state.options.read_timeout, body).await {
            Ok(Ok(body)) => body,
            Ok(Err(e)) => {
                let too_large = std::error::Error::source(&e)
                    .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
                if too_large {
                    let what = format!("the body is larger than {most} bytes, the limit of this server");
                    return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what));
                }
                return Err(ApiError::bad_request("the body could not be read"));
            }
            Err(_) => {
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"));
            }
        };
        Ok(Self { body, client, owner })
    }
}

impl FromRequest<Arc<State>> for Input {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        if !content_type(request.headers()).eq_ignore_ascii_case("application/json") {
            return Err(unsupported("JSON: send the header Content-Type: application/json"));
        }
        Self::read(state, request).await
    }
}

impl FromRequest<Arc<State>> for Untyped {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        // Pages of other origins may send the types of forms without a preflight request.
        if request.headers().contains_key(header::ORIGIN) {
            return Input::from_request(request, state).await.map(Self);
        }
        Input::read(state, request).await.map(Self)
    }
}
