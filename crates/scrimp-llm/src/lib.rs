//! Language-model runtime: loading, tokenizer, decoder, generation and evaluation.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod families;
pub mod hub;
pub mod load;
pub mod model;

pub use error::{Error, Result};
