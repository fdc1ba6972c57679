//! A decoder-only transformer: repacked weights, and sessions that run them.
//!
//! * [`weights`]: a checkpoint's tensors, repacked for the kernels;
//! * [`projections`]: where a layer's matrices are in a checkpoint;
//! * [`synthetic`]: random weights of a shape;
//! * [`forward`]: the forward pass, layer by layer, in the notation of the papers; [`chunk`]: the tokens of a sequence
//!   in it; [`embed`]: their embeddings;
//! * [`experts`]: mixtures of experts in it; [`per_layer`]: inputs of layers beside the residual stream; [`altup`]:
//!   several residual streams;
//! * [`attention`]: attention over the cache of each sequence; [`recurrence`], [`short_conv`] and [`mamba2`]: layers
//!   with a recurrent state;
//! * [`session`]: one sequence, its KV cache and its scratch memory; [`batch`]: many of them in one pass;
//! * [`compression`]: compressing that cache; [`reconstruction`]: scores of some eviction policies;
//! * [`saved`]: that cache in a file;
//! * [`layer_runner`]: the forward pass of one layer at a time, for calibration.

mod altup;
mod attention;
mod batch;
mod chunk;
mod compression;
mod embed;
mod experts;
mod forward;
mod fp8;
mod future_queries;
mod layer_runner;
mod mamba2;
mod mxfp4;
mod per_layer;
pub mod projections;
mod reconstruction;
mod recurrence;
mod rope_and_append;
mod saved;
mod session;
mod short_conv;
mod synthetic;
mod verification;
mod weights;

pub use batch::{BLOCK_TOKENS, Batch, Output, Step, prompt_parts};
pub use experts::WAVE_ROWS;
pub use forward::rms_norm_rows;
pub use layer_runner::{LayerHook, LayerRunner};
pub use saved::{SavedInfo, SavedSession, SavedText, saved_options};
pub use session::{CHUNK, PIECE, Session};
pub use synthetic::{SHAPES, Shape, Synthetic};
pub use weights::{LayerNorms, LinearWeights};

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use forward::{Buffers, Pass};
use scrimp_kernels::{Exec, Pool, SimdLevel};
use scrimp_kv::{KvCache, KvConfig, KvFormat};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};
use weights::Weights;

/// Tokens per page of the KV cache.
const PAGE_TOKENS: usize = 64;
/// Tokens that sliding-window layers keep beyond their window, so that a conversation can be truncated a little.
const REWIND_TOKENS: usize = 64;

/// Threads, SIMD level and KV format of a model.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Threads, including the calling one; `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// SIMD level of the kernels; `None`: that of `SCRIMP_TIER`, or the best of the CPU.
    pub level: Option<SimdLevel>,
    /// Storage of the KV cache: bf16 by default.
    pub kv_format: KvFormat,
}

/// The weights of a model, repacked for the kernels. A clone shares weights, threads and KV pages with the original.
#[derive(Debug, Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ModelConfig,
    /// The files of the weights; `None` for random weights.
    checkpoint: Option<Checkpoint>,
    weights: Weights,
    pool: Arc<Pool>,
    level: SimdLevel,
    kv: KvCache,
    /// Created at the first use.
    reconstruction_instructions: OnceLock<reconstruction::Instructions>,
    /// See [`Model::fingerprint`].
    fingerprint: OnceLock<u64>,
}

impl Model {
    /// Loads the weights of `checkpoint`: packs matrices for the kernels and releases the mapped originals.
    ///
    /// # Errors
    /// When the KV format does not fit the model, a tensor is damaged, or memory cannot be had.
    pub fn load(checkpoint: Checkpoint, options: &RunOptions) -> Result<Self> {
        Self::load_with_progress(checkpoint, options, &mut |_| {})
    }

    /// As [`Model::load`]; `progress` is called with the stored bytes of each finished tensor.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_progress(
        checkpoint: Checkpoint,
        options: &RunOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let (level, pool) = set_up(options)?;
        Self::load_on(checkpoint, options.kv_format, (level, Arc::new(pool)), progress)
    }

    /// As [`Model::load`], on the threads and at the SIMD level of `other`: two pools of threads would wait for each other.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_beside(checkpoint: Checkpoint, other: &Self) -> Result<Self> {
        let exec = (other.inner.level, Arc::clone(&other.inner.pool));
        Self::load_on(checkpoint, KvFormat::default(), exec, &mut |_| {})
    }

    fn load_on(
        checkpoint: Checkpoint,
        kv_format: KvFormat,
        (level, pool): (SimdLevel, Arc<Pool>),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        let kv = cache(&config, kv_format, None)?;
        let weights = weights::load(&checkpoint, &pool, progress)?;
        Ok(Self::of(Inner {
            config,
            checkpoint: Some(checkpoint),
            weights,
            pool,
            level,
            kv,
            reconstruction_instructions: OnceLock::new(),
            fingerprint: OnceLock::new(),
        }))
    }

    /// A model with random weights, for measuring speed and memory.
    ///
    /// # Errors
    /// When the KV format does not fit the model, or memory cannot be had.
    pub fn synthetic(synthetic: &Synthetic, options: &RunOptions) -> Result<Self> {
        let config = synthetic.shape.config();
        let kv = cache(&config, options.kv_format, None)?;
        let (level, pool) = set_up(options)?;
        let weights = synthetic::weights(synthetic, &config, &pool)?;
        let reconstruction_instructions = OnceLock::new();
        Ok(Self::of(Inner {
            config,
            checkpoint: None,
            weights,
            pool: Arc::new(pool),
            level,
            kv,
            reconstruction_instructions,
            fingerprint: OnceLock::new(),
        }))
    }

    fn of(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    fn weights(&self) -> &Weights {
        &self.inner.weights
    }

    /// The layer of the model that has the keys and values of layer `index` of a cache.
    fn attention_layer(&self, index: usize) -> usize {
        self.config().attention_layers().nth(index).unwrap_or(index)
    }

    pub(crate) fn exec(&self) -> Exec<'_> {
        Exec { pool: &self.inner.pool, level: self.inner.level }
    }

    /// The steps of a forward pass over `buffers`.
    fn pass<'a>(&'a self, buffers: &'a mut Buffers) -> Pass<'a> {
        let exec = self.exec();
        Pass { exec, end_level: exec.level, config: self.config(), buffers }
    }

    /// A pass over several sequences: the steps behind the attention of the last layer run at an exact level, because the
    /// number of their rows depends on all sequences.
    fn exact_end_pass<'a>(&'a self, buffers: &'a mut Buffers) -> Pass<'a> {
        let exec = self.exec();
        Pass { exec, end_level: exec.level.exact(), config: self.config(), buffers }
    }

    /// An empty sequence.
    pub fn session(&self) -> Session {
        Session::new(self)
    }

    /// An empty sequence whose keys and values are stored in another format than [`RunOptions::kv_format`].
    ///
    /// # Errors
    /// When there is no such format.
    pub fn session_in(&self, kv_format: KvFormat) -> Result<Session> {
        Ok(Session::over(self, self.kv_cache(kv_format, None)?.sequence()))
    }

    /// The instructions before the chunks of a prompt that the model repeats; empty if the files have no tokenizer.
    fn reconstruction_instructions(&self) -> &reconstruction::Instructions {
        self.inner.reconstruction_instructions.get_or_init(|| {
            let instructions = self.inner.checkpoint.as_ref().map(reconstruction::Instructions::new);
            instructions.and_then(Result::ok).unwrap_or_default()
        })
    }

    /// A cache for sessions of this model ([`Model::session_in_cache`]) whose pages take at most `limit` bytes
    /// together.
    ///
    /// # Errors
    /// When there is no such format.
    pub fn kv_cache(&self, kv_format: KvFormat, limit: Option<usize>) -> Result<KvCache> {
        cache(self.config(), kv_format, limit)
    }

    /// An empty sequence in `cache`, which is one of [`Model::kv_cache`].
    pub fn session_in_cache(&self, cache: &KvCache) -> Session {
        Session::over(self, cache.sequence())
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The files of the model; `None` for random weights.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.inner.checkpoint.as_ref()
    }

    /// Whether a session can drop its last tokens, however many: no layer has a sliding window or a recurrent state.
    pub fn rewinds(&self) -> bool {
        let config = self.config();
        config.recurrence.is_none() && config.sliding_window.iter().all(Option::is_none)
    }

    /// The path of the model; empty for random weights.
    pub fn path(&self) -> &Path {
        self.inner.checkpoint.as_ref().map_or(Path::new(""), Checkpoint::path)
    }

    /// Tokens in the vocabulary (length of a logits row).
    pub fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    /// Maximum length of a sequence, tokens.
    pub fn context_length(&self) -> usize {
        self.config().context_length
    }

    /// Bytes of packed weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.weights().packed_bytes
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.inner.pool.threads()
    }

    /// The SIMD level of the kernels.
    pub fn level(&self) -> SimdLevel {
        self.inner.level
    }
}

/// The SIMD level and the threads of `options`.
pub(crate) fn set_up(options: &RunOptions) -> Result<(SimdLevel, Pool)> {
    let level = match options.level {
        Some(level) => level,
        None => SimdLevel::from_env().map_err(|e| Error::bad_input(e.to_string()))?,
    };
    let threads = options.threads.unwrap_or_else(scrimp_kernels::exec::available_threads);
    let pool = Pool::new(threads).map_err(|e| {
        Error::bad_input(format!("cannot start {threads} threads: {e}")).with_hint("use fewer `threads`")
    })?;
    Ok((level, pool))
}

fn cache(config: &ModelConfig, format: KvFormat, limit: Option<usize>) -> Result<KvCache> {
    Ok(KvCache::new(KvConfig {
        head_dim: config.head_dim,
        n_kv_heads: config.n_kv_heads,
        window_heads: config.window_heads,
        windows: config.attention_layers().map(|layer| config.sliding_window[layer]).collect(),
        states: config.states(),
        format,
        page_tokens: PAGE_TOKENS,
        limit,
        rewind: REWIND_TOKENS,
    })?)
}

// Sessions move between threads; models are shared by them.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<Session>();
    is_send::<Batch>();
    is_shared::<Model>();
    is_shared::<crate::Llm>();
};
