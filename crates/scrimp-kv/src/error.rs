//! Errors of the cache.

use scrimp_kernels::mem::PageError;

/// An error of the KV cache. A failed call leaves the cache unchanged unless its documentation states otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// A page could not be allocated.
    #[error("the KV cache has no room for {tokens} more tokens: {source}")]
    NoMemory {
        /// Tokens that the call would have stored.
        tokens: usize,
        /// The reason.
        source: PageError,
    },
    /// A sliding-window layer has dropped tokens that a sequence of `len` tokens needs.
    #[error(
        "cannot go back to {len} tokens: a sliding-window layer has dropped tokens before {dropped}; start over"
    )]
    Dropped {
        /// The requested length.
        len: usize,
        /// The layer holds no tokens before this position.
        dropped: usize,
    },
    /// The recurrent states at this length do not exist any more.
    #[error("cannot go back to {len} tokens: recurrent layers keep no state of that length; start over")]
    NoState {
        /// The requested length.
        len: usize,
    },
    /// Arguments that do not fit the cache.
    #[error("{0}")]
    BadInput(String),
}

impl From<KvError> for scrimp_base::Error {
    /// The category is [`OutOfMemory`](scrimp_base::Category::OutOfMemory) for [`KvError::NoMemory`], and
    /// [`BadInput`](scrimp_base::Category::BadInput) for the others. The source is the `KvError`.
    fn from(error: KvError) -> Self {
        let category = match error {
            KvError::NoMemory { .. } => scrimp_base::Category::OutOfMemory,
            KvError::Dropped { .. } | KvError::NoState { .. } | KvError::BadInput(_) => {
                scrimp_base::Category::BadInput
            }
        };
        Self::new(category, error.to_string()).with_source(error)
    }
}
