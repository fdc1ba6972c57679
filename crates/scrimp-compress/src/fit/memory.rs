//! The memory that a configuration needs: the caches of all sequences, and the working memory of a forward pass.

use super::cache::Cache;
use scrimp_llm::{
    config::ModelConfig,
    model::{CHUNK, PIECE, WAVE_ROWS},
};

/// Tokens per page of the cache.
const PAGE: usize = 64;
/// Bytes of a process beside weights and caches: code, tokenizer, threads.
const PROCESS: u64 = 16 << 20;

/// A memory limit, and the needs that do not depend on the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The limit in bytes.
    pub memory: u64,
    /// Number of simultaneous conversations.
    pub sequences: u64,
    /// Bytes of one conversation's whole cache in bf16.
    pub whole_bytes: u64,
    /// Bytes in bf16 of the unpacked part of a prompt.
    pub piece_bytes: u64,
    /// Bytes of everything else.
    pub working_bytes: u64,
}

impl Demand {
    /// `sequences` conversations of up to `context` tokens each with a model of this shape, in `memory` bytes.
    pub fn new(config: &ModelConfig, memory: u64, context: usize, sequences: u64) -> Self {
        let layers = 0..config.n_layers;
        let heads = layers.clone().map(|i| config.heads(i).q_dim() + config.heads(i).kv_dim()).max();
        let block = layers.map(|i| config.block_width(i)).max();
        let inputs = config.per_layer_input.map_or(0, |inputs| config.n_layers * inputs.width)
            + config.altup.map_or(0, |altup| (altup.streams + 1) * config.hidden_size);
        let wide = 4 * config.hidden_size + 2 * heads.unwrap_or(0) + 3 * block.unwrap_or(0) + inputs;
        let logits = 2 * config.vocab_size;
        // Inputs, results and gated results of a wave of experts.
        let wave =
            config.experts.map_or(0, |experts| WAVE_ROWS * (2 * config.hidden_size + 4 * experts.width));
        // The states of each conversation, and their checkpoint.
        let states = 2 * sequences * config.state_bytes() as u64;
        Self {
            memory,
            sequences,
            whole_bytes: bf16_bytes(config, context),
            piece_bytes: bf16_bytes(config, context.min(PIECE)),
            working_bytes: PROCESS + 4 * (CHUNK * wide + wave + logits) as u64 + states,
        }
    }

    /// Peak bytes of all caches: every conversation has its maximum length, and one prompt has just been read. Eviction
    /// happens after the prompt, so that prompt is whole.
    pub fn kv_bytes(&self, cache: &Cache) -> u64 {
        let kept = |whole: u64| (whole as f64 * cache.share).ceil() as u64;
        let one = kept(self.whole_bytes);
        let reading = if cache.compression.is_some() {
            self.whole_bytes
        } else {
            (one + self.piece_bytes - kept(self.piece_bytes)).min(self.whole_bytes)
        };
        (self.sequences - 1) * one + reading.max(one)
    }
}

/// Bytes of keys and values of `tokens` tokens in bf16.
pub(super) fn bf16_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let tokens = |window: &Option<usize>| window.map_or(tokens, |w| w.min(tokens)).next_multiple_of(PAGE);
    let layers = config.attention_layers().map(|layer| {
        let heads = config.heads(layer);
        // Rows of pages are padded to whole vectors.
        heads.n_kv_heads * heads.head_dim.next_multiple_of(16) * tokens(&config.sliding_window[layer])
    });
    4 * layers.sum::<usize>() as u64
}
