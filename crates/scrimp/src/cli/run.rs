//! Options of `scrimp run`.

use super::{
    MODEL,
    values::{Think, finite, non_negative, positive, probability, think},
};
use crate::{drafts::Speculate, kv_args::KvArgs};
use clap::Args;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "Examples:
  scrimp run smollm2 \"Write a haiku about rain\"
  cat notes.txt | scrimp run qwen2.5-coder-1.5b -      read the prompt from stdin
  scrimp run gemma3-270m --raw \"Once upon a time\"      continue a text, without chat template
  scrimp run smollm2 --kv-save doc.kv --max-tokens 0 - < doc.txt    read a text once ...
  scrimp run smollm2 --kv-load doc.kv \"Who wrote it?\"              ... and ask about it later
  scrimp run smollm2 --temperature 0.7 --json \"Hi\"";

/// `scrimp run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// The prompt; `-` or a pipe reads stdin; without a prompt, a terminal opens a chat
    pub(crate) prompt: Option<String>,
    /// Do not apply the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// System message of the chat
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Maximum number of tokens to generate [default: until the answer ends or the context is full]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Draft several tokens and check them in one pass; the answer is the same. `ngram` drafts earlier occurrences of the last
    /// tokens: faster where the answer repeats parts of the prompt or of itself. A smaller MODEL with the same vocabulary
    /// drafts predictable text, such as code
    #[arg(long, value_name = "off|ngram|MODEL", default_value_t)]
    pub(crate) speculate: Speculate,
    /// Write the KV cache of the prompt and the answer to FILE
    #[arg(long, value_name = "FILE", help_heading = "KV cache")]
    pub(crate) kv_save: Option<PathBuf>,
    /// Start from a KV cache that --kv-save wrote with the same model and options: PROMPT continues the saved
    /// conversation, or repeats and extends the saved prompt
    #[arg(long, value_name = "FILE", help_heading = "KV cache")]
    pub(crate) kv_load: Option<PathBuf>,
    /// Reasoning before the answer: on, off, or at most N tokens [default: as the chat template]
    #[arg(long, value_name = "on|off|N", value_parser = think, conflicts_with = "raw")]
    pub(crate) think: Option<Think>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// Sampling of the next token.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f32,
    /// Sample from the K most likely tokens; 0: from all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub(crate) top_k: usize,
    /// Sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub(crate) top_p: f32,
    /// Exclude tokens less likely than P times the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub(crate) min_p: f32,
    /// Divide the logits of tokens that already occurred by R; 1: off
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repetition_penalty: f32,
    /// Subtract F from a token's logit for each time it occurred
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Subtract F once from the logit of each token that occurred
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// Stop before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}
