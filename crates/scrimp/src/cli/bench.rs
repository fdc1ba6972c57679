//! Options of `scrimp bench`.

use super::{
    MODEL,
    values::{one_of, rate, sparsity},
};
use crate::{drafts::Speculate, kv_args::KvArgs};
use clap::{Args, Subcommand, builder::TypedValueParser};
use scrimp_kernels::{linear::bench::BenchFormat, quant::packed::WeightFormat};
use std::num::NonZeroUsize;

pub(super) const EXAMPLES: &str = "Examples:
  scrimp bench decode smollm2
  scrimp bench linear --batch 8 --sparsity 0.7
  scrimp bench embedding";

/// `scrimp bench`.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once per process")]
pub(crate) enum BenchVerb {
    /// Speed of prefill and decode, best of three rounds
    #[command(after_help = "Examples:
  scrimp bench decode smollm2
  scrimp bench decode qwen2.5-coder-1.5b --prompt 512 --tokens 64 --depth 4096 --threads 2 --json
  scrimp bench decode --synthetic llama-3.2-1b --format sparse-int8 --sparsity 0.5")]
    Decode(BenchDecodeArgs),
    /// Speed of one linear layer in several weight formats
    #[command(
        after_help = "All formats hold the same random weights, of which a fraction of --sparsity is zero. The formats alternate and \
rotate through at least 512 MB of weights, so that no weights are in a CPU cache. A format's time is the best of its rounds.

Examples:
  scrimp bench linear
  scrimp bench linear --rows 4096 --cols 4096 --batch 8 --sparsity 0.7 --formats bf16,sparse-bf16 --json
  SCRIMP_TIER=avx2 scrimp bench linear --threads 1"
    )]
    Linear(BenchLinearArgs),
    /// Speed of embedding lookups: a full table against tables that fit into a CPU cache
    #[command(
        after_help = "Prints one line per encoder and storage type: bytes, nanoseconds per lookup in a batch, and nanoseconds per single lookup. \
The full table takes 4 * --rows-full * --dim bytes.

Examples:
  scrimp bench embedding
  scrimp bench embedding --rows-full 1000000 --threads 2 --json"
    )]
    Embedding(BenchEmbeddingArgs),
    /// Speed of a running server: time to first token, time per token, throughput
    #[command(after_help = "Examples:
  scrimp serve smollm2 &
  scrimp bench serve --concurrency 16 --requests 64
  scrimp bench serve --rate 4 --requests 100 --tokens 32 --json       a fixed request rate")]
    Serve(BenchServeArgs),
}

/// `scrimp bench linear`.
#[derive(Debug, Args)]
pub(crate) struct BenchLinearArgs {
    /// Output features
    #[arg(long, value_name = "R", default_value = "14336")]
    pub(crate) rows: NonZeroUsize,
    /// Input features
    #[arg(long, value_name = "C", default_value = "4096")]
    pub(crate) cols: NonZeroUsize,
    /// Tokens per product
    #[arg(long, value_name = "B", default_value = "1")]
    pub(crate) batch: NonZeroUsize,
    /// Fraction of the weights that are zero
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = sparsity)]
    pub(crate) sparsity: f64,
    /// Formats, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16,int8,int4,sparse-bf16,sparse-int8,sparse-int4",
        value_parser = one_of(BenchFormat::ALL, BenchFormat::name, BenchFormat::about)
    )]
    pub(crate) formats: Vec<BenchFormat>,
}

/// `scrimp bench embedding`.
#[derive(Debug, Args)]
pub(crate) struct BenchEmbeddingArgs {
    /// Rows of the full table [default: 10 GB of rows, or half of the free memory if that is less]
    #[arg(long, value_name = "N")]
    pub(crate) rows_full: Option<NonZeroUsize>,
    /// Dimension of an embedding, a multiple of 64
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) dim: NonZeroUsize,
    /// Samples per batch
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) batch: NonZeroUsize,
    /// Ids per sample
    #[arg(long, value_name = "N", default_value = "26")]
    pub(crate) features: NonZeroUsize,
}

/// `scrimp bench decode`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    #[arg(help = MODEL, required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub(crate) model: Option<String>,
    /// Use random weights of this shape instead of a model: llama-3.2-1b, llama-3-8b, qwen3-30b-a3b. SHAPE:N has the
    /// first N layers
    #[arg(long, value_name = "SHAPE")]
    pub(crate) synthetic: Option<String>,
    /// Format of the random weights
    #[arg(long, value_name = "FORMAT", default_value = "sparse-int8", requires = "synthetic", value_parser = weight_formats())]
    pub(crate) format: WeightFormat,
    /// Format of the random output matrix [default: --format if that is dense, else int8]
    #[arg(long, value_name = "FORMAT", requires = "synthetic", value_parser = weight_formats(), hide_possible_values = true)]
    pub(crate) output_format: Option<WeightFormat>,
    /// Fraction of the random weights that are zero; dense formats store the zeros
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = sparsity, requires = "synthetic")]
    pub(crate) sparsity: f64,
    /// Tokens of the timed prefill
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) prompt: NonZeroUsize,
    /// Tokens of the timed decode
    #[arg(long, value_name = "M", default_value = "64")]
    pub(crate) tokens: NonZeroUsize,
    /// Tokens in the KV cache before the timed decode
    #[arg(long, value_name = "D", default_value = "8")]
    pub(crate) depth: NonZeroUsize,
    /// Source of drafts of the timed decode: `ngram`, or a smaller MODEL with the same vocabulary
    #[arg(long, value_name = "off|ngram|MODEL", default_value_t, conflicts_with = "synthetic")]
    pub(crate) speculate: Speculate,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp bench serve`.
#[derive(Debug, Args)]
pub(crate) struct BenchServeArgs {
    /// Address of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// API key, if the server requires one
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// Total number of requests
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) requests: NonZeroUsize,
    /// Number of simultaneous clients
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) concurrency: NonZeroUsize,
    /// Requests per second, sent without waiting for answers [default: each client waits for its answer]
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) tokens: NonZeroUsize,
    /// Characters of each prompt, from a built-in text
    #[arg(long, value_name = "N", default_value = "400")]
    pub(crate) prompt_chars: NonZeroUsize,
}

fn weight_formats() -> impl TypedValueParser<Value = WeightFormat> {
    one_of(WeightFormat::ALL, WeightFormat::name, WeightFormat::about)
}
