//! Questions about long contexts under one or many settings of the KV cache: the shared code of the benchmarks.

pub mod compare;
#[cfg(test)]
pub(crate) mod fake;
pub mod journal;
pub mod jsonl;
pub mod prompt;
mod session;
pub mod suite;

pub use session::CacheSetting;
