//! Options of `scrimp fit`.

use super::size;
use clap::Args;
use std::{num::NonZeroU64, path::PathBuf};

/// `scrimp fit`.
#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// The memory that there is (`800MB`, `1.5GiB`, or a number of bytes)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: u64,
    /// Tokens of a conversation, prompt and answers
    #[arg(long, value_name = "N", value_parser = super::at_least_two)]
    pub(crate) context: usize,
    /// Conversations that are held at once
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) sequences: NonZeroU64,
    /// Text that smaller caches are measured on, and compressed weights at the end [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Write the compressed model, too, where one is needed
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub(crate) out: Option<PathBuf>,
}
