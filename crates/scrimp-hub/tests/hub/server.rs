//! A tiny HTTP server that behaves like the Hugging Face hub, well or badly.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// What the server has and how it behaves.
#[derive(Default, Clone)]
pub(crate) struct Behavior {
    /// Path (with its leading slash) to contents.
    pub(crate) files: HashMap<String, Vec<u8>>,
    /// The hub announces the SHA-256 of the contents, as for large files.
    pub announce_sha256: bool,
    /// Hang up after so many bytes of each answer to GET.
    pub(crate) drop_after: Option<usize>,
    /// Ignore `Range` headers.
    pub(crate) no_ranges: bool,
    /// Answer every request with this status.
    pub(crate) status: Option<u16>,
    /// Redirect downloads to `/cdn/...`, as the hub does, naming the file's sum on the redirect only.
    pub(crate) redirect: bool,
    /// Redirect downloads to another server.
    pub(crate) redirect_to: Option<String>,
    /// Wait so many milliseconds before each answer to GET.
    pub(crate) delay_ms: u64,
}

/// A running server; stops when dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) behavior: Arc<Mutex<Behavior>>,
    /// `METHOD PATH [range] [authorization]` of every request.
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let behavior = Arc::new(Mutex::new(behavior));
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (behavior, log, stop) = (behavior.clone(), log.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (behavior, log) = (behavior.lock().unwrap().clone(), log.clone());
                    std::thread::spawn(move || {
                        // A client that hangs up is no failure of the test.
                        let _ = serve(stream.unwrap(), &behavior, &log);
                    });
                }
            }
        });
        Self { address: format!("http://127.0.0.1:{port}"), behavior, log, stop, thread: Some(thread) }
    }

    /// Requests so far that start with `prefix`.
    pub(crate) fn requests(&self, prefix: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|l| l.starts_with(prefix)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: TcpStream, b: &Behavior, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut range, mut auth) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "authorization" => auth = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut words = first.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if method.is_empty() {
        return Ok(());
    }
    let entry = [Some(method.to_owned()), Some(path.to_owned()), range.clone(), auth];
    log.lock().unwrap().push(entry.into_iter().flatten().collect::<Vec<_>>().join(" "));
    if let Some(to) = &b.redirect_to {
        let head = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close";
        return write!(out, "{head}\r\nLocation: {to}{path}\r\n\r\n");
    }
    let stored = path.strip_prefix("/cdn").unwrap_or(path);
    let (Some(body), None) = (b.files.get(stored), b.status) else {
        let status = b.status.unwrap_or(404);
        return write!(out, "HTTP/1.1 {status} Nope\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let etag = if b.announce_sha256 { sha256(body) } else { format!("{:040x}", body.len()) };
    if b.redirect && !path.starts_with("/cdn") && path.contains("/resolve/") {
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nLocation: /cdn{path}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n",
            body.len()
        );
    }
    let from = range.filter(|_| !b.no_ranges).and_then(|r| {
        r.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).and_then(|n| n.parse::<usize>().ok())
    });
    if method == "GET" {
        std::thread::sleep(std::time::Duration::from_millis(b.delay_ms));
    }
    let part = match from {
        Some(n) if n >= body.len() => {
            return write!(
                out,
                "HTTP/1.1 416 No\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                body.len()
            );
        }
        Some(n) => {
            write!(
                out,
                "HTTP/1.1 206 Partial\r\nContent-Range: bytes {n}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            )?;
            &body[n..]
        }
        None => {
            write!(out, "HTTP/1.1 200 OK\r\n")?;
            &body[..]
        }
    };
    write!(out, "ETag: \"{etag}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", part.len())?;
    if method == "GET" {
        out.write_all(&part[..part.len().min(b.drop_after.unwrap_or(usize::MAX))])?;
    }
    out.flush()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("{:x}", sha2::Sha256::digest(bytes))
}
