//! A decoder-only transformer: weights ready to run, and sessions that run them.
//!
//! * [`weights`]: a checkpoint's tensors, repacked for the kernels;
//! * [`parts`]: where a layer's matrices are in a checkpoint;
//! * [`forward`]: the forward pass, layer by layer as the papers write it;
//! * [`session`]: one sequence, its KV cache and its working memory;
//! * [`compression`]: making that cache smaller.

mod compression;
mod forward;
pub(crate) mod parts;
mod session;
mod weights;

pub use session::Session;

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{Tier, threads::Pool};
use scrimp_kv::{KvCache, KvConfig, KvFormat, PageGeometry};
use weights::Weights;

/// Tokens per page of the KV cache.
const PAGE_TOKENS: usize = 64;
/// Tokens that sliding-window layers keep beyond their window, so that a conversation can go back a little.
const REWIND_TOKENS: usize = 64;

/// How a model is to be loaded and run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Threads, the calling one included; `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// Kernel tier (`scalar`, `avx2`, `avx512`); `None`: `SCRIMP_TIER` or the best that the CPU has.
    pub tier: Option<String>,
    /// Storage of the KV cache (see [`KvFormat`]).
    pub kv_format: String,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { threads: None, tier: None, kv_format: "bf16".to_owned() }
    }
}

/// Weights ready to run. Sessions borrow it.
#[derive(Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    weights: Weights,
    pool: Pool,
    tier: Tier,
    kv: KvCache,
}

impl Model {
    /// Loads the weights of `checkpoint`: repacks matrices into huge-page memory and lets go of the mapped originals.
    ///
    /// # Errors
    /// When options are unknown, a tensor is damaged, or memory cannot be had.
    pub fn load(checkpoint: Checkpoint, options: &RunOptions) -> Result<Self> {
        Self::load_with_progress(checkpoint, options, &mut |_| {})
    }

    /// As [`Model::load`]; `progress` is called with the stored bytes of each tensor that is done.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_progress(
        checkpoint: Checkpoint,
        options: &RunOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let tier = match &options.tier {
            Some(name) => name.parse(),
            None => Tier::from_env(),
        }
        .map_err(|e| Error::bad_input(e.to_string()))?;
        let format: KvFormat = options.kv_format.parse()?;
        let head_dim = checkpoint.config().head_dim;
        format.check(PageGeometry { page_tokens: PAGE_TOKENS, head_dim })?;
        let threads = options.threads.unwrap_or_else(scrimp_kernels::threads::available_threads);
        let pool = Pool::new(threads).map_err(|e| {
            Error::bad_input_hint(format!("cannot start {threads} threads: {e}"), "use fewer --threads")
        })?;
        let weights = weights::load(&checkpoint, &pool, progress)?;
        let kv = cache(checkpoint.config(), format)?;
        Ok(Self { checkpoint, weights, pool, tier, kv })
    }

    /// An empty sequence.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// An empty sequence whose keys and values are stored in another format than [`RunOptions::kv_format`].
    ///
    /// # Errors
    /// When there is no such format.
    pub fn session_in(&self, kv_format: &str) -> Result<Session<'_>> {
        Ok(Session::over(self, cache(self.config(), kv_format.parse()?)?.sequence()))
    }

    /// What the model looks like.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The files that the model was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Tokens in the vocabulary (length of a logits row).
    pub fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    /// Longest sequence, tokens.
    pub fn context_length(&self) -> usize {
        self.config().context_length
    }

    /// Bytes of packed weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.weights.packed_bytes
    }

    /// Threads that take part in the work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions that kernels use.
    pub fn tier(&self) -> Tier {
        self.tier
    }
}

fn cache(config: &ModelConfig, format: KvFormat) -> Result<KvCache> {
    Ok(KvCache::new(KvConfig {
        head_dim: config.head_dim,
        n_kv_heads: config.n_kv_heads,
        windows: config.sliding_window.clone(),
        format,
        page_tokens: PAGE_TOKENS,
        limit: None,
        rewind: REWIND_TOKENS,
    })?)
}
