//! What can go wrong with a cache.

use scrimp_base::{Category, Error};
use scrimp_kernels::mem::PageError;

/// An error of the KV cache. The cache is as it was before the failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// No page could be had.
    #[error("the KV cache has no room for {tokens} more tokens: {source}")]
    NoMemory {
        /// Tokens that were to be stored.
        tokens: usize,
        /// Why not.
        source: PageError,
    },
    /// The sequence cannot go back to `len` tokens: its sliding-window layers have let go of what they would need.
    #[error(
        "cannot go back to {len} tokens: a sliding-window layer has dropped tokens before {dropped}; start over"
    )]
    Dropped {
        /// Tokens that were to be left.
        len: usize,
        /// Positions before this one are gone.
        dropped: usize,
    },
    /// Arguments that do not fit the cache.
    #[error("{0}")]
    BadInput(String),
}

impl From<KvError> for Error {
    /// The same message; [`Error::source_as`] finds the [`KvError`] again.
    fn from(error: KvError) -> Self {
        let category = match error {
            KvError::NoMemory { .. } => Category::OutOfMemory,
            KvError::Dropped { .. } | KvError::BadInput(_) => Category::BadInput,
        };
        Self::new(category, error.to_string()).with_source(error)
    }
}
