//! Options of a server.

use crate::{engine::KvOptions, scheduler::Limits};
use scrimp_llm::generate::DraftKind;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Options of a server. The defaults are those of `scrimp serve`.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address and port to listen on.
    pub address: SocketAddr,
    /// SHA-256 digests of the accepted API keys (see [`digest`](crate::digest)); empty: no key is required.
    pub api_keys: Vec<[u8; 32]>,
    /// Origins whose pages may call the server, such as `https://example.org`; `*`: all. Empty: only the server's own page.
    pub cors: Vec<String>,
    /// Limits of the scheduler.
    pub limits: Limits,
    /// Maximum size of all KV pages in bytes.
    pub kv_bytes: usize,
    /// Maximum size of the loaded language models with their KV caches, and of the weights of the other models, in bytes.
    /// `None`: all language models stay loaded.
    pub memory: Option<u64>,
    /// Compress the longest KV caches when the memory is full, before requests are preempted.
    pub compress_under_pressure: bool,
    /// Reuse the KV caches of common prompt prefixes.
    pub prefix_caching: bool,
    /// Directory of KV caches that survive a restart, and the limit on their bytes; `None`: none are kept on disk.
    pub prefix_store: Option<(PathBuf, u64)>,
    /// Default KV options of requests.
    pub kv: KvOptions,
    /// Source of drafts of requests that do not set it. It changes the speed and no answer. [`DraftKind::Model`] applies
    /// to models with a [draft model](crate::LanguageModel::draft).
    pub speculation: DraftKind,
    /// Reasoning of answers whose requests do not set it: whether the model reasons, and the maximum number of tokens. `None`:
    /// the chat template decides.
    pub reasoning: Option<(bool, Option<usize>)>,
    /// Maximum number of tokens of a prompt and its answer.
    pub max_model_len: usize,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Maximum number of rows per request to the recommender.
    pub max_rows: usize,
    /// Maximum time until the head, and then the body, of a request has arrived.
    pub read_timeout: Duration,
    /// Maximum time per request.
    pub request_timeout: Duration,
    /// Time for running requests to finish when the server shuts down.
    pub drain: Duration,
    /// Maximum number of connections; further ones wait.
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
            memory: None,
            compress_under_pressure: false,
            prefix_caching: true,
            prefix_store: None,
            kv: KvOptions { compression: None, format: "bf16".to_owned() },
            speculation: DraftKind::Off,
            reasoning: None,
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
