//! Limits, keys and addresses of a server.

use crate::{engine::KvOptions, scheduler::Limits};
use std::{net::SocketAddr, time::Duration};

/// How a server behaves. [`ServeOptions::default`] is what `scrimp serve` does without options.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys that requests must carry, as digests; empty: none is asked for.
    pub api_keys: Vec<[u8; 32]>,
    /// Origins that browsers may call from; empty: none but the server's own page.
    pub cors: Vec<String>,
    /// Limits of the scheduler.
    pub limits: Limits,
    /// Most bytes of KV pages of all requests together.
    pub kv_bytes: usize,
    /// Whether caches are made smaller when memory runs short.
    pub compress_under_pressure: bool,
    /// Whether caches are kept for requests that begin alike.
    pub prefix_caching: bool,
    /// How KV caches are kept where a request does not say.
    pub kv: KvOptions,
    /// Most tokens of a prompt and its answer.
    pub max_model_len: usize,
    /// Largest body, bytes.
    pub max_body: usize,
    /// Most rows of a request to the recommender.
    pub max_rows: usize,
    /// Time for a request's head and for its body.
    pub read_timeout: Duration,
    /// Time for an answer.
    pub request_timeout: Duration,
    /// Time that running requests get when the server shuts down.
    pub drain: Duration,
    /// Connections at once; more wait.
    pub max_connections: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_keys: Vec::new(),
            cors: Vec::new(),
            limits: Limits::default(),
            kv_bytes: 1 << 30,
            compress_under_pressure: false,
            prefix_caching: true,
            kv: KvOptions { compression: None, format: "bf16".to_owned() },
            max_model_len: usize::MAX,
            max_body: 4 << 20,
            max_rows: 65_536,
            read_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            max_connections: 1024,
        }
    }
}
