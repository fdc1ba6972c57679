//! Options of `scrimp eval`.

use super::{
    MODEL,
    values::{at_least_two, one_of},
};
use crate::kv_args::KvArgs;
use clap::{Args, Subcommand};
use scrimp_eval::tasks::prompt::Question;
use std::{num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp eval ppl smollm2 --text book.txt
  scrimp eval kv smollm2 --text book.txt --prompt-tokens 3072 --score-tokens 256 --kv-budget 0.25
  scrimp eval needle qwen2.5-coder-0.5b --haystack book.txt --lengths 1024,4096 --depths 0,50,100";

/// `scrimp eval`.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalVerb {
    /// Perplexity of a text
    #[command(
        after_help = "The first --max-tokens tokens of the text are scored in windows of --context tokens that do not overlap. \
The first position of each window and a partial window at the end are not scored.

Examples:
  scrimp eval ppl smollm2 --text book.txt
  scrimp eval ppl ./model.gguf --text book.txt --context 2048 --max-tokens 20000 --json"
    )]
    Ppl(EvalPplArgs),
    /// KL divergence between the predictions of two models
    #[command(after_help = "Examples:
  scrimp eval kl ./small.gguf --against ./large.gguf --text book.txt
  scrimp eval kl smollm2 --against smollm2 --text book.txt --kv-format f16 --max-tokens 4096")]
    Kl(EvalKlArgs),
    /// Accuracy loss of a compressed KV cache
    #[command(
        after_help = "The first --prompt-tokens tokens of the text are prefilled (with the begin-of-text token, if the \
tokenizer adds one), the KV cache is compressed, and the predictions of the next --score-tokens tokens are compared with those of the full bf16 cache.

Examples:
  scrimp eval kv smollm2 --text book.txt --prompt-tokens 3072 --score-tokens 256 --kv-budget 0.25 --kv-policy h2o
  scrimp eval kv smollm2 --text book.txt --prompt-tokens 3072 --score-tokens 256 --kv-budget 0.25 --kvcrush 0.5 --json"
    )]
    Kv(EvalKvArgs),
    /// Needle in a haystack: find one sentence in a long text
    #[command(after_help = "Examples:
  scrimp eval needle qwen2.5-coder-0.5b --haystack book.txt --lengths 1024,4096 --depths 0,25,50,75,100
  scrimp eval needle qwen2.5-coder-0.5b --haystack book.txt --lengths 4096 --depths 50 --question after --json")]
    Needle(EvalNeedleArgs),
    /// LongBench: one of its 21 tasks, with its prompts and metrics
    #[command(after_help = "The score is the mean over all samples, from 0 to 100.

Examples:
  scrimp eval longbench qwen2.5-coder-1.5b --data multifieldqa_zh.jsonl --limit 20
  scrimp eval longbench qwen2.5-coder-1.5b --data multi_news.jsonl --state results.jsonl --json")]
    Longbench(EvalTaskArgs),
    /// RULER: retrieval, tracing and counting in synthetic texts
    #[command(after_help = "The score is the mean over all samples, from 0 to 100.

Examples:
  scrimp eval ruler qwen2.5-coder-1.5b --data niah_multikey_3_4096.jsonl --limit 20
  scrimp eval ruler qwen2.5-coder-1.5b --data qa_1/validation.jsonl --question after --json")]
    Ruler(EvalRulerArgs),
}

/// The text to score.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// Text file (UTF-8)
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens per window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_two)]
    pub(crate) context: usize,
    /// Use only the first N tokens of the text [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
}

/// `scrimp eval ppl`.
#[derive(Debug, Args)]
pub(crate) struct EvalPplArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval kl`.
#[derive(Debug, Args)]
pub(crate) struct EvalKlArgs {
    /// The model to evaluate
    pub(crate) model: String,
    /// The reference model
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: String,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// KV options of MODEL; the reference keeps its full bf16 cache.
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval kv`.
#[derive(Debug, Args)]
pub(crate) struct EvalKvArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// Text file (UTF-8)
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens to prefill before the KV cache is compressed
    #[arg(long, value_name = "N")]
    pub(crate) prompt_tokens: NonZeroUsize,
    /// Tokens to score after the prompt
    #[arg(long, value_name = "M")]
    pub(crate) score_tokens: NonZeroUsize,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval needle`.
#[derive(Debug, Args)]
pub(crate) struct EvalNeedleArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// Text file to hide the needle in
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: PathBuf,
    /// Prompt lengths in tokens
    #[arg(long, value_name = "L,..", value_delimiter = ',', required = true)]
    pub(crate) lengths: Vec<usize>,
    /// Positions of the needle in the text: percentages, or fractions if none is above 1
    #[arg(long, value_name = "D,..", value_delimiter = ',', required = true)]
    pub(crate) depths: Vec<f64>,
    #[command(flatten)]
    pub(crate) how: TaskArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

impl EvalNeedleArgs {
    /// Depths as fractions of the text.
    pub(crate) fn depths(&self) -> Vec<f64> {
        let unit = if self.depths.iter().any(|&d| d > 1.0) { 100.0 } else { 1.0 };
        self.depths.iter().map(|d| d / unit).collect()
    }

    /// Depths in the unit of the command line, one for each of `cells`.
    pub(crate) fn given_depths(&self, cells: usize) -> Vec<f64> {
        self.depths.iter().copied().cycle().take(cells).collect()
    }
}

/// `scrimp eval longbench`, and the common options of `scrimp eval ruler`.
#[derive(Debug, Args)]
pub(crate) struct EvalTaskArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// The benchmark's file: one JSON object per line
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) data: PathBuf,
    /// Use only the first N samples [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    #[command(flatten)]
    pub(crate) how: TaskArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

impl EvalTaskArgs {
    /// Number of samples; `None`: all.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit.map(|n| n as usize)
    }
}

/// `scrimp eval ruler`.
#[derive(Debug, Args)]
pub(crate) struct EvalRulerArgs {
    #[command(flatten)]
    pub(crate) common: EvalTaskArgs,
    /// Name of the task [default: the beginning of FILE's name or of its directory's]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
}

/// Options of all question benchmarks.
#[derive(Debug, Clone, Args)]
pub(crate) struct TaskArgs {
    /// When the model sees the question
    #[arg(long, value_name = "WHEN", default_value = Question::default().name(), value_parser = one_of(Question::ALL, Question::name, Question::about))]
    pub(crate) question: Question,
    /// Do not apply the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Cut the middle out of prompts with more than N tokens [default: the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) max_prompt: Option<u32>,
    /// Journal of results: results are appended to FILE, and a run resumes from those it contains
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Compare many settings with one prefill per sample: each line of FILE has the KV options of one setting
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
}
