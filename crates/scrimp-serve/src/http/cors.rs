//! Cross-origin requests: which web pages may call the server.
//!
//! Source: the Fetch standard, section 3.3 (CORS protocol). Browsers send an origin as `scheme://host[:port]`, in lower
//! case and without the default port.

use super::request_id;
use axum::http::{HeaderValue, Method, header};
use std::time::Duration;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Time for which browsers may cache the answer to a preflight request.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The layer for these origins; `*` is any origin. `None`: there are none.
///
/// # Errors
/// A text is not an origin.
pub(crate) fn cors(origins: &[String]) -> Result<Option<CorsLayer>, String> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = match origins.iter().any(|origin| origin.trim() == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().map(|text| origin(text)).collect::<Result<Vec<_>, _>>()?),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // Clients send headers of their own, such as the `x-stainless-*` of OpenAI's.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, request_id::HEADER])
        .max_age(MAX_AGE);
    Ok(Some(layer))
}

/// An origin in the form that browsers send.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong =
        || format!("{text:?} is not an origin; write it as https://example.org or https://example.org:8443");
    let lower = text.trim().trim_end_matches('/').to_ascii_lowercase();
    if lower == "null" {
        return Ok(HeaderValue::from_static("null"));
    }
    let (scheme, host) = lower.split_once("://").ok_or_else(wrong)?;
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(default).unwrap_or(host);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
    if !is_scheme || !is_host {
        return Err(wrong());
    }
    HeaderValue::from_str(&format!("{scheme}://{host}")).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_the_form_of_browsers() {
        for (text, sent) in [
            ("https://app.example.org", "https://app.example.org"),
            ("https://app.example.org/", "https://app.example.org"),
            (" HTTPS://App.Example.org:443/ ", "https://app.example.org"),
            ("http://localhost:5173", "http://localhost:5173"),
            ("http://[::1]:80", "http://[::1]"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("null", "null"),
        ] {
            assert_eq!(origin(text).unwrap(), sent, "{text}");
        }
        for text in
            ["", "example.org", "https://", "https://a/b", "https://a b", "https://*.a.org", "https://é.org"]
        {
            assert!(origin(text).unwrap_err().contains("https://example.org"), "{text}");
        }
        assert!(cors(&[]).unwrap().is_none() && cors(&["*".into()]).unwrap().is_some());
    }
}
