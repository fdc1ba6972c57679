//! Checks API keys.

use super::{error::ApiError, input, state::State};
use axum::{
    extract::{Request, State as Shared},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};

/// SHA-256 of a key: the server stores no keys.
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Whether `key` is one of `keys`, in constant time.
fn is_known(key: &str, keys: &[[u8; 32]]) -> bool {
    let digest = digest(key);
    keys.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&digest)).into()
}

/// Middleware that rejects requests without a valid key.
pub(super) async fn check(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let keys = &state.options.api_keys;
    if !keys.is_empty() && !input::key(request.headers()).is_some_and(|key| is_known(key, keys)) {
        let what = "the API key is missing or invalid: send the header Authorization: Bearer KEY";
        return ApiError::new(StatusCode::UNAUTHORIZED, what).code("invalid_api_key").into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_keys_pass() {
        let keys = [digest("one"), digest("two")];
        assert!(is_known("one", &keys) && is_known("two", &keys));
        assert!(!is_known("", &keys) && !is_known("on", &keys) && !is_known("one ", &keys));
    }
}
