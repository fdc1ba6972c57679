//! A decoder-only transformer: weights ready to run, and sessions that run them.
//!
//! * [`weights`]: a checkpoint's tensors, repacked for the kernels;
//! * [`projections`]: where a layer's matrices are in a checkpoint;
//! * [`synthetic`]: random weights of a shape;
//! * [`forward`]: the forward pass, layer by layer as the papers write it;
//! * [`attention`]: what of it each sequence does with its own cache;
//! * [`session`]: one sequence, its KV cache and its working memory; [`batch`]: many of them in one pass;
//! * [`compression`]: making that cache smaller; [`reconstruction`]: what some policies need for it.

mod attention;
mod batch;
mod compression;
mod expected_attention;
mod forward;
pub mod projections;
mod reconstruction;
mod rope_and_append;
mod session;
mod synthetic;
mod weights;

pub use batch::{Batch, Output, Step};
pub use session::{CHUNK, PIECE, Session};
pub use synthetic::{SHAPES, Shape, Synthetic};

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{Pool, SimdLevel};
use scrimp_kv::{KvCache, KvConfig, KvFormat, PageGeometry};
use std::{path::Path, sync::OnceLock};
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
    /// Kernel tier (`scalar`, `avx2`, `avx512`, `amx`); `None`: `SCRIMP_TIER` or the best that the CPU has.
    pub level: Option<String>,
    /// Storage of the KV cache (see [`KvFormat`]).
    pub kv_format: String,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { threads: None, level: None, kv_format: "bf16".to_owned() }
    }
}

/// Weights ready to run. Sessions borrow it.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    /// The files that the weights came from, if any did.
    checkpoint: Option<Checkpoint>,
    weights: Weights,
    pool: Pool,
    level: SimdLevel,
    kv: KvCache,
    /// Made when it is needed.
    reconstruction_instructions: OnceLock<reconstruction::Instructions>,
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
        let config = checkpoint.config().clone();
        let (level, format, pool) = set_up(&config, options)?;
        let weights = weights::load(&checkpoint, &pool, progress)?;
        let kv = cache(&config, format)?;
        let checkpoint = Some(checkpoint);
        Ok(Self {
            config,
            checkpoint,
            weights,
            pool,
            level,
            kv,
            reconstruction_instructions: OnceLock::new(),
        })
    }

    /// A model with random weights, for measuring speed and memory.
    ///
    /// # Errors
    /// When options are unknown, or memory cannot be had.
    pub fn synthetic(synthetic: &Synthetic, options: &RunOptions) -> Result<Self> {
        let config = synthetic.shape.config();
        let (level, format, pool) = set_up(&config, options)?;
        let weights = synthetic::weights(synthetic, &config, &pool)?;
        let kv = cache(&config, format)?;
        Ok(Self {
            config,
            checkpoint: None,
            weights,
            pool,
            level,
            kv,
            reconstruction_instructions: OnceLock::new(),
        })
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

    /// What stands before the parts of a prompt that the model is made to repeat; nothing where the files have no tokenizer.
    fn reconstruction_instructions(&self) -> &reconstruction::Instructions {
        self.reconstruction_instructions.get_or_init(|| {
            let prompts = self.checkpoint.as_ref().map(reconstruction::Instructions::new);
            prompts.and_then(Result::ok).unwrap_or_default()
        })
    }

    /// A cache for sessions of this model ([`Model::session_in_cache`]) whose pages take at most `limit` bytes together.
    ///
    /// # Errors
    /// When there is no such format.
    pub fn kv_cache(&self, kv_format: &str, limit: Option<usize>) -> Result<KvCache> {
        limited_cache(self.config(), kv_format.parse()?, limit)
    }

    /// An empty sequence in `cache`, which is one of [`Model::kv_cache`].
    pub fn session_in_cache(&self, cache: &KvCache) -> Session<'_> {
        Session::over(self, cache.sequence())
    }

    /// What the model looks like.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The files that the model was loaded from; `None` where weights are random.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// What the model was loaded from; empty where weights are random.
    pub fn path(&self) -> &Path {
        self.checkpoint.as_ref().map_or(Path::new(""), Checkpoint::path)
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
    pub fn level(&self) -> SimdLevel {
        self.level
    }
}

/// SimdLevel, KV format and threads that `options` ask for.
fn set_up(config: &ModelConfig, options: &RunOptions) -> Result<(SimdLevel, KvFormat, Pool)> {
    let level = match &options.level {
        Some(name) => name.parse(),
        None => SimdLevel::from_env(),
    }
    .map_err(|e| Error::bad_input(e.to_string()))?;
    let format: KvFormat = options.kv_format.parse()?;
    format.check(PageGeometry { page_tokens: PAGE_TOKENS, head_dim: config.head_dim })?;
    let threads = options.threads.unwrap_or_else(scrimp_kernels::exec::available_threads);
    let pool = Pool::new(threads).map_err(|e| {
        Error::bad_input(format!("cannot start {threads} threads: {e}")).with_hint("use fewer `threads`")
    })?;
    Ok((level, format, pool))
}

fn cache(config: &ModelConfig, format: KvFormat) -> Result<KvCache> {
    limited_cache(config, format, None)
}

fn limited_cache(config: &ModelConfig, format: KvFormat, limit: Option<usize>) -> Result<KvCache> {
    Ok(KvCache::new(KvConfig {
        head_dim: config.head_dim,
        n_kv_heads: config.n_kv_heads,
        windows: config.sliding_window.clone(),
        format,
        page_tokens: PAGE_TOKENS,
        limit,
        rewind: REWIND_TOKENS,
    })?)
}
