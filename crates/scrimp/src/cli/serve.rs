//! Options of `scrimp serve`.

use super::{
    GlobalArgs, MODEL,
    values::{Think, host, size, think},
};
use crate::{drafts::Speculate, kv_args::KvArgs};
use clap::{Args, Parser, ValueEnum};
use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp serve smollm2                                             http://127.0.0.1:8080, with a chat page
  scrimp serve qwen2.5-coder-1.5b --kv-memory 512MiB --kv-format int8 --kv-budget 0.25 --kv-pressure compress
  scrimp serve smollm2 ./all-MiniLM-L6-v2 ./ms-marco-MiniLM-L6-v2   chats, embeddings and reranking in one server
  scrimp serve smollm2 gemma3-270m qwen2.5-coder-1.5b --memory 4GiB   several chat models, two of them in memory
  scrimp serve smollm2 --rec flights.model --host 0.0.0.0 --api-key-file keys.txt --log json
  scrimp serve --config serve.toml

Clients use the base URL http://127.0.0.1:8080/v1, and any API key if the server has none. Requests may \
set KV options as fields (kv_shrink, kv_budget, kv_policy, kvcrush, kv_format). After SIGTERM or Ctrl-C the server \
finishes the running requests.";

/// `scrimp serve`.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub(crate) struct ServeArgs {
    #[arg(help = format!("{MODEL}; several language models, an embedding model and a reranker can be given together; optional with --rec"))]
    #[arg(required_unless_present_any = ["rec", "config"])]
    pub(crate) model: Vec<String>,
    /// Recommender trained by `scrimp rec train`, for /v1/score
    #[arg(long, value_name = "REC_MODEL")]
    pub(crate) rec: Option<PathBuf>,
    /// Address or host name to listen on; 0.0.0.0 accepts connections from other machines
    #[arg(long, value_name = "H", default_value = "127.0.0.1", value_parser = host)]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0: any free port
    #[arg(long, value_name = "P", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Name of the first MODEL in requests [default: MODEL]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// TOML file with options, such as port = 8080; the command line takes precedence
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Format of the request log on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, help_heading = "Operation")]
    pub(crate) log: LogFormat,
    /// Reasoning before answers whose requests do not set it: on, off, or at most N tokens [default: as the chat template]
    #[arg(long, value_name = "on|off|N", value_parser = think)]
    pub(crate) think: Option<Think>,
    /// Draft several tokens of a request that runs alone and check them in one pass, unless the request sets it; the answers
    /// are the same. `ngram` drafts earlier occurrences of the last tokens: faster where an answer repeats parts of the prompt
    /// or of itself. A smaller model with the same vocabulary drafts answers of the first MODEL
    #[arg(long, value_name = "off|ngram|MODEL", default_value_t)]
    pub(crate) speculate: Speculate,
    /// Seconds to wait for running requests after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 30, help_heading = "Operation")]
    pub(crate) drain: u64,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// Who may use the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// API key that requests must send; other users of the machine can see it here, so prefer SCRIMP_API_KEY or --api-key-file
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// File with one API key per line
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Origin whose web pages may call the server, such as https://example.org, or * for all (repeatable) [default: only its own page]
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors: Vec<String>,
}

/// Limits on memory, requests and time.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Maximum memory of the loaded models with their KV caches. Language models are loaded when a request names them; the least
    /// recently used one is unloaded when another needs its memory [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Maximum memory for the KV caches of all requests to a model
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size)]
    pub(crate) kv_memory: u64,
    /// Reaction when --kv-memory is full: preempt the newest requests, or first compress the longest KV caches
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = Pressure::Preempt)]
    pub(crate) kv_pressure: Pressure,
    /// Do not reuse the KV cache of earlier requests that begin with the same tokens
    #[arg(long)]
    pub(crate) no_prefix_caching: bool,
    /// Directory that keeps KV caches of finished requests for later ones, also after a restart
    #[arg(long, value_name = "DIR", conflicts_with = "no_prefix_caching")]
    pub(crate) kv_dir: Option<PathBuf>,
    /// Maximum size of the files in --kv-dir; the least recently used ones are deleted
    #[arg(long, value_name = "SIZE", default_value = "8GiB", value_parser = size)]
    pub(crate) kv_dir_size: u64,
    /// Maximum number of requests that run at the same time
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) max_seqs: NonZeroUsize,
    /// Maximum number of tokens per forward pass
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) max_step_tokens: NonZeroUsize,
    /// Maximum number of waiting requests; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queue: usize,
    /// Maximum number of tokens of a prompt and its answer [default: the model's context]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<NonZeroUsize>,
    /// Maximum size of a request body; larger ones get status 413
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size)]
    pub(crate) max_body: u64,
    /// Maximum seconds per request; then status 408
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Maximum seconds until a request has arrived; then status 408, or the connection is closed
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) read_timeout: u64,
}

/// Reaction to a full KV memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pressure {
    /// The newest requests start over later
    Preempt,
    /// The longest KV caches lose half of their tokens first
    Compress,
}

/// Format of the request log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object per line
    Json,
    /// Errors only
    Off,
}

/// Options of a configuration file, followed by those of the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct ServeLine {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}
