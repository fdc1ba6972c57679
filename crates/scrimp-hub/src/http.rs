//! Downloads over HTTP that survive dropped connections.

use super::{
    Progress,
    store::{Fault, Sink},
};
use scrimp_base::{Category, Error};
use std::{
    io::{self, Read as _},
    path::Path,
    time::Duration,
};
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
};

/// Time limit for a connection.
const CONNECT: Duration = Duration::from_secs(4);
/// Time limit for the beginning of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A transfer without data for this time is interrupted and resumed.
const STALL: Duration = Duration::from_secs(60);
/// Maximum number of consecutive attempts with almost no progress.
const ATTEMPTS: u32 = 5;
/// The smallest transfer that counts as progress, in bytes.
const WORTH_IT: u64 = 1 << 20;

/// The announcement of a file by the server, before the download.
#[derive(Debug, Default, Clone)]
pub(super) struct Remote {
    /// Address at the hub, after redirects inside the hub (for renamed repositories).
    pub(super) url: String,
    pub(super) size: Option<u64>,
    /// SHA-256, if the hub announces it (for files in large-file storage).
    pub(super) sha256: Option<String>,
    /// The version of the content.
    pub(super) etag: Option<String>,
}

/// An HTTP client for one hub.
#[derive(Debug)]
pub(super) struct Client {
    follow: Agent,
    look: Agent,
    hub: String,
    token: Option<String>,
}

impl Client {
    /// `token` is sent to the server at `hub` only, never to the target of a redirect.
    pub(super) fn new(hub: &str, token: Option<String>) -> Self {
        // Certificates of the system if it has any (a company's proxy), otherwise Mozilla's. Linux can lack them.
        let has_system_certs = std::env::consts::OS != "linux"
            || std::env::var_os("SSL_CERT_FILE").is_some()
            || Path::new("/etc/ssl/certs").is_dir();
        let roots = if has_system_certs { RootCerts::PlatformVerifier } else { RootCerts::WebPki };
        let config = || {
            Agent::config_builder()
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(ANSWER))
                .timeout_per_read(Some(STALL))
                .http_status_as_error(false)
                .redirect_auth_headers(RedirectAuthHeaders::Never)
                .user_agent(concat!("scrimp/", env!("CARGO_PKG_VERSION")))
                .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
        };
        Self {
            follow: config().build().into(),
            look: config().max_redirects(0).max_redirects_will_error(false).build().into(),
            hub: hub.to_owned(),
            token,
        }
    }

    /// Requests the size and the checksum of a file.
    pub(super) fn head(&self, url: &str) -> Result<Remote, Fault> {
        let mut at = url.to_owned();
        for _ in 0..5 {
            let mut request = self.look.head(&at).header(header::ACCEPT_ENCODING, "identity");
            if let Some(auth) = self.authorization(&at) {
                request = request.header(header::AUTHORIZATION, auth);
            }
            let response = request.call().map_err(|e| unreachable(&at, &e))?;
            let headers = response.headers();
            // The hub describes the file in the redirect to its storage.
            let described = headers.contains_key("x-linked-etag") || headers.contains_key("x-linked-size");
            if response.status().is_redirection() && !described {
                let Some(next) = text(headers, "location").and_then(|l| resolve(&at, l)) else {
                    return Err(source(format!("{at}: a redirect to nowhere")));
                };
                at = next;
                continue;
            }
            if matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
                return Ok(Remote { url: at, ..Remote::default() });
            }
            if !response.status().is_redirection() {
                check_status(&at, response.status())?;
            }
            return Ok(remote(at.clone(), headers, described));
        }
        Err(source(format!("{url}: too many redirects")))
    }

    /// Fetches a small text, for example an answer of the hub's API.
    pub(super) fn text(&self, url: &str, limit: u64) -> Result<String, Fault> {
        let mut response = self.get(url, None)?;
        check_status(url, response.status())?;
        let body = response.body_mut().with_config().limit(limit).read_to_string();
        body.map_err(|e| source(format!("{url}: {e}")))
    }

    /// Appends the missing rest of the file at `url` to `sink`.
    pub(super) fn download(
        &self,
        url: &str,
        size: Option<u64>,
        sink: &mut Sink,
        progress: &mut dyn Progress,
    ) -> Result<(), Fault> {
        let mut failures = 0;
        loop {
            if size.is_some_and(|n| sink.len() == n) {
                return Ok(());
            }
            let before = sink.len();
            let broken = match self.attempt(url, size, sink, progress) {
                Ok(()) => return Ok(()),
                Err(Attempt::Fatal(fault)) => return Err(fault),
                Err(Attempt::Broken(what)) => what,
            };
            let gained = sink.len().saturating_sub(before);
            failures = if gained >= WORTH_IT { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(source(format!("{url}: {broken} ({ATTEMPTS} attempts)")));
            }
            progress.note(&format!("{broken}; trying again"));
            std::thread::sleep(Duration::from_millis(100 << failures.min(6)));
        }
    }

    fn attempt(
        &self,
        url: &str,
        size: Option<u64>,
        sink: &mut Sink,
        progress: &mut dyn Progress,
    ) -> Result<(), Attempt> {
        let response = match self.get(url, Some(sink.len())) {
            Ok(r) => r,
            // No attempt has succeeded yet: another source may be faster.
            Err(fault) if sink.len() == 0 => return Err(Attempt::Fatal(fault)),
            Err(fault) => return Err(Attempt::Broken(fault.into_error().to_string())),
        };
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), "content-range").and_then(content_range);
                let Some((start, total)) = range.filter(|&(start, _)| start == sink.len()) else {
                    return Err(Attempt::Fatal(source(format!(
                        "{url}: the server sent another part than asked for"
                    ))));
                };
                debug_assert_eq!(start, sink.len());
                total
            }
            StatusCode::OK => {
                // This server cannot resume.
                if sink.len() > 0 {
                    sink.restart().map_err(Attempt::Fatal)?;
                    progress.begin(file_name(url), size, 0);
                }
                response.body().content_length()
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // The local file is complete, or belongs to another version.
                let range = text(response.headers(), "content-range");
                let total =
                    range.and_then(|r| r.strip_prefix("bytes */")).and_then(|n| n.parse::<u64>().ok());
                if total == Some(sink.len()) {
                    return Ok(());
                }
                sink.restart().map_err(Attempt::Fatal)?;
                return Err(Attempt::Broken("the file on the server has changed".to_owned()));
            }
            s if s.is_server_error() || s == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Attempt::Broken(format!("{} answers {s}", host(url))));
            }
            s => {
                return Err(Attempt::Fatal(check_status(url, s).err().unwrap_or_else(|| unexpected(url, s))));
            }
        };
        let limit = size.or(total);
        if let (Some(want), Some(have)) = (size, total)
            && want != have
        {
            return Err(Attempt::Fatal(source(format!("{url}: {have} bytes instead of {want}"))));
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0u8; 128 * 1024];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Attempt::Broken(format!("the connection to {} broke: {e}", host(url)))),
            };
            if limit.is_some_and(|l| sink.len() + n as u64 > l) {
                return Err(Attempt::Fatal(source(format!("{url}: longer than announced"))));
            }
            sink.write(&buffer[..n]).map_err(Attempt::Fatal)?;
            progress.advance(n as u64);
        }
        match limit {
            Some(l) if sink.len() < l => {
                Err(Attempt::Broken(format!("the connection to {} broke", host(url))))
            }
            _ => Ok(()),
        }
    }

    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Fault> {
        let mut request = self.follow.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(from) = from.filter(|&n| n > 0) {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(auth) = self.authorization(url) {
            request = request.header(header::AUTHORIZATION, auth);
        }
        request.call().map_err(|e| unreachable(url, &e))
    }

    fn authorization(&self, url: &str) -> Option<String> {
        let token = self.token.as_ref().filter(|_| origin(url) == origin(&self.hub))?;
        Some(format!("Bearer {token}"))
    }
}

enum Attempt {
    Fatal(Fault),
    Broken(String),
}

fn source(what: String) -> Fault {
    Fault::Source(Error::new(Category::Unavailable, what))
}

fn unexpected(url: &str, status: StatusCode) -> Fault {
    source(format!("{url}: unexpected answer {status}"))
}

/// A server that cannot be reached at all.
fn unreachable(url: &str, e: &ureq::Error) -> Fault {
    // For a person, the repository's page.
    let page = url.replace("/api/models/", "/");
    Fault::Source(Error::unavailable(
        format!("{} cannot be reached: {e}", host(url)),
        format!(
            "without network, download {page} elsewhere and give its path as MODEL; for a mirror set HF_ENDPOINT"
        ),
    ))
}

fn check_status(url: &str, status: StatusCode) -> Result<(), Fault> {
    let hint = match status {
        s if s.is_success() => return Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "the repository is private, gated or misspelt: accept its terms on the hub's web page and set HF_TOKEN to \
             an access token"
        }
        StatusCode::NOT_FOUND => "check the spelling of ORG/REPO and FILE; both are case-sensitive",
        _ => "try again later",
    };
    Err(Fault::Source(Error::unavailable(format!("{url}: the server answers {status}"), hint)))
}

fn remote(url: String, headers: &HeaderMap, described: bool) -> Remote {
    let (etag, size) =
        if described { ("x-linked-etag", "x-linked-size") } else { ("etag", "content-length") };
    let etag = text(headers, etag).map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned());
    let is_sum = |e: &&String| e.len() == 64 && e.bytes().all(|c| c.is_ascii_hexdigit());
    Remote {
        url,
        size: text(headers, size).and_then(|s| s.parse().ok()),
        sha256: etag.as_ref().filter(is_sum).map(|e| e.to_ascii_lowercase()),
        etag,
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes 5-9/10` -> first byte and total size.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

/// `https://host:port` of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find('/').map_or(url.len(), |i| start + i);
    &url[..end]
}

fn host(url: &str) -> &str {
    let origin = origin(url);
    origin.split_once("://").map_or(origin, |(_, h)| h)
}

/// Last part of a URL's path.
pub(super) fn file_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

fn resolve(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        Some(location.to_owned())
    } else {
        location.starts_with('/').then(|| format!("{}{location}", origin(base)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parsers() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("lines 5-9/10"), None);
        assert_eq!(origin("https://a.b:1/c/d"), "https://a.b:1");
        assert_eq!(host("https://a.b:1"), "a.b:1");
        assert_eq!(resolve("https://a/b/c", "/d").as_deref(), Some("https://a/d"));
        assert_eq!(resolve("https://a/b", "ftp://x"), None);
    }
}
