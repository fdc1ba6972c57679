//! The chat page at `/` and its files.
//!
//! The files are part of the program. Their path contains a hash of all of them, so that browsers may cache them forever:
//!
//! ```text
//! /                     index.html, revalidated with its ETag     (ASSETS in it becomes the hash)
//! /page/HASH/app.js     immutable
//! ```
//! The content security policy allows scripts, styles and requests of this server only. Text becomes HTML through DOMPurify
//! only (trusted types).

use super::error::ApiError;
use axum::{
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::{fmt::Write as _, io::Write as _, sync::LazyLock};

/// The policy of the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types dompurify";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Name, type and content of the page's files.
const FILES: [(&str, &str, &str); 17] = [
    ("answer.js", SCRIPT, include_str!("../page/answer.js")),
    ("api.js", SCRIPT, include_str!("../page/api.js")),
    ("app.js", SCRIPT, include_str!("../page/app.js")),
    ("clipboard.js", SCRIPT, include_str!("../page/clipboard.js")),
    ("conversation.js", SCRIPT, include_str!("../page/conversation.js")),
    ("files.js", SCRIPT, include_str!("../page/files.js")),
    ("history.js", SCRIPT, include_str!("../page/history.js")),
    ("markdown.js", SCRIPT, include_str!("../page/markdown.js")),
    ("memory.js", SCRIPT, include_str!("../page/memory.js")),
    ("settings.js", SCRIPT, include_str!("../page/settings.js")),
    ("style.css", STYLE, include_str!("../page/style.css")),
    ("vendor/highlight.js", SCRIPT, include_str!("../page/vendor/highlight.js")),
    ("vendor/highlight.LICENSE", TEXT, include_str!("../page/vendor/highlight.LICENSE")),
    ("vendor/marked.js", SCRIPT, include_str!("../page/vendor/marked.js")),
    ("vendor/marked.LICENSE", TEXT, include_str!("../page/vendor/marked.LICENSE")),
    ("vendor/purify.js", SCRIPT, include_str!("../page/vendor/purify.js")),
    ("vendor/purify.LICENSE", TEXT, include_str!("../page/vendor/purify.LICENSE")),
];

/// A file in both encodings.
struct Asset {
    name: &'static str,
    kind: &'static str,
    plain: Vec<u8>,
    gzip: Vec<u8>,
    etag: String,
}

struct Page {
    /// The hash in the path of the files.
    version: String,
    index: Asset,
    files: Vec<Asset>,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let index = include_str!("../page/index.html");
    let all = FILES.iter().flat_map(|(name, _, content)| [name.as_bytes(), &[0], content.as_bytes(), &[0]]);
    let version = hash(&all.collect::<Vec<_>>().concat());
    let index = index.replace("ASSETS", &version);
    Page {
        index: Asset::new("", "text/html; charset=utf-8", index.into_bytes()),
        files: FILES.iter().map(|&(name, kind, content)| Asset::new(name, kind, content.into())).collect(),
        version,
    }
});

/// The first 16 digits of the SHA-256.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, plain: Vec<u8>) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to a vector does not fail. Without the encoding, clients get the plain file.
        let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish()).unwrap_or_default();
        Self { name, kind, etag: format!("\"{}\"", hash(&plain)), plain, gzip }
    }

    /// The answer to a request with these headers. `caching`: the value of `Cache-Control`.
    fn answer(&'static self, headers: &HeaderMap, caching: &'static str) -> Response {
        let shared: [(HeaderName, &'static str); 5] = [
            (header::CACHE_CONTROL, caching),
            (header::VARY, "accept-encoding"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        let etag = [(header::ETAG, self.etag.as_str())];
        if lists(headers, &header::IF_NONE_MATCH, |tag| {
            tag == "*" || tag.trim_start_matches("W/") == self.etag
        }) {
            return (StatusCode::NOT_MODIFIED, shared, etag).into_response();
        }
        let kind = [(header::CONTENT_TYPE, self.kind)];
        let takes_gzip = lists(headers, &header::ACCEPT_ENCODING, |coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
            name.trim().eq_ignore_ascii_case("gzip")
                && weight.trim().strip_prefix("q=").and_then(|q| q.parse().ok()).is_none_or(|q: f32| q > 0.0)
        });
        if takes_gzip && !self.gzip.is_empty() {
            let encoding = [(header::CONTENT_ENCODING, "gzip")];
            return (shared, etag, kind, encoding, Body::from(self.gzip.as_slice())).into_response();
        }
        (shared, etag, kind, Body::from(self.plain.as_slice())).into_response()
    }
}

/// Whether an element of a header's list has the property.
fn lists(headers: &HeaderMap, name: &HeaderName, has: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|element| has(element.trim()))
}

/// `/`.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    PAGE.index.answer(&headers, "no-cache")
}

/// `/page/{version}/{name}`.
///
/// # Errors
/// 404: the page has no such file, or another version of it.
pub(crate) async fn file(
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let file = PAGE.files.iter().find(|file| file.name == name && version == PAGE.version);
    let file = file.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "the page has no such file"))?;
    Ok(file.answer(&headers, "public, max-age=31536000, immutable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn the_page_names_files_that_exist() {
        for page in [include_str!("../page/index.html")].into_iter().chain(FILES.map(|(_, _, text)| text)) {
            for name in page.split("page/ASSETS/").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(known, _, _)| *known == name), "{name}");
            }
        }
        for (name, _, text) in FILES.iter().filter(|(name, _, _)| !name.starts_with("vendor/")) {
            for import in text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(known, _, _)| *known == import), "{name} imports {import}");
            }
        }
        assert!(PAGE.index.plain.windows(PAGE.version.len()).any(|part| part == PAGE.version.as_bytes()));
    }

    #[test]
    fn browsers_get_an_encoding_that_they_accept_once() {
        let file = &PAGE.files[0];
        let answer = |name: HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            let response = file.answer(&headers, "no-cache");
            (response.status().as_u16(), response.headers().contains_key(header::CONTENT_ENCODING))
        };
        assert_eq!(answer(header::ACCEPT_ENCODING, "br, gzip;q=0.5"), (200, true));
        for refused in ["br", "gzip;q=0", "identity"] {
            assert_eq!(answer(header::ACCEPT_ENCODING, refused), (200, false), "{refused}");
        }
        for known in [file.etag.clone(), format!("\"a\", W/{}", file.etag), "*".into()] {
            assert_eq!(answer(header::IF_NONE_MATCH, &known).0, 304, "{known}");
        }
        assert_eq!(answer(header::IF_NONE_MATCH, "\"other\"").0, 200);
    }
}
