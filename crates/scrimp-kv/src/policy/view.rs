//! Read access to a sequence, for policies: tokens, keys, values and attention scores of one layer.

use super::{Attention, position_weight};
use crate::sequence::Sequence;
use scrimp_base::random::mix;
use std::sync::OnceLock;

/// All layers of a sequence, with position weights that are computed once.
#[derive(Debug)]
pub struct ModelView<'a> {
    sequence: &'a Sequence,
    seed: u64,
    position_weights: OnceLock<Vec<f32>>,
}

impl<'a> ModelView<'a> {
    /// A view of `sequence`. `seed` determines all random numbers.
    pub fn new(sequence: &'a Sequence, seed: u64) -> Self {
        Self { sequence, seed, position_weights: OnceLock::new() }
    }

    /// The view of one layer.
    ///
    /// # Panics
    /// The methods of the view panic when the sequence has no such layer.
    pub fn layer(&self, layer: usize) -> LayerView<'_> {
        LayerView { model: self, layer }
    }
}

/// Read access to one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    model: &'a ModelView<'a>,
    layer: usize,
}

impl<'a> LayerView<'a> {
    /// The index of the layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// KV heads of the layer.
    pub fn n_kv_heads(&self) -> usize {
        self.model.sequence.n_kv_heads()
    }

    /// Elements of a key or value.
    pub fn head_dim(&self) -> usize {
        self.model.sequence.head_dim()
    }

    /// Tokens that `kv_head` holds now.
    pub fn n_tokens(&self, kv_head: usize) -> usize {
        self.model.sequence.kept(self.layer, kv_head)
    }

    /// Position of a token in the text.
    pub fn position(&self, kv_head: usize, index: usize) -> u32 {
        self.model.sequence.position(self.layer, kv_head, index)
    }

    /// The bias that attention adds to the scores of a token.
    pub fn bias(&self, kv_head: usize, index: usize) -> f32 {
        self.model.sequence.bias(self.layer, kv_head, index)
    }

    /// Reads key and value of a token (`[head_dim]` each).
    pub fn read(&self, kv_head: usize, index: usize, k: &mut [f32], v: &mut [f32]) {
        self.model.sequence.read(self.layer, kv_head, index, k, v);
    }

    /// Reads the key of a token (`[head_dim]`).
    pub fn read_key(&self, kv_head: usize, index: usize, k: &mut [f32]) {
        self.model.sequence.read_key(self.layer, kv_head, index, k);
    }

    /// Reads the keys of 16 tokens, from token `16 * tile` on (`[head_dim][16]`). Columns behind the last token are
    /// unspecified.
    pub fn read_key_tile(&self, kv_head: usize, tile: usize, keys: &mut [[f32; 16]]) {
        self.model.sequence.read_key_tile(self.layer, kv_head, tile, keys);
    }

    /// How many tokens of `kv_head`, counted from the first one, have a score of this kind.
    pub fn n_known(&self, kind: Attention, kv_head: usize) -> usize {
        let rows = self.rows(kind);
        rows.get(kv_head * rows.len() / self.n_kv_heads()).map_or(0, Vec::len)
    }

    /// The number of score rows of this kind: one per query head
    /// ([`Needs::per_query_head`](super::Needs::per_query_head)) or one per KV head; 0 where nothing was accumulated.
    pub fn n_heads(&self, kind: Attention) -> usize {
        self.rows(kind).len()
    }

    fn rows(&self, kind: Attention) -> &'a [Vec<f32>] {
        let accumulated = self.model.sequence.accumulated_scores(self.layer);
        let post_prefill = self.model.sequence.post_prefill_scores(self.layer);
        match kind {
            Attention::Mean => &accumulated.sum,
            Attention::Recent => &accumulated.recent,
            Attention::Last => &accumulated.last,
            Attention::Reconstruction => &post_prefill.reconstruction,
            Attention::Expected => &post_prefill.expected,
            Attention::ExpectedMax => &post_prefill.expected_max,
        }
    }

    /// Writes the attention that query head `head` (below [`LayerView::n_heads`], in the group of `kv_head`) paid to
    /// the tokens of `kv_head`; 0 where nothing was accumulated.
    pub fn head_attention(&self, kind: Attention, kv_head: usize, head: usize, out: &mut [f32]) {
        out.fill(0.0);
        self.add_attention(kind, kv_head, head, out);
        self.scale(kind, kv_head, 1.0, out);
    }

    /// Writes the attention that the tokens of `kv_head` received, averaged over the query heads of its group.
    pub fn attention(&self, kind: Attention, kv_head: usize, out: &mut [f32]) {
        out.fill(0.0);
        let group = self.n_heads(kind) / self.n_kv_heads();
        for head in kv_head * group..(kv_head + 1) * group {
            self.add_attention(kind, kv_head, head, out);
        }
        self.scale(kind, kv_head, 1.0 / group.max(1) as f32, out);
    }

    /// Writes [`Attention::Mean`] of the tokens of `kv_head`, multiplied by [`LayerView::position_weights`]: an
    /// estimate of the attention that they will receive.
    pub fn weighted_attention(&self, kv_head: usize, out: &mut [f32]) {
        self.attention(Attention::Mean, kv_head, out);
        self.apply_position_weights(kv_head, 1, out);
    }

    /// Multiplies the number of each token of `kv_head` by its position weight to this power.
    pub(crate) fn apply_position_weights(&self, kv_head: usize, power: i32, out: &mut [f32]) {
        let weights = self.position_weights();
        for (index, x) in out.iter_mut().enumerate() {
            *x *= weights[self.position(kv_head, index) as usize].powi(power);
        }
    }

    /// How much attention the end of the prompt pays to the neighborhood of each position (`[positions of the text]`,
    /// 1 on average); the same for all layers and heads. All weights are 1 without
    /// [`Needs::recent`](super::Needs::recent).
    pub fn position_weights(&self) -> &'a [f32] {
        let compute = || position_weight::position_weights(self.model.sequence);
        self.model.position_weights.get_or_init(compute)
    }

    fn add_attention(&self, kind: Attention, kv_head: usize, head: usize, out: &mut [f32]) {
        if let Some(row) = self.rows(kind).get(head) {
            debug_assert_eq!(head * self.n_kv_heads() / self.n_heads(kind), kv_head);
            out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
        }
    }

    /// Multiplies by `factor`, and divides [`Attention::Mean`] by the number of queries that could see the token.
    fn scale(&self, kind: Attention, kv_head: usize, factor: f32, out: &mut [f32]) {
        if kind != Attention::Mean {
            out.iter_mut().for_each(|x| *x *= factor);
            return;
        }
        for (index, x) in out.iter_mut().enumerate() {
            let queries = self.model.sequence.queries_from(self.layer, self.position(kv_head, index));
            *x *= factor / queries.max(1) as f32;
        }
    }

    /// A seed that depends on the seed of the compression, the layer and the KV head.
    pub fn seed(&self, kv_head: usize) -> u64 {
        mix(mix(self.model.seed ^ 0x5c21_u64) ^ ((self.layer as u64) << 32 | kv_head as u64))
    }
}
