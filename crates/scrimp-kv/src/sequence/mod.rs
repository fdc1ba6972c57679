//! One text and its keys and values.

use crate::{
    attention_scores::{PassScores, Received, StatsWanted},
    block_table::{HeadTable, Turn},
    cache::Shared,
    causal_view::Causal,
    compress::{Compression, choose::choose},
    error::KvError,
    format::KvFormat,
    policy::{self, Kept},
};
use scrimp_kernels::{
    Pool, SimdLevel,
    attention::{self, AttentionScratch, ColumnStats},
};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Tokens of an append from which on threads share the work; appending fewer does not use the pool.
pub const PARALLEL_TOKENS: usize = 32;

/// Tokens that are appended at once, as [`Sequence::growth_bytes`] takes it.
const AT_ONCE: usize = 512;

/// One layer of a sequence.
#[derive(Debug, Clone)]
struct Layer {
    heads: Vec<HeadTable>,
    /// Position of the next token.
    next: u32,
    /// Positions before this one are gone from a sliding-window layer.
    dropped: u32,
    received: Received,
}

/// The keys and values of one text. Dropping it gives its pages back.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) shared: Arc<Shared>,
    layers: Vec<Layer>,
    format: KvFormat,
}

/// Whose queries they are, and so what they see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Queries {
    /// Of the tokens that were appended last: each sees itself and what is before it.
    #[default]
    Last,
    /// Likewise, but so many tokens were appended after theirs.
    Before(usize),
    /// Of tokens to come: they see everything.
    Future,
}

/// Queries of one layer and how to compute.
#[derive(Debug)]
pub struct AttentionInputs<'a> {
    /// Instructions to use.
    pub level: SimdLevel,
    /// `[n_tokens][n_heads][head_dim]`, after RoPE.
    pub q: &'a [f32],
    /// Whose they are.
    pub queries: Queries,
    /// The result, `[n_tokens][n_heads][head_dim]`.
    pub out: &'a mut [f32],
    /// Query heads, a multiple of the KV heads.
    pub n_heads: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// `tanh` soft cap on scores.
    pub softcap: Option<f32>,
    /// First of the tokens whose result is wanted; the others' may be anything afterwards, but count in column sums.
    pub wanted_from: usize,
    /// Column sums to add to (see [`Sequence::stats`]).
    pub stats: Option<StatsWanted>,
}

impl Sequence {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let layer = Layer {
            heads: vec![HeadTable::new(); shared.config.n_kv_heads],
            next: 0,
            dropped: 0,
            received: Received::default(),
        };
        let layers = vec![layer; shared.config.windows.len()];
        let format = shared.config.format;
        Self { shared, layers, format }
    }

    /// Tokens of the text so far, whether kept or not.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, |l| l.next as usize)
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Position of the next token of a layer.
    pub fn next_position(&self, layer: usize) -> usize {
        self.layers[layer].next as usize
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// KV heads of each layer.
    pub fn n_kv_heads(&self) -> usize {
        self.shared.config.n_kv_heads
    }

    /// Elements of a key or value.
    pub fn head_dim(&self) -> usize {
        self.shared.geometry.head_dim
    }

    /// The layers that see all tokens, and so can be compressed; sliding-window layers are small already.
    pub fn full_layers(&self) -> impl Iterator<Item = usize> + '_ {
        let windows = self.shared.config.windows.iter().enumerate();
        windows.filter(|(_, window)| window.is_none()).map(|(layer, _)| layer)
    }

    /// Stores the next tokens of a layer: `k` and `v` are `[n_tokens][n_kv_heads][head_dim]`, keys after RoPE.
    /// Sliding-window layers let go of the pages that no later token sees.
    ///
    /// # Errors
    /// When the lengths do not fit or pages cannot be had; then the layer is as before. (A forward pass that fails in a
    /// later layer goes back with [`Sequence::truncate`] to the length before it.)
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32], pool: &Pool) -> Result<(), KvError> {
        let shared = &*self.shared;
        let width = shared.config.n_kv_heads * shared.geometry.head_dim;
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        if k.len() != v.len() || !k.len().is_multiple_of(width) {
            return Err(KvError::BadInput(format!(
                "keys and values of {} and {} elements are no rows of {width}",
                k.len(),
                v.len()
            )));
        }
        let n = k.len() / width;
        let position = state.next;
        let Some(next) = u32::try_from(n).ok().and_then(|n| position.checked_add(n)) else {
            return Err(KvError::BadInput("a sequence cannot have 2^32 tokens".into()));
        };
        if let Some(window) = shared.config.windows[layer] {
            let needed = (position as usize + 1).saturating_sub(window.saturating_add(shared.config.rewind));
            state.drop_before(shared.geometry.page_tokens, needed as u32);
        }
        let growth: Vec<_> = state.heads.iter().map(|h| h.prepare(shared, n)).collect::<Result<_, _>>()?;
        let mut tasks = Vec::with_capacity(growth.len() * (n / shared.geometry.page_tokens + 2));
        for (head, (table, growth)) in state.heads.iter_mut().zip(growth).enumerate() {
            table.grow(shared, head, growth, n, position, &mut tasks);
        }
        if n < PARALLEL_TOKENS {
            tasks.iter_mut().for_each(|task| task.run(shared, k, v));
        } else {
            let tasks: Vec<_> = tasks.into_iter().map(Mutex::new).collect();
            pool.run(tasks.len(), |unit, _| {
                tasks[unit].lock().unwrap_or_else(PoisonError::into_inner).run(shared, k, v);
            });
        }
        state.next = next;
        Ok(())
    }

    /// Attention of the tokens that were appended last to `layer` over all that the layer keeps: causal, and within the
    /// layer's window.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn attend(
        &mut self,
        layer: usize,
        inputs: AttentionInputs<'_>,
        pool: &Pool,
        scratch: &mut AttentionScratch,
    ) -> Result<(), KvError> {
        let shared = &*self.shared;
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        let view = Causal::new(shared, layer, state.next, &state.heads, &inputs)?;
        let args = view.args(shared, &inputs);
        let stats = inputs.stats.map(|wanted| {
            let queries = view.first..view.first + args.n_tokens as u32;
            let rows = if wanted.per_kv_head { args.n_kv_heads } else { args.n_heads };
            (state.received.request(wanted, queries, rows), &mut state.received.stats)
        });
        attention::attend(&args, inputs.out, stats, pool, scratch);
        Ok(())
    }

    /// The layer's tables as `inputs` see them.
    pub(crate) fn causal(&self, layer: usize, inputs: &AttentionInputs<'_>) -> Result<Causal<'_>, KvError> {
        let Some(state) = self.layers.get(layer) else { return Err(no_layer(layer)) };
        Causal::new(&self.shared, layer, state.next, &state.heads, inputs)
    }

    /// Column sums of a layer so far: per query head or KV head ([`StatsWanted::per_kv_head`]), one number per kept token (tokens behind the
    /// end of a row: 0).
    pub fn stats(&self, layer: usize) -> &ColumnStats {
        &self.layers[layer].received.stats
    }

    /// Of the queries that the sums over all queries of a layer hold, how many could see a token at `position`.
    pub fn queries_from(&self, layer: usize, position: u32) -> u32 {
        self.layers[layer].received.queries_from(position)
    }

    /// Replaces the column sums of a layer by others, for example of a second pass over the text; `queries` are the positions of the
    /// queries in the sums over all queries.
    ///
    /// # Errors
    /// When there is no such layer, or a row is longer than the tokens of its KV head.
    pub fn set_stats(
        &mut self,
        layer: usize,
        stats: ColumnStats,
        queries: Vec<Range<u32>>,
    ) -> Result<(), KvError> {
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        state.received.set_stats(&state.heads, stats, queries)
    }

    /// Hands out the column sums of a layer and forgets them.
    pub fn take_stats(&mut self, layer: usize) -> (ColumnStats, Vec<Range<u32>>) {
        let Received { stats, queries, .. } = &mut self.layers[layer].received;
        (std::mem::take(stats), std::mem::take(queries))
    }

    /// Scores of passes over the text.
    pub fn passes(&self, layer: usize) -> &PassScores {
        &self.layers[layer].received.passes
    }

    /// Replaces the scores of passes over the text.
    ///
    /// # Errors
    /// When there is no such layer, or rows do not fit its KV heads and tokens.
    pub fn set_passes(&mut self, layer: usize, passes: PassScores) -> Result<(), KvError> {
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        state.received.set_passes(&state.heads, passes)
    }

    /// Forgets the column sums over recent queries.
    pub fn clear_recent_stats(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.received.stats.recent.clear());
    }

    /// Forgets all column sums.
    pub fn clear_stats(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.received.forget_stats());
    }

    /// A second sequence with the same tokens. Pages are shared until one of the two writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), layers: self.layers.clone(), format: self.format }
    }

    /// Forgets the tokens from position `len` on. Column sums keep what forgotten queries have added.
    ///
    /// # Errors
    /// When a sliding-window layer has let go of tokens that the token at `len` would see.
    pub fn truncate(&mut self, len: usize) -> Result<(), KvError> {
        for (state, window) in self.layers.iter().zip(&self.shared.config.windows) {
            let needed = window.map_or(usize::MAX, |w| (len + 1).saturating_sub(w));
            if len < state.next as usize && state.dropped as usize > needed {
                return Err(KvError::Dropped { len, dropped: state.dropped as usize });
            }
        }
        for state in &mut self.layers {
            let Some(position) = u32::try_from(len).ok().filter(|&p| p < state.next) else { continue };
            state.next = position;
            let mut kept = Vec::with_capacity(state.heads.len());
            for table in &mut state.heads {
                table.truncate(self.shared.geometry.page_tokens, position);
                kept.push(table.len());
            }
            state.received.each_row(kept.len(), |head, row| row.truncate(kept[head]));
        }
        Ok(())
    }

    /// Forgets everything; all pages go back.
    pub fn reset(&mut self) {
        *self = Self { format: self.format, ..Self::new(Arc::clone(&self.shared)) };
    }

    /// Drops the pages of a layer whose tokens are all before `position`.
    pub fn drop_before(&mut self, layer: usize, position: usize) {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        if let Some(state) = self.layers.get_mut(layer) {
            state.drop_before(self.shared.geometry.page_tokens, position.min(state.next));
        }
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Stores keys and values so from now on. Pages that are packed already stay as they are until they are compacted, so
    /// this is for a fork of a sequence that is not packed.
    ///
    /// # Errors
    /// When new tokens would go to other pages than the cache's format has, or the format does not take the pages' sizes.
    pub fn set_format(&mut self, format: KvFormat) -> Result<(), KvError> {
        self.shared.config.format.check_switch(&format)?;
        format.check(self.shared.geometry)?;
        self.format = format;
        Ok(())
    }

    /// Packs the pages that are full and older than the format's window, where the format packs pages at all. To be
    /// called after every append whose tokens are not going to be thinned out soon: what is packed twice loses twice.
    ///
    /// # Errors
    /// When pages cannot be had. What was packed by then stays packed; no token is lost.
    pub fn pack(&mut self, pool: &Pool) -> Result<(), KvError> {
        let shared = &*self.shared;
        let format = self.format;
        let Some(kind) = format.packing() else { return Ok(()) };
        let tables = self.layers.iter_mut().flat_map(|layer| &mut layer.heads);
        let tasks: Vec<_> = tables
            .filter_map(|table| {
                let blocks = table.to_pack(shared, format);
                (!blocks.is_empty()).then(|| Mutex::new((table, blocks, Ok(()))))
            })
            .collect();
        pool.run(tasks.len(), |unit, _| {
            let (table, blocks, result) = &mut *tasks[unit].lock().unwrap_or_else(PoisonError::into_inner);
            *result =
                table.pack(shared, kind, blocks.clone()).map(|packed| table.replace(blocks.start, packed));
        });
        tasks.into_iter().try_for_each(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner).2)
    }

    /// Keeps only the named tokens of each KV head of a layer, in new pages (packed as by [`Sequence::pack`]), and lets
    /// go of the old ones.
    ///
    /// # Errors
    /// When `kept` does not fit the layer, or pages cannot be had; then the layer is as before.
    pub fn compact(&mut self, layer: usize, kept: &[Kept]) -> Result<(), KvError> {
        let Some(state) = self.layers.get(layer) else { return Err(no_layer(layer)) };
        if kept.len() != state.heads.len() {
            return Err(KvError::BadInput(format!(
                "kept tokens of {} heads for {} KV heads",
                kept.len(),
                state.heads.len()
            )));
        }
        for (table, kept) in state.heads.iter().zip(kept) {
            policy::check(kept, table.len())?;
        }
        let heads = (0..kept.len()).map(|head| self.compacted(layer, head, &kept[head], None));
        let heads = heads.collect::<Result<_, _>>()?;
        self.replace(layer, heads, kept);
        Ok(())
    }

    /// A head's table with the named tokens only.
    fn compacted(
        &self,
        layer: usize,
        head: usize,
        kept: &Kept,
        turn: Option<Turn<'_>>,
    ) -> Result<HeadTable, KvError> {
        let state = &self.layers[layer];
        state.heads[head].compacted(&self.shared, self.format, kept, turn.map(|turn| (turn, state.next)))
    }

    /// Puts tables that hold the named tokens in the place of a layer's.
    fn replace(&mut self, layer: usize, heads: Vec<HeadTable>, kept: &[Kept]) {
        let state = &mut self.layers[layer];
        state.heads = heads;
        state.received.each_row(kept.len(), |head, row| {
            // Tokens behind the end of a row stay there.
            let held = row.len();
            let inside = kept[head].indices.iter().take_while(|&&i| (i as usize) < held);
            *row = inside.map(|&i| row[i as usize]).collect();
        });
    }

    /// Compacts all layers that see all tokens, given that each KV head may keep `budget` tokens (where layers or heads
    /// share a budget: on average). Sliding-window layers stay as they are.
    ///
    /// Layers are chosen for by all threads of `pool`, then written a few at a time, so that little memory is needed beyond what is
    /// there.
    ///
    /// # Errors
    /// As [`Sequence::compact`]; layers that are done by then stay compacted. When keys are to be turned
    /// ([`Sequence::compress_turning`]).
    pub fn compress(&mut self, how: &Compression, budget: usize, pool: &Pool) -> Result<(), KvError> {
        if how.rerotate {
            return Err(KvError::BadInput("turning keys needs the model's rotary embedding".into()));
        }
        self.compress_turning(how, budget, pool, None)
    }

    /// As [`Sequence::compress`], with `turn`, which rotates a key (`[head_dim]`) by so many positions as the model does it. With it, the
    /// kept keys of a head are turned until they are one position apart, and the last of them one from the next token. The
    /// positions that a sequence tells stay those of the text.
    ///
    /// # Errors
    /// As [`Sequence::compact`].
    pub fn compress_turning(
        &mut self,
        how: &Compression,
        budget: usize,
        pool: &Pool,
        turn: Option<Turn<'_>>,
    ) -> Result<(), KvError> {
        if how.keeps_everything() {
            return Ok(());
        }
        let layers: Vec<usize> = self.full_layers().collect();
        let chosen = choose(self, &layers, how, budget, pool);
        let heads = self.n_kv_heads();
        // As many layers together as threads.
        for (layers, chosen) in layers.chunks(pool.threads()).zip(chosen.chunks(pool.threads())) {
            let this = &*self;
            let compacted = |unit: usize| {
                let (layer, head) = (unit / heads, unit % heads);
                this.compacted(layers[layer], head, &chosen[layer][head], turn)
            };
            let mut tables = pool.map(layers.len() * heads, compacted).into_iter();
            for (&layer, kept) in layers.iter().zip(chosen) {
                let tables = tables.by_ref().take(heads).collect::<Result<Vec<_>, _>>()?;
                self.replace(layer, tables, kept);
            }
        }
        Ok(())
    }

    /// Kept tokens of a KV head.
    pub fn kept(&self, layer: usize, kv_head: usize) -> usize {
        self.layers[layer].heads[kv_head].len()
    }

    /// Kept tokens, averaged over layers and KV heads.
    pub fn kept_mean(&self) -> f64 {
        let heads = || self.layers.iter().flat_map(|l| &l.heads);
        heads().map(HeadTable::len).sum::<usize>() as f64 / heads().count() as f64
    }

    /// Bytes of new pages that appending `tokens` takes at most, copies of shared and packed pages included.
    pub fn growth_bytes(&self, tokens: usize) -> usize {
        let page_tokens = self.shared.geometry.page_tokens;
        let layers = self.layers.iter().zip(&self.shared.config.windows);
        let blocks: usize = layers
            .map(|(layer, window)| {
                // A sliding-window layer lets go of pages as it goes on; what is appended at once stays until then.
                let most = window.map_or(usize::MAX, |w| w + self.shared.config.rewind + AT_ONCE);
                layer.heads.iter().map(|head| head.growth(page_tokens, tokens.min(most))).sum::<usize>()
            })
            .sum();
        2 * blocks * self.shared.open_bytes()
    }

    /// Bytes of the pages that this sequence holds, shared ones included, and of what is added to scores.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.heads).map(HeadTable::bytes).sum()
    }

    /// Of those, what is added to scores takes so many.
    pub fn bias_bytes(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.heads).map(HeadTable::bias_bytes).sum()
    }

    /// Position of a kept token.
    pub fn position(&self, layer: usize, kv_head: usize, index: usize) -> u32 {
        self.layers[layer].heads[kv_head].position(index)
    }

    /// What is added to the scores of a kept token.
    pub fn bias(&self, layer: usize, kv_head: usize, index: usize) -> f32 {
        self.layers[layer].heads[kv_head].bias(self.shared.geometry.page_tokens, index)
    }

    /// Reads key and value of a kept token (`[head_dim]` each).
    pub fn read(&self, layer: usize, kv_head: usize, index: usize, k: &mut [f32], v: &mut [f32]) {
        self.layers[layer].heads[kv_head].read(&self.shared, index, k, v);
    }

    /// Reads the key of a kept token (`[head_dim]`).
    pub fn read_key(&self, layer: usize, kv_head: usize, index: usize, k: &mut [f32]) {
        self.layers[layer].heads[kv_head].read_key(&self.shared, index, k);
    }

    /// Reads the keys of kept tokens `16 * tile..` at once, `[head_dim][16]`; what is behind the last token is anything.
    pub fn read_key_tile(&self, layer: usize, kv_head: usize, tile: usize, keys: &mut [[f32; 16]]) {
        self.layers[layer].heads[kv_head].read_key_tile(&self.shared, tile, keys);
    }

    /// Sequences that hold a page of a KV head (0 where there is no such page).
    pub fn ref_cnt(&self, layer: usize, kv_head: usize, page: usize) -> usize {
        self.layers[layer].heads[kv_head].ref_cnt(page)
    }
}

impl Layer {
    fn drop_before(&mut self, page_tokens: usize, position: u32) {
        let dropped: Vec<usize> =
            self.heads.iter_mut().map(|table| table.drop_before(page_tokens, position)).collect();
        if dropped.iter().all(|&n| n == 0) {
            return;
        }
        // What is left starts at a page boundary at or before `position`.
        let first = self.heads.iter().filter(|h| h.len() > 0).map(|h| h.position(0)).max();
        self.dropped = self.dropped.max(first.unwrap_or(position).min(position));
        let dropped_of = |head: usize, row: &mut Vec<f32>| drop(row.drain(..dropped[head].min(row.len())));
        self.received.each_row(dropped.len(), dropped_of);
    }
}

fn no_layer(layer: usize) -> KvError {
    KvError::BadInput(format!("the cache has no layer {layer}"))
}
