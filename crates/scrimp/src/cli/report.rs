//! Options of `scrimp report`.

use super::{MODEL, values::fraction};
use clap::{Args, Subcommand};
use scrimp_kv::policy::{PolicyChoice, policy};
use std::{num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp report kv smollm2
  scrimp report kv smollm2 --text book.txt --policies h2o,snapkv --budgets 0.5,0.25";

/// `scrimp report`.
#[derive(Debug, Subcommand)]
pub(crate) enum ReportVerb {
    /// Quality against size of the KV cache, for policies with and without KVCrush: chart and table
    #[command(
        after_help = "Each result is saved immediately. An interrupted run resumes, and a run with more policies, \
budgets or texts adds to the results in the directory.

Examples:
  scrimp report kv smollm2
  scrimp report kv smollm2 --text book.txt --text letters.txt --policies h2o,snapkv,adakv:snapkv --budgets 0.25
  scrimp report kv qwen2.5-coder-1.5b --task niah_multikey_3_4096.jsonl --limit 20 -o report"
    )]
    Kv(ReportKvArgs),
}

/// `scrimp report kv`.
#[derive(Debug, Args)]
pub(crate) struct ReportKvArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// Text file (repeatable) [default: a built-in text in the public domain]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Vec<PathBuf>,
    /// Number of excerpts per text, spread evenly over it; each excerpt has its own seed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) seeds: u16,
    /// Tokens to prefill before the KV cache is compressed
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) prompt_tokens: NonZeroUsize,
    /// Tokens to score after the prompt
    #[arg(long, value_name = "M", default_value = "128")]
    pub(crate) score_tokens: NonZeroUsize,
    /// Eviction policies, separated by commas
    #[arg(long, value_name = "POLICY,..", value_delimiter = ',', default_value = "h2o,snapkv,tova,knorm", value_parser = |s: &str| policy(s).map_err(|e| e.to_string()))]
    pub(crate) policies: Vec<PolicyChoice>,
    /// Budgets, fractions of the prompt
    #[arg(long, value_name = "F,..", value_delimiter = ',', default_value = "0.5,0.25,0.125", value_parser = fraction)]
    pub(crate) budgets: Vec<f64>,
    /// Fraction of the budget for KVCrush representatives
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = fraction)]
    pub(crate) kvcrush: f64,
    /// File of a LongBench or RULER task: compare the settings on its questions, too (repeatable)
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) task: Vec<PathBuf>,
    /// Use only the first N samples of each task [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Directory for kv.svg, kv.md and the saved results
    #[arg(short, long, value_name = "DIR", default_value = "kv-report")]
    pub(crate) output: PathBuf,
}
