//! Language-model runtime: loading, tokenizer, decoder, generation and evaluation.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod load;
pub mod model;
pub mod tokenizer;

pub use error::{Error, Result};
