//! Questions about long contexts, asked under one or many settings of the KV cache: what all benchmarks share.

pub mod compare;
#[cfg(test)]
pub(crate) mod fake;
pub mod journal;
pub mod jsonl;
pub mod prompt;
mod session;
pub mod suite;

pub use session::CacheSetting;
