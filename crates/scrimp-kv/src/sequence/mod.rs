//! The keys and values of one text.
//!
//! [`attend`](self::attend) appends tokens and computes attention, [`scores`](self::scores) gives access to the
//! accumulated attention scores, [`states`](self::states) has recurrent states, [`compress`](self::compress) drops and packs
//! tokens, [`saved`](self::saved) writes and reads files.

mod attend;
mod compress;
mod saved;
mod scores;
mod states;
mod steady;

pub use attend::{AttentionInputs, PARALLEL_TOKENS, Queries};
pub use compress::{ApplyRope, Compressing};
pub use states::States;

use crate::{
    attention_scores::LayerScores,
    block_table::BlockTable,
    cache::{KvHeads, Shared},
    error::KvError,
    format::KvFormat,
};
use std::sync::Arc;

/// Tokens per append that [`Sequence::growth_bytes`] assumes.
const APPEND_TOKENS: usize = 512;

/// One layer of a sequence.
#[derive(Debug, Clone)]
struct Layer {
    heads: Vec<BlockTable>,
    /// Position of the next token.
    next: u32,
    /// A sliding-window layer holds no tokens before this position.
    dropped: u32,
    scores: LayerScores,
}

/// The keys and values of one text. Pages return to the pool when their last sequence is dropped.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) shared: Arc<Shared>,
    layers: Vec<Layer>,
    states: States,
    format: KvFormat,
}

impl Sequence {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let layer = |index| Layer {
            heads: vec![BlockTable::new(); shared.pages(index).n_kv_heads],
            next: 0,
            dropped: 0,
            scores: LayerScores::default(),
        };
        let layers = (0..shared.config.windows.len()).map(layer).collect();
        let (format, states) = (shared.config.format, States::new(&shared));
        Self { shared, layers, states, format }
    }

    /// Tokens of the text so far, kept or dropped.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, |l| l.next as usize)
    }

    /// Whether the text has no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Position of the next token of a layer.
    pub fn next_position(&self, layer: usize) -> usize {
        self.layers[layer].next as usize
    }

    /// Layers with keys and values.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// KV heads of each layer with full attention.
    pub fn n_kv_heads(&self) -> usize {
        self.shared.full_pages().n_kv_heads
    }

    /// Elements of a key or value of layers with full attention.
    pub fn head_dim(&self) -> usize {
        self.shared.full_pages().geometry.head_dim
    }

    /// The KV heads of layer `layer`.
    pub fn heads(&self, layer: usize) -> KvHeads {
        let pages = self.shared.pages(layer);
        KvHeads { count: pages.n_kv_heads, dim: pages.geometry.head_dim }
    }

    /// The layers with full attention. Compression applies to them; sliding-window layers are small already.
    pub fn full_layers(&self) -> impl Iterator<Item = usize> + '_ {
        let windows = self.shared.config.windows.iter().enumerate();
        windows.filter(|(_, window)| window.is_none()).map(|(layer, _)| layer)
    }

    /// A second sequence with the same tokens. Both share their pages until one of them writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            layers: self.layers.clone(),
            states: self.states.clone(),
            format: self.format,
        }
    }

    /// Removes the tokens from position `len` on. Accumulated scores keep the contributions of the removed queries.
    ///
    /// # Errors
    /// When a sliding-window layer has dropped tokens that the token at `len` needs, or there are no recurrent states
    /// at `len` (see [`Sequence::reachable`]). The sequence is then unchanged.
    pub fn truncate(&mut self, len: usize) -> Result<(), KvError> {
        for (state, window) in self.layers.iter().zip(&self.shared.config.windows) {
            let needed = window.map_or(usize::MAX, |w| (len + 1).saturating_sub(w));
            if len < state.next as usize && state.dropped as usize > needed {
                return Err(KvError::Dropped { len, dropped: state.dropped as usize });
            }
        }
        self.states.truncate(len)?;
        for state in &mut self.layers {
            let Some(position) = u32::try_from(len).ok().filter(|&p| p < state.next) else { continue };
            state.next = position;
            let mut kept = Vec::with_capacity(state.heads.len());
            for table in &mut state.heads {
                table.truncate(self.shared.config.page_tokens, position);
                kept.push(table.len());
            }
            state.scores.each_row(kept.len(), |head, row| row.truncate(kept[head]));
        }
        Ok(())
    }

    /// Removes all tokens and scores; all pages return to the pool.
    pub fn reset(&mut self) {
        *self = Self { format: self.format, ..Self::new(Arc::clone(&self.shared)) };
    }

    /// Drops the pages of a layer whose tokens are all before `position`.
    pub fn drop_before(&mut self, layer: usize, position: usize) {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        if let Some(state) = self.layers.get_mut(layer) {
            state.drop_before(self.shared.config.page_tokens, position.min(state.next));
        }
    }

    /// The storage format of keys and values.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Changes the storage format of the tokens from now on. Pages that are packed already keep their format until
    /// they are compacted, so call this on a sequence that is not packed yet.
    ///
    /// # Errors
    /// When new tokens of `format` need other pages than the cache has, or `format` does not support the pages' sizes.
    pub fn set_format(&mut self, format: KvFormat) -> Result<(), KvError> {
        self.shared.config.format.check_switch(&format)?;
        self.shared.config.check_format(&format)?;
        self.format = format;
        Ok(())
    }

    /// Kept tokens of a KV head.
    pub fn kept(&self, layer: usize, kv_head: usize) -> usize {
        self.layers[layer].heads[kv_head].len()
    }

    /// Kept tokens, averaged over layers and KV heads.
    pub fn kept_mean(&self) -> f64 {
        let heads = || self.layers.iter().flat_map(|l| &l.heads);
        heads().map(BlockTable::len).sum::<usize>() as f64 / heads().count() as f64
    }

    /// An upper bound on the bytes of new pages that an append of `tokens` tokens allocates, copies of shared and
    /// packed pages and of recurrent states included.
    pub fn growth_bytes(&self, tokens: usize) -> usize {
        let page_tokens = self.shared.config.page_tokens;
        let layers = self.layers.iter().zip(&self.shared.config.windows).enumerate();
        let pages: usize = layers
            .map(|(index, (layer, window))| {
                // A sliding-window layer drops old pages before each append.
                let limit = window.map_or(usize::MAX, |w| w + self.shared.config.rewind + APPEND_TOKENS);
                let growth = |head: &BlockTable| head.growth(page_tokens, tokens.min(limit));
                layer.heads.iter().map(growth).sum::<usize>() * self.shared.pages(index).open_bytes()
            })
            .sum();
        2 * pages + self.states.growth_bytes(&self.shared)
    }

    /// Bytes of the pages that this sequence holds, shared ones included, of the biases and of recurrent states.
    pub fn bytes(&self) -> usize {
        let pages: usize = self.layers.iter().flat_map(|l| &l.heads).map(BlockTable::bytes).sum();
        pages + self.states.bytes()
    }

    /// The bytes of [`Sequence::bytes`] that biases take.
    pub fn bias_bytes(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.heads).map(BlockTable::bias_bytes).sum()
    }

    /// Position of a kept token in the text.
    pub fn position(&self, layer: usize, kv_head: usize, index: usize) -> u32 {
        self.layers[layer].heads[kv_head].position(index)
    }

    /// The bias that attention adds to the scores of a kept token.
    pub fn bias(&self, layer: usize, kv_head: usize, index: usize) -> f32 {
        self.layers[layer].heads[kv_head].bias(self.shared.config.page_tokens, index)
    }

    /// Reads key and value of a kept token (`[head_dim]` each).
    pub fn read(&self, layer: usize, kv_head: usize, index: usize, k: &mut [f32], v: &mut [f32]) {
        self.layers[layer].heads[kv_head].read(self.shared.pages(layer), index, k, v);
    }

    /// Reads the key of a kept token (`[head_dim]`).
    pub fn read_key(&self, layer: usize, kv_head: usize, index: usize, k: &mut [f32]) {
        self.layers[layer].heads[kv_head].read_key(self.shared.pages(layer), index, k);
    }

    /// Reads the keys of 16 kept tokens, from token `16 * tile` on, `[head_dim][16]`. Columns behind the last token
    /// are unspecified.
    pub fn read_key_tile(&self, layer: usize, kv_head: usize, tile: usize, keys: &mut [[f32; 16]]) {
        self.layers[layer].heads[kv_head].read_key_tile(self.shared.pages(layer), tile, keys);
    }

    /// Sequences that share a block of a KV head; 0 where there is no such block.
    pub fn ref_cnt(&self, layer: usize, kv_head: usize, block: usize) -> usize {
        self.layers[layer].heads[kv_head].ref_cnt(block)
    }
}

impl Layer {
    fn drop_before(&mut self, page_tokens: usize, position: u32) {
        let dropped: Vec<usize> =
            self.heads.iter_mut().map(|table| table.drop_before(page_tokens, position)).collect();
        if dropped.iter().all(|&n| n == 0) {
            return;
        }
        // The first remaining token is at a page boundary at or before `position`.
        let first = self.heads.iter().filter(|h| h.len() > 0).map(|h| h.position(0)).max();
        self.dropped = self.dropped.max(first.unwrap_or(position).min(position));
        let dropped_of = |head: usize, row: &mut Vec<f32>| drop(row.drain(..dropped[head].min(row.len())));
        self.scores.each_row(dropped.len(), dropped_of);
    }
}

fn no_layer(layer: usize) -> KvError {
    KvError::BadInput(format!("the cache has no layer {layer}"))
}
