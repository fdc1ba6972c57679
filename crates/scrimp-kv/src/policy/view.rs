//! A sequence's layers, as policies see them.

use super::{Attention, position_weight};
use crate::sequence::Sequence;
use std::sync::OnceLock;

/// All layers of a sequence, and what policies find out about them together.
#[derive(Debug)]
pub struct ModelView<'a> {
    sequence: &'a Sequence,
    seed: u64,
    places: OnceLock<Vec<f32>>,
}

impl<'a> ModelView<'a> {
    /// Looks at `sequence`; `seed` is that of everything random.
    pub fn new(sequence: &'a Sequence, seed: u64) -> Self {
        Self { sequence, seed, places: OnceLock::new() }
    }

    /// One of its layers.
    ///
    /// # Panics
    /// The view's methods panic when the sequence has no such layer.
    pub fn layer(&self, layer: usize) -> LayerView<'_> {
        LayerView { model: self, layer }
    }
}

/// One layer, as a policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    model: &'a ModelView<'a>,
    layer: usize,
}

impl<'a> LayerView<'a> {
    /// The layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// KV heads of the layer.
    pub fn n_kv_heads(&self) -> usize {
        self.model.sequence.n_kv_heads()
    }

    /// Elements of a key.
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

    /// What is added to the scores of a token.
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

    /// Reads the keys of tokens `16 * tile..` at once (`[head_dim][16]`; what is behind the last token is anything).
    pub fn read_key_tile(&self, kv_head: usize, tile: usize, keys: &mut [[f32; 16]]) {
        self.model.sequence.read_key_tile(self.layer, kv_head, tile, keys);
    }

    /// Tokens of `kv_head` whose attention of a kind is known, the first ones.
    pub fn n_known(&self, kind: Attention, kv_head: usize) -> usize {
        let rows = self.rows(kind);
        rows.get(kv_head * rows.len() / self.n_kv_heads()).map_or(0, Vec::len)
    }

    /// Query heads whose attention is known, or KV heads, where it is their mean ([`Needs::query_heads`](super::Needs::query_heads)) or of
    /// passes over the text; 0 where none was gathered.
    pub fn n_heads(&self, kind: Attention) -> usize {
        self.rows(kind).len()
    }

    fn rows(&self, kind: Attention) -> &'a [Vec<f32>] {
        let (stats, passes) = (self.model.sequence.stats(self.layer), self.model.sequence.passes(self.layer));
        match kind {
            Attention::Mean => &stats.sum,
            Attention::Recent => &stats.recent,
            Attention::Last => &stats.last,
            Attention::Repeated => &passes.repeated,
            Attention::Expected => &passes.expected,
        }
    }

    /// Writes the attention that the tokens of `kv_head` got from query head `head`, one of its group (of
    /// [`LayerView::n_heads`]); 0 where nothing was gathered.
    pub fn head_attention(&self, kind: Attention, kv_head: usize, head: usize, out: &mut [f32]) {
        out.fill(0.0);
        self.add_attention(kind, kv_head, head, out);
        self.weigh(kind, kv_head, 1.0, out);
    }

    /// Writes the attention that the tokens of `kv_head` got, averaged over the query heads of its group.
    pub fn attention(&self, kind: Attention, kv_head: usize, out: &mut [f32]) {
        out.fill(0.0);
        let group = self.n_heads(kind) / self.n_kv_heads();
        for head in kv_head * group..(kv_head + 1) * group {
            self.add_attention(kind, kv_head, head, out);
        }
        self.weigh(kind, kv_head, 1.0 / group.max(1) as f32, out);
    }

    /// Writes the attention that the tokens of `kv_head` can be expected to get: [`Attention::Mean`], weighed by
    /// [`LayerView::places`].
    pub fn attention_by_place(&self, kv_head: usize, out: &mut [f32]) {
        self.attention(Attention::Mean, kv_head, out);
        self.weigh_by_place(kv_head, 1, out);
    }

    /// Multiplies a number for each token of `kv_head` by the weight of its place to this power.
    pub(crate) fn weigh_by_place(&self, kv_head: usize, power: i32, out: &mut [f32]) {
        let places = self.places();
        for (index, x) in out.iter_mut().enumerate() {
            *x *= places[self.position(kv_head, index) as usize].powi(power);
        }
    }

    /// How much the end of the prompt looks around each position, by position (`[tokens seen]`, 1 on average; see `place`): the
    /// same for all layers and heads. All are 1 where that was not gathered ([`Needs::recent`](super::Needs::recent)).
    pub fn places(&self) -> &'a [f32] {
        self.model.places.get_or_init(|| position_weight::places(self.model.sequence))
    }

    fn add_attention(&self, kind: Attention, kv_head: usize, head: usize, out: &mut [f32]) {
        if let Some(row) = self.rows(kind).get(head) {
            debug_assert_eq!(head * self.n_kv_heads() / self.n_heads(kind), kv_head);
            out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
        }
    }

    /// Multiplies by `factor`, and divides sums over all queries by the number of queries that could see the token.
    fn weigh(&self, kind: Attention, kv_head: usize, factor: f32, out: &mut [f32]) {
        if kind != Attention::Mean {
            out.iter_mut().for_each(|x| *x *= factor);
            return;
        }
        for (index, x) in out.iter_mut().enumerate() {
            let queries = self.model.sequence.queries_from(self.layer, self.position(kv_head, index));
            *x *= factor / queries.max(1) as f32;
        }
    }

    /// A number that depends on the seed, the layer and the head.
    pub fn seed(&self, kv_head: usize) -> u64 {
        mix(mix(self.model.seed ^ 0x5c21_u64) ^ ((self.layer as u64) << 32 | kv_head as u64))
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
