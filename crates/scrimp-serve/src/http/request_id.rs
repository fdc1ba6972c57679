//! The identifier of a request: the header `x-request-id` of the client, or a new one. The response and the log contain it.

use super::state::unique;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum number of bytes of a client's identifier.
const MAX_BYTES: usize = 128;

/// The identifier of a request with these headers. An identifier that is too long or not visible ASCII is replaced.
pub(crate) fn of(headers: &HeaderMap) -> HeaderValue {
    let is_valid = |value: &&HeaderValue| {
        (1..=MAX_BYTES).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(HEADER).filter(is_valid).cloned().unwrap_or_else(|| {
        let id = format!("req_{:016x}", unique());
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_identifiers_are_kept() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(text).unwrap());
            of(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(of("abc-1"), "abc-1");
        for wrong in ["", "a b", "é", &"x".repeat(129)] {
            assert!(of(wrong).starts_with("req_"), "{wrong}");
        }
        assert_ne!(of(""), of(""));
    }
}
