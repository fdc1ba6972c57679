//! A load generator for servers with OpenAI's API: closed loop (each client waits for its answer) or open loop (a fixed
//! request rate). It writes plain HTTP to sockets, so that its own load is small.

use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// The load.
#[derive(Debug, Clone)]
pub struct Load {
    /// `host:port`.
    pub address: String,
    /// API key, if the server requires one.
    pub api_key: Option<String>,
    /// Total number of requests.
    pub requests: usize,
    /// Number of clients (closed loop), or their maximum (open loop).
    pub concurrency: usize,
    /// Requests per second (open loop); `None`: closed loop.
    pub rate: Option<f64>,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Prompts, used cyclically.
    pub prompts: Vec<String>,
}

/// The measured answers.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Seconds from a request to its first token, sorted.
    pub first_token: Vec<f64>,
    /// Seconds between consecutive tokens, sorted.
    pub between: Vec<f64>,
    /// Tokens of all answers.
    pub tokens: u64,
    /// Number of complete answers.
    pub complete: usize,
    /// The first error messages.
    pub errors: Vec<String>,
    /// Number of failed requests.
    pub failed: usize,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
}

/// Maximum time without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum number of error messages.
const MAX_ERRORS: usize = 5;

/// Sends all requests and waits for the answers.
pub fn run(load: &Load) -> Measured {
    let (next, result) = (AtomicUsize::new(0), Mutex::new(Measured::default()));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..load.concurrency.max(1).min(load.requests) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= load.requests {
                        return;
                    }
                    if let Some(rate) = load.rate {
                        let due = start + Duration::from_secs_f64(i as f64 / rate);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                    let answer = one(load, &load.prompts[i % load.prompts.len().max(1)]);
                    result.lock().unwrap_or_else(PoisonError::into_inner).add(answer);
                }
            });
        }
    });
    let mut result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.seconds = start.elapsed().as_secs_f64();
    result.first_token.sort_by(f64::total_cmp);
    result.between.sort_by(f64::total_cmp);
    result
}

impl Measured {
    fn add(&mut self, answer: io::Result<Answer>) {
        match answer {
            Ok(answer) => {
                self.complete += 1;
                self.tokens += answer.tokens;
                self.first_token.extend(answer.first_token);
                self.between.extend(answer.between);
            }
            Err(e) => {
                self.failed += 1;
                if self.errors.len() < MAX_ERRORS {
                    self.errors.push(e.to_string());
                }
            }
        }
    }
}

/// The percentile `share` (0 to 1) of sorted values; 0 without values.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
}

#[derive(Debug, Default)]
struct Answer {
    first_token: Option<f64>,
    between: Vec<f64>,
    tokens: u64,
}

fn one(load: &Load, prompt: &str) -> io::Result<Answer> {
    let body = json!({
        "prompt": prompt, "max_tokens": load.tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": { "include_usage": true },
    })
    .to_string();
    let key = load.api_key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n{key}\
         Content-Length: {}\r\n\r\n",
        load.address,
        body.len()
    );
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&load.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (status, chunked) = read_head(&mut reader)?;
    if status != 200 {
        let mut text = String::new();
        reader.take(2000).read_to_string(&mut text)?;
        return Err(io::Error::other(format!("status {status}: {}", text.trim())));
    }
    let body: Box<dyn BufRead> =
        if chunked { Box::new(BufReader::new(Chunked { reader, left: 0 })) } else { Box::new(reader) };
    let (mut answer, mut last, mut done) = (Answer::default(), None::<Instant>, false);
    for line in body.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            done = true;
            break;
        }
        let chunk: Value = serde_json::from_str(data).map_err(io::Error::other)?;
        if let Some(error) = chunk.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
        if let Some(n) = chunk["usage"]["completion_tokens"].as_u64() {
            answer.tokens = n;
        }
        if chunk["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            let now = Instant::now();
            match last.replace(now) {
                None => answer.first_token = Some((now - begun).as_secs_f64()),
                Some(before) => answer.between.push((now - before).as_secs_f64()),
            }
        }
    }
    if done { Ok(answer) } else { Err(io::Error::other("the stream ended early")) }
}

/// Status, and whether the body has chunked encoding.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, bool)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("not an HTTP server"))?;
    let mut chunked = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((status, chunked));
        }
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
    }
}

/// Decodes a body with chunked encoding.
struct Chunked<R> {
    reader: R,
    /// Remaining bytes of the current chunk.
    left: usize,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let size = line.trim();
            if size.is_empty() {
                continue;
            }
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16);
            self.left = size.map_err(io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let n = out.len().min(self.left);
        let n = self.reader.read(&mut out[..n])?;
        self.left -= n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let text = b"4\r\ndata\r\n3;x=y\r\n: 1\r\n0\r\n\r\n".as_slice();
        let mut out = String::new();
        Chunked { reader: text, left: 0 }.read_to_string(&mut out).unwrap();
        assert_eq!(out, "data: 1");
    }

    #[test]
    fn percentiles() {
        let sorted: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&sorted, 0.5), percentile(&sorted, 0.99), percentile(&[], 0.5)),
            (50.0, 99.0, 0.0)
        );
    }
}
