//! Language-model runtime: loading, tokenizer, decoder, generation and evaluation.
#![forbid(unsafe_code)]

pub mod bench;
pub mod builtin_text;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod eval;
pub mod families;
pub mod generate;
pub mod hub;
pub mod load;
pub mod logits;
pub mod model;
pub mod sampling;
pub mod source;

#[cfg(test)]
mod fake;
pub mod tokenizer;

pub use error::{Error, Result};
