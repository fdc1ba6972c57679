//! Measuring language models: quality of predictions, long contexts, speed.
//!
//! Texts are cut into [`Windows`], and each metric processes one window at a time, so memory does not grow with the
//! text. Benchmarks with questions share [`tasks`]; their metrics are in [`metrics`].
#![forbid(unsafe_code)]

pub mod bench;
pub mod kl;
pub mod kv;
pub mod longbench;
pub mod metrics;
pub mod needle;
pub mod ppl;
pub mod report;
pub mod ruler;
pub mod tasks;
mod windows;

pub use windows::{Windows, read_text};

/// Progress of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Tokens scored so far.
    pub done: usize,
    /// All tokens to score.
    pub total: usize,
    /// Perplexity over the scored tokens.
    pub ppl: f64,
}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
