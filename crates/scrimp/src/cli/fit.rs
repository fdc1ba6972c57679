//! Options of `scrimp fit`.

use super::{
    MODEL,
    values::{at_least_two, size},
};
use clap::Args;
use std::{num::NonZeroU64, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp fit qwen2.5-coder-1.5b --memory 1.2GB --context 8192
  scrimp fit qwen2.5-coder-1.5b --memory 2GB --context 32768 --sequences 4 --text notes.txt
  scrimp fit smollm2 --memory 150MB --context 4096 -o small.safetensors     compress it at once

The memory limit covers the whole process: weights, the KV caches of all conversations, and
buffers. If the original model fits, nothing is measured. KL is the divergence from the original's
predictions, in nats per token.";

/// `scrimp fit`.
#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// Memory limit of the process (800MB, 1.5GiB, or a number of bytes)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: u64,
    /// Tokens of a conversation, prompts and answers together
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub(crate) context: usize,
    /// Number of simultaneous conversations
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) sequences: NonZeroU64,
    /// Text for the measurements of KV caches and of the compressed model [default: a built-in text]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// File for the compressed model, if the limit needs one
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub(crate) out: Option<PathBuf>,
}
